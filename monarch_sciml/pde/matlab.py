"""MATLAB files, those of the FNO benchmark above all, in both versions of the format."""

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from monarch_sciml.errors import InputError
from monarch_sciml.pde.sources import Source, Variable, axis_letters, checked_times, parse_axes, pick

__all__ = ["matlab73", "open_matlab5"]

GRID_FIRST = {2: "nx", 3: "nxt", 4: "nxyt", 5: "nxyzt"}  # time comes last
STATES = {2: "nx", 3: "nxy"}  # or there is none: the start and the end, both of the same shape
STARTS = {"u": "a", "sol": "coeff"}  # what the arrays of the FNO benchmark began from


def open_matlab5(path: Path, key: str | None, axes: str | None, initial: bool) -> Source:
    """A MATLAB 5 file, read into memory; raises ``InputError`` where its content does not fit."""
    _check_length(path)
    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    key = pick(list(shapes), key or _usual_key(shapes))
    start, axes = _start(shapes, key, axes, initial)
    names = [key, "t"] if start is None else [key, "t", start]
    content = scipy.io.loadmat(path, variable_names=names)
    arrays = {name: content[name] for name in names if name in content}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise InputError("full matrices", f"a sparse one in {path.name}", "save full(u)")
    return _matlab(key, arrays, axes, start, lambda letters: letters, "MATLAB 5")


def _check_length(path: Path) -> None:
    """Refuse a file that ends inside a variable: loadmat does not see it if it did not want that one."""
    with path.open("rb") as stream:
        order = "<" if stream.read(128)[126:] == b"IM" else ">"
        while tag := stream.read(8):
            stream.seek(struct.unpack(f"{order}II", tag)[1], os.SEEK_CUR)
        if stream.tell() > path.stat().st_size:
            raise EOFError("the last variable is cut short")


def matlab73(arrays: Mapping[str, h5py.Dataset], key: str | None, axes: str | None, initial: bool) -> Source:
    """The arrays of a MATLAB 7.3 file, which is HDF5; raises ``InputError`` where they do not fit."""
    arrays = {name: array for name, array in arrays.items() if not name.startswith("#")}
    key = pick(arrays, key or _usual_key(arrays))
    start, axes = _start({name: array.shape for name, array in arrays.items()}, key, axes, initial)
    # MATLAB stores the first axis fastest, HDF5 the last: the same array has its axes reversed
    return _matlab(key, arrays, axes, start, lambda letters: letters[::-1], "MATLAB 7.3")


def _usual_key(names: Iterable[str]) -> str:
    return next((key for key in STARTS if key in names), "u")


def _start(
    shapes: Mapping[str, tuple[int, ...]], key: str, axes: str | None, initial: bool
) -> tuple[str | None, str | None]:
    """The array to put before ``key``, if any, and the axes.

    Put before it if asked for, or if ``key`` is one state and no trajectory: as large as what it began from,
    with no time among the axes given, or else in the file.
    """
    start = STARTS.get(key, "a")
    pair = key in STARTS and shapes.get(start) == shapes[key] and "t" not in (axes or shapes)
    states = STATES.get(len(shapes[key])) if pair else None
    return start if initial or states else None, axes or states


def _matlab(
    key: str,
    content: Mapping[str, Any],
    axes: str | None,
    start: str | None,
    stored: Callable[[Any], Any],
    name: str,
) -> Source:
    """``u`` [n, x, y, t], ``t``, and as ``start`` perhaps ``a`` [n, x, y]; ``stored`` is the file's order."""
    array = content[key]
    letters = axis_letters(axes, array, GRID_FIRST)
    times = checked_times(content, letters, stored(array.shape))
    variables = [Variable(key, array, stored(letters))]
    if start is None:
        return Source(name, variables, times=times)
    state = content[pick(content, start)]
    before = Variable(start, state, stored(parse_axes(letters.replace("t", ""), len(state.shape))))
    times = None if times is None else np.concatenate([[0.0], times])
    return Source(name, [before, *variables], along="t", times=times)
