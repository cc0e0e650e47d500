"""Evaluation: its numbers are those of a direct computation, its files are whole, its refusals clear."""

import dataclasses
import importlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn
from waves import save_waves, waves

from monarch_sciml.errors import InputError
from monarch_sciml.pde import plots
from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.pde.evaluation import EvaluateConfig, Evaluation, evaluate, evaluate_run, markdown_table
from monarch_sciml.pde.metrics import energy_spectrum
from monarch_sciml.pde.models import FramePredictor, count_parameters
from monarch_sciml.pde.recipe import TrainConfig, train
from monarch_sciml.pde.rollouts import rollout

# the package exports the function under the name of its module
recipe = importlib.import_module("monarch_sciml.pde.recipe")

FILES = [
    "error_over_time.png",
    "evaluation.json",
    "metrics.json",
    "rollout.gif",
    "rollout.png",
    "spectrum.png",
    "table.md",
    "training.png",
]


def trained(out: Path, data: Path, **changes) -> Path:
    settings = {"modes": 4, "width": 4, "layers": 2, "n_train": 5, "n_test": 3, "epochs": 2, "batch": 2}
    settings |= {"device": "cpu", "quiet": True}
    return train(TrainConfig(data=data, out=out, **{**settings, **changes}))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_waves(tmp_path_factory.mktemp("data") / "waves.npy", grid=(32, 32))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> tuple[Path, Path]:
    """FNO and FNO-Monarch, trained on every second grid point."""
    path = tmp_path_factory.mktemp("runs")
    return tuple(trained(path / kind, data, model=kind, every=2) for kind in ("fno", "fno-monarch"))  # type: ignore[return-value]


@pytest.fixture
def curves(monkeypatch) -> list[list[str]]:
    """Draw nothing, which takes most of the time of an evaluation; the names of the curves instead."""
    drawn = []
    for name in plots.__all__:
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr(plots, "save_error_over_time", lambda path, curves, times: drawn.append([*curves]))
    return drawn


