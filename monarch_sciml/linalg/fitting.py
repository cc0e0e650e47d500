"""The Monarch matrix that explains samples best, by alternating least squares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors
from monarch_sciml.linalg.monarch import MonarchMatrix
from monarch_sciml.linalg.projection import project

__all__ = ["Fit", "fit"]


class Fit(NamedTuple):
    """What ``fit`` found and how it got there."""

    matrix: MonarchMatrix
    """M."""
    residuals: list[float]
    """‖M X − Y‖_F / ‖Y‖_F at the start and after every sweep; never rising."""


def fit(
    X: Tensor, Y: Tensor, nblocks: tuple[int, int], *, rank: int = 1, tol: float = 1e-6, sweeps: int = 200
) -> Fit:
    """``min over M of ‖M X − Y‖_F`` over Monarch matrices with (J, K) = ``nblocks`` and slices of ``rank`` T.

    ``X`` (n, c) holds c inputs as columns and ``Y`` (m, c) the outputs, real or complex. Starts from the
    projection of the dense solution ``Y X⁺``, then solves for L with R fixed and for R with L fixed; each is
    linear, and falls apart into the J blocks of rows. The residual never rises. Stops when a sweep lowers it
    by less than ``tol`` of itself, when it is rounding noise, or after ``sweeps``.

    For an M of this form and n independent inputs or more it is recovered at once. With fewer the dense
    solution is not unique, and treats blocks of equal inputs alike, which no sweep tells apart: then a second
    search starts from blocks of columns that are solved for one after the other, and the better one counts.
    Either may end in a local minimum. With c of them M has T·K·(S + I − T) degrees of freedom for each
    of the S·c equations of a block of rows, S = m/J and I = n/K, so nothing less than c = T·K·(S + I − T)/S
    can do. See ``residuals`` for what was reached. A sweep costs O(J·min(S, K·T)·min(n, c)·(n·T)²), and
    memory for min(S, K·T)·min(n, c) × n·T numbers.

    Half precision is solved in single. Raises ``InputError`` for samples that do not pair up, that are not
    floating-point, complex or finite, and as ``project`` for blocks and rank.
    """
    check_tensors(X, Y)
    if X.ndim != 2 or Y.ndim != 2 or X.shape[1] != Y.shape[1] or not X.numel():
        raise InputError(
            "samples as columns, X (n, c) and Y (m, c)",
            f"X {tuple(X.shape)} and Y {tuple(Y.shape)}",
            "transpose",
        )
    if not (X.isfinite().all() and Y.isfinite().all()):
        raise InputError("finite samples", "NaN or infinity", "leave those columns out")
    asked = torch.promote_types(X.dtype, Y.dtype)
    if not (asked.is_floating_point or asked.is_complex):
        raise InputError("floating-point or complex samples", f"{asked}", "convert them with .double()")
    dtype = torch.promote_types(asked, torch.float32)
    # largest entries of one: squares of very small or large ones would be zero or infinite
    scales = [max(t.abs().max().item(), torch.finfo(dtype).tiny) for t in (X, Y)]
    X, Y = (t.to(dtype) / scale for t, scale in zip((X, Y), scales, strict=True))
    size = Y.norm()

    def result(M: MonarchMatrix, residuals: list[float]) -> Fit:
        L, R = (factor * (scales[1] ** 0.5 / scales[0] ** 0.5) for factor in (M.L, M.R))
        return Fit(MonarchMatrix(L.to(asked), R.to(asked)), residuals)

    M = project(Y @ torch.linalg.pinv(X), nblocks, rank=rank)
    if not size:
        return result(MonarchMatrix(torch.zeros_like(M.L), M.R), [0.0])
    # inputs beyond their span add no equation: X = X′ Qᴴ with X′ (n, min(n, c)), and what of Y lies outside
    # the span of Qᴴ is out of reach
    Q, upper = torch.linalg.qr(X.mH)
    X, reachable = upper.mH, Y @ Q
    rest = (Y - reachable @ Q.mH).norm()

    def residual(M: MonarchMatrix) -> float:
        return (torch.hypot((M @ X - reachable).norm(), rest) / size).item()

    noise = 10 * torch.finfo(dtype).eps

    def search(M: MonarchMatrix) -> tuple[MonarchMatrix, list[float]]:
        residuals = [residual(M)]
        for _ in range(sweeps):
            if residuals[-1] <= noise:
                break
            new = _sweep(M, X, reachable)
            value = residual(new)
            if not value < residuals[-1]:  # rounding
                break
            M = new
            residuals.append(value)
            if residuals[-2] - value < tol * residuals[-2]:
                break
        return M, residuals

    found = [search(M)]
    if found[0][1][-1] > noise and torch.linalg.matrix_rank(X) < len(X):
        found.append(search(_one_after_the_other(X, reachable, M.nblocks, rank)))
    return result(*min(found, key=lambda each: each[1][-1]))


def _one_after_the_other(X: Tensor, Y: Tensor, nblocks: tuple[int, int], rank: int) -> MonarchMatrix:
    """For each block of inputs the slices of rank T that leave least of what those before have left of Y."""
    J, K = nblocks
    rest = Y.unflatten(0, (-1, J)).transpose(0, 1)  # (j, ℓ, c)
    L, R = [], []
    for inputs in X.unflatten(0, (K, -1)):  # (i, c)
        A = rest @ torch.linalg.pinv(inputs)  # without regard to the rank
        outputs = A @ inputs
        U = torch.linalg.svd(outputs, full_matrices=outputs.shape[-1] < rank).U[..., :rank]
        L.append(U)
        R.append(U.mH @ A)
        rest = rest - U @ R[-1] @ inputs
    return MonarchMatrix(torch.stack(L, 2).flatten(2), torch.stack(R).flatten(1, 2))


def _sweep(M: MonarchMatrix, X: Tensor, Y: Tensor) -> MonarchMatrix:
    """L for the R of M, then R for that L."""
    (J, K), T = M.nblocks, M.rank
    rows = Y.unflatten(0, (-1, J)).transpose(0, 1)  # (j, ℓ, c)
    Z = (M.R @ X.unflatten(0, (K, -1))).unflatten(1, (J, T))  # (k, j, t, c)
    Z = Z.transpose(0, 1).flatten(1, 2)  # (j, (k,t), c)
    L = _least_squares(Z.mT, rows.mT).mT
    R = torch.stack([_solve_block(L_j, rows_j, X, K) for L_j, rows_j in zip(L, rows, strict=True)], dim=1)
    return MonarchMatrix(L, R.flatten(1, 2))


def _solve_block(L: Tensor, Y: Tensor, X: Tensor, K: int) -> Tensor:
    """R[:, j] (k, t, i) that minimises ‖Σ_kt L[:, (k,t)] R[k,t,:] X[k] − Y‖, for L (S, K·T)."""
    Q, upper = torch.linalg.qr(L)  # min(S, K·T) equations a sample instead of S
    X = X.unflatten(0, (K, -1))  # (k, i, c)
    design = torch.einsum("skt,kic->sckti", upper.unflatten(1, (K, -1)), X)
    solution = _least_squares(design.flatten(2).flatten(0, 1), (Q.mH @ Y).flatten()[:, None])
    return solution.view(design.shape[2:])


def _least_squares(A: Tensor, B: Tensor) -> Tensor:
    """The X of least norm that minimises ‖A X − B‖; A may lack rank."""
    if A.is_cuda:  # whose lstsq takes full rank only
        return torch.linalg.pinv(A) @ B
    return torch.linalg.lstsq(A, B, driver="gelsd").solution
