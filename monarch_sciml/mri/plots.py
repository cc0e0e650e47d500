"""Pictures of reconstructions beside their errors, and of what a learned transform became."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from monarch_sciml.errors import InputError
from monarch_sciml.mri.inputs import Array, as_tensor
from monarch_sciml.training import plots
from monarch_sciml.training.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_comparison", "save_transform"]

NOTICE = "Research use only, not for clinical use"
FORMATS = {"nmse": ("NMSE", "{:.4f}"), "psnr": ("PSNR", "{:.2f} dB"), "ssim": ("SSIM", "{:.4f}")}


def save_comparison(
    path: Path,
    target: Array | None,
    images: Mapping[str, Array],
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
    figure = new_figure(width * len(columns), height, note=NOTICE)
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
    save_figure(figure, path, dpi=150)


def save_transform(path: Path, model: nn.Module) -> None:
    """``training.plots.save_transform`` of a ``LearnedFourier`` or a network with them, with the notice."""
    plots.save_transform(path, model, note=NOTICE)


def _picture(axes: Axes, image: NDArray, colours: str, top: float) -> None:
    # origin is said, and interpolation, because a user's matplotlib settings may say otherwise
    axes.imshow(image, cmap=colours, vmin=0, vmax=top, origin="upper", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.85", linewidth=0.6)


def _score_lines(scores: Mapping[str, float]) -> str:
    """The known scores, a line each."""
    return "\n".join(
        f"{label} {form.format(scores[key])}" for key, (label, form) in FORMATS.items() if key in scores
    )


def _magnitude(name: str, image: Array) -> NDArray:
    image = as_tensor(image, name)
    if image.ndim != 2:
        raise InputError(f"one slice (H, W) as {name}", f"shape {tuple(image.shape)}", "choose a slice")
    values = image.detach().abs().double().cpu().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"a finite image as {name}", "NaN or infinite values", "look for where they arise")
    return values
