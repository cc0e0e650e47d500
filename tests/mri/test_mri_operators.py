"""The encoding operator of MRI: adjoints, sampling as a projection, dense formulas and the solver."""

import pytest
import torch
from laws import assert_adjoint, assert_linear, relative_error

from monarch_sciml import LearnedFourier
from monarch_sciml.errors import InputError
from monarch_sciml.kernels import monarch_dense, native
from monarch_sciml.linalg import FourierTransform, SeparableTransform
from monarch_sciml.mri.operators import Sampling, Sensitivity, conjugate_gradients, encoding, normalise

SHAPES = [(3, 8, 8), (1, 7, 12), (4, 13, 5), (2, 1, 9)]
KINDS = ["columns", "points"]
DTYPES = [(torch.complex128, 1e-12), (torch.complex64, 1e-5)]


def maps(*shape, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype)


def pattern(kind, shape):
    """About half of the columns or points, at least one and not all."""
    chosen = torch.rand(1 if kind == "columns" else shape[-2], shape[-1]) < 0.5
    chosen[0, 0], chosen[-1, -1] = True, False
    return chosen


def learned(grid, dtype=torch.float64, size=0.2):
    transform = LearnedFourier(grid).to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += size * torch.randn_like(parameter)
    return transform


def fourier(name, shape, dtype=torch.float64):
    if name == "fft":
        return None
    canonical = shape[-2:] if name == "learned" else (shape[-2] + 3, shape[-1] + 2)
    return learned(canonical, dtype).operator(shape)


def matrices(transform):
    """Of both axes, from whichever form the transform has."""
    if isinstance(transform, SeparableTransform):
        return transform.A, transform.B
    pairs = transform.y, transform.x
    return [monarch_dense(L, R).unflatten(1, (len(R), len(L))).mT.flatten(1) for L, R in pairs]


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sensitivity_is_linear_and_its_adjoint_combines(shape, dtype, tol):
    S = Sensitivity(maps(*shape, dtype=dtype))
    assert (S.domain, S.codomain) == (shape[1:], shape)
    assert_linear(S, dtype=dtype, tol=tol)
    assert_adjoint(S, dtype=dtype, tol=tol)
    assert_adjoint(S.H, dtype=dtype, tol=tol)


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_is_an_orthogonal_projection(shape, kind, dtype, tol):
    P = Sampling(pattern(kind, shape), shape)
    assert_linear(P, dtype=dtype, tol=tol)
    assert_adjoint(P, dtype=dtype, tol=tol)
    x = torch.randn(2, *shape, dtype=dtype)
    assert torch.equal(P(P(x)), P(x))
    assert torch.equal(P(x), x * P.pattern)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_sampled_is_positive_zero_even_where_it_was_not_a_number(kind):
    shape = (2, 5, 7)
    mask = pattern(kind, shape)
    x = torch.full(shape, complex(-0.0, float("nan")), dtype=torch.complex64)
    x = torch.where(mask, torch.ones_like(x), x)
    parts = torch.view_as_real(Sampling(mask, shape)(x))[..., ~mask.expand(5, 7), :]
    assert parts.numel()
    assert (parts == 0).all()
    assert not parts.signbit().any()


