"""Draw what the model sees of an image: its windows, row by row, and the global view.

    python scripts/show_views.py PICTURE OUTPUT.png
    python scripts/show_views.py PICTURE OUTPUT.png --checkpoint echo840/Monkey --grid 2,3
    python scripts/show_views.py PICTURE OUTPUT.png --grids up-to-6 --fit pad
    python scripts/show_views.py PICTURE OUTPUT.png --checkpoint CHECKPOINT --ask "What does the sign say?"

Without a checkpoint, the published geometry: 2×2 windows of 448 pixels. With --ask the checkpoint answers, and heat
shows where the tokens of its answer looked.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import monkey
from monkey.cli import ArgumentParser, add_shape_flags, one_grid, run_program
from monkey.files import refuse_missing
from monkey.images import open_image


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("output", type=Path, help="PNG to write")
    parser.add_argument("--checkpoint", help="folder or hub name whose geometry to use")
    parser.add_argument("--grid", type=one_grid, help="ROWS,COLUMNS of windows")
    add_shape_flags(parser)
    parser.add_argument("--ask", metavar="QUESTION", help="show where the answer's tokens looked; needs --checkpoint")
    options = parser.parse_args(arguments)
    return run_program(lambda: show(options))


def show(options: argparse.Namespace) -> None:
    if options.ask and not options.checkpoint:
        raise ValueError("--ask needs --checkpoint, the model that answers")
    if options.checkpoint:
        refuse_missing(options.checkpoint)
    image, attention = open_image(options.picture), None
    layout = {"grid": options.grid, "grids": options.grids, "fit": options.fit}
    if options.ask:
        with monkey.load(options.checkpoint, **layout) as model:
            config, attention = model.model.config, ask(model, image, options.ask)
    elif options.checkpoint:
        config = monkey.MonkeyConfig.from_pretrained(options.checkpoint, **layout)
    else:
        config = monkey.MonkeyConfig(**{name: value for name, value in layout.items() if value is not None})

    from monkey.serving.attention_maps import draw_views, grid_of

    draw_views(image, config, attention).save(options.output, optimize=True)
    grid = grid_of(image.size, config)
    views = math.prod(grid) + int(config.global_view)
    print(f"{options.output}: {views} views, {config.tokens_of(grid)} tokens")


def ask(model, image, question: str):
    """Print an answer, and return where its tokens looked in each view."""
    answer = model.ask(image, question).text
    print(answer)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    (seen,) = model.attention_maps([{"role": "user", "content": content}], answer, form="questions")
    print(f"{seen.share:.1%} of the answer's attention went to the image")
    return seen.answer


if __name__ == "__main__":
    sys.exit(main())
