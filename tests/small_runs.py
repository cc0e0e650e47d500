"""Settings of tiny trainings, and what is in their run directories."""

import csv
from pathlib import Path

import safetensors.torch
import torch

__all__ = ["SETTINGS", "assert_same_run", "table", "weights"]

SETTINGS = {
    "modes": 4,
    "width": 4,
    "layers": 2,
    "n_train": 6,
    "n_test": 2,
    "epochs": 3,
    "batch": 8,
    "device": "cpu",
    "quiet": True,
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the exported model."""
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def table(run: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_run(a: Path, b: Path) -> None:
    """Bitwise the same weights and metrics; only the seconds may differ."""
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert len(table(a)) == len(table(b))
    for x, y in zip(table(a), table(b), strict=True):
        assert {**x, "seconds": None} == {**y, "seconds": None}
