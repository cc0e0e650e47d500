"""1 × 1 convolutions as the matrix products they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from monarch_sciml.errors import InputError
from monarch_sciml.nn.inputs import check_dtype

__all__ = ["PointwiseConv", "has_hooks", "is_plain", "use_pointwise_products"]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class PointwiseConv(nn.Module):
    """``y[b, o, …] = Σ_i W[o, i] x[b, i, …] + bias[o]``: a 1 × 1 convolution, with its parameters.

    On a CPU it runs as one batched product, which is about twice as quick there, forward and backward, as the
    general convolution; elsewhere as that. (B, C_in, …) → (B, C_out, …), or, with as many axes beside the
    channels as ``conv`` has, both without the batch axis.

    Raises:
        InputError: an input of other channels or of another dtype.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, …) → (B, C_out, …)."""
        if x.ndim == self.weight.ndim - 1:  # without a batch axis, as torch's convolutions take it too
            return self.forward(x[None])[0]
        W = self.weight.flatten(1)
        if x.ndim < 3 or x.shape[1] != W.shape[1]:
            raise InputError(
                f"an input (batch, {W.shape[1]}, …) of {W.shape[1]} channels",
                f"shape {tuple(x.shape)}",
                "channels are the second axis; an FNO adds one for each coordinate, and flattens the grid",
            )
        check_dtype(x, W.dtype)
        each = W.expand(x.shape[0], -1, -1)  # len(x) would export this one batch size only
        if x.device.type != "cpu":
            y = nn.functional.conv1d(x.flatten(2), W.unsqueeze(-1), self.bias)
        elif self.bias is None:
            y = torch.bmm(each, x.flatten(2))
        else:
            y = torch.baddbmm(self.bias[:, None], each, x.flatten(2))
        return y.unflatten(2, x.shape[2:])


FORWARDS = (PointwiseConv.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def use_pointwise_products(model: nn.Module) -> nn.Module:
    """Exchange every 1 × 1 convolution inside ``model`` for a ``PointwiseConv`` with the same parameters.

    Names and values of the state stay as they are; so does the output, up to rounding. Convolutions that do
    more stay too: with hooks, a computed weight (weight_norm) or a ``forward`` of their own. Returns
    ``model``.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and _is_replaceable(child):
                setattr(parent, name, PointwiseConv(child))
    return model


def _is_replaceable(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    computed = conv._parameters.get("weight") is None  # by a parametrization, whose parameters would be lost
    return _is_pointwise(conv) and is_plain(conv) and not computed and not is_parametrized(conv)


def _is_pointwise(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> bool:
    plain = conv.groups == 1 and set(conv.kernel_size) == set(conv.stride) == {1}
    return plain and set(conv.padding) == {0}


def is_plain(conv: nn.Module) -> bool:
    """Whether a call of it is the convolution with its weight and bias, and nothing else happens then.

    More does where there are hooks: pruning, ``weight_norm``, ``fully_shard``, an observer.
    """
    return type(conv).forward in FORWARDS and not has_hooks(conv)


def has_hooks(*modules: nn.Module) -> bool:
    """Whether more happens when they are called."""
    return any(getattr(module, kind) for module in modules for kind in HOOKS)
