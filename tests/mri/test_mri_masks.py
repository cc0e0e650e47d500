"""Masks: those of fastMRI seed for seed, Poisson discs of the rate asked for, and masks of one's own."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from monarch_sciml.errors import InputError
from monarch_sciml.mri import masks
from monarch_sciml.mri.masks import (
    MaskConfig,
    central,
    draw_mask,
    find_acs,
    volume_seed,
)

# sampled columns and number of low frequencies that fastMRI 0.3.0 gives for a file of this name
FASTMRI = [
    ("random", 24, (4,), (0.08,), "file1000000.h5", 2, [4, 9, 10, 11, 12, 14, 23]),
    ("random", 31, (4, 8), (0.08, 0.04), "file1000007.h5", 2, [6, 8, 10, 12, 14, 15, 16, 22, 25]),
    ("random", 31, (4, 8), (0.08, 0.04), "file_brain_AXT2_200_2000019.h5", 1, [14, 15]),
    ("equispaced", 29, (4,), (0.16,), "file1000000.h5", 5, [1, 5, 9, 12, 13, 14, 15, 16, 17, 21, 25]),
    ("equispaced", 40, (4, 8), (0.08, 0.04), "file1001497.h5", 2, [7, 15, 19, 20, 23, 31, 39]),
    (
        "equispaced-fraction",
        *(40, (4,), (0.08,), "file1000000.h5", 3),
        [1, 6, 12, 17, 19, 20, 21, 22, 27, 33, 38],
    ),
    (
        "equispaced-fraction",
        *(61, (4, 8), (0.08, 0.04), "file1001497.h5", 2),
        [4, 14, 25, 30, 31, 35, 46, 56],
    ),
    (
        "equispaced-fraction",
        *(37, (3.5,), (0.1,), "file1000031.h5", 4),
        [0, 5, 10, 15, 17, 18, 19, 20, 25, 30, 35],
    ),
    ("magic", 32, (4,), (0.08,), "file1000000.h5", 3, [3, 7, 11, 15, 16, 17, 19, 23, 27, 31]),
    ("magic", 31, (4,), (0.08,), "file1000001.h5", 2, [0, 4, 8, 12, 15, 16, 20, 24, 28]),
    ("magic", 32, (5,), (0.08,), "file1000003.h5", 3, [0, 5, 10, 15, 16, 17, 19, 24, 29]),
    ("magic-fraction", 40, (4,), (0.08,), "file1000000.h5", 3, [1, 7, 13, 19, 20, 21, 23, 29, 35]),
    (
        "magic-fraction",
        *(47, (4, 8), (0.08, 0.04), "file1000007.h5", 4),
        [4, 10, 16, 22, 23, 24, 25, 28, 34, 40, 46],
    ),
    (
        "magic-fraction",
        *(37, (2.5,), (0.1,), "file1000002.h5", 4),
        [1, 4, 7, 10, 13, 17, 18, 19, 20, 21, 24, 27, 30, 33, 36],
    ),
]
COLUMNS = ["random", "equispaced", "equispaced-fraction", "magic", "magic-fraction"]


def global_state() -> bytes:
    """Of numpy's generator, which nobody here may disturb."""
    return pickle.dumps(np.random.get_state())  # noqa: NPY002


def bools(n: int, *true: int) -> torch.Tensor:
    pattern = torch.zeros(1, n, dtype=torch.bool)
    pattern[0, list(true)] = True
    return pattern


@pytest.mark.parametrize(("kind", "n", "rates", "fractions", "name", "low", "columns"), FASTMRI)
def test_masks_are_those_of_fastmri(kind, n, rates, fractions, name, low, columns) -> None:
    mask = draw_mask(MaskConfig(kind, rates, fractions), (9, n), volume_seed(Path("/data") / name))
    assert mask.pattern.shape == (1, n)
    assert mask.pattern.dtype == torch.bool
    assert mask.pattern[0].nonzero().flatten().tolist() == columns
    assert (mask.acs, mask.center_lines) == ((9, low), low)
    assert mask.acceleration == n / len(columns)


