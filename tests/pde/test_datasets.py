"""Every format gives the same trajectories; every mistake gives a message that says how to mend it."""

import contextlib
import json
import multiprocessing
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from torch.utils.data import DataLoader

from monarch_sciml.errors import InputError
from monarch_sciml.pde import datasets, formats
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows, train_test_split

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


@pytest.fixture(params=WRITERS)
def any_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param][0](tmp_path / request.param)


# ------------------------------------------------------------------------------------ what every format obeys


def test_every_format_gives_the_same_trajectories(any_file: Path) -> None:
    dataset = TrajectoryDataset(any_file)
    assert (len(dataset), dataset.n_times, dataset.channels, dataset.grid) == (N, T, 1, (X, Y))
    assert dataset.format == WRITERS[any_file.name][1]
    assert dataset[0].dtype == torch.float32
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(U)[:, :, None], rtol=0, atol=0)
    if any_file.suffix not in (".npy", ".pt"):
        assert dataset.times is not None
        assert dataset.times.dtype == torch.float64
        assert dataset.times.tolist() == TIMES.tolist()
    else:
        assert dataset.times is None
    assert any_file.name in repr(dataset)
    dataset.check()


def test_the_name_of_a_file_does_not_matter(any_file: Path) -> None:
    renamed = any_file.rename(any_file.with_name("file.dat"))
    torch.testing.assert_close(TrajectoryDataset(renamed)[1], torch.from_numpy(U[1])[:, None])


def test_lazy_equals_in_memory(any_file: Path) -> None:
    lazy = TrajectoryDataset(any_file, samples=slice(1, 4), times=slice(1, None, 2), every=2)
    eager = TrajectoryDataset(any_file, samples=slice(1, 4), times=slice(1, None, 2), every=2, in_memory=True)
    expected = torch.from_numpy(U[1:4, 1::2, ::2, ::2])[:, :, None]
    for dataset in (lazy, eager, lazy.load()):
        torch.testing.assert_close(stacked(dataset), expected, rtol=0, atol=0)
        assert (dataset.n_times, dataset.grid) == (3, (4, 3))
    assert lazy._source is not None
    assert eager._source is not None
    assert (lazy._source.lazy, eager._source.lazy) == (WRITERS[any_file.name][2], False)


