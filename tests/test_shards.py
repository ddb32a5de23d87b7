"""Records that lie with their images in tables and tars: found by a name, read by number or one after the other."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from monkey.data.check import check_data
from monkey.data.dataset import ConversationDataset
from monkey.data.mixture import open_records
from monkey.data.records import BAD
from monkey.data.shards import BrokenShard, find_shards, open_rows, read_shard
from monkey.images import StoredImage, open_image
from tests.made_shards import (
    answers_of,
    llava_row,
    png,
    tar_members,
    turns,
    write_hub_set,
    write_table,
    write_tar,
)
from tests.small_processor import small_processor


def refusal(call) -> str:
    """The one sentence of what a call raises for a user's mistake."""
    with pytest.raises(BAD) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def shards(tmp_path):
    """Thirty records in three shards of each kind."""
    for shard in range(3):
        numbers = range(10 * shard, 10 * shard + 10)
        write_table(tmp_path / f"p-{shard}.parquet", list(map(llava_row, numbers)), 4)
        write_table(tmp_path / f"a-{shard}.arrow", list(map(llava_row, numbers)), 4)
        write_tar(tmp_path / f"t-{shard:03}.tar", tar_members(numbers))
    return tmp_path


KINDS = ("p-{0..2}.parquet", "a-*.arrow", "t-{000..002}.tar")


@pytest.mark.parametrize("pattern", KINDS)
class TestByNumber:
    def test_records_have_their_images(self, shards, pattern):
        records = open_records(shards / pattern)
        assert answers_of(records) == [str(number) for number in range(30)]
        for number in (0, 17, 29):
            (image,) = records[number].images
            assert records[number].form == "LLaVA's form ('image' and <image>)"
            assert isinstance(image, StoredImage)
            assert image == png(number)
            assert open_image(image).getpixel((3, 3)) == (number, 0, 90)
        assert records.source(17).endswith("[7]")
        assert records[17].source == records.source(17)

    def test_a_copy_in_another_process_reads_the_same(self, shards, pattern):
        records = open_records(shards / pattern)
        assert answers_of(pickle.loads(pickle.dumps(records))) == answers_of(records)

    def test_a_shard_is_read_from_any_row_on(self, shards, pattern):
        for path in find_shards(shards / pattern):
            whole = list(read_shard(path))
            for start in (0, 3, 4, 9, 10):
                assert list(read_shard(path, start)) == whole[start:]
            rows = open_rows(path)
            assert [(source, row) for _, source, row in whole] == [rows[number] for number in range(10)]


class TestNames:
    def test_a_folder_is_its_shards_in_order(self, tmp_path):
        for name in ("b", "a"):
            write_tar(tmp_path / f"{name}.tar", tar_members([1]))
        (tmp_path / "sizes.json").write_text("{}")
        assert find_shards(tmp_path) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("t-{000..003}.tar", "no file {folder}/t-003.tar"),
            ("t-{2..1}.tar", "the range {{2..1}} does not count up"),
            ("*.none", "no file {folder}/*.none"),
            (".", "holds .arrow and .parquet and .tar files; name those of one kind by a pattern"),
            ("gone.tar", "{folder}/gone.tar: no such file"),
        ],
    )
    def test_a_name_without_shards_is_refused(self, shards, name, sentence):
        raised = refusal(lambda: open_rows(f"{shards}/{name}"))
        assert sentence.format(folder=shards) in raised.replace("/./", "/")

    def test_a_mixture_may_name_shards_beside_files(self, shards):
        (shards / "own.json").write_text(json.dumps([{"conversations": turns(99, "")}]))
        (shards / "m.yaml").write_text(
            "sets:\n - {name: a, path: 't-{000..001}.tar', weight: 2}\n - {name: b, path: own.json}\n"
        )
        records = open_records(shards / "m.yaml")
        assert (len(records), records[-1].images) == (21, [])
        assert len(records.epoch(0, 1)) == 41


