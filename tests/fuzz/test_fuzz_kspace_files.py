"""k-space files, damaged in every way: what can still be read is finite and whole, or it is refused."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from files import DAMAGE, PLACES, loops_in_hdf5, place
from hypothesis import assume
from hypothesis import strategies as st
from mri import kspace_files
from mri.kspace_files import HEADER, TARGET, C, H, S, W
from wild import Trap, answer, damage, fuzz, guarded

from monarch_sciml.errors import InputError
from monarch_sciml.mri.datasets import SliceDataset, list_files, split_volumes
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import load_mask

MASK = np.arange(W) % 2 == 0
WRITERS: dict[str, Any] = {
    "multi.h5": lambda path: kspace_files.fastmri(path, reconstruction_rss=TARGET, acquisition="AXT2"),
    "single.h5": lambda path: kspace_files.fastmri(path, kspace_files.K[:, 0], reconstruction_esc=TARGET),
    "test.h5": lambda path: kspace_files.fastmri(path, mask=MASK, acceleration=4),
    "a.mrd": kspace_files.ismrmrd,
    "a.cfl": kspace_files.bart,
    "a.npy": kspace_files.npy,
}
Whole = dict[str, Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return {name: writer(folder / name) for name, writer in WRITERS.items()}


def read(path: Path) -> list[np.ndarray]:
    """Every slice and its target, once from the file and once as a data set."""
    with open_kspace(path) as file:
        slices = [file[i] for i in range(len(file))]
        targets = [file.target(i) for i in range(len(file))]
        assert all(
            y.shape == file.shape[1:] and y.dtype == np.complex64 and np.isfinite(y).all() for y in slices
        )
        assert all(x is None or (x.ndim == 2 and np.isfinite(x).all()) for x in targets)
        assert file.mask is None or (file.mask.shape == (file.shape[3],) and file.mask.any())
        if file.header is not None:
            assert 1 <= min(file.header.encoded + file.header.recon) <= 65535
            assert file.header.spacing is None or (np.array(file.header.spacing) > 0).all()
            assert file.header.spacing is None or np.isfinite(file.header.spacing).all()
    dataset = SliceDataset(path)
    assert all(np.array_equal(dataset[i].kspace.numpy(), y) for i, y in enumerate(slices))
    dataset.close()
    return slices


@pytest.mark.parametrize("name", WRITERS)
def test_whole_files(name: str, whole: Whole) -> None:
    """The reader of the other tests finds what was written."""
    truth = kspace_files.K[:, :1] if name == "single.h5" else kspace_files.K
    np.testing.assert_allclose(read(whole[name]), truth, rtol=1e-6)


@pytest.mark.parametrize("name", [*WRITERS, "a.hdr"])
@fuzz(40, **DAMAGE)
def test_damaged_files(
    name: str, whole: Whole, tmp_path: Path, kind: str, at: float, count: int, fill: bytes
) -> None:
    original = whole["a.cfl" if name == "a.hdr" else name].with_name(name)
    if original.suffix in (".hdr", ".cfl"):
        for other in (".hdr", ".cfl"):
            (tmp_path / f"a{other}").write_bytes(original.with_suffix(other).read_bytes())
    path = tmp_path / name
    content = damage(original.read_bytes(), kind, at, count, fill)
    assume(not loops_in_hdf5(content))
    path.write_bytes(content)
    found = answer(read, path)
    if not isinstance(found, InputError):
        assert all(y.ndim == 3 for y in found)


@pytest.mark.parametrize("suffix", [".h5", ".mrd", ".npy", ".cfl", ".hdr", ""])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file(kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with guarded():
        path = place(tmp_path, kind, suffix)
        for reader in (read, SliceDataset, lambda path: load_mask(path, (H, W))):
            assert isinstance(answer(reader, path), InputError)


NUMBERS = st.sampled_from(
    ["-1", "0", "1", "7", "65536", "2147483648", "9" * 30, "nan", "1.5", "", "\x00", "x", "1_0", "٣"]
)


@fuzz(
    100,
    dims=st.lists(NUMBERS, max_size=20),
    first=st.sampled_from(["# Dimensions", "# Dimension", "", "\udcff"]),
)
def test_bart_headers(whole: Whole, tmp_path: Path, dims: list[str], first: str) -> None:
    (tmp_path / "a.cfl").write_bytes(whole["a.cfl"].read_bytes())
    (tmp_path / "a.hdr").write_bytes(f"{first}\n{' '.join(dims)}\n".encode(errors="surrogateescape"))
    answer(read, tmp_path / "a.cfl")
    answer(load_mask, tmp_path / "a.cfl", (H, W))


DTYPES = ["?", "i4", "f2", "f4", "F", "D", ">c8", "G", "S3", "O", "f4,f4", "i2,f4"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 10]), max_size=5).map(tuple)


def stored(dtype: str, shape: tuple[int, ...], value: float) -> np.ndarray:
    array = np.zeros(shape, dtype)
    if array.size and array.dtype.kind in "fc":
        array.flat[-1] = value
    return array


VALUES = st.sampled_from([1.0, np.nan, np.inf, 1e38, 1e39, 1e-45])


@fuzz(200, dtype=st.sampled_from(DTYPES), shape=SHAPES, value=VALUES)
def test_arrays_of_any_kind(tmp_path: Path, dtype: str, shape: tuple[int, ...], value: float) -> None:
    path = tmp_path / "a.npy"
    with np.errstate(over="ignore"):
        array = stored(dtype, shape, value)
    np.save(path, array)
    found = answer(read, path)
    if not isinstance(found, InputError):
        assert array.dtype.kind == "c"
        np.testing.assert_array_equal(found, array.reshape(np.shape(found)).astype(np.complex64))


@fuzz(
    200,
    name=st.sampled_from(["kspace", "mask", "reconstruction_rss", "ismrmrd_header"]),
    dtype=st.sampled_from([d for d in DTYPES if d not in "OG"]),
    shape=SHAPES,
    value=VALUES,
    kind=st.sampled_from(["dataset", "dataset", "dataset", "group", "missing", "empty", "link", "unwritten"]),
)
def test_fastmri_parts_of_any_kind(
    whole: Whole, tmp_path: Path, name: str, dtype: str, shape: tuple[int, ...], value: float, kind: str
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(whole["multi.h5"].read_bytes())
    with h5py.File(path, "r+") as file, np.errstate(over="ignore"):
        if name in file:
            del file[name]
        match kind:
            case "dataset":
                file[name] = stored(dtype, shape, value)
            case "group":
                file.create_group(name)
            case "empty":
                file[name] = h5py.Empty(np.dtype("f4"))
            case "link":
                file[name] = h5py.SoftLink("/nowhere")
            case "unwritten":
                file.create_dataset(name, (S, C, H, W), "F", chunks=(1, C, H, W))
    found = answer(read, path)
    if not isinstance(found, InputError) and name == "kspace":
        assert kind == "dataset"
        assert np.dtype(dtype).kind == "c"


FIELDS = ["flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample"]
FIELDS += [
    "encoding_space_ref",
    "slice",
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "contrast",
    "repetition",
]


@fuzz(
    60,
    field=st.sampled_from(FIELDS),
    value=st.integers(0, 65535),
    number=st.integers(0, 20),
    every=st.booleans(),
)
def test_ismrmrd_acquisitions(tmp_path: Path, field: str, value: int, number: int, every: bool) -> None:
    lines = kspace_files.lines()
    for i, (_, fields) in enumerate(lines):
        if every or i == number:
            fields[field] = value
    answer(read, kspace_files.ismrmrd(tmp_path / "a.mrd", lines))


SIZES = st.sampled_from([-1, 0, 1, 7, 10, 4096, 65535, 65536, 10**12, 10**400])


@pytest.mark.parametrize("name", ["multi.h5", "a.mrd"])
@fuzz(80, x=SIZES, y=SIZES, z=SIZES, center=SIZES, maximum=SIZES)
def test_headers_with_other_sizes(
    name: str, whole: Whole, tmp_path: Path, x: int, y: int, z: int, center: int, maximum: int
) -> None:
    """The encoded matrix of ISMRMRD files comes from the header: 65535² points are 34 GB for each coil."""
    matrix = f"<matrixSize><x>{H}</x><y>{W}</y><z>1</z>"
    header = HEADER.replace(matrix, f"<matrixSize><x>{x}</x><y>{y}</y><z>{z}</z>", 1)
    header = header.replace(f"<center>{W // 2}<", f"<center>{center}<", 1)
    header = header.replace(f"<maximum>{W - 1}<", f"<maximum>{maximum}<", 1)
    path = tmp_path / name
    path.write_bytes(whole[name].read_bytes())
    with h5py.File(path, "r+") as file:
        if name == "a.mrd":
            file["dataset/xml"][0] = header
        else:
            del file["ismrmrd_header"]
            file["ismrmrd_header"] = header
    answer(read, path)


@fuzz(40, shape=st.lists(st.sampled_from([3, 10**6, 2**31, 2**62]), min_size=4, max_size=4))
def test_huge_sizes_without_the_data(tmp_path: Path, shape: list[int]) -> None:
    for chunks in (None, (1, 1, 3, 3)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            try:
                file.create_dataset("kspace", shape, "F", chunks=chunks)
            except (ValueError, OSError):
                continue
        assert isinstance(answer(read, tmp_path / "a.h5"), InputError)


def test_no_payload_runs(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    np.save(tmp_path / "a.npy", np.array([[Trap(target)]], dtype=object), allow_pickle=True)
    assert isinstance(answer(read, tmp_path / "a.npy"), InputError)
    assert isinstance(answer(load_mask, tmp_path / "a.npy", (1, 1)), InputError)
    assert not target.exists()


@fuzz(
    100,
    dtype=st.sampled_from(DTYPES),
    shape=SHAPES,
    value=VALUES,
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)),
)
def test_masks_of_any_kind(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], value: float, size: tuple[int, int]
) -> None:
    with np.errstate(over="ignore"):
        array = stored(dtype, shape, value)
    np.save(tmp_path / "m.npy", array)
    found = answer(load_mask, tmp_path / "m.npy", size)
    if not isinstance(found, InputError):
        np.testing.assert_array_equal(found.pattern.numpy(), np.atleast_2d(array.real == 1))


PARTS = st.lists(
    st.one_of(st.integers(-2, 5), st.sampled_from([0.5, 0.2, -0.1, np.nan, np.inf, 1e300])), max_size=4
)


@fuzz(100, parts=PARTS, seed=st.sampled_from([0, 1, 2**40]))
def test_splits(tmp_path: Path, parts: list[float], seed: int) -> None:
    files = [tmp_path / f"{i}.h5" for i in range(6)]
    found = answer(split_volumes, files, parts, seed)
    if not isinstance(found, InputError):
        assert all(found)
        assert len({path for part in found for path in part}) == sum(map(len, found)) <= 6
    assert isinstance(answer(list_files, []), InputError)
