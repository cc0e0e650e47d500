"""Arrays of NumPy where tensors are meant: what files are read as, and what people pass."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["Array", "as_tensor"]

Array = Tensor | np.ndarray


def as_tensor(values: Array, what: str) -> Tensor:
    """A tensor as it is; an array as a tensor, on the same memory where torch allows it.

    Raises:
        InputError: no numbers; ``what`` says of what.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        backwards = any(step < 0 for step in array.strides)
        return torch.from_numpy(array if array.flags.writeable and not backwards else array.copy())
    except (TypeError, ValueError, RuntimeError):
        found = f"{type(values).__name__} {getattr(values, 'dtype', '')}"
        raise InputError(f"{what} as a tensor or an array of numbers", found, "convert it") from None
