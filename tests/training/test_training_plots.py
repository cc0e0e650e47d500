"""Shared pictures: bands over seeds hold the numbers they should, transforms show what was learned."""

import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn

from monarch_sciml import LearnedFourier, LearnedTransform, MonarchSpectralConv
from monarch_sciml.errors import InputError
from monarch_sciml.training import files, plots
from monarch_sciml.training.plots import (
    COLOURS,
    draw_curves,
    new_axes,
    same_but_for_seed,
    save_figure,
    save_training_curves,
    save_transform,
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], plots.save_figure

    def remember(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(plots, "save_figure", remember)
    return figures


def band(collection):
    """Lower and upper edge by x of what ``fill_between`` drew."""
    points = collection.get_paths()[0].vertices
    at = {x: points[points[:, 0] == x, 1] for x in np.unique(points[:, 0])}
    return {x: (y.min(), y.max()) for x, y in at.items()}


def test_band_is_mean_lowest_and_highest():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([[1.0, 5.0, 2.0], [3.0, 4.0, 9.0], [2.0, 0.5, 1.0]])
    _, axes = new_axes("title", "x", "y")
    draw_curves(axes, {"many": (x, y), "one": (x, y[0])})
    many, one = axes.lines
    assert np.array_equal(many.get_xdata(), x)
    assert many.get_ydata() == pytest.approx(y.mean(0))
    assert np.array_equal(one.get_ydata(), y[0])
    (filled,) = axes.collections
    assert band(filled) == {1.0: (1.0, 3.0), 2.0: (0.5, 5.0), 4.0: (1.0, 9.0)}
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["many, 3 seeds", "one"]
    assert legend.get_title().get_text() == "line: mean of the seeds, band: lowest to highest"


def test_curves_beyond_the_palette_are_all_drawn_and_differ():
    _, axes = new_axes("title", "x", "y")
    draw_curves(axes, {str(i): (np.arange(3), np.arange(3) + i) for i in range(9)})
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9
    assert axes.get_legend().get_title().get_text() == ""
    assert not axes.collections


def test_a_name_has_one_colour_in_all_panels():
    colours = []
    for shown in (["a", "b", "c"], ["c"], ["b", "c"]):
        _, axes = new_axes("title", "x", "y")
        draw_curves(axes, {name: (np.arange(3), np.arange(3)) for name in shown}, ["a", "b", "c"])
        colours.append(axes.lines[-1].get_color())
    assert colours[0] == colours[1] == colours[2]


def luminance(colour: str) -> float:
    linear = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def deuteranopia(colour: str) -> np.ndarray:
    """Linear RGB as seen without green cones (Machado, Oliveira & Fernandes, 2009)."""
    seen = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    linear = np.array([(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)])
    return np.array(seen) @ linear


def test_colours_are_told_apart_without_green_cones_and_on_white():
    seen = [deuteranopia(colour) for colour in COLOURS]
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(gaps) > 0.1
    assert np.linalg.norm(deuteranopia("#FF0000") - deuteranopia("#5C7F00")) < 0.2  # red and green are not
    assert all(luminance(colour) < 0.5 for colour in COLOURS)


def run(folder, **config):
    """A run directory with nothing but settings."""
    folder.mkdir()
    settings = {"data": "/data/a.h5", "model": "fno", "epochs": 3, "seed": 0, "out": str(folder)}
    (folder / "config.json").write_text(json.dumps({"config": settings | config}))
    return folder


def test_repetitions_differ_in_their_seed_alone(tmp_path):
    changes = [
        {},
        {"model": "fno-monarch"},
        {"seed": 1, "threads": 2, "resume": True},
        {"seed": 2, "epochs": 4},
        {"seed": 2, "data": "/data/b.h5"},
        {"model": "fno-monarch", "seed": 7},
        {"seed": 1, "device": "cuda"},
    ]
    runs = [run(tmp_path / str(i), **change) for i, change in enumerate(changes)]
    assert same_but_for_seed(runs[:6]) == [[0, 2], [1, 5], [3], [4]]
    # a seed that was there before says nothing about the spread over seeds
    assert same_but_for_seed([runs[0], runs[2], runs[6]]) == [[0, 1], [2]]
    assert same_but_for_seed([runs[0], runs[0]]) == [[0], [1]]
    with pytest.raises(InputError, match=r"a file config.json; found none"):
        same_but_for_seed([tmp_path])


def table(path, *columns):
    lines = ["epoch,seconds,psnr", *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_training_curves_epoch_by_epoch(tmp_path, drawn):
    one = table(tmp_path / "a.csv", (1, 2, 3), (1.0, 2.0, 3.0), (10, 20, 30))
    two = table(tmp_path / "b.csv", (1, 2), (3.0, 6.0), (30, 10))
    save_training_curves(tmp_path / "t.png", {"both": [one, two], "one": one}, "psnr", "PSNR in dB")
    axes = drawn[0].axes[0]
    both, alone = axes.lines
    assert np.array_equal(both.get_xydata(), [[2, 20], [4, 15]])
    assert np.array_equal(alone.get_xydata(), [[1, 10], [2, 20], [3, 30]])
    assert band(axes.collections[0]) == {2.0: (10, 30), 4.0: (10, 20)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds of training", "PSNR in dB")
    with pytest.raises(InputError, match=r"the columns seconds and rollout in .*a\.csv; found KeyError"):
        save_training_curves(tmp_path / "u.png", {"one": one})
    assert not (tmp_path / "u.png").exists()


def shown(figure):
    return [axes.images[0] for axes in figure.axes if axes.images and axes.get_xlabel()]


@pytest.mark.parametrize("grid", [(12, 9), (15,)])
def test_an_untrained_layer_is_the_fourier_transform(grid, tmp_path, drawn):
    conv = MonarchSpectralConv(2, 2, (6,) * len(grid), grid=grid)
    save_transform(tmp_path / "t.png", nn.Sequential(conv, conv))
    panels = shown(drawn[0])
    assert len(panels) == 3 * 2 * len(grid)
    for ratio, change, mixed in zip(panels[0::3], panels[1::3], panels[2::3], strict=True):
        assert np.allclose(ratio.get_array(), 1, atol=1e-5)
        assert np.allclose(change.get_array(), 0, atol=1e-5)
        assert np.allclose(mixed.get_array(), 0, atol=1e-5)
    weights = [line.get_ydata() for axes in drawn[0].axes for line in axes.lines if len(line.get_xdata()) > 2]
    assert [len(w) for w in weights] == ([6, 4] * 2 if len(grid) == 2 else [4] * 2)
    assert np.allclose(np.concatenate(weights), 1, atol=1e-5)


def test_what_a_layer_learned_is_where_it_belongs(tmp_path, drawn):
    """Frequency 2 doubled, frequency −1 replaced by a third of frequency 3, along the first axis."""
    conv = MonarchSpectralConv(1, 1, (8, 6), grid=(16, 12))
    transform: LearnedTransform = conv.analysis[0]  # frequencies −4 … 3
    original = transform.forward

    def learned(size=None):
        W = original(size).clone()
        W[:, 6] *= 2
        W[:, 3] = W[:, 7] / 3
        return W

    transform.forward = learned
    save_transform(tmp_path / "t.png", conv)
    ratio, change, mixed = shown(drawn[0])[:3]
    left, right, low, high = mixed.get_extent()
    assert (left, right, low, high) == (-8.5, 7.5, 3.5, -4.5)
    expected = np.zeros((8, 16))
    expected[6, 2 + 8], expected[3, -1 + 8], expected[3, 3 + 8] = 1, 1, 1 / 3
    assert np.allclose(mixed.get_array(), expected, atol=1e-5)
    assert np.allclose(ratio.get_array()[:, 0], [1, 1, 1, 1 / 3, 1, 1, 2, 1], atol=1e-5)
    assert np.allclose(change.get_array()[[0, 6], 0], [0, 1], atol=1e-5)
    (line,) = (line for line in drawn[0].axes[3].lines if len(line.get_xdata()) == 8)
    assert np.allclose(line.get_xydata(), np.c_[np.arange(-4, 4), [1, 1, 1, 0, 1, 1, 2, 1]], atol=1e-5)
    moved = float(np.sqrt((1 + 10 / 9) / 8))  # of eight rows of norm 1
    assert f"{moved:.2g}" in drawn[0].axes[1].get_title()


def test_the_title_has_every_layer(tmp_path, drawn):
    layers = nn.ModuleList([LearnedFourier((6, 8)), LearnedFourier((6, 8), inverse=True)])
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.mul_(1.5)
    save_transform(tmp_path / "t.png", layers, note="a note")
    # two factors half as large again: W = 2.25 F
    assert "all layers: " in drawn[0].get_suptitle()
    assert drawn[0].get_suptitle().endswith(", 1.2")
    assert drawn[0].get_supxlabel() == "a note"
    assert matplotlib.image.imread(tmp_path / "t.png").std() > 0.05


def test_transform_mistakes(tmp_path):
    with pytest.raises(InputError, match="a model with learned transforms; found Linear"):
        save_transform(tmp_path / "t.png", nn.Linear(2, 2))
    conv = MonarchSpectralConv(1, 1, 4, grid=8)
    with torch.no_grad():
        conv.synthesis[0].R[0, 0, 0, 0] = float("inf")
    with pytest.raises(InputError, match="finite entries of the transform"):
        save_transform(tmp_path / "t.png", conv)
    assert not list(tmp_path.iterdir())


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, _ = new_axes("title", "x", "y")
    save_figure(figure, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    with pytest.raises(InputError, match=r"a picture .png, .pdf or .svg; found a; change the ending"):
        save_figure(figure, tmp_path / "a")


def test_matplotlib_is_imported_when_something_is_drawn():
    program = "import sys, monarch_sciml.training.plots\nassert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
