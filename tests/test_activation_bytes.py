"""The formulas of what autograd keeps, against what it keeps of real steps and holds at a step's peak."""

from __future__ import annotations

import contextlib
import warnings
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from monkey.configuration import MonkeyConfig
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.training import activation_bytes as saved
from monkey.training.lora import add_decoder_lora
from monkey.training.memory_plan import plan
from monkey.training.memory_settings import PlanSettings, ZeroSettings
from monkey.training.recipes import RECIPES, apply_recipe
from tests.conftest import random_model, tiny_config

RANK = 6
IMAGES, ROWS, LENGTH = 2, 2, 40


class Lora:
    lora_r = lora_alpha = RANK
    lora_dropout = 0.05


def small_config(grid=(2, 2), **changes) -> MonkeyConfig:
    """Odd widths, so that no row of the formulas can stand for another."""
    sizes = {
        "vision_window_size": 56,
        "vision_hidden_size": 64,
        "vision_num_attention_heads": 4,
        "vision_num_hidden_layers": 3,
        "vision_mlp_ratio": 3.0,
        "vision_adapter_rank": 3,
        "vision_mlp_adapter_rank": 5,
        "text_hidden_size": 96,
        "text_intermediate_size": 208,
        "text_num_hidden_layers": 3,
    }
    return tiny_config(grid=grid, **{**sizes, **changes})


