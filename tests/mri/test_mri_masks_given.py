"""Masks that are found in k-space or read from files, and what masking does to k-space."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from monarch_sciml.errors import InputError
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    apply_mask,
    central,
    draw_mask,
    find_acs,
    load_mask,
    mask_from_kspace,
)

COLUMNS = ["random", "equispaced", "equispaced-fraction", "magic", "magic-fraction"]


def bools(n: int, *true: int) -> torch.Tensor:
    pattern = torch.zeros(1, n, dtype=torch.bool)
    pattern[0, list(true)] = True
    return pattern


def kspace(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 31])
def test_the_centre_of_a_mask_is_found(n: int) -> None:
    for length in range(n + 1):
        pattern = bools(n, *range(n)[central(n, length)])
        assert find_acs(pattern) == ((1, length) if length else (0, 0))
        assert find_acs(pattern[0]) == find_acs(pattern)
        assert length == 0 or n // 2 in range(n)[central(n, length)]


@pytest.mark.parametrize("shape", [(12, 9), (7, 16), (11, 11)])
def test_the_centre_of_points_is_found(shape: tuple[int, int]) -> None:
    height, width = shape
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            pattern = torch.zeros(shape, dtype=torch.bool)
            pattern[central(height, rows), central(width, columns)] = True
            assert find_acs(pattern) == (rows, columns)


def test_a_line_through_the_centre_is_not_taken_for_the_block() -> None:
    pattern = torch.zeros(64, 64, dtype=torch.bool)
    pattern[central(64, 6), central(64, 5)] = True
    pattern[32] = True
    assert find_acs(pattern) == (6, 5)
    pattern[32, 32] = False
    assert find_acs(pattern) == (0, 0)


@pytest.mark.parametrize("kind", [*COLUMNS, "poisson"])
@pytest.mark.parametrize("shape", [(24, 30), (31, 37)])
def test_masks_survive_the_way_through_kspace_and_files(kind, shape, tmp_path: Path) -> None:
    mask = draw_mask(MaskConfig(kind, (3,), (0.2,)), shape, 11)
    data = apply_mask(kspace(3, *shape), mask)
    found = mask_from_kspace(data)
    assert torch.equal(found.pattern, mask.pattern)
    assert min(found.acs) >= min(mask.acs)
    assert found.acceleration == mask.acceleration
    assert torch.equal(mask_from_kspace(data[None].numpy()).pattern, mask.pattern)
    np.save(tmp_path / "mask.npy", mask.pattern.numpy())
    own = draw_mask(MaskConfig(mask_file=tmp_path / "mask.npy"), shape, None)
    assert torch.equal(own.pattern, mask.pattern)
    assert own.acs == found.acs


def test_masks_from_kspace_that_is_not_sampled_everywhere_else() -> None:
    data = kspace(2, 3, 8, 9)
    data[..., :2] = 0  # padding at the edge
    data[:, :, 5:] = 0  # a part of the readout
    data[0, :, :5, 3] = 0  # a column that one slice lacks
    data[:, :2, :5, 4] = 0  # and one that only the last coil has
    mask = mask_from_kspace(data)
    assert torch.equal(mask.pattern, bools(9, 2, 3, 4, 5, 6, 7, 8))
    assert mask.acs == (8, 6)
    data[:, :, 0, 8] = 0  # now it is a mask of points
    mask = mask_from_kspace(data)
    assert mask.pattern.shape == (8, 9)
    assert int(mask.pattern.sum()) == 5 * 7 - 1
    read_only = data.numpy()
    read_only.flags.writeable = False
    mask_from_kspace(read_only)  # without a warning
    data[..., 4] = 0
    assert mask_from_kspace(data).acs == (0, 0)


def test_kspace_without_a_mask() -> None:
    with pytest.raises(InputError, match=r"complex k-space .*found torch.float32 of shape \(2, 3, 4, 2\)"):
        mask_from_kspace(torch.zeros(2, 3, 4, 2))
    with pytest.raises(InputError, match="k-space with samples; found zeros only"):
        mask_from_kspace(kspace(2, 3, 4) * 0)
    with pytest.raises(InputError, match="finite k-space; found NaN"):
        mask_from_kspace(kspace(2, 3, 4) * torch.nan)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.complex64])
def test_masks_of_ones_own(dtype, tmp_path: Path) -> None:
    columns = np.array([0, 1, 0, 1, 1, 0, 1])
    points = np.outer([1, 0, 1, 1], columns)
    points[2] = columns
    for array, shape in ((columns, (1, 7)), (columns[None], (1, 7)), (points, (4, 7))):
        np.save(tmp_path / "mine.npy", array.astype(dtype))
        mask = load_mask(tmp_path / "mine.npy", (4, 7))
        assert mask.pattern.shape == shape
        assert torch.equal(mask.pattern, torch.from_numpy(np.atleast_2d(array) == 1))
        assert mask.acs == ((4, 2) if len(mask.pattern) == 1 else (1, 2))


def bart(path: Path, pattern: np.ndarray, header: str) -> None:
    pattern.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))
    path.with_suffix(".hdr").write_text(header)


@pytest.mark.parametrize("suffix", ["", ".cfl", ".hdr"])
def test_masks_of_bart(suffix: str, tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((5, 7)) < 0.5
    for dims in ("1 5 7 1 1 1 ", "5 7", "5 1 7", "5 7 1\n# Command\npoisson\n", "5 7\n# Files\n >mine\n"):
        bart(tmp_path / "mine", points, f"# Creator\nBART v1\n# Dimensions\n{dims}\n")
        assert torch.equal(load_mask(tmp_path / f"mine{suffix}", (5, 7)).pattern, torch.from_numpy(points))
    (tmp_path / "mine.hdr").write_text("# Dimensions\n1 5 8 1 1 1 \n")
    with pytest.raises(InputError, match=r"320 bytes for the dimensions in mine.hdr; found 280 in mine.cfl"):
        load_mask(tmp_path / f"mine{suffix}", (5, 7))
    (tmp_path / "mine.hdr").unlink()
    with pytest.raises(InputError, match=r"a mask file; found nothing at .*mine"):
        load_mask(tmp_path / f"mine{suffix}", (5, 7))


def test_columns_of_bart_lie_along_the_phase_encoding(tmp_path: Path) -> None:
    """Also of square k-space, where their number does not tell."""
    columns = np.array([0, 1, 1, 0, 1])
    for dims in ("1 5", "1 5 1 1", "1 1 5"):
        bart(tmp_path / "mine", columns, f"# Dimensions\n{dims}\n")
        assert load_mask(tmp_path / "mine", (5, 5)).pattern.tolist() == [columns.astype(bool).tolist()]
    for dims, found in (("5 1 1", r"\(5, 1\)"), ("1 1 1 5", r"\(1, 1, 5\)")):
        bart(tmp_path / "mine", columns, f"# Dimensions\n{dims}\n")
        with pytest.raises(InputError, match=rf"a mask of shape \(5,\), .* in mine; found {found}"):
            load_mask(tmp_path / "mine", (5, 5))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((7, 4)), r"of shape \(7,\), \(1, 7\) or \(4, 7\) in mine.npy; found \(7, 4\); transpose it"),
        (np.ones((7, 1)), r"found \(7, 1\); transpose it"),
        (np.ones(8), r"found \(8,\); make one for this k-space"),
        (np.ones((1, 4, 7)), r"found \(1, 4, 7\)"),
        (np.zeros(7), "keeps something in mine.npy; found zeros only"),
        (np.full(7, 255), "a mask of 0 and 1 in mine.npy; found other values .int64.; threshold it"),
        (np.full(7, np.nan), r"found other values .float64."),
        (np.full(7, "1"), r"found other values .<U1."),
        (np.array([None] * 7), r"a mask as .npy .*found mine.npy .ValueError: Object arrays"),
    ],
)
def test_masks_of_ones_own_that_do_not_fit(array, message, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", array)
    with pytest.raises(InputError, match=message):
        load_mask(tmp_path / "mine.npy", (4, 7))


def test_mask_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a mask file; found nothing at .*absent.npy"):
        load_mask(tmp_path / "absent.npy", (4, 7))
    for content in (b"", b"garbage", b"\x93NUMPY\x01\x00garbage", b"PK\x03\x04 cut short"):
        (tmp_path / "mine.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"a mask as .npy or BART .cfl; found mine.npy"):
            load_mask(tmp_path / "mine.npy", (4, 7))
    np.savez(tmp_path / "mine.npz", np.ones(7))
    with pytest.raises(InputError, match=r"a mask as .npy or BART .cfl; found mine.npz"):
        load_mask(tmp_path / "mine.npz", (4, 7))


# ------------------------------------------------------------------------------------------------ application


@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_masking_keeps_or_clears(kind) -> None:
    mask, data = draw_mask(MaskConfig(kind, (3,), (0.1,)), (20, 23), 4), kspace(2, 5, 20, 23)
    masked = apply_mask(data, mask)
    kept = mask.pattern.expand(20, 23)
    assert torch.equal(masked[..., kept], data[..., kept])
    assert not masked[..., ~kept].any()
    assert masked.dtype == torch.complex64
    assert torch.equal(apply_mask(masked, mask), masked)  # a projection
    for pattern in (mask.pattern, mask.pattern.float(), mask.pattern[None, None]):
        assert torch.equal(apply_mask(data, pattern), masked)


def test_zeros_are_positive_and_what_is_left_out_does_not_count() -> None:
    data = torch.view_as_complex(torch.full((4, 6, 2), -0.0))
    data[:, 1].fill_(complex(torch.nan, -torch.inf))
    masked = torch.view_as_real(apply_mask(data, bools(6, 0, 2)))
    assert not masked.any()
    assert not torch.signbit(masked).any()


def test_masking_passes_gradients_where_it_keeps() -> None:
    data = kspace(2, 3, 5).requires_grad_()
    apply_mask(data, bools(5, 1, 2)).abs().square().sum().backward()
    assert data.grad is not None
    assert torch.equal(data.grad != 0, bools(5, 1, 2).expand(2, 3, 5))


@pytest.mark.parametrize(
    ("padding", "columns"), [((1, 5), [1, 2, 4]), ((0, 6), [0, 1, 2, 4, 5]), ((-2, 3), [0, 1, 2])]
)
def test_padding(padding: tuple[int, int], columns: list[int]) -> None:
    masked = apply_mask(kspace(2, 3, 6), bools(6, 0, 1, 2, 4, 5), padding)
    assert torch.equal(masked != 0, bools(6, *columns).expand(2, 3, 6))


def test_masks_and_padding_that_do_not_fit() -> None:
    with pytest.raises(
        InputError, match=r"a mask that fits k-space of shape \(2, 3, 6\); found one of shape"
    ):
        apply_mask(kspace(2, 3, 6), bools(5, 0))
    with pytest.raises(InputError, match=r"found one of shape \(4, 1, 1, 6\)"):
        apply_mask(kspace(2, 3, 6), torch.ones(4, 1, 1, 6))
    for padding in ((3, 3), (6, 9), (4, 2)):
        with pytest.raises(InputError, match=r"padding .left, right. that leaves some of 6 columns"):
            apply_mask(kspace(2, 3, 6), bools(6, 0), padding)


def test_masks_travel_to_workers() -> None:
    mask = pickle.loads(pickle.dumps(Mask(bools(5, 2, 3), (4, 2))))
    assert torch.equal(mask.pattern, bools(5, 2, 3))
    assert (mask.center_lines, mask.acceleration) == (2, 2.5)
