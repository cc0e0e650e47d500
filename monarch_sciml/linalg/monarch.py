"""The Monarch matrix M = P L Pᵀ R of Dao et al. (ICML 2022, arXiv 2204.00595)."""

from __future__ import annotations

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_factors, monarch_dense, monarch_multiply
from monarch_sciml.linalg.operator import LinearOperator

__all__ = ["MonarchMatrix", "StridePermutation"]


class StridePermutation(LinearOperator):
    """Reads a vector of length p·q with stride q: ``(Πx)[(b, a)] = x[(a, b)]``, a < p, b < q.

    It is the transposition of a row-major p × q matrix. Costs one copy, no arithmetic.
    """

    def __init__(self, p: int, q: int):
        self.p, self.q = p, q
        super().__init__((p * q,), (p * q,))

    def __call__(self, x: Tensor) -> Tensor:
        """Permute the last dimension."""
        return x.unflatten(-1, (self.p, self.q)).mT.flatten(-2)

    @property
    def H(self) -> StridePermutation:
        """The adjoint, which is the inverse: stride p in place of q."""
        return StridePermutation(self.q, self.p)


class MonarchMatrix(LinearOperator):
    """``M[(ℓ,j),(k,i)] = Σ_t L[j,ℓ,(k,t)] · R[k,(j,t),i]``: two block-diagonal factors around a permutation.

    ``L`` (..., J, S, K·T) holds J blocks of S × K·T, ``R`` (..., K, J·T, I) holds K blocks of J·T × I; the
    matrix has S·J rows and K·I columns, T·J·K·(S + I) parameters, and multiplies a vector in as many
    multiply-adds. Its slices ``M[:, j, k, :]`` have rank T; T = 1 is the Monarch matrix proper. Real or
    complex, any dtype; leading dimensions make a batch of matrices. Raises ``InputError`` when the factors do
    not fit together.
    """

    def __init__(self, L: Tensor, R: Tensor):
        check_factors(L, R)
        if L.shape[:-3] != R.shape[:-3]:
            raise InputError(
                "equal batch dimensions",
                f"L {tuple(L.shape)} and R {tuple(R.shape)}",
                "expand the smaller factor to the batch of the other",
            )
        self.L, self.R = L, R
        super().__init__((L.shape[-2] * L.shape[-3],), (R.shape[-3] * R.shape[-1],))

    @property
    def nblocks(self) -> tuple[int, int]:
        """(J, K): the number of blocks of L and of R."""
        return self.L.shape[-3], self.R.shape[-3]

    @property
    def rank(self) -> int:
        """T, the rank of the slices ``M[:, j, k, :]``."""
        return self.R.shape[-2] // self.L.shape[-3]

    def __call__(self, x: Tensor) -> Tensor:
        """M x for one vector (n,) or for the rows of x (..., n).

        A batch of matrices (b…, m, n) takes x (b…, c, n), c vectors per matrix, and broadcasts over b as
        ``torch.matmul`` does.
        """
        if self.L.ndim > 3 and x.ndim > 1:
            return monarch_multiply(x, self.L.unsqueeze(-4), self.R.unsqueeze(-4))
        return monarch_multiply(x, self.L, self.R)

    @property
    def H(self) -> LinearOperator:
        """The adjoint, Monarch again between two stride permutations: factors R[k]ᴴ and L[j]ᴴ."""
        (J, S, _), (K, _, I) = self.L.shape[-3:], self.R.shape[-3:]
        inner = MonarchMatrix(self.R.mH, self.L.mH)
        return StridePermutation(I, K) @ inner @ StridePermutation(S, J)

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix (..., S·J, K·I): O(n²) memory."""
        M = monarch_dense(self.L, self.R)
        return M if dtype is None else M.to(dtype)

    def __repr__(self) -> str:
        return f"MonarchMatrix{self.shape} with {self.nblocks} blocks of rank {self.rank}, {self.L.dtype}"