def expected_errors(run: Path, w: torch.Tensor) -> dict[str, np.ndarray]:
    """Of trajectories (N, T, x, y), frame by frame, without the package's own error functions."""
    model = FramePredictor.from_pretrained(run)
    w = w[:, :, None]
    with torch.no_grad():
        prediction = rollout(model, w[:, :1], w.shape[1] - 1).numpy()
        one_step = torch.stack([model(w[:, t : t + 1]) for t in range(w.shape[1] - 1)], dim=1).numpy()
    y = w[:, 1:].numpy()

    def norm(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.sqrt((a.astype(np.float64) ** 2).sum(axes))

    frame, block = (2, 3, 4), (1, 2, 3, 4)
    return {
        "one_step": (norm(one_step - y, frame) / norm(y, frame)).mean(0),
        "frames": (norm(prediction - y, frame) / norm(y, frame)).mean(0),
        "blocks": norm(prediction - y, block) / norm(y, block),
        "prediction": prediction[:, :, 0],
    }


def assert_numbers(result: Evaluation, run: Path, w: torch.Tensor) -> None:
    expected = expected_errors(run, w)
    assert result.one_step_per_frame == pytest.approx(expected["one_step"], rel=1e-4)
    assert result.rollout_per_frame == pytest.approx(expected["frames"], rel=1e-4)
    assert result.one_step == pytest.approx(expected["one_step"].mean(), rel=1e-4)
    assert result.rollout == pytest.approx(expected["blocks"].mean(), rel=1e-4)
    spread = expected["blocks"].std(ddof=1) / math.sqrt(len(w))
    assert result.rollout_standard_error == pytest.approx(spread, rel=1e-3)
    assert result.true_spectrum == pytest.approx(energy_spectrum(w[:, -1]).mean(0).numpy(), rel=1e-5)
    predicted = energy_spectrum(torch.from_numpy(expected["prediction"][:, -1])).mean(0)
    assert result.spectrum == pytest.approx(predicted.numpy(), rel=1e-3)
    assert result.trajectories == len(w)
    assert result.grid == w.shape[2:]


def test_numbers_on_held_out_trajectories(runs):
    w = torch.from_numpy(waves(grid=(32, 32))[-3:, :, ::2, ::2])
    for run in runs:
        result, (truth, prediction) = evaluate_run(run)
        assert_numbers(result, run, w)
        assert torch.equal(truth, w[0, 1:])
        np.testing.assert_allclose(prediction, expected_errors(run, w)["prediction"][0], atol=1e-5)
        assert result.parameters == count_parameters(FramePredictor.from_pretrained(run))
        assert (result.run, result.model, result.protocol, result.seed) == (run.name, run.name, "B", 0)
        assert result.times == [1, 2, 3, 4, 5]
        last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
        assert result.train_seconds == float(last[1]) > 0
        assert result.rollout == pytest.approx(float(last[3]), rel=1e-4)


def test_numbers_at_another_resolution(runs):
    w = torch.from_numpy(waves(grid=(32, 32))[-3:])
    for run in runs:
        result, _ = evaluate_run(run, every=1)
        assert result.grid == (32, 32)
        assert_numbers(result, run, w)


def test_numbers_on_other_data(runs, tmp_path):
    other = save_waves(tmp_path / "other.npy", samples=4, frames=5, grid=(24, 30), seed=5)
    w = torch.from_numpy(waves(samples=4, frames=5, grid=(24, 30), seed=5))
    result, _ = evaluate_run(runs[1], data=other, every=1)
    assert_numbers(result, runs[1], w)


def is_a_picture(path: Path) -> bool:
    image = imread(path)[..., :3]
    return min(image.shape[:2]) > 200 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_files(runs, tmp_path):
    results = evaluate(EvaluateConfig(runs=runs, out=tmp_path / "a" / "evaluation"))
    out = tmp_path / "a" / "evaluation"
    assert sorted(f.name for f in out.iterdir()) == [*FILES, "transform.png"]
    saved = json.loads((out / "metrics.json").read_text())
    assert saved == json.loads(json.dumps([dataclasses.asdict(r) for r in results]))
    assert (out / "table.md").read_text() == markdown_table(results)
    settings = json.loads((out / "evaluation.json").read_text())
    assert settings["runs"] == [str(run) for run in runs]
    assert all(is_a_picture(f) for f in out.glob("*.png"))


def test_evaluating_again_replaces_the_files(runs, tmp_path):
    first = evaluate(EvaluateConfig(runs=runs[:1], out=tmp_path))
    second = evaluate(EvaluateConfig(runs=runs[:1], out=tmp_path, every=1))
    assert first != second
    assert sorted(f.name for f in tmp_path.iterdir()) == FILES
    assert json.loads((tmp_path / "metrics.json").read_text())[0]["grid"] == [32, 32]


def test_evaluation_may_go_into_the_run_directory(runs, tmp_path, curves):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    first = evaluate(EvaluateConfig(runs=(run,), out=run))
    assert evaluate(EvaluateConfig(runs=(run,), out=run)) == first  # the run is still one


def test_markdown_table(runs):
    results = [evaluate_run(run)[0] for run in runs]
    better = dataclasses.replace(results[1], rollout=0.6 * results[0].rollout, rollout_standard_error=None)
    lines = markdown_table([results[0], better]).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith(f"| fno | 0 | {results[0].parameters:,} | ")
    assert f"| {results[0].rollout:.4f} ± {results[0].rollout_standard_error:.4f} |  |" in lines[2]
    assert lines[3].endswith(f"| {better.rollout:.4f} | -40 % |")
    assert lines[-1].startswith("Relative L2 errors over 3 held-out trajectories on 16 × 16 points")
    assert lines[-1].endswith("rollout over 5 frames, t = 1 … 5.")


def test_runs_of_one_model_are_told_apart(data, runs, tmp_path, curves):
    """By the names of their folders, or by their paths; repetitions with another seed are one curve."""
    other = trained(tmp_path / "longer", data, model="fno", every=2, epochs=3)
    evaluate(EvaluateConfig(runs=(runs[0], other), out=tmp_path / "a"))
    same_name = Path(shutil.copytree(other, tmp_path / "b" / "fno"))
    evaluate(EvaluateConfig(runs=(runs[0], same_name), out=tmp_path / "c"))
    evaluate(EvaluateConfig(runs=runs, out=tmp_path / "d"))
    repetition = trained(tmp_path / "seed1", data, model="fno", every=2, seed=1)
    evaluate(EvaluateConfig(runs=(*runs, repetition), out=tmp_path / "e"))
    both = ["fno", "fno-monarch"]
    assert curves == [["fno", "longer"], [str(runs[0]), str(same_name)], both, both]


def test_unfinished_run(data, runs, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*arguments, **options):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "relative_l2", stop)
        with pytest.raises(Stop):
            trained(tmp_path / "run", data)
    with pytest.raises(
        InputError, match=r"a finished training in .*run; found no exported model; .*--resume"
    ):
        evaluate(EvaluateConfig(runs=(runs[0], tmp_path / "run"), out=tmp_path / "evaluation"))
    with pytest.raises(InputError, match=r"a finished training in .*nowhere; .*check the path"):
        evaluate(EvaluateConfig(runs=(tmp_path / "nowhere",), out=tmp_path / "evaluation"))
    assert not (tmp_path / "evaluation").exists()


