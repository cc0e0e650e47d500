"""The image has the field of view of the header in pixels of k-space, whatever a scanner interpolates to."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kspace_files import fastmri, ismrmrd, lines

from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.header import NAMESPACE, parse_header, write_header
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct

Size = tuple[float, float]
ALL = MaskConfig(accelerations=(1.0,), center_fractions=(1.0,))


def space(name: str, matrix: Size, lengths: Size | None) -> str:
    sizes = f"<matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize>"
    fov = lengths and f"<fieldOfView_mm><x>{lengths[0]}</x><y>{lengths[1]}</y><z>5</z></fieldOfView_mm>"
    return f"<{name}>{sizes}{fov or ''}</{name}>"


def header(encoded: Size, encoded_fov: Size | None, recon: Size, fov: Size | None, limits: str = "") -> str:
    spaces = space("encodedSpace", encoded, encoded_fov) + space("reconSpace", recon, fov)
    return f'<ismrmrdHeader xmlns="{NAMESPACE}"><encoding>{spaces}{limits}</encoding></ismrmrdHeader>'


def oversampled(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """k-space (1, 1, 2 h, w) of an image (h, w) in the middle of twice the readout."""
    h, w = shape
    image = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    wide = np.zeros((1, 2 * h, w), np.complex64)
    wide[0, h // 2 : h // 2 + h] = image
    return FourierTransform(wide.shape)(torch.from_numpy(wide)).numpy()[None], image


def made(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """The image, and the size of its voxels."""
    config = {"sampling": ALL, "maps": "low-resolution", "quiet": True}
    reconstruct(ReconstructConfig(path, path.parent / "out", "zero-filled", **config))
    with h5py.File(path.parent / "out" / f"{path.stem}.h5") as file:
        return file["reconstruction"][0], tuple(file.attrs["spacing"])


@pytest.mark.parametrize(
    ("encoded", "encoded_fov", "recon", "fov", "shape", "voxel"),
    [
        # the same pixels, as in fastMRI: the recon matrix
        ((640, 368), (280, 161), (320, 320), (140, 140), (320, 320), (0.4375, 0.4375)),
        ((460, 180), (460, 180), (230, 180), (230, 180), (230, 180), (1, 1)),
        # lengths in whole mm: still the recon matrix
        ((640, 372), (284, 164), (320, 320), (142, 142), (320, 320), (284 / 640, 164 / 372)),
        # interpolated, along one axis and along both
        ((460, 180), (460, 180), (460, 360), (230, 180), (230, 180), (1, 1)),
        ((460, 180), (460, 180), (230, 360), (230, 180), (230, 180), (1, 1)),
        # fewer pixels than were measured: nothing is cut off, nothing averaged
        ((460, 180), (460, 180), (128, 128), (230, 180), (230, 180), (1, 1)),
        # phase oversampling, and pixels that are not square
        ((512, 300), (512, 375), (256, 200), (256, 250), (256, 200), (1, 1.25)),
        # a field of view beyond that of k-space
        ((64, 48), (64, 48), (128, 128), (128, 128), (64, 48), (1, 1)),
        # a length that is missing: matrix counts
        ((460, 180), None, (230, 180), (230, 180), (230, 180), (1, 1)),
        ((460, 180), None, (460, 360), (230, 180), (460, 180), (0.5, 1)),
        ((460, 180), (460, 180), (128, 128), None, (128, 128), None),
        ((460, 180), None, (230, 180), None, (230, 180), None),
    ],
)
def test_the_field_of_view_in_pixels_of_k_space(encoded, encoded_fov, recon, fov, shape, voxel):
    found = parse_header(header(encoded, encoded_fov, recon, fov))
    assert found.image_shape(encoded) == shape
    assert found.voxel(encoded) == (None if voxel is None else pytest.approx((*voxel, 5)))


@pytest.mark.parametrize(
    ("stored", "shape", "voxel"),
    [
        ((230, 180), (230, 180), (1, 1)),  # a readout without its oversampling: the same pixels
        ((920, 180), (460, 180), (0.5, 1)),  # filled up with zeros: the same field of view
        ((460, 90), (230, 90), (1, 2)),  # columns cut off: the same field of view
        ((460, 360), (230, 360), (1, 0.5)),
    ],
)
def test_k_space_that_is_not_the_encoded_matrix(stored, shape, voxel):
    found = parse_header(header((460, 180), (460, 180), (230, 180), (230, 180)))
    assert found.image_shape(stored) == shape
    assert found.voxel(stored) == (*voxel, 5)


@pytest.mark.parametrize("length", ["1e-300", "1e300", "0", "-1", "nan", "inf", "wide"])
def test_lengths_that_cannot_be_count_as_missing(length):
    xml = header((460, 180), (length, 180), (230, 180), (230, 180))
    assert parse_header(xml).encoded_field_of_view is None
    assert parse_header(header((460, 180), (460, 180), (230, 180), (length, 180))).field_of_view is None


def test_headers_written_here_have_the_same_pixels_in_both_spaces():
    found = parse_header(write_header((640, 368, 36), (320, 300), (160.0, 180.0, 4.5)))
    assert found.image_shape((640, 368)) == (320, 300)
    assert found.voxel((640, 368)) == pytest.approx(found.spacing)


@pytest.mark.parametrize("kind", ["fastmri", "ismrmrd"])
@pytest.mark.parametrize("recon", [(24, 20), (48, 40), (12, 10)])
def test_the_oversampled_readout_is_cut_whatever_the_recon_matrix(kind, recon, tmp_path):
    kspace, image = oversampled((24, 20))
    xml = header((48, 20), (48, 20), recon, (24, 20))
    if kind == "fastmri":
        path = fastmri(tmp_path / "a.h5", kspace, xml)
    else:
        path = ismrmrd(tmp_path / "a.h5", [(y, {**at, "center_sample": 24}) for y, at in lines(kspace)], xml)
    found, voxel = made(path)
    assert voxel == (1, 1, 5)
    np.testing.assert_allclose(found, image, rtol=1e-4)


def test_a_target_in_the_file_decides_the_size(tmp_path):
    kspace, _ = oversampled((24, 20))
    xml = header((48, 20), (48, 20), (24, 20), (24, 20))
    target = np.ones((1, 30, 16), np.float32)
    found, voxel = made(fastmri(tmp_path / "a.h5", kspace, xml, reconstruction_rss=target))
    assert found.shape == (30, 16)
    assert voxel == (1, 1, 5)


def test_columns_that_are_stored_are_not_taken_for_padding(tmp_path):
    """k-space cut to 20 of 28 encoded columns, 4 of which had been padding at either side."""
    kspace, image = oversampled((24, 20))
    steps = "<minimum>0</minimum><maximum>19</maximum><center>10</center>"
    limits = f"<encodingLimits><kspace_encoding_step_1>{steps}</kspace_encoding_step_1></encodingLimits>"
    found, voxel = made(
        fastmri(tmp_path / "a.h5", kspace, header((48, 28), (48, 20), (24, 20), (24, 20), limits))
    )
    np.testing.assert_allclose(found, image, rtol=1e-4)
    assert voxel == (1, 1, 5)
