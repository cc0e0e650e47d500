"""ISMRMRD: every readout at its place, what is not the image left out, other kinds of scans refused."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import HEADER, C, H, K, Line, S, W, ismrmrd, lines, noise

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.header import parse_header, write_header
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct


def read(path: Path) -> np.ndarray:
    with open_kspace(path) as file:
        return np.stack([file[i] for i in range(len(file))])


def flag(*bits: int) -> int:
    return sum(1 << (bit - 1) for bit in bits)


def changed(lines: list[Line], **fields: int) -> list[Line]:
    return [(samples, {**head, **fields}) for samples, head in lines]


def encoded(x: int, y: int, center: int, maximum: int) -> str:
    header = HEADER.replace(f"<x>{H}</x><y>{W}</y>", f"<x>{x}</x><y>{y}</y>")
    limits = f"<maximum>{W - 1}</maximum><center>{W // 2}</center>"
    assert limits in header
    return header.replace(limits, f"<maximum>{maximum}</maximum><center>{center}</center>")


@pytest.mark.parametrize(("y", "center"), [(7, 3), (12, 2), (13, 1), (9, 4), (8, 3)])
def test_zero_frequency_lies_in_the_middle(y: int, center: int, tmp_path: Path):
    path = ismrmrd(tmp_path / "a.h5", header=encoded(H, y, center, W - 1))
    left, right = parse_header(encoded(H, y, center, W - 1)).padding
    kspace = read(path)
    assert kspace.shape == (S, C, H, y)
    np.testing.assert_array_equal(kspace[..., y // 2], K[..., center])
    np.testing.assert_array_equal(kspace[..., left:right], K)
    assert np.count_nonzero(kspace) == np.count_nonzero(K)


@pytest.mark.parametrize(("x", "center"), [(10, 0), (10, 5), (16, 2), (17, 5), (15, 3)])
def test_a_partial_echo(x: int, center: int, tmp_path: Path):
    path = ismrmrd(tmp_path / "a.h5", changed(lines(), center_sample=center), encoded(x, W, W // 2, W - 1))
    kspace, start = read(path), 0 if x == H else x // 2 - center
    np.testing.assert_array_equal(kspace[:, :, start : start + H], K)
    assert np.count_nonzero(kspace) == np.count_nonzero(K)


def test_short_readouts_have_to_say_where_zero_frequency_is(tmp_path: Path):
    """0 is what it is where nobody wrote it: libraries begin with that."""
    unset = changed(lines(), center_sample=0)
    message = (
        "center_sample of the acquisitions; found 0 in all readouts, of fewer samples than the 16 encoded"
    )
    with pytest.raises(InputError, match=message):
        read(ismrmrd(tmp_path / "a.h5", unset, encoded(16, W, W // 2, W - 1)))


def image_and_kspace(x: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright block off the middle, the same in every coil and slice, in x rows; and its k-space."""
    image = np.zeros((x, W), np.float32)
    image[x // 2 - 3 : x // 2 + 2, 2:6] = 1
    shifted = np.fft.ifftshift(image)
    kspace = np.fft.fftshift(np.fft.fft2(shifted, norm="ortho")).astype(np.complex64)
    return image, np.broadcast_to(kspace, (S, C, x, W))


def oversampled(part: float) -> str:
    """Encoded twice as long as ``H``; the image's field of view is this ``part`` of the encoded one."""
    header = write_header((2 * H, W, S), (H, W), (10.0, 7.0, 3.0))
    assert "<x>20.0</x>" in header
    return header.replace("<x>20.0</x>", f"<x>{10 / part}</x>")


@pytest.mark.parametrize("part", [0.5, 0.503])
def test_readouts_written_without_their_oversampling_are_those_of_the_image(part: float, tmp_path: Path):
    """The header still has the encoded matrix; the image is neither stretched nor blurred."""
    image, kspace = image_and_kspace(H)
    path = ismrmrd(tmp_path / "a.h5", lines(kspace), oversampled(part))
    np.testing.assert_array_equal(read(path), kspace)
    settings = {"maps": "low-resolution", "sampling": MaskConfig(accelerations=(1.0,)), "quiet": True}
    reconstruct(ReconstructConfig((path,), tmp_path / "out", "zero-filled", **settings))
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert file["reconstruction"].shape == (S, H, W)
        found = file["reconstruction"][0]
    assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.99
    assert parse_header(oversampled(part)).voxel((H, W)) == pytest.approx((0.5 / part, 1, 3))


@pytest.mark.parametrize(
    ("part", "changes", "shorter"),
    [
        (0.52, {}, 0),  # some other part of the field of view
        (1.0, {}, 0),  # a low resolution, in the same field of view
        (0.5, {"center_sample": H // 2 - 1}, 0),  # a partial echo
        (0.5, {}, 2),  # one readout of another length
    ],
)
def test_other_short_readouts_lie_in_the_encoded_matrix(part, changes, shorter, tmp_path: Path):
    some = changed(lines(), **changes)
    samples, head = some[-1]
    some[-1] = samples[:, shorter:], {**head, "center_sample": head["center_sample"] - shorter}
    kspace = read(ismrmrd(tmp_path / "a.h5", some, oversampled(part)))
    start = H - some[0][1]["center_sample"]
    np.testing.assert_array_equal(kspace[:-1, :, start : start + H], K[:-1])
    assert kspace.shape == (S, C, 2 * H, W)


def test_discarded_samples_are_zero(tmp_path: Path):
    kspace = read(ismrmrd(tmp_path / "a.h5", changed(lines(), discard_pre=2, discard_post=1)))
    np.testing.assert_array_equal(kspace[:, :, 2:-1], K[:, :, 2:-1])
    assert not kspace[:, :, :2].any()
    assert not kspace[:, :, -1].any()


def test_repeated_lines_are_averaged(tmp_path: Path):
    twice = lines(K + 1) + [line for line in changed(lines(K - 1), average=1) if line[1]["slice"] != 1]
    kspace = read(ismrmrd(tmp_path / "a.h5", twice))
    np.testing.assert_allclose(kspace[[0, 2]], K[[0, 2]], atol=1e-6)
    np.testing.assert_array_equal(kspace[1], K[1] + 1)


def test_any_number_of_repetitions(tmp_path: Path):
    many = [line for n in range(-15, 16) for line in changed(lines(K + n), average=n + 15)]
    np.testing.assert_allclose(read(ismrmrd(tmp_path / "a.h5", many)), K, atol=1e-5)


def test_lines_never_measured_are_zero(tmp_path: Path):
    kspace = read(
        ismrmrd(tmp_path / "a.h5", [line for line in lines() if line[1]["kspace_encode_step_1"] != 2])
    )
    assert not kspace[..., 2].any()
    np.testing.assert_array_equal(np.delete(kspace, 2, axis=-1), np.delete(K, 2, axis=-1))


@pytest.mark.parametrize("bit", [19, 20, 23, 24, 26, 27, 28, 29, 30, 31])
def test_what_is_not_the_image_is_left_out(bit: int, tmp_path: Path):
    other = changed([(noise(C + 1, 5), {})], flags=flag(bit, 63))
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", other + lines())), K)


def test_calibration_that_is_also_imaging_counts(tmp_path: Path):
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", changed(lines(), flags=flag(20, 21)))), K)
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", changed(lines(), flags=flag(21)))), K)


@pytest.mark.parametrize("mode", ["embedded", "separate", "external"])
def test_lines_of_an_embedded_calibration_are_lines_of_the_image(mode: str, tmp_path: Path):
    """The scanner marks those between its undersampled ones as calibration alone; others look different."""
    parallel = f"<parallelImaging><calibrationMode>{mode}</calibrationMode></parallelImaging>"
    header = HEADER.replace("</encoding>", f"{parallel}</encoding>")
    between = {2, 4}
    some = [
        (samples, {**head, "flags": flag(20) if head["kspace_encode_step_1"] in between else 0})
        for samples, head in lines()
        if head["kspace_encode_step_1"] % 2 or head["kspace_encode_step_1"] in between
    ]
    kspace = read(ismrmrd(tmp_path / "a.h5", some, header))
    kept = [1, 2, 3, 4, 5] if mode == "embedded" else [1, 3, 5]
    np.testing.assert_array_equal(kspace[..., kept], K[..., kept])
    assert np.count_nonzero(kspace) == K[..., kept].size


def test_another_encoding_is_left_out(tmp_path: Path):
    other = changed([(noise(C, 5), {})], encoding_space_ref=1)
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", other + lines())), K)


def test_slices_may_be_missing_and_the_group_have_any_name(tmp_path: Path):
    some = [line for line in lines() if line[1]["slice"] != 1]
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", some, group="scan")), K[[0, 2]])


def without_limits(header: str) -> str:
    return re.sub("<kspace_encoding_step_1>.*</kspace_encoding_step_1>", "", header)


def test_without_limits_steps_are_those_of_the_encoded_matrix(tmp_path: Path):
    """The schema does not ask for them."""
    np.testing.assert_array_equal(read(ismrmrd(tmp_path / "a.h5", header=without_limits(HEADER))), K)
    beyond = ismrmrd(tmp_path / "b.h5", header=without_limits(encoded(H, W - 1, 0, 0)))
    with pytest.raises(
        InputError, match="inside the encoded matrix 10 × 6; found samples 0 … 9 of line 6 in"
    ):
        read(beyond)


@pytest.mark.parametrize(
    ("acquisitions", "header", "message"),
    [
        (
            lines(),
            HEADER.replace("cartesian", "radial"),
            "Cartesian k-space; found a trajectory 'radial' in a.h5",
        ),
        (lines(), HEADER.replace("<z>1</z>", "<z>8</z>", 1), "two-dimensional slices; found 8 partitions in"),
        (lines() + changed(lines(), kspace_encode_step_2=3), HEADER, "slices; found 4 partitions in a.h5"),
        (
            lines() + changed(lines(), contrast=1),
            HEADER,
            "one image per slice; found 2 values of contrast in",
        ),
        (
            lines() + changed(lines(), repetition=4),
            HEADER,
            "found 2 values of repetition in a.h5; write one file",
        ),
        (changed(lines(), flags=flag(22)), HEADER, "one direction; found reversed ones in a.h5"),
        (changed(lines(), flags=flag(19)), HEADER, "acquisitions of the image; found none among 21 in a.h5"),
        ([], HEADER, "acquisitions of the image; found none among 0"),
        ([*lines(), (noise(2, H), {})], HEADER, r"equally many coils in all acquisitions; found \[2, 4\] in"),
        (
            lines(),
            encoded(H, 6, 3, 5),
            r"inside the encoded matrix 10 × 6; found samples 0 … 9 of line 6 in acq",
        ),
        (
            lines(),
            encoded(8, W, 3, 6),
            r"inside the encoded matrix 8 × 7; found samples -1 … 8 of line 0 in acq",
        ),
        (lines(), HEADER[:-5], "found damaged XML .* in a.h5; repair it: the positions of the lines follow"),
    ],
)
def test_scans_that_are_refused(acquisitions: list[Line], header: str, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        read(ismrmrd(tmp_path / "a.h5", acquisitions, header))


def test_files_of_the_ismrmrd_package(tmp_path: Path):
    package = pytest.importorskip("ismrmrd")
    with package.Dataset(str(tmp_path / "a.h5")) as dataset:
        dataset.write_xml_header(HEADER.encode())
        for samples, fields in lines():
            acquisition = package.Acquisition.from_array(np.ascontiguousarray(samples))
            acquisition.center_sample = H // 2
            acquisition.idx.slice, acquisition.idx.kspace_encode_step_1 = (
                fields["slice"],
                fields["kspace_encode_step_1"],
            )
            dataset.append_acquisition(acquisition)
    np.testing.assert_array_equal(read(tmp_path / "a.h5"), K)
    with package.Dataset(str(ismrmrd(tmp_path / "b.h5")), mode="r") as dataset:  # and it reads ours
        np.testing.assert_array_equal(dataset.read_acquisition(4).data, K[1, :, :, 1])
