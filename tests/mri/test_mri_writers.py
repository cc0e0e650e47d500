"""What is written is read back, says that it is not for clinical use, and is there whole or not at all."""

import gzip
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from kspace_files import HEADER, TARGET, C, H, K, S, W

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.header import parse_header
from monarch_sciml.mri.writers import NOTICE, save_nifti, save_png, save_reconstruction, write_volume

# ----------------------------------------------------------------------------------------- reconstructions


def reconstruct(path: Path, images: Iterable[np.ndarray]) -> None:
    with save_reconstruction(path, S, (6, 5)) as write:
        for image in images:
            write(image)


@pytest.mark.parametrize(
    "kind", [np.asarray, torch.from_numpy, lambda a: torch.from_numpy(a).requires_grad_()]
)
def test_slices_stream_into_a_file(kind: Callable[[np.ndarray], Any], tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.h5"
    with save_reconstruction(path, S, (6, 5), {"method": "zero-filled", "seconds": 1.5}) as write:
        for image in TARGET:
            write(kind(image))
            assert not path.exists()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["reconstruction"], TARGET)
        assert file["reconstruction"].dtype == np.float32
        assert dict(file.attrs) == {"method": "zero-filled", "seconds": 1.5, "notice": NOTICE}
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]


def test_the_notice_cannot_be_replaced(tmp_path: Path):
    with save_reconstruction(tmp_path / "a.h5", 1, (6, 5), {"notice": "none"}) as write:
        write(TARGET[0])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["notice"] == NOTICE == "Research use only, not for clinical use"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (TARGET[:2], "expected 3 slices in a.h5; found only 2; write every slice"),
        ([*TARGET, TARGET[0]], "expected 3 slices in a.h5; found one more"),
        ([TARGET[0].T], r"expected shape \(6, 5\) for slice 0 of a.h5; found \(5, 6\)"),
        ([TARGET[0], TARGET[1] + 0j], "real numbers in slice 1 of a.h5; found complex64; pass the magnitude"),
        ([TARGET[0], np.full((6, 5), np.nan)], "finite numbers in slice 1 of a.h5"),
        ([np.full((6, 5), 1e300)], "finite numbers in slice 0 of a.h5"),
    ],
)
def test_nothing_is_left_of_a_reconstruction_that_failed(images: Any, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        reconstruct(tmp_path / "a.h5", images)
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_if_writing_is_interrupted(tmp_path: Path):
    (tmp_path / "a.h5").write_text("precious")

    def interrupted() -> Iterator[np.ndarray]:
        yield TARGET[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(tmp_path / "a.h5", interrupted())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.h5", "precious")]


def test_a_folder_is_not_a_file(tmp_path: Path):
    with pytest.raises(InputError, match="the name of a file; found the folder"):
        save_png(tmp_path, TARGET[0])


# ------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize("coils", [True, False])
def test_a_volume_is_read_back(coils: bool, tmp_path: Path):
    kspace = K if coils else K[:, 0]
    write_volume(
        tmp_path / "a.h5", torch.from_numpy(kspace), TARGET, acquisition="AXT2", patient_id="p", header=HEADER
    )
    with open_kspace(tmp_path / "a.h5") as file:
        assert file.format == "fastmri"
        assert file.multicoil is coils
        np.testing.assert_array_equal(file[1].reshape(kspace[1].shape), kspace[1])
        np.testing.assert_array_equal(file.target(2), TARGET[2])
        assert file.header == parse_header(HEADER)
        assert file.attributes["acquisition"] == "AXT2"
        assert file.attributes["patient_id"] == "p"
        assert file.attributes["max"] == TARGET.max()
        assert file.attributes["norm"] == pytest.approx(np.sqrt((TARGET.astype(float) ** 2).sum()))
    with h5py.File(tmp_path / "a.h5") as file:
        name = "reconstruction_rss" if coils else "reconstruction_esc"
        assert set(file) == {"kspace", "ismrmrd_header", name}
        assert file["kspace"].dtype == np.complex64
        assert isinstance(file["ismrmrd_header"][()], bytes)


def test_arrays_that_cannot_be_written_to_and_conjugate_views(tmp_path: Path):
    frozen = K.copy()
    frozen.setflags(write=False)
    write_volume(tmp_path / "a.h5", frozen)
    write_volume(tmp_path / "b.h5", torch.from_numpy(K).conj())
    np.testing.assert_array_equal(open_kspace(tmp_path / "a.h5")[0], K[0])
    np.testing.assert_array_equal(open_kspace(tmp_path / "b.h5")[0], K[0].conj())


def test_a_test_volume(tmp_path: Path):
    mask = np.array([0, 1, 0, 1, 1, 0, 1], bool)
    more = {"acceleration": 4, "num_low_frequency": 2}
    write_volume(tmp_path / "a.h5", K * mask, mask=mask, attributes=more)
    with open_kspace(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file.mask, mask)
        assert not file.has_target
        assert file.attributes == {**more, "acquisition": "", "patient_id": ""}
        assert file.header is not None
        assert file.header.recon == (H, W, 1)
        assert file.header.padding == (0, W)


@pytest.mark.parametrize(
    ("kspace", "more", "message"),
    [
        (K.real, {}, r"complex k-space .*; found float32 \(3, 4, 10, 7\)"),
        (K[0, 0], {}, r"complex k-space .*; found complex64 \(10, 7\)"),
        (K[:0], {}, r"complex k-space .*; found complex64 \(0, 4"),
        (K * np.nan, {}, "finite k-space"),
        (K, {"target": TARGET[:2]}, r"a target \(3, h, w\); found shape \(2, 6, 5\)"),
        (K, {"target": TARGET[0]}, r"a target \(3, h, w\); found shape \(6, 5\)"),
        (K, {"target": TARGET + 0j}, "real numbers in the target"),
        (K, {"mask": np.ones(H)}, r"a mask of shape \(7,\); found \(10,\)"),
        (K, {"mask": np.zeros(W)}, "zeros outside the mask; .*; multiply it by the mask"),
        (K, {"header": "<xml/>"}, "the element encoding in the ISMRMRD header"),
    ],
)
def test_volumes_that_are_not_written(kspace: np.ndarray, more: dict, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        write_volume(tmp_path / "a.h5", kspace, **more)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- pictures


def test_png(tmp_path: Path):
    from PIL import Image

    ramp = np.linspace(0, 1, 5 * 1001).reshape(5, 1001)
    save_png(tmp_path / "a.png", ramp)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
        assert picture.mode == "L"
        assert picture.info["Comment"] == NOTICE
    assert pixels.shape == (5, 1001)
    expected = np.round(255 * np.clip(ramp / np.percentile(ramp, 99.9), 0, 1))
    assert np.abs(pixels.astype(int) - expected).max() <= 1  # rounding in single precision
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 255


@pytest.mark.parametrize(
    ("image", "window", "grey"),
    [
        (np.array([[-1.0, 0.0], [1.0, 2.0]]), (0.0, 1.0), [[0, 0], [255, 255]]),
        (np.array([[0.0, 1.0], [2.0, 4.0]]), (0.0, 4.0), [[0, 64], [128, 255]]),
        (np.array([[-1.0, 1.0], [0.0, 3.0]]), (-1.0, 3.0), [[0, 128], [64, 255]]),
        (np.zeros((2, 2)), None, [[0, 0], [0, 0]]),
        (torch.tensor([[0, 1], [2, 4]]), (0.0, 4.0), [[0, 64], [128, 255]]),
    ],
)
def test_png_window(image: Any, window: tuple[float, float] | None, grey: list, tmp_path: Path):
    from PIL import Image

    save_png(tmp_path / "a.png", image, window)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), grey)


@pytest.mark.parametrize(
    ("image", "window", "message"),
    [
        (TARGET, None, r"an image \(h, w\); found shape \(3, 6, 5\)"),
        (TARGET[0] + 0j, None, "real numbers in the image; found complex"),
        (TARGET[0] * np.nan, None, "finite numbers in the image"),
        (TARGET[0], (1.0, 1.0), r"low < high; found \(1.0, 1.0\)"),
    ],
)
def test_pictures_that_are_not_written(image: np.ndarray, window: Any, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        save_png(tmp_path / "a.png", image, window)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.nii", "b.nii.gz"])
def test_nifti(name: str, tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    save_nifti(tmp_path / name, TARGET, (2.0, 3.0, 4.5))
    nifti = nibabel.load(tmp_path / name)
    assert nifti.shape == (6, 5, S)
    for s, h, w in np.ndindex(TARGET.shape):
        assert nifti.dataobj[h, w, s] == TARGET[s, h, w]
    assert nifti.header.get_zooms() == (2.0, 3.0, 4.5)
    assert nifti.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(nifti.affine, np.diag([2.0, 3.0, 4.5, 1.0]))
    assert bytes(nifti.header["descrip"]).rstrip(b"\0").decode() == NOTICE
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_same_volume_gives_the_same_nifti(tmp_path: Path):
    pytest.importorskip("nibabel")
    save_nifti(tmp_path / "a.nii", TARGET, (1.0, 1.0, 1.0))
    save_nifti(tmp_path / "a.nii.gz", TARGET, (1.0, 1.0, 1.0))
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert gzip.decompress(content) == (tmp_path / "a.nii").read_bytes()
    assert content[4:8] == bytes(4)  # no time of day


@pytest.mark.parametrize(
    ("name", "volume", "spacing", "message"),
    [
        ("a.png", TARGET, (1, 1, 1), "ending in .nii or .nii.gz; found a.png"),
        ("a.nii", TARGET[0], (1, 1, 1), r"a volume \(slices, h, w\); found shape \(6, 5\)"),
        ("a.nii", TARGET, (1, 0, 1), r"three lengths > 0 in mm; found spacing \(1, 0, 1\)"),
        ("a.nii", TARGET, (1, 1, np.nan), r"three lengths > 0 in mm; found spacing \(1, 1, nan\)"),
        ("a.nii", TARGET, (1, np.inf, 1), r"three lengths > 0 in mm; found spacing \(1, inf, 1\)"),
        ("a.nii", TARGET + 0j, (1, 1, 1), "real numbers in the volume"),
    ],
)
def test_nifti_that_is_not_written(name: str, volume: np.ndarray, spacing: Any, message: str, tmp_path: Path):
    pytest.importorskip("nibabel")
    with pytest.raises(InputError, match=message):
        save_nifti(tmp_path / name, volume, spacing)
    assert not list(tmp_path.iterdir())


def test_shapes_of_the_helper_are_all_different():
    assert len({S, C, H, W, *TARGET.shape[1:]}) == 6
