"""Two-dimensional transforms by Monarch factors: in C++, in torch and as matrices."""

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import monarch_dense, native, separable_multiply

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
# (p, q) of both axes: whole panels, ragged ones, prime sizes, single rows and columns
GRIDS = [
    ((8, 8), (8, 8)),
    ((3, 4), (5, 7)),
    ((1, 13), (2, 9)),
    ((8, 9), (11, 12)),
    ((1, 1), (4, 5)),
    ((5, 4), (1, 1)),
]


def factors(p, q, dtype):
    return torch.randn(p, q, q, dtype=dtype), torch.randn(q, p, p, dtype=dtype)


def matrix(L, R):
    p, q = L.shape[0], R.shape[0]
    return monarch_dense(L, R).unflatten(1, (q, p)).mT.flatten(1)


def operands(grid, dtype=torch.complex64, planes=(3,)):
    y, x = (factors(*axis, dtype) for axis in grid)
    H, W = (p * q for p, q in grid)
    return torch.randn(*planes, H, W, dtype=dtype), *y, *x


def multiply(x, Ly, Ry, Lx, Rx, maps=None, **options):
    return separable_multiply(x, (Ly, Ry), (Lx, Rx), maps=maps, **options)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_the_product_with_both_matrices(grid, adjoint, dtype):
    x, *LR = operands(grid, dtype, (2, 3))
    A, B = (matrix(*pair).to(torch.complex128) for pair in (LR[:2], LR[2:]))
    if adjoint:
        A, B = A.mH, B.mH
    expected = A @ x.to(torch.complex128) @ B.mT
    tol = 2e-6 if dtype == torch.complex64 else 1e-14
    assert relative_error(multiply(x, *LR, adjoint=adjoint).to(torch.complex128), expected) < tol
    maps = torch.randn(3, *x.shape[-2:], dtype=dtype)
    combined = multiply(x, *LR, maps, adjoint=adjoint).to(torch.complex128)
    assert relative_error(combined, (maps.conj() * expected).sum(-3)) < tol


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("wanted", ["all", "all but the maps", "factors", "one factor", "image"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients(grid, wanted, adjoint, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = [*operands(grid), torch.randn_like(operands(grid)[0])]
    chosen = {
        "all": range(6),
        "all but the maps": range(5),
        "factors": range(1, 5),
        "one factor": [3],
        "image": [0],
    }
    combine = "maps" in wanted or wanted == "all"

    def gradients(dtype, seed=None):
        inputs = [t.to(dtype).requires_grad_(i in chosen[wanted]) for i, t in enumerate(tensors)]
        y = multiply(*inputs[: 6 if combine else 5], adjoint=adjoint)
        seed = torch.randn_like(y) if seed is None else seed
        return seed, torch.autograd.grad(y, [t for t in inputs if t.requires_grad], seed.to(dtype))

    seed, found = gradients(torch.complex64)
    _, expected = gradients(torch.complex128, seed)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a.to(b.dtype), b) < 2e-6


@needs_compiler
@pytest.mark.parametrize("grid", GRIDS[2:5], ids=str)
def test_gradients_of_several_planes_are_the_same_every_time(grid, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    inputs = [t.requires_grad_() for t in operands(grid, planes=(7,))]
    y = multiply(*inputs)
    seed = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, inputs, seed, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_compiler
def test_second_derivatives():
    def second(dtype):
        torch.manual_seed(0)
        inputs = [t.to(dtype).requires_grad_() for t in operands(GRIDS[1])]
        first = torch.autograd.grad(multiply(*inputs).abs().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.abs().square().sum() for g in first), inputs)

    for a, b in zip(second(torch.complex64), second(torch.complex128), strict=True):
        assert relative_error(a.to(b.dtype), b) < 1e-4  # the inputs were drawn in either precision


@needs_compiler
def test_uninitialised_memory_never_shows(monkeypatch):
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    inputs = [t.requires_grad_() for t in operands(GRIDS[3])]
    y = multiply(*inputs)
    for t in (y, *torch.autograd.grad(y.abs().square().sum(), inputs)):
        assert torch.isfinite(torch.view_as_real(t)).all()


@needs_compiler
def test_strided_and_conjugated_operands():
    x, *LR = operands(GRIDS[1])
    turned = x.mT.contiguous().mT
    conjugate = [t.conj().resolve_conj().conj() for t in LR]
    assert turned.stride() != x.stride()
    assert torch.equal(multiply(turned, *conjugate), multiply(x, *LR))


@needs_compiler
def test_torch_knows_the_operator():
    tensors = [torch.view_as_real(t).requires_grad_() for t in operands(GRIDS[1])]
    torch.library.opcheck(torch.ops.monarch_sciml.separable.default, (*tensors, None, False))
    operator = torch.ops.monarch_sciml.separable_backward.default
    detached = [t.detach() for t in tensors]
    for image in (False, True):
        torch.library.opcheck(
            operator, (detached[0], torch.randn_like(tensors[0]), *detached[1:], True, image)
        )
    S = torch.randn_like(tensors[0])
    images = [t.detach()[None].requires_grad_() for t in (tensors[0], S)]
    stacks = [images[0], *tensors[1:], images[1]]
    torch.library.opcheck(torch.ops.monarch_sciml.separable.default, (*stacks, True))


def test_errors_name_the_remedy():
    x, *LR = operands(GRIDS[1])
    with pytest.raises(InputError, match=r"images \(\.\.\., 12, 35\); found \(3, 35, 12\)"):
        multiply(x.mT, *LR)
    with pytest.raises(InputError, match=r"factors L \(p, q, q\) and R \(q, p, p\)"):
        multiply(x, LR[1], *LR[1:])


def test_the_precision_is_the_highest_of_all_operands():
    x, *LR = operands(GRIDS[1])
    expected = multiply(x.to(torch.complex128), *(f.to(torch.complex128) for f in LR))
    for wide in range(5):
        mixed = [t.to(torch.complex128) if i == wide else t for i, t in enumerate((x, *LR))]
        found = multiply(*mixed)
        assert found.dtype == torch.complex128
        assert relative_error(found, expected) < 1e-14
    combined = multiply(x, *LR, x.to(torch.complex128))
    assert relative_error(combined, (x.conj() * expected).sum(-3)) < 1e-14


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_an_empty_batch_stays_empty(dtype):
    x, *LR = operands(GRIDS[1], dtype, (0, 2))
    assert multiply(x, *LR).shape == x.shape
    assert multiply(x, *LR, x).shape == (0, *x.shape[-2:])


@pytest.mark.parametrize("twice", [False, True])
def test_an_empty_batch_has_gradients_of_zero(twice):
    operands_ = [t.requires_grad_() for t in operands(GRIDS[1], planes=(0, 2))]
    maps = torch.randn(2, *operands_[0].shape[-2:], dtype=torch.complex64, requires_grad=True)
    y = multiply(*operands_, maps)
    grads = torch.autograd.grad(y, [*operands_, maps], torch.zeros_like(y), create_graph=twice)
    for grad, t in zip(grads, [*operands_, maps], strict=True):
        assert torch.equal(grad, torch.zeros_like(t))
