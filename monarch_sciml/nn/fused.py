"""An FNO's layers and perceptrons in one pass over memory each, on a CPU; elsewhere neuraloperator's own.

Imports neuraloperator, so that it is itself imported only where there is a model.
"""

from __future__ import annotations

from typing import Any

from neuralop.layers.channel_mlp import ChannelMLP
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.skip_connections import Flattened1dConv, SoftGating
from torch import Tensor, nn

from monarch_sciml.kernels import has_fast_pointwise_layer, pointwise_layer
from monarch_sciml.nn.pointwise import PointwiseConv, has_hooks, is_plain

__all__ = ["FusedBlocks", "FusedMLP", "use_fused_layers"]


Perceptron = tuple[Tensor, Tensor, Tensor, Tensor]


def _perceptron(mlp: nn.Module) -> Perceptron | None:
    """W1, b1, W2, b2 of a channel MLP of two plain layers with GELU between; None for anything else."""
    if not isinstance(mlp, ChannelMLP) or mlp.n_layers != 2 or mlp.dropout is not None:
        return None
    first, second = mlp.fcs
    if mlp.non_linearity is not nn.functional.gelu or not (_is_product(first) and _is_product(second)):
        return None
    W1, b1, W2, b2 = first.weight, first.bias, second.weight, second.bias
    return None if b1 is None or b2 is None else (W1.flatten(1), b1, W2.flatten(1), b2)  # pyright: ignore


def _is_product(module: nn.Module) -> bool:
    return isinstance(module, (PointwiseConv, nn.Conv1d)) and is_plain(module)


class FusedMLP(ChannelMLP):
    """``W2 gelu(W1 x + b1) + b2`` at every point, without arrays of the hidden width in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, …) → (B, C_out, …)."""
        width = max(self.hidden_channels, self.out_channels)
        parts = _perceptron(self) if has_fast_pointwise_layer(x, width) else None
        if parts is None or parts[0].dtype != x.dtype or x.shape[1] != self.in_channels:
            return super().forward(x)
        return pointwise_layer(x, None, None, *parts, None, activated=False)


class FusedBlocks(FNOBlocks):
    """``h = σ(K x + W x)``, ``y = σ(W2 gelu(W1 h + b1) + b2 + g ⊙ x)``: all but K in one pass.

    On a CPU in float32, on the grid of the input, and while the layers are what neuraloperator makes them by
    default; otherwise it is neuraloperator's. In the fused pass the parts are not called as modules, so a
    layer with hooks on one of them is neuraloperator's too: pruning and ``fully_shard`` work through hooks.
    """

    def forward(self, x: Tensor, index: int = 0, output_shape: Any = None) -> Tensor:
        """Layer ``index``: (B, C, …) → (B, C, …)."""
        conv = self.convs[index]
        same = output_shape is None and getattr(conv, "resolution_scaling_factor", None) is None
        parts = self._parts(index) if same and has_fast_pointwise_layer(x, self.out_channels) else None
        if parts is None or parts[0].dtype != x.dtype:
            return super().forward(x, index, output_shape)
        W, (W1, b1, W2, b2), g = parts
        return pointwise_layer(x, conv(x), W, W1, b1, W2, b2, g, activated=index < self.n_layers - 1)

    def _parts(self, index: int) -> tuple[Tensor, Perceptron, Tensor] | None:
        """W, the perceptron and g of a layer, if it has them and nothing else."""
        other = self.preactivation or self.norm is not None or self.stabilizer is not None
        if other or self.non_linearity is not nn.functional.gelu:
            return None
        if not (self.use_channel_mlp and self.fno_skips and self.channel_mlp_skips):
            return None
        skip, gate, mlp = self.fno_skips[index], self.channel_mlp_skips[index], self.channel_mlp[index]
        if has_hooks(skip, gate, mlp):
            return None
        perceptron = _perceptron(mlp)
        if not (isinstance(skip, Flattened1dConv) and isinstance(gate, SoftGating) and perceptron):
            return None
        if not _is_product(skip.conv) or skip.conv.bias is not None or gate.bias is not None:
            return None
        return skip.conv.weight.flatten(1), perceptron, gate.weight.flatten()


def use_fused_layers(model: nn.Module) -> nn.Module:
    """Run the layers and perceptrons of a neuraloperator FNO inside ``model`` in one pass each, on a CPU.

    In place: parameters, their names and, up to rounding, the output stay. Returns ``model``.
    """
    for module in model.modules():
        if type(module) is FNOBlocks:
            module.__class__ = FusedBlocks
        elif type(module) is ChannelMLP:
            module.__class__ = FusedMLP
    return model
