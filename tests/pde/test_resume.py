"""Interrupted trainings end as uninterrupted ones do, bit for bit."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SETTINGS, assert_same_run, table
from waves import save_waves

from monarch_sciml.cli import main
from monarch_sciml.errors import InputError
from monarch_sciml.pde import recipe
from monarch_sciml.pde.models import FramePredictor
from monarch_sciml.pde.recipe import TrainConfig, train


class Stop(Exception):
    pass


def stop(*_: object, **__: object) -> None:
    raise Stop


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, failure: type[BaseException] = Stop) -> None:
    """Raise in the loss of optimiser step ``step``, counted from 0."""
    original, calls = recipe.relative_l2, iter(range(10**6))

    def failing(*arguments, **options):
        if next(calls) == step:
            raise failure
        return original(*arguments, **options)

    monkeypatch.setattr(recipe, "relative_l2", failing)


@pytest.mark.parametrize(("model", "protocol"), [("fno", "B"), ("fno-monarch", "B"), ("fno-monarch", "A")])
@pytest.mark.parametrize("failure", [Stop, KeyboardInterrupt])
def test_resumed_training_is_bitwise_the_uninterrupted_one(
    long_data, tmp_path, monkeypatch, model, protocol, failure
):
    settings = {**SETTINGS, "model": model, "protocol": protocol, "noise": 0.1}
    config = TrainConfig(data=long_data, out=tmp_path / "whole", **settings)
    train(config)
    steps = {"A": 1, "B": 9}[protocol]  # an epoch: 6 windows, or 6 · 12, in batches of 8
    minutes = 0 if failure is KeyboardInterrupt else 10  # after every step, or after every epoch
    parts = dataclasses.replace(config, out=tmp_path / "parts", resume=True, checkpoint_minutes=minutes)
    stop = 2 * steps + steps // 2
    with monkeypatch.context() as patch:
        stop_at_step(patch, stop, failure)
        with pytest.raises(failure):
            train(parts)
    assert len(table(parts.out)) == 2
    place = torch.load(parts.out / "last.ckpt", weights_only=True)["global_step"]
    assert place == (2 * steps if minutes else stop)
    assert not (parts.out / "model").exists()  # interrupted is not finished
    torch.rand(5)
    train(parts)
    assert_same_run(parts.out, config.out)


def test_killed_command_resumes_bitwise(data, tmp_path, capsys):
    """SIGKILL in the second of three epochs, from outside the loop's control."""
    options = "--modes 4 --width 4 --layers 2 --n-train 6 --n-test 2 --epochs 3 --batch 8 --noise 0.1 --quiet"
    options += " --checkpoint-minutes 0"
    threads = ["--threads", str(torch.get_num_threads())]
    command = ["pde", "train", "--data", str(data), "--device", "cpu", *threads, *options.split()]
    script = """
import importlib, os, signal, sys
recipe = importlib.import_module("monarch_sciml.pde.recipe")
from monarch_sciml.cli import main
original, steps = recipe.relative_l2, iter(range(1000))
def dies(*arguments, **options):
    if next(steps) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
recipe.relative_l2 = dies
main(sys.argv[1:])
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, *command, "--out", str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 6
    main([*command, "--out", str(tmp_path / "killed"), "--resume"])
    main([*command, "--out", str(tmp_path / "whole")])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_death_between_the_last_checkpoint_and_the_export(data, tmp_path, monkeypatch):
    config = TrainConfig(data=data, out=tmp_path / "whole", **SETTINGS)
    train(config)
    parts = dataclasses.replace(config, out=tmp_path / "parts", resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(FramePredictor, "save_pretrained", stop)
        with pytest.raises(Stop):
            train(parts)
    assert not (parts.out / "model").exists()
    train(parts)
    assert_same_run(parts.out, config.out)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> TrainConfig:
    config = TrainConfig(data=data, out=tmp_path_factory.mktemp("runs") / "finished", **SETTINGS)
    train(config)
    return config


def test_finished_run_returns_at_once(finished, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in finished.out.rglob("*")}
    monkeypatch.setattr(recipe, "split", None)  # not even the data are read
    assert train(dataclasses.replace(finished, resume=True)) == finished.out
    elsewhere = dataclasses.replace(finished, resume=True, data=Path("moved.npy"), threads=1, device="auto")
    with pytest.warns(UserWarning, match=r"is finished, with .*; nothing was trained on moved\.npy"):
        assert train(elsewhere) == finished.out
    assert {f: f.stat().st_mtime_ns for f in finished.out.rglob("*")} == before


def test_existing_run_is_not_overwritten(finished, monkeypatch):
    monkeypatch.setattr(recipe, "split", None)
    with pytest.raises(InputError, match=r"expected a new output directory; found a run in .*--resume"):
        train(finished)
    with pytest.raises(
        InputError, match=r"modes=4, noise=0.0; found modes=5, noise=0.2; resume with the same"
    ):
        train(dataclasses.replace(finished, resume=True, modes=5, noise=0.2))


def test_unfinished_run_does_not_continue_on_other_data(data, tmp_path, monkeypatch):
    config = TrainConfig(data=data, out=tmp_path / "run", resume=True, **SETTINGS)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 5)
        with pytest.raises(Stop):
            train(config)
    other = save_waves(tmp_path / "other.npy", seed=1)
    with pytest.raises(
        InputError, match=r"the data of the run in .*standard deviation.*; pass the same --data"
    ):
        train(dataclasses.replace(config, data=other))
    trajectories = np.load(data)
    for name, changed in {
        "longer": np.concatenate([trajectories, 2 * trajectories]),  # others are held out
        "reordered": np.concatenate([trajectories[1::-1], trajectories[2:]]),
    }.items():
        np.save(tmp_path / f"{name}.npy", changed)
        with pytest.raises(InputError, match=r"the data of the run in .*held out.*; pass the same --data"):
            train(dataclasses.replace(config, data=tmp_path / f"{name}.npy"))
    moved = Path(data).rename(tmp_path / "moved.npy")
    try:
        train(dataclasses.replace(config, data=moved))
    finally:
        moved.rename(data)
