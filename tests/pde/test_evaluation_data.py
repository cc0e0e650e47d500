"""Evaluation on other files than that of the training: what is said of a file holds for that file alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import SETTINGS
from waves import waves

from monarch_sciml.errors import InputError
from monarch_sciml.pde.evaluation import EvaluateConfig, Evaluation, evaluate, evaluate_run
from monarch_sciml.pde.recipe import TrainConfig, train
from monarch_sciml.training import read_json, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on a part of an array of unusual name, order and units."""
    folder = tmp_path_factory.mktemp("runs")
    np.savez(folder / "odd.npz", speed=waves().transpose(2, 3, 1, 0), mask=np.zeros((16, 16, 2)))
    described = {"key": "speed", "axes": "x y t n", "first_frame": 1, "frames": 4, "every": 2}
    config = TrainConfig(
        data=folder / "odd.npz", out=folder / "run", **{**SETTINGS, "epochs": 1}, **described
    )
    return train(config)


@pytest.fixture(params=["run directory", "model folder"])
def model(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> Path:
    return (
        run if request.param == "run directory" else Path(shutil.copytree(run / "model", tmp_path / "copy"))
    )


def errors(run: Path, **options: Any) -> Evaluation:
    return evaluate_run(run, every=2, progress=False, **options)[0]


def test_other_data_are_read_whole(model: Path, tmp_path: Path) -> None:
    """With nothing that described the file of the training."""
    np.save(tmp_path / "other.npy", waves(samples=3, frames=7, seed=5))
    result = errors(model, data=tmp_path / "other.npy")
    assert (result.trajectories, result.times) == (3, [1, 2, 3, 4, 5, 6])


def test_a_file_that_was_replaced_after_the_training_is_refused(tmp_path: Path) -> None:
    """In another order, it holds out what the model was trained on."""
    data, held_out = tmp_path / "waves.npy", r"expected the held-out trajectories of the training in .*run; "
    np.save(data, waves())
    run = train(TrainConfig(data=data, out=tmp_path / "run", **{**SETTINGS, "epochs": 1}))
    before = evaluate_run(run, progress=False)[0]
    np.save(data, waves()[::-1])
    with pytest.raises(InputError, match=held_out + "found others in .*waves.npy; bring that file back"):
        evaluate_run(run, progress=False)
    assert evaluate_run(run, data=data, progress=False)[0].trajectories == len(waves())
    np.save(data, waves())
    assert evaluate_run(run, progress=False)[0] == before
    saved = read_json(run / "config.json")
    del saved["data"]["held out"]  # as of trainings that did not take note of it
    write_json(run / "config.json", saved)
    assert evaluate_run(run, progress=False)[0] == before


def test_key_axes_and_frames_are_those_of_the_data(model: Path, tmp_path: Path) -> None:
    w = waves(samples=3, frames=7, seed=5)
    np.savez(tmp_path / "other.npz", w=w.swapaxes(0, 1), mask=w)
    np.save(tmp_path / "plain.npy", w[:, 2:6])
    described = {"key": "w", "axes": "t n x y", "first_frame": 2, "frames": 4}
    found = errors(model, data=tmp_path / "other.npz", **described)
    expected = errors(model, data=tmp_path / "plain.npy")
    assert found.rollout_per_frame == expected.rollout_per_frame
    assert len(found.times) == 3
    with pytest.raises(InputError, match=r"one array of trajectories; found the arrays .*--key"):
        errors(model, data=tmp_path / "other.npz")
    with pytest.raises(InputError, match=r"frames of at least 1; found 0; raise --frames"):
        errors(model, data=tmp_path / "plain.npy", frames=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": "w"}, "--key"),
        ({"axes": "n t x y"}, "--axes"),
        ({"first_frame": 1}, "--first-frame"),
        ({"frames": 0}, "--frames"),
        ({"key": "w", "frames": 3}, "--key, --frames"),
    ],
)
def test_what_describes_data_needs_them(
    run: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    message = rf"--data beside {named}, which say .*; found none: .*; pass --data, .* or leave {named} out"
    with pytest.raises(InputError, match=message):
        evaluate(EvaluateConfig((run,), tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_zeros_to_predict_are_refused_and_can_be_left_out(model: Path, tmp_path: Path) -> None:
    w = waves(samples=3)
    w[1, 5] = 0
    np.save(tmp_path / "still.npy", w)
    with pytest.raises(InputError, match=r"found zeros in trajectory 1 at time index 5 of still.npy; leave"):
        errors(model, data=tmp_path / "still.npy")
    assert len(errors(model, data=tmp_path / "still.npy", frames=5).times) == 4


@pytest.mark.parametrize("unit", [2.0**-73, 2.0**66])
def test_errors_have_no_units_and_energies_have(tmp_path: Path, unit: float) -> None:
    """Where squares of the data leave float32."""
    found = []
    for factor in (1.0, unit):
        np.save(tmp_path / f"{factor}.npy", (factor * waves()).astype(np.float32))
        settings = {**SETTINGS, "epochs": 1, "every": 2}
        run = train(TrainConfig(data=tmp_path / f"{factor}.npy", out=tmp_path / f"run {factor}", **settings))
        found.append(errors(run))
        evaluate(EvaluateConfig((run,), tmp_path / "out"))
    expected, result = found
    assert result.rollout_per_frame == expected.rollout_per_frame
    assert result.one_step == expected.one_step
    for name in ("spectrum", "true_spectrum"):
        energies = np.array(getattr(result, name)) / unit**2
        np.testing.assert_allclose(energies, getattr(expected, name), rtol=1e-12)
