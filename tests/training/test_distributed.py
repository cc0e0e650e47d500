"""Two processes train what one does: same curve, same weights, one voice, one end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch
from small_runs import table, weights
from waves import waves

from monarch_sciml.errors import InputError
from monarch_sciml.mri import recipe as mri_recipe
from monarch_sciml.mri.simulation import SimulateConfig, simulate
from monarch_sciml.pde import recipe as pde_recipe
from monarch_sciml.training import distributed
from monarch_sciml.training.distributed import Part, launch, world


def assert_same_curve(a: Path, b: Path, rows: int) -> None:
    """Every row of metrics.csv and the exported weights, to rounding."""
    assert len(table(a)) == len(table(b)) == rows
    for x, y in zip(table(a), table(b), strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"seconds"}:
            assert float(x[name]) == pytest.approx(float(y[name]), rel=1e-5), name
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """The data, the runs of one process, and all that two processes did."""
    folder = tmp_path_factory.mktemp("stage")
    np.save(folder / "waves.npy", waves())
    simulate(folder / "kspace", SimulateConfig(volumes=3, slices=1, shape=(24, 20), coils=(2, 3), seed=2))
    (extra,) = simulate(folder / "kspace2", SimulateConfig(volumes=1, slices=1, shape=(21, 26), seed=3))
    extra.rename(folder / "kspace" / "a_odd.h5")
    pde_recipe.train(scenes.pde_config(folder, "pde1"))
    mri_recipe.train(scenes.mri_config(folder, "mri1"))
    with pytest.raises(KeyboardInterrupt, match="after step 5,"):  # of 9, 3 an epoch
        scenes.interrupted_at(scenes.pde_config(folder, "parts"), 4)
    launch(scenes.act, folder, 2)
    return folder


def ends(stage: Path, scene: str) -> tuple[str, str]:
    """How it ended on rank 0 and on rank 1."""
    first, second = (json.loads((stage / f"rank{rank}.json").read_text())[scene] for rank in (0, 1))
    return first, second


@pytest.mark.parametrize(("recipe", "rows"), [("pde", 3), ("mri", 2)])
def test_two_processes_train_what_one_does(stage, recipe, rows):
    assert ends(stage, recipe) == (f"{recipe}2", f"{recipe}2")
    assert_same_curve(stage / f"{recipe}2", stage / f"{recipe}1", rows)
    last = torch.load(stage / f"{recipe}2/last.ckpt", weights_only=True)
    assert last["global_step"] == {"pde": 9, "mri": 4}[recipe]


def test_one_then_two_then_one_process(stage):
    """Stopped in the middle of an epoch each time, the second time by a signal to one of the two."""
    first, second = ends(stage, "goes_on")
    assert re.match(r"KeyboardInterrupt: interrupted after step 8, which .*last.ckpt holds", first), first
    assert second == "SystemExit: 130"
    pde_recipe.train(scenes.pde_config(stage, "parts"))
    assert_same_curve(stage / "parts", stage / "pde1", 3)


@pytest.mark.parametrize(
    ("scene", "match"),
    [
        ("refused", r"InputError: .*found no.*nothing.npy"),
        ("too_many", r"InputError: expected a batch that 2 processes can share, .*; found batch=1; change"),
        ("infinite", r"InputError: expected a finite loss; found nan at step 5; lower the learning rate"),
        ("full", r"InputError: expected a run directory that can be written; found .*No space left"),
        ("damaged", r"InputError: expected a readable slice; found damage; copy the file again"),
    ],
)
def test_what_stops_one_process_stops_both_and_one_says_it(stage, scene, match):
    first, second = ends(stage, scene)
    assert re.match(match, first), first
    assert second == "SystemExit: 2"


def test_refusals_leave_what_was_there(stage):
    assert not (stage / "refused").exists()
    assert not (stage / "odd").exists()
    assert torch.load(stage / "infinite" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert [f.name for f in (stage / "full").glob("*ckpt*")] == []


def test_sharded_training_of_the_page(stage, tmp_path, monkeypatch):
    """Two processes and their checkpoint, or one: the same weights."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    scenes.shard(tmp_path, scenes.free_port())
    one, two = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, stage / "page2"))
    assert one.keys() == two.keys()
    assert sorted(path.name for path in (stage / "page2" / "sharded").iterdir()) == ["2", "4"]
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)


