"""Make a checkpoint: of a configuration with random weights, or of an encoder and a decoder that others trained.

    python scripts/new_model.py configs/model/small outputs/small-untrained --seed 0
    python scripts/new_model.py --vision timm/vit_so400m_patch16_siglip_384 --language Qwen/Qwen3-0.6B --grid 2,2 \\
        --output models/mine

The first form takes a folder with a config.json and a qwen.tiktoken. The second joins two parts: an encoder, of timm or
of a Monkey checkpoint, and any decoder of transformers (a hub name, found in the offline cache too, a
folder, or a GGUF file). Window adapters start without effect; resampler and projection are new, so the model has to be
trained before it sees (docs/build_your_own.md). What is random is the same for the same seed; processor and card are
saved beside the weights. OUTPUT is written whole or not at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monkey
from monkey.checkpoint_card import CARD_FILE, CheckpointCard, read_card
from monkey.cli import ArgumentParser, add_shape_flags, one_grid, run_program
from monkey.files import checkpoint_file, read_json, refuse_existing, refuse_missing, required_file

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("auto", "float32", "bfloat16", "float16")

OWN_PARTS = ("resampler.", "post_layernorm.", "projection")
"""Beginnings of the names, within the vision side, of what is no part of the encoder."""


def new_model(source: str | Path, output: str | Path, seed: int = 0, merge: bool = False) -> Path:
    """Write the untrained checkpoint that `source` describes into the new folder `output`.

    Raises:
        FileNotFoundError: `source` lacks its config.json or qwen.tiktoken.
        ValueError: `output` exists, tokenizer and config do not belong together, or the patches cannot be merged.
    """
    output = Path(output)
    refuse_existing(output)
    refuse_missing(str(source))
    config = monkey.MonkeyConfig.from_pretrained(source)
    tokenizer = monkey.QwenTokenizer.from_pretrained(source)
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, but text_config.vocab_size is "
            f"{config.text_config.vocab_size}; raise it"
        )
    # Terms of published weights, known by their config.json, are none of random ones.
    card = read_card(path) if (path := checkpoint_file(source, CARD_FILE)) else CheckpointCard()
    return _write(_make(config, seed, merge), monkey.MonkeyProcessor.from_config(config, tokenizer), output, card)


def join_parts(
    vision: str,
    language: str,
    output: str | Path,
    *,
    gguf_file: str | None = None,
    window_size: int | None = None,
    window_tokens: int | None = None,
    boxes: bool = False,
    random_weights: bool = False,
    dtype: str = "auto",
    seed: int = 0,
    merge: bool = False,
    **layout: Any,
) -> Path:
    """Write a checkpoint of a vision transformer and a decoder into the new folder `output`.

    Args:
        vision: timm's name of an encoder (`timm/NAME` or `NAME`), a folder as timm saves it, or a Monkey checkpoint.
        language: hub name or folder of a decoder, or the path of a GGUF file.
        gguf_file: name of a GGUF file within `language`.
        window_size: pixels of a window's side; the encoder's own when None, to which its positions are else
            interpolated.
        window_tokens: tokens that a view becomes, a square number; when None the encoder's own, for one of timm the
            published ratio, a quarter of the patches.
        boxes: add the markers of boxes to the vocabulary; without, boxes are spelled as any text.
        random_weights: of the parts too, for trials.
        dtype: of all weights; "auto" is the decoder's own.
        merge: start the resampler as a merge of neighbouring patches.
        layout: fields of `MonkeyConfig`: `grid`, `grids`, `fit`, `window_adapters`, `global_view`.

    Raises:
        FileNotFoundError, ValueError: a part that is not there or cannot be used; one sentence.
    """
    import torch

    from monkey.decoders import put_decoder
    from monkey.tokenization_decoder import load_tokenizer

    output = Path(output)
    refuse_existing(output)
    source, gguf_file = _split_gguf(language, gguf_file)
    where = {} if gguf_file is None else {"gguf_file": gguf_file}
    prepared = load_tokenizer(source, boxes, **where)
    text_config, state = _open_decoder(source, random_weights, dtype, where)
    vision_config, fill = _open_encoder(vision, {"window_size": window_size, "num_queries": window_tokens})
    text_config.vocab_size = max(text_config.vocab_size, prepared.vocab_size)
    given = {key: value for key, value in layout.items() if value is not None}
    config = monkey.MonkeyConfig(vision_config=vision_config, text_config=text_config, **prepared.ids, **given)
    model = _make(config, seed, merge)
    if not random_weights:
        fill(model.model.visual)
    if state is not None:
        put_decoder(model, state, prepared.new_ids)
    if dtype != "auto" or state is not None:
        model.to(getattr(torch, dtype) if dtype != "auto" else next(iter(state.values())).dtype)
    processor = monkey.MonkeyProcessor.from_config(config, prepared.tokenizer)
    # Turns of a chat end otherwise than texts in some families, and `generate` knows no templates.
    model.generation_config.eos_token_id = sorted(processor.end_ids())
    return _write(model, processor, output, CheckpointCard())


def _make(config: monkey.MonkeyConfig, seed: int, merge: bool) -> monkey.MonkeyForConditionalGeneration:
    import torch

    from monkey.training.resampler_start import start_as_merge

    torch.manual_seed(seed)
    model = monkey.MonkeyForConditionalGeneration(config)
    if merge:
        start_as_merge(model)
    return model


def _write(model: Any, processor: Any, output: Path, card: CheckpointCard) -> Path:
    from monkey.checkpoint_files import write_checkpoint

    return write_checkpoint(model, processor, output, card)


def _split_gguf(language: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Return the folder or hub name of a decoder, and the GGUF file in it, if it is one."""
    if gguf_file is None and language.endswith(".gguf"):
        return str(Path(language).parent), Path(language).name
    return language, gguf_file


