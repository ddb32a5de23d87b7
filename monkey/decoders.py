"""Any decoder of transformers as the language side: made, probed, opened, and asked as Qwen-7B's own is.

`build_decoder` gives the library's own base model (`LlamaModel`, `Qwen3Model`, …), with its names and its weights, and
adds to its class what the rest of this project asks of a decoder: `segments` of a packed row, and the engine's two
questions, `read_prompts` and `write_tokens`. Attention goes through the library's `AttentionInterface`, by runs where a
layout is given (`monkey.attention`) and as ever where not.

Whether that is exact is not believed of a family but tried: `probe` builds a shallow model of random weights and holds
a packed row with a shared prefix against each of its samples alone, in the library's own class and attention. What
differs (soft caps, attention sinks, state that leaks from one sample to the next, logits that are changed in a way that
nobody here knows) is refused in a sentence.

Shape letters: T tokens of a pass, N rows, D width.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from monkey.attention import RUNS_OR_SDPA, Layout, packed_runs, without_masks
from monkey.cli import library_bars
from monkey.files import refused_in_a_sentence, required_file
from monkey.kv_cache import KVCache, Prefill
from monkey.language import LanguageHead, MonkeyTextModel
from monkey.part_configs import MonkeyTextConfig, decoder_config, per_layer, with_layers

PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers that look back at tokens alone; what others keep of earlier tokens is no keys and values."""

STRETCHED_ROTARY = frozenset({"dynamic", "longrope"})
"""Rotary positions that depend on the longest sequence of a pass, once it is longer than in pretraining."""


