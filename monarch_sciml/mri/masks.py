"""Undersampling masks: drawn seed for seed as fastMRI does, Poisson discs, or read from a file.

A mask is boolean and acts on centred k-space (..., H, W): a pattern (1, W) keeps whole columns, a pattern
(H, W) keeps points.
"""

import math
import operator
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.mri import bart
from monarch_sciml.mri.inputs import Array, as_tensor
from monarch_sciml.mri.mask_config import MaskConfig, MaskOptions

__all__ = [
    "Mask",
    "MaskConfig",
    "MaskOptions",
    "apply_mask",
    "central",
    "draw_mask",
    "find_acs",
    "load_mask",
    "mask_from_kspace",
    "mask_from_pattern",
    "measured_columns",
    "volume_seed",
    "within",
]

POISSON_ATTEMPTS = 6
WHOLE = 0.95  # of the points between the padded edges: a stray zero is a sample too
POISSON_TOLERANCE = 0.05  # of the acceleration; twice that from the second attempt on


@dataclass(frozen=True, eq=False)
class Mask:
    """A sampling pattern and the size of its fully sampled centre."""

    pattern: Tensor
    """bool; (1, W) for whole columns, (H, W) for points."""
    acs: tuple[int, int]
    """Rows and columns of the fully sampled block, which lies as ``central`` says; rows = H for columns."""
    drawn: MaskConfig | None = None
    """Kind, acceleration and centre fraction that were asked for; None where the mask was found."""

    @property
    def acceleration(self) -> float:
        """Points there are over points kept; lower than asked for where the centre comes on top."""
        return self.pattern.numel() / max(1, int(self.pattern.sum()))

    @property
    def center_lines(self) -> int:
        """Number of low frequencies: columns of the fully sampled block."""
        return self.acs[1]

    @property
    def center_fraction(self) -> float:
        """Part of the columns that is the fully sampled block."""
        return self.acs[1] / self.pattern.shape[-1]


def central(n: int, length: int) -> slice:
    """The ``length`` entries around the centre ``n // 2`` of a centred axis: from (n − length + 1) // 2.

    Each block contains the shorter ones.
    """
    start = (n - length + 1) // 2
    return slice(start, start + length)


def volume_seed(name: str | Path) -> tuple[int, ...]:
    """The seed of a volume: the characters of its file name with ``.h5`` and without folders (fastMRI)."""
    return tuple(map(ord, Path(name).name))


# -------------------------------------------------------------------------------------------------- drawing


def draw_mask(config: MaskConfig, shape: tuple[int, ...], seed: int | tuple[int, ...] | None) -> Mask:
    """Draw the mask for k-space of shape (..., H, W); a seed always gives the same one, None a new one.

    The column masks are those of fastMRI for the same seed (numpy's RandomState): first the pair of
    acceleration R and centre fraction, then the pattern. L = round(W · fraction) columns around the centre
    are always kept; where they alone make up the W / R columns that a mask with -fraction aims at, or that
    a random one has on average, nothing is added to them.

    Poisson discs (sigpy's) keep the corners of k-space, without which low rates cannot be reached, and have
    the acceleration asked for to within 10 %. One takes seconds at 320 × 320; the last 256 are remembered.

    Raises:
        InputError: an empty shape, a seed numpy does not take, a Poisson disc that cannot be drawn, or a
            ``mask_file`` that does not fit.
    """
    if len(shape) < 2:
        raise InputError("a shape (..., H, W)", f"{tuple(shape)}", "pass that of k-space")
    height, width = shape[-2:]
    if height < 1 or width < 1:
        raise InputError("k-space of at least one row and column", f"{height} × {width}", "check its shape")
    if config.mask_file is not None:
        found = load_mask(config.mask_file, (height, width))
        return Mask(found.pattern, found.acs, config)
    try:
        rng = np.random.RandomState(seed)
    except (ValueError, TypeError) as error:
        raise InputError(
            "a seed of whole numbers from 0 to 2³² − 1", f"{seed!r}: {error}", "change it"
        ) from None
    choice = rng.randint(len(config.accelerations))
    rate, fraction = config.accelerations[choice], config.center_fractions[choice]
    drawn = MaskConfig(config.mask, (rate,), (fraction,))
    if config.mask == "poisson":
        calibration = (max(1, round(height * fraction)), max(1, round(width * fraction)))
        pattern = _poisson((height, width), rate, calibration, int(rng.randint(2**31 - 1)))
        return Mask(torch.from_numpy(pattern.copy()), calibration, drawn)
    low = round(width * fraction)
    if config.mask == "magic-fraction":
        wanted = round(width / rate)
        low = max(min(low, wanted), 1)
        rate = round(width / (wanted - low)) if wanted > low else math.inf
    columns = np.zeros(width, dtype=bool)
    if low < width:
        columns |= _outer_columns(config.mask, width, low, rate, rng)
    columns[central(width, low)] = True
    if not columns.any():
        raise InputError(
            "a mask that keeps at least one column",
            f"none of {width} at {rate:g}× without a centre",
            "raise center_fractions or lower accelerations",
        )
    return Mask(torch.from_numpy(columns[None]), (height if low else 0, low), drawn)


