"""Linear layers whose weight is a Monarch matrix, or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors, monarch_dense, monarch_multiply
from monarch_sciml.linalg import project
from monarch_sciml.nn.inputs import check_dtype, integers
from monarch_sciml.nn.pointwise import PointwiseConv

__all__ = ["MonarchLinear", "MonarchPointwise", "StackedLinear"]


class MonarchLinear(nn.Module):
    """``y = M x + b`` with a Monarch matrix of few blocks in place of the weight of ``nn.Linear``.

    ``M[(j,ℓ),(k,i)] = Σ_t L[j,ℓ,(k,t)] R[k,(j,t),i]`` with n = ``nblocks`` blocks in either factor: cut into
    n × n tiles, M has tiles of rank q/n, with q the smaller side of a tile rounded up to a multiple of n. It
    is the layer of Dao et al. (ICML 2022, arXiv 2204.00595), but for the order of the outputs, which is the
    one L's blocks produce them in: a permutation would be one more pass over memory, and whatever follows can
    learn to do without.

    Parameters: ``R`` (n, q, ⌈in/n⌉), ``L`` (n, ⌈out/n⌉, q), ``bias`` (out,). Without bias they are q·(in +
    out) numbers, in whole blocks, and that many multiply-adds a row, where a dense weight has in·out. Sizes
    that n does not divide are rounded up: the input is padded with zeros, the output cropped, each a copy.

    Args:
        in_features, out_features: sizes of the last dimension of input and output.
        nblocks: number of blocks n. One block is a product of two dense matrices, without loss.
        bias: whether to add a trainable constant to each output.
        device, dtype: of the parameters.

    Shapes:
        x (..., in_features) → (..., out_features), in the dtype of the parameters, as ``nn.Linear``; under
        autocast x is converted.

    Outputs start with the mean and variance they have in ``nn.Linear``, 1/3 of that of the input. Blocks
    start orthogonal, up to scale: the singular values of a product of independent entries spread more than
    those of a dense matrix, and training is slower for it (Saxe et al., arXiv 1312.6120).

    Raises:
        InputError: sizes below one, or an input of another size or dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = integers("the sizes", in_features, out_features, nblocks)
        in_features, out_features, nblocks = sizes
        if min(sizes) < 1:
            raise InputError(
                "at least one feature and one block",
                f"in_features={in_features}, out_features={out_features}, nblocks={nblocks}",
                "pass positive numbers",
            )
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        I, S = -(-in_features // nblocks), -(-out_features // nblocks)
        q = -(-min(I, S) // nblocks) * nblocks
        self.L = nn.Parameter(torch.empty(nblocks, S, q, device=device, dtype=dtype))
        self.R = nn.Parameter(torch.empty(nblocks, q, I, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthogonal blocks anew, so that each factor scales the variance by 1/√3.

        Together that is the 1/3 of ``nn.Linear``, whose weights are uniform in ±1/√in. A row of L meets q
        numbers; one of R in/nblocks on average, of all its blocks, for padding adds none.
        """
        draw_orthogonal(self.L, self.L.shape[2])
        draw_orthogonal(self.R, self.in_features / self.nblocks)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(self.in_features**-0.5), self.in_features**-0.5)

    @torch.no_grad()
    def reset_parameters_like(self, weight: Tensor) -> None:
        """Draw the factors anew with the mean square of ``weight`` (out, in) for that of their product.

        For zeros L is zero and R is not: the output is zero, and still there is a gradient.
        """
        self.reset_parameters()
        ratio = (3 * self.in_features * weight.float().square().mean().item()) ** 0.5  # to that of nn.Linear
        self.L *= ratio**0.5
        self.R *= ratio**0.5 or 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        if x.shape[-1:] != (self.in_features,):
            raise InputError(
                f"a last dimension of {self.in_features}", f"x {tuple(x.shape)}", "check in_features"
            )
        check_dtype(x, self.L.dtype)
        padding = self.nblocks * self.R.shape[2] - self.in_features
        if padding:
            x = F.pad(x, (0, padding))
        y = monarch_multiply(x, self.L, self.R, blocks=True)[..., : self.out_features]
        return y if self.bias is None else y + self.bias.to(y.dtype)  # y is of lower precision in autocast

    def to_linear(self) -> nn.Linear:
        """The dense layer of the same map."""
        has_bias = self.bias is not None
        linear = nn.Linear(
            self.in_features, self.out_features, has_bias, device=self.L.device, dtype=self.L.dtype
        )
        with torch.no_grad():
            M = monarch_dense(self.L, self.R).unflatten(0, (-1, self.nblocks)).transpose(0, 1).flatten(0, 1)
            linear.weight.copy_(M[: self.out_features, : self.in_features])
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    @classmethod
    def from_linear(cls, linear: nn.Linear, nblocks: int = 4) -> MonarchLinear:
        """The layer whose weight is nearest to that of ``linear`` in the Frobenius norm.

        Each tile becomes its truncated singular value decomposition, see ``linalg.project``. A weight of
        float16 or bfloat16 is decomposed in float32.
        """
        weight = linear.weight.detach()
        has_bias = linear.bias is not None
        sizes = linear.in_features, linear.out_features, nblocks, has_bias
        layer: Any = skip_init(cls, *sizes, device=weight.device, dtype=weight.dtype)
        (J, S, q), I = layer.L.shape, layer.R.shape[2]
        A = F.pad(weight, (0, nblocks * I - layer.in_features, 0, J * S - layer.out_features))
        A = A.unflatten(0, (J, S)).transpose(0, 1).flatten(0, 1)  # rows (j,ℓ) → (ℓ,j)
        M = project(A.to(torch.promote_types(A.dtype, torch.float32)), (J, nblocks), rank=q // nblocks)
        with torch.no_grad():
            layer.L.copy_(M.L)
            layer.R.copy_(M.R)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"nblocks={self.nblocks}, bias={self.bias is not None}"
        )


@torch.no_grad()
def draw_orthogonal(factor: Tensor, terms: float) -> None:
    """Fill blocks (n, rows, …) with orthogonal rows or columns, entries of variance 1 / (√3 · terms)."""
    if factor.device.type == "meta":
        return
    blocks = torch.empty_like(factor, dtype=torch.promote_types(factor.dtype, torch.float32))
    for block in blocks:
        nn.init.orthogonal_(block)  # entries of variance 1 / (the longer side)
    longer = max(blocks.shape[1], blocks[0, 0].numel())
    factor.copy_(blocks * (longer / (3**0.5 * terms)) ** 0.5)


class StackedLinear(nn.Module):
    """``y = concat(M_1 x, M_2 x, …) + b``: a fused projection whose blocks have matrices of their own.

    (..., in_features) → (..., out_features); ``parts`` hold no bias, ``bias`` is that of all.
    """

    def __init__(self, parts: Sequence[MonarchLinear], bias: nn.Parameter | None):
        super().__init__()
        self.parts, self.bias = nn.ModuleList(parts), bias
        self.in_features, self.out_features = parts[0].in_features, sum(p.out_features for p in parts)

    @property
    def layers(self) -> list[MonarchLinear]:
        """The parts, by their type."""
        return [part for part in self.parts if isinstance(part, MonarchLinear)]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        y = torch.cat([part(x) for part in self.parts], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def to_linear(self) -> nn.Linear:
        """The dense layer of the same map."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = torch.cat([part.to_linear().weight.detach() for part in self.layers])
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach().clone())
        return linear


class MonarchPointwise(nn.Module):
    """A 1 × 1 convolution with a Monarch matrix: ``linear`` over the channels, wherever they stand.

    Args:
        linear: channels in → channels out.
        axes: 1, 2 or 3, the axes beside the channels, as of ``nn.Conv1d`` … ``nn.Conv3d``, which take inputs
            without a batch axis too; None stands for ``PointwiseConv``, which takes (B, C, …).
    """

    def __init__(self, linear: MonarchLinear, axes: int | None):
        super().__init__()
        self.linear, self.axes = linear, axes
        self.in_channels, self.out_channels = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, …) → (B, C_out, …)."""
        check_tensors(x)
        channels = 1 if self.axes is None else -1 - self.axes
        return self.linear(x.movedim(channels, -1)).movedim(-1, channels).contiguous()

    def to_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | PointwiseConv:
        """The dense convolution of the same map."""
        linear, axes = self.linear.to_linear(), self.axes or 1
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        conv = kind(self.in_channels, self.out_channels, 1, bias=linear.bias is not None, device="meta")
        conv.weight = nn.Parameter(linear.weight.detach().unflatten(1, (-1, *(1,) * axes)))
        conv.bias = linear.bias
        return PointwiseConv(conv) if self.axes is None else conv