def test_a_model_folder_in_its_run_directory_stands_for_it(runs, tmp_path, curves):
    (expected,) = evaluate(EvaluateConfig(runs=(runs[1],), out=tmp_path / "a"))
    (found,) = evaluate(EvaluateConfig(runs=(runs[1] / "model",), out=tmp_path / "b"))
    assert found == expected


def test_a_model_folder_alone_is_evaluated_on_data(runs, data, tmp_path, monkeypatch):
    """What only the run directory tells is left out."""
    drawn = []
    for name in plots.__all__:
        monkeypatch.setattr(plots, name, lambda path, *rest: drawn.append((path.name, rest[0])))
    alone = Path(shutil.copytree(runs[1] / "model", tmp_path / "model"))
    expected, _ = evaluate_run(runs[1], data=data, every=2)
    settings = {"out": tmp_path / "a", "data": data, "every": 2}
    (found,) = evaluate(EvaluateConfig(runs=(alone,), **settings))
    assert found.rollout_per_frame == expected.rollout_per_frame
    assert (found.model, found.protocol, found.seed, found.epochs) == ("fno-monarch", "B", None, None)
    assert "| fno-monarch |  |" in (tmp_path / "a" / "table.md").read_text()
    assert "training.png" not in dict(drawn)
    evaluate(EvaluateConfig(runs=(alone, runs[0]), **settings))
    assert dict(drawn)["training.png"] == {"fno": [runs[0] / "metrics.csv"]}
    with pytest.raises(InputError, match=r"does not say where those of its training are; .*pass --data, or"):
        evaluate(EvaluateConfig(runs=(alone,), out=tmp_path / "b"))
    with pytest.raises(InputError, match=r"every of at least 1; found 0"):
        evaluate_run(alone, data=data, every=0)


def test_paths_may_be_strings(runs, tmp_path, curves):
    (expected,) = evaluate(EvaluateConfig(runs=(runs[0],), out=tmp_path / "a"))
    for given in (str(runs[0]), [str(runs[0])], runs[0]):
        config = EvaluateConfig(runs=given, out=str(tmp_path / "b"))  # type: ignore[arg-type]
        assert config == EvaluateConfig(runs=(runs[0],), out=tmp_path / "b")
        assert evaluate(config) == [expected]
    assert evaluate_run(str(runs[0]))[0] == expected  # type: ignore[arg-type]


def test_runs_that_cannot_be_compared(data, runs, tmp_path):
    """Other frames, another grid, other held-out trajectories."""
    for name, changes in {"f": {"first_frame": 1}, "e": {}, "n": {"n_test": 2}}.items():
        other = trained(tmp_path / name, data, **{"every": 2, "epochs": 1, **changes} if name != "e" else {})
        with pytest.raises(
            InputError, match=r"same frames of the same trajectories on the same grid; found fno: "
        ):
            evaluate(EvaluateConfig(runs=(runs[0], other), out=tmp_path / "evaluation"))
    other = trained(tmp_path / "d", save_waves(tmp_path / "d.npy", grid=(32, 32), seed=9), every=2, epochs=1)
    with pytest.raises(InputError, match=r"same frames of the same trajectories"):
        evaluate(EvaluateConfig(runs=(runs[0], other), out=tmp_path / "evaluation"))
    assert not (tmp_path / "evaluation").exists()


def test_refusals(runs, tmp_path):
    def refused(match: str, **changes) -> None:
        with pytest.raises(InputError, match=match):
            evaluate(EvaluateConfig(**{"runs": runs[:1], "out": tmp_path / "evaluation", **changes}))
        assert not (tmp_path / "evaluation").exists()

    refused(
        r"trajectories of 1 channels on 2 axes; found .*1 channels × 16 points", data=_line(tmp_path), every=1
    )
    short = save_waves(tmp_path / "short.npy", frames=1, grid=(32, 32))
    refused(r"more than 1 frames for protocol B; found 1 in short.npy; add the state", data=short)
    refused(r"expected .*; found .*", data=tmp_path / "nothing.npy")
    refused(r"every of at least 1; found 0", every=0)
    refused(r"every ≥ 1 that divides", every=5)
    (tmp_path / "file").write_text("")
    refused(r"an output directory that can be written", out=tmp_path / "file" / "evaluation")
    with pytest.raises(InputError, match="at least one run directory; found none; pass --runs"):
        EvaluateConfig(runs=(), out=tmp_path)


