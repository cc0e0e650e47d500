"""What there is to say of reconstructed files: report.json for programs, table.md for people."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from monarch_sciml.mri.writers import NOTICE
from monarch_sciml.training import write_json

__all__ = ["Report", "markdown_table", "write_reports"]


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
    notice: str = NOTICE


def write_reports(folder: Path, reports: Sequence[Report]) -> None:
    """``report.json`` and ``table.md``, each whole or not at all."""
    write_json(folder / "report.json", [_for_json(asdict(report)) for report in reports])
    partial = folder / "table.md.partial"
    partial.write_text(markdown_table(reports), encoding="utf-8")
    os.replace(partial, folder / "table.md")


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
            f"| {r.file} | {r.method} | {r.slices} | {r.coils} | {r.acceleration:.2f} | {' | '.join(cells)} "
            f"| {r.data_consistency:.3f} | {r.seconds:.2f} |"
        )
    lines.append("")
    first = reports[0]
    if first.nonunitarity is not None:
        lines.append(
            f"Learned transforms: departure from the Fourier transform {first.departure:.3f}, "
            f"‖WᴴW − I‖/√n {first.nonunitarity:.3f}.  "
        )
    if any(r.retrospective for r in reports):
        lines.append("Fully sampled k-space was undersampled here; scores are means over slices.  ")
    if not all(r.header for r in reports):
        lines.append("No header: nothing is cropped, except to a target in the file.  ")
    return "\n".join([*lines, f"{NOTICE}."]) + "\n"


def _for_json(report: dict[str, object]) -> dict[str, object]:
    """Without infinity, which JSON does not know: null instead."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in report.items()}
