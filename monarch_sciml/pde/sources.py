"""What every file of trajectories becomes: named arrays with named axes, checked once and read in parts.

Axes are letters: ``n`` trajectory, ``t`` time, ``c`` channel, ``x``, ``y``, ``z`` space.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch

from monarch_sciml.errors import InputError

__all__ = [
    "TIME_NAMES",
    "Source",
    "Variable",
    "axis_letters",
    "checked_times",
    "named_source",
    "parse_axes",
    "pick",
    "refuse_masked",
    "to_numpy",
]

TIME_FIRST = {3: "ntx", 4: "ntxy"}  # five axes could be ntxyz, ntxyc or ntcxy: ask
TIME_NAMES = ("t", "times", "time", "t-coordinate")
VISCOSITY_NAMES = ("viscosity", "visc", "nu", "Nu")
MISSING_NAMES = ("_FillValue", "missing_value")  # of netCDF: numbers that stand for a missing value
PACKED = {"scale_factor": 1.0, "add_offset": 0.0}  # of netCDF too, with the values that change nothing


@dataclass(frozen=True)
class Variable:
    """One stored array and the letters of its axes, in the order in which they are stored."""

    name: str
    array: Any  # numpy.ndarray, numpy.memmap or h5py.Dataset: has .shape, .dtype and slicing
    axes: str

    def length(self, axis: str) -> int:
        """Number of entries along ``axis``; 1 where the array has no such axis."""
        return self.array.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of points along each spatial axis, in the order x, y, z."""
        return tuple(self.length(axis) for axis in "xyz" if axis in self.axes)

    @property
    def missing(self) -> list[float]:
        """The finite numbers that stand for a missing value, as the attributes of the array say."""
        dtype, found = self.array.dtype, _numbers(self.array, MISSING_NAMES).values()
        with np.errstate(over="ignore"):
            rounded = [one.astype(dtype) if dtype.kind == "f" else one for one in found]
        return sorted({number for one in rounded for number in one.tolist() if math.isfinite(number)})

    def read(self, samples: range, times: range) -> np.ndarray:
        """The chosen trajectories and times, shape (n, t, c, *grid); NaN where a value is missing."""
        chosen = {"n": samples, "t": times}
        ranges = [chosen.get(a, range(size)) for a, size in zip(self.axes, self.array.shape, strict=True)]
        block = np.asarray(self.array[tuple(slice(r.start, r.stop, r.step) for r in ranges)])
        if missing := self.missing:
            block = np.where(np.isin(block, missing), np.nan, block)
        block = block.transpose([self.axes.index(axis) for axis in "ntcxyz" if axis in self.axes])
        return np.expand_dims(block, tuple(k for k, axis in enumerate("ntc") if axis not in self.axes))


