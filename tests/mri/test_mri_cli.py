"""``monarch-sciml mri``: complete help, one line per mistake, from simulation to a table of scores."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
import torch
from kspace_files import fastmri, noise
from test_documentation import ROOT, commands

from monarch_sciml.cli import Mri, Simulate, _parse, main
from monarch_sciml.mri import evaluation, recipe, reconstruction
from monarch_sciml.mri.masks import MaskConfig, MaskOptions
from monarch_sciml.mri.simulation import SimulateConfig
from monarch_sciml.mri.writers import NOTICE

TINY = "--cascades 2 --channels 2 --pools 1 --epochs 2 --n-test 1 --device cpu --maps low-resolution"
COLUMNS = "--mask random --accelerations 2 --center-fractions 0.3"
COMMANDS = {
    "simulate": [Simulate, SimulateConfig],
    "train": [recipe.TrainConfig, MaskConfig],
    "reconstruct": [reconstruction.ReconstructConfig, MaskOptions],
    "evaluate": [evaluation.EvaluateConfig],
}


def status(*arguments: object) -> int:
    """Run the command in this process; its exit status. Strings are split into words."""
    words = [a.split() if isinstance(a, str) else [str(a)] for a in arguments]
    try:
        main(["mri", *(word for group in words for word in group)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "data"
    assert status("simulate --volumes 2 --slices 2 --shape 24 20 --coils 3 4 --out", folder) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    assert status(command, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: monarch-sciml mri {command}")
    for config in COMMANDS[command]:
        source = Path(sys.modules[config.__module__].__file__ or "").read_text(encoding="utf-8")
        body = source[source.index(f"class {config.__name__}") :]
        for option in dataclasses.fields(config):
            if not dataclasses.is_dataclass(option.type) and "Mask" not in str(option.type):
                assert re.search(rf"--(no-)?{option.name.replace('_', '-')} ", out), option.name
                assert re.search(rf'^    {option.name}: [^\n]+\n    """\S', body, re.MULTILINE), option.name


