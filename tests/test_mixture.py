"""Several files as one sequence of records: what a mixture may say, how often sets are visited, what is left out."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from monkey.data.mixture import open_records, read_mixture
from tests.small_processor import refusal

PAPER_MIXTURE = Path(__file__).resolve().parent.parent / "configs" / "data" / "paper_mixture.yaml"


def rows(name: str, count: int) -> list[dict]:
    return [
        {"conversations": [{"from": "user", "value": f"{name} {n}?"}, {"from": "assistant", "value": str(n)}]}
        for n in range(count)
    ]


def bad_row() -> dict:
    return {"conversations": [{"from": "user", "value": "?"}, {"from": "assistant", "value": " "}]}


def write(path: Path, content: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(content, indent=1))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "a.json", rows("a", 10))
    write(tmp_path / "sets" / "b.jsonl", rows("b", 6))
    return tmp_path


def mixture(folder: Path, *sets: str, name: str = "mixture.yaml") -> Path:
    path = folder / name
    path.write_text("sets:\n" + "".join(f"  - {one}\n" for one in sets))
    return path


def files_of(records) -> list[tuple]:
    return [(file.path, file.start, file.stop, file.weight) for file in records.files]


class TestSequence:
    def test_files_follow_each_other(self, folder):
        paths = [folder / "sets" / "b.jsonl", folder / "a.json"]
        records = open_records(paths)
        assert list(records) == [*open_records(paths[0]), *open_records(paths[1])]
        assert files_of(records) == [(paths[0], 0, 6, 1.0), (paths[1], 6, 16, 1.0)]
        assert (len(records), records[-1].source, records.source(5)) == (16, f"{paths[1]}[9]", f"{paths[0]}:6")
        for index in (16, -17):
            with pytest.raises(IndexError, match=f"no record {index}; there are 16"):
                records[index]

    def test_a_row_is_validated_when_it_is_asked_for(self, folder):
        path = write(folder / "c.json", [*rows("c", 2), bad_row()])
        records = open_records(path)
        assert records[1].conversation.messages[1].text == "1"
        with pytest.raises(ValueError) as caught:
            records[2]
        assert str(caught.value) == f"{path}[2], turn 1: the answer is empty"

    def test_records_may_be_left_out_by_their_numbers(self, folder):
        records = open_records([folder / "a.json", folder / "sets" / "b.jsonl"])
        records.leave_out([0, 9, 15])
        records.leave_out([0])
        kept = [f"{folder / 'a.json'}[{n}]" for n in range(2, 9)] + [
            f"{folder / 'sets' / 'b.jsonl'}:{n}" for n in range(1, 6)
        ]
        assert [record.source for record in records] == kept

    def test_a_pickled_sequence_is_the_same(self, folder):
        records = open_records([folder / "a.json", folder / "sets" / "b.jsonl"], weights=[1.5, 2])
        records.leave_out([3])
        records[0]
        copied = pickle.loads(pickle.dumps(records))
        assert list(copied) == list(records)
        assert (copied.epoch(2, seed=5) == records.epoch(2, seed=5)).all()

    @pytest.mark.parametrize(
        ("paths", "weights", "message"),
        [
            (["a.json", "a.json"], None, "a.json is given twice; give it once, with a weight"),
            (["a.json"], [1, 2], "2 weights for 1 files"),
            (["a.json"], [0], "a weight must be a number above 0, found 0"),
            (["a.json"], [float("nan")], "a weight must be a number above 0, found nan"),
            ([], None, "no file of records was given"),
        ],
    )
    def test_impossible_lists_are_refused(self, folder, paths, weights, message):
        assert message in refusal(lambda: open_records([folder / path for path in paths], weights=weights))


class TestEpochs:
    def counts(self, records, epoch: int, seed: int = 0) -> Counter:
        return Counter(records.epoch(epoch, seed).tolist())

    def test_an_epoch_is_every_record_once_and_as_often_as_whole_weights_say(self, folder):
        paths = [folder / "a.json", folder / "sets" / "b.jsonl"]
        order = open_records(paths).epoch(0, seed=1)
        assert order.dtype == np.int64
        assert sorted(order) == list(range(16)) != order.tolist()
        records = open_records(paths, weights=[3, 1])
        assert self.counts(records, 0) == {**dict.fromkeys(range(10), 3), **dict.fromkeys(range(10, 16), 1)}

    def test_order_depends_on_seed_and_epoch_and_on_nothing_else(self, folder):
        orders = {}
        for seed in (0, 1):
            for epoch in (0, 1):
                records = open_records(folder / "a.json")
                orders[seed, epoch] = tuple(records.epoch(epoch, seed))
                records.epoch(7, seed)
                assert tuple(records.epoch(epoch, seed)) == orders[seed, epoch]
        assert len(set(orders.values())) == 4

    def test_order_is_the_one_of_every_machine_and_version(self, folder):
        records = open_records(folder / "a.json", weights=[1.5])
        assert records.epoch(3, seed=42).tolist() == [2, 3, 5, 1, 9, 5, 6, 0, 3, 8, 9, 7, 8, 4, 7]

    @pytest.mark.parametrize(("weight", "part"), [(0.3, 3), (2.3, 3), (0.25, 2), (0.99, 10), (0.001, 1)])
    def test_parts_go_round_so_that_all_rows_are_seen_equally_often(self, folder, weight, part):
        records = open_records(folder / "a.json", weights=[weight])
        whole = int(weight)
        seen = Counter()
        for epoch in range(10):
            counts = self.counts(records, epoch)
            assert sum(counts.values()) == 10 * whole + part
            assert set(counts.values()) <= {whole, whole + 1}
            seen += counts
            if whole == 0:
                assert max(seen.values()) - min(seen[n] for n in range(10)) <= 1
        assert set(seen.values()) == {10 * whole + part}


class TestMixtureFiles:
    def test_sets_with_weights_and_roots_from_the_files_own_folder(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        (folder / "pictures").mkdir()
        (folder / "pictures" / "x.png").write_bytes(b"")
        content = [{"conversations": [{"from": "user", "value": "<img>x.png</img>"}, {"from": "gpt", "value": "x"}]}]
        write(folder / "c.json", content)
        path = mixture(
            folder / "sets",
            "{name: a, path: ../a.json, weight: 2}",
            "{name: b, path: b.jsonl, count: 6, counted: measured}",
            "{name: c, path: ../c.json, image_root: ../pictures}",
        )
        records = open_records([path, write(folder / "d.json", rows("d", 1))], weights=[1.5, 1])
        assert files_of(records) == [
            (folder / "a.json", 0, 10, 3.0),
            (folder / "sets" / "b.jsonl", 10, 16, 1.5),
            (folder / "c.json", 16, 17, 1.5),
            (folder / "d.json", 17, 18, 1.0),
        ]
        assert records[16].images == [folder / "pictures" / "x.png"]
        assert records.notices == ()

    def test_a_measured_count_that_disagrees_is_an_error_and_a_recalled_one_a_notice(self, folder):
        for counted in (", counted: measured", ""):
            path = mixture(folder, f"{{name: a, path: a.json, count: 11{counted}}}")
            sentence = refusal(lambda path=path: open_records(path))
            assert "10 rows, and the mixture says that 11 were measured for a" in sentence
        path = mixture(folder, "{name: a, path: a.json, count: 11, counted: recalled}")
        (notice,) = open_records(path).notices
        assert notice.endswith("a.json: 10 rows, where the mixture recalls 11 for a")

    BAD: ClassVar = {
        "unknown key": ("{name: a, path: a.json, wieght: 2}", "unknown key 'wieght'; known are name, path, weight"),
        "no path": ("{name: a}", "set 1: the key 'path' is missing"),
        "no object": ("a.json", "set 1: expected an object with 'name' and 'path', found 'a.json'"),
        "weight no number": ("{name: a, path: a.json, weight: much}", "'weight' must be a number, found 'much'"),
        "weight zero": ("{name: a, path: a.json, weight: 0}", "(a): a weight must be a number above 0, found 0"),
        "weight infinite": ("{name: a, path: a.json, weight: .inf}", "a weight must be a number above 0, found inf"),
        "count": ("{name: a, path: a.json, count: 1.5}", "'count' must be a whole number above 0, found 1.5"),
        "counted": ("{name: a, path: a.json, count: 1, counted: guessed}", "'counted' must be measured or recalled"),
        "counted alone": ("{name: a, path: a.json, counted: recalled}", "there is no 'count'"),
        "ending": ("{name: a, path: a.csv}", "'path' must end in .json or .jsonl, found a.csv"),
        "a mixture in it": ("{name: a, path: b.yaml}", "'path' must end in .json or .jsonl"),
        "empty name": ("{name: '', path: a.json}", "'name' must be a text"),
    }

    @pytest.mark.parametrize(("entry", "message"), BAD.values(), ids=BAD)
    def test_what_a_set_cannot_say_is_named_with_the_set(self, folder, entry, message):
        path = mixture(folder, entry)
        sentence = refusal(lambda: open_records(path))
        assert sentence.startswith(f"{path}, set 1")
        assert message in sentence

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("sets: []\n", "a mixture is an object with a list under 'sets'"),
            ("", "mixture.yaml holds nothing, and an object of keys"),
            ("- a.json\n", "mixture.yaml holds a list, and an object of keys"),
            ("sets:\n  - {name: a, path: a.json}\nseed: 1\n", "unknown key 'seed'; known are sets"),
            ("sets:\n  - {name: a, path: a.json\n", "mixture.yaml:3: malformed YAML: "),
            ("sets:\n  - {name: a, path: a.json}\n  - {name: a, path: b.json}\n", "sets 1 and 2 are both named 'a'"),
        ],
    )
    def test_a_file_that_is_no_mixture_is_refused(self, folder, content, message):
        path = folder / "mixture.yaml"
        path.write_text(content)
        assert message in refusal(lambda: open_records(path))

    def test_a_missing_mixture_and_missing_sets(self, folder):
        assert refusal(lambda: open_records(folder / "no.yaml"), FileNotFoundError).endswith("no.yaml: no such file")
        path = mixture(folder, "{name: a, path: a.json}", "{name: x, path: x.json}", "{name: y, path: y.json}")
        assert refusal(lambda: open_records(path), FileNotFoundError) == (
            f"{path}: no file {folder / 'x.json'} for the set x; 2 of the mixture's 3 files are missing"
        )


class TestPaperMixture:
    def test_nineteen_sets_of_1441_thousand_recalled_rows(self):
        sets = read_mixture(PAPER_MIXTURE)
        assert len(sets) == 19
        assert sum(one.count for one in sets) == 1_441_000
        assert {(one.counted, one.weight) for one in sets} == {("recalled", 1.0)}
        data = PAPER_MIXTURE.parent.parent.parent / "data"
        assert all(one.path.is_relative_to(data) for one in sets)

    def test_without_the_data_one_sentence_names_the_first_missing_file(self, tmp_path):
        path = tmp_path / "configs" / "data" / "paper_mixture.yaml"
        path.parent.mkdir(parents=True)
        path.write_bytes(PAPER_MIXTURE.read_bytes())
        assert refusal(lambda: open_records(path), FileNotFoundError) == (
            f"{path}: no file {tmp_path}/data/detailed_caption/train.json for the set detailed_caption; 19 of the "
            "mixture's 19 files are missing"
        )
