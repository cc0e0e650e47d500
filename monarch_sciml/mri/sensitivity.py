"""Coil sensitivities from the fully sampled centre of k-space, and from nothing else."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.mri.inputs import Array, as_tensor
from monarch_sciml.mri.masks import central

__all__ = [
    "LEAST_CENTRE",
    "NARROW",
    "calibration",
    "espirit",
    "estimate_maps",
    "low_resolution",
    "normalise_maps",
    "root_sum_of_squares",
]

LEAST_CENTRE = 3  # lines of a region to calibrate with, along each axis
NARROW = 4
NOTHING = 1e-6  # of the largest sensitivity: less is rounding


def root_sum_of_squares(images: Array) -> Tensor:
    """√Σ_c |x_c|² over the coils (..., C, H, W) → (..., H, W)."""
    return torch.linalg.vector_norm(as_tensor(images, "coil images"), dim=-3)


def normalise_maps(maps: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Maps (C, H, W) with Σ|S|² = 1 where a coil sees anything, else 0; and the range of √Σ|S|² before."""
    size = root_sum_of_squares(maps).unsqueeze(-3)
    seen = size > NOTHING * size.max()
    found = (float(size[seen].min()), float(size[seen].max())) if seen.any() else (1.0, 1.0)
    return torch.where(seen, maps / size.clamp_min(1e-30), 0), found


def calibration(kspace: Array, acs: tuple[int, int] | int, *, largest: int = 24) -> Tensor:
    """The central block (C, rows, columns) of k-space (C, H, W), at most ``largest`` wide along each axis.

    ``acs`` is the extent that is fully sampled. Raises ``InputError`` where that is too small to calibrate.
    """
    kspace, acs = as_tensor(kspace, "k-space"), _both(acs)
    fits = kspace.ndim >= 3 and kspace.is_complex() and kspace.shape[-3] > 0
    if not fits or acs[0] > kspace.shape[-2] or acs[1] > kspace.shape[-1]:
        raise InputError(
            f"complex k-space (coils, H, W) with a fully sampled centre of {acs[0]} × {acs[1]}",
            f"{kspace.dtype} of shape {tuple(kspace.shape)}",
            "check the mask",
        )
    rows, columns = (min(found, largest) for found in acs)
    if min(rows, columns) < LEAST_CENTRE:
        raise InputError(
            f"a fully sampled centre of at least {LEAST_CENTRE} × {LEAST_CENTRE} in k-space",
            f"{acs[0]} × {acs[1]}",
            "pass coil maps (--maps), or acquire a calibration region (--center-fractions)",
        )
    block = kspace[..., central(kspace.shape[-2], rows), central(kspace.shape[-1], columns)]
    if not block.isfinite().all():
        raise InputError("a finite centre of k-space", "NaN or infinity", "check the file")
    return block


def low_resolution(kspace: Array, acs: tuple[int, int] | int) -> Tensor:
    """Coil images of the calibration region over their root sum of squares: S_c = x_c / √Σ|x|².

    ``kspace`` (C, H, W), complex; returns (C, H, W) with Σ|S|² = 1. The region is tapered by a Hann window
    against ringing. Quick, and defined everywhere, in the background too.
    """
    block = calibration(kspace, acs)
    rows, columns = block.shape[-2:]
    window = _hann(rows, block)[:, None] * _hann(columns, block)
    H, W = kspace.shape[-2:]
    images = _to_image(block * window, (H, W))
    return images / root_sum_of_squares(images).clamp_min(1e-20).unsqueeze(-3)