def restated(kind: str, n: int, rate: int, low: int, rng: np.random.RandomState) -> set[int]:
    """The rules once more, column by column, on numbers rather than arrays."""
    if kind == "magic-fraction":
        low = max(1, min(low, round(n / rate)))
        rest = round(n / rate) - low
        rate = round(n / rest) if rest > 0 else 0
    start = (n - low + 1) // 2
    kept = set(range(start, start + low))
    if kind == "random":
        draws = rng.uniform(size=n)
        kept |= {c for c in range(n) if draws[c] < (n / rate - low) / (n - low)}
    elif kind == "equispaced":
        offset = rng.randint(0, round(rate))
        kept |= {c for c in range(n) if c >= offset and (c - offset) % rate == 0}
    elif kind == "equispaced-fraction" and low * rate < n:
        step = rate * (low - n) / (low * rate - n)
        offset = rng.randint(0, round(step))
        kept |= {round(offset + i * step) for i in range(n) if offset + i * step < n - 1}
    elif kind.startswith("magic") and rate:
        offset = rng.randint(0, rate)
        first = offset + 2 if offset % 2 else offset + 1
        # frequency κ lies at column n // 2 + κ; the negative ones count from −1 downwards
        kept |= {n // 2 + k for k in range(first, (n + 1) // 2, rate)}
        first = offset - 1 if offset % 2 else offset + 2
        kept |= {n // 2 - 1 - k for k in range(first, n // 2, rate)}
    return kept


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("n", [2, 7, 31, 64, 97, 320, 368])
@pytest.mark.parametrize(
    ("rate", "fraction"), [(4, 0.08), (8, 0.04), (3, 0.3), (10, 0.1), (1, 0.5), (4, 0.5)]
)
def test_masks_follow_the_rules(kind: str, n: int, rate: int, fraction: float) -> None:
    for seed in range(12):
        rng = np.random.RandomState((seed, n))
        rng.randint(1)  # the choice of the pair
        expected = restated(kind, n, rate, round(n * fraction), rng)
        config = MaskConfig(kind, (rate,), (fraction,))  # type: ignore[arg-type]
        if expected:
            mask = draw_mask(config, (1, n), (seed, n))
            assert set(mask.pattern[0].nonzero().flatten().tolist()) == expected
            assert mask.pattern[0, central(n, mask.center_lines)].all()


@pytest.mark.parametrize(
    ("kind", "n", "rate", "fraction", "low"),
    [
        ("magic-fraction", 320, 8, 0.125, 40),  # as many low frequencies as columns are wanted
        ("magic-fraction", 320, 8, 0.3, 40),  # more: brought down
        ("magic-fraction", 7, 16, 0.3, 1),  # none are wanted
        ("equispaced-fraction", 320, 4, 0.25, 80),
        ("equispaced-fraction", 320, 4, 0.5, 160),
        ("random", 320, 4, 0.25, 80),
        ("random", 320, 4, 1, 320),
        ("equispaced", 5, 4, 1, 5),
    ],
)
def test_a_centre_that_is_all_there_may_be(kind, n, rate, fraction, low) -> None:
    mask = draw_mask(MaskConfig(kind, (rate,), (fraction,)), (3, n), 0)
    start = (n - low + 1) // 2
    assert torch.equal(mask.pattern, bools(n, *range(start, start + low)))
    assert mask.acs == (3, low)


def test_no_centre() -> None:
    assert draw_mask(MaskConfig("random", (2,), (0,)), (3, 40), 0).acs == (0, 0)


@pytest.mark.parametrize("kind", ["equispaced-fraction", "magic-fraction", "random"])
def test_rate_asked_for_on_average(kind) -> None:
    config = MaskConfig(kind, (4,), (0.08,))
    kept = [int(draw_mask(config, (1, 320), seed).pattern.sum()) for seed in range(200)]
    # whole steps between the lines of magic-fraction leave it short of its aim, as with fastMRI
    assert np.mean(kept) == pytest.approx(80, rel=0.08 if kind == "magic-fraction" else 0.03)


def test_magic_masks_avoid_conjugate_pairs() -> None:
    for seed in range(8):
        columns = draw_mask(MaskConfig("magic", (4,), (0,)), (1, 64), seed).pattern[0].nonzero().flatten()
        frequencies = set((columns - 32).tolist())
        assert not {-f for f in frequencies} & frequencies


def test_seeds() -> None:
    config = MaskConfig("random", (4, 8), (0.08, 0.04))
    assert torch.equal(draw_mask(config, (1, 99), 5).pattern, draw_mask(config, (7, 99), 5).pattern)
    free = {tuple(draw_mask(config, (1, 99), None).pattern[0].tolist()) for _ in range(5)}
    assert len(free) == 5
    assert {draw_mask(config, (1, 99), seed).center_lines for seed in range(20)} == {8, 4}  # both pairs
    assert volume_seed("/a/b/é1.h5") == (233, 49, 46, 104, 53)
    state = global_state()
    draw_mask(config, (1, 99), 1)
    assert global_state() == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": "spiral"}, "a mask out of random, .*; found 'spiral'"),
        ({"accelerations": (4, 8)}, r"as many center_fractions .*found 1 and 2; give them in pairs"),
        ({"accelerations": (), "center_fractions": ()}, "at least one; found 0 and 0"),
        ({"accelerations": (0.5,)}, "accelerations of 1 to 65536; found 0.5"),
        ({"accelerations": (math.nan,)}, "accelerations of 1 to 65536; found nan"),
        ({"accelerations": (math.inf,)}, "accelerations of 1 to 65536; found inf"),
        ({"mask": "magic", "accelerations": (4.5,)}, "whole accelerations .*found 4.5; use magic-fraction"),
        ({"mask": "equispaced", "accelerations": (2.5,)}, "use equispaced-fraction"),
        ({"mask": "poisson", "accelerations": (1.2,)}, r"at least 1.5 for the mask poisson; found 1\.2"),
        ({"center_fractions": (8,)}, "between 0 and 1; found 8; 0.08 is 8 %"),
        ({"center_fractions": (math.nan,)}, "between 0 and 1; found nan"),
    ],
)
def test_settings_that_cannot_be(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        MaskConfig(**settings)


def test_masks_that_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="at least one row and column; found 3 × 0"):
        draw_mask(MaskConfig(), (3, 0), 0)
    for seed in (-1, (), (1, 2**32), 1.5):
        with pytest.raises(InputError, match=r"a seed of whole numbers from 0 to 2³² − 1; found"):
            draw_mask(MaskConfig(), (3, 8), seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keeps at least one column; found none of 1 at 9×"):
        draw_mask(MaskConfig("random", (9,), (0,)), (3, 1), 0)


# ---------------------------------------------------------------------------------------------- Poisson discs


@pytest.mark.parametrize("shape", [(96, 96), (61, 47), (128, 90)])
@pytest.mark.parametrize("rate", [1.5, 2, 4, 8])
def test_poisson_discs(shape: tuple[int, int], rate: float) -> None:
    state = global_state()
    mask = draw_mask(MaskConfig("poisson", (rate,), (0.08,)), shape, volume_seed("file1.h5"))
    assert global_state() == state
    height, width = shape
    assert mask.pattern.shape == shape
    assert mask.acs == (round(0.08 * height), round(0.08 * width))
    assert mask.pattern[central(height, mask.acs[0]), central(width, mask.acs[1])].all()
    assert mask.acceleration == pytest.approx(rate, rel=0.1)
    found = find_acs(mask.pattern)
    assert min(found) >= min(mask.acs)


def test_poisson_discs_are_denser_in_the_middle_and_apart_from_one_another() -> None:
    pattern = draw_mask(MaskConfig("poisson", (8,), (0.03,)), (96, 96), 3).pattern
    middle, outside = pattern[32:64, 32:64].float().mean(), pattern[:16].float().mean()
    assert middle > 2 * outside > 0
    pairs = (pattern[:16, 1:] & pattern[:16, :-1]).float().mean()
    assert pairs < 0.1 * outside**2  # neighbours, were the points independent: outside²


def test_poisson_discs_are_remembered_and_nobody_can_spoil_them() -> None:
    config = MaskConfig("poisson", (4,), (0.08,))
    first, other = (draw_mask(config, (40, 40), seed).pattern for seed in (1, 2))
    assert not torch.equal(first, other)
    kept = first.clone()
    first.zero_()
    hits = masks._poisson.cache_info().hits
    assert torch.equal(draw_mask(config, (40, 40), 1).pattern, kept)
    assert masks._poisson.cache_info().hits == hits + 1


def test_a_search_that_fails_goes_on_with_other_seeds(monkeypatch) -> None:
    import sigpy.mri

    seeds, real = [], sigpy.mri.poisson

    def failing(*args, seed, **kwargs):
        seeds.append(seed)
        np.random.seed(0)  # noqa: NPY002 (sigpy leaves the global generator reseeded when it fails)
        if len(seeds) < limit:
            raise ValueError("Cannot generate mask")
        return real(*args, seed=seed, **kwargs)

    monkeypatch.setattr(sigpy.mri, "poisson", failing)
    config, state = MaskConfig("poisson", (4,), (0.08,)), global_state()
    masks._poisson.cache_clear()
    limit = 3
    mask = draw_mask(config, (32, 32), 7)
    assert len(set(seeds)) == 3
    assert mask.acceleration == pytest.approx(4, rel=0.1)
    masks._poisson.cache_clear()
    before, seeds = seeds, []
    assert torch.equal(draw_mask(config, (32, 32), 7).pattern, mask.pattern)
    assert seeds == before
    masks._poisson.cache_clear()
    limit, seeds = 1000, []
    with pytest.raises(InputError, match=r"a Poisson disc of 4× on 32 × 32 points; found none with a centre"):
        draw_mask(config, (32, 32), 7)
    assert len(seeds) == masks.POISSON_ATTEMPTS
    assert global_state() == state


@pytest.mark.parametrize(
    ("shape", "rate", "fraction"), [((32, 32), 8, 0.5), ((1, 32), 4, 0.1), ((9, 9), 2, 1)]
)
def test_poisson_discs_there_cannot_be(shape, rate, fraction) -> None:
    with pytest.raises(InputError, match="change accelerations or lower center_fractions"):
        draw_mask(MaskConfig("poisson", (rate,), (fraction,)), shape, 0)
