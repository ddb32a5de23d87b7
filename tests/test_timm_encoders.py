"""Encoders of timm: features as timm's own, adapters of each window, checkpoints, training, and what is refused."""

from __future__ import annotations

import json
from threading import Thread

import pytest
import timm
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText

from monkey.configuration import MonkeyConfig
from monkey.flat_config import published_config
from monkey.image_processing import MonkeyImageProcessor
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.part_configs import MonkeyVisionConfig, TimmVisionConfig
from monkey.quantised import open_four_bit, packed_linears
from monkey.timm_encoders import describe_folder
from monkey.training.memory import plan
from monkey.training.meter import count_flops
from monkey.training.recipes import RECIPES, apply_recipe
from monkey.vision import MonkeyVisionModel, WindowAdapter
from monkey.vision_timm import TimmVisionModel
from tests.conftest import prompt_ids, random_model, tiny_config
from tests.small_processor import refusal, small_config
from tests.timm_start import ARCHITECTURES, TINY, timm_config, with_timm
from tests.training_start import losses, train

families = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
FEW = ("clip", "dinov3 gated", "eva-02", "naflex")
some_families = pytest.mark.parametrize("architecture", [ARCHITECTURES[name] for name in FEW], ids=FEW)


def timm_model(architecture: str = ARCHITECTURES["clip"], **changes) -> MonkeyForConditionalGeneration:
    return random_model(timm_config(architecture, **changes))


def views_of(config: MonkeyConfig, count: int) -> torch.Tensor:
    side = config.window_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def without_adapters(model: MonkeyForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The encoder's weights as timm names them."""
    tensors = model.model.visual.encoder.state_dict()
    return {name: tensor for name, tensor in tensors.items() if "window_adapter" not in name}


class TestFeatures:
    @families
    @torch.no_grad()
    def test_global_views_are_what_timm_makes_of_them(self, architecture):
        model = timm_model(architecture)
        visual, side = model.model.visual, model.config.window_size
        own = timm.create_model(architecture, num_classes=0, img_size=side, depth=2, **TINY).eval()
        attention_pool = {name: tensor for name, tensor in own.state_dict().items() if name.startswith("attn_pool.")}
        own.load_state_dict(without_adapters(model) | attention_pool)
        pixels = views_of(model.config, 3)
        expected = own.fc_norm(own.forward_features(pixels))[:, own.num_prefix_tokens :]
        assert expected.shape == (3, 16, 32)
        torch.testing.assert_close(visual.encode(pixels, ()), expected, rtol=0, atol=1e-5)

    @families
    @torch.no_grad()
    def test_views_together_equal_each_alone(self, architecture):
        model = timm_model(architecture)
        visual, pixels = model.model.visual, views_of(model.config, 6)
        counts = (2, 0, 1, 1)  # then two global views
        together = visual.encode(pixels, counts)
        sets = [0, 0, 2, 3, None, None]
        for index, own in enumerate(sets):
            alone = visual.encode(pixels[index : index + 1], [int(each == own) for each in range(4)])
            torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)

    def test_depth_is_cut_by_the_config_and_the_first_blocks_stay(self):
        config = timm_config(vision={"num_hidden_layers": None})
        assert config.vision_config.num_hidden_layers == 12
        config.vision_config.num_hidden_layers = 3
        model = MonkeyForConditionalGeneration(config)
        assert len(model.model.visual.blocks) == 3
        # No device map may cut a block in two.
        assert {type(block).__name__ for block in model.model.visual.blocks} <= set(model._no_split_modules)


