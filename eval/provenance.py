"""Where an answer comes from: versions of the libraries and the revision of this source tree."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "pillow", "numpy", "tiktoken")


def versions() -> dict[str, str | None]:
    """Versions of what an answer can depend on; None for what is not installed."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def source_revision() -> str | None:
    """The git commit of this source tree, with '-dirty' when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str | None:
        answer = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    if revision is None:
        return None
    return f"{revision}-dirty" if ask("status", "--porcelain") else revision
