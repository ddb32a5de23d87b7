"""Attention by runs: exact in any decoder of transformers, and merged parts are the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config

from monkey import attention
from monkey.attention import Runs, attend_with_lse, merge

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen3Config(**SIZES)], ids=lambda one: one.model_type)
@torch.no_grad()
def test_a_decoder_of_the_library_packs_rows_with_a_shared_prefix(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="runs").eval()
    samples = [[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 9], [10, 11, 12]]  # the first two begin alike
    runs = Runs([(0, 4, 0, 0), (4, 6, 0, 4), (6, 7, 0, 4), (7, 10, 0, 0)], torch.device("cpu"))
    row = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]])
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 4, 0, 1, 2]])
    packed = model(row, position_ids=places, runs=runs, use_cache=False).logits[0]
    model.set_attn_implementation("sdpa")
    alone = [model(torch.tensor([sample])).logits[0] for sample in samples]
    expected = torch.cat([alone[0], alone[1][4:], alone[2]])
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_of_prefixes_that_alternate_attend_as_each_of_them_alone(dtype):
    runs = [(0, 4, 0, 0), (4, 7, 0, 0), (7, 9, 0, 4), (9, 12, 4, 7), (12, 13, 0, 4), (13, 15, 0, 0), (15, 16, 4, 7)]
    given = [torch.randn(1, heads, 16, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]
    attended = Runs(runs, torch.device("cpu")).attend(*given, layer=0, scaling=0.3)
    attended.float().square().sum().backward()
    exact = [x.detach().float().requires_grad_() for x in given]
    expected = []
    for start, end, prefix_start, prefix_end in runs:
        query, key, value = exact
        seen = [*range(prefix_start, prefix_end), *range(start, end)]
        mask = torch.ones(end - start, len(seen), dtype=torch.bool).tril(prefix_end - prefix_start)
        key, value = (x[:, :, seen].repeat_interleave(2, dim=1) for x in (key, value))
        expected.append(F.scaled_dot_product_attention(query[:, :, start:end], key, value, mask, scale=0.3))
    expected = torch.cat(expected, dim=2).transpose(1, 2)
    expected.square().sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(attended.float(), expected, rtol=tolerance, atol=tolerance)
    for x, y in zip(given, exact, strict=True):
        torch.testing.assert_close(x.grad.float(), y.grad, rtol=tolerance, atol=tolerance)


def test_one_layout_serves_passes_with_and_without_gradients():
    # As where a checkpointed layer is computed again: in bf16 without gradients, in fp32 with them.
    runs = Runs([(0, 4, 0, 0), (4, 6, 0, 4), (6, 8, 0, 4)], torch.device("cpu"))
    given = [torch.randn(1, 2, 8, 8).bfloat16() for _ in range(3)]
    alone = runs.attend(*given, layer=0, scaling=0.3)
    trained = runs.attend(*(x.requires_grad_() for x in given), layer=0, scaling=0.3)
    torch.testing.assert_close(trained, alone, rtol=0, atol=2e-2)


def test_only_neighbours_in_their_order_are_a_slice():
    assert attention.index_tokens([3, 4, 5]) == slice(3, 6)
    for tokens in ([0, 2, 1, 3], [1, 0], [4, 6]):
        assert attention.index_tokens(tokens).tolist() == tokens


def test_what_a_layout_does_not_have_is_refused():
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES), attn_implementation="runs").eval()
    row = torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match="needs the keyword runs="):
        model(row, use_cache=False)
    with pytest.raises(ValueError, match="softcap"):
        model(row, runs=Runs([(0, 2, 0, 0)], torch.device("cpu")), use_cache=False)
    windowed = Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=1, max_window_layers=0)
    model = AutoModelForCausalLM.from_config(windowed, attn_implementation="runs").eval()
    with pytest.raises(ValueError, match=r"sees 1 tokens back .*, and a run with its prefix has 2"):
        model(row, runs=Runs([(0, 2, 0, 0)], torch.device("cpu")), use_cache=False)


@pytest.mark.parametrize("attend", [attend_with_lse, attention._written_out])
@pytest.mark.parametrize("is_causal", [False, True])
def test_two_parts_of_the_keys_are_merged_to_all_of_them(attend, is_causal, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_TOKENS", 3)
    query, own, past = (torch.randn(2, 3, length, 16) for length in (7, 7, 11))
    whole = F.scaled_dot_product_attention(
        query, torch.cat([past, own], dim=2), torch.cat([past, own], dim=2) + 1,
        torch.ones(7, 18, dtype=torch.bool).tril(11) if is_causal else None, scale=0.3,
    )  # fmt: skip
    first = attend(query, own, own + 1, 0.3, is_causal, None)
    merged, lse = merge(*first, *attend(query, past, past + 1, 0.3, False, None))
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-5)
    assert lse.shape == (2, 3, 7)


@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
def test_a_head_of_keys_serves_its_neighbouring_heads_of_queries(kind):
    tokens = 7 if kind == "causal" else 3
    query, key = torch.randn(2, 6, tokens, 16), torch.randn(2, 2, 7, 16)
    mask = torch.zeros(2, 1, 1, 7).masked_fill(torch.arange(7) > 4, -torch.inf) if kind == "masked" else None
    alike = key.repeat_interleave(3, dim=1)
    expected = attend_with_lse(query, alike, alike + 1, 0.3, kind == "causal", mask)
    for found, wanted in zip(attend_with_lse(query, key, key + 1, 0.3, kind == "causal", mask), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_mask_hides_keys():
    query, key = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 5, 16)
    mask = torch.zeros(2, 1, 1, 5)
    mask[1, ..., 3:] = -torch.inf
    for attend in (attend_with_lse, attention._written_out):
        attended, _ = attend(query, key, key, 0.3, False, mask)
        expected = F.scaled_dot_product_attention(query[1:], key[1:, :, :3], key[1:, :, :3], scale=0.3)
        torch.testing.assert_close(attended[1:], expected, rtol=0, atol=1e-5)
