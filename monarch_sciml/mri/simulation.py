"""Simulated k-space in fastMRI's layout: objects finer than the grid, coil maps, coloured noise.

Nothing is downloaded and nobody is shown: the data to try things out with, to train on, and to test with.
"""

import dataclasses
import errno
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import h5py
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.linalg.fourier import FourierTransform
from monarch_sciml.mri.header import write_header
from monarch_sciml.mri.masks import MaskConfig, apply_mask, central, draw_mask, volume_seed
from monarch_sciml.mri.phantoms import coil_maps, random_phantom, shepp_logan
from monarch_sciml.mri.sensitivity import root_sum_of_squares
from monarch_sciml.mri.writers import write_volume
from monarch_sciml.training.distributed import world

__all__ = ["SimulateConfig", "SimulatedVolume", "simulate", "simulate_volume"]

Phantom = Literal["random", "shepp-logan"]

UNIT = 1e-4  # is brightness 1 in the files: raw data are small numbers, and code must cope with them
NOISE_MIXING = 0.15  # of each coil's noise, in amplitude, comes from the others
CENTRE_TIMES_RATE = 0.32  # fully sampled centre of undersampled files: 8 % of the columns at 4×, 4 % at 8×
FIELD_OF_VIEW = 220.0  # mm along the longer side; the pixels are square
THICKNESS = 5.0  # mm
MOST = 1_000_000  # volumes


@dataclass(frozen=True)
class SimulateConfig:
    """What to simulate; the same configuration always gives the same files. In Python, coils and noise
    may be single numbers."""

    volumes: int = 24
    """Number of files; more of them extend a set that is there."""
    slices: int = 4
    """Slices per volume, through the middle of the object."""
    shape: tuple[int, int] = (128, 128)
    """Points of k-space: readout, phase encoding."""
    coils: tuple[int, ...] = (4, 6, 8, 12, 16)
    """Each volume draws one of these numbers of coils; 1 alone gives single-coil files."""
    phantom: Phantom = "random"
    """Another object in every volume, or the Shepp–Logan phantom in all of them."""
    noise: tuple[float, float] = (0.003, 0.02)
    """Range of the standard deviation of a coil's noise, log-uniform, where the image is about 1 bright."""
    acceleration: float | None = None
    """Keep one column in so many and no target, as in fastMRI's test files; otherwise all of k-space."""
    seed: int = 0
    """Seed of everything; volume i depends on the seed and i alone."""

    def __post_init__(self) -> None:
        if isinstance(self.coils, int):
            object.__setattr__(self, "coils", (self.coils,))
        if isinstance(self.noise, int | float):
            object.__setattr__(self, "noise", (self.noise, self.noise))

        def check(fine: bool, expected: str, names: str, remedy: str) -> None:
            if not fine:
                found = ", ".join(f"{name}={getattr(self, name)}" for name in names.split())
                raise InputError(expected, found, remedy)

        several = 1 <= self.volumes <= MOST and self.slices >= 1
        expected = f"at least one volume of at least one slice, and {MOST} volumes at most"
        check(several, expected, "volumes slices", "change them")
        check(self.seed >= 0, "a seed ≥ 0", "seed", "change it")
        size = len(self.shape) == 2 and min(self.shape) >= 8
        check(size, "a shape (H, W) of at least 8 × 8", "shape", "enlarge it")
        counts = len(self.coils) > 0 and 1 <= min(self.coils) <= max(self.coils) <= 1024
        check(counts, "numbers of coils from 1 to 1024", "coils", "give one or more")
        alike = 1 not in self.coils or set(self.coils) == {1}
        expected = "several coils in every volume, or one in all: their files differ"
        check(alike, expected, "coils", "simulate two sets")
        check(self.phantom in get_args(Phantom), f"one of {get_args(Phantom)}", "phantom", "choose one")
        ordered = len(self.noise) == 2 and 0 < self.noise[0] <= self.noise[1] < math.inf
        check(ordered, "noise (low, high) with 0 < low ≤ high", "noise", "swap or change them")
        rate = self.acceleration is None or 1 <= self.acceleration < math.inf
        check(rate, "an acceleration of 1 or more", "acceleration", "keep one column in so many")

    @property
    def recipe(self) -> dict[str, Any]:
        """What a volume depends on, in the types of JSON: all but the number of volumes."""
        settings = dataclasses.asdict(self)
        del settings["volumes"]
        return json.loads(json.dumps(settings))


class SimulatedVolume(NamedTuple):
    """A volume before any undersampling, in the units of the files."""

    kspace: Tensor  # complex64 (slices, coils, H, W), or (slices, H, W) of a single coil
    target: Tensor  # float32 (slices, H, W): root sum of squares of the coil images without noise
    noise: float  # σ: the complex noise of each coil has E|ε|² = σ², in k-space as in the image


