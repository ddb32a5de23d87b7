"""Every program takes the flags that it took, with their defaults: tests/golden/outside/flags.json."""

from __future__ import annotations

import pytest

from tests.golden.outside.observed import flags, recorded

REMOVED: dict[str, dict[str, str]] = {
    **{
        f"python -m benchmarks.{name}": {"--folder": "random weights are packed where they lie, no file is written"}
        for name in ("full_size", "full_size_generation")
    },
    "drawing of documents": {"*": "pages by real typesetting, python -m monkey.data.pages, are in their place"},
    "finetune_multitask.py": dict.fromkeys(
        ("--cache-tokens", "--cache_tokens"), "tokens are always kept, in a cache folder beside the data set's digest"
    ),
}
"""Program -> flag -> why it went on purpose, in a sentence; the flag "*" is the whole program."""

_SHAPES = {"--grids": "images may take grids of their own", "--fit": "images may keep their ratio"}
_MAX_WINDOWS = "what an image costs is a request's to bound"

_PEER_METRIC = {"--metric": "logs of other evaluators do not say how we score them"}
ADDED: dict[str, dict[str, str]] = {
    "python -m benchmarks.full_size": {"--optimizer": "one GPU holds full-llm with Adam's moments in 8 bits"},
    "python -m benchmarks.generate": {"--batches": "one batch size is measured in minutes on a quiet machine"},
    "python -m benchmarks.serving": {"--clients": "a GPU is asked by 64 clients"},
    "scripts/plan_memory.py": {
        "--quiet": "launchers want the exit status alone, without tracing steps for a table",
        "--grids": _SHAPES["--grids"],
    },
    "scripts/check_data.py": {"--convert": "records of other forms become ours on the disk"},
    "demo.py": {"--max-windows": _MAX_WINDOWS},
    "evaluate_vqa.py": {**_SHAPES, "--max-windows": _MAX_WINDOWS},
    "finetune_multitask.py": {
        **_SHAPES,
        **dict.fromkeys(("--lora-targets", "--lora_targets"), "decoders of other families have other linears"),
        "--streaming": "data may be more than can be looked through first",
        **dict.fromkeys(("--stream_buffer", "--stream-buffer"), "what is shuffled of it is in memory"),
    },
    "python -m monkey.ask": {"--max-windows": _MAX_WINDOWS},
    "python -m monkey.serve": {"--max-windows": _MAX_WINDOWS},
    "python -m eval.compare": _PEER_METRIC,
    "python -m eval.report": _PEER_METRIC,
    "scripts/new_model.py": dict.fromkeys(
        (
            *("--vision", "--language", "--output", "--gguf-file", "--grid", "--grids", "--fit", "--window-size"),
            *("--window-tokens", "--adapters", "--no-global-view", "--boxes", "--random-weights", "--dtype"),
        ),
        "an encoder and a decoder that others trained become one model",
    ),
    "scripts/resolution_study.py": {
        "--window": "two cores train small windows in hours",
        "--base-steps": "a base of larger windows is trained on small ones first",
        "--measured": "seeds of one study are run on several machines",
    },
    "scripts/set_grid.py": {**_SHAPES, "--window-tokens": "a larger window holds more letters than its tokens did"},
    "scripts/show_views.py": _SHAPES,
    "scripts/train_small_model.py": {
        "--start": "two CPU cores begin from a checkpoint that reads",
        "--first-steps": "from nothing there is a base on small windows first",
    },
}
"""Program -> flag -> what it is for, where it came later."""

CHANGED: dict[str, dict[str, str]] = {
    "scripts/quickstart.py": {"--pictures": "windows of 224 pixels take as long with fewer images"},
}
"""Program -> flag -> why it has another default now."""

RECORDED = recorded("flags.json")


@pytest.fixture(scope="module")
def now():
    return flags()


@pytest.mark.parametrize("program", RECORDED)
def test_a_program_takes_the_flags_that_it_took_with_their_defaults(now, program):
    gone, new = set(REMOVED.get(program, ())), set(ADDED.get(program, ()))
    if "*" in gone:
        return
    found = now[program]
    assert isinstance(found, dict), found
    assert set(found) == set(RECORDED[program]) - gone | new
    kept = set(RECORDED[program]) - gone - set(CHANGED.get(program, ()))
    assert {name: found[name] for name in kept} == {name: RECORDED[program][name] for name in kept}


def test_what_is_said_to_be_removed_or_changed_was_there():
    for listed in (REMOVED, CHANGED):
        for program, names in listed.items():
            assert set(names) - {"*"} <= set(RECORDED[program]), program