CARD = """---
configs:
- config_name: DocVQA
  data_files: [{split: validation, path: DocVQA/validation-*}]
- config_name: InfographicVQA
  data_files: [{split: validation, path: InfographicVQA/validation-*}]
---
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline hub cache with one set of two configurations, one of which has the set's name."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    files = {
        f"{config}/validation-{shard:05}-of-00002.parquet": [llava_row(100 * first + shard)]
        for first, config in enumerate(("DocVQA", "InfographicVQA"))
        for shard in range(2)
    }
    write_hub_set(tmp_path, "lab/DocVQA", files, CARD)
    write_hub_set(tmp_path, "lab/plain", {"data/train-00000-of-00001.parquet": [llava_row(7)]})
    (write_hub_set(tmp_path, "lab/run", {}) / "run.py").write_text("raise SystemExit('code of a data set was run')")
    return tmp_path


class TestHub:
    def test_a_split_is_read_from_the_offline_cache(self, hub):
        assert answers_of(open_records("hub:lab/DocVQA:validation")) == ["0", "1"]
        assert answers_of(open_records("hub:lab/DocVQA/InfographicVQA:validation")) == ["100", "101"]
        assert answers_of(open_records("hub:lab/plain:train")) == ["7"]

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("hub:lab/other:train", "lab/other is not in the hub's offline cache; fetch it with `hf download"),
            ("hub:lab/plain:test", "there is no split 'test'; there are train"),
            ("hub:lab/DocVQA/No:validation", "BuilderConfig 'No' not found"),
            ("hub:lab/plain", "a set on the hub is named hub:owner/name:split"),
            ("hub:lab/run:train", "the hub's offline cache has no data of lab/run"),
        ],
    )
    def test_what_is_not_there_is_one_sentence(self, hub, name, sentence):
        raised = refusal(lambda: open_records(name))
        assert raised.startswith(name)
        assert sentence in raised

    def test_a_set_that_is_not_offline_is_fetched_file_by_file_or_named_by_address(self, monkeypatch):
        """No network here: the library says what the hub has, and gives what it was asked for."""
        import datasets
        import huggingface_hub

        asked = []
        files = {"train": [f"hf://datasets/lab/far@abc123/data/train-{n}.parquet" for n in range(2)]}
        builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda source: ["default"])
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda source, config: builder)
        monkeypatch.setattr(
            huggingface_hub,
            "hf_hub_download",
            lambda *given, **more: asked.append((given, more)) or f"cache/{given[1]}",
        )
        assert find_shards("hub:lab/far:train", fetch=False) == files["train"]
        assert not asked
        assert find_shards("hub:lab/far:train") == ["cache/data/train-0.parquet", "cache/data/train-1.parquet"]
        assert asked[1] == (("lab/far", "data/train-1.parquet"), {"repo_type": "dataset", "revision": "abc123"})


class TestForms:
    """Rows as `datasets` writes them: null for what is absent, images in lists, names that repeat."""

    def read(self, tmp_path, *rows):
        return open_records(write_table(tmp_path / "x.parquet", rows))

    def test_finevision_with_images_in_a_list(self, tmp_path):
        row = {
            "images": [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}],
            "texts": [{"user": "<image><image> Which?", "assistant": "both", "source": "x"}],
        }
        (record,) = self.read(tmp_path, row)
        assert record.images == [png(1), png(2)]
        assert record.form == "FineVision's form ('texts')"

    def test_two_forms_in_one_file_are_told_row_by_row(self, tmp_path):
        messages = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "nobody"}]
        rows = [
            llava_row(3) | {"messages": None, "images": None},
            {"id": "b", "image": None, "conversations": None, "messages": messages}
            | {"images": [{"bytes": png(4), "path": "same.png"}]},
        ]
        first, second = self.read(tmp_path, *rows)
        assert (first.images, second.images) == ([png(3)], [png(4)])
        assert "LLaVA" in first.form
        assert "LLaMA-Factory" in second.form

    def test_images_of_one_name_and_different_bytes_stay_apart(self, tmp_path):
        images = [{"bytes": png(number), "path": "image.png"} for number in (5, 6)]
        (record,) = self.read(tmp_path, {"images": images, "conversations": turns(1, "<image><image>")})
        assert record.images == [png(5), png(6)]

    def test_a_plain_column_of_bytes(self, tmp_path):
        (record,) = self.read(tmp_path, {"image": png(5), "conversations": turns(1)})
        assert record.images == [png(5)]

    def test_our_own_form_names_its_images_in_the_text(self, tmp_path):
        row = llava_row(1) | {"conversations": turns(1, "<img>1.png</img> ")}
        (record,) = self.read(tmp_path, row)
        assert record.images == [png(1)]

    def test_a_caption_beside_an_image_in_a_tar(self, tmp_path):
        members = [("0.jpg", png(1)), ("0.txt", b"a red square"), ("0.json", b'{"url": "x", "status": "success"}')]
        (record,) = open_records(write_tar(tmp_path / "x.tar", members))
        assert [message.text for message in record.conversation.messages] == [
            "<img></img> Generate the caption in English: ",
            "a red square",
        ]
        assert "img2dataset" in record.form

    def test_several_images_of_a_key_in_the_order_of_the_archive(self, tmp_path):
        record = {"conversations": turns(1, "<image><image>"), "images": ["old/a.jpg", "old/b.jpg"]}
        members = [("k.0.png", png(1)), ("k.1.png", png(2)), ("k.json", json.dumps(record).encode())]
        (record,) = open_records(write_tar(tmp_path / "x.tar", members))
        assert record.images == [png(1), png(2)]

    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            ({"image": {"bytes": None, "path": None}, "conversations": turns(1)}, "neither bytes nor a path"),
            ({"image": {"bytes": None, "path": "x.jpg"}, "conversations": turns(1)}, "no image x.jpg in"),
            ({"image": 5, "conversations": turns(1)}, "'image' must hold the paths of images, found a whole number"),
            ({"image": {"bytes": png(1), "path": ""}, "text": "?"}, "the key 'conversations' is missing"),
            ({"image": {"bytes": png(1), "path": ""}, "conversations": "[]"}, "'conversations' must be a list"),
        ],
    )
    def test_a_bad_row_is_named_with_its_shard(self, tmp_path, row, sentence):
        records = self.read(tmp_path, row)
        raised = refusal(lambda: records[0])
        assert raised.startswith(f"{tmp_path}/x.parquet[0]")
        assert sentence in raised

    @pytest.mark.parametrize(
        ("members", "sentence"),
        [
            ([("a.json", b"{")], "malformed JSON"),
            ([("a.json", b'{"text": "?"}'), ("a.png", png(1))], "the key 'conversations' is missing; there are 'text'"),
            ([("a.png", png(1))], "no record in png; a key has a .json with one"),
            ([("a.pkl", b"cos\nsystem\n"), ("a.png", png(1))], "no record in pkl, png"),
        ],
    )
    def test_a_bad_key_of_a_tar_leaves_the_others(self, tmp_path, members, sentence):
        records = open_records(write_tar(tmp_path / "x.tar", [*members, *tar_members([1])]))
        assert sentence in refusal(lambda: records[0])
        assert answers_of([records[1]]) == ["1"]

    def test_tables_of_other_columns_are_named_with_both(self, tmp_path):
        write_table(tmp_path / "0.parquet", [llava_row(1)])
        write_table(tmp_path / "1.parquet", [llava_row(2) | {"image": "x.png"}])
        sentence = refusal(lambda: open_records(tmp_path))
        assert sentence.startswith(f"{tmp_path}/1.parquet: the column 'image' is of the type string there and of the")
        assert f"in {tmp_path}/0.parquet" in sentence

    def test_a_table_without_rows_is_none_among_others_and_refused_alone(self, tmp_path):
        whole = write_table(tmp_path / "1.parquet", [llava_row(1), llava_row(2)])
        pq.write_table(pq.read_table(whole).slice(0, 0), tmp_path / "0.parquet")
        assert answers_of(open_records(tmp_path)) == ["1", "2"]
        sentence = refusal(lambda: open_records(tmp_path / "0.parquet"))
        assert sentence == f"{tmp_path}/0.parquet: holds no records"


class TestDamage:
    def test_a_tar_that_breaks_off_gives_what_is_before(self, shards):
        path = shards / "t-001.tar"
        whole = path.read_bytes()
        for cut in (300, 600, 5000, 10_240, 20_480):
            path.write_bytes(whole[:cut])
            records = open_records(path)
            good = [record for _, _, record in self.until_broken(path)]
            assert len(records) == len(good) + 1
            assert answers_of(records[number] for number in range(len(good))) == [
                str(10 + number) for number in range(len(good))
            ]
            sentence = refusal(lambda records=records: records[-1])
            assert sentence.startswith(f"{path}: ")
            assert sentence.endswith("fetch it again")

    def until_broken(self, path) -> list:
        given = []
        with pytest.raises(BrokenShard, match=str(path)):
            given.extend(read_shard(str(path)))
        return given

    def test_a_damaged_table_is_one_bad_row_among_the_others(self, shards):
        cut, torn = shards / "p-0.parquet", shards / "p-1.parquet"
        cut.write_bytes(cut.read_bytes()[:1000])
        content = torn.read_bytes()
        middle = len(content) // 2
        torn.write_bytes(content[: middle - 40] + bytes(80) + content[middle + 40 :])
        records = open_records(shards / "p-{0..2}.parquet")
        assert len(records) == 12
        for number, path in ((0, cut), (1, torn)):
            assert refusal(lambda number=number: records[number]).startswith(f"{path}: cannot be read as a table")
        assert answers_of(records[number] for number in range(2, 12)) == [str(number) for number in range(20, 30)]

    def test_skipping_leaves_the_broken_end_out(self, shards):
        path = shards / "t-000.tar"
        path.write_bytes(path.read_bytes()[:10_240])
        dataset = ConversationDataset(open_records(shards / "t-*.tar"), small_processor(), 256, skip_bad=True)
        dataset.prepare(check_images=True)
        dataset.leave_out(dataset.bad)
        assert len(dataset) == 24
        assert [f"{path}: breaks off" in sentence for sentence in dataset.left_out] == [True]


def test_images_of_training_tables_that_leak_from_tables_of_questions_are_found(tmp_path):
    train = write_table(tmp_path / "train.parquet", [llava_row(1), llava_row(2)])
    asked = {"image": {"bytes": png(2), "path": "q.png"}, "question": "?", "answer": "x", "question_id": 1}
    report = check_data(train, evaluation=[write_table(tmp_path / "asked.parquet", [asked])], workers=0)
    (leak,) = report.of_kind("image also in evaluation")
    assert leak.source == f"{train}[1]"


class TestLimits:
    def test_bytes_in_a_row_have_the_limits_of_files(self, tmp_path):
        stored = StoredImage(png(1, (300, 300)), "x in y[0]")
        for limits, sentence in (
            ({"max_bytes": 100}, "bytes, more than the 100 allowed"),
            ({"max_pixels": 1000}, "pix"),
        ):
            raised = refusal(lambda limits=limits: open_image(stored, **limits))
            assert raised.startswith("x in y[0] has ")
            assert sentence in raised

    def test_training_and_check_find_a_broken_image(self, tmp_path):
        broken = llava_row(1)
        broken["image"] = {"bytes": png(1, (90, 90))[:100], "path": "b.png"}
        path = write_table(tmp_path / "x.parquet", [broken, llava_row(2), llava_row(2)])
        report = check_data(path, workers=0)
        assert [line["kind"] for line in report.summary()] == ["broken image", "duplicate"]
        assert report.of_kind("broken image")[0].source == f"{path}[0]"
        dataset = ConversationDataset(open_records(path), small_processor(), 256)
        assert f"{path}[0]: b.png in {path}[0] is damaged" in refusal(lambda: dataset[0])

    def test_processes_check_images_in_rows_as_one_does(self, tmp_path):
        broken = llava_row(1) | {"image": {"bytes": png(1, (90, 90))[:100], "path": "b.png"}}
        path = write_table(tmp_path / "x.parquet", [broken, *map(llava_row, range(2, 6))])
        assert check_data(path, workers=2) == check_data(path, workers=0)

    def test_records_about_one_image_are_known_as_such(self, tmp_path):
        rows = [
            llava_row(1) | {"image": {"bytes": png(shade), "path": f"{n}.png"}} for n, shade in enumerate((5, 5, 6))
        ]
        dataset = ConversationDataset(
            open_records(write_table(tmp_path / "x.parquet", rows)), small_processor(), 256, sharing="branches"
        )
        dataset.prepare(check_images=True)
        first, second, third = dataset.tokens.sizes.prefix.tolist()
        assert first == second != third


def test_an_image_in_a_row_makes_the_sample_of_the_file(tmp_path):
    (tmp_path / "9.png").write_bytes(png(9))
    (tmp_path / "own.json").write_text(json.dumps([{"image": "9.png", "conversations": turns(9)}]))
    write_table(tmp_path / "x.parquet", [llava_row(9)])
    one, other = (
        ConversationDataset(open_records(tmp_path / name), small_processor(), 256)[0]
        for name in ("own.json", "x.parquet")
    )
    assert one["input_ids"] == other["input_ids"]
    assert (one["pixel_values"] == other["pixel_values"]).all()


def test_a_tar_with_long_names_and_attributes_reads_the_same(tmp_path):
    """What other archivers write before a file: GNU's long names, PAX records."""
    folder = "a-folder-whose-name-is-long/" * 6
    members = [(folder + name, content) for name, content in tar_members(range(3))]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", format=kind) as archive:
            archive.addfile(directory := tarfile.TarInfo("a-folder"))
            assert directory.isfile()
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        records = open_records(path)
        assert answers_of(records[number] for number in (1, 2, 3)) == ["0", "1", "2"]
        assert [record.images for record in map(records.__getitem__, (1, 2, 3))] == [[png(n)] for n in range(3)]
        assert [row for _, _, row in read_shard(str(path), 1)] == [records.files[0].rows[n][1] for n in (1, 2, 3)]
