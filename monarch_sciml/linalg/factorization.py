"""Writing a matrix of the class MM* as a product of two Monarch matrices (Dao et al. 2022, Algorithm 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.transforms import balanced_factors

__all__ = ["factorize"]

Factors = tuple[Tensor, Tensor, Tensor]  # A_i (J, S, S), D_ij (J, J, S), C_j (J, S, S)
DRAWS, STEPS, ITERATIONS = 4, 60, 200  # of eigenbases, of least squares, of the search for one step
# what an iteration must take off the squared residual to be followed by another: 200 of them make the
# hundredth of the residual for which steps go on
WORTH = 1e-4


def factorize(
    A: Tensor, nblocks: int | None = None, *, tol: float = 1e-6
) -> tuple[MonarchMatrix, MonarchMatrix]:
    """Monarch matrices M₁ and M₂ with ``A = M₁ M₂ᴴ``, for A in the class MM* with J = ``nblocks`` blocks.

    The blocks of such a matrix, rows ≡ i and columns ≡ j modulo J, are ``A[i::J, j::J] = A_i D_ij C_j`` with
    square A_i, C_j of size S = n/J and diagonal D_ij. They come out as the blocks of M₁.L (A_i), of M₂.L
    (C_jᴴ) and, for each k, the matrix ``D_ij[k]`` as the k-th block of M₁.R; M₂.R is the identity. Both are
    MonarchMatrix with L (J, S, S) and R (S, J, J). Circulant matrices of composite size are in the class, and
    every product M₁M₂ᴴ of Monarch matrices with these blocks; for J = 2 so is almost every matrix.

    The matrices ``F(i, j) = B_iq⁻¹ B_ij B_pj⁻¹ B_pq``, where B are the blocks, share the eigenvectors C_q⁻¹.
    Those are taken from a random combination of all F(i, j), with an orthonormal basis where eigenvalues
    coincide; the rest follows by division. p and q (1 in the paper) are the row and column of blocks that are
    best conditioned. Where blocks are nearly singular this magnifies rounding and noise in A by their
    condition number. Least squares over A_i, D_ij and C_j together, by the method of Levenberg and Marquardt,
    then bring the residual down to the noise, from as far as 10⁶ times that. A step is a search of at most
    200 iterations of O(n³/J) operations; a matrix is refused after 4 × 60 steps at the latest.

    Args:
        A: (n, n), real or complex, invertible. The factors are complex where eigenvalues are.
        nblocks: J, a divisor of n; by default the one nearest to √n from below.
        tol: the largest residual ‖A − M₁M₂ᴴ‖_F / ‖A‖_F of a matrix that counts as a member.

    Raises:
        InputError: not a square matrix of finite numbers or no divisor; a row or a column of singular blocks
            (A_i or C_j singular, and A with them, or D_ij with zeros throughout); a zero of D_ij in each row
            or each column of blocks; no shared eigenvectors, which is to say that A is not in the class.
    """
    check_tensors(A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not (A.is_floating_point() or A.is_complex()):
        raise InputError(
            "a square matrix (n, n), floating-point or complex",
            f"{A.dtype} of shape {tuple(A.shape)}",
            "check A",
        )
    if not A.isfinite().all():
        raise InputError("finite entries", "NaN or infinity", "check A")
    n = A.shape[0]
    J = balanced_factors(n)[0] if nblocks is None else nblocks
    if J < 1 or n % J:
        raise InputError(f"a number of blocks that divides {n}", str(J), "choose a divisor")
    B = A.to(torch.promote_types(A.dtype, torch.float64)).unflatten(0, (-1, J)).unflatten(2, (-1, J))
    scale = B.abs().max().clamp_min(torch.finfo(B.dtype).tiny)
    B = (B / scale).permute(1, 3, 0, 2).contiguous()  # (i, j, ℓ, ℓ′)
    p, q = _reference(B)
    least = math.inf
    for draw in range(DRAWS):  # a draw in which different eigenvalues meet by chance is repeated
        factors, residual = _refine(B, _divide(B, p, q, _eigenbasis(B, p, q, draw)))
        least = min(least, residual)
        if residual <= tol:
            break
    else:
        raise InputError(
            f"a matrix in MM* with {J} blocks, whose F(i, j) share their eigenvectors",
            f"a relative residual of {least:.1e} without",
            "choose other blocks, a larger tol, or project(A)",
        )
    left, D, right = factors
    dtype = torch.promote_types(A.dtype, torch.complex64) if D.is_complex() else A.dtype
    eye = torch.eye(J, dtype=dtype, device=A.device).expand(n // J, J, J)
    first = MonarchMatrix((scale * left).to(dtype), D.permute(2, 0, 1).to(dtype))
    return first, MonarchMatrix(right.mH.to(dtype).resolve_conj(), eye)


def _reference(B: Tensor) -> tuple[int, int]:
    """The block row p and block column q with the best of worst condition numbers; errors where none is."""
    sigma = torch.linalg.svdvals(B)
    quality = sigma[..., -1] / sigma[..., 0].clamp_min(torch.finfo(sigma.dtype).tiny)  # 1/condition, 0 … 1
    singular = ~(quality > B.shape[-1] * 10 * torch.finfo(sigma.dtype).eps)
    for axis, name, factor in ((1, "row", "A_i"), (0, "column", "C_j")):
        if singular.all(axis).any():
            where = int(singular.all(axis).nonzero()[0])
            raise InputError(
                f"an invertible block A_i D_ij C_j in every block {name}",
                f"only singular ones in block {name} {where}: {factor} is singular or its D_ij have zeros",
                "choose another number of blocks",
            )
    for axis, name in ((1, "row"), (0, "column")):
        if singular.any(axis).all():
            i, j = singular.nonzero()[0].tolist()
            raise InputError(
                f"D_ij without zeros in at least one block {name}",
                f"a singular block in each, first block ({i}, {j})",
                "choose another number of blocks",
            )
    return int(quality.amin(1).argmax()), int(quality.amin(0).argmax())


def _eigenbasis(B: Tensor, p: int, q: int, draw: int) -> Tensor:
    """Columns that diagonalise all F(i, j), (S, S): eigenvectors of one random combination of them."""
    J, S = B.shape[0], B.shape[-1]
    generator = torch.Generator().manual_seed(draw)
    weights = torch.randn(J, J, generator=generator, dtype=torch.float64).to(B.device)
    F = torch.linalg.solve(B[:, q, None], B) @ torch.linalg.solve(B[p], B[p, q].expand(J, S, S))
    # blocks of very different size count alike
    weights = weights / torch.linalg.matrix_norm(F).clamp_min(torch.finfo(torch.float64).tiny)
    G = torch.einsum("ij,ijab->ab", weights.to(F.dtype), F)
    values, V = torch.linalg.eig(G)
    real = not G.is_complex() and not values.imag.any()
    if real:
        values, V = values.real, V.real
    # eigenvalues that coincide up to rounding or noise have arbitrary eigenvectors, which may be almost
    # parallel; any basis of their space serves, so then take an orthonormal one
    close = (values[:, None] - values).abs() < 1e-6 * values.abs().max()
    done = torch.zeros(S, dtype=torch.bool, device=B.device)
    for k in range(S):
        group = close[k] & ~done
        done |= group
        d = int(group.sum())
        if d > 1 and torch.linalg.svdvals(V[:, group])[-1] < 1e-2:
            shift = values[group].mean() * torch.eye(S, dtype=V.dtype, device=V.device)
            V[:, group] = torch.linalg.svd(G.to(V.dtype) - shift).Vh[-d:].mH
    return V


def _divide(B: Tensor, p: int, q: int, V: Tensor) -> Factors:
    """A_i (J, S, S), D_ij (J, J, S) and C_j (J, S, S) from the eigenbasis V = C_q⁻¹."""
    B = B.to(V.dtype)
    left = B[:, q] @ V
    right = torch.linalg.solve(left[p].expand_as(left), B[p])
    middle = torch.linalg.solve(left[:, None], B)
    D = torch.linalg.solve(right, middle, left=False).diagonal(dim1=-2, dim2=-1)
    return left, D, right


def _product(left: Tensor, D: Tensor, right: Tensor) -> Tensor:
    """The blocks A_i D_ij C_j."""
    return (left[:, None] * D[..., None, :]) @ right


def _refine(B: Tensor, factors: Factors) -> tuple[Factors, float]:
    """Least squares over all three factors by Levenberg and Marquardt; they and ‖B − A_i D_ij C_j‖ / ‖B‖.

    Steps go on while one takes off a hundredth. One factor after the other would crawl where blocks are
    nearly singular: what is gained there by all three at once is a difference of large terms.
    """
    B = B.to(factors[1].dtype)
    size, rounding = B.norm(), 10 * torch.finfo(B.dtype).eps
    rest = B - _product(*factors)
    residual, damping = (rest.norm() / size).item(), 1e-3
    for _ in range(STEPS):
        if residual <= rounding or damping > 1e3:
            break
        beyond = _plus(factors, 1.0, _step(rest, factors, damping))
        left_over = B - _product(*beyond)
        reached = (left_over.norm() / size).item()
        if not reached < residual:
            damping *= 10
            continue
        settled = reached > 0.99 * residual
        factors, rest, residual, damping = beyond, left_over, reached, damping / 10
        if settled:
            break
    return factors, residual


def _step(rest: Tensor, factors: Factors, damping: float) -> Factors:
    """The s with ``(JᴴJ + damping·P) s = Jᴴ rest``, J the derivative of the product, by conjugate gradients.

    P is the part of JᴴJ within each A_i, D_ij and C_j. It leaves the steps as they are when factors trade
    their scale, and preconditions the search.
    """
    left, D, right = factors
    outer, inner = left[:, None] * D[..., None, :], D[..., None] * right  # A_i D_ij and D_ij C_j
    # of D_ij a Hadamard product of two Gram matrices
    grams = (
        (inner @ inner.mH).sum(1),
        (left.mH @ left)[:, None] * (right.conj() @ right.mT),
        (outer.mH @ outer).sum(0),
    )
    # zeros of D_ij and the like leave directions without weight, in which nothing moves
    P = [torch.linalg.pinv(G, hermitian=True, rtol=G.shape[-1] * torch.finfo(G.dtype).eps) for G in grams]

    def adjoint(E: Tensor) -> Factors:
        return (E @ inner.mH).sum(1), ((left.mH[:, None] @ E) * right.conj()).sum(-1), (outer.mH @ E).sum(0)

    def solved(g: Factors) -> Factors:
        return g[0] @ P[0], (P[1] @ g[1][..., None])[..., 0], P[2] @ g[2]

    gradient = adjoint(rest)
    step = torch.zeros_like(left), torch.zeros_like(D), torch.zeros_like(right)
    direction, weighted = solved(gradient), gradient  # P · direction
    size, remaining = _dot(gradient, direction), rest.norm().square().item()
    for _ in range(ITERATIONS):
        ahead = direction[0][:, None] @ inner + outer @ direction[2] + _product(left, direction[1], right)
        curvature = ahead.norm().square().item() + damping * _dot(direction, weighted)
        if not curvature > 0:
            break
        step = _plus(step, size / curvature, direction)
        gain = size**2 / curvature
        remaining -= gain
        if not 0 < WORTH * remaining < gain:
            break
        gradient = _plus(gradient, -size / curvature, _plus(adjoint(ahead), damping, weighted))
        preconditioned = solved(gradient)
        before, size = size, _dot(gradient, preconditioned)
        direction = _plus(preconditioned, size / before, direction)
        weighted = _plus(gradient, size / before, weighted)
    return step


def _dot(x: Factors, y: Factors) -> float:
    return sum(torch.sum(a.conj() * b).real.item() for a, b in zip(x, y, strict=True))


def _plus(x: Factors, scale: float, y: Factors) -> Factors:
    a, b, c = (u + scale * v for u, v in zip(x, y, strict=True))
    return a, b, c
