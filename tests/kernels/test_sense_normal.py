"""AᴴA of parallel imaging by factors: against its matrix, Hermitian, with gradients, on ragged sizes."""

import pytest
import torch

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import native, reference, sense_normal
from monarch_sciml.linalg import fourier_factors

compiled = pytest.mark.skipif(not native.available(), reason="there is no C++ compiler")
# B, C, H, W, maps and masks: whole and ragged vectors of rows and columns, primes, one and several panels
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (1, 3, 5, 12, 1, 1),
    (2, 2, 7, 35, 2, 1),
    (3, 2, 17, 31, 1, 3),
    (2, 1, 70, 18, 2, 2),
    (1, 2, 131, 64, 1, 1),
]


def operands(B, C, H, W, maps, masks, *, learned=False):
    """A mask of about a third of the columns with weights, and the DFT or any other factors."""
    torch.manual_seed(W)
    x = torch.randn(B, H, W, dtype=torch.complex64)
    S = torch.randn(maps, C, H, W, dtype=torch.complex64)
    L, R = (t.to(torch.complex64) for t in fourier_factors(W, W, 0))
    if learned:
        L, R = L + 0.1 * torch.randn_like(L), R + 0.1 * torch.randn_like(R)
    (q, p), weights = R.shape[:2], torch.rand(masks, W)
    weights = weights * (weights < 0.4)
    w = weights.view(masks, q, p).mT  # (masks, c, ℓ)
    rows = w.sort(-1, descending=True).indices[..., : max(1, int((w > 0).sum(-1).max()))]
    sampled = torch.take_along_dim(w.sqrt().unsqueeze(-1) * L, rows.unsqueeze(-1), dim=-2)
    return x, S, sampled, R, L, weights


def as_matrix(L, R):
    """W (W, W) of the factors: entry (ℓ·p + c, j₁·q + j₂) = L[c, ℓ, j₂] R[j₂, c, j₁]."""
    n = L.shape[0] * R.shape[0]
    return torch.einsum("clj,jck->lckj", L, R).reshape(n, n)


@pytest.mark.parametrize("path", [reference.sense_normal, sense_normal], ids=["reference", "chosen"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_its_matrices(sizes, learned, path):
    x, S, sampled, R, L, weights = operands(*sizes, learned=learned)
    W = as_matrix(L, R)
    if not learned:
        torch.testing.assert_close(W @ x[0, 0], torch.fft.fft(x[0, 0], norm="ortho"), rtol=1e-4, atol=1e-4)
    k = (S * x[:, None]) @ W.mT * weights[:, None, None]
    expected = (S.conj() * (k @ W.conj())).sum(1)
    torch.testing.assert_close(path(x, S, sampled, R), expected, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("sizes", SIZES)
def test_hermitian_and_positive(sizes):
    x, S, L, R, *_ = operands(*sizes)
    u = torch.randn_like(x)
    y, v = native.sense_normal(x, S, L, R), native.sense_normal(u, S, L, R)
    scale = float(y.norm() * u.norm()) + 1e-6
    assert abs(complex((u.conj() * y).sum() - (v.conj() * x).sum())) < 1e-4 * scale
    assert float((x.conj() * y).sum().real) > -1e-4 * scale


@compiled
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_of_any_factors(sizes):
    x, S, L, R, *_ = operands(*sizes, learned=True)
    upstream = torch.randn_like(x)
    found = []
    for path in (native.sense_normal, reference.sense_normal):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(path(leaf, S, L, R), leaf, upstream, create_graph=True)
        found.append(gradient.detach())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@compiled
def test_second_derivatives():
    x, S, L, R, *_ = operands(1, 2, 3, 12, 1, 1)
    found = []
    for path in (native.sense_normal, reference.sense_normal):
        leaf = x.clone().requires_grad_()
        energy = path(leaf, S, L, R).abs().square().sum()
        (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
        found.append(torch.autograd.grad(gradient.abs().square().sum(), leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@compiled
def test_as_torch_wants_operators():
    x, S, L, R, *_ = operands(2, 2, 5, 12, 1, 2)
    real = [torch.view_as_real(t).contiguous() for t in (x, S, L, R)]
    real[0].requires_grad_()
    torch.library.opcheck(torch.ops.monarch_sciml.sense_rows.default, tuple(real))


@compiled
def test_any_number_of_threads():
    x, S, L, R, *_ = operands(2, 3, 50, 20, 1, 1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(native.sense_normal(x, S, L, R))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gradients_of_maps_take_the_definition():
    x, S, L, R, *_ = operands(1, 2, 3, 12, 1, 1)
    S.requires_grad_()
    sense_normal(x, S, L, R).abs().sum().backward()
    assert float(S.grad.norm()) > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda x, S, L, R: (x[0], S, L, R),
        lambda x, S, L, R: (x[..., :-1], S, L, R),
        lambda x, S, L, R: (x, S[..., :-1, :], L, R),
        lambda x, S, L, R: (x, S[0], L, R),
        lambda x, S, L, R: (x, S, L, R[..., :-1]),
        lambda x, S, L, R: (x, S, L[..., :-1], R),
        lambda x, S, L, R: (x, S, L.expand(3, -1, -1, -1), R),
        lambda x, S, L, R: (x, S.expand(3, -1, -1, -1), L, R),
    ],
)
def test_refuses_what_does_not_fit(change):
    with pytest.raises(InputError, match=r"x \(B, H, p·q\), maps .* found .*; fold every slice into B"):
        sense_normal(*change(*operands(2, 2, 3, 12, 1, 1)[:4]))
