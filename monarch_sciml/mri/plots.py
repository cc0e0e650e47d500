"""Pictures of reconstructions beside their errors, and of what a learned transform became."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import centered_dft
from monarch_sciml.nn import LearnedFourier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_comparison", "save_transform"]

# two of Okabe and Ito's colours
COLOURS = ("#0072B2", "#D55E00")
NOTICE = "Research use only, not for clinical use"
FORMATS = {"nmse": ("NMSE", "{:.4f}"), "psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.4f}")}


def save_comparison(
    path: Path,
    target: Tensor | None,
    images: Mapping[str, Tensor],
    *,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    error_scale: float = 5.0,
) -> None:
    """Magnitudes |x| in a row and, if there is a target, ||x| − target| magnified below each.

    All images have one grey scale, from 0 to the 99.8th percentile of the target (of the first image without
    one); all errors have one, ``error_scale`` times as sensitive. Rows and columns are drawn as they are
    stored, the first row on top.

    Args:
        path: of a format that matplotlib writes: .png, .pdf, .svg.
        target: (H, W), real or complex; of any scale, which the images share.
        images: reconstructions (H, W) by name.
        scores: by the same names; ``nmse``, ``psnr`` and ``ssim`` are printed below their column.
        error_scale: how much errors are magnified.

    Raises:
        InputError: no images, shapes that differ, NaN, a scale that is not positive; a directory that is not
            there, or a format that is not known.
    """
    if not error_scale > 0:
        raise InputError("a positive error_scale", f"{error_scale}", "5 shows errors five times as bright")
    truth = None if target is None else _magnitude("the target", target)
    shown = {name: _magnitude(name, image) for name, image in images.items()}
    if not shown:
        raise InputError("at least one image", "none", "pass reconstructions by name")
    first = next(iter(shown.values())) if truth is None else truth
    for name, image in shown.items():
        if image.shape != first.shape:
            raise InputError(f"images of shape {first.shape}", f"{name}: {image.shape}", "crop them")
    top = float(np.percentile(first, 99.8)) or float(first.max()) or 1.0

    columns = list(shown.items()) if truth is None else [("target", truth), *shown.items()]
    rows, width = (1 if truth is None else 2), 2.2
    lines = max((len(_score_lines(of).splitlines()) for of in (scores or {}).values()), default=0)
    height = rows * width * float(np.clip(first.shape[0] / first.shape[1], 0.4, 2.5)) + 0.6 + 0.16 * lines
    figure = _figure(width * len(columns), height)
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for axes, (name, image) in zip(panels[0], columns, strict=True):
        _picture(axes, image, "gray", top)
        axes.set_title(name, fontsize=10)
    if truth is not None:
        panels[1][0].axis("off")
        note = f"error\n| |x| − target |\n× {error_scale:g}"
        panels[1][0].text(0.5, 0.5, note, ha="center", va="center", fontsize=10, color="0.25")
        for axes, (_, image) in zip(panels[1][1:], columns[1:], strict=True):
            _picture(axes, np.abs(image - truth), "gray_r", top / error_scale)
    for axes, (name, _) in zip(panels[-1], columns, strict=True):
        axes.set_xlabel(_score_lines((scores or {}).get(name, {})), fontsize=8.5, color="0.15")
    _save(figure, path)


def save_transform(path: Path, fourier: LearnedFourier) -> None:
    """What a learned transform became: a row for each axis, on the grid its factors belong to.

    From left to right: |W| over |F|, which is n^(−1/2) throughout; the k-space matrix |G − I| with
    W = G F (W = Fᴴ G of an inverse), which shows what frequency is mixed into which; and the diagonal
    |G_kk|, the weight of each frequency. Learned density compensation shows there.

    Raises:
        InputError: entries with NaN.
    """
    figure = _figure(11.5, 6.9)
    departure, nonunitarity = fourier.departure().item(), fourier.nonunitarity().item()
    if not np.isfinite(departure):
        raise InputError("finite entries of the transform", "NaN or infinite values", "train it again")
    title = "Learned inverse transform" if fourier.inverse else "Learned transform"
    figure.suptitle(
        f"{title}: ‖W − F‖ / ‖F‖ = {departure:.2g}, ‖WᴴW − I‖ / ‖I‖ = {nonunitarity:.2g}", fontsize=11
    )
    panels = figure.subplots(2, 3, width_ratios=(1, 1, 1.2))
    for (left, middle, right), axis in zip(panels, "yx", strict=True):
        with torch.no_grad():
            W = fourier.matrix(axis).to(torch.complex128).cpu()
        n = len(W)
        F = centered_dft(n)
        G = F @ W if fourier.inverse else W @ F.conj()
        rows, columns = ("position", "frequency") if fourier.inverse else ("frequency", "position")
        _matrix(figure, left, W.abs() * n**0.5, f"|W| / |F|, axis {axis}, n = {n}", rows, columns, "viridis")
        _matrix(figure, middle, (G - torch.eye(n)).abs(), "|G − I|", "frequency", "frequency", "magma")
        k = np.arange(n) - n // 2
        right.axhline(1, color=COLOURS[1], linewidth=1, linestyle="--", label="Fourier transform")
        right.plot(k, G.diagonal().abs().numpy(), color=COLOURS[0], linewidth=1.3, label="learned")
        low, high = right.get_ylim()
        right.set_ylim(min(low, 0.9), max(high, 1.1))
        right.set(
            title="|G_kk|, weight of each frequency", xlabel="frequency", xlim=(k[0] - 0.5, k[-1] + 0.5)
        )
        right.grid(alpha=0.25)
        right.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False, fontsize=8)
        right.title.set_fontsize(10)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """An empty figure with the notice below. Not pyplot's: it chooses no backend and stays open nowhere."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.supxlabel(NOTICE, fontsize=8, color="0.4")
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg(figure).get_supported_filetypes()
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in known:
        raise InputError("a picture .png, .pdf or .svg", path.name, "change the ending")
    if not path.parent.is_dir():
        raise InputError("an existing directory", f"{path.parent}", "make it first")
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=150, format=kind)
    os.replace(partial, path)


def _picture(axes: Axes, image: NDArray, colours: str, top: float) -> None:
    # origin is said, and interpolation, because a user's matplotlib settings may say otherwise
    axes.imshow(image, cmap=colours, vmin=0, vmax=top, origin="upper", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.85", linewidth=0.6)


def _matrix(
    figure: Figure, axes: Axes, values: Tensor, title: str, rows: str, columns: str, colours: str
) -> None:
    """A matrix with its entries counted from the centre, zero at n // 2."""
    n = len(values)
    low, high = -0.5 - n // 2, n - 0.5 - n // 2
    image = axes.imshow(
        values.numpy(),
        cmap=colours,
        vmin=0,
        vmax=max(float(values.max()), 1e-3),
        extent=(low, high, high, low),
        origin="upper",
        interpolation="nearest",
    )
    axes.set(xlabel=columns, ylabel=rows)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)


def _score_lines(scores: Mapping[str, float]) -> str:
    """The known scores, a line each."""
    return "\n".join(
        f"{label} {form.format(scores[key])}" for key, (label, form) in FORMATS.items() if key in scores
    )


def _magnitude(name: str, image: Tensor) -> NDArray:
    if image.ndim != 2:
        raise InputError(f"one slice (H, W) as {name}", f"shape {tuple(image.shape)}", "choose a slice")
    values = image.detach().abs().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"a finite image as {name}", "NaN or infinite values", "look for where they arise")
    return values
