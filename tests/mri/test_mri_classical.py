"""Classical reconstructions: exact where theory says so, better than zero filling where it does not."""

import numpy as np
import pytest
import torch
from laws import relative_error

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.classical import (
    METHODS,
    cg_sense,
    density_compensated,
    l1_wavelet,
    sampling_density,
    total_variation,
    zero_filled,
)
from monarch_sciml.mri.masks import MaskConfig, draw_mask
from monarch_sciml.mri.metrics import psnr
from monarch_sciml.mri.operators import encoding
from monarch_sciml.mri.phantoms import coil_maps, random_phantom

QUICK = {"cg-sense": {"iterations": 4}, "l1-wavelet": {"iterations": 4}, "tv": {"iterations": 2}}


def measured(shape, coils, *, noise=0.01, rate=4.0, seed=0, dtype=torch.complex64):
    """Image, masked k-space, pattern and true maps of a phantom."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(random_phantom(shape, 1, rng)[0].copy())
    maps = torch.from_numpy(coil_maps(coils, shape, rng).copy())
    pattern = draw_mask(MaskConfig(accelerations=(rate,), center_fractions=(0.1,)), shape, seed).pattern
    y = encoding(maps, pattern)(image + 0j)
    y = y + pattern * noise * complex_noise(y.shape, rng)
    return image.to(dtype), y.to(dtype), pattern, maps.to(dtype)


def complex_noise(shape, rng):
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / 2**0.5


def tiny(coils=3, shape=(4, 6), dtype=torch.complex128):
    maps = torch.randn(coils, *shape, dtype=dtype)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    pattern = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
    y = pattern * torch.randn(coils, *shape, dtype=dtype)
    dense = FourierTransform(shape).to_dense(torch.complex128).to(dtype)
    rows = pattern.expand(shape).reshape(-1, 1)
    return y, pattern, maps, torch.cat([rows * dense * S.flatten() for S in maps])


def test_zero_filled_is_the_dense_adjoint():
    y, pattern, maps, A = tiny()
    assert relative_error(zero_filled(y, pattern, maps).flatten(), A.mH @ y.flatten()) < 1e-13


@pytest.mark.parametrize("damping", [0.02, 0.5])
def test_cg_sense_is_the_dense_solution(damping):
    y, pattern, maps, A = tiny()
    expected = torch.linalg.solve(A.mH @ A + damping * torch.eye(24, dtype=torch.float64), A.mH @ y.flatten())
    found = cg_sense(y, pattern, maps, damping=damping, iterations=80)
    assert relative_error(found.flatten(), expected) < 1e-10


@pytest.mark.parametrize(("shape", "seed"), [((48, 40), 0), ((37, 41), 1)])
def test_cg_sense_recovers_clean_images_from_half_of_the_data(shape, seed):
    image, _, _, maps = measured(shape, 8, seed=seed)
    pattern = torch.zeros(1, shape[1], dtype=torch.bool)
    pattern[:, shape[1] % 2 :: 2] = True
    y = encoding(maps, pattern)(image)
    assert relative_error(zero_filled(y, pattern, maps), image) > 0.2
    assert relative_error(cg_sense(y, pattern, maps, damping=0.0, iterations=60), image) < 1e-3


def test_damping_shrinks_the_image_and_what_is_not_explained_grows():
    _, y, pattern, maps = measured((32, 32), 4, noise=0.05)
    images = [cg_sense(y, pattern, maps, damping=d, iterations=60) for d in (0.001, 0.03, 1.0)]
    sizes = [x.norm().item() for x in images]
    misfits = [(encoding(maps, pattern)(x) - y).norm().item() for x in images]
    assert sizes == sorted(sizes, reverse=True)
    assert misfits == sorted(misfits)
    # at λ → ∞ only the direction of Aᴴy is left, divided by λ
    strong = cg_sense(y, pattern, maps, damping=1e3, iterations=5)
    assert relative_error(strong * 1e3, zero_filled(y, pattern, maps)) < 2e-3


def wavelet_objective(x, y, pattern, maps, weight):
    from sigpy.linop import Wavelet

    return misfit(x, y, pattern, maps) + weight * np.abs(Wavelet(x.shape, wave_name="db4")(x.numpy())).sum()


def variation_objective(x, y, pattern, maps, weight):
    differences = sum((x - x.roll(1, axis)).abs().sum() for axis in (0, 1))
    return misfit(x, y, pattern, maps) + weight * float(differences)


def misfit(x, y, pattern, maps):
    return 0.5 * float((encoding(maps, pattern)(x) - y).norm() ** 2)


@pytest.mark.parametrize(
    ("method", "objective", "steps"),
    [(l1_wavelet, wavelet_objective, (2, 10, 150)), (total_variation, variation_objective, (1, 4, 25))],
)
def test_the_objective_falls_to_its_minimum(method, objective, steps):
    image, y, pattern, maps = measured((32, 40), 4)
    weight = 0.003
    scale = zero_filled(y, pattern, maps).abs().max()
    problem = (y, pattern, maps, weight * scale)
    tries = [method(y, pattern, maps, regularisation=weight, iterations=n) for n in steps]
    values = [objective(x, *problem) for x in (zero_filled(y, pattern, maps), *tries)]
    assert values == sorted(values, reverse=True)
    # a minimum: no better towards anything else
    best = tries[-1]
    for other in (image, 0 * image, tries[0], best + 0.01 * scale * torch.randn_like(image)):
        for step in (0.1, 0.5):
            assert objective(torch.lerp(best, other, step), *problem) > values[-1] * (1 - 1e-3)


@pytest.mark.parametrize("rate", [3.0, 4.0])
@pytest.mark.parametrize(("name", "least"), [("cg-sense", 1.0), ("l1-wavelet", 1.8), ("tv", 4.0)])
def test_iterations_beat_zero_filling(name, least, rate):
    image, y, pattern, maps = measured((64, 80), 8, rate=rate, seed=2)
    images = (METHODS[name](y, pattern, maps), zero_filled(y, pattern, maps))
    found, plain = (psnr(image.abs(), x.abs()) for x in images)
    assert found - plain > least


def test_density_compensation_beats_zero_filling():
    gains = []
    config = MaskConfig(accelerations=(4.0,), center_fractions=(0.1,))
    density = sampling_density(
        torch.stack([draw_mask(config, (64, 80), 100 + i).pattern for i in range(100)])
    )
    for seed in range(4):
        image, y, pattern, maps = measured((64, 80), 8, seed=seed)
        target, plain = image.abs(), zero_filled(y, pattern, maps).abs()
        gains.append(psnr(target, density_compensated(y, pattern, maps, density).abs()) - psnr(target, plain))
    assert np.mean(gains) > 0.1
    assert torch.equal(density_compensated(y, pattern, maps, density, power=0), zero_filled(y, pattern, maps))
    halves = torch.full((1, 80), 0.5)
    twice = density_compensated(y, pattern, maps, halves, power=1)
    assert relative_error(twice, 2 * zero_filled(y, pattern, maps)) < 1e-6


def test_full_compensation_is_right_on_average():
    """Mean over masks of Aᴴ (y / d) is the image itself: every point is counted once."""
    shape, n = (6, 8), 4000
    density = torch.linspace(0.2, 1, 8, dtype=torch.float64)[None]
    maps = torch.ones(1, *shape, dtype=torch.complex128)
    x = torch.randn(shape, dtype=torch.complex128)
    patterns = torch.rand(n, 1, 8) < density
    y = FourierTransform(maps.shape)(x[None]) * patterns[:, None]
    mean = density_compensated(y, patterns, maps, density, power=1).mean(0)
    assert relative_error(mean, x) < 0.1
    assert relative_error(zero_filled(y, patterns, maps).mean(0), x) > 0.3


def test_sampling_density_is_the_mean_and_smoothing_keeps_its_sum():
    patterns = torch.rand(5, 1, 31) < 0.4
    assert torch.allclose(sampling_density(patterns), patterns.double().mean(0))
    single = torch.zeros(1, 41, 41)
    single[0, 20, 20] = 1
    smooth = sampling_density(single, smoothing=2.0)
    assert smooth.sum().item() == pytest.approx(1)
    assert smooth[20, 22].item() / smooth[20, 20].item() == pytest.approx(np.exp(-0.5), rel=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_image_scales_with_the_data(name):
    _, y, pattern, maps = measured((24, 30), 4)
    options = QUICK.get(name, {})
    plain = METHODS[name](y, pattern, maps, **options)
    for scale in (1e-7, 3e4):
        assert relative_error(METHODS[name](scale * y, pattern, maps, **options), scale * plain) < 1e-3
    assert torch.equal(METHODS[name](0 * y, pattern, maps, **options), 0 * plain)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(23, 18), (31, 37), (5, 4), (16, 29)])
@pytest.mark.parametrize("points", [False, True])
def test_any_size_mask_and_batch(name, shape, points):
    batch, coils = 2, 3
    maps = torch.randn(batch, coils, *shape, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    pattern = torch.rand(batch, shape[0] if points else 1, shape[1]) < 0.6
    y = torch.randn(batch, coils, *shape, dtype=torch.complex64) * pattern[:, None]
    options = QUICK.get(name, {})
    whole = METHODS[name](y, pattern, maps, **options)
    assert (whole.shape, whole.dtype) == ((batch, *shape), torch.complex64)
    for i in range(batch):
        assert relative_error(METHODS[name](y[i], pattern[i], maps[i], **options), whole[i]) < 1e-5
    shared = METHODS[name](y, pattern[0], maps[0], **options)
    assert relative_error(shared[1], METHODS[name](y[1] * pattern[0], pattern[0], maps[0], **options)) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_points_that_were_not_measured_do_not_count(name):
    _, y, pattern, maps = measured((24, 20), 4)
    noisy = torch.where(pattern, y, torch.randn_like(y))
    options = QUICK.get(name, {})
    assert torch.equal(
        METHODS[name](noisy, pattern, maps, **options), METHODS[name](y, pattern, maps, **options)
    )


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_invented_where_no_coil_measures(name):
    _, y, pattern, maps = measured((24, 20), 4)
    maps[:, :, :5] = 0
    found = METHODS[name](y, pattern, maps, **QUICK.get(name, {}))
    assert not found[:, :5].any()
    assert found[:, 5:].all()
    # a slice that no coil sees, in the units of any scanner
    assert not METHODS[name](1e9 * y, pattern, 0 * maps, **QUICK.get(name, {})).any()


@pytest.mark.parametrize("name", METHODS)
def test_quiet_repeatable_and_without_traces(name, capfd):
    _, y, pattern, maps = measured((24, 20), 4)
    state, inputs = np.random.get_state()[1].copy(), [t.clone() for t in (y, maps)]  # noqa: NPY002
    first, second = (METHODS[name](y, pattern, maps, **QUICK.get(name, {})) for _ in range(2))
    assert torch.equal(first, second)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert torch.equal(y, inputs[0])
    assert torch.equal(maps, inputs[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["zero-filled", "l1-wavelet", "tv"])
def test_a_single_coil_is_enough(name):
    _, y, pattern, maps = measured((24, 20), 1)
    assert torch.isfinite(METHODS[name](y, pattern, maps, **QUICK.get(name, {})).abs()).all()


def test_sense_needs_several_coils():
    _, y, pattern, maps = measured((24, 20), 1)
    with pytest.raises(InputError, match="at least two coils for SENSE; found one; use l1-wavelet or tv"):
        cg_sense(y, pattern, maps)


@pytest.mark.parametrize("name", METHODS)
def test_mistakes(name):
    _, y, pattern, maps = measured((24, 20), 4)
    method = METHODS[name]
    with pytest.raises(InputError, match=r"coil maps \(4, 24, 20\) like the k-space; found \(3, 24, 20\)"):
        method(y, pattern, maps[:3])
    with pytest.raises(InputError, match=r"expected a mask \(1, 20\) or \(24, 20\); found \(1, 19\)"):
        method(y, pattern[:, 1:], maps)
    with pytest.raises(InputError, match=r"complex k-space and maps \(coils, H, W\); found torch.float32"):
        method(y.real, pattern, maps)
    with pytest.raises(InputError, match="keep the coil axis of a single coil"):
        method(y[0], pattern, maps)
    for bad in (float("nan"), float("inf")):
        spoilt = y.clone()
        spoilt[1, 2, 3] = bad
        with pytest.raises(InputError, match="expected finite k-space; found NaN or infinite values"):
            method(spoilt, pattern, maps)
        spoilt = maps.clone()
        spoilt[1, 2, 3] = bad
        with pytest.raises(InputError, match="expected finite coil maps"):
            method(y, pattern, spoilt)


def test_mistakes_with_densities():
    _, y, pattern, maps = measured((24, 20), 4)
    with pytest.raises(InputError, match=r"a density \(1, 20\) or \(24, 20\); found \(1, 18\)"):
        density_compensated(y, pattern, maps, torch.ones(1, 18))
    with pytest.raises(
        InputError, match="a positive density at every measured point; found zero; average more"
    ):
        density_compensated(y, pattern, maps, torch.zeros(1, 20))
    with pytest.raises(InputError, match=r"masks \(n, 1, W\) or \(n, H, W\); found \(1, 20\)"):
        sampling_density(pattern)
