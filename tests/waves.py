"""Trajectories with known dynamics for tests of training: travelling, slowly decaying waves."""

from pathlib import Path

import numpy as np

__all__ = ["save_waves", "waves"]


def waves(samples: int = 8, frames: int = 6, grid: tuple[int, ...] = (16, 16), seed: int = 0) -> np.ndarray:
    """(samples, frames, *grid), float32: three random modes with |k| ≤ 2, each moving at its own speed.

    A function of the points 0 ≤ x < 1, so that a finer grid samples the same fields.
    """
    random = np.random.default_rng(seed)
    points = np.meshgrid(*[np.arange(n) / n for n in grid], indexing="ij")
    t = np.arange(frames).reshape(-1, *[1] * len(grid))
    result = np.zeros((samples, frames, *grid))
    for field in result:
        for _ in range(3):
            k = random.integers(1, 3, len(grid)) * random.choice([-1, 1], len(grid))
            angle = 2 * np.pi * sum(a * x for a, x in zip(k, points, strict=True))
            field += random.normal() * 0.95**t * np.cos(angle + random.uniform(0, 6) + 0.3 * k.sum() * t)
    return result.astype(np.float32)


def save_waves(path: Path, **options) -> Path:
    """``waves`` as a ``.npy`` file."""
    np.save(path, waves(**options))
    return path
