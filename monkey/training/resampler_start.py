"""A resampler that starts as a merge of neighbouring patches, for models that are trained from nothing.

Queries and keys meet through a table of sines and cosines, of which most columns hardly change from one place to the
next; under the content of the patches a fresh resampler cannot tell places apart, and every query sees the average of
the picture. Published models learn their way out of that over millions of pictures. Here the first values of existing
parameters do it: on the fastest columns the norms let only positions through, and each head's query is turned, by the
addition theorems, to the place of one of the patches that its query stands over. So at first token (i, j) holds the
values of its own square of patches, one a head, and training goes on from there.

Shape letters: Q queries, D decoder width, F frequencies, r patches along a query's side.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from monkey.modeling import MonkeyForConditionalGeneration

FREQUENCIES = 6
MARGIN = 4.0
"""How much lower the score of a patch is than that of its neighbour that is looked at."""


def start_as_merge(model: MonkeyForConditionalGeneration) -> None:
    """Set the resampler's projections and norms as told above.

    Raises:
        ValueError: patches that do not fill the queries' squares, fewer heads than patches in one, or heads too narrow.
    """
    vision, resampler = model.config.vision_config, model.model.visual.resampler
    queries, patches, heads = math.isqrt(vision.num_queries), vision.patches_per_side, model.config.resampler_heads
    width = resampler.query.shape[1]
    head_width, ratio = width // heads, patches // queries
    frequencies = min(FREQUENCIES, head_width // 4)
    if patches % queries:
        raise ValueError(
            f"{patches}×{patches} patches cannot be merged evenly into {queries}×{queries} tokens; take another number "
            "of tokens per window, or leave --merge out"
        )
    if heads < ratio**2 or not frequencies:
        raise ValueError(
            f"merging {ratio}×{ratio} patches needs {ratio**2} heads at least 4 wide; resampler_heads={heads} of "
            f"{head_width} will not do; leave --merge out"
        )
    speeds = 1.0 / 10000 ** (torch.arange(frequencies, dtype=torch.float32) / (width / 4))
    step = (1 - torch.cos(speeds / ratio)).sum().item()
    gain = math.sqrt(MARGIN * math.sqrt(head_width) / step)
    query, key, value = resampler.attention.in_proj_weight.detach().chunk(3)
    columns = [
        (axis * width // 2 + number, axis * width // 2 + width // 4 + number, axis, number)
        for axis in (0, 1)
        for number in range(frequencies)
    ]
    with torch.no_grad():
        query.zero_()
        key.zero_()
        nn.init.xavier_uniform_(value)
        for head in range(heads):
            row, column = divmod(head % ratio**2, ratio)
            for place, (sine, cosine, axis, number) in enumerate(columns):
                # Axis 0 of the table is the column of the grid, axis 1 its row.
                offset = ((column, row)[axis] + 0.5) / ratio - 0.5
                angle = offset * speeds[number].item()
                first = head * head_width + 2 * place
                query[first, sine], query[first, cosine] = gain * math.cos(angle), gain * math.sin(angle)
                query[first + 1, cosine], query[first + 1, sine] = gain * math.cos(angle), -gain * math.sin(angle)
                key[first, sine] = key[first + 1, cosine] = gain
        for sine, cosine, *_ in columns:
            for norm in (resampler.ln_q, resampler.ln_kv):
                norm.weight[[sine, cosine]] = 0.0
