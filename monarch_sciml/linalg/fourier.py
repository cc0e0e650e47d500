"""The two-dimensional Fourier transform of MRI: centred, orthonormal, over the last two axes."""

from __future__ import annotations

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors, separable_multiply
from monarch_sciml.linalg.caching import kept
from monarch_sciml.linalg.operator import LinearOperator
from monarch_sciml.linalg.transforms import roots_of_unity

__all__ = ["FactoredTransform", "FourierTransform", "SeparableTransform", "centered_dft"]

AXES = (-2, -1)


class FourierTransform(LinearOperator):
    """``X[k, l] = (HW)^(−1/2) Σ_yx exp(−2πi((y − H//2)(k − H//2)/H + (x − W//2)(l − W//2)/W)) x[y, x]``.

    Image to k-space with the origin of both at n // 2: fftshift ∘ FFT ∘ ifftshift, any size. ``domain`` is
    (..., H, W); leading entries such as the coils are transformed one by one. Unitary: ``.H`` is the inverse.
    """

    def __init__(self, domain: tuple[int, ...], *, inverse: bool = False):
        super().__init__(domain, domain)
        self.inverse = inverse

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H, W) → (..., H, W), complex."""
        check_tensors(x)
        transform = torch.fft.ifft2 if self.inverse else torch.fft.fft2
        return torch.fft.fftshift(transform(torch.fft.ifftshift(x, dim=AXES), norm="ortho"), dim=AXES)

    @property
    def H(self) -> FourierTransform:
        """The inverse transform."""
        return FourierTransform(self.domain, inverse=not self.inverse)


class SeparableTransform(LinearOperator):
    """``X = A x Bᵀ``: one matrix for each of the last two axes.

    ``A`` (M, H) and ``B`` (N, W), real or complex; ``planes`` are leading entries of the domain, such as the
    coils: (*planes, H, W) → (*planes, M, N). Costs H·W·(M + N) multiply-adds a plane or less.
    """

    def __init__(self, A: Tensor, B: Tensor, planes: tuple[int, ...] = ()):
        check_tensors(A, B)
        (M, H), (N, W) = A.shape[-2:], B.shape[-2:]
        super().__init__((*planes, M, N), (*planes, H, W))
        self.A, self.B, self.planes = A, B, tuple(planes)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H, W) → (..., M, N); the axis that shrinks more goes first."""
        check_tensors(x)
        dtype = torch.promote_types(x.dtype, self.A.dtype)
        A, B, x = self.A.to(dtype), self.B.to(dtype), x.to(dtype)
        (M, H), (N, W) = A.shape[-2:], B.shape[-2:]
        return (A @ x) @ B.mT if M * W <= H * N else A @ (x @ B.mT)

    @property
    def H(self) -> SeparableTransform:
        """``x ↦ Aᴴ x B̄``."""
        return SeparableTransform(self.A.mH, self.B.mH, self.planes)


class FactoredTransform(LinearOperator):
    """``X = W_y x W_xᵀ`` with each W a Monarch matrix after a stride permutation, applied by its factors.

    ``y`` and ``x`` are pairs (L, R) as of ``fourier_factors``: L (p, q, q), R (q, p, p), n = p·q; see
    ``kernels.separable_multiply``. Costs H·W·(p + q) multiply-adds an axis and plane, against H·W·n of
    ``SeparableTransform``.
    """

    def __init__(
        self,
        y: tuple[Tensor, Tensor],
        x: tuple[Tensor, Tensor],
        planes: tuple[int, ...] = (),
        *,
        adjoint: bool = False,
    ):
        domain = (*planes, *(L.shape[0] * L.shape[1] for L, _ in (y, x)))
        super().__init__(domain, domain)
        self.y, self.x, self.planes, self.adjoint = y, x, tuple(planes), adjoint

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H, W) → (..., H, W)."""
        return separable_multiply(x, self.y, self.x, adjoint=self.adjoint)

    def combine(self, x: Tensor, maps: Tensor) -> Tensor:
        """``Σ_c S̄_c X_c``: x (..., C, H, W) and maps S like it → (..., H, W), without coil images between."""
        return separable_multiply(x, self.y, self.x, adjoint=self.adjoint, maps=maps)

    @property
    def H(self) -> FactoredTransform:
        """The conjugate transposes of the same factors, in reverse order."""
        return FactoredTransform(self.y, self.x, self.planes, adjoint=not self.adjoint)


@kept(64)
def centered_dft(n: int) -> Tensor:
    """The centred orthonormal DFT of any length as a matrix (n, n), complex128. Cached: do not modify it."""
    if n < 1:
        raise InputError("a size of at least 1", str(n), "pass the length of the axis")
    k = torch.arange(n, device="cpu") - n // 2
    return roots_of_unity(n, k[:, None] * k) * n**-0.5