@pytest.mark.parametrize(
    ("command", "flag", "words"),
    [
        (
            "reconstruct",
            "--no-header",
            "The file's header is used, .*, unless --no-header is given. .default: True",
        ),
        (
            "train",
            "--no-share-transforms",
            "All cascades share .*, unless --no-share-transforms is given: then one",
        ),
    ],
)
def test_flags_that_switch_off_say_what_they_do(command, flag, words, capsys):
    assert status(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert re.search(rf" {flag} {words}", text)


def test_help_names_the_commands(capsys):
    assert status("--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    commands = get_args(Mri.__annotations__["command"])
    assert [get_args(command)[0] for command in commands] == [configs[0] for configs in COMMANDS.values()]


def test_simulate_train_reconstruct_evaluate(data, tmp_path, capsys):
    assert (
        status("simulate --volumes 2 --slices 2 --shape 24 20 --coils 3 4 --out", data) == 0
    )  # there already
    out, err = capsys.readouterr()
    assert err == ""
    assert out == f"{data}/\n  sim_*.h5 (2 files)  2 volumes of k-space in fastMRI's format\n"
    run, out = tmp_path / "run", tmp_path / "out"
    train = ("train --model modl-monarch --data", data, "--out", run, TINY, COLUMNS)
    assert status(*train) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert [line.split(" ")[0] for line in printed.splitlines()[:2]] == ["epoch", "epoch"]
    assert all(line.isprintable() for line in printed.splitlines())
    summary = printed[printed.index("| epoch") :]
    assert {"nmse", "psnr", "ssim"} <= set(summary.splitlines()[0].split())
    named = [line.split()[0] for line in summary[summary.index(f"{run}/\n") :].splitlines()[1:]]
    assert sorted(name.rstrip("/") for name in named) == sorted(path.name for path in run.iterdir())
    assert status(*train, "--resume") == 0
    assert capsys.readouterr().out.lstrip() == summary
    assert status(*train, "--resume --quiet") == 0
    assert capsys.readouterr().out == f"{run}\n"
    paths = sorted(data.iterdir())
    assert (
        status(
            "reconstruct --files",
            *paths,
            "--out",
            out,
            "--method modl-monarch --run",
            run,
            COLUMNS,
            "--png",
        )
        == 0
    )
    printed, err = capsys.readouterr()
    assert err == ""
    assert re.match(r"\| file +\| method +\|", printed)
    assert f"{NOTICE}." in printed
    assert printed.splitlines()[-5:] == [
        f"{out}/",
        "  *.h5 (2 files)  reconstruction (slices, height, width)",
        "  png/            every slice",
        "  table.md        the table above",
        "  report.json     the same for programs",
    ]
    reports = json.loads((out / "report.json").read_text())
    assert [r["file"] for r in reports] == ["sim_0000.h5", "sim_0001.h5"]
    assert all(r["nonunitarity"] is not None for r in reports)
    assert status("evaluate --target", data, "--prediction", out) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"\| all +\| +2 \| +4 \|", printed)
    assert NOTICE in printed


@pytest.mark.parametrize("asked", ["", "--cascades 1"])
def test_iterations_are_those_of_the_kind_or_those_asked_for(data, tmp_path, asked):
    tiny = TINY.replace("--cascades 2", asked).replace("--epochs 2", "--epochs 1")
    for model, default, word in (("msense", 8, "iteration"), ("varnet", 4, "cascade")):
        out = tmp_path / model
        assert status("train --quiet --data", data, "--out", out, f"--model {model} {tiny} {COLUMNS}") == 0
        iterations = 1 if asked else default
        assert json.loads((out / "model" / "config.json").read_text())["cascades"] == iterations
        assert re.search(rf"\b{iterations} {word}", (out / "model" / "README.md").read_text())


def test_what_is_said_aside_is_one_line_on_stderr(data, tmp_path, capsys):
    path, run = data / "sim_0000.h5", tmp_path / "run"
    assert status("train --model unet --data", data, "--out", run, TINY, COLUMNS, "--quiet") == 0
    capsys.readouterr()
    network = ("reconstruct --quiet --files", path, "--run", run)
    assert status(*network, "--out", tmp_path / "a") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "undersampled here: random 2× (centre 30 %)." in out
    assert "The network was trained under masks random 2× (centre 30 %)." in out
    assert status(*network, "--out", tmp_path / "b", "--mask equispaced") == 0
    said = "the mask is equispaced 2× .centre 30 %., but the network was trained under random 2×"
    assert re.fullmatch(
        rf"monarch-sciml: warning: {said} .centre 30 %.: results may be worse\n", capsys.readouterr().err
    )
    maps = ("--out", tmp_path / "c", "--maps", path, COLUMNS, "--method zero-filled")
    assert status("reconstruct --quiet --files", path, *maps) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"monarch-sciml: warning: coil maps in sim_0000.h5 have √Σ\|S\|² of .* are scaled to 1\n", err
    )


