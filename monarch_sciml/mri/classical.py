"""Reconstructions without training: what a learned method has to beat.

All take the k-space (..., C, H, W) that was measured, complex, the pattern (1, W) or (H, W) of what was
measured, the rest does not count, and coil maps (..., C, H, W) with Σ_c |S_c|² = 1 or 0, and return the
complex image (..., H, W). Maps of another size are not refused: the image then has another scale. Leading
dimensions are slices, which are reconstructed independently. A pattern (W,), or one with 1 in the place of
the coils such as (1, 1, W), means the same; arrays of NumPy are taken as tensors. Data are divided by max
|Aᴴ y| first and the image multiplied by it, so that weights mean the same on every scanner.

The defaults were chosen on simulated phantoms (``phantoms``) under random column masks, 4× and 8×, with maps
from ``espirit`` and noise of 0.5 to 2 % of the image; never on scans. Phantoms flatter total variation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import LinearOperator
from monarch_sciml.mri.inputs import Array, as_tensor
from monarch_sciml.mri.operators import Sampling, conjugate_gradients, encoding, normalise

__all__ = [
    "METHODS",
    "cg_sense",
    "density_compensated",
    "l1_wavelet",
    "sampling_density",
    "total_variation",
    "zero_filled",
]


def zero_filled(kspace: Array, pattern: Array, maps: Array) -> Tensor:
    """``x = Aᴴ y``: inverse transform and coil combination, missing points left at zero.

    Raises:
        InputError: k-space, mask and maps that do not belong together, or NaN.
    """
    A, y, *_ = _problem(kspace, pattern, maps)
    return A.H(y)


def density_compensated(
    kspace: Array, pattern: Array, maps: Array, density: Array, *, power: float = 0.4
) -> Tensor:
    """``x = Aᴴ (y / dᵖ)``: each point counts for the unmeasured ones around it.

    The best that a diagonal in k-space does, and so the linear baseline to a learned transform. ``density``
    (1, W) or (H, W) is the probability d of each point being measured, see ``sampling_density``. With power
    p = 1 the expected image is the true one and errors are largest; p = 0 is ``zero_filled``. The default
    was chosen for columns, as those below; the 0.75 that mSENSE starts with, for Poisson discs.

    Raises:
        InputError: as for ``zero_filled``, or a density that does not fit or is zero at a measured point.
    """
    A, y, P, S = _problem(kspace, pattern, maps)
    density = as_tensor(density, "a density")
    if density.ndim < 2 or any(
        n not in (1, m) for n, m in zip(density.shape[-2:], S.shape[-2:], strict=True)
    ):
        expected = f"a density (1, {S.shape[-1]}) or ({S.shape[-2]}, {S.shape[-1]})"
        raise InputError(expected, f"{tuple(density.shape)}", "take it from masks of this size")
    density = density.to(y.real)
    if not bool(torch.where(P, density > 0, True).all()):
        raise InputError(
            "a positive density at every measured point", "zero", "average more masks, or smooth it"
        )
    return A.H(y / torch.where(density > 0, density, 1.0).pow(power).unsqueeze(-3))


def sampling_density(patterns: Array, *, smoothing: float = 0.0) -> Tensor:
    """Probability (1, W) or (H, W) of each point being measured: the mean of masks (n, 1 or H, W).

    ``smoothing`` is the standard deviation, in points, of the Gaussian that a mean of few masks, or the only
    one there is, is smoothed with.
    """
    patterns = as_tensor(patterns, "masks")
    if patterns.ndim != 3:
        raise InputError("masks (n, 1, W) or (n, H, W)", f"{tuple(patterns.shape)}", "stack them")
    from scipy.ndimage import gaussian_filter

    mean = patterns.to(torch.float64).mean(0)
    smooth = gaussian_filter(mean.cpu().numpy(), smoothing, mode="nearest")
    return torch.from_numpy(smooth).to(patterns.device)


def cg_sense(
    kspace: Array, pattern: Array, maps: Array, *, damping: float = 0.005, iterations: int = 20
) -> Tensor:
    """``argmin_x ‖A x − y‖² + λ ‖x‖²`` by conjugate gradients (Pruessmann et al., MRM 2001).

    The eigenvalues of AᴴA lie between 0 and 1; ``damping`` λ is relative to that. Without damping the
    number of iterations is what keeps noise in check.

    Raises:
        InputError: as for ``zero_filled``, or a single coil, which has nothing to unfold with.
    """
    A, y, _, S = _problem(kspace, pattern, maps)
    if S.shape[-3] < 2:
        raise InputError("at least two coils for SENSE", "one", "use l1-wavelet or tv")
    b = A.H(y)
    scale = normalise(b)
    return scale * conjugate_gradients(A, b / scale, damping=damping, iterations=iterations)


def l1_wavelet(
    kspace: Array, pattern: Array, maps: Array, *, regularisation: float = 0.001, iterations: int = 60
) -> Tensor:
    """``argmin_x ½ ‖A x − y‖² + λ ‖Ψ x‖₁`` with Daubechies-4 wavelets Ψ (Lustig et al., MRM 2007).

    By sigpy, as FISTA. ``regularisation`` λ is relative to the brightest point of the zero-filled image.

    Raises:
        InputError: as for ``zero_filled``.
    """
    from sigpy.mri.app import L1WaveletRecon

    def solve(y: Any, weights: Any, S: Any, norm: float) -> Any:
        # the bound on ‖A‖² spares sigpy's power method, which draws from numpy's global generator
        app = L1WaveletRecon(
            y, S, regularisation, weights=weights, alpha=1 / norm, max_iter=iterations, show_pbar=False
        )
        return app.run()

    return _each_slice(solve, kspace, pattern, maps)


def total_variation(
    kspace: Array, pattern: Array, maps: Array, *, regularisation: float = 0.001, iterations: int = 20
) -> Tensor:
    """``argmin_x ½ ‖A x − y‖² + λ ‖∇x‖₁`` (Block, Uecker and Frahm, MRM 2007).

    By sigpy, as ADMM with 10 conjugate gradients an iteration; its default solver, primal-dual hybrid
    gradients, is far from the minimum after 100. ∇ are the cyclic differences along each axis, |·| is that
    of complex numbers. ``regularisation`` λ is relative to the brightest point of the zero-filled image.

    Raises:
        InputError: as for ``zero_filled``.
    """
    from sigpy.mri.app import TotalVariationRecon

    def solve(y: Any, weights: Any, S: Any, _: float) -> Any:
        app = TotalVariationRecon(
            y,
            S,
            regularisation,
            weights=weights,
            solver="ADMM",
            rho=0.01,
            max_cg_iter=10,
            max_iter=iterations,
            show_pbar=False,
        )
        return app.run()

    return _each_slice(solve, kspace, pattern, maps)


METHODS: dict[str, Callable[..., Tensor]] = {
    "zero-filled": zero_filled,
    "cg-sense": cg_sense,
    "l1-wavelet": l1_wavelet,
    "tv": total_variation,
}
"""By the names that the command line and tables use; all are called as method(kspace, pattern, maps)."""


def _problem(kspace: Array, pattern: Array, maps: Array) -> tuple[LinearOperator, Tensor, Tensor, Tensor]:
    """A, k-space y, pattern (..., 1 or H, W) and maps S, after a look at what is given."""
    y, S = as_tensor(kspace, "k-space"), as_tensor(maps, "coil maps")
    P = as_tensor(pattern, "a mask")
    if not y.is_complex() or not S.is_complex() or min(y.ndim, S.ndim) < 3:
        raise InputError(
            "complex k-space and maps (coils, H, W)",
            f"{y.dtype} {tuple(y.shape)} and {S.dtype} {tuple(S.shape)}",
            "convert them, and keep the coil axis of a single coil",
        )
    if 0 in y.shape:
        raise InputError("at least one slice, coil, row and column", f"{tuple(y.shape)}", "pass some")
    if y.shape[-3:] != S.shape[-3:]:
        raise InputError(
            f"coil maps {tuple(y.shape[-3:])} like the k-space",
            f"{tuple(S.shape[-3:])}",
            "estimate the maps from this k-space",
        )
    for name, values in {"k-space": y, "coil maps": S}.items():
        if not bool(torch.isfinite(torch.view_as_real(values.resolve_conj())).all()):
            raise InputError(f"finite {name}", "NaN or infinite values", "check the file")
    if P.dtype != torch.bool and not bool(((P == 0) | (P == 1)).all()):
        raise InputError("a mask of 0 and 1", f"other values ({P.dtype})", "threshold it")
    P = Sampling(P, tuple(S.shape[-3:])).pattern
    S = S[(None,) * (y.ndim - S.ndim)]  # the same maps for a batch, whose masks may differ
    return encoding(S, P), y, P, S


def _each_slice(
    solve: Callable[[Any, Any, Any, float], Any], kspace: Array, pattern: Array, maps: Array
) -> Tensor:
    """``solve(y, weights, S, bound on ‖A‖²)`` on numpy arrays, slice by slice, scaled to max |Aᴴ y| = 1."""
    A, y, P, S = _problem(kspace, pattern, maps)
    image = A.H(y).detach()
    scale = normalise(image)
    slices = image.shape[:-2]
    data = (y.detach() / scale.unsqueeze(-3)).expand(*slices, *y.shape[-3:])
    weights = P.to(image.real).expand(*slices, *P.shape[-2:])
    images = []
    for one, w, s in zip(
        data.reshape(-1, *data.shape[-3:]),
        weights.reshape(-1, *weights.shape[-2:]),
        S.detach().expand_as(data).reshape(-1, *S.shape[-3:]),
        strict=True,
    ):
        sensitivity = s.abs().square().sum(0)
        norm = max(float(sensitivity.max()), 1e-30)
        x = torch.from_numpy(solve(_numpy(one), _numpy(w), _numpy(s), norm)).to(image)
        # where no coil measures anything, the regulariser would continue the image
        images.append(torch.where(sensitivity > 0, x, 0))
    return scale * torch.stack(images).view_as(image)


def _numpy(x: Tensor) -> Any:
    return x.resolve_conj().cpu().numpy()
