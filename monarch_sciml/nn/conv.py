"""A convolution whose weight is a Monarch matrix: a grouped convolution, then grouped products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import project
from monarch_sciml.nn.inputs import check_dtype, integers
from monarch_sciml.nn.linear import draw_orthogonal

__all__ = ["MonarchConv"]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class MonarchConv(nn.Module):
    """``y = M ⋆ x + b``: the weight of a convolution, a matrix from patches to channels, made Monarch.

    ``M[(j,ℓ),(k,i),δ] = Σ_t L[j,ℓ,(k,t)] R[k,(j,t),i,δ]`` with n = ``nblocks`` blocks in either factor and δ
    the offset in the kernel. R is a convolution in n groups, L one of 1 × 1 in n groups, and the order of the
    channels between them mixes the groups: what ShuffleNet (Zhang et al., CVPR 2018) is built of, here with
    the rank that makes it a Monarch matrix of Dao et al. (ICML 2022).

    Parameters: ``R`` (n, q, C_in/n, *kernel), ``L`` (n, C_out/n, q), ``bias`` (C_out,), with q the smaller
    side of a tile, C_out/n or C_in/n times the kernel, rounded up to a multiple of n. For as many channels
    out as in they are (1 + 1/|kernel|)/n of the dense weight.

    Args:
        conv: the dense convolution whose settings (and, in ``from_conv``, weights) are taken.
        nblocks: number of blocks n; it divides both channel counts.

    Shapes:
        x (B, C_in, …) → (B, C_out, …), as ``conv`` has them, or both without the batch axis.

    Outputs start with the mean and variance they have in a fresh convolution of torch.

    Raises:
        InputError: channel counts that n does not divide, a grouped convolution, or padding other than zeros.
    """

    def __init__(self, conv: Conv, nblocks: int = 4):
        super().__init__()
        *channels, nblocks = integers("the sizes", conv.in_channels, conv.out_channels, nblocks)
        if nblocks < 1 or any(c % nblocks for c in channels):
            raise InputError(
                f"a number of blocks that divides {channels[0]} and {channels[1]} channels",
                f"nblocks={nblocks}",
                "choose a common divisor",
            )
        if conv.groups != 1 or conv.padding_mode != "zeros":
            raise InputError(
                "a convolution in one group, padded with zeros",
                f"groups={conv.groups}, padding_mode={conv.padding_mode!r}",
                "leave this layer as it is",
            )
        self.nblocks = nblocks
        self.in_channels, self.out_channels = channels
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        I, S = (c // nblocks for c in channels)
        self.kernel_size = tuple(conv.kernel_size)
        patch = I * conv.weight[0, 0].numel()
        q = -(-min(patch, S) // nblocks) * nblocks
        self.R = nn.Parameter(conv.weight.new_empty(nblocks, q, I, *self.kernel_size))
        self.L = nn.Parameter(conv.weight.new_empty(nblocks, S, q))
        self.bias = None if conv.bias is None else nn.Parameter(torch.empty_like(conv.bias))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors anew, as ``MonarchLinear`` does: each scales the variance by 1/√3."""
        for factor in (self.L, self.R):
            draw_orthogonal(factor, factor[0, 0].numel())
        if self.bias is not None:
            fan_in = self.R[0, 0].numel() * self.nblocks
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    @torch.no_grad()
    def reset_parameters_like(self, weight: Tensor) -> None:
        """Draw the factors anew with the mean square of ``weight`` for that of their product."""
        self.reset_parameters()
        fan_in = self.R[0, 0].numel() * self.nblocks
        ratio = (3 * fan_in * weight.float().square().mean().item()) ** 0.5
        self.L *= ratio**0.5
        self.R *= ratio**0.5 or 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, …) → (B, C_out, …)."""
        if x.ndim == len(self.kernel_size) + 1:  # without a batch axis, as torch's convolutions take it too
            return self.forward(x[None])[0]
        check_dtype(x, self.L.dtype)
        n = self.nblocks
        convolve = _FUNCTIONS[len(self.kernel_size)]
        z = convolve(
            x, self.R.flatten(0, 1), None, self.stride, self.padding, self.dilation, n
        )  # channels (k, j, t)
        z = z.unflatten(1, (n, n, -1)).transpose(1, 2).flatten(1, 3)
        W = self.L.flatten(0, 1)
        return convolve(z, W[(...,) + (None,) * len(self.kernel_size)], self.bias, 1, 0, 1, n)

    @property
    def weight(self) -> Tensor:
        """The weight of the dense convolution, (C_out, C_in, *kernel), multiplied out at each access."""
        n = self.nblocks
        L, R = self.L.unflatten(2, (n, -1)), self.R.unflatten(1, (n, -1))
        return torch.einsum("jlkt,kjti...->jlki...", L, R).flatten(2, 3).flatten(0, 1)

    def to_conv(self) -> Conv:
        """The dense convolution of the same map."""
        kind = _KINDS[len(self.kernel_size)]
        conv = kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            bias=self.bias is not None,
            device=self.L.device,
            dtype=self.L.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv

    @classmethod
    def from_conv(cls, conv: Conv, nblocks: int = 4) -> MonarchConv:
        """The layer whose weight is nearest to that of ``conv`` in the Frobenius norm, ``linalg.project``."""
        layer = cls(conv, nblocks)
        (n, S, q), weight = layer.L.shape, conv.weight.detach()
        # rows (j,ℓ) → (ℓ,j), columns (k, (i, δ))
        A = weight.flatten(1).unflatten(0, (n, S)).transpose(0, 1).flatten(0, 1)
        M = project(A.to(torch.promote_types(A.dtype, torch.float32)), (n, n), rank=q // n)
        with torch.no_grad():
            layer.L.copy_(M.L)
            layer.R.copy_(M.R.view_as(layer.R))
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias)
        return layer

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"nblocks={self.nblocks}, bias={self.bias is not None}"
        )


_FUNCTIONS = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
_KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