@pytest.mark.parametrize("budget", [1, 8 * X * Y * 3, 8 * X * Y * T * 2])
def test_loading_in_blocks_of_any_size(any_file: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", budget)
    dataset = TrajectoryDataset(any_file)
    torch.testing.assert_close(stacked(dataset.load()), torch.from_numpy(U)[:, :, None], rtol=0, atol=0)
    dataset.check()


def test_subsampling_equals_slicing(any_file: Path) -> None:
    full = stacked(TrajectoryDataset(any_file))
    coarse = TrajectoryDataset(any_file, samples=slice(-3, None), times=slice(2, 6), every=2)
    torch.testing.assert_close(stacked(coarse), full[-3:, 2:6, :, ::2, ::2], rtol=0, atol=0)
    if coarse.times is not None:
        assert coarse.times.tolist() == TIMES[2:6].tolist()


def test_a_copy_sent_to_another_process_reads_the_same(any_file: Path) -> None:
    dataset = TrajectoryDataset(any_file, samples=slice(1, None))
    before = dataset[0]
    data = pickle.dumps(dataset)
    if WRITERS[any_file.name][2]:
        assert len(data) < 2000  # the open file stays behind
    torch.testing.assert_close(pickle.loads(data)[0], before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_with_two_workers(any_file: Path, context: str) -> None:
    if context == "spawn" and any_file.name != "seeds.h5":
        pytest.skip("starting a process takes seconds: one file is enough")
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    dataset = TrajectoryDataset(any_file)
    dataset[0]  # the parent has the file open when the workers are forked
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context)
    torch.testing.assert_close(torch.cat(list(loader)), torch.from_numpy(U)[:, :, None])
    torch.testing.assert_close(dataset[N - 1], torch.from_numpy(U[-1])[:, None])


def test_a_trajectory_may_be_changed_by_its_owner(any_file: Path) -> None:
    for dataset in (TrajectoryDataset(any_file), TrajectoryDataset(any_file, in_memory=True)):
        dataset[0].zero_()
        torch.testing.assert_close(dataset[0], torch.from_numpy(U[0])[:, None])


def test_indices(any_file: Path) -> None:
    dataset = TrajectoryDataset(any_file)
    torch.testing.assert_close(dataset[-1], dataset[N - 1])
    with pytest.raises(IndexError):
        dataset[N]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_point_type(any_file: Path, dtype: torch.dtype) -> None:
    dataset = TrajectoryDataset(any_file, dtype=dtype)
    torch.testing.assert_close(dataset[0], torch.from_numpy(U[0])[:, None].to(dtype), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- single formats


@pytest.mark.parametrize("writer", [mat5, mat73])
def test_matlab_initial_state(writer: Writer, tmp_path: Path) -> None:
    dataset = TrajectoryDataset(writer(tmp_path / "ns.mat"), initial=True)
    expected = torch.from_numpy(np.concatenate([A[:, None], U], axis=1))[:, :, None]
    torch.testing.assert_close(stacked(dataset), expected, rtol=0, atol=0)
    torch.testing.assert_close(stacked(dataset.load()), expected, rtol=0, atol=0)
    assert dataset.times is not None
    assert dataset.times.tolist() == [0, *TIMES]
    every_second = TrajectoryDataset(dataset.path, initial=True, times=slice(0, 6, 2))
    torch.testing.assert_close(stacked(every_second), expected[:, 0:6:2], rtol=0, atol=0)
    windows = Windows(dataset, 2, 1)
    torch.testing.assert_close(windows[0][0], expected[0, :2])


@pytest.mark.parametrize("writer", [mat5, mat73])
def test_matlab_axes_are_named_alike_in_both_versions(writer: Callable[..., Path], tmp_path: Path) -> None:
    path = writer(tmp_path / "ns.mat", "ntxy")
    with pytest.raises(
        InputError, match=r'7 along t; found shape \(5, 7, 8, 6\) read as axes n x y t; give axes="n t x y"'
    ):
        TrajectoryDataset(path)
    torch.testing.assert_close(
        stacked(TrajectoryDataset(path, axes="n t x y")), torch.from_numpy(U)[:, :, None]
    )


def test_matlab_final_state_only(tmp_path: Path) -> None:
    # the Burgers benchmark: a and u are (N, x)
    path = tmp_path / "burgers.mat"
    a, u = field(N, X), field(N, X, seed=2)
    scipy.io.savemat(path, {"a": a, "u": u})
    dataset = TrajectoryDataset(path, initial=True)
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(np.stack([a, u], axis=1))[:, :, None])
    assert dataset.times is None


def test_hdf5_with_only_the_attribute_of_matlab(tmp_path: Path) -> None:
    path = tmp_path / "copy.h5"
    with h5py.File(path, "w") as file:
        file["u"] = U.transpose(1, 3, 2, 0)
        file["u"].attrs["MATLAB_class"] = np.bytes_("single")
    assert TrajectoryDataset(path).format == "MATLAB 7.3"


def test_our_own_files(tmp_path: Path) -> None:
    dataset = TrajectoryDataset(own(tmp_path / "ns.h5"))
    assert (dataset.format, dataset.n_times, dataset.viscosity) == ("monarch_sciml", T + 1, 1e-3)
    assert dataset.attributes["config"] == {"seed": 3}
    torch.testing.assert_close(dataset[2][0, 0], torch.from_numpy(A[2]))
    unfinished = own(tmp_path / "ns.h5.partial", finished=3)
    with pytest.raises(InputError, match="5 trajectories; found 3 finished"):
        TrajectoryDataset(unfinished)
    with pytest.raises(InputError, match=r"a readable HDF5 file; found broken.h5 .*JSONDecodeError"):
        TrajectoryDataset(own(tmp_path / "broken.h5", config="{"))


def test_files_made_by_the_generator(tmp_path: Path) -> None:
    generate = pytest.importorskip("monarch_sciml.pde.generate")
    config = generate.GenerateConfig(
        samples=2, resolution=16, end_time=0.2, record_interval=0.1, viscosity=1e-2
    )
    dataset = TrajectoryDataset(generate.generate(tmp_path / "ns.h5", config, progress=False))
    assert (len(dataset), dataset.n_times, dataset.grid, dataset.viscosity) == (2, 3, (16, 16), 1e-2)
    assert dataset.format == "monarch_sciml"
    dataset.check()


def test_pdebench_with_channels(tmp_path: Path) -> None:
    data = field(N, T, X, Y, 2)
    dataset = TrajectoryDataset(pdebench(tmp_path / "swe.h5", data))
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(data).movedim(-1, 2))
    assert dataset.viscosity == 0.01


