"""The centred two-dimensional Fourier transform with trainable Monarch factors."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import monarch_dense
from monarch_sciml.linalg import (
    FactoredTransform,
    SeparableTransform,
    centered_dft,
    fourier_factors,
)
from monarch_sciml.nn.inputs import integers

__all__ = ["LearnedFourier"]


class LearnedFourier(nn.Module):
    """A separable transform of images, ``X = W_y x W_xᵀ``, that starts as the centred orthonormal DFT.

    Each W is a Monarch matrix after a stride permutation: two factors of n = p·q, ``L`` (p, q, q) and ``R``
    (q, p, p), every entry a real parameter (trailing dimension 2). A prime n is one dense block. The adjoint
    is the conjugate transpose of the same factors; where a method wants an inverse that is trained apart,
    make a second module with ``inverse=True``.

    **Sizes.** The factors belong to the grid they were made for. There, ``W = G F`` with F the DFT and
    G = W Fᴴ what training made of k-space. On n′ points it is ``G′ F′``: F′ is the exact DFT of n′ points and
    G′ is G resampled: each diagonal of G − I, along which frequency runs, is stretched by n′/n. That keeps
    what is learned at a place in the field of view, and at a fraction of the highest frequency, where it was,
    as a sampling density is. So every size works, odd and prime too, and is exact at initialisation.

    Args:
        shape: (H, W), the grid the factors belong to.
        inverse: start as the inverse DFT: k-space to image.
        learned: False keeps the DFT: buffers in place of parameters.
    """

    def __init__(self, shape: tuple[int, int], *, inverse: bool = False, learned: bool = True):
        super().__init__()
        self.shape, self.inverse = integers("shape", *shape), inverse
        for axis, n in zip("yx", self.shape, strict=True):
            for name, factor in zip("LR", fourier_factors(n, n, -(n // 2), origin=n // 2), strict=True):
                real = torch.view_as_real(factor.conj().resolve_conj() if inverse else factor)
                real = real.to(torch.get_default_dtype()).contiguous()
                if learned:
                    self.register_parameter(f"{name}_{axis}", nn.Parameter(real))
                else:
                    self.register_buffer(f"{name}_{axis}", real)
        self.register_load_state_dict_pre_hook(_dense_as_saved)

    def forward(self, *_: Tensor) -> NoReturn:
        """Raises ``InputError``: the module makes operators, see ``operator``."""
        raise InputError(
            "transform.operator(x.shape), the transform as a linear operator",
            "a call of the module itself",
            "write transform.operator(x.shape)(x), and transform.operator(x.shape).H(X) for the adjoint",
        )

    def matrix(self, axis: str, size: int | None = None) -> Tensor:
        """W along axis "y" or "x" on ``size`` points, complex (size, size)."""
        L, R = self._factors(axis)
        p, q = L.shape[0], R.shape[0]
        n = p * q
        # columns (j2, j1) → (j1, j2): the stride permutation
        W = monarch_dense(L, R).unflatten(1, (q, p)).mT.flatten(1)
        if size is None or size == n:
            return W
        F, Fs = (centered_dft(m).to(W) for m in (n, size))
        # Fᴴ of the inverse is F itself; both are symmetric, so that a conjugate is an adjoint
        G = F @ W if self.inverse else W @ F.conj()
        G = _resample(G - torch.eye(n).to(G), size) + torch.eye(size).to(G)
        return Fs.conj() @ G if self.inverse else G @ Fs

    def _factors(self, axis: str) -> tuple[Tensor, Tensor]:
        L, R = (torch.view_as_complex(getattr(self, f"{name}_{axis}").contiguous()) for name in "LR")
        return L, R

    def operator(self, domain: tuple[int, ...]) -> SeparableTransform | FactoredTransform:
        """The transform as a linear operator on (..., H, W), any size.

        On its own grid by its factors, but as matrices on a GPU that records gradients.
        """
        *planes, H, W = domain
        if self.shape == (H, W) and (self.L_y.device.type == "cpu" or not torch.is_grad_enabled()):
            return FactoredTransform(self._factors("y"), self._factors("x"), tuple(planes))
        return SeparableTransform(self.matrix("y", H), self.matrix("x", W), tuple(planes))

    @torch.no_grad()
    def densify_(self) -> LearnedFourier:
        """Multiply the factors out, in place: from now on every entry of both W is trained on its own.

        A dense matrix is a Monarch matrix of one block: ``L`` (1, n, n), and ``R`` (n, 1, 1), all ones,
        becomes a buffer; W is trained if L or R was. Does nothing to a fixed or an already dense transform.
        """
        for axis in "yx":
            L, R = getattr(self, f"L_{axis}"), getattr(self, f"R_{axis}")
            if isinstance(R, nn.Parameter):
                W = torch.view_as_real(self.matrix(axis))[None].contiguous()
                trained = L.requires_grad or R.requires_grad
                setattr(self, f"L_{axis}", nn.Parameter(W, requires_grad=trained))
                delattr(self, f"R_{axis}")
                one = torch.tensor([1.0, 0.0]).to(W)
                self.register_buffer(f"R_{axis}", one.expand(W.shape[1], 1, 1, 2).contiguous())
        return self

    def departure(self) -> Tensor:
        """``‖W − F‖_F / ‖F‖_F``, root mean square over the axes: how far training has moved from the DFT."""
        return self._mean(lambda W, F: W - (F.conj() if self.inverse else F))

    def nonunitarity(self) -> Tensor:
        """``‖Wᴴ W − I‖_F / √n``, root mean square over the axes."""
        return self._mean(lambda W, F: W.mH @ W - torch.eye(len(W)).to(W))

    def _mean(self, difference) -> Tensor:
        parts = []
        for axis in "yx":
            W = self.matrix(axis)
            D = difference(W, centered_dft(len(W)).to(W))
            # a norm, not the root of a sum of squares: its gradient at zero, the start, is 0 and not NaN
            parts.append(torch.linalg.vector_norm(D) / (2 * len(W)) ** 0.5)
        return torch.linalg.vector_norm(torch.stack(parts))

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"shape={self.shape}, inverse={self.inverse}, learned={isinstance(self.L_y, nn.Parameter)}"


def _dense_as_saved(fourier: LearnedFourier, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A state that was saved dense makes the transform dense before it is loaded."""
    for axis, n in zip("yx", fourier.shape, strict=True):
        L, mine = state.get(f"{prefix}L_{axis}"), getattr(fourier, f"L_{axis}")
        if L is not None and L.shape != mine.shape and L.shape == (1, n, n, 2):
            fourier.densify_()


def _resample(D: Tensor, size: int) -> Tensor:
    """A k-space matrix on another grid: D[k, k′] moves on its diagonal, k − k′ fixed, (k + k′)/2 stretched.

    Linear interpolation along the diagonals; zero where they have no entry nearby.
    """
    n = len(D)
    k = torch.arange(size, device=D.device) - size // 2
    lag = k[:, None] - k
    row = (k[:, None] + k).double() * (n / size / 2) + lag / 2 + n // 2
    first, last = lag.clamp_min(0), n - 1 + lag.clamp_max(0)
    nearest = torch.minimum(torch.maximum(row, first), last)
    near = (first <= last) & ((row - nearest).abs() < 1)
    below = torch.where(near, nearest, 0).floor().long()
    above, weight = torch.minimum(below + 1, last).clamp_min(0), (nearest - below).to(D.real)
    lower, upper = (D[r, (r - lag).clamp(0, n - 1)] for r in (below, above))
    return torch.where(near, lower + weight * (upper - lower), 0)
