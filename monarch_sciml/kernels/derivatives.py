"""Derivatives that kernels do not know and torch's operations do: of second order, forward, of functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["again", "in_torch", "only_torch"]


def only_torch() -> bool:
    """Whether torch.func or forward derivatives are at work, which follow the operations of torch alone."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# asked when a function is traced, not whenever the compiled one is called
only_torch._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def again() -> bool:
    """Whether the backward pass that asks is differentiated itself."""
    return torch.is_grad_enabled() or only_torch()


def in_torch(
    function: Callable[..., Tensor], operands: Sequence[Tensor | None], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function`` at ``operands`` where there are ``needs``, given that of its result.

    Somebody who differentiates twice can differentiate them again. One operand may be computed from another,
    as in a layer used twice: aliases of them are differentiated, so that nothing behind them counts twice.
    """
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if t is None else t.view_as(t) for t in operands]
        wanted = [t for t, need in zip(aliases, needs, strict=True) if need and t is not None]
        # zeros for operands that a result of no entries was not made of
        grads = torch.autograd.grad(
            function(*aliases), wanted, grad, create_graph=twice, materialize_grads=True
        )
    found = iter(grads)
    return [next(found) if need else None for need in needs]
