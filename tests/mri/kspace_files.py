"""One small k-space array, written in every format that is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from monarch_sciml.mri.header import write_header

S, C, H, W = 3, 4, 10, 7  # all different, so that no two axes can be confused


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


K = noise(S, C, H, W)  # the truth behind every file below
TARGET = np.abs(noise(S, 6, 5, seed=1))
HEADER = write_header((H, W, S), (6, 5), (12.0, 15.0, 3.0))


def fastmri(path: Path, kspace: Any = K, header: str | None = HEADER, **more: Any) -> Path:
    """Arrays become datasets, everything else attributes."""
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header
        for name, value in more.items():
            if isinstance(value, np.ndarray):
                file[name] = value
            else:
                file.attrs[name] = value
    return path


def npy(path: Path, kspace: np.ndarray = K) -> Path:
    np.save(path, kspace)
    return path


def bart(path: Path, kspace: np.ndarray = K, dims: list[int] | None = None) -> Path:
    """(S, C, H, W) with dimensions (H, W, 1, C, …, S), or any array with the dimensions given."""
    s, c, h, w = kspace.shape
    dims = dims or [h, w, 1, c, 1, 1, 1, 1, 1, 1, 1, 1, 1, s, 1, 1]
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, dims))} \n# Command\nphantom\n")
    kspace.transpose(2, 3, 1, 0).flatten(order="F").tofile(path.with_suffix(".cfl"))  # first axis fastest
    return path.with_suffix(".cfl")


COUNTERS = "kspace_encode_step_1 kspace_encode_step_2 average slice contrast phase repetition set segment"
# the fields of an ISMRMRD acquisition, as the standard lays them out
HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        *[(name, "<u2") for name in ("number_of_samples", "available_channels", "active_channels")],
        ("channel_mask", "<u8", (16,)),
        *[(name, "<u2") for name in ("discard_pre", "discard_post", "center_sample")],
        *[(name, "<u2") for name in ("encoding_space_ref", "trajectory_dimensions")],
        ("sample_time_us", "<f4"),
        *[(name, "<f4", (3,)) for name in ("position", "read_dir", "phase_dir", "slice_dir")],
        ("patient_table_position", "<f4", (3,)),
        ("idx", [*[(name, "<u2") for name in COUNTERS.split()], ("user", "<u2", (8,))]),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
FLOATS = h5py.vlen_dtype(np.dtype("float32"))
ACQUISITION = np.dtype([("head", HEAD), ("traj", FLOATS), ("data", FLOATS)])

Line = tuple[np.ndarray, dict[str, int]]  # samples (coils, N), and fields of the head or its counters


def lines(kspace: np.ndarray = K) -> list[Line]:
    """Every column of every slice, the slices interleaved as scanners do."""
    s, _, _, w = kspace.shape
    return [
        (kspace[i, :, :, step], {"slice": i, "kspace_encode_step_1": step, "center_sample": H // 2})
        for step in range(w)
        for i in range(s)
    ]


def ismrmrd(
    path: Path, acquisitions: list[Line] | None = None, header: str = HEADER, group: str = "dataset"
) -> Path:
    acquisitions = lines() if acquisitions is None else acquisitions
    stored = np.zeros(len(acquisitions), ACQUISITION)
    for entry, (samples, fields) in zip(stored, acquisitions, strict=True):
        entry["data"] = np.ascontiguousarray(samples).view(np.float32).ravel()
        entry["traj"] = np.zeros(0, np.float32)
        head = entry["head"]
        head["active_channels"], head["number_of_samples"] = samples.shape
        for name, value in fields.items():
            (head["idx"] if name in COUNTERS.split() else head)[name] = value
    with h5py.File(path, "w") as file:
        file[f"{group}/xml"] = np.array([header.encode()], dtype=h5py.special_dtype(vlen=bytes))
        file.create_dataset(f"{group}/data", data=stored, dtype=ACQUISITION, maxshape=(None,), chunks=(1,))
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "fastmri": lambda folder: fastmri(folder / "a.h5", reconstruction_rss=TARGET, acquisition="AXT2"),
    "ismrmrd": lambda folder: ismrmrd(folder / "a.mrd"),
    "bart": lambda folder: bart(folder / "a"),
    "npy": lambda folder: npy(folder / "a.npy"),
}
