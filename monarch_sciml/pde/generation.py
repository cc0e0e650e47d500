"""Navier–Stokes trajectories into one HDF5 file, resumable after any interruption.

Layout "monarch_sciml trajectories 1": dataset ``w`` float32 (N, T, x, y), the vorticity, whose first frame is
the initial condition; dataset ``t`` float64 (T,), the times; attributes ``layout``, ``viscosity``, ``config``
(JSON), ``version`` of this package and ``finished``, the number of samples written. ``w`` is contiguous:
reading one frame or one trajectory touches only its own bytes.
"""

import dataclasses
import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import torch
from tqdm import tqdm

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes

__all__ = ["LAYOUT", "GenerateConfig", "generate"]

LAYOUT = "monarch_sciml trajectories 1"


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
    """Drive the flow with 0.1 (sin 2π(x + y) + cos 2π(x + y)); without it the flow decays."""
    scale: float = 1.0
    """Amplitude of the initial condition; 1 for the released FNO data, 0.7071 for its later rewrite."""
    solver_resolution: int | None = None
    """Points per side of the solver's grid, a multiple of the resolution; 256 for ν = 1e-5."""
    batch: int = 16
    """Trajectories solved at once, with a common time step: 16 at 64² and 4 at 256² suit a CPU's cache."""

    def __post_init__(self) -> None:
        steps = self.end_time / self.record_interval if self.record_interval > 0 else 0
        if steps < 0.5 or abs(steps - round(steps)) > 1e-6:
            raise InputError(
                "an end_time that is a multiple of a positive record_interval",
                f"end_time={self.end_time}, record_interval={self.record_interval}",
                "change one of them",
            )
        least = min(self.samples, self.batch, self.resolution)
        if least < 1 or self.seed < 0 or self.viscosity < 0 or self.grid % self.resolution:
            raise InputError(
                "samples, batch and resolution ≥ 1, seed and viscosity ≥ 0, "
                "and a solver_resolution that is a multiple of resolution",
                ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(self).items()),
                "correct these settings",
            )

    @property
    def grid(self) -> int:
        """Points per side of the solver's grid."""
        return self.solver_resolution or self.resolution

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

    Raises:
        InputError: the path cannot be written, another process is writing it, or a file of another
            configuration is in the way.
    """
    path = Path(path)
    if path.suffix not in (".h5", ".hdf5"):
        raise InputError("a file name ending in .h5 or .hdf5", f"{path.name}", "rename the output")
    partial = path.with_name(path.name + ".partial")
    try:
        if path.exists():
            with h5py.File(path, "r") as file:
                _check_config(file, path, config)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_partial(partial, config) as file:
            _fill(file, config, device, progress)
        path.with_suffix(".json").write_text(config.to_json() + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"a path that can be read and written, with room for {_bytes(config) / 1e9:.3g} GB",
            f"{error}",
            f"free the disk, mend permissions or choose another path than {path}",
        ) from error
    return path


def _bytes(config: GenerateConfig) -> int:
    return 4 * config.samples * len(config.times) * config.resolution**2


def _check_config(file: h5py.File, path: Path, config: GenerateConfig) -> None:
    found = file.attrs.get("config", "no configuration")
    if found != config.to_json():
        raise InputError(
            f"{path.name} made with the configuration {' '.join(config.to_json().split())}",
            " ".join(str(found).split()),
            "choose another output name, or delete the file to make it anew",
        )


def _open_partial(partial: Path, config: GenerateConfig) -> h5py.File:
    """Open the unfinished file where it stopped, or a new one if there is none that can be read."""
    try:
        file = h5py.File(partial, "r+")
    except BlockingIOError as error:
        raise InputError(
            f"{partial.name} to be free",
            "that another process is writing it",
            "wait for it, or choose another output name",
        ) from error
    except OSError:  # absent, or cut off while being created
        return _create(partial, config)
    if "finished" not in file.attrs:
        file.close()
        return _create(partial, config)
    try:
        _check_config(file, partial, config)
    except InputError:
        file.close()
        raise
    return file


def _create(partial: Path, config: GenerateConfig) -> h5py.File:
    partial.unlink(missing_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if free < _bytes(config):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free / 1e9:.3g} GB free)")
    file = h5py.File(partial, "w")
    file["t"] = np.array(config.times)
    shape = (config.samples, len(config.times), config.resolution, config.resolution)
    w = file.create_dataset("w", shape, dtype="float32")
    w[0, 0, 0, 0] = 0  # allocates w: from here on only data and ``finished`` change, in place
    file.attrs["layout"] = LAYOUT
    file.attrs["viscosity"] = config.viscosity
    file.attrs["config"] = config.to_json()
    file.attrs["version"] = __version__
    file.flush()
    if hasattr(os, "posix_fallocate"):  # claim the space now: HDF5 does not survive a disk that fills later
        with open(partial, "r+b") as raw:
            os.posix_fallocate(raw.fileno(), 0, partial.stat().st_size)
    file.attrs["finished"] = 0  # last, as the sign that the rest is there
    file.flush()
    return file


def _fill(file: h5py.File, config: GenerateConfig, device: torch.device | str, progress: bool) -> None:
    """Simulate the missing batches. Their bounds depend on the index alone, hence so does the result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # kernels this small lose by being shared out, sixfold on a busy machine
    try:
        _fill_on_one_thread(file, config, device, progress)
    finally:
        torch.set_num_threads(threads)


def _fill_on_one_thread(
    file: h5py.File, config: GenerateConfig, device: torch.device | str, progress: bool
) -> None:
    w = cast(h5py.Dataset, file["w"])
    finished = cast(int, file.attrs["finished"])
    with tqdm(total=config.samples, initial=finished, unit="trajectory", disable=not progress) as bar:
        for start in range(finished, config.samples, config.batch):
            stop = min(start + config.batch, config.samples)
            frames = _simulate(config, range(start, stop), device)
            try:
                w[start:stop] = frames
                file.flush()  # the data before the count of them
                file.attrs.modify("finished", stop)
                file.flush()
            except RuntimeError as error:  # as which HDF5 reports a failed write
                raise OSError(error) from error
            bar.update(stop - start)


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
