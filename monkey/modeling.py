"""Monkey: encode the views of every image, put their tokens into the sequence, decode.

The model sees tensors only: no path, no image object and no random choice enters `forward`.
Method: Monkey, arXiv 2311.06607.

Shape letters: B batch, T tokens, I images over the whole batch, V views, Q tokens of a view, D decoder width.
"""

from __future__ import annotations

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
from monkey.language import LowRankAdapter
from monkey.vision import (
    MonkeyVisionModel,
    Resampler,
    ResamplerAttention,
    WindowAdapter,
    first_projections,
    sincos_positions,
)


@dataclass
class MonkeyOutput(ModelOutput):
    """Output of the model.

    Attributes:
        loss: mean cross-entropy of what is supervised, when labels or loss positions are given.
        logits: [B, T or `logits_to_keep`, vocabulary]; None with loss positions.
        past_key_values: the cache.
        image_features: [I, V·Q, D] where images were encoded in this call.
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
        elif isinstance(module, MonkeyVisionModel):
            init.normal_(module.position_embedding, std=module.position_embedding.shape[1] ** -0.5)
            init.normal_(module.projection, std=module.projection.shape[0] ** -0.5)
        else:
            super()._init_weights(module)


class MonkeyModel(MonkeyPreTrainedModel):
    """Vision side and decoder, without the head."""

    def __init__(self, config: MonkeyConfig):
        super().__init__(config)
        self.visual = MonkeyVisionModel(config)
        self.language_model = build_decoder(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Decoder tokens [I, V·Q, D] of normalised canvases [I, 3, H, W]."""
        return self.visual(pixel_values)

    def place_image_features(
        self, inputs_embeds: torch.Tensor, input_ids: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Overwrite the slots of every image span with its features.

        Args:
            inputs_embeds: [B, T, D].
            input_ids: [B, T]; a span is what stands between `<img>` and `</img>`, whatever ids fill it.
            image_features: [I, V·Q, D], in the order of the spans over the batch.

        Raises:
            ValueError: when spans and images differ in number or length, or a span is not closed.
        """
        slots = image_slots(input_ids, self.config, num_images=image_features.shape[0])
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
        blank_pixel_values: torch.Tensor | None = None,
        **kwargs,
    ) -> MonkeyModelOutput:
        """As `MonkeyForConditionalGeneration.forward`, up to the head."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features, not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        if image_features is not None:
            if input_ids is None:
                raise ValueError("images need input_ids: their places cannot be seen in inputs_embeds")
            inputs_embeds = self.place_image_features(inputs_embeds, input_ids, image_features)
        elif input_ids is not None and _is_prefill(past_key_values):
            # Without images, a prompt that holds a place for one would be answered about nothing.
            image_slots(input_ids, self.config, num_images=0)
        if blank_pixel_values is not None:
            inputs_embeds = inputs_embeds + 0 * self.get_image_features(blank_pixel_values).sum().to(inputs_embeds)
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


def image_slots(input_ids: torch.Tensor, config: MonkeyConfig, num_images: int) -> torch.Tensor:
    """Boolean mask [B, T] of the slots inside image spans, checked against the number of images.

    Raises:
        ValueError: a span that is open, nested, of the wrong length, or without its image; or an image without a
            span. The message names the prompt and both numbers.
    """
    starts, ends = input_ids == config.image_start_id, input_ids == config.image_end_id
    depth = starts.cumsum(dim=1) - ends.cumsum(dim=1)
    slots = (depth > 0) & ~starts
    well_formed = ((depth >= 0) & (depth <= 1)).all() & (depth[:, -1] == 0).all()
    num_spans = int(starts.sum())
    right_length = slots.sum() == num_spans * config.image_tokens
    if not bool(well_formed & right_length) or num_spans != num_images:
        _refuse_spans(input_ids.tolist(), config, num_images)
    return slots


def _refuse_spans(rows: list[list[int]], config: MonkeyConfig, num_images: int) -> None:
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
                if position - start - 1 != config.image_tokens:
                    raise ValueError(
                        f"prompt {index}: the image span at token {start} has {position - start - 1} slots, but "
                        f"grid={tuple(config.grid)} makes {config.image_tokens} tokens an image; "
                        "open the processor and the model with the same grid"
                    )
                start, num_spans = None, num_spans + 1
        if start is not None:
            raise ValueError(
                f"prompt {index}: <img> at token {start} is never closed; a prompt was cut inside an image"
            )
    raise ValueError(f"the prompts hold {num_spans} image places, but {num_images} images were given")


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

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Decoder tokens [I, V·Q, D] of normalised canvases [I, 3, H, W], for reuse as `image_features`."""
        return self.model.get_image_features(pixel_values)

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
        logits_to_keep: int | torch.Tensor = 0,
        loss_positions: torch.LongTensor | None = None,
        loss_targets: torch.LongTensor | None = None,
        loss_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> MonkeyOutput:
        """Predict the next token at every position.

        Args:
            input_ids: [B, T].
            pixel_values: normalised canvases [I, 3, H, W], in the order of the image spans over the batch.
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            labels: [B, T], -100 where nothing is supervised; shifted here.
            image_features: [I, V·Q, D] from `get_image_features`, instead of `pixel_values`.
            logits_to_keep: last positions to compute logits for; 0 for all.
            loss_positions, loss_targets: [N] each: the positions, counted through the flattened batch, that predict a
                supervised token, and that token. Instead of `labels`: the same loss, with logits at these positions
                only, a chunk at a time. Divided by `num_items_in_batch` where that is given, by N otherwise.
            loss_weights: [N] weight of each target in the sum that is divided; by default 1.
            segments: [R, 4]: the row is packed, see `monkey.attention`; `position_ids` are needed then.
            blank_pixel_values: canvases [1, 3, H, W] that are encoded and weigh nothing: how a process whose batch has
                no image takes part in what all processes compute together.

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
            inputs["pixel_values"] = inputs["image_features"] = None
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat each prompt for its beams or samples; its images are encoded once, before they are repeated."""
        if expand_size > 1 and input_ids is not None:
            features = model_kwargs.pop("image_features", None)
            pixel_values = model_kwargs.pop("pixel_values", None)
            if pixel_values is not None:
                features = self.get_image_features(pixel_values)
            if features is not None:
                counts = (input_ids == self.config.image_start_id).sum(dim=1).tolist()
                repeated = [rows for rows in features.split(counts) for _ in range(expand_size)]
                features = torch.cat(repeated)
        else:
            features = None
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if features is not None:
            model_kwargs["image_features"] = features
        return input_ids, model_kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, grid=None, config=None, **kwargs):
        """Open a checkpoint: Monkey, Monkey-Chat, the 24 GB variant, Qwen-VL, or one that this project saved.

        Args:
            pretrained_model_name_or_path: a folder, or a hub name (resolved in the offline cache when offline).
            grid: (rows, columns) to move the model to; adapters are placed by `checkpoint.placed_windows`.
            kwargs: as in transformers: `dtype`, `device_map`, `quantization_config`, …

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
