"""The card beside a checkpoint's weights: read strictly, known for published ones, and carried on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from PIL import Image

from monkey import ask
from monkey.checkpoint_card import (
    CARD_FILE,
    FOR_DESCRIPTIONS,
    LONGEST_TEXT,
    MONKEY_TERMS,
    MOST_BYTES,
    QWEN_TERMS,
    UNKNOWN_TERMS,
    CheckpointCard,
    Sampling,
    card_of,
    read_card,
)
from monkey.serving.session import Answerer
from monkey.training.model_card import write_model_card
from scripts.average_checkpoints import average
from scripts.convert_checkpoint import convert
from scripts.new_model import new_model
from scripts.set_grid import set_grid
from tests.conftest import random_model
from tests.running_server import running
from tests.small_processor import small_config, small_processor

REPOSITORY = Path(__file__).resolve().parent.parent
OWN = {
    "prompts": {"question": "<img></img>{question} Say:", "descriptions": ["Tell <b>all</b>."]},
    "sampling": {"answers": {"max_new_tokens": 7}, "descriptions": {"temperature": 0, "seed": None}},
    "terms": {"en": "Mine alone.", "zh": "仅供本人使用。"},
    "abilities": "It reads <script>nothing</script>.",
    "questions": ["What?"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A checkpoint with a card of its own."""
    folder = tmp_path_factory.mktemp("checkpoints") / "base"
    random_model(small_config()).save_pretrained(folder)
    small_processor().save_pretrained(folder)
    (folder / CARD_FILE).write_text(json.dumps(OWN))
    return folder


def test_a_card_is_read_and_written(tmp_path, base):
    card = card_of(base)
    assert card.question_prompt == "<img></img>{question} Say:"
    assert card.description_prompts == ("Tell <b>all</b>.",)
    assert card.answers == Sampling(7)
    assert card.descriptions == Sampling(FOR_DESCRIPTIONS.max_new_tokens)
    assert card.terms["zh"] == "仅供本人使用。"
    assert card.abilities == {"en": "It reads <script>nothing</script>."}
    assert card.languages == {}
    for each in (card, CheckpointCard()):
        each.write(tmp_path)
        assert card_of(tmp_path) == each


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "list, and an object"),
        ('{"terms": }', "JSON"),
        ('{"licence": "MIT"}', 'has a key "licence", and there can be prompts, sampling, terms'),
        ('{"prompts": "What?"}', 'prompts is "What.", and an object is needed'),
        ('{"prompts": {"answer": "x"}}', 'prompts has a key "answer", and there can be question, descriptions'),
        ('{"prompts": {"question": "{question}"}}', "question is .* begins with its only <img></img>"),
        ('{"prompts": {"question": "<img></img>{question} <img></img>"}}', "question is .* its only <img></img>"),
        ('{"prompts": {"descriptions": []}}', r"descriptions is \[\], and a list of 1 to 20 texts"),
        ('{"questions": ["a", 5]}', "questions is .* a list of 1 to 20 texts"),
        ('{"questions": "What?"}', "questions is .* a list of 1 to 20 texts"),
        ('{"terms": 5}', "terms is 5, and a text of 1 to 2,000 printable characters"),
        ('{"terms": ""}', 'terms is "", and a text'),
        ('{"terms": {"zh": "x"}}', "terms is .* and a text"),
        ('{"terms": {"en": "x", "de": "y"}}', "terms is .* and a text"),
        ('{"abilities": "a\\u001b[2Jb"}', "abilities is .* printable characters"),
        ('{"abilities": "\\ud800"}', "abilities is .* printable characters"),
        (json.dumps({"abilities": "x" * (LONGEST_TEXT + 1)}), "abilities is .*printable characters"),
        ('{"sampling": {"answers": {"temperature": 3}}}', "answers: temperature is 3, and 0 or a number from 0.001"),
        ('{"sampling": {"answers": {"temperature": NaN}}}', "NaN"),
        ('{"sampling": {"answers": {"temperature": false}}}', "temperature is false"),
        ('{"sampling": {"answers": {"top_p": 0}}}', "top_p is 0, and a number from 0.01 to 1"),
        ('{"sampling": {"descriptions": {"max_new_tokens": 1.5}}}', "descriptions: max_new_tokens is 1.5, and a whole"),
        ('{"sampling": {"descriptions": {"seed": -1}}}', "seed is -1, and null or a whole number"),
        (" " * MOST_BYTES + "{}", f"has {MOST_BYTES + 2:,} bytes, more than the {MOST_BYTES:,} of a card"),
    ],
)
def test_what_is_no_card_is_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(ValueError, match=sentence) as refused:
        card_of(tmp_path)
    assert CARD_FILE in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value).replace(str(tmp_path), "")) < 300