def test_pdebench_in_one_dimension(tmp_path: Path) -> None:
    data = field(N, T, X)
    arrays = {"tensor": data, "x-coordinate": np.arange(X), "t-coordinate": np.arange(T + 1)}
    dataset = TrajectoryDataset(write_h5(tmp_path / "burgers.hdf5", arrays))
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(data)[:, :, None])
    assert dataset.times is not None
    assert dataset.times.tolist() == list(range(T))  # the last time has no frame
    with pytest.raises(InputError, match="axes n t x, n t x c; found shape"):
        TrajectoryDataset(write_h5(tmp_path / "bad.hdf5", {**arrays, "tensor": U[..., None]}))


def test_pdebench_compressible_flow(tmp_path: Path) -> None:
    names = ["density", "pressure", "Vx", "Vy"]
    arrays = {name: field(N, T, X, Y, seed=i) for i, name in enumerate(names)}
    path = write_h5(tmp_path / "cfd.hdf5", {**arrays, "t-coordinate": np.arange(T + 1)}, eta=0.1)
    dataset = TrajectoryDataset(path)
    expected = torch.from_numpy(np.stack([arrays[name] for name in names], axis=2))
    torch.testing.assert_close(stacked(dataset), expected, rtol=0, atol=0)
    torch.testing.assert_close(stacked(dataset.load()), expected, rtol=0, atol=0)
    assert (dataset.channels, dataset.attributes) == (4, {"fields": names, "eta": 0.1})
    only = TrajectoryDataset(path, key="pressure", times=slice(None, -1))
    torch.testing.assert_close(only[1][:, 0], torch.from_numpy(arrays["pressure"][1, :-1]))
    path = write_h5(tmp_path / "bad.hdf5", {**arrays, "t-coordinate": np.arange(T + 1), "Vy": U[:, 1:]})
    with pytest.raises(InputError, match=r"axes as long as the file's coordinates.*\(5, 6, 8, 6\)"):
        TrajectoryDataset(path)


def test_pdebench_darcy(tmp_path: Path) -> None:
    coefficient, solution = A, field(N, 1, X, Y)
    path = write_h5(
        tmp_path / "darcy.hdf5",
        {"nu": coefficient, "tensor": solution, "x-coordinate": np.arange(X), "y-coordinate": np.arange(Y)},
    )
    dataset = TrajectoryDataset(path)
    assert dataset.n_times == 2
    torch.testing.assert_close(dataset[1][:, 0], torch.from_numpy(np.stack([coefficient[1], solution[1, 0]])))


def test_pdebench_one_group_per_seed(tmp_path: Path) -> None:
    path = pdebench_seeds(tmp_path / "seeds.h5")
    with h5py.File(path, "r+") as file:
        del file["0002/data"]
    with pytest.raises(InputError, match="'data' in every group; found none in '0002'"):
        TrajectoryDataset(path)
    with h5py.File(path, "r+") as file:
        file["0002/data"] = U[0, :-1, ..., None]
    with pytest.raises(InputError, match=r"'0002/data' as large as '0000/data'.*\(6, 8, 6, 1\)"):
        TrajectoryDataset(path)


def test_the_well(tmp_path: Path) -> None:
    scalar, vector = field(N, T, X, Y), field(N, T, X, Y, 2)
    arrays = {
        "t0_fields/pressure": scalar,
        "t0_fields/constant": field(N, X, Y),
        "t1_fields/velocity": vector,
        "t2_fields/stress": field(N, T, X, Y, 2, 2),
        "dimensions/time": TIMES,
        "dimensions/x": np.arange(X),
        "dimensions/y": np.arange(Y),
    }
    path = write_h5(tmp_path / "flow.hdf5", arrays, dataset_name="flow", viscosity=[0.5])
    with h5py.File(path, "r+") as file:
        file["dimensions"].attrs["spatial_dims"] = ["x", "y"]
    dataset = TrajectoryDataset(path)
    expected = np.concatenate([scalar[:, :, None], np.moveaxis(vector, -1, 2)], axis=2)
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(expected))
    assert (dataset.format, dataset.viscosity) == ("the_well", 0.5)
    assert dataset.attributes["fields"] == ["t0_fields/pressure", "t1_fields/velocity"]
    stress = TrajectoryDataset(path, key="t0_fields/pressure")
    torch.testing.assert_close(stress[0][:, 0], torch.from_numpy(scalar[0]))
    empty = write_h5(tmp_path / "static.hdf5", {"t0_fields/constant": A})
    with pytest.raises(InputError, match=r"fields with axes n, t and 2 in space.*none in static"):
        TrajectoryDataset(empty)


