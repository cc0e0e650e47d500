"""Simulated files: reproducible, resumable, physically right, and read as fastMRI's are."""

import dataclasses
import importlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.mri.datasets import SliceDataset
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import MaskConfig, apply_mask, draw_mask, volume_seed
from monarch_sciml.mri.simulation import SimulateConfig, simulate, simulate_volume

# not as an attribute of the package: should that export the function simulate, say, this stays the module
module = importlib.import_module("monarch_sciml.mri.simulation")

CONFIG = SimulateConfig(volumes=3, slices=2, shape=(20, 15), coils=(2, 3), seed=5)
SILENT = (1e-12, 1e-12)
SHAPES = [(16, 16), (9, 8), (8, 9), (17, 13), (24, 11)]  # even, odd, prime, rectangular


def change(**changes) -> SimulateConfig:
    return dataclasses.replace(CONFIG, **changes)


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> list[Path]:
    return simulate(tmp_path_factory.mktemp("complete"), CONFIG)


@pytest.fixture
def simulated(monkeypatch) -> list[int]:
    """Indices of the volumes that are simulated during the test."""
    original, indices = module.simulate_volume, []

    def noted(config, index):
        indices.append(index)
        return original(config, index)

    monkeypatch.setattr(module, "simulate_volume", noted)
    return indices


# -------------------------------------------------------------------------------------------------- physics