def _line(path: Path) -> Path:
    return save_waves(path / "line.npy", grid=(16,))


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("metrics.csv", None, r"the table of a training, .*metrics.csv; found .*; restore it"),
        ("metrics.csv", "epoch,seconds\n", r"the table of a training"),
        ("metrics.csv", "epoch\n1\n", r"the table of a training"),
        ("metrics.csv", "epoch,seconds\n1\n", r"the table of a training"),
        ("config.json", None, r"a file config.json; found none"),
        (
            "config.json",
            '{"config": {"depth": 3}}',
            r"the settings of a training in .*; found KeyError: 'data'",
        ),
        ("config.json", '{"config": {"data": "a", "depth": 3}}', r"the settings of a training in .*depth"),
        ("model/model.safetensors", "junk", r"a safetensors file"),
    ],
)
def test_damaged_run(runs, tmp_path, file, content, match):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / file).unlink() if content is None else (run / file).write_text(content)
    with pytest.raises(InputError, match=match):
        evaluate(EvaluateConfig(runs=(run,), out=tmp_path / "evaluation"))
    assert not (tmp_path / "evaluation").exists()


def test_evaluation_does_not_depend_on_the_directory_it_is_run_from(tmp_path, monkeypatch, curves):
    save_waves(tmp_path / "waves.npy")
    monkeypatch.chdir(tmp_path)
    trained(Path("run"), Path("waves.npy"), epochs=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(EvaluateConfig(runs=(Path("../run"),), out=Path("evaluation")))[0].run == "run"
    monkeypatch.chdir(tmp_path / "run")
    assert evaluate_run(Path())[0].run == "run"


@pytest.mark.parametrize("model", ["fno", "fno-monarch"])
def test_one_dimensional_data(tmp_path, model):
    data = save_waves(tmp_path / "burgers.npy", samples=8, grid=(20,))
    run = trained(tmp_path / "run", data, model=model)
    (result,) = evaluate(EvaluateConfig(runs=(run,), out=tmp_path / "evaluation"))
    assert result.grid == (20,)
    assert result.spectrum is None
    learned = ["transform.png"] if model == "fno-monarch" else []
    assert sorted(f.name for f in (tmp_path / "evaluation").iterdir()) == [
        *(f for f in FILES if "spec" not in f),
        *learned,
    ]
    assert all(is_a_picture(f) for f in (tmp_path / "evaluation").glob("*.png"))


def test_full_rollout_protocol(tmp_path, curves):
    data = save_waves(tmp_path / "long.npy", frames=13)
    run = trained(tmp_path / "run", data, protocol="A", residual=True)
    (result,) = evaluate(EvaluateConfig(runs=(run,), out=tmp_path / "evaluation"))
    assert result.times == [10, 11, 12]
    assert len(result.one_step_per_frame) == 3
    w = TrajectoryDataset(data, samples=slice(5, 8))
    model = FramePredictor.from_pretrained(run)
    with torch.no_grad():
        first = model(torch.stack([w[i][:10] for i in range(3)]))
    truth = torch.stack([w[i][10] for i in range(3)])
    error = ((first - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean().item()
    assert result.one_step_per_frame[0] == pytest.approx(error, rel=1e-5)
    assert result.rollout_per_frame[0] == pytest.approx(error, rel=1e-5)


def test_single_trajectory_has_no_standard_error(data, tmp_path, curves):
    run = trained(tmp_path / "run", data, n_test=1, epochs=1)
    (result,) = evaluate(EvaluateConfig(runs=(run,), out=tmp_path / "evaluation"))
    assert result.rollout_standard_error is None
    text = (tmp_path / "evaluation" / "metrics.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_diverging_model_is_evaluated_all_the_same(runs, tmp_path):
    """A rollout that overflows is a result, not a crash."""
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    model = FramePredictor.from_pretrained(run)
    last = [m for m in model.modules() if isinstance(m, nn.Conv1d)][-1]
    nn.init.constant_(last.bias, 1e30)  # type: ignore[arg-type]
    model.save_pretrained(run / "model")
    (result,) = evaluate(EvaluateConfig(runs=(run,), out=tmp_path / "evaluation"))
    assert not math.isfinite(result.rollout)
    assert len(list((tmp_path / "evaluation").glob("*.png"))) == 4
