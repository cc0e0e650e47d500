"""What people pass: arrays of NumPy where tensors are meant, and data for a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError

__all__ = ["Array", "as_tensor", "check_data", "strong_edges"]

Array = Tensor | np.ndarray
STRONG = 4.0  # times the energy in the middle: more than noise and wide objects ever have at the edges


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
    wanted, shapes = torch.promote_types(weights, torch.complex32), []  # to_complex, which compiles
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


def strong_edges(kspace: Tensor, measured: tuple[int, int] | None = None) -> list[str]:
    """Along which axes of k-space (C, H, W) the edges hold more than the middle, of the measured columns.

    Where they do, zero frequency is probably in the corner.
    """
    energy, found = torch.view_as_real(kspace).square().sum((0, -1)), []
    if measured is not None:
        energy[:, : measured[0]] = energy[:, measured[1] :] = 0
    for axis, name in enumerate(("rows", "columns")):
        n, profile = energy.shape[axis], energy.sum(1 - axis)
        width = -(-n // 8)
        middle = profile[n // 2 - width : n // 2 + width].sum()
        if n > 4 * width and profile[:width].sum() + profile[-width:].sum() > STRONG * middle:
            found.append(name)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
