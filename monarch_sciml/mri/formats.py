"""k-space files: fastMRI and ISMRMRD (both HDF5), BART and ``.npy``, read one slice at a time.

A file is recognised by its content, BART's pair by its names. Nothing is ever unpickled.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np

from monarch_sciml.errors import InputError, check_written, decoding
from monarch_sciml.mri import bart
from monarch_sciml.mri.header import Header, parse_header
from monarch_sciml.mri.ismrmrd import assemble

__all__ = ["KSpaceFile", "open_kspace", "single_attributes"]

Format = Literal["fastmri", "ismrmrd", "bart", "npy"]
Read = Callable[[int], np.ndarray]

LEAST_IMAGE = 16  # points along an axis; an image is not much smaller
MOST_COILS = 64  # of most scanners


class KSpaceFile:
    """The Cartesian k-space of one file; ``file[i]`` is slice i, complex64 (coils, H, W).

    ``file[i:j]`` are several, (j − i, coils, H, W), and ``file[:]`` is all of them. Zero frequency lies at
    H // 2, W // 2. Only what is asked for is read. At most one handle is open; it is opened again in a
    process of its own (a DataLoader worker, say) and after :meth:`close`, so that the object can be pickled
    and kept.

    ============ ==================================================================== =====================
    format       content                                                              H, W
    ============ ==================================================================== =====================
    ``fastmri``  HDF5 with ``kspace`` (slices, coils, H, W) or (slices, H, W)         readout, phase
    ``ismrmrd``  HDF5 with a group of ``xml`` and ``data``; two-dimensional slices    readout, phase
    ``bart``     ``.cfl`` and ``.hdr``, dimensions (H, W, 1, coils, …), slices in 13; readout, phase;
                 (1, H, W, coils) is one plane across the readout                     phase 1, phase 2
    ``npy``      complex (slices, coils, H, W), (coils, H, W) or (H, W)               as stored
    ============ ==================================================================== =====================

    An ISMRMRD slice is its encoded matrix: readouts lie where their step says, with zero frequency at index
    N // 2; repeated lines are averaged; lines never measured are zero; noise, navigators and lines for
    calibration alone are left out, except where the header calls the calibration embedded. Readout
    oversampling is kept, unless the file was written without it: crop the image to ``header.image_shape``.

    Attributes:
        path: the file, for BART the ``.cfl``. format: as above.
        shape: (slices, coils, H, W). multicoil: whether there is an axis for coils (fastMRI,
            ``.npy``) or more than one coil (BART, ISMRMRD); coils is 1 otherwise.
        header: of the scan, or None where there is none.
        mask: the sampled columns (W,), bool, of a fastMRI test file, else None.
        attributes: numbers and strings that the file says of itself, such as ``acquisition``.
        has_target: the file holds the image (fastMRI's ``reconstruction_rss``, ``reconstruction_esc``).
    """

    def __init__(self, path: str | os.PathLike[str], header: bool = True):
        # absolute: a worker that opens the file again may stand in another folder
        with decoding(Path(path), "k-space"):
            self.path = Path(path).expanduser().absolute()
        self._use_header = header
        self._content: _Content | None = None
        content = self._opened()
        self.path, self.format, self.shape = content.path, content.format, content.shape
        self.multicoil, self.header, self.mask = content.multicoil, content.header, content.mask
        self.attributes: dict[str, str | float | int] = content.attributes
        self.has_target = content.target is not None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> np.ndarray:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            several = np.empty((len(chosen), *self.shape[1:]), np.complex64)
            for i, one in enumerate(chosen):
                several[i] = self[one]
            return several
        index = range(len(self))[index]  # negative counts from the end; outside raises IndexError
        return self._read(self._opened().read, index, np.complex64, "k-space")

    def target(self, index: int) -> np.ndarray | None:
        """The image of slice ``index`` that the file holds, float32 (h, w), or None."""
        index, read = range(len(self))[index], self._opened().target
        return None if read is None else self._read(read, index, np.float32, "the target")

    def is_blank(self, index: int) -> bool:
        """Whether the k-space of slice ``index``, or the target that the file holds, is zero throughout.

        Of fastMRI's files little more than the middle rows is read. Raises as reading does.
        """
        arrays = self._opened().arrays
        if not arrays:
            return not self[index].any()
        with decoding(self.path, self.format):
            return any(
                not array[index, ..., array.shape[-2] // 2, :].any() and not array[index].any()
                for array in arrays
            )

    def middle_row(self, index: int) -> np.ndarray:
        """Row H // 2 of slice ``index``, complex (coils, W): of fastMRI's files little more is read."""
        arrays, (_, coils, h, w) = self._opened().arrays, self.shape
        if not arrays:
            return self[index][:, h // 2]
        with decoding(self.path, self.format):
            return arrays[0][index, ..., h // 2, :].reshape(coils, w)

    def close(self) -> None:
        """Give the handle back; reading opens the file again."""
        if self._content is not None:
            self._content.close()
        self._content = None

    def _opened(self) -> "_Content":
        # an HDF5 handle must not be shared with the process it was forked from
        if self._content is not None and self._content.process != os.getpid():
            self.close()
        if self._content is None:
            with decoding(self.path, "k-space"):
                self._content = _open(self.path, self._use_header)
        return self._content

    def _read(self, read: Read, index: int, dtype: type, what: str) -> np.ndarray:
        with decoding(self.path, self.format), np.errstate(over="ignore", invalid="ignore"):
            array = np.array(read(index), dtype, order="C")
        if not np.isfinite(array).all():
            found = f"NaN or infinity in slice {index} of {self.path.name}"
            swapped = ", whose bytes may be swapped: BART's are little-endian" * (self.format == "bart")
            raise InputError(f"finite numbers in {what}", found, f"leave the file out, or repair it{swapped}")
        return array

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_content": None}


def open_kspace(path: str | os.PathLike[str], header: bool = True) -> KSpaceFile:
    """Recognise a k-space file and open it; see :class:`KSpaceFile` for the formats.

    Args:
        path: the file; of BART's pair either one, or their common name.
        header: False ignores the header of a fastMRI file, for one that is damaged or incomplete.

    Raises:
        InputError: no such file, an unknown or damaged one, one whose content does not fit, or whose header
            speaks of another trajectory than a Cartesian one. Reading raises it for NaN and infinity, naming
            the slice.
    """
    return KSpaceFile(path, header)


@dataclass
class _Content:
    """An open file: what it says of itself, and how one slice is read."""

    format: Format
    path: Path
    shape: tuple[int, int, int, int]
    multicoil: bool
    read: Read
    close: Callable[[], None] = lambda: None  # a memory map closes when it is forgotten
    header: Header | None = None
    mask: np.ndarray | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    target: Read | None = None
    arrays: tuple[Any, ...] = ()  # (slices, …, rows, columns) of HDF5: k-space and target
    process: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        if 0 in self.shape:
            found = f"shape {self.shape} (slices, coils, H, W) in {self.path.name}"
            raise InputError("at least one slice, coil, row and column", found, "write the file again")


def _open(path: Path, header: bool) -> _Content:
    if not path.name:
        raise InputError("a k-space file", f"the folder {path}", "check the path")
    if (pair := bart.pair(path)) is not None:
        return _bart(*pair)
    if not path.is_file():
        if path.is_dir():
            raise InputError("a k-space file", f"the folder {path}", f"name the files in it: {path}/*.h5")
        raise InputError("a k-space file", f"nothing at {path}", "check the path")
    if h5py.is_hdf5(path):
        with decoding(path, "HDF5"):
            file = h5py.File(path, "r")
            try:
                return _hdf5(path, file, header)
            except BaseException:
                file.close()
                raise
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"\x93NUMPY"):
        return _npy(path)
    if head.startswith(b"version https://git-lfs"):
        found, remedy = "a Git LFS pointer", "fetch the real file with git lfs pull"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        found, remedy = "a web page", "the download failed: fetch the file again"
    else:
        found = f"bytes {head[:8]!r}" if head else "an empty file"
        remedy = "it is damaged or of another kind: convert it to .npy, complex (slices, coils, H, W)"
    kinds = "a fastMRI or ISMRMRD file (HDF5), a BART pair (.cfl, .hdr) or .npy"
    raise InputError(kinds, f"{found} in {path.name}", remedy)


# -------------------------------------------------------------------------------------------- fastMRI, npy


def _hdf5(path: Path, file: h5py.File, header: bool) -> _Content:
    if isinstance(file.get("kspace"), h5py.Dataset):
        return _fastmri(path, file, header)
    scans = [
        name for name, group in file.items() if isinstance(group, h5py.Group) and {"xml", "data"} <= {*group}
    ]
    if len(scans) == 1:
        return _ismrmrd(path, file, scans[0])
    names = ", ".join(scans or file) or "nothing"
    kinds = "a dataset 'kspace' (fastMRI), or one group with 'xml' and 'data' (ISMRMRD)"
    raise InputError(kinds, f"{names} in {path.name}", "rename the array of k-space to 'kspace'")


def _fastmri(path: Path, file: h5py.File, header: bool) -> _Content:
    kspace: Any = file["kspace"]
    _check_complex(path, "'kspace'", kspace.dtype)
    check_written(path, "kspace", kspace)
    if kspace.ndim not in (3, 4):
        found = f"shape {kspace.shape} in {path.name}"
        raise InputError("'kspace' of (slices, coils, H, W) or (slices, H, W)", found, "write the axes so")
    multicoil = kspace.ndim == 4
    shape = kspace.shape if multicoil else (kspace.shape[0], 1, *kspace.shape[1:])
    target: Any = file.get("reconstruction_rss" if multicoil else "reconstruction_esc")
    if target is not None:
        images = f"a target of {shape[0]} real images (slices, h, w)"
        if not isinstance(target, h5py.Dataset):
            raise InputError(images, f"a group in {path.name}", "write it again")
        if target.ndim != 3 or len(target) != shape[0] or 0 in target.shape or target.dtype.kind != "f":
            raise InputError(images, f"{target.dtype} {target.shape} in {path.name}", "write it again")
        check_written(path, "the target", target)
    mask = None
    if "mask" in file:
        stored = np.asarray(file["mask"]).reshape(-1)
        if len(stored) != shape[3]:
            found = f"{len(stored)} in {path.name}"
            raise InputError(f"a mask of {shape[3]} columns, as k-space has", found, "write it again")
        mask = stored == 1
        if not (mask | (stored == 0)).all() or not mask.any():
            found = f"other values, or zeros only, in {path.name}"
            raise InputError("a mask of 0 and 1 that keeps something", found, "write it again")
    about = None
    if header and "ismrmrd_header" in file:
        remedy = "go on without its header: --no-header (header=False in Python)"
        about = _header(path, file["ismrmrd_header"], remedy)
    return _Content(
        format="fastmri",
        path=path,
        shape=shape,
        multicoil=multicoil,
        read=lambda i: kspace[i] if multicoil else kspace[i][None],
        close=file.close,
        header=about,
        mask=mask,
        attributes=single_attributes(file),
        target=None if target is None else lambda i: target[i],
        arrays=(kspace,) if target is None else (kspace, target),
    )


def _npy(path: Path) -> _Content:
    try:
        with decoding(path, ".npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError as error:
        if "Python objects" in str(error):
            found = f"pickled Python objects in {path.name}, which could run code and are never loaded"
            raise InputError("complex numbers", found, "save array.astype(numpy.complex64)") from None
        if "empty file" in str(error):
            raise InputError("at least one slice", f"no element in {path.name}", "write it again") from None
        raise
    _check_complex(path, "k-space", array.dtype)
    if array.ndim not in (2, 3, 4):
        found = f"shape {array.shape} in {path.name}"
        raise InputError("(slices, coils, H, W), (coils, H, W) or (H, W)", found, "save the axes so")
    slices: np.ndarray = array[(None,) * (4 - array.ndim)]
    s, c, h, w = slices.shape
    if _misread(s, c, h, w):
        found = f"{slices.shape} if read so, from shape {array.shape} in {path.name}"
        remedy = "if the coils come last, save numpy.moveaxis(array, -1, -3); if not, use write_volume"
        raise InputError("axes (slices, coils, H, W) of likely sizes", found, remedy)
    return _Content("npy", path, (s, c, h, w), array.ndim > 2, lambda i: slices[i])


# ---------------------------------------------------------------------------------------------------- BART


def _bart(hdr: Path, cfl: Path) -> _Content:
    dims = bart.dimensions(hdr, cfl)
    more = [i for i, n in enumerate(dims) if n > 1 and i > 3 and i != bart.SLICE]
    if more:
        name = bart.DIMENSIONS[more[0]] if more[0] < len(bart.DIMENSIONS) else "further"
        found = f"{dims[more[0]]} along dimension {more[0]} ({name}) in {hdr.name}"
        raise InputError("k-space with slices and coils only", found, f"take one: bart slice {more[0]} 0 …")
    flat = bart.flat_axis(dims)
    if flat is None:
        found = f"{dims[:3]} in {hdr.name}"
        remedy = "transform the readout, then its planes are slices: bart fft -u -i 1 …, bart transpose 0 13"
        raise InputError("two-dimensional k-space: one of the first three dimensions is 1", found, remedy)
    h, w = (n for i, n in enumerate(dims[:3]) if i != flat)
    shape = (dims[bart.SLICE], dims[3], h, w)
    if 0 in shape:
        planes = np.empty((*shape[:2], w, h), np.complex64)
    else:
        planes = np.memmap(cfl, "<c8", "r", shape=(*shape[:2], w, h))  # the other dimensions are 1
    return _Content("bart", cfl, shape, shape[1] > 1, lambda i: planes[i].swapaxes(1, 2))


# ------------------------------------------------------------------------------------------------- ISMRMRD


def _ismrmrd(path: Path, file: h5py.File, name: str) -> _Content:
    header = _header(path, file[f"{name}/xml"], "repair it: the positions of the lines follow from it")
    shape, read = assemble(path.name, file[f"{name}/data"], header)
    return _Content(
        "ismrmrd", path, shape, shape[1] > 1, read, file.close, header, attributes=single_attributes(file)
    )


# ------------------------------------------------------------------------------------------------- helpers


def _header(path: Path, stored: Any, remedy: str) -> Header:
    """The header in a scalar dataset of text (fastMRI) or in one with a single element (ISMRMRD)."""
    text = np.asarray(stored[()]).reshape(-1)[0]
    try:
        header = parse_header(text)
    except InputError as error:
        expected, found, _ = error.args
        raise InputError(expected, f"{found} in {path.name}", remedy) from None
    if header.trajectory != "cartesian":
        found = f"a trajectory {header.trajectory!r} in {path.name}"
        raise InputError("Cartesian k-space", found, "grid it first and save it as .npy")
    return header


def _misread(slices: int, coils: int, h: int, w: int) -> bool:
    """Whether two other axes than the last look like those of the image: the coils come last, say."""
    if min(h, w) < LEAST_IMAGE:
        return sorted((slices, coils, h, w))[-2] >= LEAST_IMAGE
    return coils > max(w, min(MOST_COILS, 2 * w))


def single_attributes(file: h5py.File) -> dict[str, str | float | int]:
    """The single numbers and strings among the attributes, as ordinary Python values."""
    found = {}
    for name, value in file.attrs.items():
        if isinstance(value, np.ndarray | np.generic) and value.size == 1:
            value = value.item()
        value = value.decode(errors="replace") if isinstance(value, bytes) else value
        if isinstance(value, str | float | int):
            found[name] = value
    return found


def _check_complex(path: Path, what: str, dtype: np.dtype) -> None:
    if dtype.kind != "c":
        real, imaginary = [repr(name) for name in dtype.names or ()][:2] or ("..., 0", "..., 1")
        remedy = f"save array[{real}] + 1j * array[{imaginary}] if real and imaginary parts are stored apart"
        raise InputError(f"{what} of complex numbers", f"{dtype} in {path.name}", remedy)
