"""Two-dimensional Navier–Stokes on the unit torus: random initial vorticity, forcing, solver.

The benchmark of Li et al., *Fourier Neural Operator for Parametric PDEs* (2020): vorticity w(x, y, t) with

    w_t + u w_x + v w_y = ν Δw + f,    u = ψ_y,  v = −ψ_x,  −Δψ = w,    (x, y) ∈ [0, 1)², periodic.

Arrays are ordered (sample, [time,] x, y); grid point (i, j) sits at (i / nx, j / ny).
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.sources import refuse_masked

__all__ = ["gaussian_random_field", "solve_navier_stokes", "standard_forcing"]

STABLE = 2.8  # the largest frequency · dt that four-stage Runge–Kutta methods of order four bear
MAX_REFINEMENTS = 5  # the step is halved at most this often before an interval is given up


def gaussian_random_field(
    n_samples: int,
    resolution: int | tuple[int, int],
    *,
    alpha: float = 2.5,
    tau: float = 7.0,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw initial vorticities w ~ N(0, 2·scale²·τ^(2α−2) (−Δ + τ²)^(−α)), without their mean.

    Returns (n_samples, nx, ny), where ``resolution`` is (nx, ny) or one number for both. With the defaults
    the standard deviation is 0.262, the amplitude of the released FNO data; ``scale=1/√2`` gives 0.185, that
    of the later rewrite of its code. Noise is drawn in float64 on the generator's device (the CPU without
    one), so a seed means the same field in every dtype and on every device.

    Source: Li et al. 2020, appendix A.3.3.
    """
    nx, ny = _points(resolution)
    if n_samples < 1 or min(nx, ny) < 2 or alpha <= 1 or tau <= 0:
        raise InputError(
            "n_samples ≥ 1, resolution ≥ 2, alpha > 1 and tau > 0",
            f"n_samples={n_samples}, resolution={resolution}, alpha={alpha}, tau={tau}",
            "correct these settings",
        )
    source = generator.device if generator is not None else "cpu"
    noise = torch.randn(n_samples, nx, ny, 2, generator=generator, dtype=torch.float64, device=source)
    kx, ky = (torch.fft.fftfreq(n, d=1 / n, dtype=torch.float64, device=source) for n in (nx, ny))
    spectrum = 4 * math.pi**2 * (kx[:, None] ** 2 + ky**2) + tau**2
    amplitude = scale * math.sqrt(2) * tau ** (alpha - 1) * spectrum ** (-alpha / 2)
    amplitude[0, 0] = 0  # the mean vorticity of a periodic flow is zero
    field = torch.fft.ifft2(amplitude * torch.view_as_complex(noise), norm="forward").real
    return field.to(device=device or source, dtype=dtype)