class TestAdapters:
    @families
    @torch.no_grad()
    def test_a_new_adapter_changes_nothing(self, architecture):
        visual = timm_model(architecture).model.visual
        pixels = views_of(visual.config, 4)
        for module in visual.modules():
            if isinstance(module, WindowAdapter):
                module.reset_parameters()
        torch.testing.assert_close(visual.encode(pixels, [1] * 4), visual.encode(pixels, ()), rtol=0, atol=1e-5)

    @families
    def test_every_adapter_is_heard_and_alone_has_gradients(self, architecture):
        model = timm_model(architecture).train()
        counts = {count.part: count for count in apply_recipe(model, RECIPES["adapters-only"])}
        model.get_image_features(torch.randn(1, 3, *model.config.canvas_size)).square().sum().backward()
        heard = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
        adapters = {name for name, _ in model.named_parameters() if ".window_adapter." in name}
        assert heard == adapters
        assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == (
            counts["window adapters"].parameters
        )
        linears = [module for module in model.model.visual.blocks[0].modules() if isinstance(module, torch.nn.Linear)]
        assert len(adapters) == 2 * 3 * len(linears)

    @some_families
    @torch.no_grad()
    def test_a_set_touches_only_its_own_windows(self, architecture):
        model = timm_model(architecture)
        visual, pixels = model.model.visual, views_of(model.config, 10)
        before = visual.encode(pixels, [2] * 4)
        for module in visual.modules():
            if isinstance(module, WindowAdapter):
                module.up[1] += 1
        moved = (visual.encode(pixels, [2] * 4) - before).abs().amax(dim=(1, 2)) > 1e-4
        assert moved.tolist() == [False, False, True, True, *[False] * 6]

    @some_families
    def test_blocks_computed_again_have_their_own_counts(self, architecture):
        def gradients(kept: bool, between: bool) -> dict[str, torch.Tensor]:
            model = timm_model(architecture, vision={"adapter_dropout": 0.0}).train()
            apply_recipe(model, RECIPES["full-llm"])
            visual = model.model.visual
            for block in visual.blocks:
                block.gradient_checkpointing = not kept
                block._gradient_checkpointing_func = lambda run, *given: checkpoint(run, *given, use_reentrant=False)
            pixels = views_of(model.config, 6)
            output = visual.encode(pixels, [2, 1, 1, 1])
            if between:
                visual.encode(pixels, [0, 0, 1, 5])
            # As on a GPU, whose backward pass has a thread of its own.
            thread = Thread(target=output.square().sum().backward)
            thread.start()
            thread.join()
            return {name: each.grad for name, each in visual.named_parameters() if each.grad is not None}

        expected, again = gradients(kept=True, between=False), gradients(kept=False, between=True)
        assert expected.keys() == again.keys() != set()
        for name, gradient in expected.items():
            torch.testing.assert_close(again[name], gradient, rtol=0, atol=0)

    @some_families
    def test_global_views_stay_outside_the_graph_where_the_encoder_is_frozen(self, architecture):
        def step(recipe: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int]]:
            model = timm_model(architecture, vision={"adapter_dropout": 0.0}).train()
            apply_recipe(model, RECIPES[recipe])
            sizes: list[int] = []
            model.model.visual.blocks[0].register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
            features = model.get_image_features(torch.randn(1, 3, *model.config.canvas_size, generator=seeded()))
            features.square().sum().backward()
            grads = {name: each.grad for name, each in model.named_parameters() if ".window_adapter." in name}
            return features.detach(), grads, sizes

        def seeded() -> torch.Generator:
            return torch.Generator().manual_seed(1)

        apart, adapters_apart, sizes_apart = step("full-llm")
        within, adapters_within, sizes_within = step("everything")
        assert (sizes_apart, sizes_within) == ([4, 1], [5])
        torch.testing.assert_close(apart, within, rtol=0, atol=1e-5)
        for name, gradient in adapters_apart.items():
            torch.testing.assert_close(gradient, adapters_within[name], rtol=1e-4, atol=1e-5)


