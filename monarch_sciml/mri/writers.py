"""Reconstructions and volumes to HDF5, PNG and NIfTI; each file appears whole or not at all.

What is reconstructed here is for research only, and every file of images says so.
"""

import gzip
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import parse_header, write_header
from monarch_sciml.training.files import whole_file

__all__ = ["NOTICE", "save_nifti", "save_pictures", "save_png", "save_reconstruction", "write_volume"]

NOTICE = "Research use only, not for clinical use"

Array = np.ndarray | Tensor
PathLike = str | os.PathLike[str]


@contextmanager
def save_reconstruction(
    path: PathLike,
    n_slices: int,
    shape: tuple[int, int],
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[Array], None]]:
    """Write the images of one volume, slice by slice: HDF5 with ``reconstruction`` float32 (S, h, w).

    ::

        with save_reconstruction(path, len(file), (320, 320), {"method": "zero-filled"}) as write:
            for kspace in file:
                write(reconstruct(kspace))

    The file takes its name when the block ends and all ``n_slices`` are there; otherwise nothing is left of
    it. One slice is in memory at a time. The file attribute ``notice`` says what the images are not for; the
    ``attributes`` are read when the block ends, so that they may say what is known only then.

    Raises:
        InputError: an image of another shape, a complex one, NaN or infinity, too few or too many slices.
    """
    path, written = Path(os.path.expanduser(path)), 0
    with _hdf5(path) as file:
        images = file.create_dataset("reconstruction", (n_slices, *shape), np.float32)

        def write(image: Array) -> None:
            nonlocal written
            if written == n_slices:
                raise InputError(f"{n_slices} slices in {path.name}", "one more", "correct n_slices")
            images[written] = _real(image, shape, f"slice {written} of {path.name}")
            written += 1

        yield write
        if written < n_slices:
            raise InputError(f"{n_slices} slices in {path.name}", f"only {written}", "write every slice")
        file.attrs.update({**(attributes or {}), "notice": NOTICE})


def write_volume(
    path: PathLike,
    kspace: Array,
    target: Array | None = None,
    *,
    acquisition: str = "",
    patient_id: str = "",
    header: str | None = None,
    mask: Array | None = None,
    attributes: Mapping[str, str | float | int] | None = None,
) -> None:
    """Write a volume as fastMRI does, so that code made for fastMRI reads it unchanged.

    Args:
        path: the file, usually ``….h5``.
        kspace: complex (S, C, H, W), or (S, H, W) of a single coil; zero frequency at H // 2, W // 2.
        target: the image (S, h, w), for training and validation; stored as ``reconstruction_rss``, of a
            single coil as ``reconstruction_esc``, with the attributes ``max`` and ``norm`` (Euclidean, of all
            slices).
        acquisition: such as AXT2 or CORPD_FBK. patient_id: of an unnamed person, or anything.
        header: ISMRMRD XML; by default one is written for the target's size, or that of k-space.
        mask: sampled columns (W,) of a test file; elsewhere k-space is zero.
        attributes: further ones; test files of fastMRI hold ``acceleration`` and ``num_low_frequency``.

    Raises:
        InputError: shapes that do not fit together, k-space that is real, not finite, or not zero outside
            the mask.
    """
    data = _numpy(kspace)
    if data.ndim not in (3, 4) or data.dtype.kind != "c" or 0 in data.shape:
        found = f"{data.dtype} {data.shape}"
        raise InputError("complex k-space (S, C, H, W) or (S, H, W)", found, "pass it so")
    data = data.astype(np.complex64, copy=False)
    if not np.isfinite(data).all():
        raise InputError("finite k-space", "NaN or infinity", "look where it comes from")
    slices, (height, width) = len(data), data.shape[-2:]
    arrays: dict[str, np.ndarray] = {"kspace": data}
    about = {"acquisition": acquisition, "patient_id": patient_id, **(attributes or {})}
    recon = (height, width)
    if target is not None:
        images = _real(target, None, "the target")
        if images.ndim != 3 or len(images) != slices or 0 in images.shape:
            raise InputError(f"a target ({slices}, h, w)", f"shape {images.shape}", "one image per slice")
        recon = images.shape[1:]
        arrays["reconstruction_rss" if data.ndim == 4 else "reconstruction_esc"] = images
        about = {"max": float(images.max()), "norm": float(np.linalg.norm(images)), **about}
    if mask is not None:
        sampled = _numpy(mask).astype(bool)
        if sampled.shape != (width,):
            raise InputError(f"a mask of shape ({width},)", f"{sampled.shape}", "pass one value per column")
        if data[..., ~sampled].any():
            raise InputError("zeros outside the mask", "k-space that is not zero", "multiply it by the mask")
        arrays["mask"] = sampled
    xml = write_header((height, width, slices), recon) if header is None else header
    parse_header(xml)  # what is refused when read is not written
    with _hdf5(Path(os.path.expanduser(path))) as file:
        for name, array in arrays.items():
            file[name] = array
        file["ismrmrd_header"] = xml
        file.attrs.update(about)


