"""Coil maps: equal to sigpy's, close to the truth, from the calibration region and from nothing else."""

import numpy as np
import pytest
import torch

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.masks import MaskConfig, apply_mask, draw_mask
from monarch_sciml.mri.phantoms import coil_maps, random_field, random_phantom
from monarch_sciml.mri.sensitivity import calibration, espirit, low_resolution, root_sum_of_squares


def simulate(shape, coils, *, noise=0.0, seed=0):
    """Object, maps and k-space (C, H, W) of a phantom that is measured where it was made."""
    rng = np.random.default_rng(seed)
    image, maps = random_phantom(shape, 1, rng)[0], coil_maps(coils, shape, rng)
    image, maps = torch.from_numpy(image.copy()), torch.from_numpy(maps.copy())
    k = FourierTransform(maps.shape)(maps * image)
    k = k + noise * torch.from_numpy(rng.standard_normal(k.shape) + 1j * rng.standard_normal(k.shape))
    return image, maps, k.to(torch.complex64)


def likeness(found, true, where):
    """|Σ S̄ T| at the pixels: 1 where maps of unit length agree up to a phase."""
    return (found.conj() * true).sum(0).abs()[where]


def residual(maps, k):
    """Part of the coil images that the maps cannot explain, ‖x_c − S_c Σ S̄ x‖ / ‖x‖."""
    x = FourierTransform(k.shape).H(k)
    return ((x - maps * (maps.conj() * x).sum(0)).norm() / x.norm()).item()


# as even as the widths, or as odd: on others sigpy takes its block one off the centre
@pytest.mark.parametrize(
    ("shape", "coils", "width", "kernel"), [((48, 40), 4, 24, 6), ((45, 53), 5, 21, 5), ((64, 40), 8, 18, 4)]
)
def test_equals_sigpy_up_to_a_phase(shape, coils, width, kernel):
    from sigpy.mri.app import EspiritCalib

    k = simulate(shape, coils, noise=0.01)[2]
    app = EspiritCalib(k.numpy(), calib_width=width, kernel_width=kernel, max_iter=30, show_pbar=False)
    theirs = torch.from_numpy(app.run())
    ours = espirit(k, (width, width), kernel=kernel, iterations=30)
    support, others = root_sum_of_squares(ours) > 0, root_sum_of_squares(theirs) > 0
    assert 0.2 < support.float().mean() < 0.98
    assert (support != others).float().mean() < 0.002, "at the threshold, rounding decides"
    assert likeness(ours, theirs, support & others).min() > 1 - 1e-4


@pytest.mark.parametrize("acs", [(24, 24), (48, 10), (48, 4), (3, 3), (7, 40)])
def test_maps_have_unit_length_or_none(acs):
    k = simulate((48, 40), 6, noise=0.005)[2]
    squares = root_sum_of_squares(espirit(k, acs)) ** 2
    assert (torch.minimum(squares, (squares - 1).abs()) < 1e-5).all()
    assert (squares > 0.5).any()
    assert (root_sum_of_squares(low_resolution(k, acs)) - 1).abs().max() < 1e-5
    assert espirit(k, acs).dtype == k.dtype
    assert torch.isfinite(torch.view_as_real(espirit(k, acs))).all()


@pytest.mark.parametrize(("shape", "seed"), [((64, 64), 1), ((61, 48), 2), ((56, 67), 3)])
def test_recovers_the_true_maps_of_clean_data(shape, seed):
    image, maps, k = simulate(shape, 6, seed=seed)
    found = espirit(k, (24, 24))
    bright = (image.abs() > 0.2 * image.abs().max()) & (root_sum_of_squares(found) > 0)
    assert bright.float().mean() > 0.15
    assert likeness(found, maps.to(k), bright).quantile(0.02) > 0.999
    assert residual(found, k) < 0.04


@pytest.fixture(scope="module")
def rough():
    """K-space of coils that vary faster than a birdcage's, as real ones do."""
    shape, rng = (96, 128), np.random.default_rng(0)
    image, maps = random_phantom(shape, 1, rng)[0], coil_maps(8, shape, rng)
    for coil in maps:
        coil *= np.exp(0.7 * (random_field(shape, (0.6, 2), rng) + 1j * random_field(shape, (0.6, 2), rng)))
    k = FourierTransform(maps.shape)(torch.from_numpy(maps / np.linalg.norm(maps, axis=0) * image))
    return (k + 0.007 * torch.from_numpy(rng.standard_normal((*k.shape, 2)) @ [1, 1j])).to(torch.complex64)


