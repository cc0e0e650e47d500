"""Image metrics per volume, as fastMRI reports them: NMSE, PSNR and SSIM of magnitude images.

An image is (H, W), a volume (S, H, W); numpy arrays or tensors, computed in float64.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["center_crop", "nmse", "per_slice", "psnr", "scores", "ssim", "summarise"]

Image = np.ndarray | Tensor
AnyImage = TypeVar("AnyImage", bound=np.ndarray | Tensor)
WINDOW = 7  # of the SSIM
LARGEST = 1e100  # whose square is still a number


def nmse(target: Image, prediction: Image) -> float:
    """Normalised mean square error ‖target − prediction‖² / ‖target‖².

    Raises:
        InputError: images of different shapes, complex, with NaN; a target that is zero throughout.
    """
    target, prediction = _pair(target, prediction)
    energy = float(np.sum(target**2))
    if energy == 0:
        raise InputError("a target with values other than 0", "zeros only", "leave it out")
    return float(np.sum((target - prediction) ** 2)) / energy


def psnr(target: Image, prediction: Image, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio 10 log₁₀(data_range² / mean square error) in dB; ∞ for equal images.

    ``data_range`` is by default the maximum of the target: of the volume, not of the slice.

    Raises:
        InputError: images of different shapes, complex, with NaN; a data range that is not positive.
    """
    target, prediction = _pair(target, prediction)
    peak = _peak(target, data_range)
    error = float(np.mean((target - prediction) ** 2))
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def ssim(target: Image, prediction: Image, data_range: float | None = None) -> float:
    """Structural similarity, mean over slices (Wang et al., 2004).

    Uniform window of 7 × 7, K₁ = 0.01, K₂ = 0.03, sample covariances: what skimage's
    ``structural_similarity`` does by default. ``data_range`` as for ``psnr``.

    Raises:
        InputError: as for ``psnr``, or images smaller than the window.
    """
    from skimage.metrics import structural_similarity

    target, prediction = _pair(target, prediction)
    peak = _peak(target, data_range)
    if min(target.shape[1:]) < WINDOW:
        found = f"{target.shape[1]} × {target.shape[2]}"
        raise InputError(f"images of at least {WINDOW} × {WINDOW} for SSIM", found, "take larger ones")
    slices = zip(target, prediction, strict=True)
    values: list[Any] = [structural_similarity(t, p, win_size=WINDOW, data_range=peak) for t, p in slices]
    return float(np.mean(values))


def scores(target: Image, prediction: Image, data_range: float | None = None) -> dict[str, float]:
    """``nmse``, ``psnr`` and ``ssim`` of one volume or image under these names; raises what they raise."""
    return {
        "nmse": nmse(target, prediction),
        "psnr": psnr(target, prediction, data_range),
        "ssim": ssim(target, prediction, data_range),
    }


def per_slice(target: Image, prediction: Image, data_range: float | None = None) -> list[dict[str, float]]:
    """``scores`` of every slice, with the data range of the volume; NMSE is NaN where the target is zero."""
    target, prediction = _pair(target, prediction)
    peak = _peak(target, data_range)
    return [
        {
            "nmse": nmse(t, p) if t.any() else math.nan,
            "psnr": psnr(t, p, peak),
            "ssim": ssim(t, p, peak),
        }
        for t, p in zip(target, prediction, strict=True)
    ]


def summarise(volumes: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float | None]]:
    """Mean over volumes and its standard error s / √n, for each name.

    The error is None for a single volume, and where a value is infinite or NaN.

    Raises:
        InputError: no volumes.
    """
    if not volumes:
        raise InputError("the scores of at least one volume", "none", "check the selection")
    summary: dict[str, tuple[float, float | None]] = {}
    for name in volumes[0]:
        values = np.array([volume[name] for volume in volumes], dtype=float)
        known = len(values) > 1 and bool(np.isfinite(values).all())
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if known else None
        summary[name] = (float(values.mean()), error)
    return summary


def center_crop(x: AnyImage, shape: tuple[int, int]) -> AnyImage:
    """The middle of the last two axes, from (N − n) // 2 on: a view.

    Raises:
        InputError: a shape that is empty or larger than the image.
    """
    if x.ndim < 2 or any(not 0 < n <= size for n, size in zip(shape, x.shape[-2:], strict=True)):
        raise InputError(
            f"an image of at least {shape[0]} × {shape[1]}, not empty, to crop from",
            f"shape {tuple(x.shape)}",
            "choose a smaller crop",
        )
    top, left = ((size - n) // 2 for size, n in zip(x.shape[-2:], shape, strict=True))
    return x[..., top : top + shape[0], left : left + shape[1]]  # type: ignore[return-value]


def _pair(target: Image, prediction: Image) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 volumes."""
    a, b = _volume(target, "target"), _volume(prediction, "prediction")
    if a.shape != b.shape:
        raise InputError(
            "target and prediction of one shape", f"{a.shape} and {b.shape}", "crop them with center_crop"
        )
    return a, b


def _volume(image: Image, name: str) -> np.ndarray:
    if isinstance(image, Tensor):
        image = image.detach().cpu().resolve_conj()
        image = (image if image.is_complex() else image.double()).numpy()
    array = np.asarray(image)
    if array.dtype.kind not in "buif":
        raise InputError(f"magnitude images as {name}", f"dtype {array.dtype}", "take the absolute value")
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(
            f"a {name} of shape (H, W) or (S, H, W)", f"shape {array.shape}", "drop or add axes, or fill it"
        )
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"a finite {name}", "NaN or infinite values", "look for where they arise")
    if np.abs(array).max() > LARGEST:
        raise InputError(
            f"a {name} of at most {LARGEST:g}", "larger values", "divide both images by a constant"
        )
    return array[None] if array.ndim == 2 else array


def _peak(target: np.ndarray, data_range: float | None) -> float:
    peak = float(target.max()) if data_range is None else float(data_range)
    if not 1 / LARGEST <= peak <= LARGEST:
        what = "the maximum of the target" if data_range is None else "data_range"
        raise InputError(
            f"a positive data range, from {1 / LARGEST:g} to {LARGEST:g}",
            f"{what} is {peak:g}",
            "give data_range, in units of the image",
        )
    return peak
