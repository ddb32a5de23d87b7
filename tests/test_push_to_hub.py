"""Uploading a checkpoint: what goes, what stays, and what is refused; the hub is a stub."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from scripts.push_to_hub import main

CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# Mine\n"


@pytest.fixture
def folder(tmp_path):
    files = {
        "README.md": CARD, "config.json": "{}", "model.safetensors": "w", "run.json": "{}", "training/log.json": "[]",
        "checkpoint-10/model.safetensors": "w", "checkpoint-10/optimizer.pt": "o", "runs/events": "e", ".lock": "",
        "best/model.safetensors": "w",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


class Hub:
    """Of huggingface_hub's `HfApi` what is called, with the same names of arguments."""

    def __init__(self, monkeypatch, error: Exception | None = None):
        self.made, self.uploaded, self.error = [], [], error
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        if self.error:
            raise self.error
        self.made.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        self.uploaded.append((repo_id, folder_path, allow_patterns, commit_message))
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")


KEPT = ["README.md", "config.json", "model.safetensors", "run.json", "training/log.json"]


def test_a_checkpoint_goes_with_its_card_and_without_what_lay_on_the_way(folder, monkeypatch, capsys):
    hub = Hub(monkeypatch)
    assert main([str(folder), "me/mine", "--message", "First"]) == 0
    assert hub.made == [("me/mine", True, True)]
    assert hub.uploaded == [("me/mine", folder, KEPT, "First")]
    assert capsys.readouterr().out.endswith("https://hub.example/me/mine/commit/1\n")


def test_the_library_takes_the_arguments_that_the_stub_takes():
    import inspect

    for name in ("create_repo", "upload_folder"):
        ours = inspect.signature(getattr(Hub, name)).parameters
        assert {*ours} - {"self"} <= {*inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters}


def test_public_is_said_and_a_dry_run_uploads_nothing(folder, monkeypatch, capsys):
    hub = Hub(monkeypatch)
    assert main([str(folder), "me/mine", "--public"]) == 0
    assert hub.made[0][1] is False
    assert main([str(folder), "me/mine", "--dry-run"]) == 0
    assert len(hub.uploaded) == 1
    assert "5 files would go to me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing: people have to know what the model is"),
        (lambda folder: (folder / "README.md").write_text("# Mine\n"), "README.md names no licence"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no checkpoint"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "has no weights"),
    ],
)
def test_what_should_not_go_is_refused_before_anything_does(folder, monkeypatch, capsys, spoil, said):
    hub = Hub(monkeypatch)
    spoil(folder)
    assert main([str(folder), "me/mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not hub.made


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/my model", ""])
def test_a_name_that_is_none_on_the_hub_is_refused(folder, name, capsys):
    assert main([str(folder), name]) == 2
    assert "is no name on the hub: OWNER/NAME" in capsys.readouterr().err


def test_what_the_hub_refuses_is_one_sentence(folder, monkeypatch, capsys):
    answer = httpx.Response(403, request=httpx.Request("POST", "https://hub.example"))
    refused = HfHubHTTPError("403 Forbidden", response=answer, server_message="You may not write there.")
    for error, said in [
        (refused, "error: the hub refused me/mine (403): You may not write there."),
        (LocalTokenNotFoundError("no token"), "error: not logged in to the hub: `hf auth login`, or set HF_TOKEN"),
    ]:
        Hub(monkeypatch, error)
        assert main([str(folder), "me/mine"]) == 2
        assert capsys.readouterr().err.strip() == said