def _outer_columns(kind: str, n: int, low: int, rate: float, rng: np.random.RandomState) -> np.ndarray:
    """The columns that are kept beside the ``low`` in the centre, as booleans."""
    columns = np.zeros(n, dtype=bool)
    if kind == "random":
        return rng.uniform(size=n) < (n / rate - low) / (n - low)
    if kind == "equispaced":
        columns[rng.randint(0, round(rate)) :: round(rate)] = True
    elif kind == "equispaced-fraction":
        if low * rate < n - 1e-6:  # otherwise the centre is enough
            step = rate * (low - n) / (low * rate - n)
            positions = np.arange(rng.randint(0, round(step)), n - 1, step)
            columns[np.around(positions).astype(int)] = True
    elif rate < math.inf:
        # magic: frequencies κ and −κ are not both kept, as an image with little phase has them conjugate
        step = round(rate)
        offset = rng.randint(0, step)
        positive, negative = (offset + 2, offset - 1) if offset % 2 else (offset + 1, offset + 2)
        half = (n + 1) // 2
        columns[positive:half:step] = True  # frequency 0 first
        columns[half:][::-1][negative::step] = True
        columns = np.fft.fftshift(columns)
    return columns


@lru_cache(maxsize=256)
def _poisson(shape: tuple[int, int], rate: float, calibration: tuple[int, int], seed: int) -> np.ndarray:
    """Variable-density Poisson disc, bool (H, W), never to be written to.

    Its search for a density sometimes ends without success: other seeds then, derived from the first.
    """
    from sigpy.mri import poisson  # heavy, compiles on first use

    block = tuple(central(n, length) for n, length in zip(shape, calibration, strict=True))
    seeds = [seed, *np.random.RandomState(seed).randint(2**31 - 1, size=POISSON_ATTEMPTS - 1)]
    # a centre of as many points as there may be in all, or of whole lines, leaves nothing to search for
    small = math.prod(calibration) * rate * 0.9 < math.prod(shape)
    inside = all(length < n for length, n in zip(calibration, shape, strict=True))
    for attempt, each in enumerate(seeds if small and inside else ()):
        tolerance = POISSON_TOLERANCE * (1 if attempt == 0 else 2) * rate
        state = np.random.get_state()  # noqa: NPY002 (sigpy seeds numpy's global generator)
        try:
            pattern = poisson(shape, rate, calibration, crop_corner=False, seed=int(each), tol=tolerance)
        except ValueError:  # "Cannot generate mask"
            continue
        finally:
            np.random.set_state(state)  # noqa: NPY002
        pattern = pattern != 0
        pattern[block] = True  # on odd sizes sigpy's centre lies one off
        if abs(pattern.size / pattern.sum() - rate) <= 0.1 * rate:
            return pattern
    raise InputError(
        f"a Poisson disc of {rate:g}× on {shape[0]} × {shape[1]} points",
        f"none with a centre of {calibration[0]} × {calibration[1]}",
        "change accelerations or lower center_fractions",
    )


# ------------------------------------------------------------------------------------- masks from elsewhere


