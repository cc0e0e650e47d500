"""One style for every picture, colour-blind safe, and the pictures that any training has.

Those are curves with a band over the seeds, and what a learned transform became of the Fourier transform.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import centered_dft
from monarch_sciml.nn import LearnedFourier, LearnedTransform, MonarchSpectralConv
from monarch_sciml.training.files import whole_file
from monarch_sciml.training.run import NOT_COMPARED, read_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "draw_curves",
    "new_axes",
    "new_figure",
    "same_but_for_seed",
    "save_figure",
    "save_training_curves",
    "save_transform",
]

# Okabe and Ito's palette, without yellow, which is too light on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES, MARKERS = ("-", "--", "-.", ":"), "osD^vP"
BAND = "line: mean of the seeds, band: lowest to highest"


def new_figure(width: float, height: float, *, note: str = "") -> Figure:
    """An empty figure of so many inches, with a note below.

    Not one of pyplot's: it chooses no backend and stays open nowhere.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if note:
        figure.supxlabel(note, fontsize=8, color="0.4")
    return figure


def new_axes(title: str, x: str, y: str, *, note: str = "") -> tuple[Figure, Axes]:
    """A figure with one diagram, and the diagram."""
    figure = new_figure(6, 3.8, note=note)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """A faint grid, and no lines where nothing is to be read."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Write the figure whole or not at all: .png, .pdf or .svg.

    Raises:
        InputError: for a format that matplotlib does not write, or a directory that is not there.
    """
    known = figure.canvas.get_supported_filetypes()
    path = Path(os.path.expanduser(path))
    kind = path.suffix[1:].lower()
    if kind not in known:
        raise InputError("a picture .png, .pdf or .svg", path.name, "change the ending")
    if not path.parent.is_dir():
        raise InputError("an existing directory", f"{path.parent}", "make it first")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=dpi, format=kind)


# --------------------------------------------------------------------------------------------------- curves


