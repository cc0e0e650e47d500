"""What a training minimises: masks within what was measured, a penalty by the data, gradients in bounds."""

from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from monarch_sciml.mri import recipe
from monarch_sciml.mri.masks import Mask, MaskConfig
from monarch_sciml.mri.recipe import Example, MapCache, TrainConfig, train
from monarch_sciml.mri.simulation import SimulateConfig, simulate


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Five volumes of two slices, one of them held out."""
    folder = tmp_path_factory.mktemp("data")
    simulate(folder, SimulateConfig(volumes=5, slices=2, shape=(24, 20), coils=(3,)))
    return folder


def config(data: Path, out: Path, **settings) -> TrainConfig:
    sampling = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    small = {"maps": "low-resolution", "n_test": 1, "cascades": 2, "channels": 2, "pools": 1, "epochs": 1}
    return TrainConfig(data, out, sampling=sampling, device="cpu", quiet=True, **{**small, **settings})


def test_the_start_of_msense_counts_for_400_slices_whatever_their_number(data, tmp_path, monkeypatch):
    given, original = [], recipe._loss
    monkeypatch.setattr(recipe, "_loss", lambda *of: given.append(of[-1]) or original(*of))
    for i, settings in enumerate(
        ({"n_train": 1}, {}, {"n_train": 1, "penalty": 3.0}, {"model": "varnet-monarch"})
    ):
        train(config(data, tmp_path / str(i), **{"model": "msense", **settings}))
    assert given == pytest.approx([400 / 2, 400 / 8, 3, 0])


def test_the_norm_of_the_gradient_is_at_most_one(data, tmp_path):
    """Under a penalty whose gradient is far above that, once the transform has moved."""
    norms = []

    def look(optimiser, *_):
        parts = [p.grad.norm() for group in optimiser.param_groups for p in group["params"]]
        norms.append(torch.stack(parts).norm().item())

    hook = register_optimizer_step_post_hook(look)
    try:
        train(config(data, tmp_path / "run", model="msense", penalty=1e6))
    finally:
        hook.remove()
    assert len(norms) == 8
    assert max(norms) == pytest.approx(1, rel=1e-4)


def test_a_network_sees_nothing_outside_the_columns_that_were_measured():
    """Neither as sampled nor in k-space, whatever the file holds there."""
    kspace = torch.randn(3, 12, 14, dtype=torch.complex64)
    example = Example(kspace, torch.ones(12, 14), (2, 13), "a.h5", 0)
    mask = Mask(torch.ones(1, 14, dtype=torch.bool), (12, 6))
    masked, pattern, _ = recipe.undersample(example, mask, MapCache("low-resolution"))
    assert pattern.flatten().tolist() == [2 <= column < 13 for column in range(14)]
    assert torch.equal(masked[0], kspace * pattern[0])
