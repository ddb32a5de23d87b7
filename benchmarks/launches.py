"""What a device launches for an image, for a prompt and for each token of an answer: operations, and a layer's of them.

    python -m benchmarks.launches

At small sizes a GPU waits for them: each takes some 5 µs of Python and driver, whatever it computes. They are counted
as PyTorch dispatches them on a CPU, views left out, on models of two depths, whose difference is the layers'. Nothing
is timed, and the counts are those of any size; CUDA has two kernels for each norm, which counts as 8 here, so that a
layer's token takes 12 fewer. A compiled step (`--compile`, CUDA graphs) launches its graph once instead.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine_run import TOKENS_AS_NUMBERS
from benchmarks.measure import arguments, report
from benchmarks.random_weights import page_canvases, random_model, tiny_config
from monkey import MonkeyForConditionalGeneration, MonkeyImageProcessor
from monkey.decoding import Decoding
from monkey.engine import Canvas, Engine, Request

DEPTHS = (2, 6)


class _Launches(TorchDispatchMode):
    """Counts operations that compute: what only looks at memory in another way launches nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_on_device = any(isinstance(x, torch.Tensor) for x in (*args, *(args[0] if _is_list(args) else ())))
        self.count += is_on_device and not func.is_view and func._schema.name not in _SILENT
        return result


_SILENT = {"aten::detach", "aten::_unsafe_view", "aten::lift_fresh", "aten::is_same_size", "aten::_local_scalar_dense"}


def _is_list(args: tuple) -> bool:
    return bool(args) and isinstance(args[0], (list, tuple))


def make(depth: int) -> MonkeyForConditionalGeneration:
    """A small model of so many layers in both halves."""
    config = tiny_config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = depth
    config.text_config.layer_types = ["full_attention"] * depth
    return random_model(config, "cpu").eval()


def count_launches(model: MonkeyForConditionalGeneration, requests: int) -> dict[str, int]:
    """Operations of an image, of reading `requests` prompts, and of one more token of all of them."""
    config = model.config
    image_processor = MonkeyImageProcessor.from_config(config)
    processor = SimpleNamespace(tokenizer=TOKENS_AS_NUMBERS, image_processor=image_processor)
    canvases = page_canvases(config, requests)
    span = [config.image_start_id, *[config.image_pad_id] * config.image_tokens, config.image_end_id]

    def whole(new_tokens: int) -> int:
        engine = Engine(model, processor, max_rows=requests, cache_bytes=0)
        asked = [
            Request(
                [*span, 7 + row, 9],
                [Canvas(bytes([row]), canvas)],
                Decoding(max_new_tokens=new_tokens),
                new_tokens,
                frozenset(),
            )
            for row, canvas in enumerate(canvases)
        ]
        with _Launches() as launched:
            engine.run(asked)
        engine.close()
        return launched.count

    with torch.no_grad(), _Launches() as launched:
        pixels = image_processor.normalised(torch.from_numpy(canvases[0])[None]).to(model.dtype)
        model.get_image_features(pixels)
    one, few, more = (whole(count) for count in (1, 4, 5))
    return {"image": launched.count, "prompt": one - launched.count, "token": more - few}


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="answered at once")
    options = parser.parse_args(argv)
    shallow, deep = (make(depth) for depth in DEPTHS)
    figures = {}
    for requests in options.requests:
        less, more = (count_launches(model, requests) for model in (shallow, deep))
        layers = DEPTHS[1] - DEPTHS[0]
        per_layer = {name: (more[name] - less[name]) / layers for name in less}
        beside = {name: less[name] - per_layer[name] * DEPTHS[0] for name in less}
        figures[f"{requests}_requests"] = {"per_layer": per_layer, "beside_the_layers": beside}
        for name in less:
            print(f"{requests} request(s), {name}: {per_layer[name]:g} per layer and {beside[name]:g} beside them")
    report("launches", {}, vars(options), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