def same_but_for_seed(runs: Sequence[Path]) -> list[list[int]]:
    """Which runs are repetitions: positions in ``runs``, grouped, in the order of their first member.

    In a group all settings agree but the seed, no two seeds are equal, and how and where was run does not
    count. Raises ``InputError`` for a directory without the settings of a run.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for i, run in enumerate(runs):
        config = read_config(run)
        kept = {k: v for k, v in config.items() if k == "data" or k not in NOT_COMPARED | {"seed"}}
        settings, seed = repr(sorted(kept.items())), repr(config.get("seed"))
        groups.setdefault((settings, seen[settings, seed]), []).append(i)
        seen[settings, seed] += 1  # the same seed once more opens another group
    return list(groups.values())


def draw_curves(
    axes: Axes, curves: Mapping[str, tuple[NDArray, NDArray]], among: Sequence[str] | None = None
) -> None:
    """For each name ``(x, y)``, x (points,) and y (points,), or (seeds, points): mean, lowest to highest.

    Colours come again with other lines after six curves; a name has that of its place ``among`` others, by
    default these. The legend tells the number of seeds.
    """
    several, names = False, [*(among or curves)]
    for name, (x, y) in curves.items():
        i, runs = names.index(name), np.atleast_2d(y)
        colour = COLOURS[i % len(COLOURS)]
        label = name if len(runs) == 1 else f"{name}, {len(runs)} seeds"
        line, marker = LINES[i // len(COLOURS) % len(LINES)], MARKERS[i % len(MARKERS)]
        mean = runs.mean(0)
        axes.plot(x, mean, color=colour, label=label, linestyle=line, marker=marker, markersize=3)
        if len(runs) > 1:
            several = True
            axes.fill_between(x, runs.min(0), runs.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.legend(frameon=False, fontsize=9, title=BAND if several else None, title_fontsize=8)


def save_training_curves(
    path: Path,
    tables: Mapping[str, Path | Sequence[Path]],
    metric: str = "rollout",
    label: str = "held-out rollout error",
) -> None:
    """A metric of held-out data against seconds of training, from the ``metrics.csv`` of runs.

    Several tables of a name are runs with several seeds: epoch by epoch, the mean of their seconds, and the
    mean, lowest and highest of their metrics. Raises ``InputError`` where a table lacks the metric.
    """
    curves = {}
    for name, files in tables.items():
        read = [_columns(file, metric) for file in ([files] if isinstance(files, Path) else files)]
        epochs = min(len(seconds) for seconds, _ in read)
        seconds, values = (np.array([columns[i][:epochs] for columns in read]) for i in (0, 1))
        curves[name] = (seconds.mean(0), values)
    figure, axes = new_axes("Training", "seconds of training", label)
    axes.set_yscale("log")
    draw_curves(axes, curves)
    save_figure(figure, path)


def _columns(table: Path, metric: str) -> tuple[list[float], list[float]]:
    try:
        with table.open() as file:
            rows = list(csv.DictReader(file))
        return [float(row["seconds"]) for row in rows], [float(row[metric]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        expected, found = f"the columns seconds and {metric} in {table}", f"{type(error).__name__}: {error}"
        raise InputError(expected, found, "restore the table, or train anew") from None


# ----------------------------------------------------------------------------------------------- transforms


@dataclass(frozen=True)
class _Matrix:
    """A transform beside the Fourier transform F it started from, both complex, of the same shape."""

    name: str
    W: Tensor
    F: Tensor
    waves: Tensor
    """G: column k is what becomes of the wave with frequency k, so that G = I in the beginning."""
    position: int
    """Coordinate of the first point, and of the first frequency that goes in and that comes out."""
    first_in: int
    first_out: int
    inverse: bool


def save_transform(path: Path, model: nn.Module, *, note: str = "") -> None:
    """What became of a learned transform: a row for each axis and direction, on the grid it belongs to.

    From left to right: |W| over |F|, which is 1 throughout in the beginning; the change |W − F| over |F|; its
    action on waves, |G − I| with W = G F (W = Fᴴ G of an inverse), which shows what frequency is mixed into
    which; and the diagonal |G_kk|, the weight of each frequency. Learned density compensation shows there.

    Args:
        path: of a format that matplotlib writes.
        model: a ``LearnedFourier``, a ``MonarchSpectralConv``, or a model with such layers, of which the
            first is drawn; the title has the changes of all.
        note: is printed below.

    Raises:
        InputError: no learned transforms, or entries with NaN.
    """
    layers = [m for m in model.modules() if isinstance(m, LearnedFourier | MonarchSpectralConv)]
    if not layers:
        raise InputError("a model with learned transforms", type(model).__name__, "draw an FNO-Monarch")
    with torch.no_grad():
        changes = [_mean([_change(matrix) for matrix in _matrices(layer)]) for layer in layers]
        rows = list(_matrices(layers[0]))
    if not all(np.isfinite(changes)):
        raise InputError("finite entries of the transform", "NaN or infinite values", "train it again")
    figure = new_figure(14.5, 0.9 + 3.0 * len(rows), note=note)
    title = f"Learned transforms: ‖W − F‖ / ‖F‖ = {changes[0]:.2g}"
    if len(layers) > 1:
        title += f" in layer 1, which is shown; all layers: {', '.join(f'{c:.2g}' for c in changes)}"
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(rows), 4, squeeze=False, width_ratios=(1, 1, 1, 1.1))
    for line, matrix in zip(panels, rows, strict=True):
        _draw_row(figure, line, matrix)
    save_figure(figure, path, dpi=100)


def _matrices(layer: LearnedFourier | MonarchSpectralConv) -> Iterator[_Matrix]:
    if isinstance(layer, LearnedFourier):
        for axis in "yx":
            W = layer.matrix(axis).to(torch.complex128).cpu()
            n, F = len(W), centered_dft(len(W))
            G = F @ W if layer.inverse else W @ F.conj()
            name, first = f"{'inverse, ' if layer.inverse else ''}axis {axis}", -(n // 2)
            yield _Matrix(name, W, F.conj() if layer.inverse else F, G, first, first, first, layer.inverse)
        return
    for direction, modules in (("analysis", layer.analysis), ("synthesis", layer.synthesis)):
        for axis, transform in enumerate(modules):
            if isinstance(transform, LearnedTransform):
                yield _truncated(transform, f"{direction}, axis {'xyz'[axis]}", direction == "synthesis")


def _truncated(transform: LearnedTransform, name: str, inverse: bool) -> _Matrix:
    """The rows of W are frequencies; a synthesis is the adjoint of such a matrix."""
    n, m, first = transform.n, transform.n_modes, transform.first
    W = torch.complex(*transform().double().cpu()) / transform.scale
    lowest = -(n // 2) if first < 0 else -((n - 1) // 2)  # of n frequencies, among them those of W
    k, j = torch.arange(lowest, lowest + n), torch.arange(n)
    F = torch.exp(-2j * torch.pi * (k[:, None] * j % n).double() / n) / n**0.5
    G = W @ F.mH
    kept = F[first - lowest : first - lowest + m]
    if inverse:
        return _Matrix(name, W.mH, kept.mH, G.mH, 0, first, lowest, True)
    return _Matrix(name, W, kept, G, 0, lowest, first, False)


def _change(matrix: _Matrix) -> float:
    return float(torch.linalg.vector_norm(matrix.W - matrix.F) / torch.linalg.vector_norm(matrix.F))


def _mean(values: Sequence[float]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _draw_row(figure: Figure, panels: Sequence[Axes], matrix: _Matrix) -> None:
    unit = matrix.F.abs().max()
    rows, columns = ("grid point", "frequency") if matrix.inverse else ("frequency", "grid point")
    corner = (matrix.position, matrix.first_in) if matrix.inverse else (matrix.first_out, matrix.position)
    outs = matrix.first_out + np.arange(len(matrix.waves))
    ins = matrix.first_in + np.arange(matrix.waves.shape[1])
    same = torch.from_numpy(outs[:, None] == ins)
    change, action = (matrix.W - matrix.F).abs() / unit, (matrix.waves - same.to(matrix.waves)).abs()
    pictures = (
        (f"|W| / |F|, {matrix.name}", matrix.W.abs() / unit, corner, rows, columns, "viridis"),
        (f"|W − F| / |F|: {_change(matrix):.2g}", change, corner, rows, columns, "magma"),
        ("action on waves, |G − I|", action, (outs[0], ins[0]), "frequency out", "frequency in", "magma"),
    )
    for axes, (title, values, (top, left), y, x, colours) in zip(panels, pictures, strict=False):
        image = axes.imshow(
            values.numpy(),
            cmap=colours,
            vmin=0,
            vmax=max(float(values.max()), 1e-3),
            extent=(left - 0.5, left + values.shape[1] - 0.5, top + len(values) - 0.5, top - 0.5),
            origin="upper",
            interpolation="nearest",
            aspect="auto",
        )
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    weights = matrix.waves[same].abs().numpy()
    k = np.intersect1d(outs, ins)
    axes = panels[-1]
    axes.axhline(1, color=COLOURS[1], linewidth=1, linestyle="--", label="Fourier transform")
    axes.plot(k, weights, color=COLOURS[0], linewidth=1.3, label="learned")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.9), max(high, 1.1))
    axes.set(xlabel="frequency", ylabel="weight", xlim=(k[0] - 0.5, k[-1] + 0.5))
    axes.set_title("weight of each frequency, |G_kk|", fontsize=10)
    plain(axes)
    axes.legend(frameon=False, fontsize=8)
