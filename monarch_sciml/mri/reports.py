"""What there is to say of reconstructed files: report.json for programs, table.md for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py

from monarch_sciml.errors import InputError
from monarch_sciml.mri.writers import NOTICE
from monarch_sciml.training import write_json
from monarch_sciml.training.files import whole_files

__all__ = ["Report", "as_attributes", "cell", "markdown_table", "read_report", "write_reports"]


@dataclass(frozen=True)
class Report:
    """Means over the slices of one file."""

    file: str
    method: str
    format: str
    slices: int
    coils: int
    shape: tuple[int, int]
    acceleration: float
    retrospective: bool
    header: bool
    data_consistency: float
    nonunitarity: float | None
    """Of the learned transforms, ‖WᴴW − I‖/√n, mean; None where nothing is learned."""
    departure: float | None
    """Of the learned transforms from the Fourier transform, ‖W − F‖/‖F‖."""
    nmse: float | None
    psnr: float | None
    ssim: float | None
    """Slice by slice, then averaged; None where there is nothing to compare with."""
    seconds: float
    """Per slice, from file to file."""
    mask: str = "unknown"
    """The kind that was drawn, the name of a mask file, or "as acquired"."""
    asked_acceleration: float | None = None
    """Of the mask that was drawn; ``acceleration`` is what became of it."""
    center_fraction: float | None = None
    """Fully sampled part of the columns (poisson: of each axis)."""
    trained_under: str | None = None
    """The masks of the network's training, where they are known."""
    notice: str = NOTICE


def as_attributes(report: Report, settings: Mapping[str, Any]) -> dict[str, str | float]:
    """What an output file says of itself: for ``read_report``; the asked acceleration for ``evaluate``."""
    asked = report.asked_acceleration
    known = {} if asked is None else {"asked_acceleration": asked}
    return {"report": json.dumps(asdict(report)), "settings": json.dumps(settings), **known}


def read_report(output: Path, settings: Mapping[str, Any]) -> Report | None:
    """The report of an output file; None if there is no such file, or one of another ``input``.

    Raises:
        InputError: a file made with other settings, or of another origin, which is not to be replaced.
    """
    if not output.exists():
        return None
    try:
        with h5py.File(output, "r") as file:
            found = dict(json.loads(str(file.attrs["settings"])))
            saved = json.loads(str(file.attrs["report"]))
            report = Report(**{**saved, "shape": tuple(saved["shape"])})
    except (OSError, KeyError, ValueError, TypeError):  # damaged, or of another kind
        found, report = {}, None
    other = [key for key in settings if key != "input" and found.get(key, "?") != settings[key]]
    if other or report is None:
        ours, theirs = (
            ", ".join(f"{key}={values.get(key, '?')}" for key in other) for values in (settings, found)
        )
        raise InputError(
            f"a reconstruction made with {ours} as {output}",
            f"{theirs} in it" if found else "a file of another origin",
            "choose another --out, or delete it to make it anew",
        )
    return report if found.get("input") == settings["input"] else None


def write_reports(folder: Path, reports: Sequence[Report]) -> None:
    """``report.json`` and ``table.md``, both or none."""
    with whole_files(folder) as unfinished:
        write_json(unfinished / "report.json", [_for_json(asdict(report)) for report in reports])
        (unfinished / "table.md").write_text(markdown_table(reports), encoding="utf-8")


def cell(text: str) -> str:
    """A name from elsewhere as one cell of a Markdown table: without line ends, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_table(reports: Sequence[Report]) -> str:
    """One row for each file."""
    lines = [
        "| file | method | slices | coils | acceleration | NMSE | PSNR | SSIM | ‖Ax − y‖/‖y‖ | s/slice |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in reports:
        cells = ("", "", "")
        if r.nmse is not None and r.psnr is not None and r.ssim is not None:
            cells = (f"{r.nmse:.4f}", f"{r.psnr:.2f}", f"{r.ssim:.3f}")
        lines.append(
            f"| {cell(r.file)} | {r.method} | {r.slices} | {r.coils} | {r.acceleration:.2f} "
            f"| {' | '.join(cells)} | {r.data_consistency:.3f} | {r.seconds:.2f} |"
        )
    lines.append("")
    first = reports[0]
    if first.nonunitarity is not None:
        lines.append(
            f"Learned transforms: departure from the Fourier transform {first.departure:.3f}, "
            f"‖WᴴW − I‖/√n {first.nonunitarity:.3f}.  "
        )
    if masks := sorted({_mask(r) for r in reports if r.retrospective}):
        lines.append(f"Fully sampled k-space was undersampled here: {cell('; '.join(masks))}.  ")
    if masks := sorted({_mask(r) for r in reports if not r.retrospective}):
        lines.append(f"Undersampled k-space kept its own mask: {cell('; '.join(masks))}.  ")
    if any(r.nmse is not None for r in reports):
        lines.append("Scores are means over slices.  ")
    if first.trained_under is not None:
        lines.append(f"The network was trained under masks {first.trained_under}.  ")
    if not all(r.header for r in reports):
        lines.append("No header: nothing is cropped, except to a target in the file.  ")
    return "\n".join([*lines, f"{NOTICE}."]) + "\n"


def _mask(report: Report) -> str:
    """Kind, acceleration and centre, as far as they are known."""
    rate = "" if report.asked_acceleration is None else f" {report.asked_acceleration:g}×"
    centre = "" if report.center_fraction is None else f" (centre {100 * report.center_fraction:.3g} %)"
    return f"{report.mask}{rate}{centre}"


def _for_json(report: dict[str, object]) -> dict[str, object]:
    """Without infinity, which JSON does not know: null instead."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in report.items()}