def standard_forcing(
    resolution: int | tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The forcing of the benchmark, f(x, y) = 0.1 (sin 2π(x + y) + cos 2π(x + y)), shape (nx, ny)."""
    nx, ny = _points(resolution)
    x = torch.arange(nx, dtype=torch.float64)[:, None] / nx
    y = torch.arange(ny, dtype=torch.float64) / ny
    phase = 2 * math.pi * (x + y)
    return (0.1 * (phase.sin() + phase.cos())).to(dtype=dtype, device=device)


def _points(resolution: int | tuple[int, int]) -> tuple[int, int]:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


@torch.no_grad()
def solve_navier_stokes(
    w0: Tensor | np.ndarray,
    viscosity: float,
    times: Sequence[float] | Tensor,
    *,
    forcing: Tensor | np.ndarray | Literal["standard"] | None = "standard",
    cfl: float = 2.0,
    max_dt: float = 0.1,
) -> Tensor:
    """Solve w_t + u·∇w = ν Δw + f on the unit torus from w(0) = ``w0``; return w at ``times``.

    Args:
        w0: initial vorticity (N, x, y), float32 or float64, on any device and any grid from 4 × 4, or a
            NumPy array. Its mean is conserved (plus the mean of f); it induces no mean flow.
        viscosity: ν ≥ 0.
        times: increasing times ≥ 0, each of which a step lands on exactly.
        forcing: f, of shape (x, y) or (N, x, y); None for no forcing; by default ``standard_forcing``.
        cfl: largest dt · max(k_x |u| + k_y |v|) over the grid and the batch, with k_x, k_y the highest
            advected wavenumbers; at most 2.8, where the method ceases to be stable.
        max_dt: largest step, where the flow is slow.

    Returns:
        (N, len(times), x, y) in the dtype and on the device of ``w0``. Not differentiable.

    The method is pseudo-spectral with the 2/3 rule in space and ETDRK4 (Cox & Matthews 2002) in time, exact
    for diffusion and steady forcing, fourth order for advection. All samples of a batch share the step.
    A result that is not finite, breaks the bound ‖w(t)‖ ≤ ‖w0‖ + t ‖f‖ of two-dimensional flow, or comes
    from a step that the flow outran, is discarded and its interval repeated with a halved step.

    Raises:
        InputError: an argument is not as described.
        FloatingPointError: an interval fails still after the step has been halved five times.
    """
    (times, viscosity), w0 = _numbers(times, viscosity), _tensor(w0, "w0")
    _check(w0, viscosity, times, cfl, max_dt)
    grid = (w0.shape[1], w0.shape[2])
    f = _forcing_like(w0, forcing)
    equation = _VorticityEquation(grid, viscosity, f)
    w_norm, f_norm = _norm(w0), _norm(f)
    w_hat = torch.fft.rfft2(w0, norm="forward")
    frames = w0.new_empty(len(w0), len(times), *grid)
    now = 0.0
    for index, time in enumerate(times):
        if time == 0:
            frames[:, index] = w0
            continue
        bound = 1.01 * (w_norm + time * f_norm)  # rounding and time stepping take less than 1 %
        for refinement in range(MAX_REFINEMENTS + 1):
            shrink = 2.0**-refinement
            trial = equation.advance(w_hat, time - now, shrink * cfl, shrink * max_dt, bound.max().item())
            if trial is not None:
                frame = torch.fft.irfft2(trial, s=grid, norm="forward")
                if (_norm(frame) <= bound).all():
                    break
        else:
            raise FloatingPointError(
                f"no stable solution between t = {now:g} and t = {time:g} after halving the step "
                f"{MAX_REFINEMENTS} times; lower cfl ({cfl:g}) or max_dt ({max_dt:g}), or scale w0 and f down"
            )
        w_hat, now = trial, time
        frames[:, index] = frame
    return frames


def _numbers(times: Sequence[float] | Tensor, viscosity: float) -> tuple[list[float], float]:
    try:
        return [float(t) for t in times], float(viscosity)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several numbers
        raise InputError(
            "a list of times, and one viscosity for all samples",
            f"{times!r} and {viscosity!r}",
            "write [1.0] for one time, and solve for one viscosity after the other",
        ) from None


def _tensor(field: Tensor | np.ndarray, name: str) -> Tensor:
    refuse_masked(field)
    try:
        if isinstance(field, np.ndarray):  # torch takes none that is read-only, turned or big-endian
            field = np.array(field, field.dtype.newbyteorder("="), order="C")
        return torch.as_tensor(field)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"{type(field).__name__} ({error})"
        raise InputError(f"{name} as a tensor or a NumPy array of numbers", found, "convert it") from None


def _forcing_like(w0: Tensor, forcing: Tensor | np.ndarray | Literal["standard"] | None) -> Tensor:
    if forcing is None:
        return torch.zeros_like(w0[0])
    if isinstance(forcing, str):
        if forcing != "standard":
            raise InputError('"standard", None or a tensor as forcing', repr(forcing), "pass one of these")
        return standard_forcing((w0.shape[1], w0.shape[2]), w0.dtype, w0.device)
    forcing = _tensor(forcing, "forcing")
    if forcing.is_complex() or forcing.shape not in (w0.shape, w0.shape[1:]) or not forcing.isfinite().all():
        raise InputError(
            f"a real, finite forcing of shape {tuple(w0.shape[1:])} or {tuple(w0.shape)}",
            f"{forcing.dtype} of shape {tuple(forcing.shape)}, finite: {bool(forcing.isfinite().all())}",
            "evaluate f on the grid of w0",
        )
    return forcing.to(w0)


def _norm(field: Tensor) -> Tensor:
    """L2 norm on the unit torus, per sample, in float64 so that small fields do not underflow."""
    norm = torch.linalg.vector_norm(field, dim=(-2, -1), dtype=torch.float64)
    return norm / math.sqrt(field.shape[-2] * field.shape[-1])


def _check(w0: Tensor, viscosity: float, times: list[float], cfl: float, max_dt: float) -> None:
    if w0.dtype not in (torch.float32, torch.float64):
        raise InputError("w0 in float32 or float64", str(w0.dtype), "convert it, for example with w0.float()")
    if w0.ndim != 3 or len(w0) == 0 or min(w0.shape[1:]) < 4:
        raise InputError(
            "w0 of shape (N, x, y) with N ≥ 1 and at least 4 × 4 points",
            f"shape {tuple(w0.shape)}",
            "add the sample axis with w0[None] if it is missing",
        )
    if not w0.isfinite().all():
        raise InputError("finite values in w0", "NaN or infinity", "look for the samples that hold them")
    if not 0 <= viscosity < math.inf:
        raise InputError("a viscosity ν ≥ 0", f"{viscosity}", "the benchmark uses 1e-3, 1e-4 and 1e-5")
    if not times or not all(a < b for a, b in zip([-math.inf, *times], [*times, math.inf], strict=True)):
        raise InputError("increasing, finite times", f"{times}", "sort them and drop repetitions")
    if times[0] < 0:
        raise InputError("times ≥ 0, as w0 is w at t = 0", f"{times[0]:g}", "count time from w0")
    if not (0 < cfl <= STABLE and 0 < max_dt < math.inf):
        raise InputError(
            f"0 < cfl ≤ {STABLE} and max_dt > 0", f"cfl={cfl}, max_dt={max_dt}", "keep the defaults 2 and 0.1"
        )


class _VorticityEquation:
    """The equation in Fourier space, ŵ_t = −ν (2π|k|)² ŵ + N(ŵ), on one grid.

    The nonlinear part uses the identity −u·∇w = −(∂_xx − ∂_yy)(uv) − ∂_xy(v² − u²), which needs two inverse
    and two forward FFTs. Products keep modes 3|k| < n only (the 2/3 rule), which makes them alias-free;
    the modes beyond merely diffuse.
    """

    def __init__(self, grid: tuple[int, int], viscosity: float, forcing: Tensor):
        nx, ny = self.grid = grid
        real, device = forcing.dtype, forcing.device
        kx = torch.fft.fftfreq(nx, d=1 / nx, dtype=torch.float64)[:, None]
        ky = torch.fft.rfftfreq(ny, d=1 / ny, dtype=torch.float64)
        laplacian = 4 * math.pi**2 * (kx**2 + ky**2)
        keep = (3 * kx.abs() < nx) & (3 * ky < ny)
        inverse = torch.where(keep & (laplacian > 0), 1 / laplacian, 0)
        velocity = 2j * math.pi * torch.stack((ky * inverse, -kx * inverse))
        stress = 4 * math.pi**2 * torch.stack((kx**2 - ky**2, kx * ky)) * keep
        self.decay = (viscosity * laplacian).to(device)
        self.velocity = velocity.to(device, real.to_complex())  # ŵ → (û, v̂)
        self.stress = stress.to(device, real.to_complex())  # spectra of (uv, v² − u²) → −(u·∇w)^
        self.forcing = torch.fft.rfft2(forcing, norm="forward")
        self.k_max = 2 * math.pi * ((nx - 1) // 3), 2 * math.pi * ((ny - 1) // 3)
        # max |(u, v)| ≤ Σ |ŵ| / 2π|k| ≤ speed_bound ‖w‖ by Cauchy–Schwarz over the kept modes
        self.speed_bound = math.sqrt(2 * inverse.sum().item())

    def tendency(self, w_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Return N(ŵ) and the velocity (sample, 2, x, y) it was made from."""
        velocity = torch.fft.irfft2(self.velocity * w_hat[:, None], s=self.grid, norm="forward")
        u, v = velocity.unbind(1)
        products = torch.stack((u * v, (v - u) * (v + u)), dim=1)
        stress = torch.fft.rfft2(products, norm="forward").mul_(self.stress)
        return stress[:, 0].add_(stress[:, 1]).add_(self.forcing), velocity

    def frequency(self, velocity: Tensor) -> float:
        """Fastest advection frequency on the grid, max(k_x |u| + k_y |v|), in radians per time."""
        u, v = velocity.abs().unbind(1)
        return (self.k_max[0] * u + self.k_max[1] * v).max().item()

    def advance(
        self, w_hat: Tensor, duration: float, cfl: float, max_dt: float, w_norm: float
    ) -> Tensor | None:
        """ETDRK4 over ``duration``; None if a step proves unstable.

        That is when the flow a step leads to makes the step longer than is stable, or when it is faster than
        ‖w‖ ≤ ``w_norm`` permits.
        """
        fastest = self.speed_bound * math.hypot(*self.k_max) * w_norm
        dt = 0.0
        while True:
            n1, velocity = self.tendency(w_hat)
            frequency = self.frequency(velocity)
            if not (frequency <= fastest and frequency * dt <= STABLE):  # also true of NaN
                return None
            if duration == 0:
                return w_hat
            steps = math.ceil(duration * max(1 / max_dt, frequency / cfl))
            dt = duration / steps
            if duration - dt == duration:  # so fast a flow that time would stand still
                return None
            half, full, q, b1, b23, b4 = (weight.to(w_hat) for weight in _etdrk4_weights(self.decay, dt))
            base = half * w_hat
            a = torch.addcmul(base, q, n1)
            n2, _ = self.tendency(a)
            n3, _ = self.tendency(base.addcmul_(q, n2))
            n4, _ = self.tendency(a.mul_(half).addcmul_(q, 2 * n3 - n1))
            w_hat = (full * w_hat).addcmul_(b1, n1).addcmul_(b23, n2.add_(n3)).addcmul_(b4, n4)
            duration = duration - dt if steps > 1 else 0.0


def _etdrk4_weights(decay: Tensor, dt: float) -> tuple[Tensor, ...]:
    """Weights of the scheme for z = −decay · dt: e^(z/2), e^z, then those of the stages and of the sum.

    φ₁ = (e^z − 1)/z, φ₂ = (φ₁ − 1)/z, φ₃ = (φ₂ − 1/2)/z cancel near 0, where Taylor's series of φ₃ is exact.
    """
    z = -dt * decay
    near = z > -1
    series = torch.zeros_like(z)
    for n in range(18, 2, -1):
        series = series * z + 1 / math.factorial(n)
    phi1 = z.expm1() / z
    phi2 = torch.where(near, z * series + 1 / 2, (phi1 - 1) / z)
    phi3 = torch.where(near, series, (phi2 - 1 / 2) / z)
    phi1 = torch.where(near, z * phi2 + 1, phi1)
    phi1_half = torch.where(z == 0, 1, (z / 2).expm1() / (z / 2))
    return (
        (z / 2).exp(),
        z.exp(),
        dt / 2 * phi1_half,
        dt * (phi1 - 3 * phi2 + 4 * phi3),
        dt * (2 * phi2 - 4 * phi3),
        dt * (4 * phi3 - phi2),
    )