def with_recipe(model, recipe: str, checkpointing: bool = False, lora=Lora):
    """The model, wrapped where the recipe wants it, with exactly its parts trained."""
    wrapped = add_decoder_lora(model, lora) if RECIPES[recipe].decoder_lora else model
    apply_recipe(wrapped, RECIPES[recipe])
    if checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def kept_bytes(model, call) -> int:
    """Bytes that autograd keeps of `call`, each storage once, parameters left out."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages = {}
    tensors = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call()
    assert output.requires_grad
    return sum(storages.values())


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made inside, now and at the peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        # What an operation is given exists already; its own results are new unless they share its storage.
        given = {x.untyped_storage()._cdata for x in tree_iter(args) if isinstance(x, torch.Tensor)}
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in given:
                    self._known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata)
        self.peak = max(self.peak, self.now)
        return output

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


PRECISIONS = ("fp32", "bf16", "autocast", "autocast, frozen bf16")


def sizes_of(precision: str, recipe: str) -> saved.ElementBytes:
    kind, _, frozen = precision.partition(", ")
    return saved.element_bytes(kind, RECIPES[recipe].trains, cuda=False, frozen=2 if frozen else 4)


def as_run(model, precision: str):
    """The model with weights of the precision, as a run holds them."""
    for parameter in model.parameters():
        if precision == "bf16" or (precision.endswith("frozen bf16") and not parameter.requires_grad):
            parameter.data = parameter.data.bfloat16()
    return model


def computing(precision: str):
    narrow = precision.startswith("autocast")
    return torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext()


def total(rows: dict[str, int]) -> int:
    return sum(rows.values())


def vision_rows(config, trains, sizes, checkpointing=False) -> int:
    layers = config.vision_config.num_hidden_layers
    if checkpointing:
        kept = layers * saved.vision_layer_input(config, trains, IMAGES, sizes)
    else:
        kept = sum(
            total(saved.vision_layer(config, trains, IMAGES, sizes, first=layer == 0)) for layer in range(layers)
        )
    kept += total(saved.vision_embedding(config, trains, IMAGES, sizes))
    return kept + total(saved.resampler(config, trains, IMAGES, sizes))


def decoder_rows(config, trains, batch, sizes, adapters, checkpointing=False) -> int:
    layers = config.text_config.num_hidden_layers
    if checkpointing:
        kept = layers * saved.decoder_layer_input(config, batch, sizes)
    else:
        kept = sum(
            total(saved.decoder_layer(config, trains, batch, sizes, adapters, first=layer == 0))
            for layer in range(layers)
        )
    return kept + total(saved.decoder_shared(config, trains, batch, sizes))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("full-llm", {}),
        ("full-llm", {"grid": (1, 3), "vision_adapter_dropout": 0.0}),
        ("adapters-only", {"vision_hidden_size": 96, "window_adapters": "shared"}),
        ("everything", {}),
        ("everything", {"window_adapters": "none", "grid": (1, 2), "global_view": False}),
    ],
)
def test_vision_keeps_what_the_formula_says(recipe, changes, precision):
    config = small_config(**changes)
    sizes = sizes_of(precision, recipe)
    model = as_run(with_recipe(random_model(config), recipe), precision)
    pixels = torch.randn(IMAGES, 3, *config.canvas_size)
    with computing(precision):
        kept = kept_bytes(model, lambda: model.model.visual(pixels))
    assert vision_rows(config, RECIPES[recipe].trains, sizes) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", ["full-llm", "lora-llm", "adapters-only"])
def test_decoder_keeps_what_the_formula_says(recipe, precision, packed):
    config = small_config()
    sizes = sizes_of(precision, recipe)
    model = as_run(with_recipe(random_model(config), recipe), precision)
    rows, dtype = 1 if packed else ROWS, model.model.language_model.embed_tokens.weight.dtype
    embedded = torch.randn(rows, LENGTH, config.text_config.hidden_size, dtype=dtype, requires_grad=True)
    kwargs = {}
    if packed:
        kwargs["segments"] = torch.tensor([[0, 15, 0, 0], [15, LENGTH, LENGTH, LENGTH]])
        kwargs["position_ids"] = torch.cat([torch.arange(15), torch.arange(LENGTH - 15)])[None]
    with computing(precision):
        kept = kept_bytes(
            model,
            lambda: model.model.language_model(inputs_embeds=embedded, use_cache=False, **kwargs).last_hidden_state,
        )
    # Without padding there is no mask, so one row stands for any number of them.
    batch = saved.DecoderBatch(embedded.shape[0] * LENGTH, 0 if packed else 1)
    adapters = saved.DecoderAdapters(RANK if recipe == "lora-llm" else 0)
    expected = decoder_rows(config, RECIPES[recipe].trains, batch, sizes, adapters)
    assert expected == pytest.approx(kept, rel=0.03)


def test_padding_keeps_a_mask_a_layer():
    config = small_config()
    model = with_recipe(random_model(config), "full-llm")
    embedded = torch.randn(ROWS, LENGTH, config.text_config.hidden_size, requires_grad=True)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, 30:] = 0
    kept = kept_bytes(
        model,
        lambda: (
            model.model.language_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
        ),
    )
    batch = saved.DecoderBatch(ROWS * LENGTH, ROWS)
    sizes = sizes_of("fp32", "full-llm")
    expected = decoder_rows(config, RECIPES["full-llm"].trains, batch, sizes, saved.DecoderAdapters())
    assert expected == pytest.approx(kept, rel=0.03)


def test_the_published_variants_own_adapters_keep_what_the_formula_says():
    config = small_config(text_adapter_rank=RANK)
    model = with_recipe(random_model(config), "full-llm")
    trains = RECIPES["lora-llm"].trains
    apply_recipe(model, RECIPES["lora-llm"])
    embedded = torch.randn(ROWS, LENGTH, config.text_config.hidden_size, requires_grad=True)
    kept = kept_bytes(
        model, lambda: model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    )
    adapters = saved.DecoderAdapters(RANK, built_in=True)
    batch = saved.DecoderBatch(ROWS * LENGTH, 1)
    expected = decoder_rows(config, trains, batch, sizes_of("fp32", "full-llm"), adapters)
    assert expected == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("supervised", [20, 600], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("recipe", ["full-llm", "adapters-only"])
def test_logits_keep_what_the_formula_says(recipe, supervised, precision):
    config = small_config()
    sizes = sizes_of(precision, recipe)
    model = as_run(with_recipe(random_model(config), recipe), precision)
    dtype = model.model.language_model.embed_tokens.weight.dtype
    hidden = torch.randn(700, config.text_config.hidden_size, dtype=dtype, requires_grad=True)
    positions = torch.arange(supervised)
    targets = torch.randint(0, config.text_config.vocab_size, (supervised,))
    with computing(precision):
        kept = kept_bytes(model, lambda: model.lm_head(hidden[positions], targets))
    assert total(saved.head(config, RECIPES[recipe].trains, supervised, sizes)) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("recipe", ["full-llm", "everything"])
def test_checkpointing_keeps_inputs_only(recipe):
    config = small_config()
    model, trains = with_recipe(random_model(config), recipe, checkpointing=True), RECIPES[recipe].trains
    sizes = sizes_of("fp32", "full-llm")
    pixels = torch.randn(IMAGES, 3, *config.canvas_size)
    kept = kept_bytes(model, lambda: model.model.visual(pixels))
    # The first layer's input has no graph under a frozen transformer, and yet stays.
    assert vision_rows(config, trains, sizes, checkpointing=True) == pytest.approx(kept, rel=0.05)
    embedded = torch.randn(ROWS, LENGTH, config.text_config.hidden_size, requires_grad=True)
    kept = kept_bytes(
        model, lambda: model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    )
    batch = saved.DecoderBatch(ROWS * LENGTH, ROWS)
    expected = decoder_rows(config, trains, batch, sizes, saved.DecoderAdapters(), checkpointing=True)
    # Checkpointing holds the rotary tables by their names, where no hook sees them.
    expected -= saved.decoder_shared(config, trains, batch, sizes)["rotary cosines, sines"]
    assert expected == pytest.approx(kept, rel=0.01)


def test_nothing_is_kept_of_a_vision_side_that_does_not_train():
    config, trains = small_config(), frozenset({"decoder adapters"})
    sizes = sizes_of("bf16", "full-llm")
    assert vision_rows(config, trains, sizes) == 0
    assert saved.graph_views(config, RECIPES["full-llm"].trains) == 4
    assert saved.graph_views(config, RECIPES["everything"].trains) == 5


def without_storage(config: MonkeyConfig, recipe: str, lora=Lora) -> MonkeyForConditionalGeneration:
    with torch.device("meta"):
        return with_recipe(MonkeyForConditionalGeneration(config), recipe, lora=lora)


@pytest.mark.parametrize("recipe", ["lora-llm", "full-llm"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointed", "kept"])
def test_the_peak_of_a_step_at_published_widths(recipe, checkpointing):
    """Tensors without storage, of the published widths in bf16, with fewer layers: all that is live, followed."""

    class PublishedLora(Lora):
        lora_r = lora_alpha = 32

    config = MonkeyConfig()
    config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers = 6, 4
    model = without_storage(config, recipe, PublishedLora)
    whole = plan(
        config,
        PlanSettings(recipe=recipe, trains=RECIPES[recipe].trains, decoder_lora=RECIPES[recipe].decoder_lora),
        # ZeRO's bf16 weights and gradients, without its buffers.
        zero_stage=1,
        zero=ZeroSettings(reduce_bucket=0),
        vision_checkpointing=checkpointing,
        decoder_checkpointing=checkpointing,
        cuda=False,
    )
    states = ("weights", "optimiser", "fp32 master")
    elsewhere = sum(count for name, count in whole.lines if name.startswith(states))
    predicted = max(need for phase, need in whole.phases.items() if phase != "optimiser's step") - elsewhere
    length = config.image_tokens + 2 + whole.settings.text_tokens
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    copy = torch.empty(parameter.shape, dtype=torch.bfloat16)
                    module._parameters[name] = torch.nn.Parameter(copy, requires_grad=parameter.requires_grad)
        if checkpointing:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with LiveBytes() as live:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            pixels = torch.zeros(1, 3, *config.canvas_size)
            image = model.model.visual(pixels)
            words = model.model.language_model.embed_tokens(torch.zeros(1, length - image.shape[1], dtype=torch.long))
            embedded = torch.cat([image, words], dim=1)
            hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            del image, words, embedded
            loss = model.lm_head(hidden[0, :20], torch.zeros(20, dtype=torch.long))
            del hidden
            loss.backward()
    assert predicted == pytest.approx(live.peak, rel=0.10)
