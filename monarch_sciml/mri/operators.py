"""What a scanner does, as linear operators: ``y = A x + ε`` with A = Sampling @ Fourier @ Sensitivity."""

from __future__ import annotations

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
        super().__init__(maps.shape[-3:], maps.shape[-2:])
        self.maps = maps

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H, W) → (..., C, H, W)."""
        return self.maps * x.unsqueeze(-3)

    @property
    def H(self) -> LinearOperator:
        """Coil combination."""
        return _Combination(self.maps)


class _Combination(LinearOperator):
    def __init__(self, maps: Tensor):
        super().__init__(maps.shape[-2:], maps.shape[-3:])
        self.maps = maps

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
        super().__init__(domain, domain)
        self.pattern = pattern.bool()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C, H, W) → the same."""
        return x.masked_fill(~self.pattern.unsqueeze(-3), 0)

    @property
    def H(self) -> Sampling:
        """Itself."""
        return self


class _Encoding(LinearOperator):
    """``A = Sampling @ F @ Sensitivity`` with the centred orthonormal FFT."""

    def __init__(self, maps: Tensor, pattern: Tensor):
        self.S = Sensitivity(maps)
        self.P = Sampling(pattern, self.S.codomain)
        self.A = self.P @ FourierTransform(self.S.codomain) @ self.S
        super().__init__(self.A.codomain, self.A.domain)

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(x)

    @property
    def H(self) -> LinearOperator:
        return self.A.H

    @property
    def gram(self) -> LinearOperator:
        return _Normal(self.S.maps, self.P.pattern)


class _Normal(LinearOperator):
    """``AᴴA x = Σ_c S̄_c F⁻¹ Ω F S_c x`` the short way.

    Where Ω is diagonal the phases of centring cancel between F and F⁻¹, so the bare FFT serves, with the mask
    moved to its corner; under a mask of whole columns the transform along them cancels too.
    """

    def __init__(self, maps: Tensor, pattern: Tensor):
        super().__init__(maps.shape[-2:], maps.shape[-2:])
        self.maps = maps
        self.axes = (-1,) if pattern.shape[-2] == 1 else (-2, -1)
        self.skipped = ~torch.fft.ifftshift(pattern, dim=self.axes)

    @property
    def H(self) -> LinearOperator:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.maps.requires_grad):
            coils = self._filter(self.maps * x.unsqueeze(-3), self.skipped.unsqueeze(-3))
            return (self.maps.conj() * coils).sum(-3)
        # coil after coil: what is in flight stays in the cache
        parts = (S.conj() * self._filter(S * x, self.skipped) for S in self.maps.unbind(-3))
        total = next(parts)
        for part in parts:
            total += part
        return total

    def _filter(self, x: Tensor, skipped: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.fftn(x, dim=self.axes).masked_fill(skipped, 0), dim=self.axes)


def encoding(maps: Tensor, pattern: Tensor, fourier: LinearOperator | None = None) -> LinearOperator:
    """The encoding operator A of parallel imaging: image (..., H, W) → k-space (..., C, H, W).

    ``fourier`` maps (C, H, W) to itself: the centred orthonormal FFT by default, whose ``A.gram`` takes a
    short way, or one whose entries were learned. Raises ``InputError`` when mask, maps and transform do not
    fit together.
    """
    if fourier is None:
        return _Encoding(maps, pattern)
    S = Sensitivity(maps)
    return Sampling(pattern, S.codomain) @ fourier @ S


def conjugate_gradients(
    A: LinearOperator, b: Tensor, x: Tensor | None = None, *, damping: Tensor | float = 0.0, iterations: int
) -> Tensor:
    """Solve ``(AᴴA + λI) x = b`` by conjugate gradients from ``x``, zero by default.

    ``b`` (..., *A.domain); leading dimensions are independent systems. Differentiable. Stops early only where
    the residual vanishes.
    """
    axes = tuple(range(-len(A.domain), 0))
    gram = A.gram

    def normal(u: Tensor) -> Tensor:
        return gram(u) + damping * u

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
