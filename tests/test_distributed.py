"""Two processes on the CPU (gloo) learn what one does: DDP, ZeRO-2, ZeRO-3, and ZeRO-3 with everything on the host.

One launch makes all runs of DDP, another all of DeepSpeed (`tests/distributed_run.py`); tests look at what they left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from monkey.data.mixture import open_records
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import parse_flags
from monkey.training.finetune import batch_plan, finetune
from tests import distributed_run, forked
from tests.outside_doors import free_port
from tests.timm_start import with_timm
from tests.training_start import dataset_of, library_start, log, losses, train, with_records, words_of

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300
"""Seconds after which a launch counts as hanging and is killed with all its processes."""

ZERO_3 = {
    "stage": 3,
    "stage3_gather_16bit_weights_on_model_save": True,
    # Else tensors as small as these would not be sharded.
    "stage3_param_persistence_threshold": 0,
}
ON_HOST = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
ZERO = {"zero2": {"stage": 2}, "zero3": ZERO_3, "zero3-offload": {**ZERO_3, **ON_HOST}}
"""Engine -> its `zero_optimization`; DDP has none."""

EXACT = ["--vision_adapter_dropout", "0", "--lora_dropout", "0"]
"""Dropout draws in each process apart."""
ROUNDED = {"rel": 2e-6}
"""Losses differ by the order of a sum over two processes: a few units of fp32's last place (6e-8), for a few steps."""

# Adam divides by the root of a gradient's square, so where the gradient is nothing but rounding (a key's bias moves no
# softmax) its step would have the rounding's sign; a larger epsilon makes such steps small.
CALM = ["--adam_epsilon", "1e-3"]

