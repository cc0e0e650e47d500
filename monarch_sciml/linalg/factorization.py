"""Writing a matrix of the class MM* as a product of two Monarch matrices (Dao et al. 2022, Algorithm 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.transforms import balanced_factors

__all__ = ["factorize"]

DRAWS, SWEEPS = 4, 500
NEAR = 0.3  # a residual from which more sweeps may find a member of the class


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
    best conditioned. Alternating least squares over A_i, D_ij and C_j then bring the residual down to the
    rounding or the noise in A, with rare exceptions where blocks are nearly singular. Each sweep takes
    O(n³/J) operations; a matrix is refused after 2000 of them at the latest.

    Args:
        A: (n, n), real or complex, invertible. The factors are complex where eigenvalues are.
        nblocks: J, a divisor of n; by default the one nearest to √n from below.
        tol: the largest residual ‖A − M₁M₂ᴴ‖_F / ‖A‖_F of a matrix that counts as a member.

    Raises:
        InputError: not a square matrix of finite numbers or no divisor; a row or a column of singular blocks
            (A_i or C_j singular, and A with them, or D_ij with zeros throughout); a zero of D_ij in each row
            or each column of blocks; no shared eigenvectors, which is to say that A is not in the class.
    """
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
    B = B.permute(1, 3, 0, 2).contiguous()  # (i, j, ℓ, ℓ′)
    p, q = _reference(B)
    residual = math.inf
    for draw in range(DRAWS):  # a draw in which different eigenvalues meet by chance is repeated
        factors, residual = _refine(B, _divide(B, p, q, _eigenbasis(B, p, q, draw)), tol)
        if residual <= tol:
            break
    else:
        raise InputError(
            f"a matrix in MM* with {J} blocks, whose F(i, j) share their eigenvectors",
            f"a relative residual of {residual:.1e} without",
            "choose other blocks, a larger tol, or project(A)",
        )
    left, D, right = factors
    dtype = torch.promote_types(A.dtype, torch.complex32) if D.is_complex() else A.dtype
    eye = torch.eye(J, dtype=dtype, device=A.device).expand(n // J, J, J)
    first = MonarchMatrix(left.to(dtype), D.permute(2, 0, 1).to(dtype))
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


def _divide(B: Tensor, p: int, q: int, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A_i (J, S, S), D_ij (J, J, S) and C_j (J, S, S) from the eigenbasis V = C_q⁻¹."""
    B = B.to(V.dtype)
    left = B[:, q] @ V
    right = torch.linalg.solve(left[p].expand_as(left), B[p])
    middle = torch.linalg.solve(left[:, None], B)
    D = torch.linalg.solve(right, middle, left=False).diagonal(dim1=-2, dim2=-1)
    return left, D, right


def _residual(B: Tensor, left: Tensor, D: Tensor, right: Tensor) -> float:
    """‖B − A_i D_ij C_j‖ / ‖B‖."""
    product = (left[:, None] * D[..., None, :]) @ right
    return ((B - product).norm() / B.norm()).item()


def _refine(B: Tensor, factors: tuple[Tensor, ...], tol: float) -> tuple[tuple[Tensor, ...], float]:
    """Alternating least squares; the factors and their residual.

    They go on while a sweep takes off a hundredth, and between ``tol`` and 0.3 a ten-thousandth. Where blocks
    are nearly singular, sweeps crawl. So each one starts beyond the last factors, in the direction of the
    last step and the further the longer that goes well; a step that went too far is undone.
    """
    B = B.to(factors[1].dtype)
    residual, before, momentum = _residual(B, *factors), factors, 0.5
    for _ in range(SWEEPS):
        beyond = (new + momentum * (new - old) for new, old in zip(factors, before, strict=True))
        found = _sweep(B, *beyond)
        reached = _residual(B, *found)
        if reached < residual:
            settled = reached > (0.9999 if tol < reached < NEAR else 0.99) * residual
            before, factors, residual, momentum = factors, found, reached, 1.1 * momentum
        else:
            settled = before is factors
            before, momentum = factors, 0.5
        if settled:
            break
    return factors, residual


def _sweep(B: Tensor, left: Tensor, D: Tensor, right: Tensor) -> tuple[Tensor, ...]:
    """Least squares in left, then in right, then in D."""
    rows = (D[..., None] * right).transpose(1, 2).flatten(2)  # (i, k, (j, ℓ′))
    left = torch.linalg.lstsq(rows.mT, B.transpose(1, 2).flatten(2).mT).solution.mT
    columns = (left[:, None] * D[..., None, :]).transpose(0, 1).flatten(1, 2)  # (j, (i, ℓ), k)
    right = torch.linalg.lstsq(columns, B.transpose(0, 1).flatten(1, 2)).solution
    # D_ij by the normal equations, a Hadamard product of two Gram matrices
    gram = (left.mH @ left)[:, None] * (right.conj() @ right.mT)
    inner = torch.einsum("iak,ijab,jkb->ijk", left.conj(), B, right.conj())
    return left, torch.linalg.solve(gram, inner[..., None])[..., 0], right
