"""The control with learned weights of k-space: the same start, the same settings, only weights that learn."""

import copy
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from monarch_sciml.linalg import centered_dft
from monarch_sciml.mri import models, recipe
from monarch_sciml.mri.simulation import SimulateConfig
from monarch_sciml.training import read_json

FOLDER = Path(__file__).parents[2] / "benchmarks" / "paper_mri"
SCRIPTS = ("weights", "table", "answers", "report")
CONTROLS = ("gains", "map")
SHAPE = (48, 32)  # factors of 6 · 8 and 4 · 8


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The script and the table's, with volumes and networks of seconds and a place of their own."""
    monkeypatch.syspath_prepend(FOLDER)
    weights, table, mri, _ = map(import_module, SCRIPTS)
    monkeypatch.setattr(table, "SIMULATED", SimulateConfig(volumes=3, coils=(4,), slices=2, shape=SHAPE))
    monkeypatch.setattr(mri, "HELD_OUT", 1)
    monkeypatch.setattr(mri, "DATA", tmp_path / "data")
    monkeypatch.setattr(mri, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(weights, "RESULTS", tmp_path)
    monkeypatch.setattr(recipe, "POISSON_DISCS", 4)
    whole = mri.configuration
    small = {"n_train": 2, "n_test": 1, "epochs": 3, "cascades": 2, "channels": 2, "pools": 1}
    monkeypatch.setattr(mri, "configuration", lambda case: replace(whole(case), **small))
    yield weights, table, mri
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def network(weights=None, control=None):
    torch.manual_seed(0)
    config = models.ModelConfig("varnet-monarch", SHAPE, cascades=2, channels=2, pools=1)
    if control is None:
        return config.build()
    with patch.object(models, "LearnedFourier", weights.CONTROLS[control]):
        return config.build()


def measured():
    generator = torch.Generator().manual_seed(1)
    kspace, maps = (torch.randn(1, 3, *SHAPE, dtype=torch.complex64, generator=generator) for _ in "yS")
    pattern = torch.rand(1, *SHAPE, generator=generator) < 0.5
    return kspace * pattern[:, None], pattern, maps / 3


@pytest.mark.parametrize("control", CONTROLS)
def test_begins_as_varnet_monarch(scripts, control):
    weights, *_ = scripts
    table, ours = network(), network(weights, control)
    assert torch.equal(ours(*measured()), table(*measured()))
    transform, theirs = (models.learned_transforms(m) for m in (ours, table))
    assert len(transform) == len(theirs) == 1  # for all cascades
    assert all(
        torch.equal(transform[0].state_dict()[f], theirs[0].state_dict()[f]) for f in theirs[0]._parameters
    )
    sizes = {"gains": {"gains_y": (48,), "gains_x": (32,)}, "map": {"weights": SHAPE}}[control]
    assert {name: tuple(p.shape) for name, p in transform[0].named_parameters()} == sizes
    # the rest begins the same and is trained the same
    rest = [{n: p for n, p in m.named_parameters() if "transforms" not in n} for m in (ours, table)]
    assert rest[0].keys() == rest[1].keys()
    assert all(torch.equal(rest[0][name], rest[1][name]) for name in rest[0])


@pytest.mark.parametrize("control", CONTROLS)
def test_is_the_exact_inverse_of_weighted_kspace(scripts, control):
    weights, *_ = scripts
    transform = models.learned_transforms(network(weights, control))[0].double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in transform.parameters():
            p.copy_(torch.rand(p.shape, generator=generator))
    w = transform.weights if control == "map" else transform.gains_y[:, None] * transform.gains_x
    x, maps = (torch.randn(2, 3, *SHAPE, dtype=torch.complex128, generator=generator) for _ in "xS")
    H, W = (centered_dft(n).conj() for n in SHAPE)
    images = H @ (w * x) @ W.mT
    found = transform.operator(x.shape).combine(x, maps)
    torch.testing.assert_close(found, (maps.conj() * images).sum(-3), rtol=1e-6, atol=1e-6)
    # a gradient is that of the weights, and of nothing else
    transform.zero_grad()
    found.abs().square().sum().backward()
    expected = torch.autograd.grad(
        (maps.conj() * images).sum(-3).abs().square().sum(), [*transform.parameters()]
    )
    for p, gradient in zip(transform.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-5)  # factors were rounded to float32
    if control == "gains":
        for axis, n in zip("yx", SHAPE, strict=True):
            gains = getattr(transform, f"gains_{axis}")
            torch.testing.assert_close(
                transform.matrix(axis), centered_dft(n).conj() * gains, rtol=0, atol=1e-7
            )
        flat = copy.deepcopy(transform)
        with torch.no_grad():
            flat.gains_y.fill_(0.5)
        assert (flat.matrix("y", 45) - centered_dft(45).conj() / 2).abs().max() < 1e-6  # of other sizes too
    else:
        distance = torch.linalg.vector_norm(transform.weights.detach() - 1) / (48 * 32) ** 0.5
        torch.testing.assert_close(transform.departure().detach(), distance)


@pytest.mark.parametrize("control", CONTROLS)
def test_trains_weights_alone_at_the_rate_of_the_transform(scripts, tmp_path, monkeypatch, control, capsys):
    weights, table, mri = scripts
    files = table.held_out()
    baselines = [mri.Case(model) for model in ("varnet", "varnet-monarch")]
    assert all(mri.run(case, float("inf")) for case in baselines)
    monkeypatch.setattr(sys, "argv", ["weights.py", "--control", control, "--seeds", "0"])
    weights.main()
    run = tmp_path / "runs" / f"varnet-{control}-2x-4x-8x-5epochs-0"

    monarch = tmp_path / "runs" / str(baselines[1])
    ours, theirs = (read_json(path / "config.json") for path in (run, monarch))
    ours["config"].pop("out"), theirs["config"].pop("out")
    assert ours == theirs  # data, masks, seed, optimiser and all
    assert not issubclass(models.LearnedFourier, tuple(weights.CONTROLS.values()))  # as it was

    start = network(weights, control).state_dict()
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    end = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    assert start.keys() == end.keys()
    of_transform = {name for name in start if "transforms" in name}
    learned = {name for name in of_transform if "gains" in name or "weights" in name}
    assert len(of_transform - learned) == 4
    assert all(torch.equal(start[name], end[name]) for name in of_transform - learned)  # L and R of both axes
    rest, apart = checkpoint["optimizer_states"][0]["param_groups"]
    assert apart["max_lr"] == pytest.approx(3 * rest["max_lr"])
    assert rest["max_lr"] == 1e-3
    states = checkpoint["optimizer_states"][0]["state"]
    shapes = [tuple(states[i]["exp_avg"].shape) for i in apart["params"]]
    assert shapes == [tuple(start[name].shape) for name in start if name in learned]
    assert all((end[name] - 1).abs().max() > 1e-4 for name in learned)

    answers = sorted((tmp_path / "runs" / "evaluation").iterdir())
    assert len(answers) == 3 * len(files)
    found = json.loads((run.with_suffix(".json")).read_text())
    assert found.keys() == {"2x", "4x", "6x", "8x"}
    volume = read_json(tmp_path / "runs" / "evaluation" / f"{run.name}-at-4x-held-out.json")["volumes"][0]
    assert found["4x"][run.name] == pytest.approx(volume["nmse"])
    assert found["4x"].keys() == {run.name, *map(str, baselines)}
    fft, _, ours = found["4x"].values()
    table = (tmp_path / "paper_mri_weights.md").read_text()
    assert f"| {control} | 0 | 4x |" in table
    assert f"| {100 * (ours / fft - 1):+.1f} % |" in table
    times = [path.stat().st_mtime_ns for path in (*answers, run / "metrics.csv")]
    capsys.readouterr()
    weights.main()  # nothing is done twice
    assert times == [path.stat().st_mtime_ns for path in (*answers, run / "metrics.csv")]
    assert len(capsys.readouterr().out.splitlines()) == 3 * len(files)


def test_another_rate_is_another_training(scripts, monkeypatch):
    weights, _, mri = scripts
    configs = []
    monkeypatch.setattr(weights, "train", configs.append)
    monkeypatch.setattr(mri, "answer", lambda question, maps: {"volumes": [{"nmse": 1.0}]})
    monkeypatch.setattr(weights, "write_json", lambda path, content: None)
    for rate in (weights.RATE, 10.0):
        weights.compare("gains", 1, rate, [])
    assert [(c.transform_rate, c.seed, c.out.name) for c in configs] == [
        (3.0, 1, "varnet-gains-2x-4x-8x-5epochs-1"),
        (10.0, 1, "varnet-gains-rate10-2x-4x-8x-5epochs-1"),
    ]
