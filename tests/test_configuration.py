"""Counts follow the grid, mistakes are named, and the published flat config reads and writes."""

from __future__ import annotations

import pytest

from monkey.configuration import MonkeyConfig
from monkey.flat_config import published_config


def test_derived_counts_follow_the_grid():
    expected = {(1, 1): (2, 512), (1, 2): (3, 768), (2, 2): (5, 1280), (2, 3): (7, 1792), (3, 2): (7, 1792)}
    for grid, (num_views, image_tokens) in expected.items():
        config = MonkeyConfig(grid=grid)
        assert (config.num_views, config.image_tokens) == (num_views, image_tokens)
        assert config.canvas_size == (448 * grid[0], 448 * grid[1])
        assert config.num_adapters == grid[0] * grid[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gird": (2, 2)}, "no field 'gird'; did you mean 'grid'"),
        ({"vision_config": {"widht": 3}}, "MonkeyVisionConfig has no field 'widht'"),
        ({"text_config": {"hidden_sizes": 3}}, "no field 'hidden_sizes'; did you mean 'hidden_size'"),
        ({"grid": (0, 2)}, "grid=(0, 2) is not (rows, columns)"),
        ({"grid": 2}, "grid=2 is not (rows, columns)"),
        ({"vision_config": {"window_size": 450}}, "window_size=450 is not a multiple of patch_size=14; take 448"),
        ({"vision_config": {"num_queries": 5}}, "num_queries=5 is not a square"),
        ({"window_adapters": "one"}, "window_adapters='one' is not one of"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True: the published layout has a head of its own"),
        ({"text_config": {"num_key_value_heads": 8}}, "num_key_value_heads=8 and num_attention_heads=32 differ"),
    ],
)
def test_config_mistakes_are_named(fields, message):
    with pytest.raises(ValueError) as caught:
        MonkeyConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("visual", "grid"), [({"image_size": 896}, (2, 2)), ({"image_size": [896, 1344], "lora_repeat_num": 6}, (2, 3))]
)
def test_published_flat_config_opens_and_writes_back(visual, grid):
    flat = published_config(MonkeyConfig())
    flat["visual"] = flat["visual"] | visual
    config = MonkeyConfig.from_dict(flat)
    assert config.grid == grid
    assert MonkeyConfig.from_dict(published_config(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (
            {"image_size": 900},
            "image size 900×900 is not a whole number of 448-pixel windows; the nearest that fits is 896×896",
        ),
        ({"image_size": [896, 1344]}, "lora_repeat_num=4, but image_size=[896, 1344] holds 6 windows"),
        ({"output_dim": 1024}, "visual.output_dim=1024 and hidden_size=4096"),
        ({"image_size": "896"}, "visual.image_size='896' is neither a number of pixels nor [height, width]"),
        ({"image_size": [896, 896, 3]}, "is neither a number of pixels nor [height, width]"),
    ],
)
def test_flat_config_that_contradicts_itself_is_refused(visual, message):
    flat = published_config(MonkeyConfig())
    flat["visual"] = flat["visual"] | visual
    with pytest.raises(ValueError) as caught:
        MonkeyConfig.from_dict(flat)
    assert message in str(caught.value)


def test_flat_config_that_lacks_a_size_names_it():
    flat = published_config(MonkeyConfig())
    del flat["visual"]["width"], flat["visual"]["heads"]
    with pytest.raises(ValueError, match=r"config.json lacks visual.heads, visual.width"):
        MonkeyConfig.from_dict(flat)


def test_flat_config_with_a_misspelt_field_says_that_nothing_reads_it(caplog):
    flat = published_config(MonkeyConfig()) | {"use_logn_atn": False}
    MonkeyConfig.from_dict(flat)
    assert "fields that nothing reads: use_logn_atn" in caplog.text
    caplog.clear()
    MonkeyConfig.from_dict(published_config(MonkeyConfig()))
    assert not caplog.text
