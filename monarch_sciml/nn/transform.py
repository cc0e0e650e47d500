"""A truncated Fourier transform whose entries can be trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import transform_planes
from monarch_sciml.linalg import fourier_factors, interpolation
from monarch_sciml.nn.inputs import integers

__all__ = ["LearnedTransform"]


class LearnedTransform(nn.Module):
    """A matrix W (n_modes × n) with ``W x ≈ DFT(x)`` on the modes first … first + n_modes − 1.

    W is a rectangular Monarch matrix after a stride permutation: two factors, ``L`` (p, S, q) and ``R``
    (q, p, p), with n = p·q and S = ⌈n_modes/p⌉, about 2·n·√n numbers. It starts as the exact DFT, scaled
    by ``scale``, and every entry of the factors is a real parameter (trailing dimension 2). The layer
    multiplies the factors out to a matrix, which costs one multiply per entry, nothing beside the batch.

    The transform belongs to the grid size n. On n′ points it is W composed with the trigonometric
    interpolation from n′ to n points, exact for band-limited input; at initialisation that is the DFT of
    size n′ itself.

    A call gives W and does not apply it: ``W = torch.complex(*transform())``, then ``x.to(W.dtype) @ W.mT``.

    Args:
        n: points of the periodic grid it is defined on.
        n_modes: number of frequencies, 1 ≤ n_modes ≤ n.
        first: lowest frequency; default −(n_modes // 2).
        scale: constant factor of the initial transform, relative to the orthonormal DFT. It stays outside
            the parameters, so that their size, and with it a fair learning rate, does not depend on the norm.
        hermitian: the modes are the half spectrum 0 … n/2 of real data: in synthesis each also stands for
            its partner −k, so ``adjoint`` counts it twice, but 0 and half the grid size once.
        learned: False keeps the exact DFT: buffers instead of parameters.

    Raises:
        InputError: unless 1 ≤ n_modes ≤ n; data in the place of a grid size.
    """

    def __init__(
        self,
        n: int,
        n_modes: int,
        first: int | None = None,
        *,
        scale: float = 1.0,
        hermitian: bool = False,
        learned: bool = True,
    ):
        super().__init__()
        first = -(n_modes // 2) if first is None else first
        self.n, self.n_modes, self.first = integers("n, n_modes and first", n, n_modes, first)
        self.scale, self.hermitian = scale, hermitian
        L, R = self._fourier(torch.get_default_dtype())
        if learned:
            self.L, self.R = nn.Parameter(L), nn.Parameter(R)
        else:
            self.register_buffer("L", L)
            self.register_buffer("R", R)
        self.register_load_state_dict_pre_hook(_dense_as_saved)

    def _fourier(self, dtype: torch.dtype) -> list[Tensor]:
        """The factors of the DFT."""
        factors = fourier_factors(self.n, self.n_modes, self.first)
        return [torch.view_as_real(factor).to(dtype).contiguous() for factor in factors]

    @torch.no_grad()
    def is_fourier(self) -> bool:
        """Whether W is the DFT to the last bit: before any training, also if the factors are fixed or loaded.

        Costs O(n^{3/2}), less than any use of W.
        """
        L, R = self._fourier(self.L.dtype)
        return torch.equal(self.L.cpu(), L) and torch.equal(self.R.cpu(), R)

    def forward(self, size: int | None = None) -> Tensor:
        """W on a grid of ``size`` points (default n): its real and imaginary planes (2, n_modes, size)."""
        if isinstance(size, Tensor | np.ndarray) and size.ndim:
            raise InputError(
                "a number of grid points, or nothing: a call gives the matrix W",
                f"data of shape {tuple(size.shape)}",
                "apply it by W = torch.complex(*transform()), then x.to(W.dtype) @ W.mT",
            )
        W = transform_planes(self.L, self.R, self.n_modes, scale=self.scale)
        if size is None or size == self.n:
            return W
        T = interpolation(size, self.n)
        if self.first >= 0:  # the half spectrum holds the positive frequency of the pair ±r/2
            T = T.conj()
        Tr, Ti = T.real.to(W), T.imag.to(W)
        return torch.stack((W[0] @ Tr - W[1] @ Ti, W[0] @ Ti + W[1] @ Tr))

    def adjoint(self, size: int | None = None) -> Tensor:
        """The planes of Wᴴ (2, size, n_modes), scaled so that it synthesises on ``size`` points."""
        size = self.n if size is None else size
        if size == self.n and (self.first == 0 or not self.hermitian):
            last = 2 * (self.n_modes - 1) == self.n  # half the grid size: it has no partner
            twice = (self.n_modes - last) * self.hermitian
            return transform_planes(self.L, self.R, self.n_modes, scale=self.scale, twice=twice, adjoint=True)
        W = self(size) * (size / self.n)
        if self.hermitian:
            k = torch.arange(self.first, self.first + self.n_modes, device=W.device)
            W = W * (1 + ((k != 0) & (2 * k != size)))[:, None]
        return torch.stack((W[0].mT, -W[1].mT))

    @torch.no_grad()
    def densify_(self) -> LearnedTransform:
        """Multiply the factors out, in place: from now on every entry of W is trained on its own.

        A dense matrix is a Monarch matrix of one block: ``L`` (1, n_modes, n), and ``R`` (n, 1, 1), all ones,
        becomes a buffer. W stays as it was, and the names in the state too; it is trained if L or R was. Does
        nothing to a fixed or an already dense transform.
        """
        if isinstance(self.R, nn.Parameter):
            W = self() / self.scale
            trained = self.L.requires_grad or self.R.requires_grad
            self.L = nn.Parameter(W.movedim(0, -1)[None].contiguous(), requires_grad=trained)
            del self.R
            one = torch.tensor([1.0, 0.0]).to(W)
            self.register_buffer("R", one.expand(self.n, 1, 1, 2).contiguous())
        return self

    @torch.no_grad()
    def start_from_(self, W: Tensor) -> LearnedTransform:
        """Become ``W``, complex (n_modes, n), in place: dense, and to be trained on from there.

        For what no Monarch matrix near the DFT holds, such as Fourier series on points at unequal distances.
        The synthesis of a layer takes the adjoint of the matrix it is to be. On another number of points W is
        still composed with the interpolation between equidistant ones.

        Raises:
            InputError: another shape, numbers that are not finite, or a transform that is fixed.
        """
        expected = f"a finite matrix ({self.n_modes}, {self.n})"
        if not isinstance(W, Tensor) or W.shape != (self.n_modes, self.n):
            found = f"{tuple(W.shape)}" if isinstance(W, Tensor) else type(W).__name__
            raise InputError(expected, found, "pass a tensor, a row for each mode, a column for each point")
        if not W.isfinite().all():
            raise InputError(expected, "NaN or infinity", "check the points")
        if not isinstance(self.L, nn.Parameter):
            raise InputError("a transform that learns", "a fixed one", "make the layer with learned=True")
        self.densify_()
        self.L.copy_(torch.view_as_real(W.to(self.L.dtype.to_complex()) / self.scale)[None])
        return self

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        last = self.first + self.n_modes - 1
        kind = "learned" if isinstance(self.L, nn.Parameter) else "fixed"
        factors = f"{tuple(self.L.shape)} {tuple(self.R.shape)}"
        return f"n={self.n}, modes {self.first}…{last}, {kind}, factors {factors}"


def _dense_as_saved(transform: LearnedTransform, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A state that was saved dense makes the transform dense before it is loaded."""
    L = state.get(f"{prefix}L")
    if L is not None and L.shape != transform.L.shape and L.shape == (1, transform.n_modes, transform.n, 2):
        transform.densify_()
