"""Objects that never existed: diverse, anatomy-like, and finer than the grid they are measured on.

Networks trained on one kind of anatomy memorise it. These phantoms vary outline, shell, folded two-tissue
patterns, inclusions, texture and phase, so that what is learned from them is the physics rather than a shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["coil_maps", "random_field", "random_phantom", "shepp_logan"]

Image = NDArray[np.complex128]
Real = NDArray[np.float64]


def random_field(
    shape: tuple[int, int], wavelengths: tuple[float, float], rng: np.random.Generator, *, slope: float = 0.0
) -> Real:
    """A periodic Gaussian random field of mean 0 and variance 1.

    Its spectrum falls as |f|^(−slope) between the two wavelengths, given in fractions of the field of view,
    and is zero outside. Where the grid has no frequency between them, so is the field.
    """
    fy, fx = (np.fft.fftfreq(n, 1 / n) for n in shape)
    f = np.hypot(fy[:, None], fx)
    low, high = 1 / max(wavelengths), 1 / min(wavelengths)
    band = (f >= low) & (f <= high)
    spectrum = np.where(band, np.maximum(f, 1.0) ** -slope, 0.0)
    field = np.fft.ifft2(spectrum * np.fft.fft2(rng.standard_normal(shape))).real
    return field / max(field.std(), 1e-12)


def random_phantom(shape: tuple[int, int], slices: int, rng: np.random.Generator) -> Image:
    """A complex object (slices, H, W) with |values| of order one: slices through one warped ellipsoidal body.

    An outline with an optional bright shell and a dark gap inside it, two tissues in a folded pattern, five
    to eighteen ellipsoids of either sign, texture, and a smooth phase.
    """
    u, v = (np.linspace(-1, 1, n, endpoint=False) + 1 / n for n in shape)
    y, x = np.meshgrid(u, v, indexing="ij")
    edge = 1.5 * 2 / min(shape)

    def field(low: float, high: float, slope: float = 0.0) -> list[Real]:
        return [random_field(shape, (low, high), rng, slope=slope) for _ in range(2)]

    warp_y, warp_x = field(0.25, 1.0, 2.0), field(0.25, 1.0, 2.0)
    warp = rng.uniform(0.005, 0.05)
    fold_length = rng.uniform(0.05, 0.2)
    folds, texture = field(fold_length, 2 * fold_length), field(2 / min(shape), 0.5, rng.uniform(0.5, 1.5))
    phase = field(0.5, 1.0)
    turn = rng.uniform(-1.0, 1.0)

    body = _Ellipsoid(
        rng.uniform(-0.08, 0.08, 3), (*rng.uniform((0.6, 0.5), (0.9, 0.85)), 1.3), rng.uniform(-0.3, 0.3)
    )
    shell, gap = rng.uniform(0.03, 0.08), rng.uniform(0.02, 0.06)
    shell_value = rng.uniform(0.6, 1.6) if rng.random() < 0.7 else 0.0
    gap_value = rng.uniform(0.0, 0.3)
    base, contrast = rng.uniform(0.35, 0.9), rng.uniform(0.1, 0.5) * (rng.random() < 0.8)
    sharpness, roughness = rng.uniform(0.7, 4), rng.uniform(0.01, 0.08)
    inclusions = [
        (
            _Ellipsoid(
                rng.uniform(-0.6, 0.6, 3), tuple(np.exp(rng.uniform(-3.5, -0.8, 3))), rng.uniform(0, np.pi)
            ),
            rng.uniform(-0.7, 0.7),
        )
        for _ in range(rng.integers(5, 19))
    ]
    strength, tilt = rng.uniform(0.2, 1.2), rng.uniform(-2.0, 2.0, 3)

    volume = np.empty((slices, *shape), np.complex128)
    for s, z in enumerate(np.linspace(-0.6, 0.6, slices) if slices > 1 else [rng.uniform(-0.6, 0.6)]):
        # between two independent fields, at constant variance
        def at(pair: list[Real], angle: float = turn * z * np.pi) -> Real:
            return np.cos(angle) * pair[0] + np.sin(angle) * pair[1]

        yw, xw = y + warp * at(warp_y), x + warp * at(warp_x)
        # some bodies are larger than the field of view: they end at its border, which would cut them sharply
        border = 1 - np.maximum(abs(y), abs(x)) - 2 * edge
        depth = np.minimum(body.depth(yw, xw, z), border)
        tissue = base + contrast * np.tanh(sharpness * at(folds)) + roughness * at(texture)
        for ellipsoid, value in inclusions:
            tissue = tissue + value * _step(ellipsoid.depth(yw, xw, z), edge)
        image = np.maximum(tissue, 0)
        if shell_value:
            image = gap_value + (image - gap_value) * _step(depth - shell - gap, edge)
            image = shell_value + (image - shell_value) * _step(depth - shell, edge)
        angle = tilt[0] + tilt[1] * y + tilt[2] * x + strength * at(phase)
        volume[s] = image * _step(depth, edge) * np.exp(1j * angle)
    return volume


class _Ellipsoid:
    """A solid ellipsoid, turned about the slice axis."""

    def __init__(self, centre: Real, radii: tuple[float, ...], angle: float):
        self.centre, self.radii = centre, radii
        self.rotation = np.cos(angle), np.sin(angle)

    def depth(self, y: Real, x: Real, z: float) -> Real:
        """About the distance from the surface, positive inside."""
        cos, sin = self.rotation
        dy, dx, dz = y - self.centre[0], x - self.centre[1], z - self.centre[2]
        q = (
            ((cos * dy + sin * dx) / self.radii[0]) ** 2
            + ((cos * dx - sin * dy) / self.radii[1]) ** 2
            + (dz / self.radii[2]) ** 2
        )
        return (1 - np.sqrt(q)) * min(self.radii[:2])


def _step(depth: Real, width: float) -> Real:
    """0 outside, 1 inside, over about ``width``: no staircase along an outline."""
    return 0.5 * (1 + np.tanh(2 * depth / width))


def shepp_logan(shape: tuple[int, int], slices: int) -> Image:
    """sigpy's three-dimensional Shepp–Logan phantom, the slices between one and two thirds of its height."""
    import sigpy

    whole = np.asarray(sigpy.shepp_logan((3 * slices, *shape), dtype=np.complex128))
    return whole[slices : 2 * slices]


def coil_maps(coils: int, shape: tuple[int, int], rng: np.random.Generator) -> Image:
    """Birdcage sensitivities (coils, H, W) with Σ|S|² = 1: sigpy's, at a random radius and orientation."""
    import sigpy.mri

    square = max(shape)
    maps = np.asarray(sigpy.mri.birdcage_maps((coils, square, square), r=rng.uniform(1.1, 2.0)))
    maps = np.rot90(maps, int(rng.integers(4)), axes=(1, 2))
    if rng.random() < 0.5:
        maps = maps[:, :, ::-1]
    top, left = ((square - n) // 2 for n in shape)
    maps = maps[:, top : top + shape[0], left : left + shape[1]]
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))
