"""Files of settings: what nests too deeply, repeats itself or is malformed is one sentence, in every program."""

from __future__ import annotations

import pytest

from eval.tasks import read_task
from monkey.data.mixture import read_mixture
from monkey.describe.pipeline import read_configuration
from monkey.files import MAX_BYTES, MAX_DEPTH, parse_settings, read_settings_file
from monkey.training.arguments import parse_flags
from scripts import learn_letters, plan_memory
from tests.small_processor import refusal

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12)]
)
BAD = {
    "brackets.yaml": "[" * 5000,
    "closed.yaml": "a: " + "[" * 200 + "]" * 200,
    "laughs.yaml": LAUGHS,
    "itself.yaml": "a: &a [*a]",
    "date.yaml": "a: 2020-13-45",
    "tag.yaml": "a: !!bool perhaps\nb: !!timestamp now",
    "digits.yaml": "a: " + "9" * 9000,
    "nothing.yaml": "",
    "nul.yaml": "a: \x00",
    "brackets.json": "[" * 100_000,
    "objects.json": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nan.json": '{"a": NaN}',
    "digits.json": '{"a": ' + "9" * 9000 + "}",
    "deep.toml": "a = " + "[" * 5000,
}
READERS = {
    "describe --config": read_configuration,
    "finetune --config": lambda path: parse_flags(["--config", str(path)]),
    "check_data, finetune --data_path": read_mixture,
    "eval --dataset": read_task,
    "plan_memory --config": lambda path: plan_memory._training_flags(str(path), []),
    "a checkpoint's JSON": read_settings_file,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    for name, text in BAD.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (folder / "large.yaml").write_bytes(b" " * (MAX_BYTES["YAML"] + 1))
    return folder


@pytest.mark.parametrize("name", [*BAD, "latin.yaml", "large.yaml"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_bad_file_is_one_sentence_in_every_program(folder, reader, name):
    assert name in refusal(lambda: reader(folder / name))


def test_a_program_ends_with_status_two(folder, tmp_path, capsys):
    words = [str(tmp_path), str(tmp_path / "target"), "--config", str(folder / "brackets.yaml")]
    assert learn_letters.main(words) == 2
    assert "brackets.yaml nests objects and lists" in capsys.readouterr().err


def test_what_people_write_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &base {a: 1}\nother: {<<: *base, b: [2, 2.5, true, null, x]}\n")
    assert read_settings_file(tmp_path / "a.yaml")["other"] == {"a": 1, "b": [2, 2.5, True, None, "x"]}
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1e-5}')
    assert read_settings_file(tmp_path / "a.json") == {"a": 1e-5}
    deep = '{"a":' * (MAX_DEPTH - 1) + "1" + "}" * (MAX_DEPTH - 1)
    assert list(parse_settings(deep.encode(), "JSON", "it")) == ["a"]
    assert refusal(lambda: parse_settings(f'{{"a": {deep}}}'.encode(), "JSON", "it")).startswith("it nests objects")
    assert refusal(lambda: parse_settings(b'{\n"a" 1}', "JSON", "--zero it")).startswith("--zero it:2: malformed JSON")
    assert "latin.yaml:2: not UTF-8 text (byte 0xe9)" in refusal(lambda: read_latin(tmp_path))


def read_latin(folder):
    (folder / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    return read_settings_file(folder / "latin.yaml")
