"""Files of trajectories: one small reader per format, each giving the same ``Source``.

A file is recognised by its first bytes and its content, not by its name. Only tensors are ever unpickled.
"""

import difflib
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from monarch_sciml.errors import InputError, check_written, decoding
from monarch_sciml.pde.matlab import matlab73, open_matlab5
from monarch_sciml.pde.sources import (
    TIME_NAMES,
    Source,
    Variable,
    axis_letters,
    checked_times,
    named_source,
    parse_axes,
    pick,
    to_numpy,
)

__all__ = ["open_source"]

LAYOUT = "monarch_sciml trajectories 1"  # attribute of the files this package generates


def open_source(path: Path, key: str | None = None, axes: str | None = None, initial: bool = False) -> Source:
    """Recognise the file and open it.

    Raises:
        InputError: no such file, an unknown or damaged one, or one whose content does not fit.
    """
    with decoding(path, "trajectory"):
        kind = _kind(_existing(path))
    if key is not None and kind == "NumPy":
        raise InputError("no key for a .npy file, which holds one array", f"key={key!r}", "leave it out")
    if initial and not kind.startswith("MATLAB"):
        raise InputError("a MATLAB file for initial=True", f"{path.name} ({kind})", "drop initial=True")
    with decoding(path, kind):
        if kind == "MATLAB 5":
            return open_matlab5(path, key, axes, initial)
        if kind == "NumPy":
            return _npy(path, axes)
        if kind == "NumPy archive":
            return _npz(path, key, axes)
        if kind == "PyTorch":
            return _torch(path, key, axes)
        file = h5py.File(path, "r")
        try:
            matlab, arrays = kind == "MATLAB 7.3", _datasets(file)
            source = matlab73(arrays, key, axes, initial) if matlab else _hdf5(file, arrays, key, axes)
            for variable in source.variables:
                check_written(path, variable.name, variable.array)
        except BaseException:
            file.close()
            raise
        source.lazy = True
        return source


def _existing(path: Path) -> Path:
    """The path itself, if a file is there.

    Raises:
        InputError: nothing there, or a folder; the message names the files that come closest.
    """
    if path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=4, cutoff=0.5) or names[:8]
    found = f"the folder {path}" if path.is_dir() else f"nothing at {path}"
    nothing = f"no file in the folder {folder}: check the path"
    raise InputError(
        "a file of trajectories", found, f"the folder holds: {', '.join(close)}" if close else nothing
    )


# ---------------------------------------------------------------------------------------------- recognition


