"""What a scanner does, as linear operators: ``y = A x + ε`` with A = Sampling @ Fourier @ Sensitivity.

Shapes are checked wherever broadcasting would make something else of a mistake. Arrays of NumPy are taken as
tensors. Coil maps are used as they are: where Σ_c |S_c|² is not 1, ``Aᴴ y`` has another scale than the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import has_fast_sense_normal, sense_normal
from monarch_sciml.linalg import FourierTransform, LinearOperator, Product, fourier_factors
from monarch_sciml.mri.inputs import Array, as_tensor

__all__ = ["Sampling", "Sensitivity", "conjugate_gradients", "encoding", "normalise"]

MOST = 50  # terms of a sum each way, beyond which an FFT of the rows is as quick


class Sensitivity(LinearOperator):
    """Image → coil images, ``x_c = S_c x``; the adjoint combines, ``x = Σ_c S̄_c x_c``.

    ``maps`` (..., C, H, W), complex; leading dimensions are a batch of slices with maps of their own. Raises
    ``InputError`` without an axis of coils, and when called with what does not fit.
    """

    def __init__(self, maps: Array):
        self.maps = as_tensor(maps, "coil maps")
        if self.maps.ndim < 3:
            found, remedy = f"{tuple(self.maps.shape)}", "keep the coil axis of a single coil: maps[None]"
            raise InputError("coil maps (..., coils, H, W)", found, remedy)
        super().__init__(self.maps.shape[-3:], self.maps.shape[-2:])

    def __call__(self, x: Array) -> Tensor:
        """(..., H, W) → (..., C, H, W)."""
        return self.maps * _image(x, self.maps).unsqueeze(-3)

    @property
    def H(self) -> LinearOperator:
        """Coil combination."""
        return _Combination(self.maps)


class _Combination(LinearOperator):
    def __init__(self, maps: Tensor):
        super().__init__(maps.shape[-2:], maps.shape[-3:])
        self.maps = maps

    def __call__(self, x: Array) -> Tensor:
        return (self.maps.conj() * _fitting(x, "k-space", self.domain, self.maps.shape[:-3])).sum(-3)

    @property
    def H(self) -> LinearOperator:
        return Sensitivity(self.maps)


class Sampling(LinearOperator):
    """Keeps the sampled points of k-space and sets the others to +0.0: a projection, its own adjoint.

    ``pattern`` (..., 1, W) for columns or (..., H, W), boolean or 0 and 1, with the coil axis left out;
    ``domain`` (C, H, W). A pattern (W,), or one with 1 in the place of the coils, means the same. Raises
    ``InputError`` for one that does not fit, and when called with what does not.
    """

    def __init__(self, pattern: Array, domain: tuple[int, ...]):
        found = as_tensor(pattern, "a mask")
        self.pattern = found.bool()
        if found.ndim == 1:
            self.pattern = self.pattern[None]
        while self.pattern.ndim > 2 and self.pattern.shape[-3] == 1:
            self.pattern = self.pattern.squeeze(-3)
        shape = self.pattern.shape
        if found.ndim == 0 or shape[-1] != domain[-1] or shape[-2] not in (1, domain[-2]):
            raise InputError(
                f"a mask (1, {domain[-1]}) or ({domain[-2]}, {domain[-1]})",
                f"{tuple(found.shape)}",
                "pass the mask that belongs to this k-space",
            )
        super().__init__(domain, domain)

    def __call__(self, x: Array) -> Tensor:
        """(..., C, H, W) → the same."""
        x = _fitting(x, "k-space", self.domain)
        leading = self.pattern.shape[:-2]
        if len(leading) > x.ndim - 3 or not _fit(leading, x.shape[:-3], grow=False):
            raise _without_coils(self.pattern, tuple(x.shape))
        return x.masked_fill(~self.pattern.unsqueeze(-3), 0)

    @property
    def H(self) -> Sampling:
        """Itself."""
        return self


def _fit(left: tuple[int, ...], right: tuple[int, ...], *, grow: bool = True) -> bool:
    """Whether the axes broadcast; without ``grow`` to the right ones."""
    pairs = zip(reversed(left), reversed(right), strict=False)
    return all(m in (1, n) or (grow and n == 1) for m, n in pairs)


def _fitting(x: Array, what: str, shape: tuple[int, ...], leading: tuple[int, ...] = ()) -> Tensor:
    """``x`` as a tensor (..., *shape) that is not empty and whose other axes broadcast with ``leading``."""
    x = as_tensor(x, what)
    before, last = x.shape[: -len(shape)], x.shape[-len(shape) :]
    if last != shape or 0 in x.shape or not _fit(before, leading):
        batch = f", and a batch that goes with {tuple(leading)}" if last == shape and leading else ""
        expected = f"{what} (..., {', '.join(map(str, shape))}){batch}"
        remedy = "pass what belongs to these maps, with the axis of the coils for k-space alone"
        raise InputError(expected, f"{tuple(x.shape)}", "pass at least one slice" if 0 in x.shape else remedy)
    return x


def _image(x: Array, maps: Tensor) -> Tensor:
    return _fitting(x, "an image", maps.shape[-2:], maps.shape[:-3])


def _without_coils(pattern: Tensor, other: tuple[int, ...]) -> InputError:
    W = pattern.shape[-1]
    expected = f"a mask (1, {W}) or ({other[-2]}, {W}) without the axis of the coils for {other}"
    remedy = "take that of one coil, mask[0]; of a batch of slices, all have the same leading axes"
    return InputError(expected, f"{tuple(pattern.shape)}", remedy)


class _Encoding(LinearOperator):
    """``A = Sampling @ F @ Sensitivity`` with the centred orthonormal FFT."""

    def __init__(self, maps: Array, pattern: Array):
        self.S, self.P = _parts(maps, pattern)
        self.A = Product(Product(self.P, FourierTransform(self.S.codomain)), self.S)
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
    moved to its corner; under a mask of whole columns the transform along them cancels too. What is left then
    is a Monarch matrix and its adjoint, of which only what is sampled is computed (``kernels.sense_normal``),
    where that is as fast: its gradient is the same again, and keeps nothing.
    """

    def __init__(self, maps: Tensor, pattern: Tensor):
        super().__init__(maps.shape[-2:], maps.shape[-2:])
        self.maps = maps
        self.axes = (-1,) if pattern.shape[-2] == 1 else (-2, -1)
        self.skipped = ~torch.fft.ifftshift(pattern, dim=self.axes)
        fast = len(self.axes) == 1 and not torch.compiler.is_compiling() and has_fast_sense_normal(maps)
        self.factors = _sampled_factors(~self.skipped) if fast else None

    @property
    def H(self) -> LinearOperator:
        return self

    def __call__(self, x: Array) -> Tensor:
        x = _image(x, self.maps)
        if self.factors and has_fast_sense_normal(x, self.maps, *self.factors):
            return self._by_factors(x, *self.factors)
        if torch.is_grad_enabled() and (x.requires_grad or self.maps.requires_grad):
            coils = self._filter(self.maps * x.unsqueeze(-3), self.skipped.unsqueeze(-3))
            return (self.maps.conj() * coils).sum(-3)
        # coil after coil: what is in flight stays in the cache
        parts = (S.conj() * self._filter(S * x, self.skipped) for S in self.maps.unbind(-3))
        total = next(parts)
        for part in parts:
            total += part
        return total

    def _by_factors(self, x: Tensor, L: Tensor, R: Tensor) -> Tensor:
        leading = torch.broadcast_shapes(x.shape[:-2], self.maps.shape[:-3])

        def folded(t: Tensor, d: int) -> Tensor:
            if t.shape[:-d].numel() > 1 or d == 2:
                t = t.expand(*leading, *t.shape[-d:])
            return t.reshape(-1, *t.shape[-d:])

        y = sense_normal(folded(x, 2), folded(self.maps, 3), folded(L, 3), R)
        return y.view(*leading, *self.domain)

    def _filter(self, x: Tensor, skipped: Tensor) -> Tensor:
        return torch.fft.ifftn(torch.fft.fftn(x, dim=self.axes).masked_fill(skipped, 0), dim=self.axes)


