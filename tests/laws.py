"""Laws shared by the tests: of every linear operator, and of every fast twin of a plain formula."""

from collections.abc import Callable

import torch
from torch import Tensor

from monarch_sciml.linalg import LinearOperator

__all__ = ["assert_adjoint", "assert_linear", "assert_same", "assert_unitary", "relative_error"]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ for tensors of equal shape; absolute when ``expected`` is zero."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} against {tuple(expected.shape)}"
    error, size = (found - expected).norm().item(), expected.norm().item()
    return error / size if size else error


def assert_adjoint(A: LinearOperator, *, dtype: torch.dtype = torch.complex128, tol: float = 1e-12) -> None:
    """The dot test: ⟨A x, y⟩ = ⟨x, Aᴴ y⟩ for random x and y, and Aᴴᴴ acts like A."""
    assert A.H.shape == A.shape[::-1]
    assert (A.H.domain, A.H.codomain) == (A.codomain, A.domain)
    x, y = torch.randn(A.domain, dtype=dtype), torch.randn(A.codomain, dtype=dtype)
    left, right = torch.sum(y.conj() * (A @ x)), torch.sum((A.H @ y).conj() * x)
    scale = x.norm() * y.norm()
    assert ((left - right).abs() <= tol * scale).all(), f"{left} against {right}"
    assert relative_error(A.H.H @ x, A @ x) <= tol


def assert_linear(A: LinearOperator, *, dtype: torch.dtype = torch.complex128, tol: float = 1e-12) -> None:
    """A(αx + y) = α A(x) + A(y), for several vectors at once."""
    x, y = torch.randn(2, 3, 5, *A.domain, dtype=dtype)
    assert relative_error(A(0.7 * x + y), 0.7 * A(x) + A(y)) <= tol


def assert_unitary(A: LinearOperator, *, dtype: torch.dtype = torch.complex128, tol: float = 1e-12) -> None:
    """Aᴴ A = A Aᴴ = identity, on random vectors."""
    x = torch.randn(3, *A.domain, dtype=dtype)
    assert relative_error(A.H(A(x)), x) <= tol
    assert relative_error(A(A.H(x)), x) <= tol


def assert_same(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, tol: float
) -> dict[str, float]:
    """Two callables agree in value and in the gradient of every input, for a random upstream gradient.

    Returns the relative errors, "value" first, so that a test can look at them.
    """
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    outputs = [f(*inputs) for f in (fast, plain)]
    upstream = torch.randn_like(outputs[1])
    found, expected = (torch.autograd.grad(y, inputs, upstream.to(y.dtype)) for y in outputs)
    errors = {"value": relative_error(outputs[0].detach(), outputs[1].detach())}
    errors |= {
        f"gradient {i}": relative_error(g, e) for i, (g, e) in enumerate(zip(found, expected, strict=True))
    }
    assert max(errors.values()) <= tol, errors
    return errors
