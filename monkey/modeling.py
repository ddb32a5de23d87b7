"""Monkey: encode the views of every image, put their tokens into the sequence, decode.

The model sees tensors only: no path, no image object and no random choice enters `forward`.
Method: Monkey, arXiv 2311.06607.

Shape letters: B batch, T tokens, I images over the whole batch, W windows of all images, V views of one, Q tokens of a
view, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from monkey import checkpoint
from monkey.configuration import MonkeyConfig
from monkey.decoders import build_decoder, build_head, embeddings_name
from monkey.grids import NO_WINDOWS, Grid, check_grid
from monkey.language import LowRankAdapter
from monkey.part_configs import MonkeyVisionConfig, TimmVisionConfig
from monkey.vision import (
    MonkeyVisionModel,
    Resampler,
    ResamplerAttention,
    VisionModel,
    WindowAdapter,
    first_projections,
    sincos_positions,
)
from monkey.vision_timm import TimmVisionModel

VISION_MODELS: dict[type, type[VisionModel]] = {
    MonkeyVisionConfig: MonkeyVisionModel,
    TimmVisionConfig: TimmVisionModel,
}
"""Config -> its encoder with adapters, resampler and projection."""


@dataclass
class MonkeyOutput(ModelOutput):
    """Output of the model.

    Attributes:
        loss: mean cross-entropy of what is supervised, when labels or loss positions are given.
        logits: [B, T or `logits_to_keep`, vocabulary]; None with loss positions.
        past_key_values: the cache.
        image_features: [I, V·Q, D], or [tokens, D] with `image_grids`, where images were encoded in this call.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


@dataclass
class MonkeyModelOutput(ModelOutput):
    """Last hidden states [B, T, D] and what `MonkeyOutput` passes on."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


ImageGrids = torch.Tensor | Sequence[Grid]
"""Rows and columns of each image, [I, 2] of whole numbers."""


class MonkeyPreTrainedModel(PreTrainedModel):
    config: MonkeyConfig
    config_class = MonkeyConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["MonkeyVisionLayer", "Resampler", "MonkeyDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.vision_config.initializer_range
        if isinstance(module, (WindowAdapter, LowRankAdapter)):
            module.reset_parameters()
        elif isinstance(module, Resampler):
            init.trunc_normal_(module.query, std=std)
            init.copy_(
                module.pos_embed, sincos_positions(round(module.pos_embed.shape[0] ** 0.5), module.query.shape[1])
            )
        elif isinstance(module, ResamplerAttention):
            init.copy_(module.in_proj_weight, first_projections(module.in_proj_weight.shape[1]))
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, VisionModel):
            if isinstance(module, MonkeyVisionModel):
                init.normal_(module.position_embedding, std=module.position_embedding.shape[1] ** -0.5)
            init.normal_(module.projection, std=module.projection.shape[0] ** -0.5)
        elif hasattr(module, "init_non_persistent_buffers"):
            # Of timm, such as tables of rotary positions: no checkpoint holds them.
            module.init_non_persistent_buffers()
        else:
            super()._init_weights(module)


class MonkeyModel(MonkeyPreTrainedModel):
    """Vision side and decoder, without the head."""

    def __init__(self, config: MonkeyConfig):
        super().__init__(config)
        self.visual = VISION_MODELS[type(config.vision_config)](config)
        self.language_model = build_decoder(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor, image_grids: ImageGrids | None = None) -> torch.Tensor:
        """As of `MonkeyForConditionalGeneration`."""
        return self.visual(pixel_values) if image_grids is None else self.visual(pixel_values, _as_grids(image_grids))

    def place_image_features(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        image_grids: ImageGrids | None = None,
    ) -> torch.Tensor:
        """Overwrite the slots of every image span with its features.

        Args:
            inputs_embeds: [B, T, D].
            input_ids: [B, T]; a span is what stands between `<img>` and `</img>`, whatever ids fill it.
            image_features: [I, V·Q, D], or [tokens, D] with `image_grids`, in the order of the spans over the batch.

        Raises:
            ValueError: when spans and images differ in number or length, or a span is not closed.
        """
        slots = image_slots(input_ids, self.config, image_features.shape[0], image_grids)
        if image_grids is not None and image_features.shape[:-1].numel() != int(slots.sum()):
            raise ValueError(
                f"image_features has shape {list(image_features.shape)}, but image_grids={_as_grids(image_grids)} "
                f"make {int(slots.sum())} tokens"
            )
        return inputs_embeds.masked_scatter(
            slots[..., None].to(inputs_embeds.device), image_features.to(inputs_embeds.device, inputs_embeds.dtype)
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_grids: ImageGrids | None = None,
        blank_pixel_values: torch.Tensor | None = None,
        **kwargs,
    ) -> MonkeyModelOutput:
        """As `MonkeyForConditionalGeneration.forward`, up to the head."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features, not both")
        if image_features is not None and image_features.ndim == 2 and image_grids is None:
            raise ValueError(f"image_features has shape {list(image_features.shape)}, which needs image_grids")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, image_grids)
        if image_features is not None:
            if input_ids is None:
                raise ValueError("images need input_ids: their places cannot be seen in inputs_embeds")
            inputs_embeds = self.place_image_features(inputs_embeds, input_ids, image_features, image_grids)
        elif input_ids is not None and _is_prefill(past_key_values):
            # Without images, a prompt that holds a place for one would be answered about nothing.
            image_slots(input_ids, self.config, num_images=0)
        if blank_pixel_values is not None:
            grids = [(1, len(blank_pixel_values))] if self.config.is_ragged else None
            blank = self.get_image_features(blank_pixel_values, grids)
            inputs_embeds = inputs_embeds + 0 * blank.sum().to(inputs_embeds)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return MonkeyModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=image_features,
        )