class LibraryDecoder:
    """What a base model of transformers gets beside its own: packed rows, and the engine's questions."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segments: torch.LongTensor | None = None,
        runs: Layout | None = None,
        **kwargs,
    ) -> Any:
        """As the library's; with `segments` [R, 4] the row is packed, as of `monkey.language.MonkeyTextModel`.

        Raises:
            ValueError: segments that do not cover the row, or a decoder whose attention cannot go by them.
        """
        if segments is None and runs is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if segments is not None:
            runs = packed_runs(segments, inputs_embeds, attention_mask, past_key_values)
        self._check_runs(runs)
        with without_masks():
            return super().forward(
                inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False, runs=runs, **kwargs
            )

    def _check_runs(self, runs: Layout) -> None:
        implementation, family = self.config._attn_implementation, self.config.model_type
        if implementation != RUNS_OR_SDPA:
            raise ValueError(
                f"the {family} decoder attends by {implementation!r}, which knows no packed rows: set "
                f'attn_implementation={{"text_config": "{RUNS_OR_SDPA}"}}'
            )
        kind, limit = _stretched_rotary(self.config)
        if kind and runs.longest > limit:
            raise ValueError(
                f"the {family} decoder turns positions beyond {limit:,} tokens by the longest sequence of a pass "
                f"({kind}), and this one has {runs.longest:,}: several samples in a pass would change each other"
            )

    def read_prompts(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, alphas: Sequence[float], prompts: Prefill
    ) -> torch.Tensor:
        """As of `monkey.language.MonkeyTextModel`; `alphas` are all 1."""
        return self._all_of(hidden, position_ids, prompts)[prompts.last_tokens]

    def write_tokens(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, alphas: Sequence[float], rows: KVCache, _: None = None
    ) -> torch.Tensor:
        """As of `monkey.language.MonkeyTextModel`; nothing of it is compiled."""
        return self._all_of(hidden, position_ids, rows)

    def watch(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, alphas: Sequence[float], layout: Layout, layers: int
    ) -> None:
        """As of `monkey.language.MonkeyTextModel`, through all layers."""
        self._all_of(hidden, position_ids, layout)

    def _all_of(self, hidden: torch.Tensor, position_ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        placed = position_ids.to(hidden.device)
        return self(inputs_embeds=hidden, position_ids=placed, runs=layout).last_hidden_state[0]


@functools.cache
def _with_runs(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a base model's class with `LibraryDecoder` before it.

    Name and module stay the library's, which looks up its own conversions and sources by them.
    """
    names = {"__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (LibraryDecoder, model_class), names)


def build_decoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """Return the decoder of a configuration, without head; its weights are new.

    Raises:
        ValueError: a model type that is no decoder.
    """
    if isinstance(text_config, MonkeyTextConfig):
        return MonkeyTextModel(text_config)
    _causal_class(text_config)
    decoder = _with_runs(MODEL_MAPPING[type(text_config)])(text_config)
    # The padding token may also be end-of-text, whose embedding trains.
    decoder.get_input_embeddings().padding_idx = None
    if text_config._attn_implementation == "sdpa":
        text_config._attn_implementation = RUNS_OR_SDPA
    return decoder


def build_head(text_config: PreTrainedConfig) -> LanguageHead:
    """Return the head of a configuration's decoder, new, with the scale, the cap and the bias of its family."""
    width, vocabulary = text_config.hidden_size, text_config.vocab_size
    if isinstance(text_config, MonkeyTextConfig):
        return LanguageHead(width, vocabulary, bias=False)
    head = LanguageHead(width, vocabulary, bias=_head_has_bias(_structure_of(text_config)))
    # Cohere multiplies and Granite divides; Gemma 2 and 3 cap. `probe` refuses whatever else a family does.
    scale, divisor = getattr(text_config, "logit_scale", None), getattr(text_config, "logits_scaling", None)
    head.logit_scale = float(1.0 if scale is None else scale) / float(divisor or 1.0)
    head.logit_cap = getattr(text_config, "final_logit_softcapping", None)
    return head


@functools.lru_cache(maxsize=64)
def _head_has_bias(structure: str) -> bool:
    # Where ZeRO-3 opens a checkpoint, whatever is made is sharded; this was made before, to compare shapes.
    config = decoder_config(json.loads(structure))
    with torch.device("meta"), no_init_weights():
        whole = _causal_class(config)(with_layers(config, [0]))
    return getattr(whole.get_output_embeddings(), "bias", None) is not None


def _causal_class(text_config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the library's class of a decoder with its head; ValueError where there is none."""
    kind = type(text_config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_MAPPING or text_config.sub_configs:
        raise ValueError(
            f"model type {text_config.model_type!r} is no decoder of text alone: take one that transformers opens by "
            "AutoModelForCausalLM, such as llama, qwen3 or gemma"
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """Return the layers of a decoder, whatever the library calls them."""
    count = decoder.config.num_hidden_layers
    return next(one for one in decoder.modules() if isinstance(one, nn.ModuleList) and len(one) == count)


def embeddings_name(decoder: nn.Module) -> str:
    """Return the path of a decoder's input embeddings within it, such as `embed_tokens`."""
    embeddings = decoder.get_input_embeddings()
    return next(name for name, module in decoder.named_modules() if module is embeddings)


def longest_sequence(text_config: PreTrainedConfig) -> int | None:
    """Return how many tokens the engine may hold of a prompt with its answer; None where nothing in it sets a limit.

    A decoder with sliding windows sees no further back, and attention by runs sees all.
    """
    kinds = getattr(text_config, "layer_types", None)
    windowed = kinds is None or "sliding_attention" in kinds
    window = getattr(text_config, "sliding_window", None) if windowed else None
    kind, limit = _stretched_rotary(text_config)
    return min((one for one in (window, limit if kind else None) if one is not None), default=None)


def _stretched_rotary(text_config: PreTrainedConfig) -> tuple[str | None, int]:
    """Return the kind of rotary positions that depend on a pass's longest sequence, and the tokens up to which none do.

    None where positions are turned alike however long a sequence is.
    """
    rotary = getattr(text_config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of them.
    kinds = [one for one in (rotary, *rotary.values()) if isinstance(one, dict) and "rope_type" in one]
    stretched = [one for one in kinds if one["rope_type"] in STRETCHED_ROTARY]
    if not stretched:
        return None, 0
    return stretched[0]["rope_type"], min(
        one.get("original_max_position_embeddings") or text_config.max_position_embeddings for one in stretched
    )


PROBE_PREFIX, PROBE_OWN, PROBE_ALONE = range(3, 9), (range(9, 13), range(13, 16)), range(20, 25)
"""Ids of the probe's shared beginning, of what follows it in two samples, and of a sample without it."""

PROBE_VOCABULARY, PROBE_INNER = 32, 64
"""Sizes of the probe where they have no part in who sees whom: embeddings, and the inner width of the MLP."""

PROBE_GAIN = 1.5
"""Deviation of what its linears make of normal numbers: enough for caps of scores and logits to be seen."""

PROBE_TOLERANCE = 1e-3
"""Of the largest logit. Another order of summation makes 1e-6, a cap that is left out 1e-2 and more."""


def probe(text_config: PreTrainedConfig) -> None:
    """Try whether packed rows and shared prefixes are exact with a decoder; once for each configuration.

    Raises:
        ValueError: they are not, with the family and by how much, or why it cannot be tried.
    """
    if not isinstance(text_config, MonkeyTextConfig):
        _causal_class(text_config)
        _probe(_structure_of(text_config))


def _structure_of(text_config: PreTrainedConfig) -> str:
    """Return a decoder's configuration as JSON, without what has no part in its computation."""
    content = text_config.to_dict()
    for key in ("_name_or_path", "architectures", "dtype", "transformers_version", "quantization_config"):
        content.pop(key, None)
    return json.dumps(content, sort_keys=True, default=str)


@functools.lru_cache(maxsize=64)
def _probe(structure: str) -> None:
    config = decoder_config(json.loads(structure))
    family = config.model_type
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - PLAIN_LAYERS)
    if odd:
        raise ValueError(
            f"the decoder family {family} is not taken: its layers of {odd[0]} carry more from token to token than "
            "keys and values that are seen whole"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            difference = _difference_of_packing(_shallow(config))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the decoder family {family} is not taken: packed rows cannot be made of it ({reason})"
        ) from error
    if not difference <= PROBE_TOLERANCE:
        raise ValueError(
            f"the decoder family {family} is not taken: in a packed row its logits differ from those of each sample "
            f"alone by {difference:.2g} of the largest, where {PROBE_TOLERANCE:g} is allowed; its attention or its "
            "head does what is not known here"
        )


def _shallow(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of one layer of each kind, of the same width, with few tokens and a narrow MLP."""
    kinds = list(zip(*per_layer(config).values(), strict=True)) or [()] * config.num_hidden_layers
    keys = [json.dumps(kind, default=str) for kind in kinds]
    shallow = with_layers(config, sorted({key: keys.index(key) for key in keys}.values()))
    shallow.vocab_size = PROBE_VOCABULARY
    shallow.bos_token_id = shallow.eos_token_id = shallow.pad_token_id = None
    for name in ("intermediate_size", "moe_intermediate_size"):
        if isinstance(getattr(shallow, name, None), int):
            setattr(shallow, name, min(getattr(shallow, name), PROBE_INNER))
    shallow._attn_implementation = "eager"
    return shallow


@torch.no_grad()
def _difference_of_packing(config: PreTrainedConfig) -> float:
    """Return how far the logits of a packed row are from its samples', as a part of the largest logit."""
    whole = _causal_class(config)(config).float().eval()
    for parameter in whole.parameters():
        if parameter.ndim > 1:
            parameter.mul_(PROBE_GAIN / (parameter.std() * parameter.shape[-1] ** 0.5 + 1e-12))
    prefix, alone = list(PROBE_PREFIX), list(PROBE_ALONE)
    own = [list(ids) for ids in PROBE_OWN]
    samples = [whole(torch.tensor([ids])).logits[0] for ids in (*(prefix + ids for ids in own), alone)]
    expected = torch.cat([samples[0], *(x[len(prefix) :] for x in samples[1:-1]), samples[-1]])

    decoder = whole.get_decoder()
    if type(decoder) is not MODEL_MAPPING[type(config)]:
        raise TypeError(f"{type(whole).__name__} keeps its layers in a {type(decoder).__name__}")
    decoder.__class__ = _with_runs(type(decoder))
    config._attn_implementation = RUNS_OR_SDPA
    head = build_head(config)
    head.load_state_dict(whole.get_output_embeddings().state_dict())
    row, segments, places = list(prefix), [[0, len(prefix), 0, 0]], list(range(len(prefix)))
    for ids, start in (*((ids, len(prefix)) for ids in own), (alone, 0)):
        segments.append([len(row), len(row) + len(ids), 0, start])
        places.extend(range(start, start + len(ids)))
        row.extend(ids)
    embedded = decoder.get_input_embeddings()(torch.tensor([row]))
    packed = decoder(inputs_embeds=embedded, position_ids=torch.tensor([places]), segments=torch.tensor(segments))
    logits = head(packed.last_hidden_state[0])
    try:
        decoder(inputs_embeds=embedded / 2)
    except RuntimeError as error:
        # Gemma 4 has a second embedding of the tokens, for which it looks up whose embeddings it was given.
        raise ValueError("it needs the token of each embedding, and an image's features are of none") from error
    return float((logits - expected).abs().max() / expected.abs().max())


# Opening


def load_decoder(
    source: str | Path, dtype: torch.dtype | str = "auto", gguf_file: str | None = None
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Open a decoder that others published, as a part of a new model.

    Args:
        source: folder, hub name (offline: in the cache), or the path of a `.gguf` file.
        dtype: of its weights; "auto" for their own.
        gguf_file: name of a GGUF file within `source`; its weights are unpacked.

    Returns:
        Its configuration, probed, and its weights by this project's names, for `put_decoder`.

    Raises:
        FileNotFoundError: no such folder, file or cached name.
        ValueError: nothing that transformers opens, another architecture, or a family that `probe` refuses.
    """
    if str(source).endswith(".gguf"):
        source, gguf_file = Path(source).parent, Path(source).name
    required_file(source, gguf_file or "config.json", "the decoder")
    name = f"{source}/{gguf_file}" if gguf_file else str(source)
    given: dict[str, Any] = {"trust_remote_code": False} | ({"gguf_file": gguf_file} if gguf_file else {})
    with _named(name):
        if gguf_file is None:  # whose vocabulary takes seconds to parse, so that is done once, with its weights
            config = AutoConfig.from_pretrained(source, **given)
            if getattr(config, "quantization_config", None) is not None:
                raise ValueError("it is packed already: give the ordinary weights, which any run can pack")
            probe(config)
        with library_bars(sys.stderr is not None and sys.stderr.isatty()):
            # Weights of other sizes are told below, in a sentence.
            loading = {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
            whole, info = AutoModelForCausalLM.from_pretrained(source, **loading, **given)
        probe(whole.config)
        if info["mismatched_keys"]:
            key, there, here = min(info["mismatched_keys"])
            raise ValueError(
                f"{key} has shape {list(there)}, but config.json makes it {list(here)}; weights and config.json belong "
                "to different models"
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(f"{len(missing)} weights of the decoder are missing, for instance {missing[0]}")
    # Where it lay on this machine is nothing that a new model's files should say; nor is what it was packed in.
    content = whole.config.to_dict()
    kept = {key: content[key] for key in content if "name_or_path" not in key and key != "quantization_config"}
    return type(whole.config).from_dict(kept), decoder_state(whole)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Raise what is wrong with a decoder of others as ValueError, one sentence that names it."""
    try:
        with refused_in_a_sentence(name):
            yield
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        # Sizes that do not go together are asserted, or told in a table of tensors.
        if name in str(error) and isinstance(error, ValueError):
            raise
        raise ValueError(f"{name}: {' '.join(str(error).split())[:300]}") from error


def decoder_state(whole: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights of a decoder of transformers with its head by this project's names; tied ones once."""
    state = {f"model.language_model.{name}": tensor for name, tensor in whole.get_decoder().state_dict().items()}
    if not whole.config.tie_word_embeddings:
        state |= {f"lm_head.{name}": tensor for name, tensor in whole.get_output_embeddings().state_dict().items()}
    return state


@torch.no_grad()
def put_decoder(model: nn.Module, state: dict[str, torch.Tensor], new_ids: Sequence[int] = ()) -> None:
    """Put the weights of `load_decoder` into a Monkey; tokens that it has beyond theirs start as the mean of all.

    Args:
        new_ids: tokens that the decoder's vocabulary did not have. Families pad their embeddings with rows that nothing
            trained, and such a token may have got one of them; it starts as the mean too.

    Raises:
        ValueError: weights of another decoder.
    """
    own = {name: x for name, x in model.state_dict().items() if name.startswith(("model.language_model.", "lm_head."))}
    if model.config.tie_word_embeddings:
        own = {name: x for name, x in own.items() if not name.startswith("lm_head.")}
    by_token = (
        f"model.language_model.{embeddings_name(model.model.language_model)}.weight",
        "lm_head.weight",
        "lm_head.bias",
    )
    for name in sorted(own.keys() | state.keys()):
        here, there = (list(one[name].shape) if name in one else [] for one in (own, state))
        is_longer = name in by_token and here[1:] == there[1:] and here[:1] > there[:1] > []
        if here != there and not is_longer:
            raise ValueError(f"the decoder's {name} has shape {there or 'none'}, and the model's has {here or 'none'}")
    for name, tensor in state.items():
        own[name][: len(tensor)] = tensor
        if name in by_token:
            mean = tensor.mean(dim=0, dtype=torch.float32).to(own[name].dtype)
            own[name][len(tensor) :] = own[name][list(new_ids)] = mean
