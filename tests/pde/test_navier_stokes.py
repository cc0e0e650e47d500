"""The solver against analytic solutions, conservation laws, symmetries and the reference scheme."""

import math
import os
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes, standard_forcing

TAU = 2 * math.pi


def mesh(nx: int, ny: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(nx, dtype=torch.float64)[:, None] / nx
    y = torch.arange(ny, dtype=torch.float64) / ny
    return x, y


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def random_flow(n_samples: int, resolution: int = 32, scale: float = 5.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return gaussian_random_field(
        n_samples, resolution, alpha=5, scale=scale, generator=generator, dtype=torch.float64
    )


# ---- analytic solutions


@pytest.mark.parametrize("grid", [(32, 32), (24, 36), (27, 25)])
def test_taylor_green_vortices_decay(grid):
    x, y = mesh(*grid)
    w0 = (2 * torch.cos(TAU * x) * torch.cos(TAU * y))[None]
    viscosity, times = 1e-2, [0.0, 0.3, 1.0]
    w = solve_navier_stokes(w0, viscosity, times, forcing=None)
    exact = torch.stack([w0 * math.exp(-2 * TAU**2 * viscosity * t) for t in times], dim=1)
    assert w.shape == (1, 3, *grid)
    assert relative(w, exact) < 1e-12


@pytest.mark.parametrize("viscosity", [0.0, 1e-8, 1e-3, 1.0, 1e3])
def test_steady_forcing_and_diffusion_are_exact(viscosity):
    f = standard_forcing(16, torch.float64)  # a shear flow: its own advection vanishes
    decay = 2 * TAU**2 * viscosity
    gain = (1 - math.exp(-decay * 0.7)) / decay if decay > 1e-4 else 0.7
    w = solve_navier_stokes(torch.zeros(1, 16, 16, dtype=torch.float64), viscosity, [0.7])
    assert relative(w[0, 0], gain * f) < 1e-5 if decay <= 1e-4 else 1e-12


@pytest.mark.parametrize("grid", [(32, 32), (24, 36), (27, 25)])
def test_advection_has_the_right_sign_and_size(grid):
    x, y = mesh(*grid)
    a, b = 1.5, -2.0
    w0 = (a * torch.sin(TAU * x) + b * torch.sin(2 * TAU * y))[None]
    advection = -1.5 * a * b * torch.cos(TAU * x) * torch.cos(2 * TAU * y)  # u w_x + v w_y by hand

    h = 1e-4
    w = solve_navier_stokes(w0, 0.0, [h], forcing=None)
    assert relative((w[:, 0] - w0) / h, -advection[None]) < 1e-3

    viscosity = 0.05
    diffusion = -(TAU**2) * (a * torch.sin(TAU * x) + 4 * b * torch.sin(2 * TAU * y))
    steady = solve_navier_stokes(w0, viscosity, [2.0], forcing=advection - viscosity * diffusion)
    assert relative(steady[:, 0], w0) < 1e-12


# ---- conservation laws


def test_inviscid_flow_conserves_mean_energy_and_enstrophy():
    w0 = random_flow(2) + 0.3
    w = solve_navier_stokes(w0, 0.0, [1.0], forcing=None, max_dt=0.01)[:, 0]
    # the quadratic invariants are those of the modes the 2/3 rule keeps; this flow has hardly any others
    assert relative(w, w0) > 0.1
    torch.testing.assert_close(w.mean((1, 2)), w0.mean((1, 2)), rtol=0, atol=1e-14)
    for invariant in (energy, enstrophy):
        torch.testing.assert_close(invariant(w), invariant(w0), rtol=1e-8, atol=0)


def test_enstrophy_balance():
    w0, viscosity, h = random_flow(2), 2e-3, 1e-3
    before, w, after = solve_navier_stokes(w0, viscosity, [0.5 - h, 0.5, 0.5 + h], max_dt=0.01).unbind(1)
    change = (enstrophy(after) - enstrophy(before)) / (2 * h)
    f = standard_forcing(32, torch.float64)
    palinstrophy = (spectral_power(w) * laplacian(32)).sum((1, 2))
    torch.testing.assert_close(change, (f * w).mean((1, 2)) - viscosity * palinstrophy, rtol=1e-4, atol=0)


def laplacian(n: int) -> Tensor:
    k = torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64)
    return TAU**2 * (k[:, None] ** 2 + k**2)


def spectral_power(w: Tensor) -> Tensor:
    return torch.fft.fft2(w, norm="forward").abs().square()


def energy(w: Tensor) -> Tensor:
    inverse = torch.where(laplacian(w.shape[-1]) > 0, 1 / laplacian(w.shape[-1]), 0)
    return (spectral_power(w) * inverse).sum((1, 2)) / 2


def enstrophy(w: Tensor) -> Tensor:
    return w.square().mean((1, 2)) / 2


# ---- accuracy and symmetry


def test_order_in_time():
    w0 = random_flow(1)
    exact, coarse, fine = (solve_navier_stokes(w0, 1e-3, [1.0], max_dt=1 / steps) for steps in (256, 16, 32))
    order = math.log2(relative(coarse, exact) / relative(fine, exact))
    assert 3.5 < order < 4.5


def test_default_step_is_accurate():
    w0 = random_flow(2, scale=20.0)
    w = solve_navier_stokes(w0, 1e-3, [1.0, 2.0])
    assert relative(w, solve_navier_stokes(w0, 1e-3, [1.0, 2.0], max_dt=2e-3)) < 1e-4
    assert relative(solve_navier_stokes(w0.float(), 1e-3, [1.0, 2.0]), w) < 2e-5


def test_translation_equivariance():
    w0 = random_flow(1)
    w, shifted = (solve_navier_stokes(v, 1e-3, [1.0], forcing=None) for v in (w0, w0.roll((5, -3), (1, 2))))
    assert relative(shifted, w.roll((5, -3), (2, 3))) < 1e-12


def test_samples_of_a_batch_are_independent():
    w0 = random_flow(3)
    w = solve_navier_stokes(w0, 1e-3, [0.5, 1.0])
    alone = torch.cat([solve_navier_stokes(sample[None], 1e-3, [0.5, 1.0]) for sample in w0])
    assert relative(alone, w) < 1e-6  # the common step is not the step of each


def test_forcing_per_sample():
    w0 = random_flow(2)
    f = standard_forcing(32, torch.float64)
    w = solve_navier_stokes(w0, 1e-3, [0.5], forcing=torch.stack((f, 0 * f)))
    assert relative(w[:1], solve_navier_stokes(w0[:1], 1e-3, [0.5])) < 1e-6
    assert relative(w[1:], solve_navier_stokes(w0[1:], 1e-3, [0.5], forcing=None)) < 1e-6


def test_output_times_do_not_change_the_solution():
    w0 = random_flow(1)
    frames = solve_navier_stokes(w0, 1e-3, torch.tensor([0.0, 0.1, 0.37, 1.0]))
    assert torch.equal(frames[:, 0], w0)
    assert relative(frames[:, -1], solve_navier_stokes(w0, 1e-3, [1.0])[:, 0]) < 1e-6


@pytest.mark.parametrize("name", ["dev_ns_V1e-3_v5.mat", "dev_ns_V1e-3_v73.mat"])
def test_reference_scheme_is_reproduced(name):
    folder = os.environ.get("MONARCH_SCIML_TEST_DATA")
    if folder is None:
        pytest.skip("MONARCH_SCIML_TEST_DATA is not set")
    a, u = (torch.from_numpy(np.ascontiguousarray(array)) for array in load_mat(Path(folder) / name))
    w = solve_navier_stokes(a, 1e-3, [1, 2, 3, 4]).permute(0, 2, 3, 1)
    for sample in range(len(a)):
        for t in range(4):
            assert relative(w[sample, ..., t], u[sample, ..., t]) < 2e-3


def load_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            a, u = (np.asarray(cast(h5py.Dataset, file[key])).T for key in ("a", "u"))
            return a, u
    content = scipy.io.loadmat(path)
    return content["a"], content["u"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu():
    w0 = random_flow(2)
    w = solve_navier_stokes(w0.cuda(), 1e-3, [1.0])
    assert w.is_cuda
    assert relative(w.cpu(), solve_navier_stokes(w0, 1e-3, [1.0])) < 1e-10


# ---- steps that are too long, and input that is wrong


def test_forcing_from_rest_is_refined():
    x, y = mesh(32, 32)
    f = 3e3 * (torch.sin(TAU * x) + torch.cos(2 * TAU * y))
    rest = torch.zeros(1, 32, 32, dtype=torch.float64)
    exact = solve_navier_stokes(rest, 1e-2, [0.1], forcing=f, max_dt=1e-3)
    assert relative(solve_navier_stokes(rest, 1e-2, [0.1], forcing=f), exact) < 2e-3


def test_hopeless_input_raises_instead_of_returning_nan():
    with pytest.raises(FloatingPointError, match=r"between t = 0 and t = 1 after halving the step 5 times"):
        solve_navier_stokes(1e25 * random_flow(1).float(), 1e-3, [1.0])


def test_a_step_that_does_not_advance_the_time_raises_instead_of_going_on_for_ever():
    with pytest.raises(FloatingPointError, match=r"between t = 0 and t = 1 .* scale w0 and f down"):
        solve_navier_stokes(1e20 * random_flow(1), 1e-3, [1.0])


def test_numpy_arrays_are_taken():
    w0, f = random_flow(2).float(), standard_forcing(32)
    expected = solve_navier_stokes(w0, 1e-2, [0.1], forcing=f)
    assert torch.equal(solve_navier_stokes(w0.numpy(), 1e-2, [0.1], forcing=f.numpy()), expected)
    big_endian, turned = w0.numpy().astype(">f4"), np.ascontiguousarray(f.numpy()[::-1])[::-1]
    big_endian.flags.writeable = False  # as of a file that is mapped into memory
    assert torch.equal(solve_navier_stokes(big_endian, 1e-2, np.array([0.1]), forcing=turned), expected)


W0 = torch.zeros(2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"w0": W0[0]}, r"expected w0 of shape \(N, x, y\).*found shape \(8, 8\).*w0\[None\]"),
        ({"w0": W0[:, :2]}, "at least 4 × 4"),
        ({"w0": W0.to(torch.complex64)}, "expected w0 in float32 or float64; found torch.complex64"),
        ({"w0": W0.half()}, "found torch.float16"),
        ({"w0": [[1.0], [2.0, 3.0]]}, r"expected w0 as a tensor or a NumPy array of numbers; found list"),
        ({"w0": W0 + math.nan}, "expected finite values in w0"),
        (
            {"w0": np.ma.masked_equal(np.eye(8)[None], 0)},
            "expected values without a mask; found 56 of 64 masked",
        ),
        (
            {"viscosity": torch.tensor([1e-3, 1e-2])},
            r"one viscosity for all samples; found \[1\.0\] and tensor",
        ),
        ({"times": 1.0}, r"expected a list of times.*found 1\.0 and 0\.001; write \[1\.0\] for one time"),
        ({"viscosity": -1e-3}, "expected a viscosity ν ≥ 0; found -0.001"),
        ({"viscosity": math.nan}, "expected a viscosity"),
        ({"times": []}, "expected increasing, finite times"),
        ({"times": [1.0, 1.0]}, "expected increasing, finite times"),
        ({"times": [1.0, math.nan]}, "expected increasing, finite times"),
        ({"times": [-1.0, 1.0]}, "expected times ≥ 0"),
        (
            {"forcing": torch.zeros(8, 9)},
            r"expected a real, finite forcing of shape \(8, 8\).*found.*\(8, 9\)",
        ),
        ({"forcing": torch.full((8, 8), math.inf)}, "finite: False"),
        ({"forcing": torch.zeros(8, 8, dtype=torch.complex64)}, "torch.complex64"),
        ({"forcing": {}}, r"expected forcing as a tensor or a NumPy array of numbers; found dict"),
        ({"forcing": "none"}, '"standard", None or a tensor'),
        ({"cfl": 0.0}, "expected 0 < cfl ≤ 2.8"),
        ({"cfl": 3.0}, "expected 0 < cfl ≤ 2.8 .* found cfl=3.0"),
        ({"max_dt": -1.0}, "expected 0 < cfl ≤ 2.8 and max_dt > 0"),
    ],
)
def test_wrong_input_is_named(arguments, match):
    with pytest.raises(InputError, match=match):
        solve_navier_stokes(**{"w0": W0, "viscosity": 1e-3, "times": [1.0], **arguments})