def find_acs(pattern: Array) -> tuple[int, int]:
    """Rows and columns of the largest fully sampled ``central`` block; (0, 0) if the centre is not sampled.

    ``pattern`` is (W,), (1, W) or (H, W). Largest is the block with the longest shorter side and among those
    the one with most points: a single full line through the centre is no block to calibrate with.
    """
    pattern = as_tensor(pattern, "a pattern")
    if pattern.ndim not in (1, 2):
        raise InputError("a pattern (W,), (1, W) or (H, W)", f"shape {tuple(pattern.shape)}", "drop axes")
    grid = np.atleast_2d(pattern.detach().cpu().bool().numpy())
    rows, columns = (sorted(range(n), key=lambda i, n=n: (abs(2 * i + 1 - n), -i)) for n in grid.shape)
    grown = grid[rows][:, columns]  # from the centre outwards, so that central blocks are upper left blocks
    widths = np.minimum.accumulate(np.logical_and.accumulate(grown, axis=1).sum(axis=1))
    blocks = [(height, int(width)) for height, width in enumerate(widths, start=1) if width]
    return max(blocks, key=lambda block: (min(block), math.prod(block)), default=(0, 0))


def mask_from_kspace(kspace: Array) -> Mask:
    """The mask of undersampled k-space, complex (coils, H, W) or (slices, coils, H, W).

    A point is sampled if some coil and slice has a value other than zero there. The mask is one of columns if
    all rows with any sample have the same ones and no gap between them. Columns that a file fills up with
    zeros at both edges count as not sampled.

    Raises:
        InputError: not complex, NaN or infinite, or zero throughout.
    """
    if isinstance(kspace, Tensor):
        if not kspace.is_complex():
            found = f"{kspace.dtype} of shape {tuple(kspace.shape)}"
            raise InputError("complex k-space of shape (coils, H, W)", found, "convert it")
        kspace = kspace.detach().cpu().resolve_conj().numpy()
    array = np.asarray(kspace)
    if array.ndim < 2 or 0 in array.shape or not np.iscomplexobj(array):
        found = f"{array.dtype} of shape {array.shape}"
        raise InputError("complex k-space of shape (coils, H, W)", found, "convert it")
    if not np.isfinite(array).all():
        raise InputError("finite k-space", "NaN or infinite values", "write the file again")
    sampled = (array != 0).reshape(-1, *array.shape[-2:]).any(axis=0)
    rows = np.flatnonzero(sampled.any(axis=1))
    if not len(rows):
        raise InputError("k-space with samples", "zeros only", "check the file")
    active = sampled[rows]
    # gaps between rows are undersampling, along the other axis; rows missing at an edge are a short echo
    same = (active == active[0]).all() and len(rows) == rows[-1] - rows[0] + 1
    return mask_from_pattern(active[:1] if same else sampled, array.shape[-2])


def measured_columns(mask: Mask) -> tuple[int, int] | None:
    """(left, right): the columns of fully sampled k-space, all of them but for edges filled up with zeros.

    None if ``mask``, as ``mask_from_kspace`` finds it, shows undersampling: gaps, or half of the
    columns only.
    """
    columns = mask.pattern.any(0).nonzero().squeeze(1)
    left, right = int(columns[0]), int(columns[-1]) + 1
    inside = mask.pattern[:, left:right]
    gaps = len(columns) < right - left or float(inside.float().mean()) < WHOLE
    return None if gaps or 2 * len(columns) <= mask.pattern.shape[1] else (left, right)


def within(mask: Mask, padding: tuple[int, int]) -> Mask:
    """``mask`` without columns outside [left, right), which hold zeros that nobody measured.

    Raises:
        InputError: nothing is left.
    """
    column = torch.arange(mask.pattern.shape[-1], device=mask.pattern.device)
    pattern = mask.pattern & (column >= padding[0]) & (column < padding[1])
    if not pattern.any():
        found = f"none among the columns {padding[0]} to {padding[1]} that were measured"
        raise InputError("a mask that keeps something", found, "check the mask and the header")
    return Mask(pattern, mask.acs, mask.drawn)


