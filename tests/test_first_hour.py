"""The notebook docs/first_hour.ipynb, run from top to bottom with few tickets and steps."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from monkey.command import PROGRAMS

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "first_hour.ipynb"
STEPS = 12


def cells(kind: str) -> list[dict]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs_and_names_what_there_is():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    text, code = ("\n".join("".join(cell["source"]) for cell in cells(kind)) for kind in ("markdown", "code"))
    missing = [link for link in re.findall(r"\]\(([^)#]+)", text) if not (NOTEBOOK.parent / link).exists()]
    assert not missing
    named = re.findall(r"\bmonkey ([a-z-]+)", text) + re.findall(r'run\(\s*"([a-z-]+)"', code)
    assert {"demo", "serve", "report", "check", "evaluate", "train", "compare"} <= set(named) <= PROGRAMS.keys()


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    reason = "the notebook runs with pip install '.[notebook]'"
    nbformat, nbclient = (pytest.importorskip(name, reason=reason) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel", reason=reason)
    paths = (str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\nTRAIN, HELD_OUT, STEPS = 8, 3, {STEPS}"
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # The ticket, its windows, heat on it and on its windows, and the loss curve.
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    text = "".join(output.get("text", "") for output in shown)
    assert "What is the ticket number? →" in text
    assert "B - A" in text
    output = tmp_path / "outputs" / "first_hour"
    log = json.loads((output / "finetuned" / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == STEPS
    # Rows differ more than a step teaches.
    assert sum(losses[-4:]) < sum(losses[:4])
    for name in ("before", "after"):
        (line,) = json.loads((output / "result" / name / "summary.json").read_text())["tasks"]
        questions = (output / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
        assert (line["n"], line["metric"]) == (len(questions), "anls")
