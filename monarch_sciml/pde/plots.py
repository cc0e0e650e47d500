"""Pictures of rollouts, errors and spectra, one file each, in one colour-blind safe style."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["save_error_over_time", "save_rollouts", "save_spectra", "save_training_curves"]

# Okabe and Ito's palette, without yellow, which is too light on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def save_rollouts(
    path: Path, truth: Tensor, predictions: Mapping[str, Tensor], times: Sequence[float]
) -> None:
    """Truth, prediction and error of one trajectory at four times, on one colour scale for the fields.

    ``truth`` and each prediction are (steps, *grid), of one or two axes; ``times`` (steps,) are the labels.
    """
    steps = len(truth)
    shown = sorted({0, steps // 3, 2 * steps // 3, steps - 1})
    errors = {name: p - truth for name, p in predictions.items()}
    top = truth.abs().max().item()
    worst = max(e.abs().max().item() for e in errors.values())
    rows: list[tuple[str, Tensor, float, str]] = [("truth", truth, top, "RdBu_r")]
    for name, p in predictions.items():
        rows += [(name, p, top, "RdBu_r"), (f"error of {name}", errors[name], worst, "PuOr_r")]

    figure = Figure(figsize=(2.1 * len(shown) + 1, 2.0 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True, sharey=truth.ndim > 2)
    for axes, step in zip(panels[0], shown, strict=True):
        axes.set_title(f"t = {times[step]:g}")
    for line, (label, values, limit, colours) in zip(panels, rows, strict=True):
        image = None
        for axes, step in zip(line, shown, strict=True):
            if values.ndim == 3:
                # arrays are [x, y]; pictures show x to the right and y upwards
                extent = (0, 1, 0, 1)
                image = axes.imshow(
                    values[step].T.numpy(),
                    origin="lower",
                    cmap=colours,
                    vmin=-limit,
                    vmax=limit,
                    extent=extent,
                )
                axes.set(xticks=[0, 1], yticks=[0, 1])
            else:
                axes.plot(values[step].numpy(), color=COLOURS[0])
                axes.set_ylim(-1.05 * limit, 1.05 * limit)
        line[0].set_ylabel(label)
        if image is not None:
            figure.colorbar(image, ax=list(line), shrink=0.85)
    _save(figure, path)


def save_error_over_time(path: Path, curves: Mapping[str, Sequence[float]], times: Sequence[float]) -> None:
    """Mean relative L2 error of every frame of the rollout."""
    figure, axes = _axes("Rollout error", "time", "relative L2 error of the frame")
    for colour, (name, errors) in zip(COLOURS, curves.items(), strict=False):
        axes.semilogy(times, errors, color=colour, label=name, marker="o", markersize=3)
    axes.legend(frameon=False)
    _save(figure, path)


def save_spectra(path: Path, spectra: Mapping[str, Sequence[float]]) -> None:
    """Kinetic energy per wavenumber at the last frame; the first curve, the truth, is drawn in black."""
    figure, axes = _axes("Energy spectrum of the last frame", "wavenumber |k| (cycles per domain)", "E(k)")
    for i, (name, spectrum) in enumerate(spectra.items()):
        style = {"color": "black", "linewidth": 2.5, "alpha": 0.6} if i == 0 else {"color": COLOURS[i - 1]}
        axes.loglog(range(1, len(spectrum)), spectrum[1:], label=name, **style)
    axes.legend(frameon=False)
    _save(figure, path)


def save_training_curves(path: Path, tables: Mapping[str, Path]) -> None:
    """Held-out rollout error against seconds of training, from the ``metrics.csv`` of each run."""
    figure, axes = _axes("Training", "seconds of training", "held-out rollout error")
    for colour, (name, table) in zip(COLOURS, tables.items(), strict=False):
        with table.open() as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        seconds, errors = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
        axes.semilogy(seconds, errors, color=colour, label=name, marker="o", markersize=3)
    axes.legend(frameon=False)
    _save(figure, path)
