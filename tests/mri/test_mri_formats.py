"""The same k-space comes out of every format; every mistake gives a message that says how to mend it."""

import contextlib
import multiprocessing
import os
import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import (
    HEADER,
    TARGET,
    WRITERS,
    C,
    H,
    K,
    S,
    W,
    bart,
    fastmri,
    ismrmrd,
    lines,
    noise,
    npy,
)

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.header import parse_header


@pytest.fixture(params=WRITERS)
def any_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return WRITERS[request.param](tmp_path)


def read(path: Path, **how: bool) -> np.ndarray:
    with open_kspace(path, **how) as file:
        return np.stack([file[i] for i in range(len(file))])


# ------------------------------------------------------------------------------------------- every format


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same(name: str, tmp_path: Path):
    with open_kspace(WRITERS[name](tmp_path)) as file:
        assert file.format == name
        assert file.shape == (S, C, H, W)
        assert len(file) == S
        assert file.multicoil
        for i in range(S):
            slice_ = file[i]
            assert slice_.dtype == np.complex64
            assert slice_.flags.c_contiguous
            assert slice_.flags.writeable
            np.testing.assert_array_equal(slice_, K[i])
        np.testing.assert_array_equal(file[-1], K[-1])
        assert file.has_target == (name == "fastmri")
        assert file.header == (parse_header(HEADER) if name in ("fastmri", "ismrmrd") else None)


def test_outside_ends_the_iteration(any_file: Path):
    file = open_kspace(any_file)
    np.testing.assert_array_equal(np.stack(list(file)), K)  # iterates until IndexError
    with pytest.raises(IndexError):
        file[S]


def test_several_slices_have_the_axes_of_one(any_file: Path, tmp_path: Path):
    single = open_kspace(fastmri(tmp_path / "single.h5", K[:, 0]))
    for chosen in (slice(0, 2), slice(None), slice(None, None, -2), slice(S, None)):
        np.testing.assert_array_equal(open_kspace(any_file)[chosen], K[chosen])
        np.testing.assert_array_equal(single[chosen], K[chosen, :1])


def test_a_slice_belongs_to_the_reader(any_file: Path):
    file = open_kspace(any_file)
    file[0][:] = 0
    np.testing.assert_array_equal(file[0], K[0])


