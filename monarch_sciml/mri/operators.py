"""What a scanner does, as linear operators: ``y = A x + ε`` with A = Sampling @ Fourier @ Sensitivity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform, LinearOperator

__all__ = ["Sampling", "Sensitivity", "conjugate_gradients", "encoding", "normalise"]


class Sensitivity(LinearOperator):
    """Image → coil images, ``x_c = S_c x``; the adjoint combines, ``x = Σ_c S̄_c x_c``.

    ``maps`` (..., C, H, W), complex; leading dimensions are a batch of slices with maps of their own.
    """

    def __init__(self, maps: Tensor):
        self.maps = maps
        self.shape = (math.prod(self.codomain), math.prod(self.domain))

    @property
    def domain(self) -> tuple[int, ...]:
        """(H, W)."""
        return tuple(self.maps.shape[-2:])

    @property
    def codomain(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.maps.shape[-3:])

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H, W) → (..., C, H, W)."""
        return self.maps * x.unsqueeze(-3)

    @property
    def H(self) -> LinearOperator:
        """Coil combination."""
        return _Combination(self.maps)


class _Combination(LinearOperator):
    def __init__(self, maps: Tensor):
        self.maps = maps
        self.shape = (math.prod(self.codomain), math.prod(self.domain))

    @property
    def domain(self) -> tuple[int, ...]:
        return tuple(self.maps.shape[-3:])

    @property
    def codomain(self) -> tuple[int, ...]:
        return tuple(self.maps.shape[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        return (self.maps.conj() * x).sum(-3)

    @property
    def H(self) -> LinearOperator:
        return Sensitivity(self.maps)


class Sampling(LinearOperator):
    """Keeps the sampled points of k-space and sets the others to +0.0: a projection, its own adjoint.

    ``pattern`` (..., 1, W) for columns or (..., H, W), boolean or 0 and 1, with the coil axis left out;
    ``domain`` (C, H, W).
    """

    def __init__(self, pattern: Tensor, domain: tuple[int, ...]):
        if pattern.ndim < 2 or pattern.shape[-1] != domain[-1] or pattern.shape[-2] not in (1, domain[-2]):
            raise InputError(
                f"a mask (1, {domain[-1]}) or ({domain[-2]}, {domain[-1]})",
                f"{tuple(pattern.shape)}",
                "pass the mask that belongs to this k-space",
            )
        self.pattern, self._domain = pattern.bool(), tuple(domain)
        self.shape = (math.prod(domain), math.prod(domain))

    @property
    def domain(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self._domain

    @property
    def codomain(self) -> tuple[int, ...]:
        """As the domain."""
        return self._domain

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C, H, W) → the same."""
        return x.masked_fill(~self.pattern.unsqueeze(-3), 0)

    @property
    def H(self) -> Sampling:
        """Itself."""
        return self


def encoding(maps: Tensor, pattern: Tensor, fourier: LinearOperator | None = None) -> LinearOperator:
    """The encoding operator A of parallel imaging: image (..., H, W) → k-space (..., C, H, W).

    ``fourier`` maps (C, H, W) to itself: the centred orthonormal FFT by default, or one whose entries were
    learned. Raises ``InputError`` when mask, maps and transform do not fit together.
    """
    S = Sensitivity(maps)
    F = FourierTransform(S.codomain) if fourier is None else fourier
    return Sampling(pattern, S.codomain) @ F @ S


def conjugate_gradients(
    A: LinearOperator, b: Tensor, x: Tensor | None = None, *, damping: Tensor | float = 0.0, iterations: int
) -> Tensor:
    """Solve ``(AᴴA + λI) x = b`` by conjugate gradients from ``x``, zero by default.

    ``b`` (..., *A.domain); leading dimensions are independent systems. Differentiable. Stops early only where
    the residual vanishes.
    """
    axes = tuple(range(-len(A.domain), 0))
    adjoint = A.H

    def normal(u: Tensor) -> Tensor:
        return adjoint(A(u)) + damping * u

    def energy(u: Tensor, v: Tensor) -> Tensor:
        return (u.conj() * v).real.sum(axes, keepdim=True)

    x = torch.zeros_like(b) if x is None else x
    r = b - normal(x)
    p, rr = r, energy(r, r)
    tiny = torch.finfo(rr.dtype).tiny
    for _ in range(iterations):
        q = normal(p)
        alpha = rr / energy(p, q).clamp_min(tiny)
        x, r = x + alpha * p, r - alpha * q
        rr, before = energy(r, r), rr
        p = r + rr / before.clamp_min(tiny) * p
    return x


def normalise(image: Tensor) -> Tensor:
    """One scale a slice, so that the brightest point of |image| (..., H, W) is 1: shape (..., 1, 1).

    Taken from the zero-filled image, which is known when reconstructing: nothing leaks from the target.
    """
    return image.abs().amax((-2, -1), keepdim=True).clamp_min(1e-30)
