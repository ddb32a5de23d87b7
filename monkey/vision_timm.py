"""Any plain vision transformer of timm as Monkey's encoder, with a set of adapters for each window.

The encoder is timm's own module under its own names, so that its weights are on disk as timm has them. Two classes
change, and nothing else does: a linear that has an adapter becomes an `AdaptedLinear`, and a block becomes a subclass
that is told how many of its views pass through each adapter set. Method and letters as in `monkey.vision`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cache, partial

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from monkey.configuration import MonkeyConfig
from monkey.part_configs import TimmVisionConfig
from monkey.timm_encoders import embed, make_encoder, sizes_of
from monkey.vision import VisionModel, WindowAdapter

_COUNTS: ContextVar[Sequence[int]] = ContextVar("counts", default=())
"""How many views pass through each adapter set in the block that runs in this thread."""


class AdaptedLinear(nn.Linear):
    """A linear of an encoder, with the windows' adapters beside it."""

    window_adapter: WindowAdapter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.window_adapter.add_to_windows(super().forward(x), x, _COUNTS.get())


class CountedBlock(GradientCheckpointingLayer):
    """Before a class of timm's blocks in the order of bases: its `forward`, told the `counts` of its views.

    What is checkpointed is this `forward`, so that the second pass over it has the same counts, whatever ran between.
    """

    def forward(self, x: torch.Tensor, counts: Sequence[int], **arguments: torch.Tensor) -> torch.Tensor:
        before = _COUNTS.set(counts)
        try:
            return super().forward(x, **arguments)
        finally:
            _COUNTS.reset(before)


@cache
def counted(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of blocks that is `kind` with counts."""
    return type(f"Counted{kind.__name__}", (CountedBlock, kind), {})


class TimmVisionModel(VisionModel):
    """An encoder of timm, its window adapters, and the resampler."""

    def build_encoder(self, config: MonkeyConfig) -> None:
        vision: TimmVisionConfig = config.vision_config
        self.encoder = self._make()
        vision.check_sizes(sizes_of(self.encoder))
        if not next(self.encoder.parameters()).is_meta:
            for module in self.encoder.modules():
                # timm has drawn the weights as each of its families wants them.
                module._is_hf_initialized = True
        for block in self.encoder.blocks:
            block.__class__ = counted(type(block))
            if config.num_adapters:
                for part, rank in ((block.attn, vision.adapter_rank), (block.mlp, vision.mlp_adapter_rank)):
                    _add_adapters(part, config, rank)
        self._no_split_modules = sorted({type(block).__name__ for block in self.encoder.blocks})

    def _make(self, weights: str | os.PathLike | None = None) -> nn.Module:
        vision = self.config.vision_config
        sizes = vision.window_size, vision.num_hidden_layers
        return make_encoder(vision.architecture, vision.architecture_args, *sizes, weights)

    def load_pretrained(self, weights: str | os.PathLike = "published") -> None:
        """Fill the encoder with weights of timm: those that its name stands for, or a file's or folder's.

        Positions are interpolated to the window. Window adapters, resampler and projection stay as they are.

        Raises:
            FileNotFoundError, ValueError: see `monkey.timm_encoders.make_encoder`.
        """
        with torch.device("cpu"):
            loaded = self._make(weights).state_dict()
        left = self.encoder.load_state_dict(loaded, strict=False)
        assert not left.unexpected_keys
        assert all(".window_adapter." in name for name in left.missing_keys)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.encoder.blocks

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Sequence[Callable]]:
        x, arguments = embed(self.encoder, pixels)
        blocks = [partial(block, **each) for block, each in zip(self.blocks, arguments, strict=True)]
        return x, [*blocks, self._finish]

    def _finish(self, x: torch.Tensor, _counts: Sequence[int]) -> torch.Tensor:
        """Drop the tokens that are no patches, and apply the norm that the architecture ends with."""
        return self.encoder.fc_norm(self.encoder.norm(x[:, self.encoder.num_prefix_tokens :]))

    def shared_part_trains(self) -> bool:
        return any(
            parameter.requires_grad
            for name, parameter in self.encoder.named_parameters()
            if ".window_adapter." not in name
        )


def _add_adapters(part: nn.Module, config: MonkeyConfig, rank: int) -> None:
    """Put adapters beside every linear of an attention or MLP."""
    for linear in part.children():
        if isinstance(linear, nn.Linear):
            linear.__class__ = AdaptedLinear
            linear.window_adapter = WindowAdapter(config, linear.in_features, linear.out_features, rank)
    if hasattr(part, "qkv_bias_separate"):
        # Else this attention reads the weight of its linear, and the linear is not called.
        part.qkv_bias_separate = True