def test_it_opens_again_after_closing_and_pickling(any_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(any_file.parent)
    file = open_kspace(any_file.name)
    copy = pickle.loads(pickle.dumps(file))
    file.close()
    monkeypatch.chdir("/")
    for again in (file, copy):
        np.testing.assert_array_equal(again[1], K[1])
        assert again.shape == file.shape


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_opens_the_file_for_itself(any_file: Path):
    context = multiprocessing.get_context("fork")
    file, ours = open_kspace(any_file), context.Queue()
    np.testing.assert_array_equal(file[0], K[0])
    child = context.Process(target=lambda: ours.put((file[1], file._opened().process)))
    child.start()
    array, process = ours.get(timeout=10)
    child.join()
    np.testing.assert_array_equal(array, K[1])
    assert process == child.pid
    np.testing.assert_array_equal(file[2], K[2])


def test_one_handle_and_none_after_closing(any_file: Path):
    def handles() -> int:
        links = [Path(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
        return sum(link.is_symlink() and os.readlink(link).startswith(str(any_file.parent)) for link in links)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("counts handles where Linux lists them")
    file = open_kspace(any_file)
    for _ in range(3):
        file[0]
    assert handles() <= 1
    file.close()
    assert handles() == 0


@pytest.mark.parametrize("name", WRITERS)
def test_nan_is_found_in_its_slice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = WRITERS[name](tmp_path)
    bad = K.copy()
    bad[1, 2, 3, 4] = np.nan
    {"fastmri": fastmri, "npy": npy, "bart": bart, "ismrmrd": lambda p, k: ismrmrd(p, lines(k))}[name](
        path, bad
    )
    file = open_kspace(path)
    np.testing.assert_array_equal(file[0], K[0])
    with pytest.raises(
        InputError, match=rf"finite numbers in k-space; found NaN or .* slice 1 of {path.name}"
    ):
        file[1]


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_truncated_files(any_file: Path, keep: float):
    os.truncate(any_file, int(keep * any_file.stat().st_size))
    with pytest.raises(InputError, match=rf"{any_file.name}"):
        read(any_file)


@pytest.mark.parametrize("seed", range(10))
def test_damaged_bytes_never_end_in_another_exception(any_file: Path, seed: int):
    rng = np.random.default_rng(seed)
    content = bytearray(any_file.read_bytes())
    for place in rng.integers(0, min(len(content), 4000), size=3):
        content[place] = rng.integers(256)
    any_file.write_bytes(content)
    with contextlib.suppress(InputError):  # some damage cannot be seen
        read(any_file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5", b"", r"a fastMRI or ISMRMRD file .*; found an empty file in a.h5"),
        ("a.h5", b"<!DOCTYPE html><html>", "a web page in a.h5; the download failed"),
        ("a.h5", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.dcm", b"garbage of some length", "bytes b'garbage ' in a.dcm; it is damaged or of another kind"),
        ("a.npy", b"\x93NUMPY\x01\x00garbage", "a readable .npy file; found a.npy of 15 bytes"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(200), "a readable HDF5 file"),
    ],
)
def test_files_that_are_something_else(name: str, content: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_kspace(tmp_path / name)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(InputError, match=r"a k-space file; found nothing at .*absent.h5; check the path"):
        open_kspace(tmp_path / "absent.h5")
    with pytest.raises(InputError, match=r"found the folder .*; name the files in it: .*\.h5"):
        open_kspace(tmp_path)


# ------------------------------------------------------------------------------------------------ fastMRI


def test_a_single_coil_gets_an_axis(tmp_path: Path):
    path = fastmri(tmp_path / "a.h5", K[:, 0], reconstruction_esc=TARGET, reconstruction_rss=2 * TARGET)
    with open_kspace(path) as file:
        assert file.shape == (S, 1, H, W)
        assert not file.multicoil
        np.testing.assert_array_equal(file[1], K[1, :1])
        np.testing.assert_array_equal(file.target(1), TARGET[1])


def test_the_target_of_several_coils(tmp_path: Path):
    with open_kspace(WRITERS["fastmri"](tmp_path)) as file:
        target = file.target(-1)
        assert target is not None
        assert target.dtype == np.float32
        np.testing.assert_array_equal(target, TARGET[-1])
    assert open_kspace(fastmri(tmp_path / "b.h5", reconstruction_esc=TARGET)).target(0) is None


def test_a_test_file_has_a_mask_and_attributes(tmp_path: Path):
    mask = np.array([0, 1, 0, 1, 1, 0, 1])
    path = fastmri(
        tmp_path / "a.h5", mask=mask, acceleration=4, norm=np.float32(0.5), patient_id=b"x", v=[1, 2]
    )
    with open_kspace(path) as file:
        assert file.mask is not None
        assert file.mask.dtype == bool
        np.testing.assert_array_equal(file.mask, mask.astype(bool))
        assert file.attributes == {"acceleration": 4, "norm": 0.5, "patient_id": "x"}
        assert {type(value) for value in file.attributes.values()} == {int, float, str}


def test_a_header_is_not_needed(tmp_path: Path):
    with open_kspace(fastmri(tmp_path / "a.h5", header=None)) as file:
        assert file.header is None
        assert file.attributes == {}


def test_a_damaged_header_can_be_left_aside(tmp_path: Path):
    path = fastmri(tmp_path / "a.h5", header=re.sub("<reconSpace>.*</reconSpace>", "", HEADER))
    remedy = r"a header without it in a.h5; go on without its header: --no-header \(header=False in Python\)"
    with pytest.raises(InputError, match=rf"encoding/reconSpace/matrixSize/x .*{remedy}"):
        open_kspace(path)
    np.testing.assert_array_equal(read(path, header=False), K)
    path = fastmri(tmp_path / "a.h5", header=HEADER[:-5])
    with pytest.raises(InputError, match=r"found damaged XML .* in a.h5; go on .*--no-header"):
        open_kspace(path)


def test_double_precision_becomes_single(tmp_path: Path):
    assert read(fastmri(tmp_path / "a.h5", K.astype(np.complex128))).dtype == np.complex64
    np.testing.assert_array_equal(read(npy(tmp_path / "a.npy", K.astype(np.complex128))), K)


@pytest.mark.parametrize(
    ("kspace", "more", "message"),
    [
        (K[0, 0], {}, r"'kspace' of \(slices, coils, H, W\) or .*; found shape \(10, 7\) in a.h5"),
        (K[None], {}, r"found shape \(1, 3, 4, 10, 7\) in a.h5"),
        (K.real, {}, r"'kspace' of complex numbers; found float32 in a.h5; save array\[..., 0\] \+ 1j"),
        (
            K.view([("real", "<f4"), ("imag", "<f4")]),
            {},
            r"found .*imag.* in a.h5; save array\['real'\] \+ 1j \* array\['imag'\] if",
        ),
        (K[:0], {}, r"at least one slice.* found shape \(0, 4, 10, 7\) \(slices, coils, H, W\) in a.h5"),
        (K, {"mask": np.ones(W + 1)}, "a mask of 7 columns, as k-space has; found 8 in a.h5"),
        (K, {"reconstruction_rss": TARGET[1:]}, r"a target of 3 real images .*; found float32 \(2, 6, 5\)"),
        (K, {"reconstruction_rss": TARGET + 0j}, r"a target of 3 real images .*; found complex64"),
    ],
)
def test_arrays_that_do_not_fit(kspace: np.ndarray, more: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        open_kspace(fastmri(tmp_path / "a.h5", kspace, **more))


def test_hdf5_of_another_kind(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["reconstruction"] = TARGET
    with pytest.raises(InputError, match=r"a dataset 'kspace' .*; found reconstruction in a.h5; rename"):
        open_kspace(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("kspace")
    with pytest.raises(InputError, match=r"a dataset 'kspace'"):
        open_kspace(tmp_path / "a.h5")


def test_nan_in_the_target(tmp_path: Path):
    bad = TARGET.copy()
    bad[2, 0, 0] = np.inf
    file = open_kspace(fastmri(tmp_path / "a.h5", reconstruction_rss=bad))
    file.target(1)
    with pytest.raises(InputError, match=r"finite numbers in the target; .*slice 2 of a.h5"):
        file.target(2)


def test_damage_found_while_reading(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset(
            "kspace", data=K, chunks=(1, C, H, W), compression="gzip", fletcher32=True
        )
        offset = array.id.get_chunk_info(2).byte_offset
    with (tmp_path / "a.h5").open("r+b") as stream:
        stream.seek(offset + 40)
        stream.write(b"damage")
    file = open_kspace(tmp_path / "a.h5")
    np.testing.assert_array_equal(file[0], K[0])
    with pytest.raises(InputError, match=r"a readable fastmri file; found a.h5"):
        file[2]


# ---------------------------------------------------------------------------------------------------- npy


@pytest.mark.parametrize(("shape", "multicoil"), [((H, W), False), ((C, H, W), True), ((S, C, H, W), True)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_axes(shape: tuple[int, ...], multicoil: bool, order: str, tmp_path: Path):
    array = noise(*shape)
    path = npy(tmp_path / "a.npy", np.asarray(array, order=order))
    with open_kspace(path) as file:
        assert file.shape == (1, 1, 1, 1)[: 4 - len(shape)] + shape
        assert file.multicoil is multicoil
    np.testing.assert_array_equal(read(path).reshape(shape), array)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (K.real, r"expected k-space of complex numbers; found float32 in a.npy; .*array\[..., 0\] \+ 1j"),
        (K[None], r"\(slices, coils, H, W\), \(coils, H, W\) or \(H, W\); found shape \(1, 3"),
        (K[:0], "at least one slice"),
    ],
)
def test_npy_that_does_not_fit(array: np.ndarray, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        open_kspace(npy(tmp_path / "a.npy", array))


class Trap:
    """Would create a file when unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_nothing_is_unpickled(tmp_path: Path):
    target = tmp_path / "executed"
    np.save(tmp_path / "trap.npy", np.array([Trap(target)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"found pickled Python objects in trap.npy, .*never loaded"):
        open_kspace(tmp_path / "trap.npy")
    assert not target.exists()
