"""What no image comes of is refused: coils on the last axis, trajectories that are not Cartesian."""

import re
from pathlib import Path

import numpy as np
import pytest
from kspace_files import HEADER, WRITERS, K, S, fastmri, ismrmrd, npy

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.writers import write_volume

COILS_LAST = [(128, 128, 64), (230, 180, 8), (60, 64, 20), (96, 80, 10, 8), (3, 96, 80, 8)]
COILS_FIRST = [
    (64, 128, 128),
    (32, 64, 48),
    (64, 64, 48),
    (3, 4, 10, 7),
    (32, 12, 12),
    (40, 128, 256, 180),
    (15, 640, 368),
]


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.complex64)


@pytest.mark.parametrize("shape", COILS_LAST)
def test_coils_that_come_last_are_refused_with_the_shape_as_it_is_read(shape, tmp_path: Path):
    as_read = re.escape(
        f"found {(1, *shape)[-4:]} if read so, from shape {shape} in a.npy; if the coils come last"
    )
    with pytest.raises(InputError, match=rf"axes \(slices, coils, H, W\) of likely sizes; {as_read}"):
        open_kspace(npy(tmp_path / "a.npy", zeros(*shape)))


@pytest.mark.parametrize("shape", COILS_FIRST)
def test_likely_sizes_are_read(shape, tmp_path: Path):
    assert open_kspace(npy(tmp_path / "a.npy", zeros(*shape))).shape == (1, *shape)[-4:]


def test_unlikely_sizes_that_are_right_have_a_way(tmp_path: Path):
    write_volume(tmp_path / "a.h5", zeros(1, 128, 128, 64))
    assert open_kspace(tmp_path / "a.h5").shape == (1, 128, 128, 64)


@pytest.mark.parametrize("writer", [fastmri, ismrmrd])
@pytest.mark.parametrize("trajectory", ["radial", "spiral", "epi"])
def test_only_cartesian_k_space_is_read(writer, trajectory: str, tmp_path: Path):
    header = HEADER.replace("cartesian", trajectory)
    path = writer(tmp_path / "a.h5", header=header)
    with pytest.raises(
        InputError, match=f"Cartesian k-space; found a trajectory '{trajectory}' in a.h5; grid"
    ):
        open_kspace(path)
    if writer is fastmri:  # whose header may be wrong
        assert len(open_kspace(path, header=False)) == S
    assert len(open_kspace(WRITERS[writer.__name__](tmp_path))) == len(K)