def load_mask(path: Path, shape: tuple[int, int]) -> Mask:
    """Read a mask of 0 and 1, .npy or BART's pair by either or its common name, for k-space (H, W).

    Its shape is (W,), (1, W) or (H, W); the fully sampled centre is found by ``find_acs``.

    Raises:
        InputError: no such file, a damaged one, other values than 0 and 1, no 1, or another shape.
    """
    path = Path(os.path.expanduser(path))
    try:
        pair = bart.pair(path)
        for part in pair or [path]:
            # a pipe would keep us waiting
            if not part.is_file():
                raise InputError("a mask file", f"nothing at {part}", "check the path")
        values = _read_cfl(*pair) if pair else _read_npy(path)
        binary = values.dtype.kind in "biufc" and bool(np.isin(values, (0, 1)).all())
    except InputError:
        raise
    except Exception as error:  # decoders raise all kinds
        found = f"{path.name} ({type(error).__name__}: {error})"
        raise InputError("a mask as .npy or BART .cfl", found, "write it with numpy.save") from None
    if not binary:
        raise InputError(
            f"a mask of 0 and 1 in {path.name}", f"other values ({values.dtype})", "threshold it"
        )
    if not values.any():
        raise InputError(f"a mask that keeps something in {path.name}", "zeros only", "check how it was made")
    height, width = shape
    if values.shape not in ((width,), (1, width), (height, width)):
        raise InputError(
            f"a mask of shape ({width},), (1, {width}) or ({height}, {width}) in {path.name}",
            f"{values.shape}",
            "transpose it" if values.shape in ((width, height), (width, 1)) else "make one for this k-space",
        )
    return mask_from_pattern(np.atleast_2d(values != 0), height)


def mask_from_pattern(pattern: np.ndarray, height: int) -> Mask:
    """The mask of a pattern (1, W) or (H, W), bool, whose fully sampled centre is found."""
    rows, columns = find_acs(tensor := torch.from_numpy(pattern.copy()))
    return Mask(tensor, (height if len(pattern) == 1 and rows else rows, columns))


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_cfl(hdr: Path, cfl: Path) -> np.ndarray:
    """BART's plane (H, W) or (1, W), as that of its k-space, in whichever two of the first dimensions."""
    dims = bart.dimensions(hdr, cfl)
    flat = bart.flat_axis(dims)
    sizes = [n for i, n in enumerate(dims) if (i < 3 and i != flat) or n > 1]
    return np.fromfile(cfl, dtype="<c8").reshape(sizes, order="F")


# ---------------------------------------------------------------------------------------------- application


def apply_mask(kspace: Array, mask: Mask | Array, padding: tuple[int, int] | None = None) -> Tensor:
    """Keep what the mask keeps; the rest is zero, and every zero is +0.0, also where k-space was −0.0 or NaN.

    Args:
        kspace: complex (..., H, W).
        mask: A mask, or a pattern that broadcasts against k-space; what is not 0 is kept.
        padding: (left, right): columns outside [left, right) become zero as well, as for fastMRI's VarNet.

    Raises:
        InputError: a mask or padding that does not fit.
    """
    kspace = as_tensor(kspace, "k-space")
    pattern = mask.pattern if isinstance(mask, Mask) else as_tensor(mask, "a mask")
    pattern = pattern.to(kspace.device).bool()
    if (
        pattern.ndim > kspace.ndim
        or kspace.ndim == 0
        or any(m not in (1, n) for m, n in zip(reversed(pattern.shape), reversed(kspace.shape), strict=False))
    ):
        raise InputError(
            f"a mask that fits k-space of shape {tuple(kspace.shape)}",
            f"one of shape {tuple(pattern.shape)}",
            "draw it for the last two axes",
        )
    if padding is not None:
        left, right = map(operator.index, padding)
        left, right = (min(max(edge, 0), kspace.shape[-1]) for edge in (left, right))
        column = torch.arange(kspace.shape[-1], device=kspace.device)
        kept = (column >= left) & (column < right)
        if not kept.any():
            raise InputError(
                f"padding (left, right) that leaves some of {len(kept)} columns",
                f"{padding}",
                "check the header",
            )
        pattern = pattern & kept
    return torch.where(pattern, kspace, 0) + 0.0  # the sum turns −0.0 into +0.0
