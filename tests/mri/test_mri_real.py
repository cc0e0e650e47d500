"""Real k-space: skipped where MONARCH_SCIML_TEST_DATA does not point to it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from monarch_sciml.mri import MaskConfig, ModelConfig, mask_from_kspace, open_kspace, reconstruct_slice
from monarch_sciml.mri.classical import METHODS, cg_sense, zero_filled
from monarch_sciml.mri.metrics import psnr

FOLDER = Path(os.environ.get("MONARCH_SCIML_TEST_DATA", "absent"))
BRAIN, NEONATE = FOLDER / "brain8_full_kspace.npy", FOLDER / "neonate32_semisynthetic_kspace.npy"
PROSPECTIVE = FOLDER / "brain8_undersampled_kspace.npy"
pytestmark = pytest.mark.skipif(not BRAIN.exists(), reason="no real inputs")


def score(path, method, config):
    with open_kspace(path) as file:
        found = reconstruct_slice(torch.from_numpy(file[0]), method, sampling=config, seed=0)
    assert found.target is not None
    return psnr(found.target, found.image)


@pytest.mark.parametrize("path", [BRAIN, NEONATE], ids=["brain", "neonate"])
def test_parallel_imaging_works_on_real_brains(path):
    config = MaskConfig("random", (4.0,), (0.08,))
    assert score(path, cg_sense, config) > score(path, zero_filled, config) + 3


def test_a_prospectively_undersampled_scan_explains_its_own_mask():
    with open_kspace(PROSPECTIVE) as file:
        kspace = torch.from_numpy(file[0])
    mask = mask_from_kspace(kspace)
    assert mask.acs == (24, 24)
    assert 8.0 < mask.acceleration < 8.1
    for method in (METHODS["cg-sense"], METHODS["zero-filled"]):
        found = reconstruct_slice(kspace, method)
        assert not found.retrospective
        assert found.target is None
        assert found.image.shape == (230, 180)
    # the image stands out from the air around it
    image = reconstruct_slice(kspace, cg_sense).image.numpy()
    assert np.median(image[60:170, 60:120]) > 20 * np.median(image[:15])


def test_a_network_for_another_grid_takes_the_real_one():
    """An untrained Monarch network for 128 × 128 on 230 × 180 is the one with the FFT."""
    with open_kspace(PROSPECTIVE) as file:
        kspace = torch.from_numpy(file[0])
    images = []
    for kind in ("varnet", "varnet-monarch"):
        torch.manual_seed(0)
        model = ModelConfig(kind, (128, 128), cascades=1, channels=2, pools=1).build()

        def method(y, pattern, maps, model=model):
            with torch.no_grad():
                return model(y[None], pattern[None], maps[None])[0]

        images.append(reconstruct_slice(kspace, method).image)
    assert (images[0] - images[1]).norm() < 1e-4 * images[0].norm()
