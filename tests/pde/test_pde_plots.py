"""Pictures of rollouts: right values, shared scales, upright; a GIF that moves; bands over seeds."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from monarch_sciml.pde import plots
from monarch_sciml.pde.plots import save_animation, save_error_over_time, save_rollouts, save_spectra
from monarch_sciml.training import plots as shared

TIMES = [float(t) for t in range(2, 10)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], shared.save_figure

    def remember(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(plots, "save_figure", remember)
    return figures


def fields(*grid, steps=8, seed=0):
    return torch.randn(steps, *grid, generator=torch.Generator().manual_seed(seed))


def test_rollouts_share_their_scales(tmp_path, drawn):
    truth = fields(6, 10)
    predictions = {"good": truth + 0.1 * fields(6, 10, seed=1), "bad": fields(6, 10, seed=2)}
    save_rollouts(tmp_path / "r.png", truth, predictions, TIMES)
    images = [axes.images[0] for axes in drawn[0].axes if axes.images]
    rows = [images[i : i + 4] for i in range(0, 20, 4)]
    top = truth.abs().max().item()
    worst = (predictions["bad"] - truth).abs().max().item()
    good, bad = predictions.values()
    shown = [(truth, top), (good, top), (good - truth, worst), (bad, top), (bad - truth, worst)]
    for row, (values, limit) in zip(rows, shown, strict=True):
        for image, step in zip(row, (0, 2, 5, 7), strict=True):
            assert np.array_equal(image.get_array(), values[step].T.numpy())  # x to the right
            assert image.get_clim() == pytest.approx((-limit, limit))
            assert image.origin == "lower"  # y upwards
    labels = [axes.get_ylabel() for axes in drawn[0].axes if axes.get_ylabel()]
    assert labels[:5] == ["truth", "good", "error of good", "bad", "error of bad"]
    assert [axes.get_title() for axes in drawn[0].axes[:4]] == ["t = 2", "t = 4", "t = 7", "t = 9"]


@pytest.mark.parametrize("grid", [(16,), (16, 12)])
def test_animation_moves_and_is_small(grid, tmp_path):
    steps = 50 if len(grid) == 2 else 6
    truth = fields(*grid, steps=steps)
    times = [float(t) for t in range(steps)]
    save_animation(tmp_path / "r.gif", truth, {"a": truth * 0.9, "b": truth * 1.1}, times)
    assert [path.name for path in tmp_path.iterdir()] == ["r.gif"]
    assert (tmp_path / "r.gif").stat().st_size < 1_000_000
    with Image.open(tmp_path / "r.gif") as picture:
        assert picture.n_frames == min(steps, 24)
        assert picture.info["loop"] == 0
        frames = []
        for i in range(picture.n_frames):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGB"), dtype=float))
    assert all(np.abs(a - b).mean() > 0.5 for a, b in pairwise(frames))


def test_animation_of_two_frames(tmp_path):
    truth = fields(8, 8, steps=2)
    save_animation(tmp_path / "r.gif", truth, {"a": truth}, TIMES)
    with Image.open(tmp_path / "r.gif") as picture:
        assert picture.n_frames == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_rollout_that_diverged_is_drawn(value, tmp_path, drawn):
    truth = fields(6, 6)
    broken = torch.full_like(truth, value)
    for path, draw in {"r.png": save_rollouts, "r.gif": save_animation}.items():
        draw(tmp_path / path, truth if value else truth * 0, {"broken": broken}, TIMES)
        assert (tmp_path / path).stat().st_size > 1000
    limits = {image.get_clim() for axes in drawn[0].axes for image in axes.images}
    assert np.isfinite(list(limits)).all()


def test_error_over_time_with_seeds(tmp_path, drawn):
    errors = [[0.1, 0.2, 0.4], [0.3, 0.1, 0.2]]
    save_error_over_time(tmp_path / "e.png", {"fno": errors, "one": errors[0]}, [1, 2, 3])
    axes = drawn[0].axes[0]
    assert np.allclose(axes.lines[0].get_xydata(), [[1, 0.2], [2, 0.15], [3, 0.3]])
    assert np.allclose(axes.lines[1].get_ydata(), errors[0])
    points = axes.collections[0].get_paths()[0].vertices
    edges = {1: (0.1, 0.3), 2: (0.1, 0.2), 3: (0.2, 0.4)}
    assert {(x, y) for x, y in points.tolist()} == {(t, error) for t in edges for error in edges[t]}
    assert axes.get_yscale() == "log"


def test_spectra_leave_the_mean_out(tmp_path, drawn):
    truth = [9.0, 4.0, 2.0, 1.0]
    save_spectra(tmp_path / "s.png", {"truth": truth, "a": truth, "b": [truth, [9, 2, 2, 1]]})
    axes = drawn[0].axes[0]
    for line, expected in zip(axes.lines, [truth[1:], truth[1:], [3, 2, 1]], strict=True):
        assert np.array_equal(line.get_xydata(), np.c_[[1, 2, 3], expected])
    assert axes.lines[0].get_color() == "black"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["truth", "a", "b, 2 seeds"]
