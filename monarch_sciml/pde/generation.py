"""Navier–Stokes trajectories into one HDF5 file, resumable after any interruption.

Layout "monarch_sciml trajectories 1": dataset ``w`` float32 (N, T, x, y), the vorticity, whose first frame is
the initial condition; dataset ``t`` float64 (T,), the times; attributes ``layout``, ``viscosity``, ``config``
(JSON), ``version`` of this package and ``finished``, the number of samples written. ``w`` is contiguous:
reading one frame or one trajectory touches only its own bytes.
"""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import h5py
import numpy as np
import torch
from tqdm import tqdm

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes
from monarch_sciml.training.distributed import local_device, world
from monarch_sciml.training.files import lock, whole_file

__all__ = ["LAYOUT", "GenerateConfig", "generate"]

LAYOUT = "monarch_sciml trajectories 1"
LARGEST = 65536  # points per side
LONGEST = 10**7  # frames


@dataclass(frozen=True)
class GenerateConfig:
    """What to simulate; the same configuration always gives the same file."""

    samples: int = 1200
    """Number of trajectories."""
    resolution: int = 64
    """Points per side of the stored grid."""
    viscosity: float = 1e-3
    """Viscosity ν."""
    end_time: float = 50.0
    """Time of the last frame; the first frame is t = 0."""
    record_interval: float = 1.0
    """Time between frames."""
    seed: int = 0
    """Seed of the initial conditions."""
    forcing: bool = True
    """With --no-forcing the flow decays; otherwise 0.1 (sin 2π(x + y) + cos 2π(x + y)) drives it."""
    scale: float = 1.0
    """Amplitude of the initial condition; 1 for the released FNO data, 0.7071 for its later rewrite."""
    solver_resolution: int | None = None
    """Points per side of the solver's grid, a multiple of the resolution; 256 for ν = 1e-5."""
    batch: int = 16
    """Trajectories solved at once, with a common time step: 16 at 64² and 4 at 256² suit a CPU's cache."""

    def __post_init__(self) -> None:
        steps = self.end_time / self.record_interval if self.record_interval > 0 else 0
        if not math.isfinite(steps) or not 0.5 < steps < LONGEST or abs(steps - round(steps)) > 1e-6:
            raise InputError(
                "an end_time that is a multiple of a positive record_interval",
                f"end_time={self.end_time}, record_interval={self.record_interval}",
                "change one of them",
            )
        least = min(self.samples, self.batch, self.resolution)
        numbers = math.isfinite(self.scale) and 0 <= self.viscosity < math.inf
        grids = least >= 1 and 4 <= self.grid <= LARGEST and self.grid % self.resolution == 0
        if not grids or self.seed < 0 or not numbers:
            raise InputError(
                "samples, batch and resolution ≥ 1, seed and viscosity ≥ 0, finite numbers "
                f"and a solver_resolution of 4 to {LARGEST}, by default the resolution, "
                "that is a multiple of resolution",
                ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(self).items()),
                "correct these settings",
            )

    @property
    def grid(self) -> int:
        """Points per side of the solver's grid."""
        return self.resolution if self.solver_resolution is None else self.solver_resolution

    @property
    def times(self) -> list[float]:
        """Times of the frames, the first of which is 0."""
        return np.linspace(0, self.end_time, round(self.end_time / self.record_interval) + 1).tolist()

    def to_json(self) -> str:
        """The configuration as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def generate(
    path: str | Path, config: GenerateConfig, progress: bool = True, *, device: torch.device | str = "cpu"
) -> Path:
    """Simulate ``config`` into the HDF5 file ``path`` and return its path.

    Initial conditions are Gaussian random fields, each seeded by (seed, sample index) alone. The file grows
    as ``<path>.partial``, one batch at a time, and takes its name when complete, beside its configuration
    ``<stem>.json``. A killed run continues where it stopped, with bitwise the same result; a complete file
    of the same configuration is left as it is. Memory holds one batch; one CPU thread does the work.

    Several processes (``torchrun``, ``srun``) share the batches: each leaves those of its own as
    ``<path>.partial.<first sample>``, and the last one to finish puts them together, for which there has to
    be room twice. None waits for another: the file is there when all have returned. If one of them failed, a
    rerun, by any number of processes, does what is missing.

    Raises:
        InputError: the path cannot be written, another process is writing it, or a file of another
            configuration is in the way.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError("a file name ending in .h5 or .hdf5", path.name, "rename the output")
    rank, size = world()
    device = local_device(device) if isinstance(device, str) else device
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            for part in _parts(path):
                _check_file(part, config)
            with _one_thread():
                if size > 1:
                    _write_parts(path, config, device, progress and rank == 0)
                if size == 1 or not _missing(path, config):
                    _write_file(path, config, device, progress and size == 1)
        if path.exists():
            _check_file(path, config)
            for part in _parts(path):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"a path that can be read and written, with room for {_bytes(config) / 1e9:.3g} GB",
            f"{error}",
            f"free the disk, mend permissions or choose another path than {path}",
        ) from error
    return path