def centred_ifft(kspace: np.ndarray) -> np.ndarray:
    """The orthonormal inverse transform, from its definition."""
    for axis in (-2, -1):
        n = kspace.shape[axis]
        place = np.arange(n) - n // 2
        matrix = np.exp(2j * np.pi * np.outer(place, place) / n) / np.sqrt(n)
        kspace = np.moveaxis(np.moveaxis(kspace, axis, -1) @ matrix, -1, axis)
    return kspace


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_that_the_grid_resolves_is_only_sampled_coarser(shape, monkeypatch):
    height, width = shape

    def wave(fine, slices, rng):
        y, x = (np.arange(n) - n // 2 for n in fine)
        phase = 2j * np.pi * (3 * y[:, None] / fine[0] - 2 * x / fine[1])
        return np.exp(phase)[None].repeat(slices, 0)

    monkeypatch.setattr(module, "random_phantom", wave)
    kspace = simulate_volume(change(shape=shape, coils=(1,), noise=SILENT), 0).kspace
    y, x = (2 * (np.arange(n) - n // 2) + n for n in shape)  # the same places on the finer grid
    every_second = wave((2 * height, 2 * width), 2, None)[:, y][:, :, x]
    np.testing.assert_allclose(centred_ifft(kspace.numpy()), 1e-4 * every_second, rtol=0, atol=1e-10)


def test_frequencies_beyond_the_grid_are_not_measured(monkeypatch):
    def wave(fine, slices, rng):
        x = np.arange(fine[1])
        return np.exp(2j * np.pi * 8 * x / fine[1]) * np.ones((slices, fine[0], 1))

    monkeypatch.setattr(module, "random_phantom", wave)
    kspace = simulate_volume(change(coils=(1,), noise=SILENT), 0).kspace  # 15 columns: frequencies −7 … 7
    assert kspace.abs().max() < 1e-12
    seen = simulate_volume(change(coils=(1,), noise=SILENT, shape=(20, 17)), 0).kspace
    assert seen.abs().max() > 1e-4


@pytest.mark.parametrize("coils", [(1,), (2,), (5,)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_target_is_the_root_sum_of_squares_of_the_images_without_noise(shape, coils):
    kspace, target, _ = simulate_volume(change(shape=shape, coils=coils), 1)
    assert (kspace.dtype, target.dtype) == (torch.complex64, torch.float32)
    assert kspace.shape == (2, *((coils[0],) if coils[0] > 1 else ()), *shape)
    silent = simulate_volume(change(shape=shape, coils=coils, noise=SILENT), 1)
    images = centred_ifft(silent.kspace.numpy().astype(complex)).reshape(2, coils[0], *shape)
    np.testing.assert_allclose(target, np.sqrt((np.abs(images) ** 2).sum(1)), rtol=1e-4, atol=1e-10)
    assert torch.equal(target, silent.target)
    assert not torch.equal(kspace, silent.kspace)
    assert 0.2e-4 < target.max() < 4e-4


def noise_alone(sigma: float, **changes) -> tuple[torch.Tensor, float]:
    """The difference that the noise makes, (coils, slices · H · W) in units of brightness."""
    noisy = simulate_volume(change(noise=(sigma, sigma), **changes), 0)
    clean = simulate_volume(change(noise=SILENT, **changes), 0)
    difference = (noisy.kspace - clean.kspace).to(torch.complex128) / 1e-4
    return difference.transpose(0, 1).flatten(1), noisy.noise / 1e-4


def test_types_are_those_of_the_files_whatever_torchs_default(double):
    volume = simulate_volume(SimulateConfig(shape=(8, 8), slices=1, coils=(2,)), 0)
    assert (volume.kspace.dtype, volume.target.dtype) == (torch.complex64, torch.float32)


def test_noise_is_of_the_level_asked_for_and_white_but_correlated_between_coils():
    sigma = 0.05
    noise, stated = noise_alone(sigma, shape=(64, 48), coils=(6,), slices=4)
    n = noise.shape[1]
    assert stated == pytest.approx(sigma)
    covariance = (noise @ noise.mH / (n * sigma**2)).numpy()
    np.testing.assert_allclose(covariance.diagonal().real, 1, atol=5 / np.sqrt(n))
    others = np.abs(covariance[~np.eye(6, dtype=bool)])
    assert 0.02 < others.mean() < 0.2  # chance alone gives 1 / √n = 0.009
    circular = (noise @ noise.mT / (n * sigma**2)).abs().max()  # real and imaginary parts alike
    assert circular < 5 / np.sqrt(n)
    grid = noise.reshape(6, 4, 64, 48)
    for neighbour in (grid.roll(1, 1), grid.roll(1, 2), grid.roll(1, 3)):
        assert (grid * neighbour.conj()).mean().abs() / sigma**2 < 5 / np.sqrt(6 * n)
    left, right = grid[..., :24], grid[..., 24:]  # as strong at the edge as in the middle
    assert (left.abs() ** 2).mean() / (right.abs() ** 2).mean() == pytest.approx(1, abs=0.05)


def test_noise_levels_are_drawn_log_uniformly():
    config = change(shape=(8, 8), slices=1, coils=(1,), noise=(0.001, 0.1))
    levels = np.log10([simulate_volume(config, index).noise / 1e-4 for index in range(60)])
    assert levels.min() > -3
    assert levels.max() < -1
    assert levels.mean() == pytest.approx(-2, abs=4 * (2 / np.sqrt(12)) / np.sqrt(60))
    assert levels.std() == pytest.approx(2 / np.sqrt(12), abs=0.15)


def test_every_number_of_coils_is_drawn():
    coils = [
        simulate_volume(change(shape=(8, 8), slices=1, coils=(2, 4, 3)), i).kspace.shape[1] for i in range(20)
    ]
    assert {*coils} == {2, 3, 4}


def test_the_shepp_logan_phantom_is_the_same_in_every_volume():
    config = change(phantom="shepp-logan", shape=(32, 32), coils=(4,), noise=SILENT)
    first, second = (simulate_volume(config, index) for index in range(2))
    assert not torch.allclose(first.kspace, second.kspace, atol=1e-6)  # seen by other coils
    torch.testing.assert_close(first.target, second.target, rtol=0, atol=0.15e-4)
    flat = [v.target.flatten() for v in (first, second)]
    assert torch.corrcoef(torch.stack(flat))[0, 1] > 0.99


# ---------------------------------------------------------------------------------------------------- files


def test_layout(complete):
    assert [path.name for path in complete] == ["sim_0000.h5", "sim_0001.h5", "sim_0002.h5"]
    assert sorted(complete[0].parent.iterdir()) == complete  # nothing else: fastMRI's code opens all
    for index, path in enumerate(complete):
        volume = simulate_volume(CONFIG, index)
        with h5py.File(path) as file:
            assert set(file) == {"kspace", "ismrmrd_header", "reconstruction_rss"}
            np.testing.assert_array_equal(file["kspace"], volume.kspace)
            np.testing.assert_array_equal(file["reconstruction_rss"], volume.target)
            assert dict(file.attrs) == {
                "acquisition": "SIMULATED",
                "patient_id": f"simulated-5-{index}",
                "max": pytest.approx(float(volume.target.max())),
                "norm": pytest.approx(float(volume.target.norm()), rel=1e-5),
                "noise": volume.noise,
                "config": json.dumps(CONFIG.recipe),
                "version": __version__,
            }
            recipe = json.loads(file.attrs["config"])
            assert SimulateConfig(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()}
            ) == (change(volumes=SimulateConfig.volumes))


def test_the_data_set_reads_them(complete):
    dataset = SliceDataset(complete[0].parent, acquisition="SIMULATED")
    assert len(dataset) == 6
    sample, volume = dataset[3], simulate_volume(CONFIG, 1)
    assert (sample.name, sample.index, sample.padding) == ("sim_0001.h5", 1, (0, 15))
    assert torch.equal(sample.kspace, volume.kspace[1])
    assert sample.target is not None
    assert torch.equal(sample.target, volume.target[1])
    header = sample.header
    assert header is not None
    assert header.encoded == header.recon == (20, 15, 1)
    assert header.spacing == pytest.approx((11, 11, 5))  # 220 mm over 20 points, square pixels


def test_single_coil_files_have_no_axis_for_coils(tmp_path):
    [path] = simulate(tmp_path, change(volumes=1, coils=(1,)))
    with h5py.File(path) as file:
        assert set(file) == {"kspace", "ismrmrd_header", "reconstruction_esc"}
        assert file["kspace"].shape == (2, 20, 15)
    with open_kspace(path) as file:
        assert not file.multicoil


@pytest.mark.parametrize("coils", [(1,), (3,)])
def test_undersampled_files_are_the_full_ones_under_the_mask_of_their_name(coils, tmp_path):
    config = change(coils=coils, shape=(12, 160), acceleration=4.0)
    for index, path in enumerate(simulate(tmp_path, config)):
        mask = draw_mask(MaskConfig(), config.shape, volume_seed(path.name))  # random, 4×, centre of 8 %
        with h5py.File(path) as file:
            assert set(file) == {"kspace", "ismrmrd_header", "mask"}
            expected = apply_mask(simulate_volume(config, index).kspace, mask).numpy()
            np.testing.assert_array_equal(file["kspace"], expected)
            np.testing.assert_array_equal(file["mask"], mask.pattern[0])
            assert file.attrs["acceleration"] == 4
            assert file.attrs["num_low_frequency"] == 13
    kept = [SliceDataset(path)[0].mask.sum() for path in tmp_path.glob("*.h5")]
    assert 25 < np.mean(kept) < 55


# ----------------------------------------------------------------------------------------------- resumption


def test_a_volume_depends_on_seed_and_index_alone(complete, tmp_path):
    fewer = simulate(tmp_path, change(volumes=2))
    assert contents(fewer) == contents(complete[:2])
    other = simulate_volume(change(seed=6), 0)
    assert other.kspace.shape != (kspace := simulate_volume(CONFIG, 0).kspace).shape or not torch.allclose(
        other.kspace, kspace, atol=1e-6
    )


def test_more_volumes_extend_a_set_and_fewer_leave_it(complete, tmp_path, simulated):
    simulate(tmp_path, change(volumes=1))
    more = simulate(tmp_path, CONFIG)
    assert simulated == [0, 1, 2]
    assert contents(more) == contents(complete)
    assert simulate(tmp_path, change(volumes=2)) == more[:2]
    assert simulated == [0, 1, 2]
    assert contents(more) == contents(complete)


def test_an_interrupted_run_continues(complete, tmp_path, simulated, monkeypatch):
    write = module.write_volume

    def interrupted(path, *arguments, **more):
        if path.name == "sim_0001.h5":
            path.with_name(path.name + ".partial").write_bytes(b"begun")  # as a killed process leaves it
            raise KeyboardInterrupt
        write(path, *arguments, **more)

    monkeypatch.setattr(module, "write_volume", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, CONFIG)
    monkeypatch.setattr(module, "write_volume", write)
    assert contents(simulate(tmp_path, CONFIG)) == contents(complete)
    assert simulated == [0, 1, 1, 2]
    assert not [*tmp_path.glob("*.partial")]


def test_processes_share_the_volumes(complete, tmp_path, simulated, monkeypatch):
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        paths = simulate(tmp_path, CONFIG)
    assert simulated == [1, 0, 2]
    assert contents(paths) == contents(complete)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, r"volumes made with seed=6 in .*; found seed=5 in sim_0000.h5; choose another folder"),
        (
            {"noise": (0.1, 0.2), "volumes": 9},
            r"made with noise=\[0.1, 0.2\] in .*; found noise=\[0.003, 0.02\]",
        ),
        ({"acceleration": 4}, "made with acceleration=4 in .*; found acceleration=None"),
    ],
)
def test_a_set_of_another_configuration_is_left_alone(changes, message, complete):
    before = contents([*complete[0].parent.iterdir()])
    with pytest.raises(InputError, match=message):
        simulate(complete[0].parent, change(**changes))
    assert contents([*complete[0].parent.iterdir()]) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def other_kind(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = [0j]


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b""), other_kind, truncate])
def test_volumes_of_unknown_origin_are_refused(spoil, complete, tmp_path):
    path = tmp_path / "sim_0007.h5"
    path.write_bytes(complete[0].read_bytes())
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"found .*seed=\? in sim_0007.h5; choose another folder, or delete"):
        simulate(tmp_path, CONFIG)
    assert contents([*tmp_path.iterdir()]) == {"sim_0007.h5": before}