@pytest.mark.parametrize("columns", [4, 5, 7, 9, 11])
def test_a_narrow_region_gives_useful_maps(rough, columns):
    """Patches of more than half the region fill the space V, and the maps become holes."""
    acs = (96, columns)
    assert residual(espirit(rough, acs), rough) < 0.55 * residual(low_resolution(rough, acs), rough)


@pytest.mark.parametrize("estimate", [espirit, low_resolution])
@pytest.mark.parametrize("shape", [(40, 36), (41, 37), (40, 37)])
@pytest.mark.parametrize("acs", [(12, 9), (40, 8), (9, 12)])
def test_nothing_outside_the_calibration_region_matters(estimate, shape, acs):
    k = simulate(shape, 4, noise=0.01)[2]
    acs = (min(acs[0], shape[0]), acs[1])
    inside = calibration(k, acs)  # a view
    changed = torch.randn_like(k) * 100
    calibration(changed, acs).copy_(inside)
    assert torch.equal(estimate(changed, acs), estimate(k, acs))
    calibration(changed, acs)[:, 1, 1] += 1
    assert not torch.equal(estimate(changed, acs), estimate(k, acs))


@pytest.mark.parametrize("width", [36, 37, 50, 51])
@pytest.mark.parametrize("fraction", [0.15, 0.2, 0.25, 0.3])
def test_the_region_is_the_one_that_masks_sample(width, fraction):
    """On odd widths too the block of a mask with its centre is sampled throughout."""
    mask = draw_mask(MaskConfig(accelerations=(8.0,), center_fractions=(fraction,)), (31, width), 3)
    k = apply_mask(torch.ones(2, 31, width, dtype=torch.complex64), mask)
    assert calibration(k, mask.acs).shape == (2, 24, min(mask.acs[1], 24))
    assert (calibration(k, mask.acs) == 1).all()


def test_the_scale_of_the_data_changes_nothing():
    k = simulate((32, 32), 4, noise=0.01)[2]
    for estimate in (espirit, low_resolution):
        assert (estimate(k * 1e-6, (16, 16)) - estimate(k, (16, 16))).abs().max() < 1e-3


@pytest.mark.parametrize("folds", [1, 2])
def test_the_image_does_not_depend_on_how_the_coils_are_combined(folds):
    """Phases of receivers, their order, any unitary mixture: also where two points lie on one pixel."""
    k = simulate((folds * 48, 40), 8)[2][:, ::folds]
    rng = np.random.default_rng(1)
    unitary = np.linalg.qr(rng.standard_normal((8, 8)) + 1j * rng.standard_normal((8, 8)))[0]
    phases = np.diag(np.exp(2j * np.pi * rng.random(8)))

    def combined(k):
        return (espirit(k, 24).conj() * FourierTransform(k.shape).H(k)).sum(0).abs()

    image = combined(k)
    for mixture in (phases, np.eye(8)[rng.permutation(8)], unitary):
        mixed = torch.einsum("ij,jhw->ihw", torch.from_numpy(mixture).to(k), k)
        assert (combined(mixed) - image).norm() < 1e-5 * image.norm()


def test_a_single_coil_is_one_where_there_is_signal():
    image, _, k = simulate((40, 40), 1)
    maps = espirit(k, (24, 24))
    assert maps.shape == (1, 40, 40)
    assert (maps[0, image.abs() > 0.3 * image.abs().max()] - 1).abs().max() < 1e-4


def test_double_precision_stays():
    k = simulate((32, 24), 3)[2].to(torch.complex128)
    assert espirit(k, (12, 12)).dtype == low_resolution(k, (12, 12)).dtype == torch.complex128
    assert (espirit(k, (12, 12)) - espirit(k.to(torch.complex64), (12, 12))).abs().quantile(0.98) < 1e-4


@pytest.mark.parametrize("estimate", [espirit, low_resolution])
@pytest.mark.parametrize("acs", [(0, 0), (32, 2), (2, 32), (1, 24)])
def test_no_calibration_region(estimate, acs):
    k = torch.ones(2, 32, 32, dtype=torch.complex64)
    message = rf"fully sampled centre of at least 3 × 3 in k-space; found {acs[0]} × {acs[1]}; pass coil maps"
    with pytest.raises(InputError, match=message):
        estimate(k, acs)


def test_no_signal():
    with pytest.raises(InputError, match="expected a signal in the centre of k-space; found zeros"):
        espirit(torch.zeros(2, 32, 32, dtype=torch.complex64), (16, 16))


def test_root_sum_of_squares():
    x = torch.tensor([3.0, 4j])[:, None, None].expand(5, 2, 3, 7)
    assert torch.equal(root_sum_of_squares(x), torch.full((5, 3, 7), 5.0))