OPTIONS = "--modes 4 --width 4 --layers 2 --n-train 5 --n-test 3 --epochs 5000 --batch 8 --device cpu --quiet"
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
STARTS = {
    "one": (signal.SIGINT, 130),
    "devices": (signal.SIGTERM, 130),
    "torchrun": (signal.SIGTERM, 1),  # its own status, whatever the processes say
}


def started(name: str, data: Path, out: Path) -> subprocess.Popen[str]:
    program = (
        [*TORCHRUN, str(scenes.free_port()), "-m", "monarch_sciml"]
        if name == "torchrun"
        else ["monarch_sciml"]
    )
    more = ["--devices", "2"] if name == "devices" else []
    settings = [*OPTIONS.split(), "--data", str(data), "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-m", *program, "pde", "train", *settings],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_real_signals_to_real_commands(stage, tmp_path):
    """All at a time, as starting takes seconds: each ends its step, saves it, and one line says so."""
    commands = {name: started(name, stage / "waves.npy", tmp_path / name) for name in STARTS}
    try:
        for name, process in commands.items():
            while not (tmp_path / name / "metrics.csv").exists() and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(STARTS[name][0])
        for name, process in commands.items():
            out, err = process.communicate(timeout=120)
            said = [line for line in err.splitlines() if line.startswith("monarch-sciml:")]
            assert len(said) == 1, (name, err)
            step = re.match(r"monarch-sciml: interrupted after step (\d+), which .*--resume$", said[0])
            assert step, said
            assert process.returncode == STARTS[name][1]
            assert out == ""
            checkpoint = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
            assert checkpoint["global_step"] == int(step[1])
            assert not list((tmp_path / name).glob("*.partial"))
    finally:
        for process in commands.values():
            process.kill()
            process.communicate()


def test_a_first_process_that_dies_is_named():
    with pytest.raises(
        InputError, match=r"found the end of process 0 with status -9; see above .*continues with --resume"
    ):
        launch(scenes.die, None, 1)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_an_interruption_before_the_training_is_none_of_its_failures(signals):
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; continue with --resume$"):
        launch(scenes.interrupt_too_early, signals, 1)


def test_an_answer_may_be_of_any_length():
    """A pipe holds 64 KiB; messages may hold what is in a file."""
    assert launch(str, "x" * 10**6, 1) == "x" * 10**6


@pytest.mark.parametrize("whole", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_make_up_the_batch(monkeypatch, whole, size):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    taken = []
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        part = Part.of(whole)
        assert part.whole == whole
        mine = list(range(whole))[part.mine]
        assert len(mine) == part.counted or (part.counted == 0 and mine == list(range(whole))[:1])
        taken += mine[: part.counted]
    assert taken == list(range(whole))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "9"}, (3, 4)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3"}, (2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, (0, 1)),  # a batch script, outside of srun
    ],
)
def test_world(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert world() == expected


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "")])
def test_world_that_makes_no_sense(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match="expected RANK below WORLD_SIZE; found"):
        world()


def test_srun_in_the_words_of_torchrun(monkeypatch):
    step = {"PROCID": 5, "STEP_NUM_TASKS": 8, "LOCALID": 1, "STEP_TASKS_PER_NODE": "4(x2)", "NODEID": 1}
    step |= {"STEP_NODELIST": "gpu[3-4]", "JOB_ID": 4242}
    monkeypatch.setattr(os, "environ", {f"SLURM_{name}": str(value) for name, value in step.items()})
    distributed._as_torchrun()
    found = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    assert found == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu3",
        "MASTER_PORT": "15242",
    }


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu1", "gpu1"), ("gpu[03-05,9],cpu1", "gpu03"), ("a,b", "a"), ("n[1,4]", "n1"), ("a-b[7]", "a-b7")],
)
def test_first_host_of_a_slurm_list(hosts, first):
    assert distributed._first_host(hosts) == first
