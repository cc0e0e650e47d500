"""Slices that hold nothing are not trained on, and what is left out is said once, before the run begins."""

import warnings
from pathlib import Path

import h5py
import pytest
from kspace_files import TARGET, K, bart, fastmri, ismrmrd, lines, npy
from small_runs import assert_same_run, table

from monarch_sciml.errors import InputError
from monarch_sciml.mri.datasets import SliceDataset
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.simulation import SimulateConfig, simulate

SAID = r"with a target of zeros, are left out: sim_0000.h5 \(1\), sim_0002.h5 \(0, 2\)$"


@pytest.fixture
def data(tmp_path) -> Path:
    """Three volumes of three slices, the last one held out."""
    simulate(tmp_path / "data", SimulateConfig(volumes=3, slices=3, shape=(24, 20), coils=(3,)))
    return tmp_path / "data"


def empty(folder: Path, name: str, *slices: int, arrays=("kspace", "reconstruction_rss")) -> None:
    with h5py.File(folder / name, "r+") as file:
        for array in arrays:
            for index in slices:
                file[array][index] = 0


def without(folder: Path, name: str, *slices: int) -> None:
    with h5py.File(folder / name, "r+") as file:
        for array in ("kspace", "reconstruction_rss"):
            kept = [i for i in range(len(file[array])) if i not in slices]
            values = file[array][kept]
            del file[array]
            file[array] = values


def config(data: Path, out: str) -> TrainConfig:
    small = {"maps": "low-resolution", "n_test": 1, "cascades": 2, "channels": 2, "pools": 1, "epochs": 2}
    sampling = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    return TrainConfig(data, data.parent / out, sampling=sampling, device="cpu", quiet=True, **small)


@pytest.mark.parametrize("arrays", [["kspace", "reconstruction_rss"], ["kspace"], ["reconstruction_rss"]])
def test_slices_of_zeros_or_with_a_target_of_zeros_are_as_if_they_were_not_there(data, arrays):
    """In training and held out: bitwise the run on files without them, after one warning."""
    for name, slices in {"sim_0000.h5": [1], "sim_0002.h5": [0, 2]}.items():
        empty(data, name, *slices, arrays=arrays)
    with pytest.warns(UserWarning, match=SAID) as said:
        blank = train(config(data, "blank"))
    assert len(said) == 1
    assert max(float(row["loss"]) for row in table(blank)) < 2
    for name, slices in {"sim_0000.h5": [1], "sim_0002.h5": [0, 2]}.items():
        without(data, name, *slices)
    assert_same_run(blank, train(config(data, "without")))


def test_volumes_of_nothing_else_are_refused_before_the_run_begins(data):
    for name in ("sim_0000.h5", "sim_0001.h5"):
        empty(data, name, 0, 1, 2)
    with pytest.raises(InputError, match=r"slices that hold something; found zeros only in sim_0000.h5 and"):
        train(config(data, "run"))
    assert not (data.parent / "run").exists()


@pytest.mark.parametrize("kind", ["fastmri", "single coil", "target", "ismrmrd", "bart", "npy"])
def test_every_format_knows_its_blank_slices(kind, tmp_path):
    kspace, target = K.copy(), TARGET.copy()
    kspace[1] = target[1] = 0
    path = {
        "fastmri": lambda: fastmri(tmp_path / "a.h5", kspace),
        "single coil": lambda: fastmri(tmp_path / "a.h5", kspace[:, 0]),
        "target": lambda: fastmri(tmp_path / "a.h5", K, reconstruction_rss=target),
        "ismrmrd": lambda: ismrmrd(tmp_path / "a.h5", lines(kspace)),
        "bart": lambda: bart(tmp_path / "a", kspace),
        "npy": lambda: npy(tmp_path / "a.npy", kspace),
    }[kind]()
    with open_kspace(path) as file:
        assert [file.is_blank(i) for i in range(len(file))] == [False, True, False]


def test_a_slice_whose_middle_row_is_zero_is_no_blank_one(data):
    with h5py.File(data / "sim_0000.h5", "r+") as file:
        file["kspace"][0, :, 12] = 0
        file["reconstruction_rss"][0, 12] = 0
    slices = SliceDataset(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slices.leave_blanks_out() == {}
    assert len(slices) == 9
