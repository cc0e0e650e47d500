"""What two processes do together in test_distributed.py; each writes down how every scene ended."""

import dataclasses
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_loop import DATA, Experiment, X

from monarch_sciml.errors import InputError
from monarch_sciml.mri import recipe as mri_recipe
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.pde import recipe as pde_recipe
from monarch_sciml.training import files
from monarch_sciml.training.distributed import joined, world

__all__ = [
    "act",
    "die",
    "free_port",
    "interrupt_too_early",
    "interrupted_at",
    "mri_config",
    "pde_config",
    "shard",
]


def pde_config(folder: Path, out: str, **changes: Any) -> pde_recipe.TrainConfig:
    """25 windows in batches of 10: the last one holds 5, of which two processes have two and three."""
    settings = {"modes": 4, "width": 4, "layers": 2, "n_train": 5, "n_test": 3, "epochs": 3, "noise": 0.1}
    settings |= {"batch": 10, "device": "cpu", "quiet": True, "resume": True}
    return pde_recipe.TrainConfig(folder / "waves.npy", folder / out, **{**settings, **changes})


def mri_config(folder: Path, out: str, **changes: Any) -> mri_recipe.TrainConfig:
    """Three slices in batches of 2: of the last batch one process has none."""
    settings = {"maps": "low-resolution", "n_test": 1, "cascades": 2, "channels": 2, "pools": 1, "epochs": 2}
    settings |= {"batch": 2, "device": "cpu", "quiet": True, "learning_rate": 1e-3}
    sampling = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    return mri_recipe.TrainConfig(
        folder / "kspace", folder / out, sampling=sampling, **{**settings, **changes}
    )


def interrupted_at(config: pde_recipe.TrainConfig, step: int) -> None:
    """Train until this process is told to stop in this step, counted from where the run is."""
    original, calls = pde_recipe.relative_l2, iter(range(10**6))

    def stopping(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    pde_recipe.relative_l2 = stopping
    try:
        pde_recipe.train(config)
    finally:
        pde_recipe.relative_l2 = original


def act(folder: Path) -> None:
    """All scenes, in one world of two processes."""
    rank, _ = world()
    ends = {}
    with joined("cpu"):
        for scene in (pde, mri, goes_on, refused, too_many, infinite, full, damaged):
            try:
                ends[scene.__name__] = f"{scene(folder, rank)}"
            except (Exception, SystemExit, KeyboardInterrupt) as end:
                ends[scene.__name__] = f"{type(end).__name__}: {end}"
        port = [free_port()]
        dist.broadcast_object_list(port)
    (folder / f"rank{rank}.json").write_text(json.dumps(ends))
    (folder / "page2").mkdir(exist_ok=True)
    shard(folder / "page2", port[0])


def die(argument: Any) -> None:
    """Without a word, as a process that the system ends for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_too_early(signals: list[int]) -> None:
    """Have whoever launched this process told to stop while it does not listen yet."""
    for number in signals:
        os.kill(os.getppid(), number)
    time.sleep(60)


def free_port() -> int:
    """One that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def shard(folder: Path, port: int) -> None:
    """The last code of the page on several GPUs: once, then from its checkpoint."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "multi-gpu.md").read_text()
    code = page.split("```python\n")[-1].split("```")[0]
    before = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(2):
            os.environ["MASTER_PORT"] = str(port)
            exec(compile(code, "multi-gpu.md", "exec"), {})
            port += 1
    finally:
        os.chdir(before)


def pde(folder: Path, rank: int) -> Path:
    return pde_recipe.train(pde_config(folder, "pde2")).relative_to(folder)


def mri(folder: Path, rank: int) -> Path:
    return mri_recipe.train(mri_config(folder, "mri2")).relative_to(folder)


def goes_on(folder: Path, rank: int) -> None:
    """A run that one process began; only rank 1 is told to stop."""
    interrupted_at(pde_config(folder, "parts", checkpoint_minutes=0), 2 if rank == 1 else -1)


def refused(folder: Path, rank: int) -> None:
    """Rank 1 does not see the data."""
    config = pde_config(folder, "refused")
    pde_recipe.train(dataclasses.replace(config, data=folder / "nothing.npy") if rank else config)


def too_many(folder: Path, rank: int) -> None:
    mri_recipe.train(mri_config(folder, "odd", batch=1))


def infinite(folder: Path, rank: int) -> None:
    """The loss of rank 1 alone is no number, in the second epoch."""
    experiment = Experiment()

    def destroy(step: int) -> None:
        if step == 4 and rank == 1:
            X[:] = torch.nan

    experiment.at_step = destroy
    before = X.clone()
    try:
        experiment.fit(folder / "infinite")
    finally:
        X[:] = before


def full(folder: Path, rank: int) -> None:
    """Rank 0, which writes, finds the disk full."""
    replace = files.os.replace

    def no_space(source: Path, target: Path) -> None:
        if Path(target).name == "last.ckpt" and int(os.environ["RANK"]) == 0:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    files.os.replace = no_space
    try:
        Experiment().fit(folder / "full")
    finally:
        files.os.replace = replace


def damaged(folder: Path, rank: int) -> None:
    """A sample of rank 1 cannot be read."""
    read = type(DATA).__getitem__

    def refuse(self: Any, index: int) -> Any:
        if rank == 1:
            raise InputError("a readable slice", "damage", "copy the file again")
        return read(self, index)

    type(DATA).__getitem__ = refuse
    try:
        Experiment().fit(folder / "damaged")
    finally:
        type(DATA).__getitem__ = read
