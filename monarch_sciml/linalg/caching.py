"""Matrices that are kept, as numbers: what somebody traces or exports is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from monarch_sciml.kernels.derivatives import only_torch

__all__ = ["kept", "traced"]

P = ParamSpec("P")


def traced() -> bool:
    """Whether tensors may be without numbers: torch compiles or exports, or vmap or its like is at work."""
    return torch.compiler.is_compiling() or only_torch() or _get_current_dispatch_mode() is not None


def kept(size: int) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """``lru_cache(size)`` for tensors. Whoever is given one must not modify it, and can train with it.

    While somebody traces, they are made anew: those tensors hold no numbers for anybody else.
    """

    def decorate(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
        make = torch.inference_mode(False)(make)  # what is made in one serves training too
        remember = lru_cache(size)(make)

        @wraps(make)
        def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            return (make if traced() else remember)(*args, **kwargs)

        return call

    return decorate
