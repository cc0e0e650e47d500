"""One small trajectory array, written in every format that is read."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch

from monarch_sciml.pde import formats
from monarch_sciml.pde.datasets import TrajectoryDataset

N, T, X, Y = 5, 7, 8, 6  # all different, so that no two axes can be confused
TIMES = np.arange(1.0, T + 1)


def field(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


U = field(N, T, X, Y)  # the truth behind every file below, axes n t x y
A = field(N, X, Y, seed=1)  # the state at time 0


def stacked(dataset: TrajectoryDataset) -> torch.Tensor:
    return torch.stack([dataset[i] for i in range(len(dataset))])


def write_h5(path: Path, arrays: dict[str, np.ndarray], **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attributes)
    return path


def mat5(path: Path, axes: str = "nxyt") -> Path:
    u = np.einsum(f"ntxy->{axes}", U)
    scipy.io.savemat(path, {"u": u, "a": A, "t": TIMES[None]}, do_compression=True)
    return path


def mat73(path: Path, axes: str = "nxyt") -> Path:
    # as MATLAB does: axes reversed, its name in a user block of 512 bytes
    with h5py.File(path, "w", userblock_size=512) as file:
        file["u"] = np.einsum(f"ntxy->{axes[::-1]}", U)
        file["a"] = A.T
        file["t"] = TIMES[:, None]
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def own(path: Path, **attributes: object) -> Path:
    w = np.concatenate([A[:, None], U], axis=1)
    attributes = {"viscosity": 1e-3, "config": json.dumps({"seed": 3}), **attributes}
    return write_h5(path, {"w": w, "t": np.arange(T + 1.0)}, layout=formats.LAYOUT, **attributes)


def pdebench(path: Path, data: np.ndarray = U, **more: np.ndarray) -> Path:
    coordinates = {
        "t-coordinate": np.arange(1.0, T + 2),
        "x-coordinate": np.arange(X),
        "y-coordinate": np.arange(Y),
    }
    return write_h5(path, {"tensor": data, **coordinates, **more}, Nu=0.01)


def pdebench_seeds(path: Path) -> Path:
    grid = {"t": TIMES, "x": np.arange(X), "y": np.arange(Y)}
    arrays = {f"{i:04}/data": U[i][..., None] for i in range(N)}
    return write_h5(path, arrays | {f"{i:04}/grid/{a}": v for i in range(N) for a, v in grid.items()})


def npy(path: Path) -> Path:
    np.save(path, U)
    return path


def npz(path: Path) -> Path:
    np.savez_compressed(path, data=U, t=TIMES)
    return path


def pt(path: Path) -> Path:
    torch.save(
        {"x": torch.from_numpy(U[:, 0]), "y": torch.from_numpy(U), "visc": torch.tensor([[0.01]])}, path
    )
    return path


Writer = Callable[[Path], Path]
WRITERS: dict[str, tuple[Writer, str, bool]] = {  # file name: (writer, format, read lazily)
    "five.mat": (mat5, "MATLAB 5", False),
    "seven.mat": (mat73, "MATLAB 7.3", True),
    "tensor.hdf5": (pdebench, "PDEBench", True),
    "seeds.h5": (pdebench_seeds, "PDEBench", True),
    "mine.npy": (npy, "NumPy", True),
    "mine.npz": (npz, "NumPy", False),
    "operator.pt": (pt, "neuraloperator", False),
}
