"""Ask a model about images in the browser.

    python demo.py                                            # the small model of this project
    python demo.py -c echo840/Monkey                          # a hub name, or a checkpoint folder
    python demo.py -c echo840/Monkey --compare mine           # two checkpoints side by side
    python demo.py -c echo840/Monkey --compare-grid 2,3       # one checkpoint on two grids

Opens http://127.0.0.1:8000 and nothing that other machines could reach. The page is there at once; the model follows.
Every flag: `--help`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from monkey.cli import ArgumentParser, one_grid, run_program, whole_number
from monkey.files import refuse_missing


def port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, a whole number from 1 to 65535")
    return number


def parse_flags(words: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="demo.py",
        description="Ask a model about images in the browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--checkpoint-path",
        metavar="CHECKPOINT",
        default=argparse.SUPPRESS,
        help="folder or hub name (default: models/small, which ships)",
    )
    parser.add_argument(
        "--compare",
        metavar="CHECKPOINT",
        default=argparse.SUPPRESS,
        help="a second checkpoint, which answers every question beside the first",
    )
    parser.add_argument(
        "--grid", type=one_grid, default=argparse.SUPPRESS, help="ROWS,COLUMNS other than the checkpoint's"
    )
    parser.add_argument(
        "--compare-grid",
        type=one_grid,
        metavar="GRID",
        default=argparse.SUPPRESS,
        help="ROWS,COLUMNS of the second model, which is the same checkpoint unless --compare names another",
    )
    parser.add_argument(
        "--max-windows",
        type=whole_number(1),
        metavar="N",
        default=argparse.SUPPRESS,
        help="put each image on a grid of at most so many, where the model has grids to choose from",
    )
    parser.add_argument("--cpu-only", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument(
        "--answers-at-once", type=whole_number(1), default=8, metavar="N", help="questions answered at the same time"
    )
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one")
    parser.add_argument("--server-port", type=port, default=8000, help="port to listen on")
    parser.add_argument(
        "--share",
        action="store_true",
        help="also make a public link: whoever has it can come in, and images and questions pass through "
        "gradio's servers",
    )
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD",
        help="who may come in; several times for several people. Everybody on this machine can read it in the list of "
        "processes: --auth-file and the variable MONKEY_DEMO_AUTH keep it out of there",
    )
    parser.add_argument("--auth-file", type=Path, metavar="FILE", help="the same from a file, USER:PASSWORD a line")
    parser.add_argument("--inbrowser", action="store_true", help="open the page in the default browser")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    flags = parse_flags(words)
    if flags.share:
        print(
            "--share makes a public link: whoever has it can ask this model, and images and questions pass through "
            "gradio's servers on their way",
            flush=True,
        )

    return run_program(lambda: run(flags))


def run(flags: argparse.Namespace) -> None:
    given = vars(flags)
    for checkpoint in filter(None, map(given.get, ("checkpoint_path", "compare"))):
        refuse_missing(checkpoint)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "the demo needs gradio, which is not installed; `pip install gradio` or `pip install '.[demo]'`"
        )
    from monkey.serving.demo import check_address, choose_models, read_people, serve
    from monkey.serving.session import chosen_device, default_checkpoint

    people = read_people(flags.auth, flags.auth_file, os.environ.get("MONKEY_DEMO_AUTH", ""))
    check_address(flags.server_name, flags.server_port)
    device, reason = chosen_device(flags.cpu_only)
    checkpoint = given.get("checkpoint_path") or default_checkpoint()
    grids = given.get("grid"), given.get("compare_grid")
    limits = flags.answers_at_once, given.get("max_windows")
    models = choose_models(checkpoint, grids[0], given.get("compare"), grids[1], device, *limits)
    print(f"{' and '.join(models.names)} on {reason}", flush=True)
    serve(
        models,
        flags.server_name,
        flags.server_port,
        share=flags.share,
        inbrowser=flags.inbrowser,
        people=people,
        answers_at_once=flags.answers_at_once,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
