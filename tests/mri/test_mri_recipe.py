"""Training end to end on a few tiny volumes of different sizes and coil counts."""

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_runs import assert_same_run, table, weights

from monarch_sciml.errors import InputError
from monarch_sciml.mri import recipe
from monarch_sciml.mri.classical import sampling_density
from monarch_sciml.mri.masks import MaskConfig, draw_mask
from monarch_sciml.mri.models import KINDS, LearnedMaps, ModelConfig, MSense, SliceReconstructor, departures
from monarch_sciml.mri.recipe import TrainConfig, split, train
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct
from monarch_sciml.mri.simulation import SimulateConfig, simulate

COLUMNS = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
UNROLLED = [kind for kind in KINDS if kind.startswith(("varnet", "modl"))]
SETTINGS = {
    "sampling": COLUMNS,
    "maps": "low-resolution",
    "n_test": 1,
    "cascades": 2,
    "channels": 2,
    "pools": 1,
    "epochs": 2,
    "device": "cpu",
    "quiet": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three volumes of two slices: 24 × 20 with 3 coils or 5, and 21 × 26."""
    folder = tmp_path_factory.mktemp("data")
    small = SimulateConfig(volumes=2, slices=2, shape=(24, 20), coils=(3, 5), seed=2)
    simulate(folder, small)
    (odd,) = simulate(folder / "odd", dataclasses.replace(small, volumes=1, shape=(21, 26)))
    odd.rename(folder / "a_odd.h5")
    (folder / "odd").rmdir()
    return folder


def config(data: Path, out: Path, **settings) -> TrainConfig:
    return TrainConfig(data, out, **{**SETTINGS, **settings})


def coils(path: Path) -> int:
    with h5py.File(path) as file:
        return file["kspace"].shape[1]


@pytest.mark.parametrize(
    ("kind", "regulariser"), [*((kind, "unet") for kind in KINDS), *((kind, "spectral") for kind in UNROLLED)]
)
def test_what_is_trained_reconstructs_with_the_scores_of_the_table(data, tmp_path, kind, regulariser):
    """The exported model, used on the held-out file, gives the last row of metrics.csv."""
    assert {coils(path) for path in data.glob("sim*")} == {3, 5}
    run = train(config(data, tmp_path / "run", model=kind, regulariser=regulariser, modes=4, batch=2))
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "last.ckpt",
        "metrics.csv",
        "model",
        "tensorboard",
    }
    saved = json.loads((run / "config.json").read_text())
    assert saved["config"]["model"] == kind
    assert saved["data"]["held out"] == "2 slices of 1 volumes, sim_0001.h5 … sim_0001.h5"
    rows = table(run)
    assert list(rows[0]) == ["epoch", "seconds", "nmse", "psnr", "ssim", "loss"]
    assert len(rows) == 2
    (report,) = reconstruct(
        ReconstructConfig(
            (data / "sim_0001.h5",), tmp_path / "out", kind, run=run, sampling=COLUMNS, quiet=True
        )
    )
    for name in ("nmse", "psnr", "ssim"):
        assert getattr(report, name) == pytest.approx(float(rows[-1][name]), rel=1e-4)
    learned = kind == "msense" or kind.endswith("-monarch")
    assert (report.departure is not None) == (report.nonunitarity is not None) == learned
    assert SliceReconstructor.from_pretrained(run).config.shape == (21, 26)  # of the first volume


@pytest.mark.parametrize("maps", ["espirit", "learned"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_resumed_training_is_bitwise_the_uninterrupted_one(data, tmp_path, monkeypatch, maps, failure):
    whole = config(data, tmp_path / "whole", epochs=3, penalty=0.1, maps=maps)
    train(whole)
    minutes = 0 if failure is KeyboardInterrupt else 10  # after every step, or after every epoch
    parts = dataclasses.replace(whole, out=tmp_path / "parts", resume=True, checkpoint_minutes=minutes)
    calls = iter(range(100))

    def failing(model):  # once a step; an epoch has four
        if next(calls) == 9:
            raise failure
        return departures(model)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "departures", failing)
        with pytest.raises(failure):
            train(parts)
    assert len(table(parts.out)) == 2
    place = torch.load(parts.out / "last.ckpt", weights_only=True)["global_step"]
    assert place == (8 if minutes else 9)
    assert not (parts.out / "model").exists()
    torch.rand(5)
    np.random.rand(5)  # noqa: NPY002 (nothing may depend on the global generators)
    train(parts)
    assert_same_run(parts.out, whole.out)


def test_a_finished_run_is_left_as_it_is(data, tmp_path, monkeypatch):
    done = config(data, tmp_path / "run", model="msense", epochs=1)
    train(done)
    monkeypatch.setattr(recipe, "split", None)  # not even the data are read
    assert train(dataclasses.replace(done, resume=True)) == done.out
    with pytest.raises(InputError, match="pass --resume"):
        train(done)
    with pytest.raises(InputError, match=r"cascades=2; found cascades=3; resume with the same"):
        train(dataclasses.replace(done, resume=True, cascades=3))


@pytest.fixture
def seen(monkeypatch) -> list[tuple[str, torch.Tensor, bool]]:
    """File, pattern, and whether it is trained on, of everything that a network is given."""
    found = []
    original = recipe.undersample

    def spy(example, mask, maps):
        found.append((example.name, mask.pattern, torch.is_grad_enabled()))
        return original(example, mask, maps)

    monkeypatch.setattr(recipe, "undersample", spy)
    return found


def trained_on(seen: list) -> list[tuple[str, torch.Tensor]]:
    # before the run, the first slice of either part is tried
    return [(name, pattern) for name, pattern, training in seen[2:] if training]


def test_masks_depend_on_seed_and_step_alone_and_held_out_volumes_are_not_trained_on(data, tmp_path, seen):
    patterns = {}
    for name, settings in {"a": {}, "b": {"model": "msense"}, "c": {"seed": 1}}.items():
        seen.clear()
        train(config(data, tmp_path / name, epochs=3, **settings))
        steps = trained_on(seen)
        assert {file for file, _ in steps} == {"a_odd.h5", "sim_0000.h5"}
        held_out = [(file, pattern) for file, pattern, training in seen[2:] if not training]
        assert {file for file, _ in held_out} == {"sim_0001.h5"}
        assert len({str(pattern.tolist()) for _, pattern in held_out}) == 1  # in every epoch the same
        assert len({str(pattern.tolist()) for _, pattern in steps}) > 9  # of 12: always another one
        patterns[name] = [str(pattern.tolist()) for _, pattern in steps]
    assert patterns["a"] == patterns["b"]
    assert patterns["a"] != patterns["c"]


def test_poisson_discs_and_several_rates(data, tmp_path, seen):
    two = MaskConfig("random", (2.0, 4.0), (0.4, 0.15))
    train(config(data, tmp_path / "two", sampling=two, epochs=3, model="msense"))
    centres = {
        int(pattern[0, 10 - 3 : 10 + 3].all()) for _, pattern in trained_on(seen) if pattern.shape[1] == 20
    }
    assert centres == {0, 1}  # 3 columns of 20, or 8
    seen.clear()
    poisson = MaskConfig("poisson", (2.0,), (0.25,))
    train(config(data, tmp_path / "poisson", sampling=poisson, model="msense"))
    assert {tuple(p.shape) for _, p in trained_on(seen)} == {(21, 26), (24, 20)}


def test_training_learns(data, tmp_path):
    """And the rate that the schedule ends with is small: the last epochs differ little."""
    run = train(config(data, tmp_path / "run", model="varnet", epochs=20, learning_rate=1e-2, channels=4))
    losses = [float(row["loss"]) for row in table(run)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    nmse = [float(row["nmse"]) for row in table(run)]
    assert nmse[-1] == pytest.approx(nmse[-2], rel=0.02)
    assert nmse[-1] != nmse[-2]


def test_penalty_keeps_the_transforms_at_the_fft(data, tmp_path):
    settings = {"model": "msense"}
    runs = [train(config(data, tmp_path / f"{p}", penalty=p, **settings)) for p in (0.0, 1e3)]
    far, near = (departures(SliceReconstructor.from_pretrained(run)) for run in runs)
    assert far.item() > 1e-6
    assert near.item() < 0.5 * far.item()


@pytest.mark.parametrize(
    "sampling", [MaskConfig("random", (2.0, 4.0), (0.3, 0.2)), MaskConfig("poisson", (2.0,), (0.2,))]
)
@pytest.mark.parametrize("maps", ["low-resolution", "learned"])
def test_msense_starts_as_density_compensation(data, tmp_path, sampling, maps):
    """The density of the masks that training draws, on the grid of the transform."""
    settings = {"model": "msense", "sampling": sampling, "maps": maps, "shape": (24, 20)}
    run = train(config(data, tmp_path / "run", epochs=1, **settings))
    (model,) = [m for m in SliceReconstructor.from_pretrained(run).modules() if isinstance(m, MSense)]
    masks = torch.stack([draw_mask(sampling, (24, 20), seed).pattern for seed in range(32)])
    expected = sampling_density(masks, smoothing=2.0).pow(-0.75).float()
    assert torch.allclose(model.weights, expected.expand(24, 20))
    assert model.weights.max() > 1.5 * model.weights.min()


def test_few_slices_leave_msense_near_its_start(data, tmp_path):
    """By default; the other models are free."""
    for model in ("msense", "varnet-monarch"):
        runs = [train(config(data, tmp_path / f"{model} {p}", model=model, penalty=p)) for p in (None, 0.0)]
        near, free = (departures(SliceReconstructor.from_pretrained(run)) for run in runs)
        assert near < free if model == "msense" else near == free


@pytest.mark.parametrize("maps", ["espirit", "low-resolution", "learned"])
def test_maps(data, tmp_path, maps):
    run = train(config(data, tmp_path / "run", maps=maps, epochs=1, n_train=1))
    trained = SliceReconstructor.from_pretrained(run)
    model, settings = trained.network, trained.config
    assert settings.maps == maps
    assert isinstance(model, LearnedMaps) == (maps == "learned")
    if maps == "learned":
        torch.manual_seed(0)
        fresh = settings.build().state_dict()
        moved = [name for name, w in weights(run).items() if not torch.equal(w, fresh[name])]
        assert any(name.startswith("refinement") for name in moved)


@pytest.mark.parametrize("epochs", [1, 5, 6])
def test_schedules_of_few_steps(data, tmp_path, epochs):
    """Two slices an epoch; of ten steps in all, the tenth that warms up is empty."""
    run = train(config(data, tmp_path / "run", model="msense", n_train=1, epochs=epochs))
    fresh = ModelConfig("msense", (21, 26)).build().state_dict()
    assert all(not torch.equal(w, fresh[name]) for name, w in weights(run).items())


def test_single_coils(tmp_path):
    simulate(tmp_path / "data", SimulateConfig(volumes=2, slices=1, shape=(16, 18), coils=(1,)))
    assert len(table(train(config(tmp_path / "data", tmp_path / "run", epochs=1)))) == 1
    with pytest.raises(InputError, match=r"at least two coils for mSENSE; found one in sim_0000.h5"):
        train(config(tmp_path / "data", tmp_path / "msense", model="msense"))
    assert not (tmp_path / "msense").exists()


def names(parts) -> list[list[str]]:
    return [[volume.path.name for volume in part.volumes] for part in parts]


def test_split(data, tmp_path):
    out = tmp_path / "run"
    assert names(split(config(data, out))) == [["a_odd.h5", "sim_0000.h5"], ["sim_0001.h5"]]
    assert names(split(config(data, out, n_train=1))) == [["a_odd.h5"], ["sim_0001.h5"]]
    other = tmp_path / "other"
    simulate(other, SimulateConfig(volumes=2, slices=1, shape=(16, 18), coils=(2,)))
    parts = split(config(data, out, held_out=other))
    assert names(parts) == [["a_odd.h5", "sim_0000.h5", "sim_0001.h5"], ["sim_0001.h5"]]
    assert parts[1].volumes[0].path.parent == other
    assert len(split(config(data, out, acquisition="SIMULATED"))[0].volumes) == 2


def undersampled(folder: Path) -> None:
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["kspace"][..., 1::2] = 0


def without_files(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def with_test_file(folder: Path) -> None:
    simulate(folder / "t", SimulateConfig(volumes=1, slices=1, shape=(16, 18), coils=(2,), acceleration=2.0))
    (folder / "t" / "sim_0000.h5").rename(folder / "b_test.h5")


MISTAKES = {
    "no files": (without_files, {}, "a folder of .h5 files; found none in .*data"),
    "few volumes": (
        None,
        {"n_test": 3},
        "at least 1 volumes to train on beside 3 held out; .*lower --n-train",
    ),
    "fewer volumes": (
        None,
        {"n_train": 3},
        "3 volumes to train on beside 1 held out; found 3 files .* 2 left",
    ),
    "acquisition": (None, {"acquisition": "AXT2"}, "files with acquisition AXT2.*only SIMULATED"),
    "test files": (with_test_file, {}, "fully sampled .*; found a mask in b_test.h5; leave test files out"),
    "undersampled": (undersampled, {}, "fully sampled .*; found gaps in slice 0 of a_odd.h5"),
    "no centre": (
        None,
        {"sampling": MaskConfig(center_fractions=(0.0,))},
        "a fully sampled centre of at least 3 × 3",
    ),
    "Poisson disc": (
        None,
        {"sampling": MaskConfig("poisson", (8.0,), (0.8,))},
        "a Poisson disc of 8× on 21 × 26 points",
    ),
    "device": (None, {"device": "cuda"}, "a CUDA device; found none"),
    "poolings": (None, {"pools": 5}, "more than 32 points .* for 5 poolings; found 21 × 26; lower --pools"),
    "folder in use": (None, {"out": "data"}, "a new or empty output directory"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_the_run_begins(case, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shutil.copytree(data, tmp_path / "data")
    prepare, settings, match = MISTAKES[case]
    if prepare is not None:
        prepare(tmp_path / "data")
    settings = {**settings, "out": tmp_path / settings.get("out", "run")}
    with pytest.raises(InputError, match=match) as error:
        train(config(tmp_path / "data", **settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_volumes_to_train_on_are_not_held_out(data, tmp_path):
    with pytest.raises(InputError, match=r"another folder to hold out .*found 1 of its files .*sim_0001.h5"):
        train(config(data, tmp_path / "run", held_out=data))


def test_a_mask_of_ones_own_must_fit_every_volume(data, tmp_path):
    np.save(tmp_path / "mask.npy", np.ones(26, bool))
    sampling = MaskConfig(mask_file=tmp_path / "mask.npy")
    with pytest.raises(InputError, match=r"a mask of shape \(20,\)"):
        train(config(data, tmp_path / "run", sampling=sampling))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [*recipe.LEAST.items(), *recipe.MOST.items()])
def test_settings_have_bounds(name, value):
    bound, step, do = (
        ("least", -1, "raise") if (name, value) in recipe.LEAST.items() else ("most", 1, "lower")
    )
    match = rf"{name} of at {bound} {value}; .*{do} --{name.replace('_', '-')}"
    with pytest.raises(InputError, match=match):
        TrainConfig(Path("a"), Path("b"), **{name: value + step})


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("nan")])
def test_learning_rates_are_positive(rate):
    with pytest.raises(InputError, match="a positive learning_rate"):
        TrainConfig(Path("a"), Path("b"), learning_rate=rate)


def test_a_training_that_diverges_says_so(data, tmp_path):
    with pytest.raises(InputError, match=r"finite (loss|weights|.*prediction).*"):
        train(config(data, tmp_path / "run", learning_rate=1e6))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("kind", ["varnet", "varnet-monarch", "modl-monarch", "msense"])
def test_learned_transforms_of_a_network_have_a_rate_of_their_own(data, tmp_path, kind):
    settings = config(data, tmp_path / "run", model=kind, learning_rate=1e-3, transform_rate=5)
    model = ModelConfig(kind, (24, 20), cascades=2, channels=2, pools=1).build()
    adam, _ = recipe._optimiser(settings)(model, 10)
    found = {p: group["max_lr"] for group in adam.param_groups for p in group["params"]}
    assert found.keys() == {*model.parameters()}
    for name, parameter in model.named_parameters():
        # in mSENSE there is no rest: --learning-rate is that of the transform
        fast = "transform" in name and kind != "msense"
        assert found[parameter] == pytest.approx(5e-3 if fast else 1e-3)
