"""A run directory: the configuration that ran, beside everything it produced.

``config.json`` · ``last.ckpt`` (resume) · ``metrics.csv`` and ``tensorboard/`` · ``model/`` (export, written
when the training is complete).
"""

import dataclasses
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from monarch_sciml.errors import InputError

__all__ = ["create_run", "is_finished", "read_json", "write_json"]

# how and where to run, not what: these may differ when a run is resumed
NOT_COMPARED = {"out", "data", "resume", "device", "threads", "quiet"}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that ``path`` is always a complete file: into a neighbour first, then renamed."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def read_json(path: Path) -> Any:
    """Read JSON; raises ``InputError`` when the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"a file {path.name}", f"none in {path.parent}", "check the run directory") from None
    except json.JSONDecodeError as error:
        raise InputError(f"JSON in {path}", f"{error}", "restore the file or train anew") from None


def create_run(out: Path, config: Any, *, resume: bool) -> Path:
    """Make the run directory and save the configuration, a dataclass, with the versions that run it.

    An existing run is only entered with ``resume=True`` and the same configuration. Raises ``InputError``
    otherwise, before anything is written.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    saved = out / "config.json"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not saved.exists():
            raise InputError("a new or empty output directory", f"{out} in use", "choose another --out")
        if not resume:
            raise InputError(
                "a new output directory", f"a run in {out}", "pass --resume to continue it, or choose another --out"
            )
        before = read_json(saved)["config"]
        changed = [k for k in settings if k not in NOT_COMPARED and settings[k] != before.get(k)]
        if changed:
            raise InputError(
                f"the settings of the run in {out}, {', '.join(f'{k}={before.get(k)}' for k in changed)}",
                ", ".join(f"{k}={settings[k]}" for k in changed),
                "resume with the same settings, or choose another --out",
            )
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(saved, {"config": settings, "environment": environment()})
    except OSError as error:
        raise InputError("an output directory that can be written", str(error), "choose another --out") from None
    return out


def is_finished(out: Path) -> bool:
    """Whether the training in this directory ran to its end: the exported model is the last thing written."""
    return (out / "model" / "config.json").exists()


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    packages = ("torch", "neuraloperator", "lightning", "numpy")
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
