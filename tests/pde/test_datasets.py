"""What every format obeys, windows and the split, and real files."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from trajectory_files import TIMES, WRITERS, N, T, U, X, Y, mat73, npy, stacked

from monarch_sciml.errors import InputError
from monarch_sciml.pde import datasets
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows, train_test_split


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


def check_loader_with_two_workers(file: Path, context: str) -> None:
    dataset = TrajectoryDataset(file)
    dataset[0]  # the parent has the file open when the workers are forked
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context)
    torch.testing.assert_close(torch.cat(list(loader)), torch.from_numpy(U)[:, :, None])
    torch.testing.assert_close(dataset[N - 1], torch.from_numpy(U[-1])[:, None])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_loader_with_two_forked_workers(any_file: Path) -> None:
    check_loader_with_two_workers(any_file, "fork")


@pytest.mark.parametrize("any_file", ["seeds.h5"], indirect=True)  # starting a process takes seconds
def test_loader_with_two_spawned_workers(any_file: Path) -> None:
    check_loader_with_two_workers(any_file, "spawn")


def test_a_trajectory_may_be_changed_by_its_owner(any_file: Path) -> None:
    for dataset in (TrajectoryDataset(any_file), TrajectoryDataset(any_file, in_memory=True)):
        dataset[0].zero_()
        torch.testing.assert_close(dataset[0], torch.from_numpy(U[0])[:, None])


def test_a_place_is_named_as_in_the_file(any_file: Path) -> None:
    dataset = TrajectoryDataset(any_file, samples=slice(1, None), times=slice(1, None, 2))
    for part in (dataset, dataset.load(), dataset.load().load(), pickle.loads(pickle.dumps(dataset))):
        place = part.select(slice(2, None)).place(1, 2)
        assert place == f"trajectory 4 at time index 5 of {any_file.name}"


def test_indices(any_file: Path) -> None:
    dataset = TrajectoryDataset(any_file)
    torch.testing.assert_close(dataset[-1], dataset[N - 1])
    torch.testing.assert_close(dataset[np.int64(1)], dataset[1])
    with pytest.raises(IndexError):
        dataset[N]
    for several in (slice(0, 2), [0, 1]):
        with pytest.raises(InputError, match=r"one whole number as index; found .*select\(slice"):
            dataset[several]  # type: ignore[index]
        with pytest.raises(InputError, match="one whole number as index"):
            Windows(dataset, 1, 1)[several]  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_point_type(any_file: Path, dtype: torch.dtype) -> None:
    dataset = TrajectoryDataset(any_file, dtype=dtype)
    torch.testing.assert_close(dataset[0], torch.from_numpy(U[0])[:, None].to(dtype), rtol=0, atol=0)


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
