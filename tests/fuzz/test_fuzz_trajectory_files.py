"""Files of trajectories, damaged in every way: what is still read is finite and whole."""

import io
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from files import DAMAGE, PLACES, place
from hypothesis import strategies as st
from pde import trajectory_files
from wild import Trap, answer, damage, fuzz, guarded

from monarch_sciml.errors import InputError
from monarch_sciml.pde.datasets import TrajectoryDataset

N, T, X, Y = trajectory_files.N, trajectory_files.T, trajectory_files.X, trajectory_files.Y


def the_well(path: Path) -> Path:
    arrays = {"t0_fields/density": trajectory_files.U, "dimensions/time": trajectory_files.TIMES}
    return trajectory_files.write_h5(path, arrays)


Whole = dict[str, Path]
WRITERS: dict[str, Any] = {name: writer for name, (writer, _, _) in trajectory_files.WRITERS.items()}
WRITERS |= {"own.h5": trajectory_files.own, "well.h5": the_well}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return {name: writer(folder / name) for name, writer in WRITERS.items()}


def read(path: Path, **options: Any) -> torch.Tensor:
    """Everything, trajectory by trajectory and at once, which must agree."""
    dataset = TrajectoryDataset(path, **options)
    dataset.check()
    trajectories = [dataset[i] for i in range(len(dataset))]
    assert torch.equal(torch.stack(trajectories), torch.stack(list(dataset.load())))
    shape = (dataset.n_times, dataset.channels, *dataset.grid)
    assert all(w.shape == shape and w.isfinite().all() for w in trajectories)
    assert dataset.times is None or bool((dataset.times.diff() > 0).all() and dataset.times.isfinite().all())
    assert dataset.viscosity is None or np.isfinite(dataset.viscosity)
    repr(dataset)
    return torch.stack(trajectories)


