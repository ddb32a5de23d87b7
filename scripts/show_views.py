"""Draw what the model sees of an image: its windows, row by row, and the global view.

    python scripts/show_views.py PICTURE OUTPUT.png
    python scripts/show_views.py PICTURE OUTPUT.png --checkpoint echo840/Monkey --grid 2,3
    python scripts/show_views.py PICTURE OUTPUT.png --checkpoint CHECKPOINT --ask "What does the sign say?"

Without a checkpoint, the published geometry: 2×2 windows of 448 pixels. With --ask the checkpoint answers, and heat
shows where the tokens of its answer looked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

import monkey
from monkey.cli import EXIT_USAGE, ArgumentParser
from monkey.files import refuse_missing
from monkey.images import open_image


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--checkpoint", help="folder or hub name whose geometry to use")
    parser.add_argument("--grid", help="ROWS,COLUMNS of windows")
    parser.add_argument("--ask", metavar="QUESTION", help="show where the answer's tokens looked; needs --checkpoint")
    options = parser.parse_args(arguments)
    try:
        if options.ask and not options.checkpoint:
            raise ValueError("--ask needs --checkpoint, the model that answers")
        grid = tuple(int(part) for part in options.grid.split(",")) if options.grid else None
        if options.checkpoint:
            refuse_missing(options.checkpoint)
        image = open_image(options.picture)
        if options.ask:
            config, sheet = _asked(options.checkpoint, grid, image, options.ask)
        else:
            config = (
                monkey.MonkeyConfig.from_pretrained(options.checkpoint, grid=grid)
                if options.checkpoint
                else monkey.MonkeyConfig(grid=grid or (2, 2))
            )
            from monkey.serving.attention_maps import draw_views

            sheet = draw_views(image, config)
        sheet.save(options.output, optimize=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"{options.output}: {config.num_views} views, {config.image_tokens} tokens")
    return 0


def _asked(checkpoint: str, grid, image: Image.Image, question: str) -> tuple[monkey.MonkeyConfig, Image.Image]:
    """Ask, and draw where the answer's tokens looked."""
    from monkey.serving.attention_maps import draw_views

    with monkey.load(checkpoint, grid=grid) as model:
        answer = model.ask(image, question).text
        print(answer)
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        (seen,) = model.attention_maps([{"role": "user", "content": content}], answer, form="questions")
        print(f"{seen.share:.1%} of the answer's attention went to the image")
        return model.model.config, draw_views(image, model.model.config, seen.answer)


if __name__ == "__main__":
    sys.exit(main())
