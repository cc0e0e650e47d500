"""One slice of k-space to an image: mask → coil maps → method → magnitude."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.classical import METHODS
from monarch_sciml.mri.inputs import Array, as_tensor
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    apply_mask,
    draw_mask,
    mask_from_kspace,
    mask_from_pattern,
    measured_columns,
    within,
)
from monarch_sciml.mri.metrics import center_crop
from monarch_sciml.mri.operators import Sampling, encoding
from monarch_sciml.mri.sensitivity import estimate_maps, root_sum_of_squares

__all__ = ["Reconstruct", "Reconstructed", "Result", "reconstruct_slice", "with_blanks"]

# (masked k-space (C, H, W), pattern, maps) → image (H, W)
Reconstruct = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reconstructed:
    """One slice: the image and how well it explains the data."""

    image: Tensor
    """Magnitude (h, w), real."""
    mask: Mask
    """What was used: without columns that nobody measured."""
    retrospective: bool
    """Whether the k-space was fully sampled before."""
    data_consistency: float
    """‖A x − y‖ / ‖y‖ with the Fourier transform in A, whatever the method used; of the complex image."""
    target: Tensor | None
    """Magnitude (h, w): the one given, or of fully sampled k-space the root sum of squares; else None."""


Result = tuple[Reconstructed, dict[str, float]]
"""A slice, and its scores by name."""


def reconstruct_slice(
    kspace: Array,
    method: Reconstruct | str,
    *,
    sampling: MaskConfig | None = None,
    seed: int | tuple[int, ...] = 0,
    maps: Array | str = "espirit",
    mask: Mask | Array | None = None,
    padding: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    target: Array | None = None,
) -> Reconstructed:
    """Reconstruct one slice of k-space (C, H, W).

    Args:
        kspace: fully sampled: masked as ``sampling`` says; undersampled: as it is, with the mask given or
            found from its zeros.
        method: (masked k-space, pattern, maps) → image (H, W), or the name of an entry of ``METHODS``.
        sampling, seed: the mask for fully sampled k-space.
        maps: (C, H, W) with Σ|S|² = 1 or 0, or how to estimate them from the centre of the masked k-space.
        mask: of k-space that is undersampled, if known: (W,), (1, W) or (H, W), or a :class:`Mask`, which
            says how large the fully sampled centre is.
        padding: (left, right), the columns that were measured; of fully sampled k-space, those of zeros at
            the edges are left out in any case.
        size: to crop the image to.
        target: to compare with, whose size the image gets; by default the root sum of squares of fully
            sampled k-space, of undersampled none.

    Raises:
        InputError: maps, mask and k-space that do not fit together, or no centre to calibrate with.
    """
    if isinstance(method, str):
        if method not in METHODS:
            remedy = "choose one; of a trained network, pass a function"
            raise InputError(f"a method out of {', '.join(METHODS)}", repr(method), remedy)
        method = METHODS[method]
    kspace = as_tensor(kspace, "k-space")
    if kspace.ndim != 3:
        remedy = "pass one slice, and keep the coil axis of a single coil"
        raise InputError("k-space (coils, H, W)", f"{tuple(kspace.shape)}", remedy)
    if mask is None:
        found = mask_from_kspace(kspace)
    else:
        found = mask if isinstance(mask, Mask) else _mask(mask, tuple(kspace.shape))
    columns = measured_columns(found) if mask is None else None
    whole = columns is not None
    shape = (kspace.shape[-2], kspace.shape[-1])
    if whole and sampling is not None:
        found = draw_mask(sampling, shape, seed)
    for edges in (columns, padding):
        found = within(found, edges or (0, shape[1]))
    y = apply_mask(kspace, found)
    if isinstance(maps, str):
        maps = estimate_maps(y, found.acs, maps)
    elif (maps := as_tensor(maps, "coil maps")).shape != kspace.shape:
        raise InputError(
            f"coil maps of shape {tuple(kspace.shape)}, as k-space",
            f"{tuple(maps.shape)}",
            "pass the maps of this scan, or leave --maps out",
        )
    x = method(y, found.pattern, maps)
    if not torch.isfinite(x).all():
        raise InputError("a finite image", "NaN or infinity", "check the data, or lower the regularisation")
    A = encoding(maps, found.pattern)
    # a method of magnitudes has no phase: it is lent that of the zero-filled image
    complete = x if x.is_complex() else x * torch.exp(1j * A.H(y).angle())
    # in double precision, as squares of small numbers vanish in single
    rest, size_of_y = (vector_norm(v, dtype=torch.complex128) for v in (A(complete) - y, y))
    consistency = float(rest / size_of_y.clamp_min(torch.finfo(torch.float64).tiny))
    size = shape if size is None else (min(size[0], shape[0]), min(size[1], shape[1]))
    if whole and target is None:
        target = root_sum_of_squares(FourierTransform(tuple(kspace.shape), inverse=True)(kspace))
        target = center_crop(target, size)
    if target is not None:
        target = as_tensor(target, "a target")
        size = (target.shape[-2], target.shape[-1])
    return Reconstructed(center_crop(x.abs(), size), found, whole, consistency, target)


def _mask(pattern: Array, domain: tuple[int, ...]) -> Mask:
    """Of a pattern of any shape that operators take."""
    return mask_from_pattern(Sampling(pattern, domain).pattern.cpu().numpy(), domain[-2])


def with_blanks(
    name: str, results: Iterable[Result | None], warn: Callable[[str], object]
) -> Iterator[Result]:
    """The slices of a volume, with an image of zeros, without scores, for each None: a slice of zeros.

    ``warn`` is told of them at the end, ``name`` being the volume's.

    Raises:
        InputError: a volume of zeros.
    """
    silent: list[str] = []
    blank: Result | None = None
    for index, result in enumerate(results):
        if result is None:
            silent.append(str(index))
            if blank is not None:
                yield blank
            continue
        if blank is None:  # its size and mask are those of the first slice with samples
            image = torch.zeros_like(result[0].image)
            blank = replace(result[0], image=image, target=None, data_consistency=0.0), {}
            yield from [blank] * len(silent)
        yield result
    if blank is None:
        raise InputError("k-space with samples", f"zeros only in {name}", "check the file")
    if silent:
        warn(f"slices of zeros in {name}, left zero and not scored: {', '.join(silent)}")
