"""Phantoms: diverse, finite, inside the field of view, of smooth phase; coil maps that add up to one."""

import itertools

import numpy as np
import pytest

from monarch_sciml.mri.phantoms import coil_maps, random_field, random_phantom, shepp_logan

SHAPES = [(64, 64), (63, 61), (48, 80), (97, 40)]  # even, odd, prime, rectangular


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def volumes() -> list[np.ndarray]:
    return [random_phantom((64, 64), 4, generator(seed)) for seed in range(24)]


def frequencies(shape: tuple[int, int]) -> np.ndarray:
    y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
    return np.sqrt(y[:, None] ** 2 + x**2)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.abs(a).ravel(), np.abs(b).ravel())[0, 1])


# -------------------------------------------------------------------------------------------- random fields


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_a_field_has_variance_one_and_keeps_to_its_band(shape, slope):
    field = random_field(shape, (0.1, 0.5), generator(), slope=slope)
    assert field.shape == shape
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.var() == pytest.approx(1)
    power = np.abs(np.fft.fft2(field)) ** 2
    f = frequencies(shape)
    inside = (f >= 2) & (f <= 10)
    assert power[~inside].max() < 1e-20 * power.max()
    assert (power[inside] > 0).all()


def test_the_order_of_the_wavelengths_does_not_matter():
    fields = [random_field((32, 24), pair, generator(), slope=1.0) for pair in [(0.1, 0.5), (0.5, 0.1)]]
    np.testing.assert_array_equal(*fields)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.5])
def test_the_spectrum_falls_with_the_slope(slope):
    rng, shape = generator(), (64, 80)
    power = sum(
        np.abs(np.fft.fft2(random_field(shape, (1 / 24, 0.5), rng, slope=slope))) ** 2 for _ in range(20)
    )
    f = frequencies(shape)
    ring = [power[(f >= r) & (f < r * 1.25)].mean() for r in (3, 18)]
    mean = [f[(f >= r) & (f < r * 1.25)].mean() for r in (3, 18)]
    measured = -np.log(ring[1] / ring[0]) / np.log(mean[1] / mean[0]) / 2  # of the amplitude
    assert measured == pytest.approx(slope, abs=0.1)


def test_a_grid_without_a_frequency_in_the_band_gives_nothing():
    assert not random_field((16, 16), (0.01, 0.02), generator()).any()


# ------------------------------------------------------------------------------------------- random objects


@pytest.mark.parametrize("shape", [*SHAPES, (16, 16)])
@pytest.mark.parametrize("slices", [1, 3])
def test_objects_are_finite_bright_and_inside_the_field_of_view(shape, slices):
    for seed in range(3):
        volume = random_phantom(shape, slices, generator(seed))
        assert volume.shape == (slices, *shape)
        assert volume.dtype == np.complex128
        magnitude = np.abs(volume)  # NaN would fail the comparisons below
        assert (magnitude.max((1, 2)) > 0.2).all()
        assert magnitude.max() < 3
        if min(shape) > 16:  # a smaller grid is all transition
            frame = np.concatenate([magnitude[:, [0, -1]].ravel(), magnitude[:, :, [0, -1]].ravel()])
            assert frame.max() < 0.02 * magnitude.max()


def test_bodies_larger_than_the_field_of_view_end_inside_it():
    for seed in (36, 37, 47):  # these reach its border
        magnitude = np.abs(random_phantom((64, 64), 3, generator(seed)))
        frame = np.concatenate([magnitude[:, [0, -1]].ravel(), magnitude[:, :, [0, -1]].ravel()])
        assert 0 < frame.max() < 0.02 * magnitude.max()


def test_the_object_is_surrounded_by_nothing(volumes):
    for volume in volumes:
        empty = np.abs(volume) < 1e-3
        assert 0.25 < empty.mean() < 0.85
        assert empty[:, :2, :2].all()  # the corners
        assert empty[:, -2:, -2:].all()


def test_the_phase_is_smooth(volumes):
    for volume in volumes:
        tissue = np.abs(volume) > 0.05
        for axis in (1, 2):
            ahead = np.roll(volume, -1, axis)
            both = tissue & np.roll(tissue, -1, axis)
            both.swapaxes(0, axis)[-1] = False  # not around the border
            assert np.abs(np.angle(ahead * volume.conj()))[both].max() < 0.4  # rad per pixel
        assert np.abs(np.angle(volume[tissue] * volume[tissue][0].conj())).max() > 0.3  # but not constant


def test_slices_resemble_their_neighbours_more_than_other_volumes(volumes):
    near, far, other = [], [], []
    for volume, stranger in itertools.pairwise(volumes):
        near += [correlation(*pair) for pair in itertools.pairwise(volume)]
        far.append(correlation(volume[0], volume[3]))
        other += [correlation(a, b) for a, b in zip(volume, stranger, strict=True)]
    assert np.mean(near) > np.mean(far) + 0.05
    assert np.mean(near) > np.mean(other) + 0.15


def test_objects_are_diverse(volumes):
    pairs = [correlation(a[1], b[1]) for a, b in itertools.combinations(volumes, 2)]
    assert max(pairs) < 0.97
    magnitudes = [np.abs(volume) for volume in volumes]
    area = np.array([(m > 0.05).mean() for m in magnitudes])
    brightness = np.array([np.median(m[m > 0.05]) for m in magnitudes])
    assert area.max() > 1.6 * area.min()
    assert brightness.max() > 1.6 * brightness.min()


def test_a_generator_of_the_same_seed_gives_the_same_object(volumes):
    again = random_phantom((64, 64), 4, generator(3))
    np.testing.assert_array_equal(again, volumes[3])


@pytest.mark.parametrize("shape", [(128, 128), (256, 64), (64, 256)])
def test_outlines_do_not_change_by_a_step(shape):
    # from nothing to tissue over several pixels, along the coarser axis too
    for seed in range(6):
        magnitude = np.abs(random_phantom(shape, 1, generator(seed)))[0]
        axis = int(np.argmin(shape))
        ahead = np.roll(magnitude, -1, axis)
        nothing = np.minimum(magnitude, ahead) < 0.01 * magnitude.max()
        assert np.abs(ahead - magnitude)[nothing].max() < 0.4 * magnitude.max()


# ------------------------------------------------------------------------------- Shepp–Logan, sensitivities


@pytest.mark.parametrize("shape", [(32, 32), (31, 24)])
def test_shepp_logan(shape):
    volume = shepp_logan(shape, 2)
    assert volume.shape == (2, *shape)
    assert volume.dtype == np.complex128
    assert not volume.imag.any()
    assert volume.real.max() == pytest.approx(1)
    assert volume.real.min() > -1e-6
    assert not volume[:, [0, -1]].any()
    assert (volume.real.max((1, 2)) > 0.9).all()  # every slice goes through the head


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coils", [1, 2, 7, 16])
def test_coil_maps_add_up_to_one_and_are_smooth(shape, coils):
    maps = coil_maps(coils, shape, generator(coils))
    assert maps.shape == (coils, *shape)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1, rtol=1e-12)
    for axis in (1, 2):
        assert np.abs(np.diff(maps, axis=axis)).max() < 0.25
    if coils > 1:  # each sees another part
        strongest = np.abs(maps).reshape(coils, -1).argmax(0)
        assert len(np.unique(strongest)) == coils


def test_coil_maps_differ_between_seeds():
    maps = [coil_maps(4, (24, 24), generator(seed)) for seed in range(6)]
    for a, b in itertools.combinations(maps, 2):
        assert np.abs(a - b).max() > 1e-3
