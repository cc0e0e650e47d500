"""The command line: complete help, one line per mistake, plain output without a terminal, every format."""

import csv
import dataclasses
import importlib
import json
import os
import re
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused, status, table_of
from waves import save_waves, waves

from monarch_sciml import __version__
from monarch_sciml.benchmark import BenchConfig
from monarch_sciml.cli import Generate, _warnings_in_a_line
from monarch_sciml.pde import EvaluateConfig, GenerateConfig, TrainConfig

TINY = "--modes 4 --width 4 --layers 2 --n-train 5 --n-test 2 --epochs 2 --batch 4 --device cpu"
COMMANDS = {
    ("pde", "generate"): [Generate, GenerateConfig],
    ("pde", "train"): [TrainConfig],
    ("pde", "evaluate"): [EvaluateConfig],
    ("bench",): [BenchConfig],
}


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail, and return its only line of output."""
    return partial(refused, capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_waves(tmp_path_factory.mktemp("data") / "waves.npy")


@pytest.mark.parametrize("command", [(), ("pde",), ("info",), *COMMANDS])
def test_help(command, capsys):
    assert status(*command, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: monarch-sciml")
    for config in COMMANDS.get(command, []):
        for option in dataclasses.fields(config):
            if not dataclasses.is_dataclass(option.type) and option.name != "topic":  # which has no name
                name = option.name.replace("_", "-")
                assert re.search(rf"--(no-)?{name} ", out), name
    if not command:
        assert all(name in out for name in ("pde", "mri", "bench", "info"))
    if command == ("pde",):
        assert all(name in out for name in ("generate", "train", "evaluate"))


@pytest.mark.parametrize("config", [Generate, *[c for configs in COMMANDS.values() for c in configs]])
def test_every_option_is_explained(config):
    """tyro takes the help from the string below each field."""
    source = Path(sys.modules[config.__module__].__file__ or "").read_text()
    body = source[source.index(f"class {config.__name__}") :]
    for option in dataclasses.fields(config):
        if not dataclasses.is_dataclass(option.type):
            assert re.search(rf'^    {option.name}: [^\n]+\n    """\S', body, re.MULTILINE), option.name


def test_a_negated_flag_is_explained_as_it_is_printed(capsys):
    assert status("pde", "generate", "--help") == 0
    assert re.search(r"--no-forcing +With --no-forcing the flow decays; otherwise", capsys.readouterr().out)


def test_info(capsys):
    assert status("info") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["monarch_sciml"] == __version__
    assert lines["torch"] == torch.__version__
    assert lines["threads"] == str(torch.get_num_threads())
    assert {"neuraloperator", "lightning", "numpy", "python", "device"} <= set(lines)


