"""Symmetries of two-dimensional flow: they commute with the solver, and are a group."""

import itertools

import pytest
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes, standard_forcing
from monarch_sciml.pde.symmetries import apply_symmetry, check_symmetries, n_symmetries

FORCING = {"forced": "standard", "unforced": None}


@pytest.mark.parametrize(("symmetries", "step"), [("forced", 3), ("unforced", 97)])
def test_what_is_moved_solves_the_equation_still(symmetries, step):
    torch.manual_seed(0)
    w0 = gaussian_random_field(1, 20, dtype=torch.float64)
    elements = range(0, n_symmetries(symmetries, 20), step)

    def solve(w: Tensor) -> Tensor:
        return solve_navier_stokes(w, 1e-3, [0.5, 1.0], forcing=FORCING[symmetries])

    def moved(w: Tensor) -> Tensor:
        return apply_symmetry(w.expand(len(elements), *w.shape[1:]), symmetries, elements)

    torch.testing.assert_close(solve(moved(w0)), moved(solve(w0)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("symmetries", "n"), [("forced", 8), ("unforced", 3), ("unforced", 4)])
def test_a_group(symmetries, n):
    """The identity first, all different, the product of two one of them."""
    size, w = n_symmetries(symmetries, n), torch.randn(1, n, n)
    every = apply_symmetry(w.expand(size, -1, -1), symmetries, range(size))

    def key(field: Tensor) -> tuple[float, ...]:
        return tuple(field.flatten().tolist())

    known = {key(field) for field in every}
    assert len(known) == size
    assert torch.equal(every[:1], w)
    for a, b in itertools.product(range(0, size, 5), range(1, size, 7)):
        assert key(apply_symmetry(every[a : a + 1], symmetries, [b])[0]) in known


def test_the_forcing_stays_as_it_is():
    f = standard_forcing(12, torch.float64)
    moved = apply_symmetry(f.expand(48, -1, -1), "forced", range(48))
    torch.testing.assert_close(moved, f.expand_as(moved), rtol=0, atol=1e-15)


def test_every_sample_by_its_own_and_all_its_frames_alike():
    w = torch.randn(3, 5, 1, 8, 8)
    moved = apply_symmetry(w, "forced", [3, 0, 17])
    for sample, element in enumerate([3, 0, 17]):
        for frame in range(5):
            alone = apply_symmetry(w[sample, frame], "forced", [element])
            assert torch.equal(moved[sample, frame], alone)
    assert apply_symmetry(w, "none", [0, 0, 0]) is w


@pytest.mark.parametrize(
    ("symmetries", "grid", "channels", "message"),
    [
        ("forced", (30, 30), 1, r"points that 4 divides.*found 30"),
        ("unforced", (16, 8), 1, r"one channel on n × n points; found 1 channels on a grid of 16 × 8"),
        ("unforced", (16,), 1, r"found 1 channels on a grid of 16;"),
        ("forced", (16, 16), 2, r"found 2 channels on a grid of 16 × 16"),
        ("all", (16, 16), 1, r"one of none, forced, unforced; found 'all'"),
    ],
)
def test_other_data_are_refused(symmetries, grid, channels, message):
    with pytest.raises(InputError, match=message):
        check_symmetries(symmetries, grid, channels)
