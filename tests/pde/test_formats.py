"""Each format by itself."""

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from trajectory_files import (
    TIMES,
    A,
    N,
    T,
    U,
    Writer,
    X,
    Y,
    field,
    mat5,
    mat73,
    own,
    pdebench,
    pdebench_seeds,
    stacked,
    write_h5,
)

from monarch_sciml.errors import InputError
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows


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


def save_matlab(path: Path, arrays: dict[str, np.ndarray], version: int) -> Path:
    if version == 5:
        scipy.io.savemat(path, arrays)
        return path
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file")
    return path


@pytest.mark.parametrize("version", [5, 7])
@pytest.mark.parametrize(
    ("start", "end", "shape"), [("a", "u", (N, X)), ("coeff", "sol", (N, X, X)), ("a", "u", (N, X, Y))]
)
def test_a_matlab_file_of_states_is_pairs(
    start: str, end: str, shape: tuple[int, ...], version: int, tmp_path: Path
) -> None:
    """As the FNO benchmark has Burgers' equation and Darcy flow: start and end, both of one shape."""
    before, after = field(*shape), field(*shape, seed=2)
    arrays = {"Kcoeff": field(*shape), start: before, end: after}
    path = save_matlab(tmp_path / "states.mat", arrays, version)
    expected = torch.from_numpy(np.stack([before, after], axis=1))[:, :, None]
    axes = "n x y"[: 2 * len(shape) - 1]
    choices = {"key": end}, {"axes": axes}
    for options in ({}, *choices, {"initial": True}):
        dataset = TrajectoryDataset(path, **options)
        torch.testing.assert_close(stacked(dataset), expected, rtol=0, atol=0)
        torch.testing.assert_close(stacked(dataset.load()), expected, rtol=0, atol=0)
        assert dataset.times is None


@pytest.mark.parametrize("version", [5, 7])
def test_a_matlab_array_with_times_is_no_state(version: int, tmp_path: Path) -> None:
    """Nor one whose axes are said to have time, nor one beside what it did not begin from."""
    a, u = field(N, X, T), field(N, X, T, seed=2)
    with_times = save_matlab(tmp_path / "a.mat", {"a": a, "u": u, "t": TIMES[None]}, version)
    without = save_matlab(tmp_path / "b.mat", {"a": a, "u": u, "v": a}, version)
    for dataset in (TrajectoryDataset(with_times), TrajectoryDataset(without, axes="n x t")):
        torch.testing.assert_close(stacked(dataset)[:, :, 0], torch.from_numpy(u).mT)
    torch.testing.assert_close(stacked(TrajectoryDataset(without, key="v"))[:, :, 0], torch.from_numpy(a).mT)


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
    generate = pytest.importorskip("monarch_sciml.pde.generation")
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


def test_pdebench_without_coordinates(tmp_path: Path) -> None:
    """Nothing says which of five axes are space: not guessed."""
    data = field(N, T, X, Y, 2)
    path = write_h5(tmp_path / "tensor.h5", {"tensor": data})
    with pytest.raises(
        InputError, match=r"axes n t x, n t x y; found shape .*, 2\); name the axes .*\(--axes"
    ):
        TrajectoryDataset(path)
    dataset = TrajectoryDataset(path, axes="n t x y c")
    torch.testing.assert_close(stacked(dataset), torch.from_numpy(data).movedim(-1, 2))
    plain = TrajectoryDataset(write_h5(tmp_path / "plain.h5", {"tensor": U}))
    torch.testing.assert_close(stacked(plain)[:, :, 0], torch.from_numpy(U))
    assert plain.format == "PDEBench"


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
    one = TrajectoryDataset(path, key="t0_fields/pressure")
    torch.testing.assert_close(one[0][:, 0], torch.from_numpy(scalar[0]))
    two = TrajectoryDataset(path, key="t1_fields/velocity")
    torch.testing.assert_close(stacked(two), stacked(dataset)[:, :, 1:])
    for chosen in (dataset, one, two):
        assert chosen.times is not None
        assert chosen.times.tolist() == TIMES.tolist()
    with pytest.raises(InputError, match=r"axes n t x y, n t x y c; found shape .*name the axes"):
        TrajectoryDataset(path, key="t2_fields/stress")
    with pytest.raises(InputError, match=r"an array 'pressure'; found the arrays .*t0_fields/pressure"):
        TrajectoryDataset(path, key="pressure")
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


@pytest.mark.parametrize("shape", [(X,), (X, Y), (2, X, Y), (2, X, Y, 3)])
def test_neuraloperator_trajectories_have_the_axes_of_their_start(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """(n, t, …) follows (n, …), in which four axes have channels."""
    y = torch.from_numpy(field(N, T, *shape))
    torch.save({"x": y[:, 0], "y": y}, tmp_path / "a.pt")
    dataset = TrajectoryDataset(tmp_path / "a.pt")
    torch.testing.assert_close(stacked(dataset), y if len(shape) > 2 else y[:, :, None], rtol=0, atol=0)
    assert dataset.grid == shape[-len(dataset.grid) :]


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
    masked = np.ma.masked_greater(U, np.sort(U, axis=None)[-4])  # beneath it lie numbers, but no data
    with pytest.raises(InputError, match=rf"without a mask; found 3 of {U.size} masked"):
        TrajectoryDataset.from_array(masked)
    torch.testing.assert_close(stacked(TrajectoryDataset.from_array(np.ma.array(U))), stacked(dataset))
