"""Linear operators that compose like the formulas they stand for."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from numbers import Number
from typing import Any, Self, overload

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors

__all__ = ["LinearOperator", "Product", "Scaled", "Sum", "check_last"]


class LinearOperator(ABC):
    """A linear map with ``@``, ``+``, ``-``, scalar ``*``, ``.H``, ``.to_dense()`` and ``.to(device)``.

    ``A(x)`` acts on the last dimensions of ``x`` (..., *domain) and returns (..., *codomain). For most
    operators these are vectors, domain (n,) and codomain (m,); images have domains like (H, W).

    ``A @ x`` follows ``torch.matmul`` between vectors: (n,) gives (m,), a matrix (..., n, c) gives
    (..., m, c); for other domains it is ``A(x)``. ``A @ B`` is the operator that applies B first.
    ``torch.compile`` knows ``@`` of tensors only: there write ``A(x)`` and ``Product(A, B)``.
    """

    domain: tuple[int, ...]
    """The last dimensions of what the operator takes."""
    codomain: tuple[int, ...]
    """The last dimensions of what it returns."""
    __array_ufunc__ = None  # NumPy is not to take an operator for a number and multiply its entries with it

    def __init__(self, codomain: Iterable[int], domain: Iterable[int]):
        self.codomain, self.domain = tuple(codomain), tuple(domain)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): rows and columns."""
        return math.prod(self.codomain), math.prod(self.domain)

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last dimensions: (..., *domain) → (..., *codomain)."""

    @property
    @abstractmethod
    def H(self) -> LinearOperator:
        """The adjoint: ⟨A x, y⟩ = ⟨x, A.H y⟩ for all x, y."""

    @property
    def gram(self) -> LinearOperator:
        """``AᴴA``, which an operator may know a shorter way to."""
        return Product(self.H, self)

    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: LinearOperator | Tensor) -> LinearOperator | Tensor:
        if isinstance(other, LinearOperator):
            return Product(self, other)
        if not isinstance(other, Tensor):
            raise InputError(
                "a tensor or an operator on the right", type(other).__name__, "convert with torch.as_tensor"
            )
        vectors, dims = len(self.domain) == 1, tuple(other.shape)
        _check_right(self, (dims[-2:-1] or dims) if vectors else dims[-len(self.domain) :], dims)
        if not vectors:
            return self(other)
        if other.ndim == 1:  # as one row: a batch of matrices gives a batch of results
            return self(other[None]).squeeze(-2)
        return self(other.mT).mT

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __mul__(self, scalar: complex | Tensor) -> LinearOperator:
        return Scaled(scalar, self)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return -1 * self

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + -other

    def to(self, device: torch.device | str) -> Self:
        """The same operator with all that it holds on ``device``."""
        moved = copy.copy(self)
        vars(moved).update({name: _moved(value, device) for name, value in vars(self).items()})
        return moved

    @property
    def device(self) -> torch.device | None:
        """Where its numbers are; None for an operator that holds none and works anywhere."""
        return _device(tuple(vars(self).values()))

    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix (m, n), by applying the operator to the identity: O(n²) memory and n applications."""
        columns = torch.eye(self.shape[1], dtype=dtype, device=self.device).unflatten(1, self.domain)
        return self(columns).flatten(-len(self.codomain)).mT

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"


class Product(LinearOperator):
    """``A B``: what ``A @ B`` makes. Raises ``InputError`` when A does not take what B returns."""

    def __init__(self, A: LinearOperator, B: LinearOperator):
        _check_right(A, B.codomain, B.shape)
        super().__init__(A.codomain, B.domain)
        self.A, self.B = A, B

    def __call__(self, x: Tensor) -> Tensor:
        """B first, then A."""
        return self.A(self.B(x))

    @property
    def H(self) -> LinearOperator:
        """``Bᴴ Aᴴ``."""
        return Product(self.B.H, self.A.H)

    def __repr__(self) -> str:
        return f"{self.A!r} @ {self.B!r}"


class Sum(LinearOperator):
    """``A + B``."""

    def __init__(self, A: LinearOperator, B: LinearOperator):
        if not isinstance(B, LinearOperator):
            raise InputError("an operator to add", type(B).__name__, "add A.to_dense() to a matrix")
        if (A.domain, A.codomain) != (B.domain, B.codomain):
            raise InputError(
                f"operators of equal shape {A.codomain} × {A.domain}",
                f"{B.codomain} × {B.domain}",
                "only those can be added",
            )
        super().__init__(A.codomain, A.domain)
        self.A, self.B = A, B

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of both results."""
        return self.A(x) + self.B(x)

    @property
    def H(self) -> LinearOperator:
        """``Aᴴ + Bᴴ``."""
        return self.A.H + self.B.H


class Scaled(LinearOperator):
    """``scalar · A``, with a number or a tensor of no dimension, which may be learned."""

    def __init__(self, scalar: complex | Tensor, A: LinearOperator):
        if not isinstance(scalar, Number) and not (isinstance(scalar, Tensor) and not scalar.ndim):
            raise InputError("one number to multiply with", type(scalar).__name__, "operators multiply by @")
        super().__init__(A.codomain, A.domain)
        self.scalar, self.A = scalar, A

    def __call__(self, x: Tensor) -> Tensor:
        """The scaled result."""
        return self.scalar * self.A(x)

    @property
    def H(self) -> LinearOperator:
        """The adjoint, times the conjugate scalar."""
        scalar = self.scalar
        return (scalar.conj() if isinstance(scalar, Tensor) else scalar.conjugate()) * self.A.H


def _check_right(A: LinearOperator, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Whether A can be multiplied with what has the domain ``found`` and, between vectors, that ``shape``."""
    if found != A.domain:
        vectors = len(A.domain) == 1
        rows = f"{A.domain[0]} rows" if vectors else f"{A.domain}"
        raise InputError(
            f"{rows} on the right of an operator of shape {A.shape}",
            f"shape {shape if vectors else found}",
            "check the order of the product; to act on a last dimension call A(x)",
        )


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor | LinearOperator) else value


def _device(value: Any) -> torch.device | None:
    if isinstance(value, tuple):
        return next(filter(None, map(_device, value)), None)
    return value.device if isinstance(value, Tensor | LinearOperator) else None


def check_last(x: Tensor, n: int) -> None:
    """Raises ``InputError`` unless x is a tensor (..., n)."""
    check_tensors(x)
    if x.shape[-1:] != (n,):
        raise InputError(f"a last dimension of {n}", f"x {tuple(x.shape)}", "move that axis to the end")
