"""Several channels: each is divided by its own standard deviation, so that their units do not matter."""

from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_runs import SETTINGS
from waves import waves

from monarch_sciml.pde import FramePredictor, relative_l2
from monarch_sciml.pde.evaluation import evaluate_run, markdown_table
from monarch_sciml.pde.recipe import TrainConfig, train


def trained(folder: Path, *channels: np.ndarray, **settings) -> Path:
    """On these channels, as PDEBench stores them."""
    folder.mkdir()
    with h5py.File(folder / "flow.h5", "w") as file:
        file["tensor"] = np.stack(channels, axis=-1)
        for axis, n in zip("xy", channels[0].shape[2:], strict=True):
            file[f"{axis}-coordinate"] = np.arange(n) / n
    return train(TrainConfig(data=folder / "flow.h5", out=folder / "run", **{**SETTINGS, **settings}))


@pytest.mark.parametrize("settings", [{"noise": 0.1}, {"model": "fno", "residual": True}], ids=str)
def test_a_channel_in_other_units_trains_and_scores_alike(settings, tmp_path: Path) -> None:
    """In units 2¹⁰ times as small: every digit is the same."""
    u, v = waves(), waves(seed=1)
    (tmp_path / "b").mkdir()
    one = trained(tmp_path / "a", u, v, **settings)
    other = trained(tmp_path / "b" / "c", u, 1024 * v, **settings)
    a, b = (asdict(evaluate_run(run, progress=False)[0]) for run in (one, other))
    assert {k: a[k] for k in a if k != "train_seconds"} == {k: b[k] for k in b if k != "train_seconds"}
    models = [FramePredictor.from_pretrained(run) for run in (one, other)]
    assert models[1].config.scale[1] == 1024 * models[0].config.scale[1]
    x, units = torch.from_numpy(np.stack((u, v), 2)[:, :1]), torch.tensor([1.0, 1024.0]).view(2, 1, 1)
    with torch.no_grad():
        assert torch.equal(models[1](x * units), models[0](x) * units)


def test_errors_of_all_channels_and_of_each(tmp_path: Path) -> None:
    run = trained(tmp_path / "a", waves(), 100 * waves(seed=1), 0 * waves(), epochs=1)
    result, (truth, _) = evaluate_run(run, progress=False)
    model = FramePredictor.from_pretrained(run)
    (u, v, z), n = model.config.scale, 6
    assert v / u == pytest.approx(100, rel=0.5)
    assert z == pytest.approx(((u**2 + v**2) / 3) ** 0.5, rel=0.01)  # of all, as it does not vary
    assert truth.shape == (n - 1, 16, 16)
    first, second, third = result.rollout_per_channel or []
    assert third is None
    assert first is not None
    assert second is not None
    assert min(first, second) - 0.02 < result.rollout < max(first, second) + 0.02
    text = markdown_table([result])
    assert f"* run: {first:.4f}, {second:.4f}, none, as it is zero" in text


def test_errors_in_units() -> None:
    y, p = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 3, 4, 5, 6)
    units = torch.rand(4, 1, 1) + 0.5
    expected = ((p - y) / units).flatten(2).norm(dim=2) / (y / units).flatten(2).norm(dim=2)
    torch.testing.assert_close(relative_l2(p, y, first_dim=2, units=units), expected)
