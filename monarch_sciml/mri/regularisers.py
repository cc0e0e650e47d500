"""What an unrolled network puts in place of a prior: a U-Net, or spectral layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from monarch_sciml.errors import InputError
from monarch_sciml.nn import MonarchSpectralConv

__all__ = ["Refinement", "SpectralRefinement", "UNet"]


class UNet(nn.Module):
    """U-Net of Ronneberger et al. (2015) with instance normalisation and leaky ReLU, any image size.

    ``channels`` at full resolution, twice as many after each of the ``pools`` average poolings. (B, in, H, W)
    → (B, out, H, W); sizes that do not divide by 2^pools are padded by their edge and cropped again. Raises
    ``InputError`` where nothing but one point would be left to normalise.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: int, pools: int):
        super().__init__()
        widths = [channels * 2**level for level in range(pools + 1)]
        self.down = nn.ModuleList(
            _double_convolution(a, b) for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, 2, bias=False) for width in reversed(widths[:-1])
        )
        self.merge = nn.ModuleList(_double_convolution(2 * width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(channels, out_channels, 1)
        self.multiple = 2**pools

    def check(self, shape: tuple[int, int]) -> None:
        """Raises ``InputError`` for images (H, W) that are too small."""
        if max(shape) <= self.multiple:
            expected = f"images of more than {self.multiple} points along an axis for {len(self.up)} poolings"
            raise InputError(expected, f"{shape[0]} × {shape[1]}", "lower --pools")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        H, W = x.shape[-2:]
        self.check((H, W))
        bottom, right = -H % self.multiple, -W % self.multiple
        if bottom or right:
            x = functional.pad(x, (0, right, 0, bottom), mode="replicate")
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.avg_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((up(x), skips.pop()), dim=1))
        return self.head(x)[..., :H, :W]


def _double_convolution(a: int, b: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (a, b):
        layers += [
            nn.Conv2d(channels, b, 3, padding=1, bias=False),
            nn.InstanceNorm2d(b),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers)


class Refinement(nn.Module):
    """A real network on complex images: real and imaginary parts are its two channels.

    They are brought to zero mean and unit variance apart, slice by slice, and the correction is scaled back
    (Sriram et al., MICCAI 2020, arXiv 2004.06688). (B, H, W) complex → (B, H, W) complex.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H, W) → correction (B, H, W)."""
        z = torch.stack((x.real, x.imag), dim=1)
        mean, deviation = z.mean((-2, -1), keepdim=True), z.std((-2, -1), keepdim=True).clamp_min(1e-9)
        out = self.net((z - mean) / deviation) * deviation
        return torch.complex(out[:, 0], out[:, 1])


class SpectralRefinement(Refinement):
    """Two Fourier layers with learned Monarch transforms: global in space, where a U-Net is local.

    ``channels`` hidden, ``modes`` frequencies per axis on the grid ``shape``; each layer adds a pointwise
    path, as in a Fourier neural operator (Li et al., arXiv 2010.08895).
    """

    def __init__(self, channels: int, modes: int, shape: tuple[int, int]):
        super().__init__(_SpectralNet(channels, modes, shape))


class _SpectralNet(nn.Module):
    def __init__(self, channels: int, modes: int, shape: tuple[int, int]):
        super().__init__()
        kept = tuple(min(modes, n) for n in shape)
        self.lift = nn.Conv2d(2, channels, 3, padding=1)
        self.spectral = nn.ModuleList(
            MonarchSpectralConv(channels, channels, kept, grid=shape) for _ in range(2)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for spectral, pointwise in zip(self.spectral, self.pointwise, strict=True):
            x = x + functional.gelu(spectral(x) + pointwise(x))
        return self.head(x)
