"""Matrices of truncated transforms from their factors: in C++ and by their definition."""

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import native, reference, transform_planes

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
# p, q, rows of a block, modes: balanced, prime, ragged, one block, one mode
SIZES = [(4, 8, 3, 12), (1, 13, 7, 7), (3, 5, 2, 4), (8, 8, 8, 64), (2, 3, 1, 1), (16, 1, 1, 9)]


def factors(p, q, S, dtype=torch.float32):
    return torch.randn(p, S, q, 2, dtype=dtype), torch.randn(q, p, p, 2, dtype=dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_entry_is_a_product(size, double):
    p, q, S, modes = size
    L, R = factors(p, q, S, torch.float64)
    W = torch.complex(*transform_planes(L, R, modes, scale=0.3, twice=3))
    l, r = torch.view_as_complex(L), torch.view_as_complex(R)
    for row in range(modes):
        for column in range(p * q):
            c, (j1, j2) = row % p, divmod(column, q)
            entry = 0.3 * (1 + (0 < row < 3)) * l[c, row // p, j2] * r[j2, c, j1]
            assert abs(W[row, column] - entry) < 1e-14
    adjoint = torch.complex(*transform_planes(L, R, modes, scale=0.3, twice=3, adjoint=True))
    assert torch.equal(adjoint, W.mH)


@needs_compiler
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_agrees_with_the_definition(size, adjoint, monkeypatch):
    empty = torch.Tensor.new_empty  # what is not written would show
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    p, q, S, modes = size
    inputs = [f.requires_grad_() for f in factors(p, q, S)]
    settings = (modes, 0.7, min(3, modes), adjoint)
    found, expected = (path.transform_planes(*inputs, *settings) for path in (native, reference))
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-6
    seed = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad(W, inputs, seed) for W in (found, expected)), strict=True)
    assert all(relative_error(a, b) < 1e-6 for a, b in pairs)


@needs_compiler
@pytest.mark.parametrize("learned", [(0, 1), (0,), (1,)], ids=["both", "L", "R"])
def test_second_derivatives(learned):
    inputs = [f.requires_grad_(i in learned) for i, f in enumerate(factors(3, 5, 2))]
    wanted = [inputs[i] for i in learned]

    def second(path):
        energy = path.transform_planes(*inputs, 4, 0.7, 3, False).square().sum()
        first = torch.autograd.grad(energy, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    pairs = zip(second(native), second(reference), strict=True)
    assert all(relative_error(a, b) < 1e-5 for a, b in pairs)


@needs_compiler
def test_torch_knows_the_operator():
    L, R = (f.requires_grad_() for f in factors(3, 5, 2))
    for adjoint in (False, True):
        torch.library.opcheck(torch.ops.monarch_sciml.transform.default, (L, R, 4, 0.7, 3, adjoint))
        grad = torch.randn(2, 15, 4) if adjoint else torch.randn(2, 4, 15)
        operands = (grad, L.detach(), R.detach(), 4, 0.7, 3, adjoint)
        torch.library.opcheck(torch.ops.monarch_sciml.transform_backward.default, operands)


def test_errors_name_the_remedy():
    L, R = factors(3, 5, 2)
    with pytest.raises(InputError, match=r"p·S at least 7, and R \(q, p, p, 2\); found L \(3, 2, 5, 2\)"):
        transform_planes(L, R, 7)
    with pytest.raises(InputError, match=r"factors L \(p, S, q, 2\)"):
        transform_planes(R, L, 4)
