"""BART's pair of files: the order of its dimensions, its header, and what is not a set of planes."""

from pathlib import Path

import numpy as np
import pytest
from kspace_files import C, H, K, S, W, bart

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.names import check_names


def read(path: Path) -> np.ndarray:
    with open_kspace(path) as file:
        return np.stack([file[i] for i in range(len(file))])


@pytest.mark.parametrize("name", ["my.scan", "my.scan.cfl", "my.scan.hdr"])
def test_either_name_of_the_pair(name: str, tmp_path: Path):
    bart(tmp_path / "my.scan.cfl")
    np.testing.assert_array_equal(read(tmp_path / name), K)


def test_dots_in_a_name_without_an_ending(tmp_path: Path):
    """Outputs have the name of the pair, whichever way it is named."""
    names = ["scan.1", "scan.2"]
    for name in names:
        bart(tmp_path / f"{name}.cfl")
    for ending in ("", ".cfl", ".hdr"):
        outputs = check_names([tmp_path / f"{name}{ending}" for name in names], tmp_path / "out")
        assert [path.name for path in outputs] == ["scan.1.h5", "scan.2.h5"]
    both = [tmp_path / "scan.1.cfl", tmp_path / "scan.1.hdr"]  # what scan* finds
    with pytest.raises(InputError, match=r"files of different names.*; name BART's pair once"):
        check_names(both, tmp_path / "out")


@pytest.mark.parametrize(
    "dims",
    [[H, W, 1, C], [1, H, W, C], [H, 1, W, C], [H, W, 1, C, *[1] * 12]],
    ids=lambda dims: str(dims[:4]),
)
def test_bart_planes(dims: list[int], tmp_path: Path):
    np.testing.assert_array_equal(read(bart(tmp_path / "a", K[:1], dims)), K[:1])


def test_bart_element_by_element(tmp_path: Path):
    """BART's rule, restated: element (i0, i1, i2, i3) lies at i0 + n0 (i1 + n1 (i2 + n2 i3))."""
    n0, n1, n3 = 3, 2, 2
    (tmp_path / "a.hdr").write_text(f"# Dimensions\n{n0} {n1} 1 {n3}\n")
    np.arange(n0 * n1 * n3, dtype=np.complex64).tofile(tmp_path / "a.cfl")
    kspace = read(tmp_path / "a")
    assert kspace.shape == (1, n3, n0, n1)
    for i0, i1, i3 in np.ndindex(n0, n1, n3):
        assert kspace[0, i3, i0, i1] == i0 + n0 * (i1 + n1 * i3)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (
            [H, W, 1, C, 1, 1, 1, 1, 1, 1, 1, 1, 1, S + 1],
            "8960 bytes for the dimensions in a.hdr; found 6720 in a.cfl",
        ),
        ([H, W, 1, C, S], r"found 3 along dimension 4 \(MAPS\) in a.hdr; take one: bart slice 4 0"),
        ([H, W, 1, C, 1, 1, 1, 1, 1, 1, S], r"found 3 along dimension 10 \(TIME\)"),
        ([H, W, S, C], r"two-dim.*; found \[10, 7, 3\] in a.hdr; transform the readout.* 0 13"),
        ([0, W, 1, C], r"0 bytes for the dimensions in a.hdr; found 6720 in a.cfl"),
        ([-H, W, 1, -C, 1, 1, 1, 1, 1, 1, 1, 1, 1, S], r"dimensions ≥ 0; found \[-10, 7"),
    ],
)
def test_bart_that_does_not_fit(dims: list[int], message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        open_kspace(bart(tmp_path / "a", K, dims))


@pytest.mark.parametrize(
    "header",
    [
        b"# Dimensions\n%s 1 1 \n# Command\nphantom -s4 \n# Files\n >a\n# Creator\nBART v1\n",
        b"# Creator\nBART v1\n# Dimensions\r\n%s\r\n",
        b"# Dimensions\n%s\n# Files\n <sch\xe4del >a\n",
    ],
)
def test_bart_headers_hold_more_than_dimensions(header: bytes, tmp_path: Path):
    path = bart(tmp_path / "a")
    path.with_suffix(".hdr").write_bytes(header % b"10 7 1 4 1 1 1 1 1 1 1 1 1 3")
    np.testing.assert_array_equal(read(path), K)


def test_half_a_pair(tmp_path: Path):
    path = bart(tmp_path / "a")
    path.with_suffix(".hdr").unlink()
    with pytest.raises(InputError, match=r"a BART pair .cfl and .hdr; found no a.hdr in"):
        open_kspace(path)
    path.with_suffix(".hdr").write_text("Dimensions: ten\n")
    with pytest.raises(InputError, match=r"a readable BART header file; found a.hdr"):
        open_kspace(path)


def test_an_empty_bart_file(tmp_path: Path):
    with pytest.raises(InputError, match=r"found shape \(0, 4, 10, 7\) .* in a.cfl"):
        open_kspace(bart(tmp_path / "a", K[:0]))