def test_any_hdf5_array_with_its_axes(tmp_path: Path) -> None:
    data = field(N, T, X, Y, 2)
    path = write_h5(tmp_path / "mine.h5", {"velocity": data, "force": A, "t": np.tile(TIMES, (N, 1))})
    dataset = TrajectoryDataset(path, key="velocity", axes="n t x y c")
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(data).movedim(-1, 2))
    assert dataset.times is not None
    assert dataset.times.tolist() == TIMES.tolist()
    with pytest.raises(InputError, match=r"one array of trajectories; found the arrays force \(5, 8, 6\), t"):
        TrajectoryDataset(path)
    with pytest.raises(
        InputError, match=r"axes n t x, n t x y; found shape \(5, 7, 8, 6, 2\); name the axes"
    ):
        TrajectoryDataset(path, key="velocity")


@pytest.mark.parametrize("axes", ["t n y x", "x,y,t,n", "nyxt", "ytnx"])
def test_axes_in_any_order(axes: str, tmp_path: Path) -> None:
    letters = axes.replace(" ", "").replace(",", "")
    path = tmp_path / "mine.npy"
    np.save(path, np.einsum(f"ntxy->{letters}", U))
    dataset = TrajectoryDataset(path, axes=axes, times=slice(1, 6, 2))
    for version in (dataset, dataset.load()):
        torch.testing.assert_close(stacked(version), torch.from_numpy(U)[:, 1:6:2, None], rtol=0, atol=0)


