"""What people pass: arrays of NumPy where tensors are meant, data for a network, words among settings."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError

__all__ = ["Array", "as_tensor", "check_choices", "check_data"]

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


def check_data(network: nn.Module, kspace: Tensor, maps: Tensor) -> None:
    """Whether a network can take k-space (B, C, H, W), and maps for all of its slices or for each.

    Raises:
        InputError: other shapes, arrays of NumPy, another precision than that of the weights, or weights
            that no Fourier transform is computed with.
    """
    weights = next(network.parameters()).dtype
    if weights not in (torch.float32, torch.float64):
        remedy = "convert the network: .float(); to save time, run it under torch.autocast"
        raise InputError("weights of float32 or float64", _name(weights), remedy)
    wanted, shapes = weights.to_complex(), []
    for data in (kspace, maps):
        if not isinstance(data, Tensor):
            raise InputError("k-space and maps as tensors", type(data).__name__, "pass torch.from_numpy(…)")
        if data.dtype != wanted:
            expected, remedy = f"{_name(wanted)}, as the weights", f"convert k-space and maps: .to({wanted})"
            raise InputError(f"k-space and maps of {expected}", _name(data.dtype), remedy)
        shapes.append(tuple(data.shape))
    if {len(shape) for shape in shapes} != {4} or maps.shape[0] not in (1, kspace.shape[0]):
        expected = "k-space (batch, coils, H, W), and maps of the same batch or of one slice for all"
        remedy = "keep the axis of the batch for a single slice: kspace[None]"
        raise InputError(expected, f"{shapes[0]} and {shapes[1]}", remedy)


def check_choices(config: Any) -> None:
    """Refuse a word that is none of those its field of a dataclass may hold: Python lets anything in.

    Raises:
        InputError: the field, its words, and the one found.
    """
    for name, kind in get_type_hints(type(config)).items():
        parts = (part for part in (kind, *get_args(kind)) if get_origin(part) is Literal)
        words = [word for part in parts for word in get_args(part)]
        value = getattr(config, name)
        if words and isinstance(value, str) and value not in words:
            raise InputError(f"{name} out of {', '.join(words)}", repr(value), "choose one")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