def _is_prefill(cache: Cache | None) -> bool:
    """Whether a sequence begins here, rather than being continued from what the cache holds."""
    return cache is None or (not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0)


def _as_grids(image_grids: ImageGrids, or_none: bool = False) -> list[Grid]:
    """Rows and columns of each image; ValueError for what is no list of such, save `NO_WINDOWS` where it may stand."""
    grids = image_grids.tolist() if hasattr(image_grids, "tolist") else image_grids
    return [
        NO_WINDOWS if or_none and tuple(grid) == NO_WINDOWS else check_grid(grid, f"image_grids[{index}]")
        for index, grid in enumerate(grids)
    ]


def image_slots(
    input_ids: torch.Tensor, config: MonkeyConfig, num_images: int, image_grids: ImageGrids | None = None
) -> torch.Tensor:
    """Boolean mask [B, T] of the slots inside image spans, checked against the images.

    Args:
        num_images: images on the model's grid; not looked at with `image_grids`.
        image_grids: rows and columns of each image, where they differ; `NO_WINDOWS` for a global view alone.

    Raises:
        ValueError: a span that is open, nested, of the wrong length, or without its image; or an image without a
            span. The message names the prompt and both numbers.
    """
    grids = None if image_grids is None else _as_grids(image_grids, or_none=True)
    tokens = [config.image_tokens] * num_images if grids is None else [config.tokens_of(grid) for grid in grids]
    starts, ends = input_ids == config.image_start_id, input_ids == config.image_end_id
    depth = starts.cumsum(dim=1) - ends.cumsum(dim=1)
    well_formed = ((depth >= 0) & (depth <= 1)).all() & (depth[:, -1] == 0).all()
    if not well_formed or _span_lengths(starts, ends) != tokens:
        _refuse_spans(input_ids.tolist(), config, num_images, grids)
    return (depth > 0) & ~starts


def _span_lengths(starts: torch.Tensor, ends: torch.Tensor) -> list[int]:
    """Slots of each span of a batch whose spans are well formed."""
    first, last = (edge.flatten().nonzero()[:, 0] for edge in (starts, ends))
    return (last - first - 1).tolist()


