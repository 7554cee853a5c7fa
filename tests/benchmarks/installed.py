"""The project as it is installed for production: from its lock, without what development needs."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

from platformdirs import user_cache_path

PROJECT = Path(__file__).parents[2]


def install() -> Path:
    """The scripts of an environment that has the lock's packages and the project as it is now.

    The packages stay in the user's cache for the next time.
    """
    lock = PROJECT / "requirements.lock"
    python = f"{sys.executable} {sys.version}"
    name = hashlib.sha256(python.encode() + lock.read_bytes()).hexdigest()[:12]
    directory = user_cache_path("feedproxy-benchmarks") / name
    whole = directory / "whole"
    if not whole.exists():
        print("making an environment from requirements.lock", flush=True)
        venv.create(directory, clear=True, with_pip=True)
        _pip(directory, "--require-hashes", "-r", str(lock))
        whole.touch()
    _pip(directory, "--no-deps", "--force-reinstall", str(PROJECT))
    return directory / "bin"


def modules(scripts: Path) -> list[Path]:
    """The modules of the project and its packages there."""
    return [file for place in scripts.parent.glob("lib/*/site-packages") for file in place.rglob("*.py")]


def compiled(file: Path) -> bool:
    """Whether the bytecode of a module is there."""
    return Path(importlib.util.cache_from_source(str(file))).exists()


def _pip(directory: Path, *words: str) -> None:
    python = str(directory / "bin" / "python")
    command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True)