# ------------------------------------------------------------------------------------------------- mistakes


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"a folder that can be written, with room for .* GB; found"):
            simulate(folder, CONFIG)


def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_volume", full)
    with pytest.raises(InputError, match=r"with room for .*; found no space left on device; free the disk"):
        simulate(tmp_path, CONFIG)
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_is_noticed_before_the_work(tmp_path, simulated):
    with pytest.raises(InputError, match=r"found .*No space left on device \(.* GB free\); free the disk"):
        simulate(tmp_path, change(shape=(10**6, 10**6)))
    assert simulated == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volumes": 0}, "at least one volume .*; found volumes=0, slices=2"),
        ({"volumes": 10**15}, "1000000 volumes at most; found volumes=10+, slices=2"),
        ({"coils": (2**31,)}, r"from 1 to 1024; found coils=\(2147483648,\)"),
        ({"slices": 0}, "at least one volume of at least one slice, .*; found volumes=3, slices=0"),
        ({"shape": (128, 7)}, r"at least 8 × 8; found shape=\(128, 7\)"),
        ({"shape": (128,)}, r"a shape \(H, W\) of at least 8 × 8; found shape=\(128,\)"),
        ({"coils": ()}, r"numbers of coils from 1 to 1024; found coils=\(\)"),
        ({"coils": (4, 0)}, r"numbers of coils from 1 to 1024; found coils=\(4, 0\)"),
        ({"coils": (1, 4)}, r"or one in all: .*; found coils=\(1, 4\); simulate two sets"),
        ({"phantom": "brain"}, "one of .*shepp-logan.*; found phantom=brain"),
        ({"noise": (0.02, 0.003)}, r"0 < low ≤ high; found noise=\(0.02, 0.003\)"),
        ({"noise": (-0.1, 0.1)}, r"0 < low ≤ high; found noise=\(-0.1, 0.1\)"),
        ({"noise": (0.0, 0.1)}, "0 < low ≤ high"),
        ({"noise": (float("nan"), 0.1)}, "0 < low ≤ high"),
        ({"noise": (0.1, float("inf"))}, "0 < low ≤ high"),
        ({"acceleration": 0.5}, "an acceleration of 1 or more; found acceleration=0.5"),
        ({"seed": -1}, "a seed ≥ 0; found seed=-1"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        change(**changes)


def test_progress_is_shown_if_wanted(tmp_path, capsys):
    config = change(volumes=2, slices=1, shape=(8, 8))
    simulate(tmp_path, config)
    assert capsys.readouterr().err == ""
    simulate(tmp_path, config, progress=True)
    assert "2/2" in capsys.readouterr().err