class TestFiles:
    @families
    @torch.no_grad()
    def test_what_is_saved_opens_as_it_was(self, architecture, tmp_path):
        model = timm_model(architecture)
        model.save_pretrained(tmp_path)
        opened = MonkeyForConditionalGeneration.from_pretrained(tmp_path)
        pixels = torch.randn(2, 3, *model.config.canvas_size)
        was, now = (each.config.vision_config.to_dict() | {"dtype": None} for each in (model, opened))
        assert now == was
        torch.testing.assert_close(opened.get_image_features(pixels), model.get_image_features(pixels), rtol=0, atol=0)
        half = MonkeyForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
        expected = model.to(torch.bfloat16).get_image_features(pixels)
        torch.testing.assert_close(half.get_image_features(pixels), expected, rtol=0, atol=0)

    def test_auto_classes_open_it_and_it_answers_as_it_did(self, tmp_path):
        model = timm_model()
        model.save_pretrained(tmp_path)
        opened = AutoModelForImageTextToText.from_pretrained(tmp_path)
        given = {
            "input_ids": torch.tensor([prompt_ids(model.config, [5], 1, [6, 7])]),
            "pixel_values": torch.randn(1, 3, *model.config.canvas_size),
            **{"max_new_tokens": 6, "do_sample": False},
        }
        assert opened.generate(**given).tolist() == model.generate(**given).tolist()
        blank = given | {"pixel_values": torch.zeros_like(given["pixel_values"])}
        with torch.no_grad():
            logits = [model(each["input_ids"], each["pixel_values"]).logits for each in (given, blank)]
        assert not torch.allclose(*logits, rtol=0, atol=1e-3)

    def test_names_on_disk_are_timms_with_the_adapters_of_each_window_beside_them(self, tmp_path):
        model = timm_model()
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        prefix = "model.visual.encoder."
        names = {name.removeprefix(prefix) for name in saved if name.startswith(prefix)}
        timms = timm.create_model(ARCHITECTURES["clip"], num_classes=0, img_size=64, depth=2, **TINY).state_dict()
        assert {name for name in names if "window_adapter" not in name} == timms.keys()
        down = model.model.visual.blocks[1].attn.qkv.window_adapter.down
        for window in range(4):
            assert torch.equal(saved[f"{prefix}blocks.1.attn.qkv.window_adapter.{window}.down"], down[window])

    def test_on_another_grid_each_window_starts_from_the_one_under_its_centre(self, tmp_path):
        model = timm_model()
        model.save_pretrained(tmp_path)
        wide = MonkeyForConditionalGeneration.from_pretrained(tmp_path, grid=(2, 3))
        was, now = (each.model.visual.blocks[0].mlp.fc1.window_adapter.up for each in (model, wide))
        torch.testing.assert_close(now, was[[0, 1, 1, 2, 3, 3]], rtol=0, atol=0)

    def test_a_checkpoint_without_adapters_gets_new_ones(self, tmp_path):
        timm_model(window_adapters="none").save_pretrained(tmp_path)
        model = MonkeyForConditionalGeneration.from_pretrained(tmp_path, window_adapters="per_window")
        adapter = model.model.visual.blocks[0].attn.qkv.window_adapter
        assert adapter.down.any()
        assert not adapter.up.any()

    def test_missing_weights_of_the_encoder_are_said(self, tmp_path):
        timm_model().save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.visual.encoder.")}
        save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
        message = refusal(lambda: MonkeyForConditionalGeneration.from_pretrained(tmp_path))
        assert "tensors are missing: model.visual.encoder.blocks.0.attn.proj.bias" in message

    def test_the_published_form_has_no_place_for_it(self):
        assert "keep the checkpoint in this project's own layout" in refusal(lambda: published_config(timm_config()))


