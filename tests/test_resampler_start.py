"""A resampler that starts as a merge of patches: each token sees its own square of patches, and can still learn."""

from __future__ import annotations

import math

import pytest
import torch

from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.training.resampler_start import start_as_merge
from tests.test_small_model import READER


def reader(**vision) -> MonkeyForConditionalGeneration:
    config = MonkeyConfig.from_pretrained(READER)
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    torch.manual_seed(0)
    return MonkeyForConditionalGeneration(config)


def shares(model: MonkeyForConditionalGeneration) -> torch.Tensor:
    """[Q, N]: how much each token changes with each patch, in parts of all its changes."""
    resampler = model.model.visual.resampler
    vision = model.config.vision_config
    patches = torch.randn(vision.patches_per_side**2, vision.hidden_size, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(lambda x: resampler(x[None])[0].sum(-1), patches)
    change = jacobian.norm(dim=-1)
    return change / change.sum(1, keepdim=True)


def own_patches(model: MonkeyForConditionalGeneration, token: int) -> list[int]:
    queries = math.isqrt(model.config.vision_config.num_queries)
    side = model.config.vision_config.patches_per_side
    ratio, (row, column) = side // queries, divmod(token, queries)
    return [(row * ratio + down) * side + column * ratio + right for down in range(ratio) for right in range(ratio)]


def test_each_token_starts_with_its_own_square_of_patches():
    before, after = reader(), reader()
    start_as_merge(after)
    queries = math.isqrt(after.config.vision_config.num_queries)
    inner = [row * queries + column for row in range(1, queries - 1) for column in range(1, queries - 1)]
    for model, holds in ((before, lambda share: share < 0.2), (after, lambda share: share > 0.85)):
        found = shares(model)
        assert all(holds(found[token, own_patches(model, token)].sum().item()) for token in inner)


def test_the_start_can_be_learnt_away_from():
    model = reader()
    start_as_merge(model)
    resampler = model.model.visual.resampler
    resampler(torch.randn(1, 196, 192)).square().mean().backward()
    query, key, value = resampler.attention.in_proj_weight.grad.chunk(3)
    assert all(part.abs().sum() > 0 for part in (query, key, value, resampler.ln_kv.weight.grad))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 36}, "14×14 patches cannot be merged evenly into 6×6 tokens"),
        ({"resampler_heads": 2}, "needs 4 heads"),
        ({"resampler_heads": 96}, "of 2 will not do"),
    ],
)
def test_what_cannot_be_merged_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        start_as_merge(reader(**changes))