# Each part has a rate and a decay of its own, which a sharded optimiser must keep too.
PARTS = ["--vision_adapter_learning_rate", "2e-3", "--weight_decay", "0.1", "--resampler_weight_decay", "0.5"]
PADDED = [*EXACT, *CALM, *PARTS, "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "3"]
PACKED = [
    *PADDED, "--recipe", "lora-llm", "--gradient_checkpointing", "True",
    "--packing", "True", "--pack_tokens", "140", "--model_max_length", "140",
]  # fmt: skip
TIMM = [*EXACT, *CALM, "--max_steps", "4", "--recipe", "everything", "--gradient_checkpointing", "True"]
SAME = {"padded", "packed", "published", "lonely", "spoiled", "timm"}
"""Runs that two processes end as one does."""
SLOW = pytest.mark.slow
LONELY = [*EXACT, *CALM, "--weight_decay", "0.1", "--num_train_epochs", "2", "--max_steps", "-1"]


def batches(processes: int, size: int, accumulation: int) -> list[str]:
    """Flags with which all processes together see as many samples a step as one."""
    return [
        *("--per_device_train_batch_size", str(size // processes)),
        *("--gradient_accumulation_steps", str(accumulation)),
    ]


def rows(processes: int) -> list[str]:
    return ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", str(4 // processes)]


@pytest.fixture(scope="module")
def starts(start, tmp_path_factory) -> SimpleNamespace:
    """Records as they are; mostly without picture; and a checkpoint that cannot read one of the records."""
    few = with_records(start, tmp_path_factory.mktemp("few"), *start.records[:3], *start.records[10:], *_texts(4))
    held_out = with_records(start, tmp_path_factory.mktemp("held-out"), start.records[4])
    spoiled = with_records(start, tmp_path_factory.mktemp("spoiled"), *start.records)
    (spoiled.folder / "5.png").write_bytes(b"")
    cut = spoiled.folder / "3.png"  # which has a sound header and is met on the way
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    broken = _broken(start, tmp_path_factory)
    timm = with_timm(start, tmp_path_factory.mktemp("timm") / "base")
    library = library_start(start, tmp_path_factory.mktemp("library"))
    bases = {"timm": timm, "library": library}
    return SimpleNamespace(whole=start, few=few, held_out=held_out, spoiled=spoiled, broken=broken, **bases)


def _texts(count: int) -> list[dict]:
    return [
        {
            "conversations": [
                {"from": "user", "value": f"Count to {number}. Answer: "},
                {"from": "assistant", "value": str(number)},
            ]
        }
        for number in range(count)
    ]


def _broken(start, tmp_path_factory) -> SimpleNamespace:
    """One token that only the last record holds has an embedding of NaN."""
    samples = [dataset_of(start)[index]["input_ids"] for index in range(12)]
    only = next(token for token in samples[11] if all(token not in sample for sample in samples[:11]))
    model = MonkeyForConditionalGeneration.from_pretrained(start.base)
    with torch.no_grad():
        model.get_input_embeddings().weight[only] = torch.nan
    folder = tmp_path_factory.mktemp("broken")
    model.save_pretrained(folder)
    MonkeyProcessor.from_pretrained(start.base).save_pretrained(folder)
    # A seed with which the record comes after the first step and not in the last.
    place = {seed: list(open_records(start.data).epoch(0, seed)).index(11) for seed in range(50)}
    seed = next(seed for seed, position in place.items() if 4 <= position < 8)
    return SimpleNamespace(base=folder, data=start.data, seed=seed)


def runs(starts, output: Path, processes: int) -> dict[str, list[str]]:
    """Name of each run -> its words, for one process or several."""
    held_out = ["--eval_data_path", str(starts.held_out.data)]
    padded = [*PADDED, *batches(processes, 4, 2)]
    packed = [*PACKED, *rows(processes)]
    broken = ["--seed", str(starts.broken.seed), "--max_steps", "6", *batches(processes, 2, 1)]
    words = {
        "padded": words_of(starts.whole, output / "padded", *padded, *held_out),
        "packed": words_of(starts.whole, output / "packed", *packed),
        "published": words_of(starts.whole, output / "published", *packed, "--published", "True"),
        "lonely": words_of(starts.few, output / "lonely", *LONELY, *batches(processes, 2, 2)),
        "spoiled": words_of(starts.spoiled, output / "spoiled", *packed, "--skip_bad_rows", "True"),
        "timm": words_of(starts.timm, output / "timm", *TIMM, *batches(processes, 4, 2)),
    }
    if processes > 1:
        for name, flags in (("padded", padded), ("packed", packed)):
            saved = ["--resume_from_checkpoint", str(output / name / "checkpoint-3")]
            words[f"{name} resumed"] = words_of(starts.whole, output / f"{name} resumed", *flags, *saved)
        words["padded again"] = [*words["padded"], "--resume_from_checkpoint", "True"]
        lazy = ["--lazy_preprocess", "True", "--max_steps", "9", *batches(processes, 2, 1)]
        words["spoiled stops"] = words_of(starts.spoiled, output / "spoiled stops", *lazy)
        words["broken"] = words_of(starts.broken, output / "broken", *broken)
    return words


@pytest.fixture(scope="module")
def alone(starts, tmp_path_factory) -> Path:
    """The folder of what one process made."""
    output = tmp_path_factory.mktemp("alone")
    for words in runs(starts, output, 1).values():
        finetune(parse_flags([*words, "--report_to", "none"]))
    return output


OF_ZERO = ("padded", "packed", "lonely", "timm", "broken")
"""Runs that how weights are sharded can change; the others are of DDP alone."""


def sharded(starts, engine: str, folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The runs of those names with an engine of `ZERO`, in a folder of its name."""
    (folder / engine).mkdir()
    config = {
        "zero_optimization": ZERO[engine],
        "zero_force_ds_cpu_optimizer": False,
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto"),
        **dict.fromkeys(("gradient_accumulation_steps", "gradient_clipping"), "auto"),
    }
    file = folder / f"{engine}.json"
    file.write_text(json.dumps(config))
    words = runs(starts, folder / engine, 2)
    return {f"{engine} {name}": [*words[name], "--deepspeed", str(file)] for name in names}


def launch(words: dict[str, list[str]], folder: Path) -> SimpleNamespace:
    """Two processes make the runs; `ended` has each run's last sentence of each process."""
    jobs, said = folder / "jobs.json", folder / "said.txt"
    jobs.write_text(json.dumps([[*run, "--report_to", "none"] for run in words.values()]))
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places = [{**_environment(), **together, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    processes = [forked.start(distributed_run.main, jobs, cwd=ROOT, env=place, stdout=said) for place in places]
    for process in processes:
        code, text = finished(process, said)
        assert code == 0, text[-6000:]
    ended = [json.loads(jobs.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]
    return SimpleNamespace(folder=folder, ended=dict(zip(words, zip(*ended, strict=True), strict=True)))


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**inherited, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


def finished(process: subprocess.Popen | forked.Forked, output: Path) -> tuple[int, str]:
    """Exit status and what was said; a launch that hangs is killed, with all that it started."""
    try:
        return process.wait(TIMEOUT), output.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(f"two processes hang: {output.read_text()[-6000:]}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


SHIPPED = (("full-llm", "zero2"), ("full-llm", "zero3_offload"), ("lora-llm", "zero3"))
"""Recipes with the sharding that their launchers, or a comment in them, start them with."""


@pytest.fixture(scope="module")
def zero(starts, tmp_path_factory) -> SimpleNamespace:
    """What two processes of DeepSpeed made, by engine and run; and of each shipped pair one step, then another."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero")
    words = sharded(starts, "zero3-offload", folder, ("padded", "padded resumed"))
    words |= sharded(starts, "zero2", folder, (*OF_ZERO, "padded resumed"))
    words |= sharded(starts, "zero3", folder, (*OF_ZERO, "packed resumed"))
    library = words_of(starts.library, folder / "zero3" / "library", *PACKED, *rows(2))
    words["zero3 library"] = [*library, "--deepspeed", str(folder / "zero3.json")]
    for recipe, name in SHIPPED:
        given = ["--config", str(ROOT / f"configs/training/{recipe}.yaml"), *EXACT, *batches(1, 1, 1)]
        given += ["--deepspeed", str(ROOT / f"configs/deepspeed/{name}.json"), "--dataloader_num_workers", "0"]
        given += ["--save_strategy", "steps", "--save_steps", "1"]
        for steps, more in (("1", []), ("2", ["--resume_from_checkpoint", "True"])):
            output = folder / f"shipped-{name}"
            words[f"{name} {steps}"] = words_of(starts.whole, output, *given, "--max_steps", steps, *more)
    return launch(words, folder)


@pytest.fixture(scope="module")
def ddp(starts, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("ddp")
    return launch(runs(starts, folder, 2), folder)


@pytest.fixture(params=["ddp", pytest.param("zero2", marks=SLOW), pytest.param("zero3", marks=SLOW)])
def together(request) -> SimpleNamespace:
    """The folder of what two processes made with an engine, and how its runs ended."""
    if request.param == "ddp":
        return request.getfixturevalue("ddp")
    made, engine = request.getfixturevalue("zero"), request.param
    ended = {name.removeprefix(f"{engine} "): how for name, how in made.ended.items() if name.startswith(f"{engine} ")}
    return SimpleNamespace(folder=made.folder / engine, ended=ended)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return MonkeyForConditionalGeneration.from_pretrained(folder).state_dict()


def logged(folder: Path, name: str) -> list[float]:
    return [entry[name] for entry in log(folder) if name in entry]


def test_losses_norms_and_weights_are_those_of_one_process(alone, together):
    """And the checkpoint is an ordinary one."""
    for name in SAME & together.ended.keys():
        assert together.ended[name] == (None, None), name
        one, two = alone / name, together.folder / name
        assert len(losses(one)) >= 4
        assert losses(two) == pytest.approx(losses(one), **ROUNDED), name
        # A norm sums the squares of all gradients, in an order that sharding changes.
        assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-5), name
        expected, found = state(one), state(two)
        assert expected.keys() == found.keys()
        for tensor in expected:
            # Four steps of rate 1e-3 over gradients that differ by rounding.
            torch.testing.assert_close(found[tensor], expected[tensor], atol=2e-6, rtol=0, msg=f"{name}: {tensor}")


def test_the_held_out_loss_is_that_of_one_process_though_the_other_has_no_record(alone, together):
    expected = logged(alone / "padded", "eval_loss")
    assert logged(together.folder / "padded", "eval_loss") == pytest.approx(expected, **ROUNDED)


def test_a_resumed_run_ends_as_the_straight_one(together):
    names = [name for name in together.ended if name.endswith(" resumed")]
    assert names
    for name in names:
        assert together.ended[name] == (None, None), name
        straight, resumed = together.folder / name.removesuffix(" resumed"), together.folder / name
        assert losses(resumed) == losses(straight), name
        before, after = state(straight), state(resumed)
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before), name


def test_a_nan_on_one_process_stops_both_with_one_message_and_the_state_before_it(together):
    first, second = together.ended["broken"]
    assert first == second
    assert "the loss is nan" in first
    assert "train.json[11]" in first
    assert first.count("train.json[") == 2
    (saved,) = (together.folder / "broken").glob("checkpoint-*")
    assert str(saved) in first
    assert MonkeyForConditionalGeneration.from_pretrained(saved).config.grid == (2, 2)


def test_both_leave_out_the_same_bad_records_and_list_them(alone, ddp):
    listed = [json.loads((folder / "spoiled" / "run.json").read_text()) for folder in (alone, ddp.folder)]
    assert [record["data"]["samples"]["train"] for record in listed] == [11, 11]
    assert listed[0]["left_out"] == listed[1]["left_out"]
    assert ["train.json[5]" in sentence for sentence in listed[0]["left_out"]] == [True, False]
    assert ["train.json[3]" in sentence for sentence in listed[0]["left_out"]] == [False, True]


def test_a_bad_record_of_one_process_stops_both_with_one_message(ddp):
    first, second = ddp.ended["spoiled stops"]
    assert first == second
    assert "leave such records out with --skip_bad_rows True" in first


def test_a_finished_run_that_is_resumed_stays_as_it_is(ddp):
    assert ddp.ended["padded again"] == (None, None)
    ends = [ddp.folder / name / "run.json" for name in ("padded", "padded resumed")]
    assert ends[0].stat().st_mtime < ends[1].stat().st_mtime


def test_the_lonely_run_has_what_it_is_for(starts):
    """Lest another draw of the order make it a run like the others."""
    flags = parse_flags(words_of(starts.few, Path("out"), *LONELY, *batches(1, 2, 2)))
    records = open_records(starts.few.data)
    plan = batch_plan(flags, SimpleNamespace(records=records))
    passes = [[[bool(records[index].images) for index in batch] for batch in plan.epoch(number)] for number in (0, 1)]
    together = [batch for batches in passes for batch in batches]
    assert any(batch[0] != batch[-1] for batch in together), "a picture on one process only"
    assert any(len(batch) == 1 for batch in together), "a record on one process only"
    steps = [batches[first : first + 2] for batches in passes for first in range(0, len(batches), 2)]
    assert any(not any(any(batch) for batch in step) for step in steps[1:]), "a whole step without a picture"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "name"), SHIPPED)
def test_a_shipped_config_trains_and_resumes_with_its_shipped_sharding(starts, zero, tmp_path, recipe, name):
    assert zero.ended[f"{name} 1"] == zero.ended[f"{name} 2"] == (None, None)
    flags = ["--config", str(ROOT / f"configs/training/{recipe}.yaml"), *EXACT, *batches(1, 1, 2), "--bf16", "False"]
    alone = train(starts.whole, tmp_path / "alone", *flags, "--max_steps", "1", "--report_to", "none")
    assert len(losses(zero.folder / f"shipped-{name}")) == 2
    # bf16 keeps 8 bits of each number.
    assert losses(zero.folder / f"shipped-{name}")[0] == pytest.approx(losses(alone)[0], rel=1e-2)
    assert MonkeyForConditionalGeneration.from_pretrained(zero.folder / f"shipped-{name}").config.grid == (2, 2)


@pytest.mark.slow
def test_weights_and_optimiser_on_the_host_change_nothing(alone, zero):
    for name in ("padded", "padded resumed"):
        assert zero.ended[f"zero3-offload {name}"] == (None, None)
        assert losses(zero.folder / "zero3-offload" / name) == pytest.approx(losses(alone / "padded"), **ROUNDED)


@pytest.mark.slow
def test_a_decoder_of_the_library_learns_sharded_what_it_learns_in_one_process(starts, zero, tmp_path):
    """Its head is tied to its embeddings, which ZeRO-3 gathers for both."""
    assert zero.ended["zero3 library"] == (None, None)
    alone = train(starts.library, tmp_path / "alone", *PACKED, *rows(1), "--report_to", "none")
    assert losses(zero.folder / "zero3" / "library") == pytest.approx(losses(alone), **ROUNDED)
    expected, found = state(alone), state(zero.folder / "zero3" / "library")
    for tensor in expected:
        torch.testing.assert_close(found[tensor], expected[tensor], atol=2e-6, rtol=0, msg=tensor)


@pytest.mark.slow
def test_a_schedulers_signal_to_the_launcher_leaves_a_checkpoint_that_continues(start, tmp_path):
    output, said = tmp_path / "out", tmp_path / "said.txt"
    words = words_of(start, output, "--max_steps", "1000000", "--report_to", "none")
    with said.open("w") as stream:
        process = subprocess.Popen(
            ["bash", str(ROOT / "scripts/launch.sh"), *words],
            cwd=ROOT, env={**_environment(), "PYTHON": sys.executable, "GPUS": "2"}, start_new_session=True,
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT
    while "'loss'" not in said.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    code, text = finished(process, said)
    assert code != 0
    (saved,) = output.glob("checkpoint-*")
    assert f"stopped by SIGTERM after step {saved.name.removeprefix('checkpoint-')}" in text, text[-4000:]
    steps = int(saved.name.removeprefix("checkpoint-"))
    folder = train(start, output, "--resume_from_checkpoint", "True", "--max_steps", str(steps + 1))
    assert len(losses(folder)) == steps + 1