def _refuse_spans(rows: list[list[int]], config: MonkeyConfig, num_images: int, grids: list[Grid] | None) -> None:
    """Find what is wrong with the spans and say it."""
    num_spans = 0
    for index, row in enumerate(rows):
        start = None
        for position, token in enumerate(row):
            if token == config.image_start_id:
                if start is not None:
                    raise ValueError(f"prompt {index}: <img> at token {position} opens inside the one at token {start}")
                start = position
            elif token == config.image_end_id:
                if start is None:
                    raise ValueError(f"prompt {index}: </img> at token {position} closes nothing")
                _check_span(f"prompt {index}", start, position - start - 1, config, num_spans, grids)
                start, num_spans = None, num_spans + 1
        if start is not None:
            raise ValueError(
                f"prompt {index}: <img> at token {start} is never closed; a prompt was cut inside an image"
            )
    num_images = num_images if grids is None else len(grids)
    raise ValueError(f"the prompts hold {num_spans} image places, but {num_images} images were given")


def _check_span(
    prompt: str, start: int, slots: int, config: MonkeyConfig, number: int, grids: list[Grid] | None
) -> None:
    """ValueError for a span of another length than its image makes, whose number counts over the batch from 0."""
    if grids is None and slots != config.image_tokens:
        raise ValueError(
            f"{prompt}: the image span at token {start} has {slots} slots, but grid={tuple(config.grid)} makes "
            f"{config.image_tokens} tokens an image; open the processor and the model with the same grid"
        )
    if grids is not None and number < len(grids) and slots != config.tokens_of(grids[number]):
        raise ValueError(
            f"{prompt}: the image span at token {start} has {slots} slots, but image {number} on grid={grids[number]} "
            f"makes {config.tokens_of(grids[number])} tokens; take input_ids and image_grids from one processor"
        )