def test_fewer_axes(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", U[0])
    one = TrajectoryDataset(tmp_path / "one.npy", axes="t x y")
    assert (len(one), one.n_times) == (1, T)
    np.save(tmp_path / "states.npy", A)
    states = TrajectoryDataset(tmp_path / "states.npy", axes="n x y")
    assert (len(states), states.n_times) == (N, 1)
    np.save(tmp_path / "volume.npy", field(2, 3, 2, 4, 5, 6))
    assert TrajectoryDataset(tmp_path / "volume.npy", axes="n t c x y z")[0].shape == (3, 2, 4, 5, 6)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i8", ">f4", "<f2", "<f8", ">u2"])
def test_numbers_of_any_type_are_converted(dtype: str, tmp_path: Path) -> None:
    data = np.abs(10 * U).astype(dtype)
    np.save(tmp_path / "mine.npy", data)
    write_h5(tmp_path / "mine.h5", {"w": data})
    for name in ("mine.npy", "mine.h5"):
        read = TrajectoryDataset(tmp_path / name)[0]
        torch.testing.assert_close(
            read, torch.from_numpy(data[0].astype(np.float32))[:, None], rtol=0, atol=0
        )


def test_npz_with_several_arrays(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, u=U, v=2 * U, times=TIMES, x=np.arange(X))
    dataset = TrajectoryDataset(path, key="v")
    torch.testing.assert_close(dataset[0][:, 0], torch.from_numpy(2 * U[0]))
    assert dataset.times is not None
    with pytest.raises(
        InputError, match=r"found the arrays u \(5, 7, 8, 6\), v .*name the one to read with key="
    ):
        TrajectoryDataset(path)
    with pytest.raises(InputError, match="an array 'w'; found the arrays u, v, times, x"):
        TrajectoryDataset(path, key="w")
    with pytest.raises(InputError, match=r'8 along x.*give axes="n t x y"'):
        TrajectoryDataset(path, key="u", axes="n t y x")


def test_neuraloperator_pairs(tmp_path: Path) -> None:
    path = tmp_path / "darcy.pt"
    x, y = torch.rand(N, X, X) > 0.5, torch.rand(N, X, X)
    torch.save({"x": x, "y": y}, path)
    dataset = TrajectoryDataset(path)
    assert (dataset.n_times, dataset.channels) == (2, 1)
    torch.testing.assert_close(dataset[3], torch.stack([x[3].float(), y[3]])[:, None])
    torch.save({"x": x[:, None], "y": y[:, None]}, path)
    torch.testing.assert_close(TrajectoryDataset(path)[3], dataset[3])
    torch.save({"x": x, "y": y[:, ::2]}, path)
    with pytest.raises(InputError, match="'y' as large as 'x' along every axis but t"):
        TrajectoryDataset(path)


def test_other_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(torch.from_numpy(U).to(torch.bfloat16), path)
    torch.testing.assert_close(TrajectoryDataset(path)[0][:, 0], torch.from_numpy(U[0]).bfloat16().float())
    torch.save({"w": torch.from_numpy(U), "t": torch.from_numpy(TIMES)}, path)
    assert TrajectoryDataset(path, key="w").times is not None
    with pytest.raises(InputError, match=r"an array 'u'; found the arrays w \(5, 7, 8, 6\), t \(7,\)"):
        TrajectoryDataset(path, key="u")
    torch.save([torch.zeros(3)], path)
    with pytest.raises(InputError, match=r"a dictionary of tensors; found a list in mine.pt"):
        TrajectoryDataset(path)


def test_from_array() -> None:
    for array in (U, torch.from_numpy(U)):
        dataset = TrajectoryDataset.from_array(array, times=TIMES)
        torch.testing.assert_close(stacked(dataset), torch.from_numpy(U)[:, :, None], rtol=0, atol=0)
        assert dataset.times is not None
    turned = TrajectoryDataset.from_array(U.transpose(1, 2, 3, 0), axes="t x y n")
    torch.testing.assert_close(stacked(turned), stacked(dataset))
    torch.testing.assert_close(pickle.loads(pickle.dumps(dataset))[1], dataset[1])
    with pytest.raises(InputError, match=r"3 along t; found shape .*repair the coordinates"):
        TrajectoryDataset.from_array(U, times=[1, 2, 3])
    bad = U.copy()
    bad[2, 3, 4, 5] = np.nan
    with pytest.raises(InputError, match="trajectory 2 at time index 3 of the array"):
        TrajectoryDataset.from_array(bad)


# -------------------------------------------------------------------------------------------------- mistakes


def test_missing_file(tmp_path: Path) -> None:
    npy(tmp_path / "ns_V1e-3.npy")
    with pytest.raises(InputError, match=r"found nothing at .*ns_V1e-4.npy; the folder holds: ns_V1e-3.npy"):
        TrajectoryDataset(tmp_path / "ns_V1e-4.npy")
    with pytest.raises(InputError, match=r"found the folder .*; the folder holds: ns_V1e-3.npy"):
        TrajectoryDataset(tmp_path)
    with pytest.raises(InputError, match=r"no file in the folder .*absent: check the path"):
        TrajectoryDataset(tmp_path / "absent" / "ns.npy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mat", b"", "an empty file in a.mat"),
        ("a.h5", b"<!DOCTYPE html><html>", "a web page in a.h5; the download failed"),
        ("a.h5", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.npy", b"garbage of some length", "bytes b'garbage ' in a.npy"),
        ("a.pt", b"PK\x03\x04 cut short", r"a readable zip-based \(.npz, .pt\) file; found a.pt of 14 bytes"),
        ("a.mat", b"MATLAB 5.0 MAT-file" + bytes(40), "a readable MATLAB 5 file"),
        ("a.mat", b"MATLAB 7.3 MAT-file" + bytes(600), "in a.mat"),
        ("a.pt", b"\x80\x02garbage", "a readable PyTorch"),
        ("a.npy", b"\x93NUMPY\x01\x00garbage", "a readable NumPy file"),
        ("a.npy", b"\x93NUMPY\x09\x00garbage", "a readable NumPy file"),
    ],
)
def test_files_that_are_something_else(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        TrajectoryDataset(tmp_path / name)


@pytest.mark.parametrize("keep", [0.4, 0.9])
def test_truncated_files(any_file: Path, keep: float) -> None:
    os.truncate(any_file, int(keep * any_file.stat().st_size))
    with pytest.raises(InputError, match="it is damaged or incomplete: download or write it again"):
        TrajectoryDataset(any_file).check()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_never_end_in_another_exception(any_file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(any_file.read_bytes())
    for place in rng.integers(0, min(len(content), 1500), size=3):
        content[place] = rng.integers(256)
    any_file.write_bytes(content)
    with contextlib.suppress(InputError):  # some damage cannot be seen
        TrajectoryDataset(any_file).check()


def test_damage_found_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=U, chunks=(1, T, X, Y), compression="gzip", fletcher32=True)
        offset = file["w"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as stream:
        stream.seek(offset + 40)
        stream.write(b"damage")
    dataset = TrajectoryDataset(path)
    dataset[0]
    with pytest.raises(InputError, match=r"a readable HDF5 file; found mine.h5"):
        dataset[2]


def test_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ns.zip", "w") as archive:
        archive.write(mat5(tmp_path / "ns.mat"), "ns.mat")
    with pytest.raises(InputError, match=r"a zip archive holding ns.mat; unpack it first"):
        TrajectoryDataset(tmp_path / "ns.zip")


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["trap.npy", "trap.npz", "trap.pt"])
def test_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    path, target = tmp_path / name, tmp_path / "executed"
    trap = np.array([Trap(target)], dtype=object)
    if name.endswith("npy"):
        np.save(path, trap, allow_pickle=True)
    elif name.endswith("npz"):
        np.savez(path, u=trap)
    else:
        torch.save({"x": Trap(target)}, path)
    with pytest.raises(InputError, match="never loaded" if "np" in name else "a readable PyTorch file"):
        TrajectoryDataset(path)
    assert not target.exists()


def test_wrong_key(tmp_path: Path) -> None:
    for path in (mat5(tmp_path / "five.mat"), mat73(tmp_path / "seven.mat")):
        with pytest.raises(InputError, match=r"an array 'vorticity'; found the arrays .*u"):
            TrajectoryDataset(path, key="vorticity")
    with pytest.raises(InputError, match=r"an array 'v'; found the arrays t \(8,\), w \(5, 8, 8, 6\)"):
        TrajectoryDataset(own(tmp_path / "ns.h5"), key="v")
    with pytest.raises(InputError, match="found no arrays"):
        TrajectoryDataset(write_h5(tmp_path / "empty.h5", {}))
    with pytest.raises(InputError, match=r"a MATLAB file for initial=True; found mine.npy"):
        TrajectoryDataset(npy(tmp_path / "mine.npy"), initial=True)
    scipy.io.savemat(tmp_path / "no_a.mat", {"u": U})
    with pytest.raises(InputError, match="an array 'a'"):
        TrajectoryDataset(tmp_path / "no_a.mat", initial=True)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("n t x", r"3 axes \(n t x\); found an array of 4; name every axis"),
        ("n t x q", "axes from the letters n t c x y z, none twice"),
        ("n t x x", "axes from the letters n t c x y z, none twice"),
        ("n t y z", "with x, or x and y, or x, y and z"),
    ],
)
def test_wrong_axes(axes: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        TrajectoryDataset(npy(tmp_path / "mine.npy"), axes=axes)


def test_order_of_axes_is_compared_with_the_coordinates(tmp_path: Path) -> None:
    path = pdebench(tmp_path / "turned.h5", U.transpose(0, 1, 3, 2))
    with pytest.raises(InputError, match=r'8 along x, 6 along y.*read as axes n t x y; give axes="n t y x"'):
        TrajectoryDataset(path)
    torch.testing.assert_close(
        stacked(TrajectoryDataset(path, axes="n t y x")), torch.from_numpy(U)[:, :, None]
    )
    with pytest.raises(InputError, match="repair the coordinates"):
        TrajectoryDataset(pdebench(tmp_path / "odd.h5", U[..., :5]))


@pytest.mark.parametrize(
    ("bad", "where"), [(np.nan, (3, 2, 1, 1)), (np.inf, (3, 2, 7, 5)), (-np.inf, (3, 2, 0, 0))]
)
def test_numbers_that_are_not_finite(bad: float, where: tuple[int, ...], tmp_path: Path) -> None:
    data = U.copy()
    data[where] = bad
    for name, stored in (("n_first.h5", data), ("t_first.h5", data.swapaxes(0, 1))):
        path = write_h5(tmp_path / name, {"w": stored})
        axes = "n t x y" if name == "n_first.h5" else "t n x y"
        dataset = TrajectoryDataset(path, axes=axes, samples=slice(1, None), times=slice(1, None))
        dataset[0]
        message = f"finite numbers; found NaN or infinity in trajectory 3 at time index 2 of {name}; leave"
        for read in (lambda d: d[2], TrajectoryDataset.check, TrajectoryDataset.load):
            with pytest.raises(InputError, match=message):
                read(dataset)
        dataset.select(slice(0, 2)).check()


def test_overflow_is_not_finite(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "mine.h5", {"w": U.astype(np.float64) * 1e300})
    with pytest.raises(InputError, match="NaN or infinity in trajectory 0 at time index 0"):
        TrajectoryDataset(path)[0]
    TrajectoryDataset(path, dtype=torch.float64)[0]


def test_odd_types(tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, U.astype(np.complex64))
    with pytest.raises(InputError, match=r"complex numbers .*store real and imaginary parts as two channels"):
        TrajectoryDataset(path)
    np.save(path, np.full((2, 3, 4), "word"))
    with pytest.raises(InputError, match="real numbers in 'mine'; found dtype <U4"):
        TrajectoryDataset(path)
    with pytest.raises(InputError, match="real numbers in 'w'; found complex numbers"):
        TrajectoryDataset(write_h5(tmp_path / "mine.h5", {"w": U.astype(np.complex64)}))
    matlab_complex = np.zeros((2, 3, 4), dtype=[("real", "f4"), ("imag", "f4")])
    with pytest.raises(InputError, match="real numbers in 'w'; found complex numbers"):
        TrajectoryDataset(write_h5(tmp_path / "mine.h5", {"w": matlab_complex}))
    with h5py.File(tmp_path / "words.h5", "w") as file:
        file["w"] = np.full((2, 3, 4), b"word", dtype=object)
    with pytest.raises(InputError, match="real numbers in 'w'; found dtype object"):
        TrajectoryDataset(tmp_path / "words.h5")
    with pytest.raises(InputError, match=r"a floating-point dtype; found torch\.int64"):
        TrajectoryDataset(npy(path), dtype=torch.int64)


def test_empty_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", U[:0])
    with pytest.raises(InputError, match=r"\(0, 7, 8, 6\) as n t x y, which is empty"):
        TrajectoryDataset(tmp_path / "mine.npy")


@pytest.mark.parametrize("times", [[1, 2, 3, 3, 4, 5, 6], [7, 6, 5, 4, 3, 2, 1], [1, 2, np.nan, 4, 5, 6, 7]])
def test_times_that_do_not_increase(times: list[float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"times that increase; found \["):
        TrajectoryDataset(write_h5(tmp_path / "mine.h5", {"w": U, "t": np.array(times, dtype=float)}))


def test_odd_times(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="numbers in 't'; found dtype"):
        TrajectoryDataset(write_h5(tmp_path / "a.h5", {"w": U, "t": np.array(b"now")}))
    with pytest.raises(InputError, match="one list of times 't' for all trajectories"):
        TrajectoryDataset(write_h5(tmp_path / "b.h5", {"w": U, "t": field(N, T)}))


@pytest.mark.parametrize(
    "wrong", [slice(0, N + 1), slice(-N - 1, None), slice(3, 3), slice(4, 2), slice(None, None, -1)]
)
def test_slices_outside(wrong: slice, tmp_path: Path) -> None:
    path = npy(tmp_path / "mine.npy")
    with pytest.raises(
        InputError, match=f"samples= as a slice .* inside the {N} trajectories there are; found"
    ):
        TrajectoryDataset(path, samples=wrong)
    with pytest.raises(InputError, match="samples= as a slice"):
        TrajectoryDataset(path).select(wrong)


def test_times_outside(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"times= as a slice .* inside the 7 time steps .*found 0:8:None; choose within 0:7"
    ):
        TrajectoryDataset(npy(tmp_path / "mine.npy"), times=slice(0, 8))


@pytest.mark.parametrize("every", [0, 3, -1])
def test_subsampling_that_does_not_fit(every: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"every ≥ 1 that divides .*found every={every} for the grid 8 × 6"):
        TrajectoryDataset(npy(tmp_path / "mine.npy"), every=every)


def test_subsampling_keeps_both_ends(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", field(N, T, 9))
    dataset = TrajectoryDataset(tmp_path / "mine.npy", every=4)
    assert (dataset.grid, dataset[0].shape) == ((3,), (T, 1, 3))


def test_advice_to_load_large_scattered_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SCATTERED_BYTES", 1000)
    dataset = TrajectoryDataset(mat73(tmp_path / "ns.mat"))
    with pytest.warns(
        UserWarning, match=r"ns.mat scatters each trajectory over the whole file: call .load\(\)"
    ):
        dataset[0]
    dataset.load()[0]  # no warning
    TrajectoryDataset(npy(tmp_path / "mine.npy"))[0]


# -------------------------------------------------------------------------------------- windows and the split


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("n_in", "n_out", "stride"), [(1, 1, 1), (3, 4, 1), (2, 1, 2), (1, 3, 5)])
def test_windows_cover_exactly_the_right_frames(
    any_file: Path, n_in: int, n_out: int, stride: int, in_memory: bool
) -> None:
    dataset = TrajectoryDataset(any_file, in_memory=in_memory)
    windows = Windows(dataset, n_in, n_out, stride=stride)
    pairs = [
        (U[i, s : s + n_in], U[i, s + n_in : s + n_in + n_out])
        for i in range(N)
        for s in range(T)
        if s % stride == 0 and s + n_in + n_out <= T
    ]
    assert len(windows) == len(pairs)
    for k, (past, future) in enumerate(pairs):
        x, y = windows[k]
        torch.testing.assert_close(x[:, 0], torch.from_numpy(past), rtol=0, atol=0)
        torch.testing.assert_close(y[:, 0], torch.from_numpy(future), rtol=0, atol=0)
    torch.testing.assert_close(windows[-1][0], windows[len(pairs) - 1][0])
    with pytest.raises(IndexError):
        windows[len(pairs)]


def test_windows_read_only_their_frames(tmp_path: Path) -> None:
    data = U.copy()
    data[:, 4:] = np.nan  # would be refused if it were read
    np.save(tmp_path / "mine.npy", data)
    windows = Windows(TrajectoryDataset(tmp_path / "mine.npy"), 2, 2)
    windows[0]
    with pytest.raises(InputError, match="trajectory 0 at time index 4"):
        windows[1]


def test_windows_in_batches(tmp_path: Path) -> None:
    windows = Windows(TrajectoryDataset(mat73(tmp_path / "ns.mat")), 3, T - 3)
    x, y = next(iter(DataLoader(windows, batch_size=N)))
    assert (x.shape, y.shape) == ((N, 3, 1, X, Y), (N, T - 3, 1, X, Y))


def test_windows_need_enough_time_steps(tmp_path: Path) -> None:
    dataset = TrajectoryDataset(npy(tmp_path / "mine.npy"))
    with pytest.raises(InputError, match=r"n_in \+ n_out = 8 time steps; found 7 in mine.npy; lower"):
        Windows(dataset, 4, 4)
    for numbers in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(InputError, match="n_in, n_out and stride of at least 1"):
            Windows(dataset, numbers[0], numbers[1], stride=numbers[2])


def test_split_takes_the_first_and_the_last(any_file: Path) -> None:
    train, test = train_test_split(TrajectoryDataset(any_file), 2, 2)
    torch.testing.assert_close(stacked(train)[:, :, 0], torch.from_numpy(U[:2]))
    torch.testing.assert_close(stacked(test.load())[:, :, 0], torch.from_numpy(U[-2:]))
    assert len(train_test_split(train, 1, 1)[1]) == 1


@pytest.mark.parametrize("sizes", [(3, 3), (0, 2), (2, 0), (-1, 3)])
def test_split_without_overlap(sizes: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_train, n_test ≥ 1 that share the 5 trajectories of mine.npy"):
        train_test_split(TrajectoryDataset(npy(tmp_path / "mine.npy")), *sizes)


# ------------------------------------------------------------------------------------------------- real files

DATA = Path(os.environ.get("MONARCH_SCIML_TEST_DATA", "absent"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="MONARCH_SCIML_TEST_DATA names no folder")


@real
def test_real_matlab_files_agree() -> None:
    five = TrajectoryDataset(DATA / "dev_ns_V1e-3_v5.mat", initial=True)
    seven = TrajectoryDataset(DATA / "dev_ns_V1e-3_v73.mat", initial=True)
    assert (five.format, seven.format) == ("MATLAB 5", "MATLAB 7.3")
    assert five[0].shape == (5, 1, 64, 64)
    assert five.times is not None
    assert seven.times is not None
    assert five.times.tolist() == seven.times.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(stacked(five), stacked(seven))
    assert torch.equal(stacked(five), stacked(seven.load()))


@real
@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("darcy_train_16.pt", 1000, (2, 1, 16, 16)),
        ("darcy_test_16.pt", 50, (2, 1, 16, 16)),
        ("darcy_test_32.pt", 50, (2, 1, 32, 32)),
        ("burgers_train_16.pt", 800, (17, 1, 16)),
        ("burgers_test_16.pt", 400, (17, 1, 16)),
    ],
)
def test_real_neuraloperator_files(name: str, count: int, shape: tuple[int, ...]) -> None:
    dataset = TrajectoryDataset(DATA / name)
    assert (len(dataset), dataset[count - 1].shape) == (count, shape)
    assert dataset.viscosity == (0.01 if "burgers" in name else None)
    dataset.check()
