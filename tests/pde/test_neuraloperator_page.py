"""Darcy flow with neuraloperator's own trainer, losses and data set, as the documentation shows it."""

import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from neuralop import H1Loss, LpLoss, Trainer
from neuralop.data.datasets import darcy
from neuralop.models import FNO
from torch.utils.data import DataLoader

from monarch_sciml import MonarchSpectralConv

DATA = Path(os.environ.get("MONARCH_SCIML_TEST_DATA", "absent"))
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "neuraloperator.md"


@pytest.mark.skipif(not DATA.is_dir(), reason="MONARCH_SCIML_TEST_DATA names no folder")
def test_darcy_flow(tmp_path, monkeypatch):
    """On fewer samples, of files that are there already; learned, it transfers to the finer grid."""
    [text] = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for much, little in (
        ("=1000", "=100"),
        ("s=10", "s=3"),
        ("r, 10", "r, 3"),
        ("els=24", "els=12"),
        ("[50", "[20"),
    ):
        assert much in text
        text = text.replace(much, little)
    (tmp_path / "darcy").mkdir()
    for file in DATA.glob("darcy_*.pt"):
        (tmp_path / "darcy" / file.name).symlink_to(file)
    monkeypatch.setattr(darcy, "download_from_zenodo_record", lambda **_: None)
    monkeypatch.chdir(tmp_path)
    scope = {
        "torch": torch,
        "warnings": warnings,
        "FNO": FNO,
        "MonarchSpectralConv": MonarchSpectralConv,
        "Trainer": Trainer,
        "H1Loss": H1Loss,
        "LpLoss": LpLoss,
        "DataLoader": DataLoader,
        "losses": {"l2": LpLoss(d=2), "h1": H1Loss(d=2)},
    }
    exec(compile(text, str(PAGE), "exec"), scope)
    figures = {name: float(value) for name, value in scope["figures"].items() if name.endswith("l2")}
    assert figures["16_l2"] < 0.7
    assert figures["32_l2"] < 1.2 * figures["16_l2"]
