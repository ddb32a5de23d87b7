"""Merge a decoder's adapters into an ordinary checkpoint: no adapter library is needed to open it.

    python scripts/merge_adapters.py outputs/mine/adapter outputs/merged
    python scripts/merge_adapters.py outputs/mine/adapter outputs/merged --base /elsewhere/Monkey --layout published
    python scripts/merge_adapters.py CHECKPOINT_WITH_BUILT_IN_ADAPTERS outputs/merged --builtin

ADAPTER is a PEFT adapter folder that this project trained, or a checkpoint with adapters built into its decoder (the
published variant for 24 GB cards); which of them is found out. Window adapters stay as they are: they differ by window.
A base of other sizes or another grid than the adapter was trained on is refused, and one with other weight files is
warned of. OUTPUT is written whole or not at all.

--base-precision says which base the adapters are merged into. An adapter that was trained on a 4-bit base learnt to
make up for that base's rounding:
  4bit   the base is packed as in training, unpacked, and then merged: the result answers as the trained model did, and
         is an ordinary checkpoint of ordinary size
  full   the adapters go into the base as it was before packing: its weights are nearer to the pretrained ones, but no
         training step ever saw this sum, so evaluate it before use
By default it is what the adapter was trained on.
"""

from __future__ import annotations

import sys

from monkey.cli import ArgumentParser, run_program
from monkey.files import refuse_missing


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="PEFT adapter folder, or checkpoint with built-in adapters")
    parser.add_argument("output", help="new folder")
    parser.add_argument("--base", help="folder or hub name of the adapter's base, where it has moved")
    parser.add_argument("--base-precision", choices=("full", "4bit"), help="see above; by default as in training")
    parser.add_argument(
        "--layout",
        choices=("ours", "published"),
        default="ours",
        help="which config.json: ours or the published one",
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="of the weights written; by default the base's"
    )
    parser.add_argument("--builtin", action="store_true", help="refuse an ADAPTER without built-in adapters")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier merge in OUTPUT")
    options = parser.parse_args(arguments)

    def merge() -> None:
        refuse_missing(options.adapter)
        from monkey.training.merging import merge_adapters

        print(merge_adapters(**vars(options)))
        print(options.output)

    return run_program(merge)


if __name__ == "__main__":
    sys.exit(main())
