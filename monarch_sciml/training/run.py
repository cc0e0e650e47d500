"""A run directory: the configuration that ran, beside everything it produced.

``config.json`` · ``last.ckpt`` (resume) · ``metrics.csv`` and ``tensorboard/`` · ``model/`` (export, written
when the training is complete).
"""

import csv
import dataclasses
import json
import os
import platform
import shlex
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.training.distributed import together, world
from monarch_sciml.training.files import whole_file

__all__ = [
    "check_device",
    "check_run",
    "check_settings",
    "create_run",
    "is_finished",
    "read_config",
    "read_json",
    "use_paths",
    "warn_of_other_data",
    "write_json",
]

# how and where to run, not what: these may differ when a run is resumed
NOT_COMPARED = {"out", "data", "resume", "device", "devices", "threads", "quiet", "checkpoint_minutes"}
HELD_OUT = "held_out"  # may too, as a path of data, but is part of the command line


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that ``path`` is always a complete file: into a neighbour first, then renamed."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises ``InputError`` when the file is missing or damaged."""
    if not path.is_file():  # reading a pipe would wait for ever
        raise InputError(f"a file {path.name}", f"none in {path.parent}", "check the run directory")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # of text, numbers, nesting
        raise InputError(f"JSON in {path}", f"{error}", "restore the file or train anew") from None


def read_config(out: Path) -> dict[str, Any]:
    """The configuration of the run in ``out``; raises ``InputError`` if there is none."""
    saved = read_json(out / "config.json")
    if not isinstance(saved, dict) or not isinstance(saved.get("config"), dict):
        raise InputError(f"a run directory {out}", "a config.json of another kind", "check the path")
    return saved["config"]


def check_run(out: Path, config: Any, *, resume: bool) -> None:
    """Refuse an output directory in use, unless by a run of this configuration that is to ``resume``.

    Called before the data are read, so that a mistake costs no time. Raises ``InputError``.
    """
    if not out.exists() or (out.is_dir() and all(path.suffix == ".partial" for path in out.iterdir())):
        return  # a run that was killed while it began is none
    saved = out / "config.json"
    if not saved.exists():
        raise InputError("a new or empty output directory", f"{out} in use", "choose another --out")
    if not resume:
        raise InputError(
            "a new output directory",
            f"a run in {out}",
            "pass --resume to continue it, or choose another --out",
        )
    # a setting that did not exist yet had the value that is the default now
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    settings, before = _as_json(dataclasses.asdict(config)), {**_as_json(defaults), **read_config(out)}
    compared = settings.keys() - NOT_COMPARED - {HELD_OUT}
    changed = [k for k in settings if k in compared and settings[k] != before.get(k)]
    if changed:
        raise InputError(
            f"the settings of the run in {out}, {', '.join(f'{k}={before.get(k)}' for k in changed)}",
            ", ".join(f"{k}={settings[k]}" for k in changed),
            "resume with the same settings, or choose another --out",
        )


def create_run(out: Path, config: Any, data: Mapping[str, Any]) -> Path:
    """Make the run directory and save the configuration, a dataclass, with the versions that run it.

    ``data`` are a few values by which the data are known again: a run that exists is entered with the same
    ones only, as far as it has them. Of several processes the first makes it, and the data of all have to be
    the same. Raises ``InputError`` otherwise, and where nothing can be written.
    """
    first = world()[0] == 0
    together(lambda: _enter(out, config, data) if first else None)
    together(lambda: _enter(out, config, data))
    return out


def _enter(out: Path, config: Any, data: Mapping[str, Any]) -> None:
    """Make the directory, or compare what is there."""
    saved, data = out / "config.json", _as_json(data)
    if saved.exists():
        before = read_json(saved).get("data", data)
        if any(data.get(name) != value for name, value in before.items()):
            raise InputError(f"the data of the run in {out}, {before}", f"{data}", "pass the same --data")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        settings = _as_json(dataclasses.asdict(config))
        content = {"config": settings, "options": " ".join(_options(config, settings))}
        device = getattr(config, "device", "auto")
        write_json(saved, {**content, "data": data, "environment": environment(device)})
    except OSError as error:
        raise InputError(
            "an output directory that can be written", str(error), "choose another --out"
        ) from None


