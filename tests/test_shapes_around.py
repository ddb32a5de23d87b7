"""Images of any shape, around the model: their boxes, maps, flags, plans and the study."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate_vqa
from benchmarks import vision
from eval.backends import Request
from eval.model_backend import ModelBackend
from eval.tables import notes
from eval.tasks import PromptForm, select_tasks
from finetune_multitask import main as finetune_main
from monkey.boxes import WHOLE, BoxStream, located, to_canvas, to_image
from monkey.cli import grid_set
from monkey.configuration import MonkeyConfig
from monkey.conversation import Conversation, Message, Text
from monkey.conversation import Image as ImagePart
from monkey.data.dataset import ConversationDataset
from monkey.data.mixture import open_records
from monkey.data.records import read_questions
from monkey.decoding import Decoding
from monkey.grids import expand_grids
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import UNSUPERVISED, MonkeyProcessor
from monkey.reply import Detokenizer
from monkey.serving.attention_maps import draw_heat, draw_views, read_image
from monkey.serving.protocol import ApiError, parse_request
from monkey.serving.server import Api, Visit
from monkey.serving.session import Answerer
from monkey.tokenization import QwenTokenizer
from monkey.training.arguments import parse_flags
from monkey.training.memory import PlanSettings, StepSize, plan, step_size
from monkey.vision import grow_positions, sincos_positions
from scripts import plan_memory, resolution_study, show_views
from scripts.resolution_study import Answer
from scripts.set_grid import main as set_grid_main
from scripts.set_grid import set_grid
from tests.conftest import random_model, tiny_config
from tests.running_server import data_uri
from tests.small_processor import CHECKPOINT, END, small_config, small_processor
from tests.training_start import conversation, train, with_records, words_of

HALF_WIDTH, QUARTER_HEIGHT = (0.5, 1.0), (1.0, 0.25)


def asked(text: str, images: int = 1) -> Conversation:
    """A question as people write it, behind its images."""
    return Conversation.from_question([f"{number}.png" for number in range(images)], text)


def texts(conversation: Conversation) -> list[str]:
    return [message.text for message in conversation.messages]


class TestBoxesOnTheCanvas:
    def test_only_the_numbers_of_complete_boxes_change(self):
        question = (
            "At <box>(520,40),( 790,211)</box>, (500,500) or <box>(1,2)</box>? <quad>(9,2),(3,4),(5,6),(7,1)</quad>"
        )
        moved = texts(to_canvas(asked(question), [HALF_WIDTH]))[0].removeprefix("<img></img>")
        kept = "At <box>(260,40),( 395,211)</box>, (500,500) or <box>(1,2)</box>? <quad>(4,2),(2,4),(2,6),(4,1)</quad>"
        assert moved == kept

    def test_a_box_is_of_the_image_that_stands_last_before_it(self):
        parts = [
            Text("<box>(100,100),(200,200)</box>", True),
            ImagePart("b"),
            Text("<box>(100,100),(200,200)</box>", True),
        ]
        turns = (Message("user", (ImagePart("a"), *parts)), Message("assistant", (parts[0],)))
        question, answer = texts(to_canvas(Conversation(turns), [HALF_WIDTH, QUARTER_HEIGHT]))
        assert question == "<img></img><box>(50,100),(100,200)</box><img></img><box>(100,25),(200,50)</box>"
        assert answer == "<box>(100,25),(200,50)</box>"

    def test_a_box_before_all_images_is_of_the_first(self):
        # As clients of OpenAI's form often put a question before its image.
        turn = Message("user", (Text("<box>(100,100),(200,200)</box>", True), ImagePart("a"), ImagePart("b")))
        (question,) = texts(to_canvas(Conversation((turn,)), [HALF_WIDTH, QUARTER_HEIGHT]))
        assert question == "<box>(50,100),(100,200)</box><img></img><img></img>"

    def test_a_box_may_begin_in_a_question_and_end_in_the_answer(self):
        turns = [
            {"role": "user", "text": "<img></img> Where is <ref>it</ref>? <box>"},
            {"role": "assistant", "text": "(100,100),(200,2000)</box>"},
        ]
        moved = to_canvas(Conversation.from_turns(turns, ["a.png"]), [(0.5, 0.25)])
        assert texts(moved)[1] == "(50,25),(100,500)</box>"

    def test_characters_that_are_no_markers_to_the_model_move_nothing(self):
        inert = Conversation.from_turns([{"role": "user", "text": "<box>(1,2),(3,4)</box>"}], ["a.png"], trusted=False)
        assert texts(to_canvas(inert, [HALF_WIDTH])) == texts(inert)

    def test_a_stretched_image_changes_nothing(self):
        conversation = asked("<box>(-5,4),(1200,999999)</box>")
        assert to_canvas(conversation, [WHOLE]) is conversation
        assert to_image("<box>(-5,4),(1200,999999)</box>", WHOLE) == "<box>(-5,4),(1200,999999)</box>"

    @pytest.mark.parametrize("share", [(0.3, 1.0), (1.0, 0.013), (0.77, 0.5)])
    def test_what_the_model_wrote_comes_back_to_it_as_it_was(self, share):
        chance = random.Random(0)
        for _ in range(300):
            inside = [chance.randint(0, math.floor(1000 * share[number % 2])) for number in range(4)]
            written = "<ref>a</ref><box>({},{}),({},{})</box>.".format(*inside)
            read = to_image(written, share)
            assert all(0 <= value <= 1000 for box in located(read) for value in box.box)
            assert texts(to_canvas(asked(read), [share])) == [f"<img></img>{written}"]

    def test_what_lies_in_the_padding_is_moved_to_the_edge(self):
        assert to_image("<box>(100,100),(900,700)</box>", HALF_WIDTH) == "<box>(200,100),(1000,700)</box>"

    def test_a_stream_gives_the_same_text_however_it_is_cut(self):
        answer = (
            "a < b <ref>x</ref><box>(10,20),(30,40)</box><box>(1,2)<quad>(1,2),(3,4),(5,6),(7,8)</quad> <bo <box>(5"
        )
        chance = random.Random(0)
        for _ in range(200):
            stream, given, place = BoxStream(HALF_WIDTH), "", 0
            while place < len(answer):
                count = chance.randint(1, 7)
                given += stream.push(answer[place : place + count])
                place += count
            assert given + stream.finish() == to_image(answer, HALF_WIDTH)

    def test_a_stream_holds_no_more_back_than_what_may_become_a_box(self):
        stream = BoxStream(HALF_WIDTH)
        assert [stream.push(piece) for piece in ("It is <", "ref>", " <box>", "(10,", "20),(30,40)", "</box>!")] == [
            "It is ", "<ref>", " ", "", "", "<box>(20,20),(60,40)</box>!",
        ]  # fmt: skip
        assert stream.push("<box>" + "1" * 500) == "<box>" + "1" * 500

    @pytest.mark.parametrize(
        ("keep_markers", "text"),
        [(True, "at <ref>it</ref><box>(20,20),(60,40)</box>"), (False, "at it(20,20),(60,40)")],
    )
    def test_an_answer_is_told_with_boxes_of_the_image(self, keep_markers, text):
        tokenizer = small_processor().tokenizer
        ids = tokenizer.encode_text("at <ref>it</ref><box>(10,20),(30,40)</box>")
        detokenizer = Detokenizer(tokenizer, keep_markers=keep_markers, share=HALF_WIDTH)
        assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == text


GRIDS = [[1, 2], [2, 1], [2, 2], [1, 4]]
"""A set of grids: 2, 2, 4 and 4 windows."""


class TestFlags:
    @pytest.mark.parametrize(
        ("text", "grids"), [("up-to-6", "up-to-6"), (" 1x2,2x1, 2x2 ", [[1, 2], [2, 1], [2, 2]]), ("3x1", [[3, 1]])]
    )
    def test_a_set_of_grids_is_read_from_a_flag(self, text, grids):
        assert grid_set(text) == grids
        assert expand_grids(grid_set(text))

    @pytest.mark.parametrize("text", ["", "up-to-0", "up-to-", "6", "2,2", "0x2", "1x2;2x1", "1x2x3"])
    def test_what_is_no_set_is_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="no set of grids; write up-to-6"):
            grid_set(text)

    def test_a_set_is_the_same_before_and_after_it_was_written(self, tmp_path):
        config = tiny_config(grids=((1, 2), (2, 1)))
        config.save_pretrained(tmp_path)
        assert MonkeyConfig.from_pretrained(tmp_path).grids == config.grids == [[1, 2], [2, 1]]

    def test_training_opens_with_the_layout_of_its_flags(self, tmp_path):
        needed = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path), "--use_cpu", "True"]
        flags = parse_flags([*needed, "--grid", "2,2", "--grids", "1x2,2x1", "--fit", "pad"])
        assert flags.model.layout == {"grid": (2, 2), "grids": [[1, 2], [2, 1]], "fit": "pad"}
        assert parse_flags(needed).model.layout == {"grid": None, "grids": None, "fit": None}
        for words, sentence in (
            (("--grids", "2,2"), "--grids 2,2 is no set"),
            (("--fit", "crop"), "--fit crop is unkn"),
        ):
            with pytest.raises(ValueError, match=sentence):
                parse_flags([*needed, *words])

    def test_a_config_file_may_list_grids(self, tmp_path):
        (tmp_path / "c.yaml").write_text("grids: [1x2, 2x1]\nfit: pad\n")
        words = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path), "--use_cpu", "True"]
        assert parse_flags(["--config", str(tmp_path / "c.yaml"), *words]).model.grid_set == [[1, 2], [2, 1]]


class TestPlan:
    @pytest.fixture
    def config(self):
        return tiny_config(grid=(2, 2), grids="up-to-4", vision_num_queries=4)

    def test_a_packed_row_has_the_most_views_that_fit(self, config):
        def best(room: int) -> int:
            """By trying every image for the first."""
            choices = [(config.tokens_of(grid) + 2 + 5, math.prod(grid) + 1) for grid in config.allowed_grids]
            return max((views + best(room - tokens) for tokens, views in choices if tokens <= room), default=0)

        for room in (15, 22, 31, 40, 60):
            size = step_size(config, PlanSettings(batch_size=0, pack_tokens=room, text_tokens=5))
            assert size.windows + size.images == best(room)
            assert size.tokens == room

    def test_padded_samples_all_have_the_largest_grid(self, config):
        size = step_size(config, PlanSettings(batch_size=3, text_tokens=5))
        assert (size.images, size.windows, size.tokens) == (3, 12, 5 * 4 + 2 + 5)

    def test_one_grid_is_planned_as_before(self):
        config = tiny_config(grid=(2, 2))
        settings = PlanSettings(batch_size=0, pack_tokens=100, text_tokens=5, answer_tokens=2)
        assert step_size(config, settings) == StepSize(images=3, rows=1, tokens=100, supervised=6)

    def test_a_row_that_holds_no_sample_is_refused_with_the_smallest_grid(self, config):
        with pytest.raises(ValueError, match=r"grid=\(1, 1\) makes 10 tokens an image, .* make it 60"):
            step_size(config, PlanSettings(batch_size=0, pack_tokens=59))

    def test_a_step_is_measured_by_its_windows(self, config):
        few, many = (
            plan(config, largest_step=StepSize(2, 1, 64, 4, windows)).phases["vision's forward"] for windows in (2, 8)
        )
        fixed = plan(tiny_config(grid=(2, 2)), largest_step=StepSize(2, 1, 64, 4)).phases["vision's forward"]
        assert few < many
        assert many == pytest.approx(fixed, rel=0.1)

    def test_the_program_plans_for_a_set_of_grids(self, tmp_path, capsys):
        config = tiny_config(grid=(2, 2))
        config.save_pretrained(tmp_path)
        words = [
            "--checkpoint",
            str(tmp_path),
            "--gpu-memory",
            "24",
            "--batch-size",
            "1",
            "--json",
            "--grids",
            "up-to-6",
        ]
        assert plan_memory.main(words) == 0
        planned = json.loads(capsys.readouterr().out)
        assert (planned["images"], planned["windows"], len(planned["grids"])) == (1, 6, 14)
        assert planned["tokens"] == config.tokens_of((2, 3)) + 2 + 50


def shaped(fit: str = "pad", grids="up-to-4", **changes) -> SimpleNamespace:
    """A tiny model that puts each image on a grid of its own, with a processor of the golden vocabulary."""
    content = {**small_config(grid=(2, 2)).to_dict(), "grids": grids, "fit": fit, **changes}
    config = MonkeyConfig.from_dict(content)
    processor = MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    return SimpleNamespace(config=config, model=random_model(config), processor=processor)


@pytest.fixture(scope="module")
def any_shape() -> SimpleNamespace:
    return shaped()


WIDE, TALL = Image.new("RGB", (120, 30), "red"), Image.new("RGB", (14, 112), "blue")
"""Four windows in a row, all covered; and four one below the other, of which the image covers half across."""


def answering(answerer: Answerer, text: str, monkeypatch) -> None:
    """Let a model write a text, token by token, and end."""
    ids = answerer.processor.tokenizer.encode_text(text)
    script = itertools.cycle([*ids, answerer.processor.tokenizer.eod_id])
    monkeypatch.setattr(answerer.engine, "_choose", lambda last, rows: ([next(script)], [0.0]))


class TestAsking:
    @pytest.fixture
    def answerer(self, any_shape):
        with Answerer(any_shape.model, any_shape.processor) as answerer:
            yield answerer

    def test_a_question_may_limit_the_windows_of_its_images(self, answerer):
        decoding, tokens = Decoding(max_new_tokens=2), answerer.model.config.tokens_of
        (whole, limited) = (answerer.ask([WIDE, TALL], "What?", decoding, max_windows=limit) for limit in (None, 2))
        assert whole.prompt_tokens - limited.prompt_tokens == 2 * (tokens((1, 4)) - tokens((1, 2)))
        assert [len(reply.text) > 0 for reply in (whole, limited)]

    @pytest.mark.parametrize(("limit", "sentence"), [(1, "the smallest grid of .* has 2"), (0, "max_windows")])
    def test_a_limit_below_every_grid_is_refused(self, limit, sentence):
        made = shaped(grids=GRIDS)
        with Answerer(made.model, made.processor) as answerer, pytest.raises(ValueError, match=sentence):
            answerer.ask(WIDE, "What?", max_windows=limit)

    def test_a_limit_where_all_images_have_one_grid_is_refused(self):
        refused = pytest.raises(ValueError, match="puts every image on 1×1 windows; leave it out")
        with Answerer(random_model(small_config()), small_processor()) as answerer, refused:
            answerer.ask(WIDE, "What?", max_windows=2)

    def test_no_question_gets_more_windows_than_the_model_was_opened_with(self, any_shape):
        with Answerer(any_shape.model, any_shape.processor.limit_windows(2)) as answerer:
            assert answerer.limited_processor(None).image_processor.max_windows == 2
            assert answerer.limited_processor(1).image_processor.max_windows == 1
            with pytest.raises(ValueError, match="max_windows is 3, and this model was opened with at most 2 windows"):
                answerer.ask(WIDE, "What?", max_windows=3)

    def test_boxes_of_an_answer_are_the_images_and_come_back_as_the_model_wrote_them(self, answerer, monkeypatch):
        answering(answerer, "<ref>it</ref><box>(250,0),(500,500)</box>", monkeypatch)
        question = {"role": "user", "content": [{"type": "image", "image": TALL}, {"type": "text", "text": "Where?"}]}
        reply = answerer.chat([question])
        assert reply.text == "<ref>it</ref><box>(500,0),(1000,500)</box>"
        assert [box.in_pixels(TALL.size) for box in reply.boxes] == [(7, 0, 14, 56)]
        read = answerer.engine.stats.read_tokens
        talk = [question, {"role": "assistant", "content": reply.text}, {"role": "user", "content": "And?"}]
        again = answerer.chat(talk)
        assert again.text
        # All of the first turn was kept: what is read is the new question and what ended the answer.
        assert answerer.engine.stats.read_tokens - read <= again.prompt_tokens - reply.prompt_tokens

    def test_a_box_in_a_question_is_read_on_the_canvas(self, any_shape):
        processor, text = any_shape.processor, "At <box>(500,0),(1000,500)</box>?"
        encode = processor.tokenizer.encode_text
        written = "At <box>(250,0),(500,500)</box>?"
        ids = processor.encode(Conversation.from_question([TALL], text)).ids
        assert ids[ids.index(END) + 1 :] == encode(written)
        turns = [{"role": "user", "text": "<img></img> Where?"}, {"role": "assistant", "text": text[3:]}]
        sample = processor.encode(Conversation.from_turns(turns, [TALL]), labels=True)
        supervised = [label for label in sample.labels if label != UNSUPERVISED]
        assert supervised == [*encode(written[3:]), processor.tokenizer.eod_id]

    def test_a_server_takes_the_limit_by_request_and_names_the_field(self, answerer):
        def asked(**fields) -> Any:
            image = {"type": "image_url", "image_url": {"url": data_uri(WIDE)}}
            messages = [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}]
            body = {"model": answerer.name, "messages": messages, "max_tokens": 1, **fields}
            try:
                _, (reply,) = asyncio.run(api.submit(json.dumps(body).encode(), parse_request, Visit(0, 0)))
            except ApiError as error:
                return error.param, error.code
            return reply.prompt_tokens

        api = Api(answerer)
        tokens = answerer.model.config.tokens_of
        assert asked() - asked(max_windows=2) == tokens((1, 4)) - tokens((1, 2))
        assert asked(max_windows=None) == asked()
        assert asked(max_windows=0) == ("max_windows", "invalid_value")
        assert asked(max_windows="2") == ("max_windows", "invalid_type")
        with Answerer(answerer.model, answerer.processor.limit_windows(2), answerer.name) as limited:
            api = Api(limited)
            assert asked(max_windows=1) < asked() == asked(max_windows=2)
            assert asked(max_windows=3) == ("max_windows", "unsupported_value")
        with Answerer(random_model(small_config()), small_processor(), answerer.name) as fixed:
            api = Api(fixed)
            assert asked(max_windows=2) == ("max_windows", "unsupported_value")


class TestWhereItLooks:
    @torch.no_grad()
    def test_windows_lie_row_by_row_whatever_their_adapters(self):
        made = shaped(grids="up-to-9")
        for name, parameter in made.model.named_parameters():
            if name.endswith("adapter.up"):  # what is left is the same for every window
                parameter.zero_()
        windows = torch.randn(9, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        assert made.config.adapter_sets((3, 3)) != sorted(made.config.adapter_sets((3, 3)))
        _, weights = read_image(made.model, windows, [(3, 3)])
        assert len(weights) == 10
        for number in range(9):
            _, alone = read_image(made.model, windows[number : number + 1], [(1, 1)])
            torch.testing.assert_close(weights[number], alone[0])

    def test_the_maps_of_an_image_have_its_own_grid_and_what_it_covers(self, any_shape):
        with Answerer(any_shape.model, any_shape.processor) as answerer:
            content = [
                *({"type": "image", "image": image} for image in (WIDE, TALL)),
                {"type": "text", "text": "What?"},
            ]
            wide, tall = answerer.attention_maps([{"role": "user", "content": content}], "this")
            limited, _ = answerer.attention_maps([{"role": "user", "content": content}], "this", max_windows=2)
        assert (wide.grid, tall.grid, limited.grid) == ((1, 4), (4, 1), (1, 2))
        assert (wide.covered, tall.covered) == ((1.0, 1.0), (0.5, 1.0))
        assert [len(one.answer) for one in (wide, tall, limited)] == [5, 5, 3]
        for one in (wide, tall):
            assert one.answer.sum() == pytest.approx(one.share)
            assert one.answer_on_windows.shape == (one.grid[0] * 2, one.grid[1] * 2)

    def test_heat_in_the_padding_is_not_drawn(self):
        heat = np.zeros((40, 40), np.float32)
        heat[:, 30:] = 1
        assert np.array_equal(np.asarray(draw_heat(TALL, heat, covered=(0.5, 1.0))), np.asarray(TALL))
        drawn = np.asarray(draw_heat(TALL, heat)) != np.asarray(TALL)
        assert drawn[:, 11:].any()

    def test_views_are_those_of_the_images_grid(self, any_shape):
        wide, tall, limited = (
            draw_views(image, any_shape.config, max_windows=limit)
            for image, limit in ((WIDE, None), (TALL, None), (WIDE, 2))
        )
        assert wide.width > limited.width > tall.width
        assert tall.height > wide.height == limited.height

    def test_the_program_tells_views_and_tokens_of_the_image(self, tmp_path, capsys):
        WIDE.save(tmp_path / "wide.png")
        words = [str(tmp_path / "wide.png"), str(tmp_path / "views.png"), "--grids", "up-to-4"]
        assert show_views.main(words) == 0
        assert "views.png: 5 views, 1280 tokens" in capsys.readouterr().out


class TestEvaluation:
    @pytest.fixture(scope="class")
    def folder(self, any_shape, tmp_path_factory):
        folder = tmp_path_factory.mktemp("shapes")
        any_shape.model.save_pretrained(folder / "model")
        any_shape.processor.save_pretrained(folder / "model")
        rows = []
        for number, image in enumerate((WIDE, TALL, WIDE)):
            image.save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "question": "it", "question_id": number}
            rows.append({**row, "answer": "<box>(500,0),(1000,500)</box>"})
        (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def evaluate(self, folder, name: str, *words: str) -> dict:
        model = ["--checkpoint", str(folder / "model"), "--device", "cpu", "--num-workers", "0"]
        task = ["--dataset", str(folder / "asked.jsonl"), "--metric", "box_overlap", "--max-new-tokens", "4"]
        output = ["--output-dir", str(folder / "result"), "--save-name", name]
        assert evaluate_vqa.main([*model, *task, *output, *words]) == 0
        return json.loads((folder / "result" / name / "asked" / "results.json").read_text())

    def resumed(self, folder, name: str) -> int:
        line = (folder / "result" / name / "timing.jsonl").read_text().splitlines()[-1]
        return json.loads(line)["tasks"]["asked"]["resumed"]

    def test_results_say_which_grids_were_used_and_runs_do_not_mix(self, folder):
        results = self.evaluate(folder, "mine")
        assert results["grids"] == {"1x4": 2, "4x1": 1}
        assert (results["settings"]["grids"], results["settings"]["fit"]) == ("up-to-4", "pad")
        assert any("2 1x4, 1 4x1" in sentence for sentence in notes(results))
        lines = (folder / "result" / "mine" / "asked" / "predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)["grid"] for line in lines] == ["1x4", "4x1", "1x4"]
        self.evaluate(folder, "mine")
        assert self.resumed(folder, "mine") == 3
        limited = self.evaluate(folder, "mine", "--max-windows", "2")
        assert self.resumed(folder, "mine") == 0
        assert (limited["grids"], limited["settings"]["max_windows"]) == ({"1x2": 2, "2x1": 1}, 2)
        stretched = self.evaluate(folder, "mine", "--fit", "stretch")
        assert "fit" not in stretched["settings"]
        assert self.resumed(folder, "mine") == 0

    def test_one_grid_is_recorded_as_before(self, folder):
        backend = ModelBackend.around(random_model(small_config()).eval(), small_processor(), "x")
        assert not {"grids", "fit", "max_windows"} & set(backend.settings)
        assert backend.image_grids([folder / "0.png"]) == {}

    def test_boxes_are_scored_as_those_of_the_image(self, folder, any_shape, monkeypatch):
        backend = ModelBackend.around(any_shape.model, any_shape.processor, "x", num_workers=0)
        tokenizer = any_shape.processor.tokenizer
        ids = tokenizer.encode_text("<box>(250,0),(500,500)</box>")
        monkeypatch.setattr(backend.engine, "run_greedily", lambda requests: [ids for _ in requests])
        (task,) = select_tasks(str(folder / "asked.jsonl"), "box_overlap", 40)
        form = PromptForm("file", "<img></img> {question}")
        questions = read_questions(folder / "asked.jsonl")
        (batch,) = backend.batches([Request(task, question, form) for question in questions], 3)
        answers = {answer.row: answer.raw for answer in backend.generate_answers(batch)}
        assert answers == {0: "(250,0),(500,500)", 1: "(500,0),(1000,500)", 2: "(250,0),(500,500)"}

    def test_a_limit_for_one_grid_is_refused_and_one_for_an_adapter_too(self, folder, capsys):
        words = [
            "--checkpoint",
            str(CHECKPOINT),
            "--save-name",
            "x",
            "--output-dir",
            str(folder / "none"),
            "--max-windows",
            "2",
        ]
        assert evaluate_vqa.main([*words, "--dataset", str(folder / "asked.jsonl"), "--metric", "anls"]) == 2
        assert "max_windows=2: all images lie on one grid" in capsys.readouterr().err


class TestTraining:
    SHAPES = ("--grids", "up-to-4", "--fit", "pad")
    SAVE = ("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "1", "--report_to", "none")

    @pytest.fixture(scope="class")
    def trained(self, start, tmp_path_factory):
        return train(start, tmp_path_factory.mktemp("shapes") / "run", *self.SHAPES, *self.SAVE)

    def test_a_checkpoint_keeps_the_shapes_that_it_was_trained_with(self, trained):
        config = MonkeyConfig.from_pretrained(trained)
        assert (config.grids, config.fit, config.grid) == ("up-to-4", "pad", (2, 2))
        assert MonkeyProcessor.from_pretrained(trained).image_processor.fit == "pad"

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("--grids", "up-to-4"), "was trained with fit=pad, and this run would go on with fit=stretch"),
            (("--fit", "pad"), "was trained with grids=up-to-4, and this run would go on with grids=None"),
        ],
    )
    def test_a_run_goes_on_only_with_its_own_shapes(self, start, trained, tmp_path, capsys, words, sentence):
        resume = ("--resume_from_checkpoint", str(trained / "checkpoint-1"), "--max_steps", "2")
        assert finetune_main([*words_of(start, tmp_path / "out", *self.SAVE, *resume, *words)]) == 2
        assert sentence in capsys.readouterr().err

    def test_an_adapter_opens_its_base_with_them(self, start, tmp_path):
        base = set_grid(start.base, tmp_path / "base", (2, 2), grids=[(1, 2), (2, 1)], fit="pad")
        own = SimpleNamespace(base=base, data=start.data)
        folder = train(own, tmp_path / "run", "--recipe", "lora-llm", "--max_steps", "1") / "adapter"
        record = json.loads((folder / "base.json").read_text())
        assert (record["grids"], record["fit"]) == ([[1, 2], [2, 1]], "pad")
        config = MonkeyForConditionalGeneration.from_pretrained(folder).config
        assert (config.allowed_grids, config.fit) == (((1, 2), (2, 1)), "pad")

    def test_tokens_of_boxes_on_padded_images_are_not_kept_for_other_runs(self, start, tmp_path):
        own = with_records(start, tmp_path, conversation("<img>0.png</img> Where?", "<box>(0,0),(1000,1000)</box>"))
        for fit, is_kept in (("stretch", True), ("pad", False)):
            processor = MonkeyProcessor.from_pretrained(start.base, fit=fit)
            dataset = ConversationDataset(open_records(own.data), processor, 2048)
            dataset.prepare(check_images=False)
            assert (dataset.tokens.folder is not None) == is_kept
            # 40×30 on a square canvas: three quarters of its height.
            bottom = {"stretch": "1000", "pad": "750"}[fit]
            answer = processor.tokenizer.decode([label for label in dataset[0]["labels"] if label != UNSUPERVISED])
            assert answer.startswith(f"<box>(0,0),(1000,{bottom})</box>")

    def test_a_set_of_which_no_image_fits_a_sample_is_refused(self, start, tmp_path, capsys):
        words = words_of(start, tmp_path / "out", "--grids", "2x2,1x4", "--model_max_length", "19")
        assert finetune_main(words) == 2
        assert "--grids 2x2,1x4 makes at least 20 tokens of an image" in capsys.readouterr().err


class TestSetGrid:
    def test_the_program_writes_both_and_says_what_an_image_costs(self, start, tmp_path, capsys):
        words = [str(start.base), str(tmp_path / "mine"), "--grid", "2,2", "--grids", "up-to-6", "--fit", "pad"]
        assert set_grid_main(words) == 0
        assert "14 grids, 8 to 28 tokens an image" in capsys.readouterr().out
        config = MonkeyConfig.from_pretrained(tmp_path / "mine")
        assert (config.grids, config.fit, config.num_adapters) == ("up-to-6", "pad", 4)

    def test_a_window_gets_more_tokens_whose_queries_start_as_the_bases_at_their_place(self, start, tmp_path, capsys):
        base = MonkeyForConditionalGeneration.from_pretrained(start.base)
        vision, resampler = base.config.vision_config, base.model.visual.resampler
        window, tokens = 2 * vision.window_size, 4 * vision.num_queries
        words = [str(start.base), str(tmp_path / "new"), "--grid", "2,2", "--window", str(window)]
        assert set_grid_main([*words, "--window-tokens", str(tokens + 1)]) == 2
        assert f"--window-tokens {tokens + 1} is no square number from 1 to" in capsys.readouterr().err
        assert set_grid_main([*words, "--window-tokens", str(tokens)]) == 0
        model = MonkeyForConditionalGeneration.from_pretrained(tmp_path / "new")
        grown = model.model.visual.resampler
        assert model.config.image_tokens == 5 * tokens
        assert MonkeyProcessor.from_pretrained(tmp_path / "new").image_tokens == 5 * tokens
        torch.testing.assert_close(grown.query, grow_positions(resampler.query, tokens))
        side, width = round(tokens**0.5), grown.query.shape[1]
        torch.testing.assert_close(grown.pos_embed, sincos_positions(side, width))
        assert model.get_image_features(torch.zeros(1, 3, 2 * window, 2 * window)).shape[1] == 5 * tokens

    def test_one_grid_leaves_files_as_they_were(self, start, tmp_path):
        set_grid(start.base, tmp_path / "same", (2, 2))
        for name in ("config.json", "processor_config.json"):
            assert not {"grids", "fit"} & set(json.loads((tmp_path / "same" / name).read_text()))


class TestStudy:
    def test_arms_about_shapes_have_their_own_grids_and_fits(self, tmp_path, monkeypatch):
        commands = []
        monkeypatch.setattr(resolution_study, "run", lambda _, *words: commands.append([str(word) for word in words]))
        for name in ("train", "evaluate", "write_conversations"):
            monkeypatch.setattr(resolution_study, name, lambda *_, **__: None)
        answers = {"1": Answer(1.0, 9, "a", 1.1), "2": Answer(0.5, 9, "b", 3.0)}
        monkeypatch.setattr(resolution_study, "scores_of", lambda *_: answers)
        words = ["--output", str(tmp_path / "study"), "--quick", "--seeds", "2"]
        assert resolution_study.main(words) == 0
        drawn = [words[words.index("--windows") + 1] for words in commands if "monkey.data.pages" in words]
        assert drawn == ["4", "2"]
        started = [words for words in commands if "scripts/set_grid.py" in words and "/runs/" in words[2]]
        shapes = {
            Path(words[2]).parent.name: [words[words.index(flag) + 1] for flag in ("--grids", "--fit")]
            for words in started
        }
        grids = {
            "one-view": ["1x1", "pad"],
            "own-adapters": ["2x2", "pad"],
            "stretched": ["2x2", "stretch"],
            "any-grid": ["up-to-4", "pad"],
        }
        assert shapes == {f"{arm}-{seed}": shape for arm, shape in grids.items() for seed in range(2)}
        found = (tmp_path / "study" / "differences.md").read_text()
        for part in ("all text", "2:1 and more"):
            assert f"any grid, against 2×2 | {part} |" in found
            assert f"padded, against stretched | {part} |" in found


def test_a_ragged_batch_is_measured_beside_a_fixed_one(monkeypatch):
    small = ["--width", "32", "--layers", "1", "--heads", "2", "--output-width", "128", "--repeats", "1"]
    options = vision.parser().parse_args([*small, "--device", "cpu"])
    monkeypatch.setattr(vision, "RAGGED", ((1, 2), (1, 1)))
    ratios: dict[str, float] = {}
    vision.beside_fixed(options, ratios)
    assert set(ratios) == {"ragged_rate", "ragged_train_rate"}
    assert all(rate > 0 for rate in ratios.values())