def _sampled_factors(pattern: Tensor) -> tuple[Tensor, Tensor] | None:
    """L (..., p, r, q) and R of ``sense_normal`` for a pattern (..., 1, W); None where FFTs are quicker."""
    W = pattern.shape[-1]
    share = float(pattern.sum(-1).max()) / W
    # rows are computed four at a time
    terms, p = min((-(-p // 4) * 4 + share * W / p, p) for p in range(1, W + 1) if W % p == 0)
    if terms > MOST:
        return None
    q = W // p
    L, R = (t.to(pattern.device) for t in fourier_factors(W, W, 0, p=p))
    kept = pattern[..., 0, :].unflatten(-1, (q, p)).mT  # (..., c, ℓ) of column ℓ·p + c
    order = kept.sort(dim=-1, descending=True, stable=True).indices[..., : max(1, int(kept.sum(-1).max()))]
    rows = (kept.unsqueeze(-1) * L).gather(-2, order.unsqueeze(-1).expand(*order.shape, q))
    return rows.to(torch.complex64), R.to(torch.complex64)


def _parts(maps: Array, pattern: Array) -> tuple[Sensitivity, Sampling]:
    S = Sensitivity(maps)
    P = Sampling(pattern, S.codomain)
    leading = P.pattern.shape[:-2]
    if len(leading) > S.maps.ndim - 3 or not _fit(leading, S.maps.shape[:-3]):
        raise _without_coils(P.pattern, tuple(S.maps.shape))
    return S, P


def encoding(maps: Array, pattern: Array, fourier: LinearOperator | None = None) -> LinearOperator:
    """The encoding operator A of parallel imaging: image (..., H, W) → k-space (..., C, H, W).

    ``maps`` (..., C, H, W) should have Σ_c |S_c|² = 1, or 0 where no coil sees anything, as those of
    ``espirit``; they are not changed. ``pattern`` is that of ``Sampling``: a batch of masks has the leading
    axes of the maps, ``maps[None]`` if they are the same for all. ``fourier`` maps (C, H, W) to itself: the
    centred orthonormal FFT by default, whose ``A.gram`` takes a short way, or one whose entries were learned.
    Raises ``InputError`` when mask, maps and transform do not fit together, or what A is called with.
    """
    if fourier is None:
        return _Encoding(maps, pattern)
    S, P = _parts(maps, pattern)
    return Product(Product(P, fourier), S)


def conjugate_gradients(
    A: LinearOperator, b: Array, x: Tensor | None = None, *, damping: Tensor | float = 0.0, iterations: int
) -> Tensor:
    """Solve ``(AᴴA + λI) x = b`` by conjugate gradients from ``x``, zero by default.

    ``b`` (..., *A.domain); leading dimensions are independent systems. Differentiable. Always takes
    ``iterations`` steps; a system without a residual rests, so that ``b = 0`` gives 0.
    """
    b = as_tensor(b, "b")
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

    Taken from the zero-filled image, which is known when reconstructing: nothing leaks from the target. That
    of an image of zeros is 1: there may be k-space that no coil sees, which has to stay finite.
    """
    peak = image.abs().amax((-2, -1), keepdim=True)
    return torch.where(peak > 0, peak, 1.0)