def _options(config: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """The command line of a configuration, but for paths, which are left to the reader, and NOT_COMPARED."""
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if name in NOT_COMPARED or value is None:
            continue
        if isinstance(value, dict):  # a part of the configuration, whose options stand beside the others
            yield from _options(getattr(config, name), value)
        elif isinstance(value, bool):  # a switch, which can only be turned
            if value != usual[name]:
                yield option if value else f"--no-{option[2:]}"
        elif isinstance(value, str) and Path(value).is_absolute():
            yield from (option, name.upper())
        else:
            yield from (
                option,
                *(shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value])),
            )


def check_settings(config: Any, least: Mapping[str, float], most: Mapping[str, float]) -> None:
    """Refuse a setting outside its bounds, where it has a value; seeds beyond 32 bits, learning rates of 0.

    ``config`` has a ``seed`` and a ``learning_rate``. Raises ``InputError`` with the option to change.
    """
    for name in {**least, **most}:
        value, option = getattr(config, name), f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if name in least and not value >= least[name]:
            raise InputError(f"{name} of at least {least[name]}", str(value), f"raise {option}")
        if name in most and value > most[name]:
            raise InputError(f"{name} of at most {most[name]}", str(value), f"lower {option}")
    if config.seed >= 2**32:
        raise InputError("a seed below 2**32", str(config.seed), "lower --seed")
    if config.learning_rate is not None and not config.learning_rate > 0:
        raise InputError("a positive learning_rate", str(config.learning_rate), "raise --learning-rate")


def check_choices(config: Any) -> None:
    """Refuse a word that is none of those its field of a dataclass may hold: Python lets anything in.

    Raises ``InputError`` with the field and its words.
    """
    for name, kind in get_type_hints(type(config)).items():
        parts = (part for part in (kind, *get_args(kind)) if get_origin(part) is Literal)
        words = [word for part in parts for word in get_args(part)]
        value = getattr(config, name)
        if words and isinstance(value, str) and value not in words:
            raise InputError(f"{name} out of {', '.join(words)}", repr(value), "choose one")


def use_paths(config: Any, *names: str) -> None:
    """Make paths of the strings among these fields of a frozen dataclass, as a shell would: with ``~``."""
    for name in names:
        if isinstance(value := getattr(config, name), str | Path):
            object.__setattr__(config, name, Path(os.path.expanduser(value)))


def check_device(device: str) -> None:
    """Raises ``InputError`` for "cuda" on a machine without."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("a CUDA device", "none that torch can use", "pass --device cpu")


def is_finished(out: Path) -> bool:
    """Whether the training in this directory ran to its end: the exported model is the last thing written."""
    return (out / "model" / "config.json").exists()


def warn_of_other_data(config: Any) -> None:
    """Warn where the finished run in ``config.out`` was trained on another path than ``config.data``."""
    before = read_config(config.out).get("data")
    if world()[0] == 0 and os.path.realpath(str(before)) != os.path.realpath(config.data):
        said = f"the run in {config.out} is finished, with {before}; nothing was trained on {config.data}"
        warnings.warn(said, stacklevel=2)


def last_row(run: Path) -> dict[str, float]:
    """The last row of ``metrics.csv`` of a run. Raises ``InputError`` if there is none, or no table."""
    table = run / "metrics.csv"
    try:
        *_, last = csv.DictReader(table.read_text().splitlines())
        if not {"epoch", "seconds"} <= last.keys():
            raise ValueError(f"columns {', '.join(map(str, last))}")
        return {name: float(value) for name, value in last.items()}
    except (OSError, ValueError, TypeError) as error:  # the last: a row that was cut off
        expected = f"the table of a training, {table}"
        raise InputError(expected, f"{error}", "restore it or train anew") from None


def environment(device: str = "auto") -> dict[str, Any]:
    """Versions and machine, for the record; ``device`` "cpu" says that a GPU had no part in it."""
    gpu = device != "cpu" and torch.cuda.is_available()
    packages = ("torch", "neuraloperator", "lightning", "numpy")
    return {
        "monarch_sciml": __version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if gpu else platform.machine(),
    }


def _as_json(content: Any) -> Any:
    """As it reads back from a file; paths are made absolute, so that they hold in any directory."""
    return json.loads(json.dumps(content, default=lambda path: str(path.absolute())))