def _open_decoder(source: str, random_weights: bool, dtype: str, where: dict[str, str]) -> tuple[Any, Any]:
    """Return a decoder's configuration, and its weights unless they are to be random."""
    from transformers import AutoConfig

    from monkey.decoders import load_decoder, probe
    from monkey.files import refused_in_a_sentence

    if not random_weights:
        return load_decoder(source, dtype, **where)
    with refused_in_a_sentence(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    probe(config)
    return config, None


def _open_encoder(vision: str, given: dict[str, int | None]) -> tuple[Any, Callable[[nn.Module], None]]:
    """Return an encoder's configuration, with the fields that are given, and what fills a vision side with its weights.

    Raises:
        FileNotFoundError: no such folder, and no such name in the hub's offline cache.
        ValueError: a name that is none of timm, or a model that is neither timm's nor a Monkey checkpoint.
    """
    from monkey.part_configs import TimmVisionConfig
    from monkey.timm_encoders import describe_folder

    fields = {key: value for key, value in given.items() if value is not None}
    is_folder = Path(vision).is_dir()
    if is_folder and "architecture" in read_json(Path(vision) / "config.json"):
        return TimmVisionConfig(**describe_folder(vision) | fields), lambda visual: visual.load_pretrained(vision)
    if is_folder or not _is_of_timm(vision):
        content = read_json(required_file(vision, "config.json", "the encoder's sizes"))
        kind = str(content.get("model_type", "monkey"))[:60]
        if kind != "monkey" and "visual" not in content:
            raise ValueError(
                f"--vision {vision} is a model of another library ({kind}), and an encoder is one of timm or of a "
                f"Monkey checkpoint: give timm's name of it; timm.list_models('*{kind.partition('_')[0]}*') lists those"
            )
        config = monkey.MonkeyConfig.from_pretrained(vision).vision_config
        other = fields.get("window_size", config.window_size)
        if isinstance(config, TimmVisionConfig) and other != config.window_size:
            raise ValueError(
                f"--window-size {other}: {vision} holds the positions of windows of {config.window_size} pixels; leave "
                "it out, or name timm's encoder, whose positions are interpolated when it is opened"
            )
        changed = type(config).from_dict(config.to_dict() | fields)
        return changed, lambda visual: _copy_encoder(vision, visual)
    return TimmVisionConfig(architecture=vision, **fields), lambda visual: visual.load_pretrained()


def _is_of_timm(name: str) -> bool:
    """Whether a name is one of timm's encoders, or meant as one: a hub name of another owner is none."""
    from monkey.timm_encoders import plain_name

    return "/" not in plain_name(name)


def _copy_encoder(checkpoint: str, visual: nn.Module) -> None:
    """Fill a vision side with the encoder of a Monkey checkpoint, without its window adapters."""
    source = monkey.MonkeyForConditionalGeneration.from_pretrained(checkpoint).model.visual
    own = visual.state_dict()
    taken = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not name.startswith(OWN_PARTS) and "_adapter." not in name
    }
    different = [name for name, tensor in taken.items() if name not in own or own[name].shape != tensor.shape]
    if different:
        raise ValueError(f"{checkpoint}: {different[0]} is not that of the encoder that its config.json describes")
    visual.load_state_dict(taken, strict=False)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", help="folder with config.json and qwen.tiktoken")
    parser.add_argument("output", nargs="?", help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="start the resampler as a merge of neighbouring patches")
    parts = parser.add_argument_group("a model of two parts")
    parts.add_argument("--vision", help="timm's name of an encoder, a folder as timm saves it, or a Monkey checkpoint")
    parts.add_argument("--language", help="hub name or folder of a decoder, or a GGUF file")
    parts.add_argument("--output", dest="joined", metavar="OUTPUT", help="new folder")
    parts.add_argument("--gguf-file", metavar="NAME", help="of a GGUF file within --language")
    parts.add_argument("--grid", type=one_grid, metavar="R,C", help="rows and columns of windows (default 2,2)")
    add_shape_flags(parts)
    parts.add_argument("--window-size", type=int, metavar="PIXELS", help="side of a window (default: the encoder's)")
    parts.add_argument("--window-tokens", type=int, metavar="N", help="of a view (default: a quarter of its patches)")
    parts.add_argument("--adapters", choices=("per_window", "shared", "none"), help="default per_window")
    parts.add_argument("--no-global-view", dest="global_view", action="store_false", default=None)
    parts.add_argument(
        "--boxes",
        action="store_true",
        help="the markers of boxes as new tokens, which only a recipe that trains the decoder whole can teach it",
    )
    parts.add_argument("--random-weights", action="store_true", help="of the two parts too, for trials")
    parts.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: the decoder's own)")
    options = parser.parse_args(arguments)
    is_joined = options.vision is not None or options.language is not None
    needed = ("vision", "language", "joined") if is_joined else ("source", "output")
    missing = [name for name in needed if getattr(options, name) is None]
    if missing or (is_joined and options.source is not None):
        parser.error("give SOURCE and OUTPUT, or --vision, --language and --output")
    given = [
        action.option_strings[0] for action in parts._group_actions if getattr(options, action.dest) != action.default
    ]
    if given and not is_joined:
        parser.error(f"{given[0]} is for a model of two parts: give --vision and --language, or leave it out")

    def write() -> None:
        if is_joined:
            folder = _join_as_asked(options)
        else:
            folder = new_model(options.source, options.output, options.seed, options.merge)
        print(f"{folder}: untrained, {sum(p.stat().st_size for p in folder.iterdir()) / 2**20:.1f} MiB")

    return run_program(write)


def _join_as_asked(options: argparse.Namespace) -> Path:
    return join_parts(
        options.vision,
        options.language,
        options.joined,
        gguf_file=options.gguf_file,
        window_size=options.window_size,
        window_tokens=options.window_tokens,
        boxes=options.boxes,
        random_weights=options.random_weights,
        dtype=options.dtype,
        seed=options.seed,
        merge=options.merge,
        grid=options.grid,
        grids=options.grids,
        fit=options.fit,
        window_adapters=options.adapters,
        global_view=options.global_view,
    )


if __name__ == "__main__":
    sys.exit(main())