def _bytes(config: GenerateConfig) -> int:
    return 4 * config.samples * len(config.times) * config.resolution**2


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _part(path: Path, start: int) -> Path:
    """Where a process among several leaves the batch that begins with sample ``start``."""
    return path.with_name(f"{path.name}.partial.{start:06d}")


def _parts(path: Path) -> list[Path]:
    """Those that are there, whole."""
    names = re.compile(re.escape(path.name) + r"\.partial\.\d+")
    return [found for found in path.parent.iterdir() if names.fullmatch(found.name)]


def _missing(path: Path, config: GenerateConfig) -> list[int]:
    """First samples of the batches that nobody has simulated yet."""
    if path.exists():
        return []
    there, finished = {*_parts(path)}, 0
    if _partial(path).exists():
        with _partial(path).open("rb") as stream:
            finished = _finished(stream) or 0
    starts = range(0, config.samples, config.batch)
    return [start for start in starts if start >= finished and _part(path, start) not in there]


def _check_file(path: Path, config: GenerateConfig) -> None:
    with h5py.File(path, "r") as file:
        _check_config(file, path, config)


def _check_config(file: h5py.File, path: Path, config: GenerateConfig) -> None:
    found = file.attrs.get("config", "no configuration")
    try:
        same = json.loads(found) == json.loads(config.to_json())  # 21 is 21.0
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{path.name} made with the configuration {' '.join(config.to_json().split())}",
            " ".join(str(found).split()),
            "choose another output name, or delete the file to make it anew",
        )


# ------------------------------------------------------------------------------- one process, or the last one


def _write_file(path: Path, config: GenerateConfig, device: torch.device | str, progress: bool) -> None:
    """The whole file, of the parts that are there and of batches simulated here."""
    try:
        with _open_partial(path, config) as file:
            _fill(file, path, config, device, progress)
            with whole_file(path.with_suffix(".json")) as settings:
                settings.write_text(config.to_json() + "\n")
            os.replace(_partial(path), path)  # while it is locked
    except BlockingIOError as error:
        if not _missing(path, config):
            return  # another of the processes has seen it too, and puts them together
        raise InputError(
            f"{_partial(path).name} to be free",
            "that another process is writing it",
            "wait for it, or choose another output name",
        ) from error


@contextmanager
def _open_partial(path: Path, config: GenerateConfig) -> Iterator[h5py.File]:
    """The unfinished file where it stopped, or a new one if there is none that can be read.

    HDF5 writes through a Python file, which reports a failing disk; its own writing ends the process there.
    Raises ``BlockingIOError`` if another process has the file, or has just finished it.
    """
    partial = _partial(path)
    with open(partial, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)) as stream:
        lock(stream.fileno())
        if not partial.exists() or not os.path.samestat(os.fstat(stream.fileno()), partial.stat()):
            raise BlockingIOError  # it was finished between opening and locking
        if path.exists():  # or before that, and what is locked is a new one
            partial.unlink()
            raise BlockingIOError
        if _finished(stream) is None:
            try:
                _create(stream, partial, config)
            except OSError:
                partial.unlink()
                raise
        with h5py.File(stream, "r+") as file:
            _check_config(file, partial, config)
            yield file


