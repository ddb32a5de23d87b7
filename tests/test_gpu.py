"""The same answers on a GPU. Skipped where there is none."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import full_size
from monkey.attention import Runs, _has_kernel
from monkey.modeling import MonkeyForConditionalGeneration

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_recorded_logits_on_a_gpu(golden, dtype):
    model = MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint, dtype=dtype, device_map="cuda")
    inputs = {key: golden.tensors[f"batch.{key}"].cuda() for key in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = golden.pixels("receipt.png", "sign.jpg", "gray.png").cuda()
    logits = model(**inputs, logits_to_keep=8).logits.float().cpu()
    exact = golden.tensors["batch.logits_last8"]
    # Another order of sums in fp32 (TF32 is off by default); three decimal digits of mantissa in bfloat16.
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    assert float((logits - exact).norm() / exact.norm()) < tolerance


@torch.no_grad()
def test_recorded_tokens_on_a_gpu(golden):
    model = MonkeyForConditionalGeneration.from_pretrained(golden.checkpoint, device_map="cuda")
    inputs = {key: golden.tensors[f"batch.{key}"].cuda() for key in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = golden.pixels("receipt.png", "sign.jpg", "gray.png").cuda()
    generated = model.generate(**inputs, max_new_tokens=16, min_new_tokens=1, do_sample=False).cpu()
    assert torch.equal(generated[:, -16:], golden.tensors["batch.generated"])


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([(0, 40, 0, 0), (40, 100, 0, 0)], id="samples alone"),
        pytest.param([(0, 64, 0, 0), (64, 80, 0, 64), (80, 100, 0, 64)], id="questions behind one picture"),
    ],
)
def test_packed_rows_through_the_kernel_are_those_run_by_run(runs):
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, 100, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    attention = Runs(runs, torch.device("cuda"))
    assert _has_kernel(inputs[0], dropout=0.0)
    by_kernel = attention.attend(*inputs, layer=0, scaling=128**-0.5)
    run_by_run = attention.attend(*exact, layer=0, scaling=128**-0.5)
    by_kernel.float().square().sum().backward()
    run_by_run.square().sum().backward()
    pairs = [(by_kernel, run_by_run), *((x.grad, y.grad) for x, y in zip(inputs, exact, strict=True))]
    for found, expected in pairs:
        # Three decimal digits of mantissa in bfloat16.
        assert float((found.float() - expected).norm() / expected.norm()) < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora-llm", "qlora-llm"])
def test_memory_of_a_full_size_step_is_within_a_tenth_of_its_plan(recipe, tmp_path, capsys):
    if recipe == "qlora-llm":
        pytest.importorskip("bitsandbytes", reason="decoders in 4 bits need bitsandbytes")
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("a full-size step needs 40 GB of free GPU memory here")
    words = ["--recipe", recipe, "--pack-tokens", "2048", "--vision-checkpointing", "--decoder-checkpointing"]
    assert full_size.main([*words, "--steps", "2", "--folder", str(tmp_path)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures["peak_gib"] == pytest.approx(figures["planned_gib"], rel=0.1)