def espirit(
    kspace: Array,
    acs: tuple[int, int] | int,
    *,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    iterations: int = 30,
) -> Tensor:
    """ESPIRiT maps of Uecker et al. (MRM 2014, doi 10.1002/mrm.24751).

    Patches of the calibration region span a subspace V; the maps are, pixel by pixel, the eigenvector to the
    largest eigenvalue, ideally 1, of the operator that projects coil images onto V.

    Args:
        kspace: (C, H, W), complex, centred; zeros where nothing was sampled.
        acs: rows and columns of the fully sampled centre, or one number for both. Unlike sigpy's, a region
            may be a narrow rectangle, as under column masks: the kernel shrinks to half of it where it must.
            (Patches of 4 of 7 columns fill V, and maps of real coils become holes; patches of 3 do as well as
            a wide region.)
        kernel: width of the patches.
        threshold: singular values below this part of the largest do not belong to V.
        crop: maps are zero where the eigenvalue is smaller: no signal there.
        iterations: of the power method.

    Returns (C, H, W), Σ|S|² = 1 or 0, with the phase of the dominant combination of the coils removed. Raises
    ``InputError`` without a calibration region or a signal in it.
    """
    block = calibration(kspace, acs)
    if block.ndim > 3:
        raise InputError("k-space (coils, H, W)", f"{tuple(kspace.shape)}", "pass one slice after the other")
    C, rows, columns = block.shape
    if not block.any():
        raise InputError("a signal in the centre of k-space", "zeros", "check the file")
    ky, kx = (min(kernel, max(2, n // 2)) for n in (rows, columns))
    patches = block.unfold(1, ky, 1).unfold(2, kx, 1)  # (C, places, places, ky, kx)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, C * ky * kx)
    _, sigma, Vh = torch.linalg.svd(patches, full_matrices=False)
    V = Vh[sigma > threshold * sigma[0]].mT
    P = (V @ V.mH).view(C, ky, kx, C, ky, kx)
    # the projection averages over all places of the patch: only differences of positions remain
    lags = P.new_zeros(2 * ky - 1, 2 * kx - 1, C, C)
    for y in range(ky):
        for x in range(kx):
            lags[y : y + ky, x : x + kx] += P[:, y, x].flip(-2, -1).permute(2, 3, 0, 1)
    H, W = kspace.shape[-2:]
    half = (_waves(H, ky, block) @ lags.flatten(1)).view(H, 2 * kx - 1, C * C)
    across = _waves(W, kx, block)
    strongest = torch.linalg.svd(block.flatten(1), full_matrices=False)[0][:, 0]
    # some rows at a time: the C × C matrices of all pixels would take 1.7 GB for 32 coils on 640 × 320
    parts = [
        _dominant((across @ row).view(-1, C, C), strongest, iterations)
        for row in half.split(max(1, 2**18 // (W * C * C)))
    ]
    maps = torch.cat([v for v, _ in parts]).view(H, W, C).permute(2, 0, 1)
    value = torch.cat([size for _, size in parts]).view(H, W)

    reference = torch.einsum("c,chw->hw", strongest.conj(), maps)
    maps = maps * (reference.conj() / reference.abs().clamp_min(1e-20))
    return maps * (value > crop)


def _both(acs: tuple[int, int] | int) -> tuple[int, int]:
    return (int(acs), int(acs)) if isinstance(acs, int | np.integer) else (acs[0], acs[1])


def _waves(n: int, k: int, like: Tensor) -> Tensor:
    """exp(2πi (x − n//2) l / n) / k for lags |l| < k, complex (n, 2k − 1)."""
    x = torch.arange(n, dtype=torch.float64, device=like.device) - n // 2
    lags = torch.arange(1 - k, k, dtype=torch.float64, device=like.device)
    angle = (2 * math.pi / n) * x[:, None] * lags
    return torch.polar(torch.full_like(angle, 1 / k), angle).to(like)


def _dominant(G: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Power method for matrices (n, C, C): eigenvectors (n, C) and the largest eigenvalues (n, 1).

    Where two eigenvalues are alike the ``start`` (C,) decides; one that turns with the coils, as the phases
    of receivers are arbitrary, keeps the image from depending on them.
    """
    v, value = start.expand(G.shape[:2]), torch.zeros_like(G[:, :1, 0].real)
    for _ in range(iterations):
        v = torch.bmm(G, v[..., None])[..., 0]
        value = torch.view_as_real(v).square().sum((-2, -1))[:, None].sqrt()
        v = v / value.clamp_min(1e-20)
    return v, value


def _hann(n: int, like: Tensor) -> Tensor:
    return torch.hann_window(n + 2, periodic=False, dtype=like.real.dtype, device=like.device)[1:-1]


def _to_image(block: Tensor, shape: tuple[int, int]) -> Tensor:
    """Inverse centred transform of a central block, zero-padded to the shape."""
    rows, columns = block.shape[-2:]
    padded = block.new_zeros(*block.shape[:-2], *shape)
    padded[..., central(shape[0], rows), central(shape[1], columns)] = block
    padded = torch.fft.ifftshift(padded, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.ifft2(padded, norm="ortho"), dim=(-2, -1))


def estimate_maps(kspace: Array, acs: tuple[int, int] | int, method: str = "espirit") -> Tensor:
    """Maps (C, H, W) by ``method``, "espirit" or "low-resolution"; one coil has the map 1.

    ``kspace`` (C, H, W) may hold more than the calibration region ``acs``; nothing else of it is used. Where
    the region has fewer than ``NARROW`` lines, ESPIRiT has too few patches and low-resolution maps are taken.
    Raises ``InputError``.
    """
    kspace, acs = as_tensor(kspace, "k-space"), _both(acs)
    if kspace.ndim == 3 and len(kspace) == 1 and kspace.is_complex():
        return torch.ones_like(kspace)
    if method not in ("espirit", "low-resolution"):
        raise InputError("maps 'espirit' or 'low-resolution'", repr(method), "pass one of them")
    if method == "espirit" and min(acs) >= NARROW:
        return espirit(kspace, acs)
    return low_resolution(kspace, acs)
