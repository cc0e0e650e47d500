"""Slices to train on: what a row shows before all of them are read, padding, and their coil maps."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kspace_files import K, fastmri, ismrmrd, lines

from monarch_sciml.errors import InputError
from monarch_sciml.mri import examples, recipe
from monarch_sciml.mri.datasets import SliceDataset
from monarch_sciml.mri.examples import Examples
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.sensitivity import estimate_maps
from monarch_sciml.mri.simulation import SimulateConfig, simulate


def volumes(folder: Path, seed: int = 0) -> Path:
    simulate(folder, SimulateConfig(volumes=3, slices=2, shape=(24, 20), coils=(3,), seed=seed))
    return folder


def config(data: Path, **more) -> TrainConfig:
    small = {"maps": "low-resolution", "n_test": 1, "cascades": 2, "channels": 2, "pools": 1, "epochs": 1}
    sampling = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    settings = {"sampling": sampling, "device": "cpu", "quiet": True, **small, **more}
    return TrainConfig(data, data.parent / "run", **settings)


@pytest.mark.parametrize("name", ["sim_0001.h5", "sim_0002.h5"])
def test_gaps_of_any_volume_are_found_before_the_run_begins(name, tmp_path):
    data = volumes(tmp_path / "data")
    with h5py.File(data / name, "r+") as file:
        file["kspace"][..., 1::2] = 0
    with pytest.raises(InputError, match=f"fully sampled .*; found gaps in slice 0 of {name}"):
        train(config(data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["fastmri", "single coil", "ismrmrd"])
def test_the_middle_row_tells_gaps_from_columns_of_zeros_at_the_edges(kind, tmp_path):
    edges, gaps = K.copy(), K.copy()
    edges[..., [0, -1]] = gaps[..., 2] = 0
    write = {
        "fastmri": fastmri,
        "single coil": lambda path, kspace: fastmri(path, kspace[:, 0]),
        "ismrmrd": lambda path, kspace: ismrmrd(path, lines(kspace)),
    }[kind]
    files = [write(tmp_path / f"{i}.h5", kspace) for i, kspace in enumerate((K, edges, gaps))]
    Examples(SliceDataset(files[:2], middle=0.4)).check()
    with pytest.raises(InputError, match=r"fully sampled .*; found gaps in slice 1 of 2\.h5"):
        Examples(SliceDataset(files, middle=0.4)).check()


def test_a_run_does_not_continue_on_other_data_of_the_same_names(tmp_path, monkeypatch):
    first = config(volumes(tmp_path / "data"))
    other = replace(first, data=volumes(tmp_path / "other", seed=1), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(recipe.SliceReconstructor, "save_pretrained", lambda *_, **__: None)
        train(first)  # all but the export, which makes it finished
    with pytest.raises(InputError, match=r"the data of the run in .*digests.*; pass the same --data"):
        train(other)
    moved = replace(first, data=first.data.rename(tmp_path / "moved"), resume=True)
    train(moved)
    with pytest.warns(UserWarning, match=r"is finished, with .*data; nothing was trained on .*other"):
        train(other)


def test_what_is_held_out_may_move(tmp_path):
    data, held_out = volumes(tmp_path / "data"), volumes(tmp_path / "held", seed=1)
    first = config(data, held_out=held_out)
    train(first)
    train(replace(first, held_out=held_out.rename(tmp_path / "moved"), resume=True))


def test_padding_by_zeros_counts_as_not_measured(tmp_path):
    kspace = np.ones((1, 2, 12, 14), np.complex64)
    kspace[..., :2] = kspace[..., 13:] = 0
    example = Examples(SliceDataset(fastmri(tmp_path / "a.h5", kspace, None)))[0]
    assert isinstance(example, examples.Example)
    assert example.padding == (2, 13)


def test_maps_are_estimated_once_and_kept_up_to_a_limit(monkeypatch):
    kspace, calls = torch.randn(3, 3, 16, 14, dtype=torch.complex64), []

    def counted(*arguments):
        calls.append(arguments)
        return estimate_maps(*arguments)

    monkeypatch.setattr(examples, "estimate_maps", counted)
    maps = examples.MapCache("low-resolution", limit=2 * kspace[0].nbytes)
    for key in (0, 1, 0, 2, 0, 1):  # 1 was used longest ago when 2 came
        expected = estimate_maps(kspace[key], (6, 6), "low-resolution")
        assert torch.equal(maps(key, kspace[key], (6, 6)), expected)
    estimated = [next(i for i in range(3) if torch.equal(k, kspace[i])) for k, *_ in calls]
    assert estimated == [0, 1, 2, 1]
    assert not torch.equal(maps(0, kspace[0], (4, 4)), maps(0, kspace[0], (6, 6)))
    assert maps.bytes == sum(kept.nbytes for kept in maps.kept.values()) <= maps.limit
