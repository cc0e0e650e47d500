"""A centre that is too small for coil maps is found before the run begins, whichever mask it belongs to."""

from pathlib import Path

import pytest

from monarch_sciml.errors import InputError
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.simulation import SimulateConfig, simulate

SMALL = {"model": "unet", "channels": 2, "pools": 1, "epochs": 1, "n_test": 1, "device": "cpu", "quiet": True}


def volumes(folder: Path, **widths: int) -> Path:
    """One volume for each name, 24 rows and so many columns."""
    for name, width in widths.items():
        coils = 1 if name == "single" else 3
        (made,) = simulate(
            folder / "made", SimulateConfig(volumes=1, slices=1, shape=(24, width), coils=(coils,))
        )
        made.rename(folder / f"{name}.h5")
    (folder / "made").rmdir()
    return folder


@pytest.mark.parametrize("order", [1, -1])
def test_of_every_acceleration(order: int, tmp_path: Path):
    """Steps draw one of several: the one that cannot be used may come late."""
    sampling = MaskConfig("random", (2.0, 8.0)[::order], (0.3, 0.04)[::order])
    data = volumes(tmp_path / "data", a=24, b=24)
    with pytest.raises(InputError, match=r"at least 3 × 3; found 24 × 1 in b.h5 under random 8×"):
        train(TrainConfig(data, tmp_path / "run", sampling=sampling, **SMALL))
    assert not (tmp_path / "run").exists()


def test_of_every_size(tmp_path: Path):
    data = volumes(tmp_path / "data", a=30, b=16, c=30)
    settings = {"sampling": MaskConfig("random", (4.0,), (0.1,)), **SMALL}
    with pytest.raises(InputError, match=r"found 24 × 2 in b.h5 under .*; raise --center-fractions"):
        train(TrainConfig(data, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_a_single_coil_needs_none(tmp_path: Path):
    data = volumes(tmp_path / "data", a=30, single=16, z=30)
    settings = {"sampling": MaskConfig("random", (4.0,), (0.1,)), **SMALL}
    assert (train(TrainConfig(data, tmp_path / "run", **settings)) / "model").is_dir()
