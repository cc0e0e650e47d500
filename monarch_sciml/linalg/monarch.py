"""The Monarch matrix M = P L Pᵀ R of Dao et al. (ICML 2022, arXiv 2204.00595)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_factors, check_tensors, monarch_dense, monarch_multiply
from monarch_sciml.linalg.caching import traced
from monarch_sciml.linalg.operator import LinearOperator, Product, check_last

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
        check_last(x, self.p * self.q)
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
        if L.dtype != R.dtype:
            raise InputError("factors of one dtype", f"{L.dtype} and {R.dtype}", "convert one of them")
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
        return _between(StridePermutation(I, K), self.R.mH, self.L.mH, StridePermutation(S, J))

    def solve(self, b: Tensor) -> Tensor:
        """The x with ``M x = b``, by one LU factorisation of every block; ``b`` as in ``M @ x``.

        b (n,) or (..., n, c), broadcast over a batch of matrices. Both factors must have square blocks,
        S = K·T and I = J·T. Costs ⅓·n·(S² + I²) multiply-adds for the factorisation, as many per column as
        M itself; the result is differentiable. Raises ``InputError`` for other blocks, another number of rows
        or a block that is singular to working precision; not looked at in ``torch.func`` and compiled.
        """
        check_tensors(b)
        (J, S, K, _), n = self._square_blocks("solve"), self.shape[1]
        if b.ndim == 0 or (b.shape[-2:-1] or b.shape) != (n,):
            raise InputError(
                f"{n} rows in a right-hand side (n,) or (..., n, c)", f"b {tuple(b.shape)}", "check the shape"
            )
        dtype = torch.promote_types(self.L.dtype, b.dtype)
        y = (b[:, None] if b.ndim == 1 else b).to(dtype)
        y = y.unflatten(-2, (S, J)).transpose(-3, -2)  # (..., j, ℓ, c)
        z = _lu_solve("L", self.L.to(dtype), y)
        z = z.unflatten(-2, (K, -1)).transpose(-4, -3).flatten(-3, -2)  # (..., k, (j,t), c)
        x = _lu_solve("R", self.R.to(dtype), z).flatten(-3, -2)
        return x[..., 0] if b.ndim == 1 else x

    def inverse(self) -> LinearOperator:
        """M⁻¹, Monarch again between two stride permutations: factors R[k]⁻¹ and L[j]⁻¹.

        For repeated use; ``solve`` is more accurate where blocks are ill-conditioned. Conditions and errors
        as there.
        """
        J, S, K, I = self._square_blocks("inverse")
        R, L = (
            _lu_solve(name, factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device))
            for name, factor in (("R", self.R), ("L", self.L))
        )
        return _between(StridePermutation(I, K), R, L, StridePermutation(S, J))

    def det(self) -> Tensor:
        """The determinant (...): that of all blocks times the sign of the two permutations between them.

        Needs the square blocks of ``solve``. It overflows early for large n: see ``slogdet``.
        """
        sign = self._permutation_sign("det")
        return sign * torch.linalg.det(self.L).prod(-1) * torch.linalg.det(self.R).prod(-1)

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """Sign (or phase) and logarithm of the modulus of the determinant, as ``torch.linalg.slogdet``."""
        sign = self._permutation_sign("slogdet")
        (a, u), (b, v) = torch.linalg.slogdet(self.L), torch.linalg.slogdet(self.R)
        return sign * a.prod(-1) * b.prod(-1), u.sum(-1) + v.sum(-1)

    def trace(self) -> Tensor:
        """The sum of the diagonal (...), in T·n multiply-adds. Raises ``InputError`` unless M is square."""
        (J, K), (m, n) = self.nblocks, self.shape
        if m != n:
            raise InputError("a square matrix", f"shape {self.shape}", "only those have a trace")
        d, I = torch.arange(n, device=self.L.device), self.R.shape[-1]
        left = self.L.unflatten(-1, (K, -1))[..., d % J, d // J, d // I, :]  # (..., n, t)
        right = self.R.unflatten(-2, (J, -1)).mT[..., d // I, d % J, d % I, :]
        return (left * right).sum((-2, -1))

    def _square_blocks(self, wanted: str) -> tuple[int, int, int, int]:
        """(J, S, K, I), once both factors are known to have square blocks."""
        (J, S, inner), (K, outer, I) = self.L.shape[-3:], self.R.shape[-3:]
        if inner != S or outer != I:
            raise InputError(
                f"square blocks in both factors for {wanted}",
                f"blocks of {S} × {inner} in L and {outer} × {I} in R",
                "choose S = K·T and I = J·T, or take to_dense()",
            )
        return J, S, K, I

    def _permutation_sign(self, wanted: str) -> int:
        # transposing p × q takes as many swaps of neighbours as it has pairs of rows times pairs of columns;
        # between the factors whole runs of T change places, which is T² swaps for one
        J, S, K, _ = self._square_blocks(wanted)
        pairs = math.comb(J, 2) * (math.comb(S, 2) + self.rank * math.comb(K, 2))
        return -1 if pairs % 2 else 1

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix (..., S·J, K·I): O(n²) memory. In ``dtype``, or the complex one of its precision."""
        M = monarch_dense(self.L, self.R)
        if dtype is None:
            return M
        return M.to(dtype.to_complex() if M.is_complex() else dtype)

    def __repr__(self) -> str:
        return f"MonarchMatrix{self.shape} with {self.nblocks} blocks of rank {self.rank}, {self.L.dtype}"


def _between(left: StridePermutation, L: Tensor, R: Tensor, right: StridePermutation) -> Product:
    """``left · M · right`` for the M of the factors L and R."""
    return Product(left, Product(MonarchMatrix(L, R), right))


def _lu_solve(name: str, blocks: Tensor, b: Tensor) -> Tensor:
    """``blocks[…]⁻¹ b``; refuses a block whose smallest pivot is rounding noise beside its largest entry."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(blocks)
    smallest = LU.detach().diagonal(dim1=-2, dim2=-1).abs().amin(-1)
    noise = blocks.shape[-1] * torch.finfo(blocks.dtype).eps * blocks.detach().abs().amax((-2, -1))
    # written so that NaN is refused too
    singular = ~(smallest > noise)
    if not traced() and singular.any():  # nothing to decide by while somebody traces
        where = tuple(singular.nonzero()[0].tolist())
        raise InputError(
            "invertible blocks",
            f"block {where[-1] if len(where) == 1 else where} of {name} singular to working precision",
            "a Monarch matrix with a singular block has no inverse",
        )
    return torch.linalg.lu_solve(LU, pivots, b)