@dataclass
class Source:
    """Variables joined along one axis (channels, times or trajectories), with what the file says of them.

    Raises:
        InputError: numbers that are not real, an empty array, variables of different sizes, times that do not
            increase.
    """

    format: str
    variables: list[Variable]
    along: str = "c"
    times: np.ndarray | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    lazy: bool = False  # holds an open file: neither pickled nor shared with another process

    def __post_init__(self) -> None:
        first = self.variables[0]
        for variable in self.variables:
            _check_dtype(variable)
            if 0 in variable.array.shape:
                raise InputError("data", f"{_described(variable)}, which is empty", "write the file again")
            same = [variable.length(axis) == first.length(axis) for axis in "ntc" if axis != self.along]
            if variable.grid != first.grid or not all(same):
                raise InputError(
                    f"{variable.name!r} as large as {first.name!r} along every axis but {self.along}",
                    f"{_described(variable)} beside {_described(first)}",
                    "give key= (--key) to read one array only",
                )
        if self.times is not None and not (
            np.isfinite(self.times).all() and (self.times[1:] > self.times[:-1]).all()
        ):
            found = np.array2string(self.times, threshold=8, edgeitems=3, precision=6)
            raise InputError("times that increase", found, "repair the times in the file, or leave them out")

    def length(self, axis: str) -> int:
        """Number of trajectories ``n``, times ``t`` or channels ``c``."""
        lengths = [variable.length(axis) for variable in self.variables]
        return sum(lengths) if axis == self.along else lengths[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of points along each spatial axis."""
        return self.variables[0].grid

    @property
    def nbytes(self) -> int:
        """Size of the numbers, uncompressed."""
        return sum(math.prod(v.array.shape) * v.array.dtype.itemsize for v in self.variables)

    @property
    def missing(self) -> list[float]:
        """The finite numbers that stand for a missing value."""
        return sorted({number for variable in self.variables for number in variable.missing})

    @property
    def scattered(self) -> bool:
        """True if one trajectory is spread over the whole file: times, not trajectories, are outermost."""
        return any("n" in v.axes and "t" in v.axes[: v.axes.index("n")] for v in self.variables)

    @property
    def viscosity(self) -> float | None:
        """The viscosity, if an attribute of a usual name holds one finite number."""
        values = (self.attributes.get(name) for name in VISCOSITY_NAMES)
        numbers = (float(value) for value in values if isinstance(value, int | float))
        return next((number for number in numbers if math.isfinite(number)), None)

    def read(self, samples: range, times: range) -> np.ndarray:
        """The chosen trajectories and times, shape (n, t, c, *grid)."""
        parts, start = [], 0
        for variable in self.variables:
            stop = start + variable.length(self.along)
            n = _inside(samples, start, stop) if self.along == "n" else samples
            t = _inside(times, start, stop) if self.along == "t" else times
            if n and t:
                parts.append(variable.read(n, t))
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis="ntc".index(self.along))


def named_source(arrays: Mapping[str, Any], key: str | None, axes: str | None, name: str) -> Source:
    """Any named arrays: the one called ``key``, or the only one that can hold trajectories, with its times.

    Raises:
        InputError: no such array, several that could be meant, or axes that do not fit.
    """
    if key is None:
        candidates = [k for k, array in arrays.items() if len(array.shape) >= 3]
        if len(candidates) != 1:
            raise InputError(
                "one array of trajectories", _listed(arrays), "name the one to read with key= (--key)"
            )
        key = candidates[0]
    array = arrays[pick(arrays, key)]
    letters = axis_letters(axes, array, TIME_FIRST)
    return Source(name, [Variable(key, array, letters)], times=checked_times(arrays, letters, array.shape))


def pick(names: Iterable[str], key: str) -> str:
    """The key itself, if it is among the names.

    Raises:
        InputError: it is not; the message lists the names.
    """
    if key not in names:
        raise InputError(f"an array {key!r}", _listed(names), "name the one to read with key= (--key)")
    return key


def axis_letters(axes: str | None, array: Any, usual: Mapping[int, str]) -> str:
    """The axes given, or the usual ones for an array with that many.

    Raises:
        InputError: axes that are misspelt or too many, or none given and none usual.
    """
    ndim = len(array.shape)
    if axes is None and ndim not in usual:
        orders = ", ".join(" ".join(order) for order in usual.values())
        found = f"shape {tuple(array.shape)}"
        remedy = 'name the axes there are: axes="n t x y z", or with channels "n t x y c" (--axes)'
        raise InputError(f"axes {orders}", found, remedy)
    return parse_axes(usual[ndim] if axes is None else axes, ndim)


def parse_axes(axes: str, ndim: int) -> str:
    """``"n t x y"`` or ``"ntxy"`` as ``"ntxy"``.

    Raises:
        InputError: unknown or repeated letters, y without x, or another number of axes than ``ndim``.
    """
    letters = axes.replace(" ", "").replace(",", "")
    known = len(set(letters)) == len(letters) and set(letters) <= set("ntcxyz")
    if not known or "".join(sorted(set(letters) & set("xyz"))) not in ("x", "xy", "xyz"):
        raise InputError(
            "axes from the letters n t c x y z, none twice, with x, or x and y, or x, y and z",
            repr(axes),
            'write for example axes="n t x y" (--axes)',
        )
    if len(letters) != ndim:
        expected = f"{len(letters)} axes ({' '.join(letters)})"
        raise InputError(expected, f"an array of {ndim}", "name every axis with axes= (--axes)")
    return letters


def checked_times(arrays: Mapping[str, Any], letters: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The times among ``arrays``, after each coordinate there was compared with the axis it belongs to.

    Raises:
        InputError: a coordinate of another length than its axis; the message tells what order would fit.
    """
    spatial = {
        a: arrays[name] for a in letters for name in (a, f"{a}-coordinate") if a in "xyz" and name in arrays
    }
    # a one-dimensional x or y is a coordinate; otherwise it is data
    lengths = {axis: array.shape[0] for axis, array in spatial.items() if len(array.shape) == 1}
    name = next((name for name in TIME_NAMES if name in arrays), None)
    times = None if name is None or "t" not in letters else _one_dimensional(name, arrays[name])
    if times is not None:
        lengths["t"] = len(times)
    spare = {"t"} if name == "t-coordinate" else set()  # PDEBench stores a last time that has no frame

    def fits(order: Iterable[str]) -> bool:
        sizes = dict(zip(order, shape, strict=True))
        return all(size in (sizes[axis], sizes[axis] + (axis in spare)) for axis, size in lengths.items())

    if not fits(letters):
        better = next((" ".join(order) for order in permutations(letters) if fits(order)), None)
        wanted = ", ".join(f"{size} along {axis}" for axis, size in lengths.items())
        raise InputError(
            f"axes as long as the file's coordinates, {wanted}",
            f"shape {tuple(shape)} read as axes {' '.join(letters)}",
            f'give axes="{better}" (--axes) if that is the true order'
            if better
            else "repair the coordinates, or name another array with key= and axes= (--key, --axes)",
        )
    return None if times is None else times[: shape[letters.index("t")]]


def refuse_masked(array: Any) -> None:
    """Raises ``InputError`` for numpy's masked arrays: what lies beneath a mask is no data."""
    if masked := np.ma.count_masked(array) if np.ma.isMaskedArray(array) else 0:
        found = f"{masked} of {array.size} masked"
        raise InputError("values without a mask", found, "put numbers there, such as interpolated ones")


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as an array, without copying where numpy knows its type."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if known else tensor.float()).numpy()


def _inside(chosen: range, start: int, stop: int) -> range:
    """The entries of ``chosen`` in [start, stop), counted from ``start``."""
    # −(−a // b) rounds up: the first entry not before the edge
    first, last = (max(0, -((chosen.start - edge) // chosen.step)) for edge in (start, stop))
    part = chosen[first:last]
    return range(part.start - start, part.stop - start, part.step)


def _one_dimensional(name: str, values: Any) -> np.ndarray:
    if values.dtype.kind not in "fiu":
        raise InputError(f"numbers in {name!r}", f"dtype {values.dtype}", "repair the times in the file")
    times = np.asarray(values[...], dtype=np.float64)
    if times.size == max(times.shape, default=1):  # MATLAB's (1, T)
        return times.reshape(-1)
    if times.ndim == 2 and (times == times[0]).all():  # repeated for every trajectory
        return times[0]
    found = f"shape {times.shape}"
    raise InputError(f"one list of times {name!r} for all trajectories", found, "split the file")


def _numbers(array: Any, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those attributes of an HDF5 array that are numbers, each (k,)."""
    attributes = getattr(array, "attrs", {})
    found = {name: np.ravel(attributes[name]) for name in names if name in attributes}
    return {name: numbers for name, numbers in found.items() if numbers.dtype.kind in "fiu"}


def _check_dtype(variable: Variable) -> None:
    dtype = variable.array.dtype
    if dtype.kind in "fiub":
        for name, numbers in _numbers(variable.array, PACKED).items():
            if (numbers != PACKED[name]).any():
                found = f"{name} {numbers[0]:g}, with which others are to be made of those that are stored"
                raise InputError(f"the numbers of {variable.name!r} themselves", found, "unpack them first")
        return
    # HDF5 has no complex numbers: MATLAB and h5py write pairs of fields
    if dtype.kind == "c" or (dtype.names is not None and len(dtype.names) == 2):
        found, remedy = f"complex numbers ({dtype})", "store real and imaginary parts as two channels"
    else:
        found, remedy = f"dtype {dtype}", "convert it to float32"
    raise InputError(f"real numbers in {variable.name!r}", found, remedy)


def _listed(names: Iterable[str]) -> str:
    shapes = {n: f" {tuple(names[n].shape)}" for n in names} if isinstance(names, Mapping) else {}
    entries = [f"{n}{shapes.get(n, '')}" for n in names if not n.startswith(("__", "#"))]
    return f"the arrays {', '.join(entries[:12])}" if entries else "no arrays"


def _described(variable: Variable) -> str:
    return f"{variable.name!r} {tuple(variable.array.shape)} as {' '.join(variable.axes)}"
