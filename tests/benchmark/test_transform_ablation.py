"""The ablation of learned transforms: its variants, its data, and a run of it at tiny settings."""

import json
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from scipy.integrate import solve_ivp

from monarch_sciml.nn import MonarchSpectralConv
from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.pde.models import ModelConfig, count_parameters

FOLDER = Path(__file__).parents[2] / "benchmarks" / "transforms"
SCRIPTS = ("ablation", "problems", "variants")


@pytest.fixture
def script(monkeypatch):
    """Import one of the scripts, which find each other in their own folder; forget them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def model(seed=0):
    torch.manual_seed(seed)
    return ModelConfig("fno-monarch", (16, 16), channels=1, n_in=1, modes=8, width=4, layers=4).build()


def test_all_variants_begin_as_the_same_operator(script):
    variants, x = script("variants"), torch.randn(2, 1, 1, 16, 16)
    expected = model()(x)
    for name, variant in variants.VARIANTS.items():
        changed = model()
        variant.change(changed)
        others = ("padded", "padded-x1", "fixed-blocks", "blocks", "fixed-axes", "axes", "small")
        if "natural" in name or "from-sines" in name:
            continue  # other functions, and not unitary
        if name in (*others, "sines", "sines-fast"):  # another domain, other modes, weights or functions
            assert changed(x).shape == expected.shape
        else:
            torch.testing.assert_close(changed(x), expected, rtol=0, atol=1e-5, msg=name)
        departure, nonunitarity = variants.departures(changed)
        assert departure < 1e-6, name
        assert nonunitarity < 1e-5, name


def test_stretched_grids_hold_the_same_waves(script):
    problems = script("problems")
    u = torch.arange(16, dtype=torch.float64) / 16
    x = torch.rand(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1
    P = problems.trigonometric_interpolation(16, x)
    for k in range(8):
        for wave in (torch.cos, torch.sin):
            torch.testing.assert_close(P @ wave(2 * math.pi * k * u), wave(2 * math.pi * k * x))
    torch.testing.assert_close(P.sum(1), torch.ones_like(x))
    torch.testing.assert_close(
        problems.trigonometric_interpolation(16, u), torch.eye(16, dtype=torch.float64)
    )


def test_natural_transforms_know_the_waves_of_the_flow(script):
    """On the stretched grid a wave of the flow is one mode, and every mode becomes its wave again."""
    problems, variants, changed = script("problems"), script("variants"), model()
    variants.natural(changed)
    layer, (x, _) = variants.layers(changed)[0], problems.crowded(16)
    for way in (layer.analysis, layer.synthesis):
        assert not any(t.L.requires_grad for t in way)
    wave = torch.exp(2j * math.pi * 2 * x)
    found = torch.complex(*layer.analysis[0]().double()) @ wave
    torch.testing.assert_close(found.abs(), (torch.arange(-4, 4) == 2).double(), rtol=0, atol=0.03)
    V = torch.complex(*layer.synthesis[0].adjoint().double())
    torch.testing.assert_close(V[:, 6], wave, rtol=0, atol=1e-6)


def test_transforms_that_begin_as_sines_keep_them(script):
    """Products of sines, odd and even ones, are combinations of the modes."""
    variants, changed = script("variants"), model()
    variants.from_sines(changed)
    layer, j = variants.layers(changed)[0], torch.arange(16)
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.copy_(torch.eye(4)[..., None] * torch.tensor([1.0, 0.0]))
    for a, b in ((1, 1), (3, 2), (8, 9), (5, 10)):
        x = (math.pi * a * j / 16).sin()[:, None] * (math.pi * b * j / 16).sin()
        x = x * torch.tensor([1.0, -2.0, 0.5, 3.0])[None, :, None, None]
        torch.testing.assert_close(layer(x), x, rtol=0, atol=1e-5)


def test_variants_free_as_many_numbers_as_they_say(script):
    variants = script("variants")
    every = {t: sum(p.numel() for p in t.parameters()) for t in variants.transforms(model())}
    total, of_layers = sum(every.values()), count_parameters(model()) - sum(every.values())
    free = {}
    for name in ("fixed", "tied", "shared", "synthesis", "dense", "uneven", "gains"):
        changed = model()
        variants.VARIANTS[name].change(changed)
        free[name] = count_parameters(changed) - of_layers
    assert free["fixed"] == 0
    assert free["gains"] == (8 + 8) * 2 * 4  # factors hold rows in fours, of which the last three are unused
    assert free["tied"] == free["synthesis"] == total / 2
    assert free["shared"] == total / 4
    # 8 of 16 frequencies one way, 5 the other; two directions, four layers, real and imaginary
    assert free["dense"] == (8 + 5) * 16 * 2 * 4 * 2
    # L (2, ⌈m/2⌉, 8) and R (8, 2, 2)
    assert free["uneven"] == ((2 * 4 * 8 + 32) + (2 * 3 * 8 + 32)) * 2 * 4 * 2


def test_blocks_have_all_modes_and_mix_channels_in_groups(script):
    variants, changed = script("variants"), model()
    variants.blocks(changed)
    layer = variants.layers(changed)[0]
    assert layer.n_modes == (16, 16)
    assert layer.weight.shape == (16, 9, 4, 4, 2)
    assert variants.spectral_weights(changed)[0].shape == (16, 9, 4, 1, 1, 2)
    between = ~torch.eye(4, dtype=torch.bool)
    assert layer.weight[:, :, between].abs().max() == 0 < layer.weight[:, :, ~between].abs().min()
    both = variants.Blocks(2)
    weight = torch.randn(3, 2, 4, 3, 2)
    assert torch.equal(
        both(both.right_inverse(torch.cat((weight, weight), 3)))[..., :2, :3, :], weight[..., :2, :, :]
    )


def test_sines_vanish_on_the_walls_and_multiply_modes(script):
    """One mode in, the same mode out, in another weight: in a basin, and between ends half a cell away."""
    variants = script("variants")
    for grid, offset in (((16, 16), 0.0), ((16,), 0.5)):
        layer = variants.Sines(MonarchSpectralConv(1, 1, 8, grid=grid))
        with torch.no_grad():
            layer.bias.zero_()
        assert layer.weight.shape == (8,) * len(grid) + (1, 1)
        x = (3 * math.pi * (torch.arange(16) + offset) / 16).sin()
        field = x if len(grid) == 1 else x[:, None] * x
        weight = layer.weight[(2,) * len(grid)].item()
        torch.testing.assert_close(layer(field[None, None])[0, 0], weight * field, rtol=1e-4, atol=1e-5)
        if len(grid) == 2:
            assert layer(torch.randn(1, 1, 16, 16))[..., 0, :].abs().max() == 0


def test_small_weights_are_those_of_li_et_al(script):
    variants, changed = script("variants"), model()
    variants.small(changed)
    weight = variants.layers(changed)[0].weight
    assert 0 <= weight.min() < 0.1 / 16 < 0.9 / 16 < weight.max() <= 1 / 16


def test_every_number_that_learns_has_one_learning_rate(script):
    ablation, variants = script("ablation"), script("variants")
    for name, variant in variants.VARIANTS.items():
        changed = model()
        variant.change(changed)
        groups = ablation.groups(changed, variant)
        assert sum(p.numel() for group in groups for p in group["params"]) == count_parameters(changed)
        rates = {p: group["lr"] / ablation.RATE for group in groups for p in group["params"]}
        weights = variants.spectral_weights(changed)
        assert len(weights) == (8 if "axes" in name else 4)
        assert all(rates[p] == pytest.approx(variant.spectral) for p in weights)
        learned = [p for t in variants.transforms(changed) for p in t.parameters() if p.requires_grad]
        assert all(rates[p] == pytest.approx(variant.rate) for p in learned)


def test_channels_mix_along_each_axis(script):
    variants = script("variants")
    changed = model()
    variants.axes(changed)
    layer = variants.layers(changed)[0]
    A, B = (torch.view_as_complex(f) for f in layer.parametrizations.weight.parameters())
    w = torch.view_as_complex(layer.weight)
    for k in range(8):
        for l in range(5):
            torch.testing.assert_close(w[k, l], A[k] @ B[l])
    draws = torch.stack([variants.Axes()(*variants.Axes().right_inverse(layer.weight)) for _ in range(100)])
    # real and imaginary parts of a variance of 1 / channels
    assert draws.square().sum(-1).mean().item() == pytest.approx(1 / 4, rel=0.1)


def test_reports_are_gone_on_with(script, tmp_path, monkeypatch):
    ablation = script("ablation")
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    assert ablation.kept() == {}
    row = {"problem": "torus", "variant": "x1", "seed": 2, "curve": []}
    (tmp_path / "transform_ablation.json").write_text(json.dumps({"runs": [row]}))
    assert ablation.kept() == {ablation.Case("torus", "x1", 2): row}


def test_the_basin_has_walls(script):
    problems = script("problems")
    generator = torch.Generator().manual_seed(0)
    w = problems.wind_driven(2, 32, [0.5, 1.0], generator)
    assert w.shape == (2, 2, 16, 16)
    walls = torch.cat((w[..., 0, :], w[..., :, 0]), dim=-1)
    assert walls.abs().max() < 1e-5 * w.abs().max()
    # the other two walls lie beyond the last point, where the field is odd as well
    field = problems.odd(torch.randn(1, 32, 32, dtype=torch.float64), -1)
    torch.testing.assert_close(field[..., 17:], -field[..., 1:16].flip(-1))
    assert not torch.allclose(w[:, 0], w[:, 1])


def test_burgers_between_fixed_ends_against_finite_differences(script):
    k = torch.arange(1, 65, dtype=torch.float64) * math.pi
    c = (torch.randn(1, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)) / (k**2 + 25)
    c = c / c.square().sum().sqrt() * 2**0.5
    found = script("problems").between_fixed_ends(c, frames=4, points=400)
    n = 400
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    u0 = (c @ (k[:, None] * x).sin())[0]
    torch.testing.assert_close(found[0, 0], u0)

    def tendency(_, u):
        u = torch.from_numpy(u)
        ghost = torch.cat((-u[:1], u, -u[-1:]))  # zero on the ends, half a cell outside
        flux = ghost.square() / 2
        change = 0.01 * (ghost[2:] - 2 * ghost[1:-1] + ghost[:-2]) * n**2 - (flux[2:] - flux[:-2]) * n / 2
        return change.numpy()

    solution = solve_ivp(tendency, (0, 0.3), u0.numpy(), method="LSODA", rtol=1e-7, atol=1e-9)
    expected = torch.from_numpy(solution.y[:, -1])
    assert torch.linalg.vector_norm(found[0, 3] - expected) < 2e-3 * torch.linalg.vector_norm(expected)


def test_trains_once_and_reports_what_is_done(script, tmp_path, monkeypatch, capsys):
    ablation = script("ablation")
    generator = torch.Generator().manual_seed(0)

    def read(_):
        return TrajectoryDataset.from_array(torch.randn(4, 3, 8, 8, generator=generator))

    tiny = replace(ablation.PROBLEMS["torus"], read=read, n_train=2, n_test=2, epochs=2, modes=4, width=4)
    monkeypatch.setitem(ablation.PROBLEMS, "torus", tiny)
    monkeypatch.setattr(ablation, "RUNS", tmp_path)
    monkeypatch.setattr(ablation, "RESULTS", tmp_path)
    cases = [ablation.Case("torus", name, 0) for name in ("fixed", "x0.3", "noise")]
    assert ablation.run(cases[0], 0.0, None) is None  # too late
    results = {case: ablation.run(case, math.inf, None) for case in cases}
    assert [row["epoch"] for row in results[cases[0]]["curve"]] == [1, 2]
    assert results[cases[0]]["departure"] < 1e-6 < results[cases[1]]["departure"]
    assert ablation.run(cases[1], 0.0, None) == results[cases[1]]  # found, not trained again
    ablation.report(results, total=9)
    text = (tmp_path / "transform_ablation.md").read_text()
    assert "3 of 9 trainings are done" in text
    assert text.count("\n| ") == 1 + len(cases)
    assert (tmp_path / "transform_ablation.png").stat().st_size > 10_000
    assert (tmp_path / "transform_ablation_torus.png").exists()


def test_given_data_need_a_directory(script):
    with pytest.raises(FileNotFoundError, match="--inputs"):
        script("problems").given("darcy")(None)


def test_the_same_problems_and_variants_everywhere(script):
    ablation = script("ablation")
    assert ablation.WANTED.keys() == ablation.PROBLEMS.keys()
    assert {name for names in ablation.WANTED.values() for name in names} == ablation.VARIANTS.keys()
    assert all("fixed" in names for names in ablation.WANTED.values())
