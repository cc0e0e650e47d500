"""Every mistake gives a message that says how to mend it."""

import contextlib
import os
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from trajectory_files import N, T, U, X, Y, field, mat5, mat73, npy, own, pdebench, stacked, write_h5

from monarch_sciml.errors import InputError
from monarch_sciml.pde import datasets
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows


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


@pytest.mark.parametrize("content", [U, {"y": U}, {"x": torch.from_numpy(U), "y": U}])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_arrays_in_a_torch_file(content: object, zipped: bool, tmp_path: Path) -> None:
    """The advice is ours, and not to load what may run."""
    torch.save(content, tmp_path / "mine.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"mine.pt, which holds other objects.*; save torch tensors"
    ) as error:
        TrajectoryDataset(tmp_path / "mine.pt")
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


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


@pytest.mark.parametrize(
    ("dtype", "name", "value"),
    [("f4", "_FillValue", 1e20), (">f8", "missing_value", -999.0), ("i2", "_FillValue", -99)],
)
def test_what_netcdf_calls_missing_is_no_number(dtype: str, name: str, value: float, tmp_path: Path) -> None:
    data = U.astype(dtype)
    data[3, 2, 1, 1] = value
    path = write_h5(tmp_path / "a.nc", {"w": data})
    with h5py.File(path, "r+") as file:
        file["w"].attrs[name] = np.array([value], dtype)
    dataset = TrajectoryDataset(path, times=slice(1, None))
    np.testing.assert_array_equal(dataset[2][:, 0], data[2, 1:].astype("f4"))
    found = re.escape(f"NaN, infinity or {value:g} (a missing value) in trajectory 3 at time index 2 of a.nc")
    for read in (lambda d: d[3], TrajectoryDataset.check, TrajectoryDataset.load):
        with pytest.raises(InputError, match=found):
            read(dataset)


def test_packed_numbers(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.nc", {"w": (100 * U).astype("i2")})
    for name, plain, packed in (("scale_factor", 1.0, 0.01), ("add_offset", 0.0, 273.15)):
        with h5py.File(path, "r+") as file:
            file["w"].attrs[name] = packed
        with pytest.raises(InputError, match=f"numbers of 'w' themselves; found {name} {packed:g}, with"):
            TrajectoryDataset(path)
        with h5py.File(path, "r+") as file:
            file["w"].attrs[name] = plain
        TrajectoryDataset(path).check()


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


@pytest.mark.parametrize("wrong", [3, [0, 1], range(2)])
def test_what_is_no_slice(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"samples= as a slice of the {N} .*found {type(wrong).__name__};"):
        TrajectoryDataset(npy(tmp_path / "mine.npy")).select(wrong)  # type: ignore[arg-type]


def test_windows_of_what_is_no_trajectories(tmp_path: Path) -> None:
    part = torch.utils.data.Subset(TrajectoryDataset(npy(tmp_path / "mine.npy")), [1, 0])
    with pytest.raises(InputError, match=r"a TrajectoryDataset; found Subset; .*select\(slice"):
        Windows(part, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [(7, 7), (3, 2), (0, 8), (7, None), (-8, 2)])
def test_frames_outside(frames: tuple[int, int | None]) -> None:
    found = f"{frames[0]}:{frames[1]}:None"
    message = rf"start and stop as a slice .*the 7 frames there are; found {found}; choose within 0:7"
    with pytest.raises(InputError, match=message):
        TrajectoryDataset.from_array(U).read(0, *frames)


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