def save_png(path: PathLike, image: Array, window: tuple[float, float] | None = None) -> None:
    """Save a magnitude image (h, w) as grey PNG, rows from top to bottom.

    Args:
        path: the file. image: real.
        window: the values shown black and white; by default 0 and the 99.9th percentile of the image, so
            that a few bright pixels do not darken the rest. Give one window to compare images.

    Raises:
        InputError: an image that is not two-dimensional, real and finite, or an empty window.
    """
    from PIL import Image, PngImagePlugin

    pixels = _real(image, None, "the image")
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise InputError("an image (h, w)", f"shape {pixels.shape}", "save one slice at a time")
    low, high = window or (0.0, float(np.percentile(pixels, 99.9)))
    if window is not None and not low < high:
        raise InputError("a window (low, high) with low < high", f"{window}", "swap or widen it")
    # an image without any signal is black
    grey = np.clip((pixels - low) / (high - low if high > low else 1.0), 0, 1)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", NOTICE)
    with whole_file(Path(os.path.expanduser(path))) as partial:
        Image.fromarray(np.round(255 * grey).astype(np.uint8)).save(partial, format="PNG", pnginfo=text)


def save_nifti(path: PathLike, volume: Array | h5py.Dataset, spacing: tuple[float, float, float]) -> None:
    """Save a volume (S, h, w) as NIfTI, ``.nii`` or ``.nii.gz``, slice by slice.

    Readout (h), phase encoding (w) and slice become the axes x, y, z, kept as stored, neither flipped nor
    rotated. Where the patient lay is not known here: the affine holds the size of the voxels and nothing
    else, so left and right cannot be told from it.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``. volume: real; of a data set in a file, slice by slice.
        spacing: (dx, dy, dz), size of a voxel along h, w and the slices, in mm.

    Raises:
        InputError: another ending, a volume that is not three-dimensional, real and finite, or spacing ≤ 0.
    """
    import nibabel

    path = Path(os.path.expanduser(path))
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError("a file name ending in .nii or .nii.gz", path.name, "rename it")
    if volume.ndim != 3 or 0 in volume.shape:
        raise InputError("a volume (slices, h, w)", f"shape {tuple(volume.shape)}", "stack the slices")
    if len(spacing) != 3 or not all(0 < length < math.inf for length in spacing):
        raise InputError("three lengths > 0 in mm", f"spacing {spacing}", "pass (dx, dy, dz)")
    slices, height, width = volume.shape
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((height, width, slices))
    header.set_zooms(spacing)
    header.set_sform(np.diag([*spacing, 1.0]), code="aligned")
    header.set_xyzt_units("mm")
    header["descrip"] = NOTICE.encode()  # at most 79 bytes
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with whole_file(path) as partial, ExitStack() as stack:
        stream = stack.enter_context(partial.open("wb"))
        if path.suffix == ".gz":
            # without the time of day: the same volume gives the same file
            stream = stack.enter_context(gzip.GzipFile("", "wb", fileobj=stream, mtime=0))
        stream.write(header.binaryblock + bytes(4))  # four zeros: no extension
        for image in volume:
            # the first axis is the fastest
            stream.write(np.ascontiguousarray(_real(image, None, "the volume").T).astype("<f4").tobytes())


def save_pictures(path: Path, *, png: bool, nifti: bool) -> None:
    """Save a finished file of ``save_reconstruction``, with the attribute ``spacing``, as pictures beside it.

    ``png/NAME_000.png`` … of its slices, and ``NAME.nii.gz``. Those that are newer than the file stay.
    """
    since = path.stat().st_mtime_ns

    def missing(picture: Path) -> bool:
        return not picture.exists() or picture.stat().st_mtime_ns < since

    with h5py.File(path, "r") as file:
        images = cast(h5py.Dataset, file["reconstruction"])
        for index in range(len(images) if png else 0):
            picture = path.parent / "png" / f"{path.stem}_{index:03d}.png"
            if missing(picture):
                save_png(picture, images[index])
        volume = path.with_suffix(".nii.gz")
        if nifti and missing(volume):
            x, y, z = (float(length) for length in cast(np.ndarray, file.attrs["spacing"]))
            save_nifti(volume, images, (x, y, z))


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().resolve_conj().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _real(image: Array, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
    """As float32, if it is real and finite and has the shape."""
    array = _numpy(image)
    if array.dtype.kind not in "fiu":
        raise InputError(f"real numbers in {what}", str(array.dtype), "pass the magnitude")
    if shape is not None and array.shape != shape:
        raise InputError(f"shape {shape} for {what}", f"{array.shape}", "crop it, or state its shape")
    with np.errstate(over="ignore"):  # what overflows is reported below
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"finite numbers in {what}", "NaN or infinity", "look where they come from")
    return array


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, whole or not at all.

    HDF5 writes through a Python file, which reports a full disk; its own writing ends the process there.
    """
    with whole_file(path) as partial, partial.open("w+b") as stream, h5py.File(stream, "w") as file:
        yield file