def _kind(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(64)
    if h5py.is_hdf5(path):
        # the user block says so; a copy made by other tools may only keep MATLAB's attribute
        return "MATLAB 7.3" if head.startswith(b"MATLAB 7.3") or _has_matlab_class(path) else "HDF5"
    if head.startswith(b"MATLAB 5.0"):
        return "MATLAB 5"
    if head.startswith(b"\x93NUMPY"):
        return "NumPy"
    if head.startswith(b"PK\x03\x04"):
        with decoding(path, "zip-based (.npz, .pt)"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return "PyTorch"
        if all(name.endswith(".npy") for name in names):
            return "NumPy archive"
        raise InputError(
            "one file of trajectories", f"a zip archive holding {', '.join(names[:4])}", "unpack it first"
        )
    if head.startswith(b"\x80\x02") and path.suffix in (".pt", ".pth"):
        return "PyTorch"
    if head.startswith(b"version https://git-lfs"):
        found, remedy = "a Git LFS pointer", "fetch the real file with git lfs pull"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        found, remedy = "a web page", "the download failed: fetch the file again"
    elif not head:
        found, remedy = "an empty file", "download or write it again"
    else:
        found, remedy = f"bytes {head[:8]!r}", "it is damaged or of another kind: convert it to .npy or HDF5"
    raise InputError("an HDF5, MATLAB, .npy, .npz or .pt file", f"{found} in {path.name}", remedy)


def _has_matlab_class(path: Path) -> bool:
    with decoding(path, "HDF5"), h5py.File(path, "r") as file:
        return "u" in file and "MATLAB_class" in file["u"].attrs


# ------------------------------------------------------------------------------------------------- readers


def _hdf5(file: h5py.File, arrays: dict[str, h5py.Dataset], key: str | None, axes: str | None) -> Source:
    if file.attrs.get("layout") == LAYOUT:
        source = _own(file, arrays, key or "w", axes)
    elif any(name.startswith(("t0_fields/", "t1_fields/")) for name in arrays):
        source = _the_well(file, arrays, key, axes)
    elif key is not None:
        source = named_source(arrays, key, axes, "HDF5")
    elif "tensor" in arrays:
        source = _pdebench_tensor(arrays, axes)
    elif {"density", "Vx"} <= arrays.keys():
        names = [name for name in ("density", "pressure", "Vx", "Vy", "Vz") if name in arrays]
        source = _stacked({name: arrays[name] for name in names}, arrays, axes, "PDEBench")
    elif all("/" in name for name in arrays) and any(name.endswith("/data") for name in arrays):
        source = _pdebench_seeds(arrays, axes)
    else:
        source = named_source(arrays, None, axes, "HDF5")
    source.attributes = {name: _plain(value) for name, value in file.attrs.items()} | source.attributes
    return source


def _own(file: h5py.File, arrays: dict[str, h5py.Dataset], key: str, axes: str | None) -> Source:
    """``w`` [n, t, x, y], the frame at time 0 included, and ``t``; the settings of the run as JSON."""
    source = named_source(arrays, key, axes, "monarch_sciml")
    finished, wanted = file.attrs.get("finished"), source.length("n")
    if isinstance(finished, int | np.integer) and finished < wanted:
        raise InputError(f"{wanted} trajectories", f"{finished} finished", "let the simulation end")
    if "config" in file.attrs:
        source.attributes["config"] = json.loads(str(file.attrs["config"]))
    return source


def _pdebench_tensor(arrays: dict[str, h5py.Dataset], axes: str | None) -> Source:
    """``tensor`` [n, t, x(, y, z)(, c)]; for Darcy flow the coefficient ``nu`` is the first of two frames."""
    tensor = arrays["tensor"]
    if dimensions := sum(f"{axis}-coordinate" in arrays for axis in "xyz"):
        source = _stacked({"tensor": tensor}, arrays, axes, "PDEBench", dimensions)
    else:  # nothing says which axes are space
        source = named_source(arrays, "tensor", axes, "PDEBench")
    solution = source.variables[0]
    if "nu" not in arrays or solution.length("t") > 1:
        return source
    coefficient = arrays["nu"]
    letters = parse_axes(solution.axes.replace("t", ""), len(coefficient.shape))
    return Source("PDEBench", [Variable("nu", coefficient, letters), solution], along="t")


def _pdebench_seeds(arrays: dict[str, h5py.Dataset], axes: str | None) -> Source:
    """One group per random seed, with ``data`` [t, x(, y), c] and ``grid/t``, ``grid/x``, ``grid/y``."""
    seeds = sorted({name.split("/")[0] for name in arrays})
    without = [seed for seed in seeds if f"{seed}/data" not in arrays]
    if without:
        raise InputError("'data' in every group", f"none in {without[0]!r}", "write the file again")
    shape = arrays[f"{seeds[0]}/data"].shape
    letters = parse_axes(axes or f"t{'xyz'[: len(shape) - 2]}c", len(shape))
    grid = {axis: arrays[name] for axis in "txyz" if (name := f"{seeds[0]}/grid/{axis}") in arrays}
    times = checked_times(grid, letters, shape)
    variables = [Variable(f"{seed}/data", arrays[f"{seed}/data"], letters) for seed in seeds]
    return Source("PDEBench", variables, along="n", times=times)


def _the_well(file: h5py.File, arrays: dict[str, h5py.Dataset], key: str | None, axes: str | None) -> Source:
    """Scalar fields (``t0_fields``) and the components of vector fields (``t1_fields``) as channels.

    Tensor fields, and those that do not vary in time or along an axis, are left out; ``key`` names one field.
    """
    names: Any = file["dimensions"].attrs.get("spatial_dims", []) if "dimensions" in file else []
    # the axes have names of their own there: x, r, theta ...
    places = {axis: f"dimensions/{_plain(name)}" for axis, name in zip("xyz", names, strict=False)}
    places["t"] = "dimensions/time"
    coordinates = {axis: arrays[place] for axis, place in places.items() if place in arrays}
    dimensions = len(names) or 2
    extra = {"t0_fields": 0, "t1_fields": 1}
    fields = {
        name: array
        for name, array in arrays.items()
        if len(array.shape) - 2 - dimensions == extra.get(name.split("/")[0])
    }
    if key is not None:
        fields = {key: arrays[pick(arrays, key)]}
    if not fields:
        raise InputError(
            f"fields with axes n, t and {dimensions} in space in t0_fields or t1_fields",
            f"none in {Path(file.filename).name}",
            "read one array with key= and axes= (--key, --axes)",
        )
    return _stacked(fields, coordinates, axes, "the_well", dimensions)


def _stacked(
    fields: dict[str, h5py.Dataset],
    coordinates: dict[str, h5py.Dataset],
    axes: str | None,
    name: str,
    dimensions: int | None = None,
) -> Source:
    """Fields [n, t, x(, y, z)] or [n, t, x(, y, z), c] as channels, one after the other."""
    variables, times = [], None
    for key, array in fields.items():
        ndim = len(array.shape)
        space = ndim - 2 if dimensions is None else dimensions
        usual = {2 + space: "nt" + "xyz"[:space], 3 + space: "nt" + "xyz"[:space] + "c"}
        letters = axis_letters(axes, array, usual)
        times = checked_times(coordinates, letters, array.shape)
        variables.append(Variable(key, array, letters))
    return Source(name, variables, times=times, attributes={"fields": list(fields)})


def _npy(path: Path, axes: str | None) -> Source:
    _refuse_objects(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    source = named_source({path.stem: array}, path.stem, axes, "NumPy")
    source.lazy = True
    return source


def _npz(path: Path, key: str | None, axes: str | None) -> Source:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files if key is None else [pick(archive.files, key), "x", "y", *TIME_NAMES]
        arrays = {name: _member(archive, name) for name in names if name in archive.files}
    return named_source(arrays, key, axes, "NumPy")


def _torch(path: Path, key: str | None, axes: str | None) -> Source:
    """neuraloperator's dictionaries {"x", "y"}, or any dictionary of tensors with key=."""
    content = _tensors(path)
    if isinstance(content, torch.Tensor):
        content = {"tensor": content}
    if not isinstance(content, dict):
        found = f"a {type(content).__name__} in {path.name}"
        raise InputError("a dictionary of tensors", found, 'save {"y": tensor}')
    arrays = {str(k): to_numpy(v) for k, v in content.items() if isinstance(v, torch.Tensor)}
    if key is not None or not {"x", "y"} <= arrays.keys():
        return named_source(arrays, key, axes, "PyTorch")
    x, y = arrays["x"], arrays["y"]
    attributes = {name: float(v.item()) for name, v in arrays.items() if v.size == 1 and v.dtype.kind in "fi"}
    usual = {2: "nx", 3: "nxy", 4: "ncxy"}.get(x.ndim, "ncxyz")
    if y.ndim == x.ndim + 1:  # the whole trajectory, of which x is the start
        letters = parse_axes(axes or f"nt{usual[1:]}", y.ndim)
        return Source("neuraloperator", [Variable("y", y, letters)], attributes=attributes)
    letters = parse_axes(axes or usual, x.ndim)
    pair = [Variable("x", x, letters), Variable("y", y, parse_axes(letters, y.ndim))]
    return Source("neuraloperator", pair, along="t", attributes=attributes)


# -------------------------------------------------------------------------------------------------- helpers


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every array in the file by its full name."""
    found: list[tuple[str, h5py.Dataset]] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:  # HDF5 knows arrays without a shape
            found.append((name, item))

    file.visititems(note)
    return dict(found)


def _plain(value: Any) -> Any:
    """An HDF5 attribute as an ordinary Python value."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.item() if value.size == 1 else value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _tensors(path: Path) -> Any:
    """What ``torch.load`` makes of the file without running anything in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # whose module is not imported here, see SECURITY
            raise
        # its message advises to run what is in the file
        raise InputError(
            "a readable PyTorch file, of tensors alone",
            f"{path.name}, which holds other objects, never loaded, or is damaged",
            'save torch tensors, such as {"y": torch.from_numpy(y)}, or download it again',
        ) from None


def _refuse_objects(path: Path) -> None:
    """Read the header of a .npy file only: pickled objects can run code and are never loaded."""
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        old = version == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        _, _, dtype = header(stream)
    if dtype.hasobject:
        raise _pickled(path.name)


def _member(archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _pickled(name) from None
        raise


def _pickled(name: str) -> InputError:
    return InputError(
        "an array of numbers",
        f"pickled Python objects in {name!r}, which could run code and are never loaded",
        "save it again after array.astype(numpy.float32)",
    )
