"""Put a checkpoint on another grid of windows, with or without adapters and a global view, before it is trained there.

    python scripts/set_grid.py BASE TARGET --grid 2,2                                # Monkey from a base at one window
    python scripts/set_grid.py BASE TARGET --grid 2,2 --adapters shared --global-view False
    python scripts/set_grid.py BASE TARGET --grid 1,1 --window 224 --adapters none --global-view False
    python scripts/set_grid.py BASE TARGET --grid 2,2 --grids up-to-6 --fit pad      # each image on a grid of its own
    python scripts/set_grid.py BASE TARGET --grid 2,2 --window 224 --window-tokens 196

With --grids the adapters stay those of --grid: a window of another grid takes the one whose cell holds its centre. New
adapters start at nothing: until they are trained the windows are encoded as the base encodes its one. `--window`
gives a window more pixels, its position embeddings interpolated; `--window-tokens` gives it more tokens, and each of
their queries starts as the base's at its place. TARGET is written whole or not at all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import monkey
from monkey.checkpoint_card import card_of
from monkey.cli import ArgumentParser, add_shape_flags, one_grid, run_program
from monkey.files import refuse_existing, refuse_missing

ADAPTERS = ("per_window", "shared", "none")
SWITCH = {"True": True, "False": False}


def set_grid(
    base: str | Path,
    target: str | Path,
    grid: tuple[int, int],
    adapters: str = "per_window",
    global_view: bool = True,
    window: int | None = None,
    seed: int = 0,
    grids: str | Sequence[tuple[int, int]] | None = None,
    fit: str | None = None,
    window_tokens: int | None = None,
) -> Path:
    """Write `base`, put on `grid`, into the new folder `target`.

    Args:
        grid: rows and columns of windows.
        adapters: `per_window`, `shared` or `none`; sets that the base has not are new.
        global_view: whether the shrunk canvas is a view too.
        window: pixels of a window's side; the base's own by default.
        seed: of the new adapters.
        grids, fit: the set of grids that images are put on, and how, as of `MonkeyConfig`; the base's own by default.
        window_tokens: that a view becomes, a square number; the base's own by default.

    Raises:
        FileNotFoundError: `base` lacks a file.
        ValueError: `target` exists, a window that is no multiple of the patches, another window for a timm encoder, or
            tokens that are no square or more than the patches.
    """
    target = Path(target)
    refuse_existing(target)
    refuse_missing(str(base))

    import torch

    from monkey.checkpoint_files import write_checkpoint
    from monkey.grids import check_grid
    from monkey.part_configs import TimmVisionConfig
    from monkey.tokenization_decoder import open_tokenizer

    grid = check_grid(grid)
    layout = {"grid": grid, "window_adapters": adapters, "global_view": global_view, "grids": grids, "fit": fit}
    config = monkey.MonkeyConfig.from_pretrained(base, **layout)
    if window is not None:
        if window < 1 or window % config.vision_config.patch_size:
            raise ValueError(f"--window {window} is not a multiple of the patches' {config.vision_config.patch_size}")
        if isinstance(config.vision_config, TimmVisionConfig):
            raise ValueError(
                f"--window {window}: timm interpolates the positions of {config.vision_config.architecture} only when "
                "it is made; make the model anew with scripts/new_model.py --window-size"
            )
        config.vision_config.window_size = window
    tokenizer = open_tokenizer(base)
    torch.manual_seed(seed)
    model = monkey.MonkeyForConditionalGeneration.from_pretrained(base, config=config)
    if window_tokens is not None:
        _set_window_tokens(model, window_tokens)
    return write_checkpoint(model, monkey.MonkeyProcessor.from_config(model.config, tokenizer), target, card_of(base))


def _set_window_tokens(model: monkey.MonkeyForConditionalGeneration, tokens: int) -> None:
    from torch import nn

    from monkey.vision import grow_positions, sincos_positions

    resampler, patches = model.model.visual.resampler, model.config.vision_config.patches_per_side
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side**2 != tokens or side > patches:
        raise ValueError(
            f"--window-tokens {tokens} is no square number from 1 to {patches**2}, the patches of a window, such as "
            f"{max(1, patches // 2) ** 2}"
        )
    width = resampler.query.shape[1]
    resampler.query = nn.Parameter(grow_positions(resampler.query.detach(), tokens))
    # The table itself is finer, where it is the keys' that is interpolated.
    positions = sincos_positions(side, width).to(resampler.pos_embed.dtype)
    resampler.pos_embed = nn.Parameter(positions, requires_grad=False)
    model.config.vision_config.num_queries = tokens


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("base", help="checkpoint folder, or hub name in the offline cache")
    parser.add_argument("target", help="new folder")
    parser.add_argument("--grid", type=one_grid, required=True, metavar="R,C", help="rows and columns of windows")
    add_shape_flags(parser)
    parser.add_argument("--adapters", choices=ADAPTERS, default="per_window", help="default per_window")
    parser.add_argument("--global-view", choices=SWITCH, default="True", help="default True")
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of a window; the base's own by default")
    parser.add_argument("--window-tokens", type=int, metavar="N", help="of a view; the base's own by default")
    parser.add_argument("--seed", type=int, default=0, help="of new adapters (default 0)")
    options = parser.parse_args(arguments)

    def write() -> None:
        folder = set_grid(
            options.base,
            options.target,
            options.grid,
            options.adapters,
            SWITCH[options.global_view],
            options.window,
            options.seed,
            options.grids,
            options.fit,
            options.window_tokens,
        )
        config = monkey.MonkeyConfig.from_pretrained(folder)
        if config.is_ragged:
            tokens = [config.tokens_of(grid) for grid in config.allowed_grids]
            print(f"{folder}: {len(tokens)} grids, {min(tokens)} to {max(tokens)} tokens an image")
            return
        height, width = config.canvas_size
        print(f"{folder}: {height}×{width} pixels, {config.image_tokens} tokens an image")

    return run_program(write)


if __name__ == "__main__":
    sys.exit(main())
