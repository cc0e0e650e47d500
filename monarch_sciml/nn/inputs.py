"""What layers ask of their input, and of how they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import index
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors

__all__ = ["check_dtype", "integers", "needs_grid"]

P = ParamSpec("P")
S = TypeVar("S")


def check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    """Refuse an input that is not of the weights' ``dtype``, as torch's own layers do; autocast converts.

    Raises ``InputError``.
    """
    check_tensors(x)
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


def integers(name: str, *values: Any) -> tuple[int, ...]:
    """``values`` as Python's own integers: those of NumPy are arrays to torch.compile.

    Raises ``InputError`` for fractions and whatever else is no number to count with.
    """
    try:
        return tuple(map(index, values))
    except TypeError:
        raise InputError(f"whole numbers for {name}", str(values), "convert them with int") from None


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