@pytest.mark.parametrize(("dtype", "tol"), DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fft", "learned", "resized"])
@pytest.mark.parametrize("shape", [(3, 8, 12), (2, 7, 11), (1, 9, 4)])
def test_encoding_has_an_exact_adjoint(shape, name, kind, dtype, tol):
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    A = encoding(maps(*shape, dtype=dtype), pattern(kind, shape), fourier(name, shape, real))
    assert (A.domain, A.codomain) == (shape[1:], shape)
    assert_linear(A, dtype=dtype, tol=tol)
    assert_adjoint(A, dtype=dtype, tol=tol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["fft", "learned", "resized"])
@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 5, 7)])
def test_encoding_is_the_product_of_the_matrices(shape, name, kind):
    C, H, W = shape
    S, mask = maps(*shape), pattern(kind, shape)
    transform = fourier(name, shape)
    A = encoding(S, mask, transform)
    x = torch.randn(H, W, dtype=torch.complex128)
    if transform is None:
        centred = torch.fft.fftshift(
            torch.fft.fft2(torch.fft.ifftshift(S * x, (-2, -1)), norm="ortho"), (-2, -1)
        )
        plain = FourierTransform((H, W)).to_dense(torch.complex128)
        assert relative_error(A(x), mask * centred) < 1e-13
    else:
        plain = torch.kron(*matrices(transform))
    dense = torch.cat([mask.expand(H, W).reshape(-1, 1) * plain * S[c].flatten() for c in range(C)])
    assert relative_error(A.to_dense(torch.complex128), dense) < 1e-12
    assert relative_error(A.H.to_dense(torch.complex128), dense.mH) < 1e-12
    assert relative_error(A(x).flatten(), dense @ x.flatten()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_slices_one_by_one(kind):
    batch, shape = 3, (2, 6, 5)
    S = maps(batch, *shape)
    masks = torch.stack([pattern(kind, shape) for _ in range(batch)])
    A = encoding(S, masks)
    x, y = torch.randn(batch, 6, 5, dtype=S.dtype), torch.randn(batch, *shape, dtype=S.dtype)
    b = A.H(y)
    solved = conjugate_gradients(A, b, damping=0.1, iterations=7)
    for i in range(batch):
        one = encoding(S[i], masks[i])
        assert relative_error(A(x)[i], one(x[i])) < 1e-14
        assert relative_error(b[i], one.H(y[i])) < 1e-14
        assert relative_error(solved[i], conjugate_gradients(one, b[i], damping=0.1, iterations=7)) < 1e-12
    left, right = (y.conj() * A(x)).sum(), (b.conj() * x).sum()
    assert (left - right).abs() < 1e-12 * x.norm() * y.norm()


@pytest.mark.parametrize("name", ["fft", "learned"])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradients_solve_the_normal_equations(name, damping):
    shape = (4, 5, 6)
    A = encoding(maps(*shape), pattern("columns", shape), fourier(name, shape))
    b = torch.randn(5, 6, dtype=torch.complex128)
    dense = A.to_dense(torch.complex128)
    normal = dense.mH @ dense + damping * torch.eye(30, dtype=torch.float64)
    expected = torch.linalg.solve(normal, b.flatten()).view(5, 6)
    found = conjugate_gradients(A, b, damping=damping, iterations=120)
    assert relative_error(found, expected) < 1e-8
    warm = conjugate_gradients(A, b, expected, damping=damping, iterations=2)
    assert relative_error(warm, expected) < 1e-8
    few, more = (conjugate_gradients(A, b, damping=damping, iterations=n) for n in (3, 8))
    size = [((x - expected).flatten().conj() @ normal @ (x - expected).flatten()).real for x in (few, more)]
    assert size[1] < size[0], "the error falls in the norm of the system"


def test_conjugate_gradients_rest_at_the_solution():
    A = encoding(torch.ones(1, 4, 4, dtype=torch.complex64), torch.ones(1, 4, dtype=torch.bool))
    b = torch.randn(4, 4, dtype=torch.complex64)
    assert relative_error(conjugate_gradients(A, b, iterations=50), b) < 1e-6
    assert torch.equal(conjugate_gradients(A, 0 * b, iterations=5), 0 * b)
    assert torch.equal(conjugate_gradients(A, b, iterations=0), 0 * b)


def test_a_system_of_zeros_stays_at_zero_beside_another_and_its_gradients_are_finite():
    """However many steps are taken: they are as many for every system of a batch."""
    shape = (2, 3, 6, 5)
    mask = torch.stack([pattern("columns", shape) for _ in range(2)])
    S, b = maps(*shape).requires_grad_(), torch.randn(2, 6, 5, dtype=torch.complex128)
    b[0] = 0
    b.requires_grad_()
    for iterations in (1, 50):
        x = conjugate_gradients(encoding(S, mask), b, damping=0.1, iterations=iterations)
        assert (x[0] == 0).all()
        assert x[1].isfinite().all()
        assert x[1].any()
        gradients = torch.autograd.grad(x.real.sum(), (S, b))
        assert all(g.isfinite().all() for g in gradients)


def test_conjugate_gradients_are_differentiable():
    shape = (2, 3, 4)
    mask = pattern("points", shape)
    S, damping = maps(*shape).requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(shape, dtype=torch.complex128, requires_grad=True)

    def solve(S, y, damping):
        A = encoding(S, mask)
        return conjugate_gradients(A, A.H(y), damping=damping, iterations=4)

    assert torch.autograd.gradcheck(solve, (S, y, damping))


def test_the_gradient_reaches_a_learned_transform():
    shape, transform = (2, 5, 6), learned((5, 6))
    A = encoding(maps(*shape), pattern("columns", shape), transform.operator(shape))
    y = torch.randn(shape, dtype=torch.complex128)
    conjugate_gradients(A, A.H(y), damping=0.1, iterations=3).abs().sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in transform.parameters())