# ---- random initial conditions


def test_random_field_statistics():
    w = gaussian_random_field(400, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = spectral_power(w).mean(0)
    assert w.mean((1, 2)).abs().max() < 1e-12
    assert w.square().mean().sqrt().item() == pytest.approx(0.262, abs=0.006)
    # E|ŵ(k)|² = 2 τ³ (4π²|k|² + τ²)^(−5/2), half of it in each of ŵ(k) and ŵ(−k)* ...
    expected = 2 * 7**3 * (laplacian(32) + 49) ** -2.5
    expected[0, 0] = 0
    ratio = (power / expected).flatten()[1:]
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    # ... alike in every direction and at every scale
    k = torch.fft.fftfreq(32, d=1 / 32)
    along_x, along_y = (k[:, None].abs() > k.abs()), (k[:, None].abs() < k.abs())
    for region in (along_x, along_y, laplacian(32) > 500, laplacian(32) < 500):
        region = region.flatten()[1:]
        assert ratio[region].mean().item() == pytest.approx(1, abs=0.06)


def test_random_field_on_a_rectangle_has_the_modes_of_the_square():
    w = gaussian_random_field(400, (16, 9), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert w.shape == (400, 16, 9)
    power = spectral_power(w).mean(0)
    for kx, ky in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (-1, 1)):
        expected = 2 * 7**3 * (4 * math.pi**2 * (kx**2 + ky**2) + 49) ** -2.5
        assert power[kx, ky].item() == pytest.approx(expected, rel=0.2)


def test_random_field_is_reproducible():
    def draw(**options):
        return gaussian_random_field(2, 16, generator=torch.Generator().manual_seed(3), **options)

    assert draw().dtype == torch.float32
    assert torch.equal(draw(), draw(dtype=torch.float64).float())
    torch.testing.assert_close(draw(scale=0.5), 0.5 * draw())
    assert not torch.equal(draw()[0], draw()[1])


@pytest.mark.parametrize("options", [{"n_samples": 0}, {"resolution": 1}, {"alpha": 1.0}, {"tau": 0.0}])
def test_random_field_settings_are_checked(options):
    with pytest.raises(InputError, match=r"n_samples ≥ 1, resolution ≥ 2, alpha > 1 and tau > 0"):
        gaussian_random_field(**{"n_samples": 1, "resolution": 8, **options})
