"""Errors of predicted trajectories and the energy spectrum of a flow."""

import math

import torch
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["energy_spectrum", "relative_l2"]


def relative_l2(
    prediction: Tensor, target: Tensor, *, first_dim: int = 1, units: Tensor | None = None
) -> Tensor:
    """``‖p − y‖₂ / ‖y‖₂`` over the dimensions from ``first_dim`` on; one number per leading index.

    ``first_dim=1`` on (N, T, C, *grid) compares whole space-time blocks, the number most tables print;
    ``first_dim=2`` gives the error of each frame. Both are divided by ``units`` before, such as (C, *1) for
    channels of different size. A target that is zero everywhere gives nan or inf.
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"a prediction of the target's shape {tuple(target.shape)}",
            f"{tuple(prediction.shape)}",
            "compare on the same grid and times",
        )
    if units is not None:
        prediction, target = prediction / units, target / units
    y = target.flatten(first_dim)
    unit = _unit(y)
    return ((prediction.flatten(first_dim) - y) / unit).norm(dim=-1) / (y / unit).norm(dim=-1)


def _unit(y: Tensor) -> Tensor:
    """About the largest magnitude in each row, as a power of two, by which division changes no digit.

    In float32 squares of numbers around 1e-23 and 1e20 are 0 and infinite. What both parts of a quotient are
    divided by has no gradient.
    """
    bounds = torch.finfo(y.dtype)
    largest = y.detach().abs().amax(dim=-1, keepdim=True)
    return largest.clamp(bounds.tiny, bounds.max / 2).log2().floor().exp2()


def energy_spectrum(w: Tensor) -> Tensor:
    """Kinetic energy per wavenumber shell of a 2-D flow on the unit torus, from its vorticity.

    ``E(κ) = ½ Σ |ŵ_k|² / |2πk|²`` over the integer wave vectors with κ − ½ ≤ |k| < κ + ½, so that Σ_κ E(κ)
    is the mean kinetic energy ½⟨|u|²⟩ of the modes resolved isotropically. ``w`` (..., n_x, n_y) gives
    (..., κ_max + 1), κ_max = min(n_x, n_y) // 2. It is as large as squares of ``w``, in the same dtype: give
    very large or small ones in float64.
    """
    n_x, n_y = w.shape[-2:]
    kx = torch.fft.fftfreq(n_x, 1 / n_x, dtype=w.dtype, device=w.device)[:, None]
    ky = torch.fft.fftfreq(n_y, 1 / n_y, dtype=w.dtype, device=w.device)[None, :]
    k2 = kx**2 + ky**2
    energy = 0.5 * torch.fft.fft2(w, norm="forward").abs() ** 2 / (4 * math.pi**2 * k2.clamp(min=1))
    energy = torch.where(k2 > 0, energy, torch.zeros_like(energy))  # the mean vorticity of a torus is zero
    shell = k2.sqrt().round().long().flatten()
    top = min(n_x, n_y) // 2
    spectrum = w.new_zeros(*w.shape[:-2], int(shell.max()) + 1)
    return spectrum.index_add(-1, shell, energy.flatten(-2))[..., : top + 1]
