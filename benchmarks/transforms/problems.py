"""What the ablation is trained on: flow on a torus, in a box with walls, between fixed ends; two given sets.

Walls and fixed ends: neither periodic nor symmetric under translations, so that waves are not the natural
functions there. All generated data have seeds, and are kept in ``data/``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monarch_sciml.pde import GenerateConfig, generate
from monarch_sciml.pde.datasets import TrajectoryDataset, train_test_split
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes
from monarch_sciml.training.files import whole_files

DATA = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True)
class Problem:
    """Trajectories, and the training all variants share."""

    title: str
    read: Callable[[Path | None], TrajectoryDataset]
    n_train: int
    n_test: int
    epochs: int
    modes: int = 16
    width: int = 16
    residual: bool = True

    def split(self, inputs: Path | None) -> tuple[TrajectoryDataset, TrajectoryDataset]:
        """Training and held-out trajectories, in memory."""
        first, last = train_test_split(self.read(inputs), self.n_train, self.n_test)
        return first.load(), last.load()


def torus(viscosity: str) -> Callable[[Path | None], TrajectoryDataset]:
    """Navier–Stokes as in the paper, the files of ``make paper-pde``, on 32 × 32 points."""
    samples, end, solver = {
        "1e-3": (540, 50.0, {}),
        "1e-4": (240, 30.0, {"solver_resolution": 128, "batch": 8}),
        "1e-5": (240, 20.0, {"solver_resolution": 256, "batch": 4}),
    }[viscosity]
    config = GenerateConfig(samples=samples, viscosity=float(viscosity), end_time=end, **solver)

    def read(_: Path | None) -> TrajectoryDataset:
        path = generate(DATA / f"paper_ns_V{viscosity}_N{samples}.h5", config, progress=False)
        return TrajectoryDataset(path, times=slice(1, 21), every=2)

    return read


def basin(_: Path | None) -> TrajectoryDataset:
    """240 trajectories in the basin, t = 1 … 20, on 32 × 32 points."""
    path = DATA / "ablation_basin_V1e-4_N240.npy"
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        batches = [wind_driven(8, 128, range(1, 21), generator) for _ in range(30)]
        save(path, torch.cat(batches)[..., ::2, ::2])
    return TrajectoryDataset(path)


def stretched(_: Path | None) -> TrajectoryDataset:
    """140 trajectories of the torus at ν = 1e-3 on points that crowd around the axes, 9 times as dense."""
    path = DATA / "ablation_stretched_V1e-3_N140.npy"
    if not path.exists():
        config = GenerateConfig(samples=540, viscosity=1e-3, end_time=50.0)
        whole = generate(DATA / "paper_ns_V1e-3_N540.h5", config, progress=False)
        uniform = TrajectoryDataset(whole, times=slice(1, 21))
        chosen = [w for part in train_test_split(uniform, 100, 40) for w in part]
        P = trigonometric_interpolation(64, crowded(32)[0])
        save(path, torch.stack([(P @ w[:, 0].double() @ P.mT).float() for w in chosen]))
    return TrajectoryDataset(path)


def crowded(n: int) -> tuple[Tensor, Tensor]:
    """The n points x(s) = s − 0.8 sin(2πs) / 2π of the stretched grid, s = 0, 1/n …, and dx/ds there."""
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return (angle - 0.8 * angle.sin()) / (2 * math.pi), 1 - 0.8 * angle.cos()


def trigonometric_interpolation(n: int, x: Tensor) -> Tensor:
    """From n points of the unit circle to others, x: (len(x), n), exact for what the n points resolve."""
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    waves = torch.exp(2j * math.pi * x[:, None] * k)
    return torch.fft.fft(waves, norm="forward").real


def wind_driven(samples: int, resolution: int, times: Sequence[float], generator: torch.Generator) -> Tensor:
    """Flow driven by wind in a square basin with free-slip walls, ν = 1e-4: (samples, times, n/2, n/2).

    w = ψ = 0 on all four sides. A quarter of the unit torus: vorticity and forcing that are odd across the
    walls stay odd. The forcing is the curl of a wind, f = 0.1 sin 2πx sin 2πy, one gyre in the basin [0, ½]².
    """
    x = 2 * math.pi * torch.arange(resolution) / resolution
    forcing = 0.1 * x.sin()[:, None] * x.sin()
    w0 = odd(odd(gaussian_random_field(samples, resolution, generator=generator), -2), -1)
    half = resolution // 2
    return solve_navier_stokes(w0, 1e-4, times, forcing=forcing)[..., :half, :half]


def odd(w: Tensor, dim: int) -> Tensor:
    """The part that is odd in a periodic direction, of the same variance: (w(x) − w(−x)) / √2."""
    return (w - w.flip(dim).roll(1, dim)) / 2**0.5


def burgers(_: Path | None) -> TrajectoryDataset:
    """1200 trajectories between fixed ends, t = 0, 0.1 … 1, on 64 points."""
    path = DATA / "ablation_burgers_N1200.npy"
    if not path.exists():
        noise = torch.randn(1200, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        c = noise / ((math.pi * torch.arange(1, 257)) ** 2 + 25)
        c = c / c.square().sum(1, keepdim=True).sqrt() * 2**0.5  # so that the mean of u² is 1
        save(path, between_fixed_ends(c, frames=11).float())
    return TrajectoryDataset(path)


def between_fixed_ends(c: Tensor, frames: int, *, points: int = 64, dt: float = 1e-3) -> Tensor:
    """u_t + u u_x = ν u_xx, ν = 0.01, u = 0 at x = 0 and 1, from u = Σ c_k sin kπx: (N, frames, points).

    Every 0.1, at the midpoints of ``points`` cells. c (N, K) float64. Squares are taken on 3K points, free
    of aliases; integrating-factor Runge–Kutta of fourth order.
    """
    k = torch.arange(1, c.shape[1] + 1, dtype=torch.float64) * math.pi

    def cells(n: int) -> Tensor:
        return k[:, None] * (torch.arange(n, dtype=torch.float64) + 0.5) / n

    sine, cosine = cells(3 * len(k)).sin(), cells(3 * len(k)).cos()
    decay, half = torch.exp(-0.01 * k**2 * dt), torch.exp(-0.005 * k**2 * dt)

    def advection(c: Tensor) -> Tensor:
        """−(u²/2)_x: u² is even across the ends, a sum of cosines."""
        return (c @ sine).square() @ cosine.T / cosine.shape[1] * k

    found = [c @ cells(points).sin()]
    for _ in range(frames - 1):
        for _ in range(round(0.1 / dt)):
            a = advection(c)
            b = advection(half * (c + dt / 2 * a))
            d = advection(half * c + dt / 2 * b)
            e = advection(decay * c + dt * half * d)
            c = decay * (c + dt / 6 * a) + dt / 6 * (2 * half * (b + d) + e)
        found.append(c @ cells(points).sin())
    return torch.stack(found, dim=1)


def given(name: str) -> Callable[[Path | None], TrajectoryDataset]:
    """Of neuraloperator's mini data, the training and the test file in one."""

    def read(inputs: Path | None) -> TrajectoryDataset:
        if inputs is None:
            raise FileNotFoundError(f"--inputs, the directory of {name}_train_16.pt and {name}_test_16.pt")
        both = [TrajectoryDataset(inputs / f"{name}_{part}_16.pt") for part in ("train", "test")]
        return TrajectoryDataset.from_array(torch.cat([torch.stack([*part])[:, :, 0] for part in both]))

    return read