class TestPretrained:
    @some_families
    def test_weights_of_a_file_are_the_encoders_with_positions_grown_by_timm(self, architecture, tmp_path):
        source = timm.create_model(architecture, img_size=32, num_classes=5, depth=2, **TINY)
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        visual = timm_model(architecture).model.visual
        before = visual.blocks[0].mlp.fc2.window_adapter.down.clone()
        # A file with a head has that of the classes that the architecture was published with, or none.
        message = refusal(lambda: visual.load_pretrained(tmp_path))
        assert "its weights cannot be loaded from" in message
        headless = {name: each for name, each in source.state_dict().items() if not name.startswith("head.")}
        save_file(headless, tmp_path / "model.safetensors")
        visual.load_pretrained(tmp_path)
        expected = timm.create_model(
            architecture, img_size=64, num_classes=0, depth=2, pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors"), "num_classes": 0}, **TINY,
        )  # fmt: skip
        loaded = visual.encoder.state_dict()
        for name, tensor in expected.state_dict().items():
            if not name.startswith("attn_pool."):
                torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
        assert torch.equal(visual.blocks[0].mlp.fc2.window_adapter.down, before)

    def test_a_file_that_lacks_a_tensor_is_refused(self, tmp_path):
        source = timm.create_model(ARCHITECTURES["clip"], img_size=64, num_classes=0, depth=2, **TINY).state_dict()
        del source["blocks.1.mlp.fc2.bias"]
        save_file(source, tmp_path / "some.safetensors")
        visual = timm_model().model.visual
        message = refusal(lambda: visual.load_pretrained(tmp_path / "some.safetensors"))
        assert "some.safetensors" in message
        assert "blocks.1.mlp.fc2.bias" in message

    def test_weights_that_are_nowhere_are_said(self, tmp_path):
        visual = timm_model(vision={"architecture_args": None, "num_hidden_layers": 1}).model.visual
        assert "vit_base_patch16_clip_224: its weights cannot be loaded" in refusal(visual.load_pretrained)
        refusal(lambda: visual.load_pretrained(tmp_path / "none.safetensors"), FileNotFoundError)

    def test_a_folder_of_timm_describes_its_encoder(self, tmp_path):
        from timm.models._hub import save_config_for_hf

        model = timm.create_model(ARCHITECTURES["eva-02"], num_classes=7, img_size=32, depth=2, **TINY)
        save_config_for_hf(model, tmp_path / "config.json", {"model_args": {**TINY, "depth": 2, "img_size": 32}})
        vision = TimmVisionConfig(**describe_folder(tmp_path))
        assert (vision.window_size, vision.num_hidden_layers) == (32, 2)
        assert (vision.architecture, vision.architecture_args) == (
            ARCHITECTURES["eva-02"],
            TINY | {"global_pool": "token"},
        )
        assert vision.image_mean == list(model.pretrained_cfg["mean"])
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
        assert "names no architecture" in refusal(lambda: describe_folder(tmp_path))