def test_generate_train_evaluate(tmp_path, capsys):
    flow, runs = tmp_path / "flow.h5", [tmp_path / "fno", tmp_path / "fno-monarch"]
    settings = "--samples 7 --resolution 16 --viscosity 1e-2 --end-time 3 --batch 4"
    assert status("pde", "generate", "--out", flow, settings) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        f"{tmp_path}{os.sep}",
        "  flow.h5    7 trajectories × 4 times × 16 × 16 points",
        "  flow.json  its settings",
    ]
    for run in runs:
        assert status("pde", "train", "--data", flow, "--out", run, "--model", run.name, TINY) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert all(line.isprintable() for line in out.splitlines())  # no control characters, no colours
        understood, *epochs = out.splitlines()[:3]
        assert understood == (
            "flow.h5 (monarch_sciml): 7 trajectories × 4 frames × 1 channel, 16 × 16 points; "
            "5 to train on, 2 held out"
        )
        assert [line.split()[:2] for line in epochs] == [["epoch", "1/2"], ["epoch", "2/2"]]
        (row,) = table_of(out)
        last = dict(zip(*csv.reader((run / "metrics.csv").read_text().splitlines()[0::2]), strict=True))
        assert row == {name: f"{float(value):.4g}" for name, value in last.items()}
        assert "relative L2 errors of held-out trajectories" in out
        named = [line.split()[0] for line in out[out.index(f"{run}{os.sep}\n") :].splitlines()[1:]]
        assert sorted(name.rstrip("/") for name in named) == sorted(path.name for path in run.iterdir())
        summary = out[out.index("| epoch") :]
        assert (
            status("pde", "train", "--data", flow, "--out", run, "--model", run.name, TINY, "--resume") == 0
        )
        assert capsys.readouterr().out.lstrip() == summary
    assert status("pde", "evaluate", "--runs", *runs, "--out", tmp_path / "evaluation") == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = table_of(out)
    assert [row["model"] for row in rows] == ["fno", "fno-monarch"]
    saved = (tmp_path / "evaluation" / "table.md").read_text()
    assert rows == [
        dict(zip(rows[0], [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        for line in saved.splitlines()[2:4]
    ]
    assert saved.splitlines()[-1] in out
    named = [line.split()[0] for line in out[out.index("evaluation/\n") :].splitlines()[1:]]
    assert sorted(named) == sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert all(line.isprintable() for line in out.splitlines())
    # a configuration beside every result
    assert json.loads(flow.with_suffix(".json").read_text())["samples"] == 7
    for run in runs:
        assert json.loads((run / "config.json").read_text())["config"]["model"] == run.name
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["out"].endswith("evaluation")


def test_seeds_become_a_band(data, tmp_path, monkeypatch, capsys):
    """Runs that differ in their seed alone are one curve; another one stands for itself."""
    plots = importlib.import_module("monarch_sciml.pde.plots")
    drawn = {}
    for name in plots.__all__:
        monkeypatch.setattr(plots, name, lambda path, curves, *_: drawn.update({path.name: curves}))
    runs = {"a": "--seed 0", "b": "--seed 1", "c": "--seed 1 --width 5"}
    for name, settings in runs.items():
        assert (
            status("pde", "train", "--data", data, "--out", tmp_path / name, TINY, settings, "--quiet") == 0
        )
    folders = [tmp_path / name for name in runs]
    assert status("pde", "evaluate", "--runs", *folders, "--out", tmp_path / "evaluation") == 0
    per_frame = [
        r["rollout_per_frame"] for r in json.loads((tmp_path / "evaluation/metrics.json").read_text())
    ]
    assert drawn["error_over_time.png"] == {"a": per_frame[:2], "c": per_frame[2:]}
    assert drawn["training.png"] == {
        "a": [folder / "metrics.csv" for folder in folders[:2]],
        "c": [folders[2] / "metrics.csv"],
    }
    assert np.shape(drawn["spectrum.png"]["a"]) == (2, 9)
    assert len(drawn) == 6


def test_quiet_says_where_the_result_is_and_no_more(data, tmp_path, capsys):
    assert status("pde", "train", "--data", data, "--out", tmp_path / "run", TINY, "--quiet") == 0
    assert capsys.readouterr() == (f"{tmp_path / 'run'}\n", "")


def test_a_warning_is_one_line(tmp_path, capsys):
    """Also with --quiet; one for developers keeps its place."""
    uneven = tmp_path / "uneven.npz"
    np.savez(uneven, u=np.load(save_waves(tmp_path / "waves.npy")), t=[0, 1, 2, 3, 4, 8])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert status("pde", "train", "--data", uneven, "--out", tmp_path / "run", TINY, "--quiet") == 0
        out, err = capsys.readouterr()
        assert out == f"{tmp_path / 'run'}\n"
        assert re.fullmatch(r"monarch-sciml: warning: uneven.npz: the steps between its times .+\n", err)
    with pytest.warns(FutureWarning, match="old"), _warnings_in_a_line():
        warnings.warn("old", FutureWarning, stacklevel=1)


def test_key_and_axes(tmp_path, capsys):
    """Of the training, and so of its evaluation."""
    odd = tmp_path / "odd.npz"
    np.savez(odd, speed=waves().transpose(2, 3, 1, 0), mask=np.zeros((4, 4, 4)))
    options = [TINY, "--key", "speed", "--axes"]
    assert status("pde", "train", "--data", odd, "--out", tmp_path / "run", *options, Path("x y t n")) == 0
    assert "8 trajectories × 6 frames × 1 channel, 16 × 16 points" in capsys.readouterr().out
    assert "--key speed --axes 'x y t n'" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert status("pde", "evaluate", "--runs", tmp_path / "run", "--out", tmp_path / "evaluation") == 0
    assert "over 2 held-out trajectories on 16 × 16 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("", r"one array of trajectories; found the arrays .*; name the one to read with key= \(--key\)"),
        ("--key speeds", "name the one to read with key= (--key)"),
        ("--key speed", 'name the axes there are: axes="n t x y z", or with channels "n t x y c" (--axes)'),
        ("--key speed --axes ntxy", "name every axis with axes= (--axes)"),
        ("--key speed --axes abc", 'write for example axes="n t x y" (--axes)'),
    ],
)
def test_remedies_name_options(tmp_path, refusal, options, match):
    odd = tmp_path / "odd.npz"
    np.savez(odd, speed=np.ones((2, 3, 4, 4, 2)), mask=np.zeros((4, 4, 4)))
    line = refusal("pde train --data", odd, "--out", tmp_path / "run", options)
    assert match in line or re.search(match, line)


def test_progress_bars_are_for_terminals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    arguments = "--samples 2 --resolution 8 --viscosity 1e-2 --end-time 1"
    assert status("pde", "generate", "--out", tmp_path / "a.h5", arguments) == 0
    assert "2/2" in capsys.readouterr().err
    assert status("pde", "generate", "--out", tmp_path / "b.h5", arguments, "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("pde train --data {tmp}/none.npy --out {tmp}/run", "none.npy"),
        ("pde train --data {data} --out {tmp}/run --n-test 50", "share the 8 trajectories"),
        ("pde train --data {data} --out {tmp}/run --modes 0", "modes of at least 1; found 0; raise --modes"),
        (
            "pde train --data {data} --out {tmp}/run --learning-rate -1",
            "a positive learning_rate; found -1.0",
        ),
        ("pde train --data {data} --out {tmp}/run --n-train 5 --n-test 2 --modes 20", "at most 16 modes"),
        ("pde train --data {data} --out {tmp}/run --device cuda", "a CUDA device; found none"),
        ("pde evaluate --runs {tmp}/none --out {tmp}/evaluation", "a finished training"),
        ("pde evaluate --runs --out {tmp}/evaluation", "at least one run directory; found none"),
        ("pde generate --out {tmp}/flow.h5 --samples 0", "samples, batch and resolution ≥ 1"),
        ("pde generate --out {tmp}/flow.mat", "a file name ending in .h5"),
        ("pde generate --out {tmp}/flow.h5 --device cuda", "a CUDA device; found none"),
        ("bench --device cuda", "a CUDA device; found none"),
        ("bench --repeats 1", "at least 2 repeats; found 1"),
        ("bench --threads 0", "at least 1 thread; found 0"),
        ("bench --json {tmp}/none/bench.json", "a file in an existing directory"),
        ("bench --json {tmp}", "a file in an existing directory"),
    ],
)
def test_mistakes_end_in_one_line(data, tmp_path, monkeypatch, refusal, arguments, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert match in refusal(arguments.format(data=data, tmp=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_existing_run_ends_in_one_line(data, tmp_path, refusal, capsys):
    command = ["pde", "train", "--data", data, "--out", tmp_path / "run", TINY, "--quiet"]
    assert status(*command) == 0
    capsys.readouterr()
    assert "pass --resume to continue it" in refusal(*command)
    assert "found seed=3" in refusal(*command, "--resume", "--seed", 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("pde train --data a --out b --modes many", "many"),
        ("pde train --data a --out b --moods 3", "--moods"),
        ("pde train --out b", "--data"),
        ("pde train --data a --out b --model mlp", "mlp"),
        ("pde fly", "fly"),
        ("bench cooking", "cooking"),
        ("", "info"),
    ],
)
def test_wrong_options_are_named(arguments, match, capsys):
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert match in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_exits_with_an_error_and_exports_nothing(
    data, tmp_path, monkeypatch, capsys, kind
):
    recipe = importlib.import_module("monarch_sciml.pde.recipe")
    original, steps = recipe.relative_l2, iter(range(10**6))

    def interrupted(*arguments, **options):
        if next(steps) == 8:  # in the second epoch of seven steps
            signal.raise_signal(kind)
        return original(*arguments, **options)

    command = ["pde", "train", "--data", data, "--out", tmp_path / "run", TINY]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "relative_l2", interrupted)
        assert status(*command) == 130
    out, err = capsys.readouterr()
    assert re.fullmatch(r"monarch-sciml: interrupted after step .+; continue with --resume\n", err)
    assert out.splitlines()[1].startswith("epoch 1/2")
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "last.ckpt").exists()
    assert status(*command, "--resume") == 0
    assert (tmp_path / "run" / "model").exists()