def save(path: Path, array: Tensor) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files(path.parent) as unfinished:
        np.save(unfinished / path.name, array.numpy())


PROBLEMS = {
    "torus": Problem("Navier–Stokes on the torus, ν = 1e-3, 100 trajectories", torus("1e-3"), 100, 40, 20),
    "torus-frame": Problem(
        "Torus, ν = 1e-3, predicting frames, not their changes", torus("1e-3"), 100, 40, 10, residual=False
    ),
    "torus-500": Problem("Torus, ν = 1e-3, 500 trajectories", torus("1e-3"), 500, 40, 10),
    "torus-1e-4": Problem(
        "Navier–Stokes on the torus, ν = 1e-4, 200 trajectories", torus("1e-4"), 200, 40, 20
    ),
    "torus-1e-5": Problem(
        "Navier–Stokes on the torus, ν = 1e-5, 200 trajectories", torus("1e-5"), 200, 40, 20
    ),
    "stretched": Problem("Torus, ν = 1e-3, on a stretched grid, 100 trajectories", stretched, 100, 40, 20),
    "basin": Problem("Flow in a basin with walls, ν = 1e-4, 200 trajectories", basin, 200, 40, 20),
    "burgers": Problem("Burgers with fixed ends, ν = 0.01, 1000 trajectories", burgers, 1000, 200, 20),
    "darcy": Problem("Darcy flow (neuraloperator's)", given("darcy"), 1000, 50, 100, 8, residual=False),
    "burgers-periodic": Problem("Burgers, periodic (neuraloperator's)", given("burgers"), 800, 400, 20, 12),
}