def test_normalise_gives_one_scale_a_slice():
    image = torch.randn(3, 5, 7, dtype=torch.complex64) * torch.tensor([1e-6, 1.0, 1e5])[:, None, None]
    scale = normalise(image)
    assert scale.shape == (3, 1, 1)
    assert torch.allclose((image / scale).abs().amax((-2, -1)), torch.ones(3))
    assert torch.isfinite(image / normalise(0 * image)).all()


@pytest.mark.parametrize("shape", [(11,), (), (1, 11), (7, 12), (12, 8), (8, 1)])
def test_a_mask_that_does_not_fit(shape):
    with pytest.raises(
        InputError, match=r"expected a mask \(1, 12\) or \(8, 12\); found .*belongs to this k-space"
    ):
        encoding(maps(3, 8, 12), torch.ones(shape, dtype=torch.bool))


def test_a_transform_for_another_grid():
    mask = torch.ones(1, 12, dtype=torch.bool)
    with pytest.raises(InputError, match=r"expected \(3, 8, 12\) on the right of .*found shape \(3, 8, 10\)"):
        encoding(maps(3, 8, 12), mask, FourierTransform((3, 8, 10)))


@pytest.mark.parametrize("name", ["fft", "learned"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_normal_operator_takes_a_short_way(shape, kind, name):
    A = encoding(maps(*shape), pattern(kind, shape), fourier(name, shape))
    x = torch.randn(2, 3, *shape[1:], dtype=torch.complex128)
    assert_adjoint(A.gram)
    assert relative_error(A.gram(x), A.H(A(x))) < 1e-12
    inner = torch.sum(x.conj() * A.gram(x)).real
    assert relative_error(inner, A(x).abs().square().sum()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_normal_operator_of_a_batch_with_and_without_gradients(kind):
    shape = (2, 3, 6, 7)
    S, x = maps(*shape), torch.randn(2, 6, 7, dtype=torch.complex128)
    masks = torch.stack([pattern(kind, shape) for _ in range(2)])
    A = encoding(S, masks)
    assert relative_error(A.gram(x), A.H(A(x))) < 1e-12
    inputs = S.requires_grad_(), x.requires_grad_()
    found, expected = (
        torch.autograd.grad(f(x).abs().square().sum(), inputs) for f in (A.gram, lambda x: A.H(A(x)))
    )
    for g, e in zip(found, expected, strict=True):
        assert relative_error(g, e) < 1e-12


@pytest.mark.skipif(not native.available(), reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("leading", "of_maps", "of_masks"),
    [((), (), ()), ((2, 3), (), ()), ((2,), (2,), ()), ((2,), (2,), (2,)), ((2, 1), (2, 3), (3,))],
)
@pytest.mark.parametrize("grid", [(6, 12), (5, 35), (1, 13)])
def test_the_short_way_of_columns_computes_what_is_sampled(grid, leading, of_maps, of_masks, monkeypatch):
    """In single precision, whatever has a batch; the gradient too, and no FFT."""
    S = maps(*of_maps, 3, *grid).to(torch.complex64)
    masks = torch.rand(*of_masks, 1, grid[1]) < 0.4
    A = encoding(S, masks)
    x = torch.randn(*leading, *grid, dtype=torch.complex64).requires_grad_()
    expected = A.H(A(x))
    monkeypatch.setattr(torch.fft, "fftn", None)
    found = A.gram(x)
    assert found.shape == expected.shape
    assert relative_error(found.detach(), expected.detach()) < 1e-6
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, x, upstream)[0] for y in (found, expected)]
    assert relative_error(*gradients) < 1e-6


def test_rows_of_a_long_prime_take_the_fft():
    S = maps(2, 3, 211).to(torch.complex64)
    A = encoding(S, torch.rand(1, 211) < 0.4)
    x = torch.randn(3, 211, dtype=torch.complex64)
    assert A.gram.factors is None
    assert relative_error(A.gram(x), A.H(A(x))) < 1e-6