class TestConfig:
    def test_sizes_are_read_and_the_published_ratio_of_tokens_is_kept(self):
        vision = TimmVisionConfig(architecture="timm/vit_so400m_patch14_siglip_384.webli")
        assert vision.architecture == "vit_so400m_patch14_siglip_384.webli"
        # 384 is 27 patches of 14 and 6 pixels more.
        assert (vision.window_size, vision.patch_size, vision.patches_per_side, vision.num_queries) == (
            378,
            14,
            27,
            169,
        )
        assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (1152, 27, 4304)
        assert vision.image_mean == vision.image_std == [0.5, 0.5, 0.5]
        published = MonkeyVisionConfig()
        same = TimmVisionConfig(architecture="vit_gigantic_patch14_clip_224", window_size=448)
        assert (same.num_queries, same.hidden_size) == (published.num_queries, published.hidden_size)
        assert same.intermediate_size == published.intermediate_size

    def test_a_config_goes_through_its_file(self, tmp_path):
        config = timm_config(grid=(2, 3))
        config.save_pretrained(tmp_path)
        again = MonkeyConfig.from_pretrained(tmp_path)
        assert type(again.vision_config) is TimmVisionConfig
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        content = json.loads((tmp_path / "config.json").read_text())
        assert content["vision_config"]["hidden_size"] == 32
        assert type(MonkeyConfig().vision_config) is MonkeyVisionConfig

    def test_pixels_have_the_mean_and_deviation_of_the_encoder(self, tmp_path):
        config = timm_config(ARCHITECTURES["siglip"], base=small_config)
        images = MonkeyImageProcessor.from_config(config)
        assert images.image_mean == images.image_std == [0.5] * 3
        config.save_pretrained(tmp_path)
        assert MonkeyImageProcessor.from_pretrained(tmp_path).to_dict() == images.to_dict()

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (
                {"architecture": "vit_base_patch16_siglip_225"},
                "the nearest are vit_base_patch16_siglip_256, vit_base_patch16_siglip_224",
            ),
            ({"architecture": "vit_base_patch16_siglip_224.nowhere"}, "its tags are v2_webli, webli"),
            ({"architecture": "resnet50"}, "no plain vision transformer (timm makes it in resnet)"),
            ({"architecture": "vit_small_r26_s32_224"}, "(timm makes it in vision_transformer_hybrid)"),
            ({"architecture": "vit_base_patch16_siglip_224", "window_size": 100}, "patch_size=16 of vit_base_patch16"),
            ({"window_size": 100}, "take 96"),
            ({"hidden_size": 48}, "vision_config has hidden_size=48, but vit_base_patch16_clip_224 has 768"),
            ({"architecture_args": {"depth": 2}}, "set vision_config's num_hidden_layers instead"),
            ({"architecture_args": {"embed_dmi": 32}}, "timm cannot make vit_base_patch16_clip_224 with embed_dmi=32"),
            ({"architecture_args": {"num_heads": 5}}, "should be divisible"),
            (
                {"architecture_args": [1]},
                "vision_config's architecture_args is [1], and an object of arguments is needed",
            ),
            ({"num_queries": 5}, "num_queries=5 is not a square number"),
            ({"architecure": "x"}, "has no field 'architecure'; did you mean 'architecture'?"),
            ({"window_size": "56"}, "vision_config's window_size is '56'"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(self, fields, said):
        assert said in refusal(lambda: TimmVisionConfig(**{"architecture": ARCHITECTURES["clip"], **fields}))

    def test_blocks_without_attention_beside_an_mlp_are_refused(self):
        name = "vit_small_patch16_18x2_224"
        message = refusal(lambda: TimmVisionConfig(architecture=name, architecture_args=TINY))
        assert "blocks are ParallelThingsBlock and their attn is NoneType" in message

    def test_a_vision_config_of_no_encoder_is_refused(self):
        for given, said in (
            ({"model_type": "monkey_timm_vision"}, "names no architecture"),
            (TimmVisionConfig(), "names no architecture"),
            ({"model_type": "siglip"}, "model_type is 'siglip', and 'monkey_vision' or 'monkey_timm_vision' is needed"),
        ):
            assert said in refusal(lambda given=given: MonkeyConfig(vision_config=given))

    def test_sizes_in_a_file_that_are_not_the_architectures_are_refused(self):
        config = timm_config()
        config.vision_config.intermediate_size = 64
        message = refusal(lambda: MonkeyForConditionalGeneration(config))
        assert "vision_config has intermediate_size=64, but vit_base_patch16_clip_224 has 128" in message


@pytest.fixture(scope="module")
def timm_start(start, tmp_path_factory):
    return with_timm(start, tmp_path_factory.mktemp("timm") / "base")


class TestTraining:
    @pytest.mark.parametrize("recipe", ["full-llm", "lora-llm", "everything"])
    def test_a_run_trains_what_its_recipe_says(self, timm_start, tmp_path, recipe):
        folder = train(
            timm_start, tmp_path / "run", "--recipe", recipe, "--vision_checkpointing", "True",
            "--per_device_train_batch_size", "12",
        )  # fmt: skip
        first, second = losses(folder)
        assert second < first
        before, after = (load_file(each / "model.safetensors") for each in (timm_start.base, folder))
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        encoder = {name for name in before if name.startswith("model.visual.encoder.")}
        adapters = {name for name in encoder if ".window_adapter." in name}
        assert before.keys() == after.keys()
        assert adapters <= moved
        assert bool((encoder - adapters) & moved) == (recipe == "everything")

    def test_vision_is_planned_and_counted_before_the_first_step(self):
        config = timm_config(ARCHITECTURES["dinov3 gated"], vision={"num_hidden_layers": 5})
        shallow = timm_config(ARCHITECTURES["dinov3 gated"], vision={"num_hidden_layers": 4})
        bytes_of = [
            sum(count for name, count in plan(each, precision="fp32").lines.items() if name.startswith("weights"))
            for each in (shallow, config)
        ]
        assert bytes_of[1] == sum(parameter.nbytes for parameter in random_model(config).parameters())
        assert bytes_of[1] > bytes_of[0]
        flops = [count_flops(each, RECIPES["full-llm"]) for each in (shallow, config)]
        assert flops[1].image > flops[0].image

    def test_a_decoder_in_four_bits_leaves_the_encoder_whole(self, tmp_path):
        pytest.importorskip("bitsandbytes")
        model = timm_model(text_hidden_size=64, text_intermediate_size=128)
        model.save_pretrained(tmp_path)
        packed = open_four_bit(tmp_path, dtype=torch.float32)
        assert packed_linears(packed)
        assert not any(name.startswith("model.visual") for name in packed_linears(packed))
        pixels = torch.randn(1, 3, *model.config.canvas_size)
        with torch.no_grad():
            torch.testing.assert_close(packed.get_image_features(pixels), model.get_image_features(pixels))


@torch.no_grad()
def test_the_published_encoder_is_timms_of_the_same_weights():
    """Width and heads as published, two layers, adapters included: an implementation that shares no block with ours."""
    sizes = {"window_size": 56, "num_hidden_layers": 2, "layer_norm_eps": 1e-5}
    ours = tiny_config(vision_hidden_size=1664, vision_num_attention_heads=16, vision_mlp_ratio=4.9231,
                       vision_patch_size=14, vision_num_positions=16,
                       **{f"vision_{name}": value for name, value in sizes.items()})  # fmt: skip
    # timm's norms add 1e-5 here, and its tower ends with one; class tokens are not in the published encoder.
    arguments = {"class_token": False, "final_norm": False, "global_pool": "avg"}
    timms = tiny_config()
    timms.vision_config = TimmVisionConfig(
        architecture="vit_gigantic_patch14_clip_224", architecture_args=arguments, adapter_rank=4, **sizes
    )
    published, other = MonkeyVisionModel(ours).eval(), TimmVisionModel(timms).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in published.named_parameters():
        fan_in = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
        spread = fan_in**-0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(std=spread, generator=generator).add_("norm" in name and name.endswith("weight"))
    for module in other.modules():
        if isinstance(module, WindowAdapter):
            module.reset_parameters()  # those beside the MLP stay without effect

    def by_query_key_value(rows: torch.Tensor) -> torch.Tensor:
        """Rows that go head by head in ours, and queries of all heads first in timm's."""
        return rearrange(rows, "... (h q d) c -> ... (q h d) c", h=16, q=3)

    weights = {
        "patch_embed.proj.weight": published.patch_embedding.weight,
        "pos_embed": published.position_embedding[None],
        **{f"norm_pre.{kind}": getattr(published.pre_layernorm, kind) for kind in ("weight", "bias")},
    }
    for index, layer in enumerate(published.layers):
        layer.mlp_adapter.up.zero_()
        block, attention = f"blocks.{index}.", layer.attention
        weights |= {
            f"{block}attn.qkv.weight": by_query_key_value(attention.in_proj.weight),
            f"{block}attn.qkv.bias": by_query_key_value(attention.in_proj.bias[:, None])[:, 0],
            f"{block}attn.qkv.window_adapter.up": by_query_key_value(attention.in_adapter.up),
        }
        for kind in ("down", "scale"):
            weights[f"{block}attn.qkv.window_adapter.{kind}"] = getattr(attention.in_adapter, kind)
        for name, module in (
            ("attn.proj", attention.out_proj), ("attn.proj.window_adapter", attention.out_adapter),
            ("mlp.fc1", layer.mlp.fc1), ("mlp.fc2", layer.mlp.fc2),
            ("norm1", layer.layernorm1), ("norm2", layer.layernorm2),
        ):  # fmt: skip
            weights |= {f"{block}{name}.{key}": tensor for key, tensor in module.named_parameters()}
    loaded = other.encoder.load_state_dict(weights, strict=False)
    assert not loaded.unexpected_keys
    assert all(".mlp." in name and "window_adapter" in name for name in loaded.missing_keys)
    pixels = torch.randn(5, 3, 56, 56, generator=generator)
    expected = published.encode(pixels, [1] * 4)
    assert not torch.allclose(expected, published.encode(pixels, ()), rtol=0, atol=0.1)
    torch.testing.assert_close(other.encode(pixels, [1] * 4), expected, rtol=0, atol=1e-5)