def test_published_checkpoints_are_known_and_others_have_unknown_terms(tmp_path, golden):
    assert card_of(golden.checkpoint) == CheckpointCard(terms=MONKEY_TERMS)
    flat = json.loads((golden.checkpoint / "config.json").read_text())
    del flat["visual"]["lora_repeat_num"]
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert card_of(tmp_path).terms == QWEN_TERMS
    small_config().save_pretrained(tmp_path)
    assert card_of(tmp_path).terms == UNKNOWN_TERMS
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        card_of(tmp_path / "none")


def test_an_adapter_has_the_card_of_its_base_unless_it_has_its_own(tmp_path, base):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert card_of(tmp_path) == card_of(base)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert card_of(tmp_path) == CheckpointCard()
    card_of(base).write(tmp_path)
    assert card_of(tmp_path) == card_of(base)


def test_what_ships_says_what_it_is():
    card = read_card(REPOSITORY / "models" / "small" / CARD_FILE)
    assert card.description_prompts[0] == "Describe the picture."
    assert card.descriptions.temperature == 0
    assert "Apache-2.0" in card.terms["en"]
    assert "drawn pages such as receipts" in card.abilities["en"]
    assert card_of(REPOSITORY / "models" / "small-base") == card
    # Whoever trains the small model anew gets it, too.
    assert card_of(REPOSITORY / "configs" / "model" / "reader") == card


def test_what_is_made_from_a_checkpoint_carries_its_card(tmp_path, base, golden):
    card = card_of(base)
    assert card_of(set_grid(base, tmp_path / "grid", (1, 2))) == card
    assert card_of(average(base, base, tmp_path / "average")) == card
    assert card_of(convert(str(base), tmp_path / "published", "bin", "published")) == card
    assert card_of(convert(str(golden.checkpoint), tmp_path / "ours", "safetensors", "monkey")).terms == MONKEY_TERMS
    small = shutil.copytree(REPOSITORY / "configs" / "model" / "small", tmp_path / "small")
    assert card_of(new_model(small, tmp_path / "untrained")) == CheckpointCard()
    card.write(small)
    assert card_of(new_model(small, tmp_path / "with-card")) == card


def test_what_is_made_from_two_has_the_terms_of_both(base):
    both = card_of(base).under_terms_of(CheckpointCard(terms=MONKEY_TERMS))
    assert both.terms["en"] == f"Mine alone. {MONKEY_TERMS['en']}"
    assert both.terms["zh"] == f"仅供本人使用。 {MONKEY_TERMS['zh']}"
    assert both.questions == ("What?",)
    assert both.under_terms_of(CheckpointCard(terms=MONKEY_TERMS)) == both
    long = CheckpointCard(terms={"en": "x" * LONGEST_TEXT})
    with pytest.raises(ValueError, match=f"more than the 2,000 of a card; shorten those in one {CARD_FILE}"):
        both.under_terms_of(long)


def test_the_readme_of_a_trained_checkpoint_states_the_terms(tmp_path, base):
    card_of(base).write(tmp_path)
    assert "Of the starting weights: `Mine alone.`" in write_model_card(tmp_path, {}, None, "base", []).read_text()


def test_answers_and_descriptions_follow_the_card(base, monkeypatch):
    asked = []

    def note(answerer, ids, images, decoding, *rest, **more) -> None:
        tokenizer = answerer.processor.tokenizer
        asked.append((tokenizer.decode(ids[ids.index(tokenizer.image_end_id) + 1 :]), decoding))

    monkeypatch.setattr(Answerer, "_submit", note)
    picture = Image.new("RGB", (40, 30))
    with Answerer(random_model(small_config()), small_processor(), card=card_of(base)) as answerer:
        answerer.ask(picture, "What?")
        answerer.describe(picture)
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": "So?"}]
        answerer.chat([{"role": "user", "content": parts}])
    assert [text for text, _ in asked] == ["What? Say:", "Tell <b>all</b>. Say:", "So? Say:"]
    assert [(decoding.max_new_tokens, decoding.temperature) for _, decoding in asked] == [(7, 0), (250, 0), (7, 0)]


def test_ask_prints_the_card_and_the_server_tells_it(base, capsys):
    assert ask.main(["--card", "-c", str(base)]) == 0
    assert json.loads(capsys.readouterr().out) == card_of(base).as_json()
    with (
        Answerer(random_model(small_config()), small_processor(), name="mine", card=card_of(base)) as answerer,
        running(answerer) as server,
    ):
        told = httpx.get(f"{server.url}/models", timeout=60).json()
    assert told["data"][0]["card"] == card_of(base).as_json()
