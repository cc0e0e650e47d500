"""What layers ask of their input, and of how they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["check_dtype", "needs_grid"]

P = ParamSpec("P")
S = TypeVar("S")


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Refuse an input that is not of the weights' ``dtype``, as torch's own layers do; autocast converts.

    Raises ``InputError``.
    """
    if x.dtype == dtype:
        return
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return
    name = str(dtype).removeprefix("torch.")
    raise InputError(
        f"an input in {name}, the dtype of the weights",
        f"{str(x.dtype).removeprefix('torch.')}",
        f"convert one of them, such as x.to(torch.{name}), or train under torch.autocast",
    )


def needs_grid(constructor: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Say what to pass where neuraloperator is given the layer itself, which it builds without ``grid``."""

    @wraps(constructor)
    def checked(self: S, *args: P.args, **options: P.kwargs) -> None:
        if "grid" not in options:
            raise InputError(
                "grid=, the points per axis that the transforms are defined on",
                "none",
                "pass it; in neuraloperator's FNO use conv_module=MonarchSpectralConv.on_grid((64, 64))",
            )
        constructor(self, *args, **options)

    return checked
