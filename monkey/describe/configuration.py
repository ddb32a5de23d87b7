"""The configuration of a run: a YAML file that names an expert for each stage, with its settings.

    stages:
      caption: {expert: blip2, model: Salesforce/blip2-opt-2.7b}
      filters: {text_score: 0.9}
    output: {flagged: false}

A stage with one expert needs no name, and one that can be left out (`none`) is left out where it is not named. What is
not stated has the expert's default; unknown stages and settings are refused. `output.flagged` puts descriptions that
break a rule into the outputs too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monkey.describe.expert import Expert, ExpertSettings, read_settings
from monkey.describe.experts import EXPERTS, expert_class
from monkey.describe.stages import STAGES, digest_of
from monkey.files import read_settings_file


@dataclass(frozen=True)
class ChosenExpert:
    """An expert of a stage with its settings."""

    stage: str
    name: str
    kind: type[Expert]
    settings: ExpertSettings

    def digest(self) -> str:
        """What stands for all that results depend on, but what the stage is given.

        Raises ValueError or FileNotFoundError for a model that is missing or not of the stage's kind.
        """
        try:
            identity = self.kind.identity(self.settings)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"stages.{self.stage}: {error}") from error
        return digest_of(
            {
                "stage": self.stage,
                "expert": self.name,
                "version": self.kind.version,
                "settings": self.settings.that_change_results(),
                "identity": dict(identity),
            }
        )

    def described(self) -> dict[str, Any]:
        return {"expert": self.name, **dataclasses.asdict(self.settings)}


@dataclass(frozen=True)
class Configuration:
    experts: Mapping[str, ChosenExpert]
    flagged: bool = False

    def text(self) -> str:
        """As YAML with every value stated."""
        content = {
            "stages": {stage: chosen.described() for stage, chosen in self.experts.items()},
            "output": {"flagged": self.flagged},
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def read_configuration(path: Path) -> Configuration:
    """Raises FileNotFoundError, or ValueError in one sentence that names the file and the key."""
    content = read_settings_file(path, f"--config {path}")
    try:
        return configuration_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def configuration_of(content: Any) -> Configuration:
    """The configuration in a YAML file's content. Raises ValueError naming the key."""
    top = _mapping(content, "the file", ("stages", "output"))
    stages = _mapping(top.get("stages", {}), "stages", tuple(STAGES), "stage")
    output = _mapping(top.get("output", {}), "output", ("flagged",))
    flagged = output.get("flagged", False)
    if not isinstance(flagged, bool):
        raise ValueError(f"output.flagged is {flagged!r}, and true or false is needed")
    experts = {stage: _chosen(stage, stages.get(stage)) for stage in STAGES}
    seen = [stage for stage in ("regions", "segments") if experts[stage].name != "none"]
    if experts["matching"].name == "none" and seen:
        raise ValueError(f"stages.matching is left out, and what {' and '.join(seen)} find cannot be scored without it")
    return Configuration(experts, flagged)


def _mapping(content: Any, where: str, known: tuple[str, ...], noun: str = "key") -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds {_kind(content)}, and keys with values are needed")
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has the unknown {noun} {key!r}; there is {', '.join(known)}")
    return content


def _kind(content: Any) -> str:
    return "nothing" if content is None else f"a {type(content).__name__}"


def _chosen(stage: str, given: Any) -> ChosenExpert:
    where, names = f"stages.{stage}", tuple(EXPERTS[stage])
    if given is None and "none" in names:
        given = {"expert": "none"}
    if given is None and len(names) > 1:
        raise ValueError(f"{where} is missing; choose an expert: {', '.join(names)}")
    if not isinstance(given, dict | None):
        raise ValueError(f"{where} holds {given!r}, and keys with values are needed, like {{expert: {names[0]}}}")
    settings = dict(given or {})
    name = settings.pop("expert", names[0] if len(names) == 1 else None)
    if name is None:
        raise ValueError(f"{where} names no expert; there is {', '.join(names)}")
    kind = expert_class(stage, name)
    return ChosenExpert(stage, name, kind, read_settings(kind.Settings, settings, where))