def _finished(stream: BinaryIO) -> int | None:
    """How many samples an unfinished file holds; None if it is damaged, or only begun."""
    try:
        with h5py.File(stream, "r") as file:
            return int(cast(int, file.attrs["finished"]))
    except (OSError, KeyError):
        return None


def _create(stream: BinaryIO, partial: Path, config: GenerateConfig) -> None:
    """All of the file but its data, and the room for them."""
    free = shutil.disk_usage(partial.parent).free
    if free < _bytes(config):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free / 1e9:.3g} GB free)")
    shape = (config.samples, len(config.times), config.resolution, config.resolution)
    stream.truncate(0)
    with h5py.File(stream, "w") as file:
        file["t"] = np.array(config.times)
        w = file.create_dataset("w", shape, dtype="float32")
        w[0, 0, 0, 0] = 0  # allocates w: from here on only data and ``finished`` change, in place
        file.attrs["layout"] = LAYOUT
        file.attrs["viscosity"] = config.viscosity
        file.attrs["config"] = config.to_json()
        file.attrs["version"] = __version__
        file.flush()
        if hasattr(os, "posix_fallocate"):  # claim the space now, not when hours of work are done
            os.posix_fallocate(stream.fileno(), 0, stream.seek(0, os.SEEK_END))
        file.attrs["finished"] = 0  # last, as the sign that the rest is there


def _fill(
    file: h5py.File, path: Path, config: GenerateConfig, device: torch.device | str, progress: bool
) -> None:
    """Write the missing batches. Their bounds depend on the index alone, hence so does the result."""
    w = cast(h5py.Dataset, file["w"])
    finished = cast(int, file.attrs["finished"])
    with tqdm(total=config.samples, initial=finished, unit="trajectory", disable=not progress) as bar:
        for start in range(finished, config.samples, config.batch):
            stop = min(start + config.batch, config.samples)
            part = _part(path, start)
            w[start:stop] = _read(part) if part.exists() else _simulate(config, range(start, stop), device)
            file.flush()  # the data before the count of them
            file.attrs.modify("finished", stop)
            file.flush()
            bar.update(stop - start)


# ---------------------------------------------------------------------------------------- among several


def _write_parts(path: Path, config: GenerateConfig, device: torch.device | str, progress: bool) -> None:
    """The batches of this process. They are known by their index, whatever the number of processes."""
    rank, size = world()
    room = 2 * _bytes(config) - sum(part.stat().st_size for part in _parts(path))
    free = shutil.disk_usage(path.parent).free
    if free < room and not _partial(path).exists():
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free / 1e9:.3g} GB free)")
    mine = {*range(0, config.samples, config.batch)[rank::size]}
    missing = [start for start in _missing(path, config) if start in mine]
    for start in tqdm(missing, unit="batch", disable=not progress):
        frames = _simulate(config, range(start, min(start + config.batch, config.samples)), device)
        with (
            whole_file(_part(path, start)) as new,
            new.open("w+b") as stream,
            h5py.File(stream, "w") as file,
        ):
            file["w"] = frames
            file.attrs["config"] = config.to_json()


def _read(part: Path) -> np.ndarray:
    with h5py.File(part, "r") as file:
        return cast(h5py.Dataset, file["w"])[()]


# --------------------------------------------------------------------------------------------- simulation


@contextmanager
def _one_thread() -> Iterator[None]:
    """Kernels this small lose by being shared out, sixfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _simulate(config: GenerateConfig, samples: range, device: torch.device | str) -> np.ndarray:
    """Trajectories (len(samples), T, x, y) on the stored grid."""
    fields = [
        gaussian_random_field(1, config.grid, scale=config.scale, generator=_generator(config.seed, i))
        for i in samples
    ]
    forcing = "standard" if config.forcing else None
    w = solve_navier_stokes(torch.cat(fields).to(device), config.viscosity, config.times, forcing=forcing)
    stride = config.grid // config.resolution
    return w[..., ::stride, ::stride].cpu().numpy()


def _generator(seed: int, sample: int) -> torch.Generator:
    """Random numbers of one sample, distinct within a data set: torch's CPU generator heeds 32 bits only."""
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((base + sample) % 2**32)
