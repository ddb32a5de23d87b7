"""Ask a model about pictures in the browser.

    python demo.py                          # the small model of this project
    python demo.py -c echo840/Monkey        # a hub name, or a checkpoint folder

Opens http://127.0.0.1:8000 and nothing that other machines could reach. Every flag: `--help`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, where argparse prints every flag before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}; every flag: --help\n")


def port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, a whole number from 1 to 65535")
    return number


def parse_flags(words: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="demo.py",
        description="Ask a model about pictures in the browser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--checkpoint-path",
        metavar="CHECKPOINT",
        default=argparse.SUPPRESS,
        help="folder or hub name (default: models/small, or what scripts/quickstart.sh trained)",
    )
    parser.add_argument("--cpu-only", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one")
    parser.add_argument("--server-port", type=port, default=8000, help="port to listen on")
    parser.add_argument("--share", action="store_true", help="also make a public link, through gradio's servers")
    parser.add_argument("--inbrowser", action="store_true", help="open the page in the default browser")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    flags = parse_flags(words)

    from monkey.serving.demo_server import check_address, require_gradio, serve
    from monkey.serving.session import chosen_device, default_checkpoint, open_model

    try:
        checkpoint = getattr(flags, "checkpoint_path", None) or default_checkpoint(Path(__file__).resolve().parent)
        check_address(flags.server_name, flags.server_port)
        require_gradio()
        device, reason = chosen_device(flags.cpu_only)
        print(f"opening {checkpoint} on {reason}", flush=True)
        with open_model(checkpoint, device) as answerer:
            serve(answerer, flags.server_name, flags.server_port, share=flags.share, inbrowser=flags.inbrowser)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
