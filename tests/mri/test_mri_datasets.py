"""Slices of many files: right, lazily, in workers, without growing; and splits that keep volumes whole."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kspace_files import HEADER, TARGET, WRITERS, C, H, K, S, W, fastmri, noise
from torch.utils.data import DataLoader, Dataset

from monarch_sciml.errors import InputError
from monarch_sciml.mri import datasets
from monarch_sciml.mri.datasets import Slice, SliceDataset, list_files, split_volumes

SHAPES = {"a": (3, 4, 10, 7), "b": (5, 2, 12, 9), "c": (1, 4, 11, 13), "d": (4, 2, 12, 9)}
KINDS = {"a": "AXT2", "b": "AXT1", "c": "AXT2", "d": "AXFLAIR"}


def kspace_of(name: str) -> np.ndarray:
    return noise(*SHAPES[name], seed=ord(name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in SHAPES:
        fastmri(tmp_path / f"{name}.h5", kspace_of(name), header=None, acquisition=KINDS[name])
    (tmp_path / "._a.h5").write_bytes(b"left behind by an archive")
    (tmp_path / "notes.txt").write_text("not k-space")
    return tmp_path


def names(dataset: SliceDataset) -> list[str]:
    return [volume.path.stem for volume in dataset.volumes]


def test_every_slice_of_every_file(folder: Path):
    dataset = SliceDataset(folder)
    assert len(dataset) == 13
    assert names(dataset) == ["a", "b", "c", "d"]
    expected = [(name, i) for name, shape in SHAPES.items() for i in range(shape[0])]
    for sample, (name, i) in zip((dataset[n] for n in range(13)), expected, strict=True):
        assert (sample.name, sample.index) == (f"{name}.h5", i)
        assert sample.attributes == {"acquisition": KINDS[name]}
        torch.testing.assert_close(sample.kspace, torch.from_numpy(kspace_of(name)[i]), rtol=0, atol=0)
    assert dataset[-1].index == 3
    with pytest.raises(IndexError):
        dataset[13]


def test_a_slice_without_extras(folder: Path):
    sample = SliceDataset(folder)[3]
    assert sample.target is None
    assert sample.mask is None
    assert sample.header is None
    assert sample.padding == (0, 9)


def test_a_slice_with_everything(tmp_path: Path):
    mask = np.array([0, 1, 0, 1, 1, 0, 1])
    path = fastmri(tmp_path / "a.h5", reconstruction_rss=TARGET, mask=mask)
    sample = SliceDataset(path)[2]
    assert isinstance(sample, Slice)
    assert sample.kspace.dtype is torch.complex64
    assert sample.target is not None
    assert sample.mask is not None
    assert sample.mask.tolist() == mask.astype(bool).tolist()
    torch.testing.assert_close(sample.target, torch.from_numpy(TARGET[2]), rtol=0, atol=0)
    assert sample.header is not None
    assert sample.header.recon == (6, 5, 1)
    assert SliceDataset(path, include_target=False)[2].target is None
    assert SliceDataset(path, header=False)[2].header is None


@pytest.mark.parametrize(
    ("center", "maximum", "padding"),
    [(3, 6, (0, 7)), (3, 4, (0, 5)), (1, 3, (2, 6)), (5, 8, (0, 7)), (1, 6, (2, 7))],
)
def test_padding_stays_inside_k_space(center: int, maximum: int, padding: tuple[int, int], tmp_path: Path):
    old, new = ("<maximum>{}</maximum><center>{}</center>".format(*x) for x in ((6, 3), (maximum, center)))
    assert old in HEADER
    assert SliceDataset(fastmri(tmp_path / "a.h5", header=HEADER.replace(old, new)))[0].padding == padding


@pytest.mark.parametrize("name", WRITERS)
def test_one_file_of_any_format(name: str, tmp_path: Path):
    dataset = SliceDataset(WRITERS[name](tmp_path))
    np.testing.assert_array_equal(np.stack([dataset[i].kspace for i in range(S)]), K)
    assert dataset.volumes[0].shape == (S, C, H, W)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"acquisition": "AXT2"}, "ac"),
        ({"acquisition": ["AXT1", "AXFLAIR"]}, "bd"),
        ({"coils": 4}, "ac"),
        ({"min_slices": 4}, "bd"),
        ({"acquisition": "AXT2", "min_slices": 2}, "a"),
    ],
)
def test_filters(filters: dict, kept: str, folder: Path):
    dataset = SliceDataset(folder, **filters)
    assert names(dataset) == list(kept)
    assert {dataset[i].name[0] for i in range(len(dataset))} == set(kept)


@pytest.mark.parametrize(
    ("middle", "kept"),
    [(1.0, [0, 1, 2, 3, 4]), (0.6, [1, 2, 3]), (0.2, [2]), (0.01, [2]), (0.8, [0, 1, 2, 3])],
)
def test_middle_slices(middle: float, kept: list[int], folder: Path):
    dataset = SliceDataset(folder / "b.h5", middle=middle)
    assert [dataset[i].index for i in range(len(dataset))] == kept


def test_a_list_keeps_its_order(folder: Path):
    assert names(SliceDataset([folder / "c.h5", str(folder / "a.h5")])) == ["c", "a"]


def test_opening_reads_no_slice(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fastmri(folder / "e.h5", K * np.nan)
    shapes = [volume.shape for volume in SliceDataset(folder).volumes]  # a slice with NaN would be refused
    assert shapes == [*SHAPES.values(), K.shape]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"acquisition": "AXT9"},
            "files with acquisition AXT9, .*; found only AXFLAIR with 2 coils and 4 slices, ",
        ),
        ({"coils": 16}, "coils 16"),
        ({"middle": 0}, "0 < middle ≤ 1; found middle=0"),
    ],
)
def test_filters_that_leave_nothing(how: dict, message: str, folder: Path):
    with pytest.raises(InputError, match=message):
        SliceDataset(folder, **how)


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"a folder of .h5 files; found none in"):
        SliceDataset(tmp_path)
    with pytest.raises(InputError, match="at least one file; found an empty list"):
        SliceDataset([])
    with pytest.raises(InputError, match=r"found nothing at .*absent.h5"):
        SliceDataset(tmp_path / "absent.h5")


def test_a_corrupt_file_is_named(folder: Path):
    os.truncate(folder / "c.h5", 1500)
    with pytest.raises(
        InputError, match=r"a readable HDF5 file; found c.h5 of 1500 bytes .*: download or write"
    ):
        SliceDataset(folder)


# -------------------------------------------------------------------------------------- workers and memory


class Probe(Dataset[tuple[int, int, int, float]]):
    """Reads a slice and says which process did, its open files, its memory in KiB, and a sum to compare."""

    def __init__(self, dataset: SliceDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, int, int, float]:
        total = float(self.dataset[index].kspace.abs().sum())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        kib = pages * os.sysconf("SC_PAGE_SIZE") // 1024
        return os.getpid(), len(os.listdir("/proc/self/fd")), kib, total


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles where Linux lists them")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])  # spawning takes seconds
def test_workers_read_the_same_and_do_not_grow(context: str, workers: int, tmp_path: Path):
    files = [fastmri(tmp_path / f"{i:02}.h5", noise(2, 4, 64, 64, seed=i), header=None) for i in range(20)]
    probe = Probe(SliceDataset(files))
    here = [probe[i][3] for i in range(40)]
    loader = DataLoader(
        probe, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context=context
    )
    epochs = [list(loader) for _ in range(6)]
    for epoch in epochs:
        assert [sample[3] for sample in epoch] == here
        assert len({sample[0] for sample in epoch} - {os.getpid()}) == workers
    handles, memory = ([max(sample[k] for sample in epoch) for epoch in epochs] for k in (1, 2))
    assert len(set(handles[1:])) == 1
    # one epoch reads 5 MiB: what is kept of it would show
    assert memory[-1] - memory[1] < 4 * 1024


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles where Linux lists them")
def test_few_of_many_files_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "OPEN_FILES", 2)
    dataset = SliceDataset(folder)

    def handles() -> list[str]:
        links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        found = [Path(os.readlink(link)) for link in links if os.path.islink(link)]
        return sorted(path.name for path in found if path.parent == folder.resolve())

    assert handles() == []
    for index, opened in [(0, "a"), (3, "ab"), (1, "ab"), (8, "ac"), (9, "cd"), (8, "cd"), (0, "ac")]:
        dataset[index]
        assert handles() == [f"{name}.h5" for name in opened]
    dataset.close()
    assert handles() == []
    assert dataset[4].index == 1


def test_it_can_be_pickled_while_files_are_open(folder: Path):
    dataset = SliceDataset(folder)
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    torch.testing.assert_close(copy[5].kspace, dataset[5].kspace)


def test_a_loader_gives_slices(tmp_path: Path):
    loader = DataLoader(SliceDataset(fastmri(tmp_path / "a.h5", reconstruction_rss=TARGET)), batch_size=None)
    for i, sample in enumerate(loader):
        assert isinstance(sample, Slice)
        assert (sample.name, sample.index, *sample.padding) == ("a.h5", i, 0, W)
        assert sample.mask is None
        torch.testing.assert_close(sample.kspace, torch.from_numpy(K[i]), rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------- split


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"{i:02}.h5" for i in range(23)]


@pytest.mark.parametrize(
    ("parts", "lengths"),
    [
        ((0.8, 0.1, 0.1), [18, 3, 2]),
        ((15, 5), [15, 5]),
        ((0.5, 0.25), [12, 5]),
        ((23,), [23]),
        ((1.0,), [23]),
    ],
)
def test_parts_are_disjoint(parts: tuple, lengths: list[int], many: list[Path]):
    split = split_volumes(many, parts, seed=4)
    assert [len(part) for part in split] == lengths
    together = [path for part in split for path in part]
    assert len(set(together)) == len(together)
    assert set(together) <= set(many)
    assert all(part == sorted(part) for part in split)


def test_the_seed_decides_and_the_order_of_files_does_not(many: list[Path]):
    assert split_volumes(many, (12, 11), seed=1) == split_volumes(many[::-1], (12, 11), seed=1)
    assert split_volumes(many, (12, 11), seed=1) != split_volumes(many, (12, 11), seed=2)


def test_a_data_set_is_split_by_the_files_it_kept(folder: Path):
    first, second = split_volumes(SliceDataset(folder, acquisition="AXT2"), (1, 1))
    assert {path.stem for path in first + second} == {"a", "c"}
    assert len(SliceDataset(first)) + len(SliceDataset(second)) == 4
    assert {p.stem for part in split_volumes(folder, (0.5, 0.5)) for p in part} == set(SHAPES)


@pytest.mark.parametrize("parts", [(20, 4), (0.8, 0.3), (23, 0), (0.99, 0.01), (-1, 5), ()])
def test_splits_that_cannot_be(parts: tuple, many: list[Path]):
    with pytest.raises(InputError, match=r"at least one file each, .*; found parts .* of 23 files"):
        split_volumes(many, parts)


def test_list_files(folder: Path):
    assert [path.name for path in list_files(folder)] == ["a.h5", "b.h5", "c.h5", "d.h5"]
    assert list_files(str(folder / "notes.txt")) == [folder / "notes.txt"]


def test_the_files_are_not_changed(folder: Path):
    before = (folder / "a.h5").read_bytes()
    dataset = SliceDataset(folder)
    dataset[0].kspace.zero_()
    dataset.close()
    assert (folder / "a.h5").read_bytes() == before
    with h5py.File(folder / "a.h5", "r+"):  # and nothing holds them
        pass