def test_one_dimensional_array(tmp_path):
    rows = save_waves(tmp_path / "line.npy", grid=(32,))
    npz = tmp_path / "line.npz"
    np.savez(npz, u=np.load(rows))
    for data in (rows, npz):
        run = tmp_path / data.suffix[1:]
        assert status("pde", "train", "--data", data, "--out", run, TINY, "--quiet") == 0
    assert (tmp_path / "npy" / "metrics.csv").exists()
    assert status("pde", "evaluate", "--runs", tmp_path / "npy", "--out", tmp_path / "evaluation") == 0


@pytest.mark.skipif("MONARCH_SCIML_TEST_DATA" not in os.environ, reason="needs MONARCH_SCIML_TEST_DATA")
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("burgers_train_16.pt", "--modes 8"),
        ("dev_ns_V1e-3_v5.mat", "--modes 8 --every 4"),
        ("dev_ns_V1e-3_v73.mat", "--modes 8 --every 4"),
    ],
)
def test_published_files(tmp_path, capsys, file, options):
    data, run = Path(os.environ["MONARCH_SCIML_TEST_DATA"]) / file, tmp_path / "run"
    counts = "--n-train 3 --n-test 1" if "dev" in file else "--n-train 100 --n-test 10"
    settings = f"--width 4 --epochs 1 {counts} {options}"
    assert status("pde", "train", "--data", data, "--out", run, settings) == 0
    assert status("pde", "evaluate", "--runs", run, "--out", tmp_path / "evaluation") == 0
    assert capsys.readouterr().err == ""
    (result,) = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert 0 < result["one_step"] < 2
