"""What ``monarchize`` did to a model, layer by layer."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Report", "Row", "stack_name"]

LINES = 34  # of the table at most, so that it fits on a screen


@dataclass(frozen=True)
class Row:
    """One linear layer. Parameters include the bias; multiply-adds are for one token, or one pixel."""

    name: str
    kind: str
    in_features: int
    out_features: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    error: float | None
    """‖M − W‖/‖W‖ of the projection; None where nothing was projected."""
    reason: str | None
    """Why the layer stays dense; None where it was replaced."""


@dataclass(frozen=True)
class Report:
    """Every linear layer of a model with its sizes before and after; ``print`` shows a table.

    ``parameters_before`` and ``parameters_after`` are those of the whole model. Those of the linear layers
    are summed over the rows, but for weights that belong to another module too, such as an embedding.
    """

    rows: tuple[Row, ...]
    parameters_before: int
    parameters_after: int

    @property
    def linear_before(self) -> int:
        """Parameters of the linear layers before."""
        return sum(row.parameters_before for row in self._own())

    @property
    def linear_after(self) -> int:
        """Parameters of the linear layers after."""
        return sum(row.parameters_after for row in self._own())

    def _own(self) -> list[Row]:
        return [row for row in self.rows if not (row.reason or "").startswith("shares")]

    def to_json(self) -> dict[str, Any]:
        """Rows and totals as plain numbers and strings."""
        totals = ("parameters_before", "parameters_after", "linear_before", "linear_after")
        return {**{name: getattr(self, name) for name in totals}, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            same = (row.in_features, row.out_features, row.parameters_after, row.reason)
            groups.setdefault((stack_name(row.name), *same), []).append(row)
        table = [("layer", "in → out", "parameters", "Monarch", "error")]
        for (name, *_), rows in list(groups.items())[:LINES]:
            row, errors = rows[0], [r.error for r in rows if r.error is not None]
            table.append(
                (
                    f"{len(rows)} × {name}" if len(rows) > 1 else name,
                    f"{row.in_features} → {row.out_features}",
                    f"{len(rows) * row.parameters_before:,}",
                    f"{len(rows) * row.parameters_after:,}" if row.reason is None else row.reason,
                    f"{sum(errors) / len(errors):.3f}" if errors else "",
                )
            )
        if len(groups) > LINES:
            table.append((f"… and {len(groups) - LINES} more", "", "", "", ""))
        for name in ("linear", "parameters"):
            before, after = getattr(self, f"{name}_before"), getattr(self, f"{name}_after")
            title = "all linear layers" if name == "linear" else "whole model"
            table.append((title, "", f"{before:,}", f"{after:,}", f"{after / max(before, 1):.1%}"))
        widths = [max(len(line[column]) for line in table) for column in range(5)]
        align = ("<", ">", ">", ">", ">")
        lines = (
            "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True)).rstrip()
            for line in table
        )
        return "\n".join(lines)


def stack_name(name: str) -> str:
    """layer.0.dense → layer.*.dense: one name for all layers of a stack."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name) if "." in name else name
