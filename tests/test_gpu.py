"""The same answers on a GPU. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch

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