@pytest.mark.parametrize("name", WRITERS)
@fuzz(40, **DAMAGE)
def test_damaged_files(
    name: str, whole: Whole, tmp_path: Path, kind: str, at: float, count: int, fill: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(damage(whole[name].read_bytes(), kind, at, count, fill))
    answer(read, path)


@pytest.mark.parametrize("name", WRITERS)
def test_whole_files(name: str, whole: Whole, tmp_path: Path) -> None:
    """The reader of the other tests finds what was written."""
    path = tmp_path / name
    path.write_bytes(whole[name].read_bytes())
    assert read(path).shape[0] == N


@pytest.mark.parametrize("suffix", [".h5", ".mat", ".npy", ".npz", ".pt", ""])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file(kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with guarded():
        assert isinstance(answer(read, place(tmp_path, kind, suffix)), InputError)


NUMBERS = [0.0, -0.0, 1.0, 1e-45, 5e-324, 1e38, 3.4e38, 1e39, 1e308, np.nan, np.inf, -np.inf]
DTYPES = [
    "?",
    "b",
    "B",
    "i8",
    "u8",
    ">i4",
    "f2",
    "f4",
    ">f4",
    "f8",
    ">f8",
    "g",
    "F",
    "D",
    "S3",
    "U2",
    "M8[s]",
    "m8[s]",
    "V4",
    "O",
    "i4,i4",
    "f4,f4,f4",
]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of any kind, number of axes and contents, of few elements."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=6).map(tuple))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    array = np.zeros(shape, dtype)
    if dtype.kind in "fc":
        with np.errstate(all="ignore"):
            array += np.random.default_rng(0).standard_normal(shape).astype(dtype)
            if array.size:
                array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(NUMBERS))
    order = draw(st.sampled_from(["C", "F", "reversed"]))
    return (
        array[::-1]
        if order == "reversed" and array.ndim
        else np.array(array, order="F" if order == "F" else "C")
    )


AXES = st.sampled_from(
    [None, None, None, "n t x", "n t x y", "ncxt", "ntxyzc", "x", "xn", "t n c x", "n t q", "", "ntxx"]
)


def expected(array: np.ndarray, axes: str) -> np.ndarray:
    """The same as (n, t, c, *grid) in double precision, by another way than the package's."""
    letters = axes.replace(" ", "")
    missing = [a for a in "ntc" if a not in letters]
    wide = array.astype(np.float64).reshape(*array.shape, *[1] * len(missing))
    every = letters + "".join(missing)
    return np.einsum(f"{every}->{''.join(a for a in 'ntcxyz' if a in every)}", wide)


def holds(dataset: TrajectoryDataset, array: np.ndarray, axes: str | None) -> None:
    """The data set has exactly the numbers of the array, all of them finite in float32."""
    found = np.stack([dataset[i].numpy() for i in range(len(dataset))])
    wanted = expected(array, axes or {3: "ntx", 4: "ntxy"}[array.ndim])
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(found, wanted.astype(np.float32))


@fuzz(300, array=arrays(), axes=AXES)
def test_arrays_of_any_kind(array: np.ndarray, axes: str | None) -> None:
    found = answer(TrajectoryDataset.from_array, array, axes=axes)
    if isinstance(found, TrajectoryDataset):
        holds(found, array, axes)


@fuzz(100, array=arrays(), axes=AXES)
def test_tensors_of_any_kind(array: np.ndarray, axes: str | None) -> None:
    if array.dtype.str[0] == ">" or array.dtype.kind not in "?bBiufFD" or array.dtype.char == "g":
        return
    for tensor in (torch.from_numpy(array.copy()), torch.zeros(array.shape).to_sparse()):
        found = answer(TrajectoryDataset.from_array, tensor, axes=axes)
        if isinstance(found, TrajectoryDataset):
            holds(found, tensor.numpy(), axes)


@pytest.mark.parametrize("format", ["npy", "npz", "h5", "mat", "pt"])
@fuzz(60, array=arrays(), axes=AXES)
def test_files_of_arrays_of_any_kind(
    format: str, tmp_path: Path, array: np.ndarray, axes: str | None
) -> None:
    path = tmp_path / f"a.{format}"
    path.unlink(missing_ok=True)
    try:
        if format == "npy":
            np.save(path, array)
        elif format == "npz":
            np.savez(path, a=array)
        elif format == "pt":
            torch.save({"a": torch.from_numpy(array.copy())}, path)
        elif format == "mat":
            scipy.io.savemat(path, {"u": array})
        else:
            trajectory_files.write_h5(path, {"a": array})
    except (TypeError, ValueError):  # what cannot be written need not be read
        return
    # MATLAB has no arrays with fewer than two axes; it stores those of another byte order in its own
    found = answer(
        TrajectoryDataset, path, key="u" if format == "mat" else "a" if format != "npy" else None, axes=axes
    )
    if (
        isinstance(found, TrajectoryDataset)
        and not isinstance(answer(found.check), InputError)
        and format != "mat"
    ):
        holds(found, array, axes)


def test_no_payload_runs(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    trap = np.array([[[Trap(target)]]], dtype=object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "a.npz", u=trap)
    torch.save({"x": Trap(target)}, tmp_path / "a.pt")
    torch.save(
        {"y": torch.zeros(2, 2, 2)} | {"x": Trap(target)},
        tmp_path / "b.pt",
        _use_new_zipfile_serialization=False,
    )
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Trap(target), protocol=2))
    for path in sorted(tmp_path.iterdir()):
        assert isinstance(answer(read, path), InputError), path
    assert not target.exists()
    pickle.loads(pickle.dumps(Trap(target)))  # it would have
    assert target.exists()


HUGE = [10**4, 10**6, 2**31, 2**40, 2**62]


@pytest.mark.parametrize("format", ["npy", "npz", "h5", "chunked", "pt"])
@fuzz(12, shape=st.lists(st.sampled_from(HUGE), min_size=3, max_size=4))
def test_huge_sizes_without_the_data(format: str, tmp_path: Path, shape: list[int]) -> None:
    path = tmp_path / f"a.{'h5' if format == 'chunked' else format}"
    if format in ("npy", "npz"):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        )
        content = stream.getvalue() + bytes(64)
        if format == "npy":
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.npy", content)
    elif format == "pt":
        try:
            torch.save({"a": torch.zeros(1).expand(shape)}, path)
        except RuntimeError:  # more than torch can count
            return
    else:
        with h5py.File(path, "w") as file:
            try:
                file.create_dataset(
                    "a", shape, "f4", chunks=(1,) * (len(shape) - 1) + (8,) if format == "chunked" else None
                )
            except (ValueError, OSError):
                return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert isinstance(answer(read, path), InputError)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