class MonkeyForConditionalGeneration(MonkeyPreTrainedModel, GenerationMixin):
    """Monkey with its head: answers questions about images, and trains on conversations."""

    def __init__(self, config: MonkeyConfig):
        super().__init__(config)
        self.model = MonkeyModel(config)
        self.lm_head = build_head(config.text_config)
        embeddings = embeddings_name(self.model.language_model)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embeddings}.weight"}
        self.post_init()
        if self.generation_config.eos_token_id is None and config.eod_id >= 0:
            self.generation_config.eos_token_id = config.eod_id
            self.generation_config.pad_token_id = config.eod_id

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, image_grids: ImageGrids | None = None) -> torch.Tensor:
        """Decoder tokens of images, for reuse as `image_features`.

        Args:
            pixel_values: normalised canvases [I, 3, H, W]; or, with `image_grids`, the windows [W, 3, window, window]
                of one image after the other, row by row.
            image_grids: rows and columns of each image [I, 2], where they lie on grids of their own.

        Returns:
            [I, V·Q, D]; with `image_grids` [tokens, D], an image's windows row by row, then its global view.
        """
        return self.model.get_image_features(pixel_values, image_grids)

    def get_global_features(self, canvases: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decoder tokens [I, Q, D] of the global views alone of normalised canvases [3, H, W]."""
        return self.model.visual.see_whole(canvases)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        image_features: torch.Tensor | None = None,
        image_grids: ImageGrids | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_positions: torch.LongTensor | None = None,
        loss_targets: torch.LongTensor | None = None,
        loss_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> MonkeyOutput:
        """Predict the next token at every position.

        Args:
            input_ids: [B, T].
            pixel_values: normalised canvases [I, 3, H, W], or windows [W, 3, window, window] with `image_grids`, in the
                order of the image spans over the batch.
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            labels: [B, T], -100 where nothing is supervised; shifted here.
            image_features: what `get_image_features` gave, instead of `pixel_values`.
            image_grids: rows and columns of each image [I, 2], where they lie on grids of their own.
            logits_to_keep: last positions to compute logits for; 0 for all.
            loss_positions, loss_targets: [N] each: the positions, counted through the flattened batch, that predict a
                supervised token, and that token. Instead of `labels`: the same loss, with logits at these positions
                only, a chunk at a time. Divided by `num_items_in_batch` where that is given, by N otherwise.
            loss_weights: [N] weight of each target in the sum that is divided; by default 1.
            segments: [R, 4]: the row is packed, see `monkey.attention`; `position_ids` are needed then.
            blank_pixel_values: a canvas [1, 3, H, W], of a model with a set of grids the windows of an image with one
                row, that is encoded and weighs nothing: how a process whose batch has no image takes part in what all
                processes compute together.

        Raises:
            ValueError: when spans and images do not fit, or the canvas is not the configured one.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_features=image_features,
            image_grids=image_grids,
            **kwargs,
        )
        if loss_positions is not None:
            predicting = outputs.last_hidden_state.flatten(0, 1)[loss_positions]
            total = self.lm_head(predicting, loss_targets, loss_weights)
            items = kwargs.get("num_items_in_batch")
            loss = total / (loss_targets.numel() if items is None else items)
            return MonkeyOutput(loss=loss, image_features=outputs.image_features)
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return MonkeyOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=outputs.image_features,
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, inputs_embeds=None, **kwargs):
        """As the library's, with images passed on only in the step that sees their spans."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, inputs_embeds=inputs_embeds, **kwargs
        )
        if not is_first_iteration and inputs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_features"] = inputs["image_grids"] = None
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat each prompt for its beams or samples; its images are encoded once, before they are repeated."""
        names = ("pixel_values", "image_features", "image_grids")
        images: dict[str, torch.Tensor] = {}
        if expand_size > 1 and input_ids is not None:
            pixel_values, features, grids = (model_kwargs.pop(name, None) for name in names)
            if pixel_values is not None:
                features = self.get_image_features(pixel_values, grids)
            if features is not None:
                images = self._repeat_images(input_ids, features, grids, expand_size)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | images

    def _repeat_images(
        self, input_ids: torch.Tensor, features: torch.Tensor, grids: torch.Tensor | None, times: int
    ) -> dict[str, torch.Tensor]:
        """Features, and grids where there are, of the images of each prompt as often as it is repeated."""
        image_slots(input_ids, self.config, len(features), grids)
        counts = (input_ids == self.config.image_start_id).sum(dim=1).tolist()

        def repeat(tensor: torch.Tensor, lengths: list[int]) -> torch.Tensor:
            return torch.cat([own for own in tensor.split(lengths) for _ in range(times)])

        if grids is None:
            return {"image_features": repeat(features, counts)}
        grids = torch.as_tensor(grids)
        tokens = [sum(map(self.config.tokens_of, own.tolist())) for own in grids.split(counts)]
        return {"image_features": repeat(features, tokens), "image_grids": repeat(grids, counts)}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, grid=None, config=None, **kwargs):
        """Open a checkpoint: Monkey, Monkey-Chat, the 24 GB variant, Qwen-VL, or one that this project saved.

        Args:
            pretrained_model_name_or_path: a folder, or a hub name (resolved in the offline cache when offline).
            grid: (rows, columns) to move the model to; adapters are placed by `grids.placed_windows`.
            kwargs: other fields of `configuration.LAYOUT_KEYS` (`grids="up-to-6"`, `fit="pad"`, …), and as in
                transformers: `dtype`, `device_map`, `quantization_config`, …

        Raises:
            FileNotFoundError: no weights, or a missing shard.
            ValueError: another kind of model, or weights that do not fit, each named with both shapes.
        """
        return checkpoint.open_checkpoint(
            cls, super().from_pretrained, pretrained_model_name_or_path, *model_args, grid=grid, config=config, **kwargs
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write safetensors, published parts under their published names, and our `config.json`.

        `scripts/convert_checkpoint.py` writes the published `config.json` and `.bin` shards.
        """
        if getattr(self, "hf_quantizer", None) is not None:
            raise ValueError(
                "a quantised model is not saved: packed weights have no published names; keep the checkpoint it was "
                "opened from, and give quantization_config when opening it again"
            )
        # The table that was *used* to open would lack rows, such as the adapters of an opened Qwen-VL.
        if hasattr(self, "_weight_conversions"):
            del self._weight_conversions
        with checkpoint.registered_table(self.config):
            return super().save_pretrained(save_directory, *args, **kwargs)


# Without the table a checkpoint would open with every weight random, so the class never exists without it.
checkpoint.register()

__all__ = ["MonkeyForConditionalGeneration", "MonkeyModel", "image_slots"]