@pytest.mark.parametrize("maps", ["espirit", "low-resolution", "maps.npy"])
def test_maps_are_a_method_or_a_file(data, tmp_path, maps, capsys):
    """The words are no file names."""
    path = data / "sim_0000.h5"
    with h5py.File(path) as file:
        kspace = file["kspace"][0]
    np.save(tmp_path / "maps.npy", kspace / np.linalg.norm(kspace, axis=0))
    chosen = tmp_path / maps if maps.endswith("npy") else maps
    arguments = ("--out", tmp_path / "out", "--maps", chosen, COLUMNS, "--method zero-filled --quiet")
    assert status("reconstruct --files", path, *arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("simulate --out {tmp}/new --volumes 0", "at least one volume"),
        ("simulate --out {tmp}/new --coils 1 4", "several coils in every volume"),
        ("train --data {tmp}/none --out {tmp}/run", "nothing at"),
        ("train --data {data} --out {tmp}/run --n-test 2", "lower --n-train or --n-test"),
        ("train --data {data} --out {tmp}/run --pools 0", "pools of at least 1; found 0; raise --pools"),
        (
            "train --data {data} --out {tmp}/run --accelerations 4 8",
            "as many center_fractions as accelerations",
        ),
        (
            "train --data {data} --out {tmp}/run --mask poisson --accelerations 1.2",
            "at least 1.5 for the mask poisson",
        ),
        ("train --data {data} --out {tmp}/run --device cuda", "a CUDA device; found none"),
        ("reconstruct --files {tmp}/none.h5 --out {tmp}/out --method tv", "nothing at {tmp}/none.h5"),
        ("reconstruct --files --out {tmp}/out --method tv", "at least one k-space file; found none"),
        ("reconstruct --files {data}/sim_0000.h5 --out {tmp}/out", "a --method, or the --run of a training"),
        (
            "reconstruct --files {data}/sim_0000.h5 --out {data} --method tv",
            "another folder than that of the data",
        ),
        ("reconstruct --files {data}/sim_0000.h5 --out {tmp}/out --run {tmp} --method tv", "leave --run out"),
        ("reconstruct --files {data}/sim_0000.h5 --out {tmp}/out --run {tmp}", "an exported model in"),
        ("reconstruct --files {data}/sim_0000.h5 --out {tmp}/out --method tv --maps esprit", "nothing at"),
        ("reconstruct --files {data}/sim_0000.h5 --out {tmp}/out --method tv --device cuda", "a CUDA device"),
        ("evaluate --target {tmp}/none --prediction {data}", "a directory of .h5 files"),
    ],
)
def test_mistakes_end_in_one_line(data, tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capsys.readouterr()
    assert status(arguments.format(data=data, tmp=tmp_path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"monarch-sciml: expected .+; found .+; .+\n", err), err
    assert match.format(tmp=tmp_path) in err
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_fails_is_named_and_the_others_are_done(data, tmp_path, capsys):
    kspace = noise(2, 3, 24, 20)
    kspace[1, 0, 0, 0] = np.nan
    bad = fastmri(tmp_path / "bad.h5", kspace, None)
    arguments = ("--out", tmp_path / "out", "--method zero-filled --maps low-resolution --quiet", COLUMNS)
    assert status("reconstruct --files", bad, data / "sim_0000.h5", *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "2 files that can be reconstructed; found 1 that cannot: bad.h5 (expected" in err
    assert "NaN or infinity in slice 1 of bad.h5" in err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["report.json", "sim_0000.h5", "table.md"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("reconstruct --files a.h5 --out b --method fft", "fft"),
        ("reconstruct --out b --method tv", "--files"),
        ("train --data a --out b --model resnet", "resnet"),
        ("train --data a --out b --shape 24", "--shape"),
        ("simulate --out b --phantom brain", "brain"),
        ("scan", "scan"),
    ],
)
def test_wrong_options_are_named(arguments, match, capsys):
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert match in err
    assert "Traceback" not in err


@pytest.mark.parametrize("page", ["README.md", "docs/mri.md", "docs/how-to/kspace.md"])
def test_the_commands_of_a_page_can_follow_one_another(page):
    """No images are written twice, and what is compared was made before; data of one's own are scan.*."""
    written: set[Path] = set()
    made: set[Path] = set()
    for words in (line.split("#")[0].split()[1:] for line in commands(ROOT / page)):
        command = getattr(_parse(words), "command", None)
        match command:
            case Simulate():
                made.add(command.out)
            case recipe.TrainConfig():
                assert command.data in made | {Path("scans")}
                made.add(command.out)
            case reconstruction.ReconstructConfig():
                images = {command.out / path.stem for path in command.files}
                assert not images & written, words
                assert all(path.stem == "scan" or path.parent in made for path in command.files)
                assert command.run is None or command.run in made or command.run.name == "varnet-monarch"
                written |= images
                made.add(command.out)
            case evaluation.EvaluateConfig():
                assert {command.target, *command.prediction} <= made
    assert written