def simulate_volume(config: SimulateConfig, index: int) -> SimulatedVolume:
    """Volume ``index`` of the set; random numbers are those of (seed, index), whatever else was simulated.

    ``y_c = (1/2) crop(F (S_c x)) + ε_c``: the object x and the coil maps S (Σ|S|² = 1) have twice the points
    along each axis, F is the centred orthonormal Fourier transform, and the central H × W points of k-space
    are kept. So edges ring as measured ones do, and no network can learn the grid that x was made on. The
    noise is white over k-space and correlated between coils: ε = A g with g standard complex normal, the rows
    of A, identity plus a random mixture, of norm σ. A pixel of the image keeps the brightness of x. The
    target has no noise, which only a simulation can offer: a root sum of squares of noisy images has a floor
    of about σ√C everywhere, and whoever removes noise would be marked down for it.
    """
    rng = np.random.default_rng([config.seed, index])
    height, width = config.shape
    fine = (2 * height, 2 * width)
    coils = int(rng.choice(config.coils))
    objects = (
        random_phantom(fine, config.slices, rng)
        if config.phantom == "random"
        else shepp_logan(fine, config.slices)
    )
    # a single coil that sees everything alike leaves the object's own phase
    maps = coil_maps(coils, fine, rng) if coils > 1 else np.ones((1, 1, 1))
    mixing = np.eye(coils) + NOISE_MIXING / math.sqrt(coils) * _complex_normal((coils, coils), rng)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    low, high = config.noise
    sigma = low * (high / low) ** rng.random()

    rows, columns = central(2 * height, height), central(2 * width, width)
    kspace = torch.empty(config.slices, coils, height, width, dtype=torch.complex64)
    target = torch.empty(config.slices, height, width, dtype=torch.float32)
    for s, x in enumerate(objects):
        coil_images = torch.from_numpy(maps * x)
        signal = FourierTransform(tuple(coil_images.shape))(coil_images)[:, rows, columns] / 2
        target[s] = UNIT * root_sum_of_squares(FourierTransform(tuple(signal.shape)).H(signal))
        noise = sigma * (mixing @ _complex_normal((coils, height * width), rng))
        kspace[s] = UNIT * (signal + torch.from_numpy(noise).reshape(signal.shape))
    return SimulatedVolume(kspace if coils > 1 else kspace[:, 0], target, UNIT * sigma)


def simulate(out: str | Path, config: SimulateConfig, *, progress: bool = False) -> list[Path]:
    """Write ``sim_0000.h5``, ``sim_0001.h5`` … into the folder ``out`` and return their paths.

    The files are those of :func:`simulate_volume`, in fastMRI's layout: code made for fastMRI reads them
    unchanged. Besides fastMRI's, their attributes are ``noise`` (σ), ``config`` (JSON) and ``version``. With
    ``acceleration`` they are test files, sampled in random columns by the mask that each file's name seeds.

    A killed run continues where it stopped; more volumes extend the set; fewer leave the others. Nothing but
    volumes lies in the folder, as fastMRI's code opens whatever it finds. Memory holds one volume. Several
    processes (``torchrun``, ``srun``) share the volumes: process r of n writes the r-th, the (r + n)-th … of
    them, and all are there when every process has returned.

    Raises:
        InputError: a folder that cannot be written, or that holds volumes of another configuration.
    """
    out, (rank, size) = Path(out), world()
    paths = [out / f"sim_{index:04d}.h5" for index in range(config.volumes)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_folder(out, config.recipe)
        mine = range(len(paths))[rank::size]
        missing = [index for index in mine if not paths[index].exists()]
        least = len(missing) * config.slices * math.prod(config.shape) * 8 * min(config.coils)
        if least > (free := shutil.disk_usage(out).free):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({free / 1e9:.3g} GB free)")
        done, hidden = len(mine) - len(missing), not progress or rank > 0
        with tqdm(total=len(mine), initial=done, unit="volume", disable=hidden) as bar:
            for index in missing:
                _write(paths[index], config, index)
                bar.update()
    except OSError as error:
        raise InputError(
            f"a folder that can be written, with room for {_bytes(config) / 1e9:.3g} GB",
            f"{error}",
            f"free the disk, mend permissions or choose another folder than {out}",
        ) from error
    return paths


def _complex_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Standard complex normal numbers: E|g|² = 1."""
    real, imaginary = rng.standard_normal((2, *shape))
    return (real + 1j * imaginary) / math.sqrt(2)


def _bytes(config: SimulateConfig) -> int:
    """Of all files, at most: k-space and the target."""
    return config.volumes * config.slices * math.prod(config.shape) * (8 * max(config.coils) + 4)


def _check_folder(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuse a folder with volumes that were made otherwise: a set would be mixed from both."""
    for path in sorted(folder.glob("sim_*.h5")):
        try:
            with h5py.File(path, "r") as file:
                found = dict(json.loads(str(file.attrs["config"])))
        except (OSError, KeyError, ValueError, TypeError):  # damaged, or of another kind
            found = {}
        other = [key for key in recipe if found.get(key, "?") != recipe[key]]
        if other:
            ours, theirs = (
                ", ".join(f"{key}={values.get(key, '?')}" for key in other) for values in (recipe, found)
            )
            remedy = "choose another folder, or delete this one to make it anew"
            raise InputError(f"volumes made with {ours} in {folder}", f"{theirs} in {path.name}", remedy)


def _write(path: Path, config: SimulateConfig, index: int) -> None:
    kspace, target, noise = simulate_volume(config, index)
    mask = None
    about = {"noise": noise, "config": json.dumps(config.recipe), "version": __version__}
    if config.acceleration is not None:
        rate = config.acceleration
        columns = MaskConfig(accelerations=(rate,), center_fractions=(CENTRE_TIMES_RATE / rate,))
        drawn = draw_mask(columns, config.shape, volume_seed(path))
        kspace, target, mask = apply_mask(kspace, drawn), None, drawn.pattern[0]
        about |= {"acceleration": rate, "num_low_frequency": drawn.center_lines}
    height, width = config.shape
    pixel = FIELD_OF_VIEW / max(config.shape)
    write_volume(
        path,
        kspace,
        target,
        acquisition="SIMULATED",
        patient_id=f"simulated-{config.seed}-{index}",
        header=write_header(
            (height, width, config.slices), config.shape, (height * pixel, width * pixel, THICKNESS)
        ),
        mask=mask,
        attributes=about,
    )
