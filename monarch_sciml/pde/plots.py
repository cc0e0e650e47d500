"""Pictures of rollouts, errors and spectra, one file each, in one colour-blind safe style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from monarch_sciml.training.files import whole_file
from monarch_sciml.training.plots import (
    COLOURS,
    draw_curves,
    new_axes,
    new_figure,
    save_figure,
    save_training_curves,
    save_transform,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "save_animation",
    "save_error_over_time",
    "save_rollouts",
    "save_spectra",
    "save_training_curves",
    "save_transform",
]

FIELD, ERROR = "RdBu_r", "PuOr_r"
FRAMES, MILLISECONDS = 24, 250  # of an animation: at most so many, each for so long
Curve = Sequence[float] | Sequence[Sequence[float]]


def save_rollouts(
    path: Path, truth: Tensor, predictions: Mapping[str, Tensor], times: Sequence[float]
) -> None:
    """Truth, prediction and error of one trajectory at four times, on one colour scale for the fields.

    ``truth`` and each prediction are (steps, *grid), of one or two axes; ``times`` (steps,) are the labels.
    """
    steps = len(truth)
    shown = sorted({0, steps // 3, 2 * steps // 3, steps - 1})
    errors = {name: p - truth for name, p in predictions.items()}
    top, worst = _limit(truth), _limit(*errors.values())
    rows: list[tuple[str, Tensor, float, str]] = [("truth", truth, top, FIELD)]
    for name, p in predictions.items():
        rows += [(name, p, top, FIELD), (f"error of {name}", errors[name], worst, ERROR)]

    figure = new_figure(2.1 * len(shown) + 1, 2.0 * len(rows) + 0.3)
    panels = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True, sharey=truth.ndim > 2)
    for axes, step in zip(panels[0], shown, strict=True):
        axes.set_title(f"t = {times[step]:g}")
    for line, (label, values, limit, colours) in zip(panels, rows, strict=True):
        drawn = [_draw(a, values[step], limit, colours) for a, step in zip(line, shown, strict=True)]
        line[0].set_ylabel(label)
        if truth.ndim > 2:
            figure.colorbar(drawn[0], ax=list(line), shrink=0.85)
    for axes in panels[-1]:
        axes.set_xlabel("x")
    save_figure(figure, path)


def save_animation(
    path: Path, truth: Tensor, predictions: Mapping[str, Tensor], times: Sequence[float]
) -> None:
    """The rollout as a GIF of at most 24 frames: truth and predictions above, errors below.

    Shapes as of ``save_rollouts``; the scales are those of the whole rollout, and shared.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    steps = np.unique(np.linspace(0, len(truth) - 1, FRAMES).round().astype(int)).tolist()
    errors = {name: p - truth for name, p in predictions.items()}
    top, worst = _limit(truth), _limit(*errors.values())
    columns = 1 + len(predictions)
    figure = new_figure(2.1 * columns, 4.4)
    figure.set_dpi(80)
    panels = figure.subplots(2, columns, squeeze=False)
    panels[1][0].axis("off")
    label = panels[1][0].text(0.5, 0.5, f"t = {times[0]:g}", ha="center", va="center", fontsize=14)
    parts: list[tuple[Axes, str, Tensor, float, str]] = [(panels[0][0], "truth", truth, top, FIELD)]
    for i, (name, p) in enumerate(predictions.items(), start=1):
        parts += [(panels[0][i], name, p, top, FIELD), (panels[1][i], "error", errors[name], worst, ERROR)]
    artists = []
    for axes, title, values, limit, colours in parts:
        axes.set_title(f"{title} (± {limit:.2g})", fontsize=10)
        artists.append(_draw(axes, values[0], limit, colours))
        axes.tick_params(labelsize=7)
    canvas, frames = FigureCanvasAgg(figure), []
    for step in steps:
        for artist, (_, _, values, _, _) in zip(artists, parts, strict=True):
            field = values[step].numpy()
            artist.set_data(field.T) if field.ndim == 2 else artist.set_ydata(field)
        label.set_text(f"t = {times[step]:g}")
        canvas.draw()
        if figure.get_layout_engine() is not None:
            figure.set_layout_engine("none")  # once is enough, and it takes most of the time
        frames.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]).quantize(64))
    rest = {"append_images": frames[1:], "duration": MILLISECONDS, "loop": 0, "optimize": True}
    with whole_file(path) as partial:
        frames[0].save(partial, "GIF", save_all=True, **rest)


def _limit(*fields: Tensor) -> float:
    """The largest finite magnitude; 1 where there is none."""
    finite = [f[f.isfinite()].abs() for f in fields]
    return max((f.amax().item() for f in finite if len(f)), default=1.0) or 1.0


def _draw(axes: Axes, field: Tensor, limit: float, colours: str) -> Any:
    """One field (n,) or (n_x, n_y) over its periodic domain, which is drawn from 0 to 1."""
    if field.ndim == 1:
        x = np.arange(len(field)) / len(field)
        axes.set(xlim=(0, 1), xticks=[0, 1], ylim=(-1.05 * limit, 1.05 * limit))
        return axes.plot(x, field.numpy(), color=COLOURS[0])[0]
    axes.set(xticks=[0, 1], yticks=[0, 1])
    # arrays are [x, y]; pictures show x to the right and y upwards
    return axes.imshow(
        field.T.numpy(), origin="lower", cmap=colours, vmin=-limit, vmax=limit, extent=(0, 1, 0, 1)
    )


def save_error_over_time(path: Path, curves: Mapping[str, Curve], times: Sequence[float]) -> None:
    """Mean relative L2 error of every frame of the rollout.

    A curve is (frames,), or (seeds, frames): then its mean, and a band from the lowest to the highest.
    """
    figure, axes = new_axes("Rollout error", "time", "relative L2 error of the frame")
    axes.set_yscale("log")
    draw_curves(axes, {name: (np.array(times), np.array(curve)) for name, curve in curves.items()})
    save_figure(figure, path)


def save_spectra(path: Path, spectra: Mapping[str, Curve]) -> None:
    """Kinetic energy per wavenumber at the last frame; the first curve, the truth, is drawn in black.

    The others may be (seeds, wavenumbers), as in ``save_error_over_time``.
    """
    figure, axes = new_axes("Energy spectrum of the last frame", "wavenumber |k| (cycles per domain)", "E(k)")
    (name, truth), *others = spectra.items()
    k = np.arange(1, len(truth))
    axes.loglog(k, np.array(truth)[1:], color="black", linewidth=2.5, alpha=0.6, label=name)
    draw_curves(axes, {name: (k, np.atleast_2d(np.array(curve))[:, 1:]) for name, curve in others})
    save_figure(figure, path)
