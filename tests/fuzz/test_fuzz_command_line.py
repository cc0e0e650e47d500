"""Every option of every command with wild values: a result, or exit status 2 and one line that says why."""

import contextlib
import dataclasses
import io
import os
import re
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import strategies as st
from waves import save_waves
from wild import fuzz

from monarch_sciml.benchmark import BenchConfig
from monarch_sciml.cli import Generate, Simulate, main
from monarch_sciml.mri import evaluation as mri_evaluation
from monarch_sciml.mri import recipe as mri_recipe
from monarch_sciml.mri import reconstruction
from monarch_sciml.pde import EvaluateConfig, TrainConfig, plots

# what is complete and quickly done; {} are the places of `workshop`
COMMANDS: dict[str, tuple[type, str]] = {
    "pde generate": (
        Generate,
        "--out {out}.h5 --samples 1 --resolution 8 --end-time 1 --viscosity 1e-2 --quiet",
    ),
    "pde train": (
        TrainConfig,
        "--data {waves} --out {out} --n-train 2 --n-test 1 --epochs 1 --modes 4 --width 4 --layers 1 --quiet "
        "--device cpu",
    ),
    "pde evaluate": (EvaluateConfig, "--runs {run} --out {out}"),
    "mri simulate": (Simulate, "--out {out} --volumes 1 --slices 1 --shape 8 8 --coils 2 --quiet"),
    "mri train": (
        mri_recipe.TrainConfig,
        "--data {scans} --out {out} --n-test 1 --epochs 1 --channels 2 --pools 1 --cascades 1 --quiet "
        "--device cpu --center-fractions 0.3 --accelerations 2",
    ),
    "mri reconstruct": (
        reconstruction.ReconstructConfig,
        "--files {scan} --out {out} --method zero-filled --quiet --center-fractions 0.3 --accelerations 2",
    ),
    "mri evaluate": (mri_evaluation.EvaluateConfig, "--target {scans} --prediction {images} --out {out}"),
    "bench": (BenchConfig, "--device cuda"),  # which the test says there is none of
}
# much of these is much work, and nobody can know that it was not meant
WORK = {"epochs", "samples", "volumes", "slices", "layers", "cascades", "pools", "repeats", "topic"}
MUCH = {"1000003", "2147483648", "9223372036854775807", "9223372036854775808", "1" + 30 * "0"}
# the first starts processes; with the second, only a machine without a GPU ends bench early
NOT_DRAWN = {("pde train", "devices"), ("mri train", "devices"), ("bench", "device")}

INTEGERS = ["-9223372036854775809", "-1", "0", "1", "2", "3", "7", *sorted(MUCH)]
FLOATS = [
    "-1",
    "0",
    "-0.0",
    "0.5",
    "1",
    "1.5",
    "3",
    "1e-320",
    "1e-30",
    "1e30",
    "1e308",
    "1e999",
    "nan",
    "-inf",
]
STRANGE = [
    "",
    " ",
    "many",
    "ü",
    "1_0",
    "٣",
    "0x10",
    "1,2",
    "None",
    "True",
    "--",
    "-",
    "'",
    "1e3",
    "3.0",
    "%s",
]
PLACES = [
    "",
    ".",
    "none",
    "none/below",
    "/dev/null",
    "/dev/null/x",
    "/proc/none",
    "a" * 300,
    "~nobody/x",
    "ü\u202e",
]
PLACES += [
    "{folder}",
    "{text}",
    "{loop}",
    "{fifo}",
    "{waves}",
    "{scan}",
    "{scans}",
    "{run}",
    "{images}",
    "{out}",
]


def words(kind: Any) -> st.SearchStrategy[list[str]]:
    """What might be written after an option of this type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return words(parts[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of(words(part) for part in parts if part is not type(None))
    if origin is tuple:
        inner = words(parts[0])
        return st.lists(inner, max_size=3).map(lambda drawn: [word for each in drawn for word in each])
    if origin is Literal:
        return st.sampled_from([*map(str, parts), *map(str, parts), "nonsense", ""]).map(lambda word: [word])
    if kind is bool:
        return st.sampled_from([[], [], [], ["True"], ["2"]])
    usual = {int: INTEGERS, float: FLOATS, Path: PLACES, str: ["AXT2", "SIMULATED", "none"]}[kind]
    return st.sampled_from([*usual, *usual, *STRANGE]).map(lambda word: [word])


def options(config: type) -> Iterator[tuple[str, Any]]:
    """Name and type of every option, those of parts of the configuration included."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options(hints[field.name])
        else:
            name = field.name.replace("_", "-")
            yield f"no-{name}" if field.default is True else name, hints[field.name]


@st.composite
def changes(draw: st.DrawFn, command: str) -> list[tuple[str, list[str]]]:
    """One to three options with values."""
    found = options(COMMANDS[command][0])
    known = {name: kind for name, kind in found if (command, name) not in NOT_DRAWN}
    changed = []
    for name in draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True)):
        given = draw(words(known[name]))
        if name not in WORK or not MUCH & {*given}:
            changed.append((name, given))
    return changed


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small data of every kind, one finished training, and things that are no data."""
    folder = tmp_path_factory.mktemp("workshop")
    places = {name: folder / name for name in ("run", "scans", "images", "folder", "text", "loop", "fifo")}
    places["waves"] = save_waves(folder / "waves.npy", samples=4, frames=3, grid=(8, 8))
    places["scan"] = places["scans"] / "sim_0000.h5"
    made = [
        "mri simulate --out {scans} --volumes 3 --slices 1 --shape 16 16 --coils 2 --quiet",
        "mri reconstruct --out {images} --method zero-filled --quiet "
        + " ".join(
            [
                "--center-fractions 0.3 --accelerations 2 --files",
                *(str(places["scans"] / f"sim_{i:04}.h5") for i in range(3)),
            ]
        ),
        "pde train " + COMMANDS["pde train"][1].replace("{out}", "{run}"),
    ]
    for command in made:
        assert run(command.format_map(places).split())[0] == 0
    places["folder"].mkdir()
    places["text"].write_text("words\n")
    places["loop"].symlink_to(places["loop"])
    os.mkfifo(places["fifo"])
    return places


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command in this process."""
    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
            status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        torch.set_num_threads(threads)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
@fuzz(40, data=st.data())
def test_a_command_works_or_says_why_not(
    command: str, workshop: dict[str, Path], monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in [name for name in plots.__all__ if name.startswith("save_")]:  # they take seconds
        monkeypatch.setattr(plots, name, lambda *_, **__: None)
    base = COMMANDS[command][1]
    changed = data.draw(changes(command))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        places = {**workshop, "out": Path(folder) / "out"}
        given = [
            (name, [word.format_map(places) if "{" in word else word for word in each])
            for name, each in changed
        ]
        replaced = {f"--{name}" for name, _ in given}
        kept = re.findall(r"--\S+(?: (?!--)\S+)*", base.format_map(places))
        arguments = [word for option in kept if option.split()[0] not in replaced for word in option.split()]
        for name, each in given:
            arguments += [*([] if name == "topic" else [f"--{name}"]), *each]
        status, out, err = run([*command.split(), *arguments])
    if status == 0:
        assert re.fullmatch(r"(monarch-sciml: warning: coil maps in [^\n]+ scaled to 1\n)?", err)
        assert out != ""
    else:
        assert status == 2
        line = r"monarch-sciml: (expected [^\n]+; found [^\n]+|no stable solution [^\n]+); [^\n]+\n"
        assert re.fullmatch(line, err) or "helptext" in err, err
        assert "Traceback" not in err
        assert "helptext" in err or err.rstrip("\n").isprintable()
