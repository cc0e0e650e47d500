"""Convolutional networks that predict flows: ResNet, U-Net and TF-Net, the usual company of the FNO.

All map (B, in_channels, H, W) → (B, out_channels, H, W) and pad periodically, as the domains are. They see
the coordinates of each point as two more channels, as neuraloperator's FNO does: without them a convolution
can not know where a force acts. They know pixels, not a grid: on another resolution they are other operators.
Normalisation is over the channels of one sample, not over the batch, whose statistics drift in a rollout;
shortcuts carry the amplitude past it, which it removes.
"""

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError

__all__ = ["ResNet", "TFNet", "UNet"]


def _conv(n_in: int, n_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, padding_mode="circular")


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def _with_coordinates(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C + 2, H, W): with the coordinates of the points, i / H and j / W."""
    axes = [torch.arange(n, dtype=x.dtype, device=x.device) / n for n in x.shape[-2:]]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    # x.shape[0] and not len(x), which would bind an exported model to one number of samples
    return torch.cat((x, coordinates.expand(x.shape[0], -1, -1, -1)), dim=1)


class _Residual(nn.Module):
    """x + conv(φ(norm(conv(φ(norm(x))))))."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            _norm(width), nn.GELU(), _conv(width, width), _norm(width), nn.GELU(), _conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet(nn.Module):
    """Residual network at full resolution: ``blocks`` blocks of two 3 × 3 convolutions, 18 layers by default.

    Source: He et al., CVPR 2016, with normalisation before the convolutions (He et al., ECCV 2016); used for
    turbulent flow by Wang et al., KDD 2020. Width 42 has the 0.27 M parameters of Li et al., ICLR 2021.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int = 42, blocks: int = 8):
        super().__init__()
        self.net = nn.Sequential(
            _conv(in_channels + 2, width),
            *(_Residual(width) for _ in range(blocks)),
            _conv(width, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        return self.net(_with_coordinates(x))


class _Level(nn.Module):
    """Two convolutions, of which the first may halve the resolution, and a pointwise shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            _conv(n_in, n_out, stride=stride),
            _norm(n_out),
            nn.GELU(),
            _conv(n_out, n_out),
            _norm(n_out),
            nn.GELU(),
        )
        self.shortcut = _conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _Encoder(nn.Module):
    """Features at full, half, … resolution, each level with twice the channels."""

    def __init__(self, in_channels: int, width: int, levels: int):
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.levels = nn.ModuleList(
            _Level(n_in, n_out, stride)
            for n_in, n_out, stride in zip([in_channels, *widths], widths, [1] + [2] * levels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class _Decoder(nn.Module):
    """Back to full resolution, joining the encoder's features of each level.

    Upsampling repeats pixels and then convolves: a transposed convolution leaves a checkerboard.
    """

    def __init__(self, out_channels: int, width: int, levels: int):
        super().__init__()
        self.up = nn.ModuleList(_conv(width * 2 ** (i + 1), width * 2**i) for i in reversed(range(levels)))
        self.join = nn.ModuleList(
            _Level(width * 2 ** (i + 1), width * 2**i, 1) for i in reversed(range(levels))
        )
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = up(nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest"))
            x = join(torch.cat((x, skip), dim=1))
        return self.head(x)


class UNet(nn.Module):
    """Encoder and decoder with skips between equal resolutions. Source: Ronneberger et al., MICCAI 2015.

    Any size of at least 2^levels per axis; odd sizes are rounded up on the way down. Width 54 has the 25 M
    parameters of Li et al., ICLR 2021; 16 has 2 M.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int = 16, levels: int = 4):
        super().__init__()
        self.least = 2**levels
        self.encoder = _Encoder(in_channels + 2, width, levels)
        self.decoder = _Decoder(out_channels, width, levels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W). Raises ``InputError`` on a grid too small."""
        _check_size(x, self.least)
        return self.decoder(self.encoder(_with_coordinates(x)))


class TFNet(nn.Module):
    """Turbulent-flow net: three scales of the flow, encoded apart and decoded together.

    A learned spatial filter G₁ and a learned temporal filter G₂ over the T frames seen split the flow w into
    mean, resolved and unresolved parts (the hybrid of RANS and LES),

        w = w̄ + w̃ + w′,   w* = G₁ w,   w̄ = Σ_t G₂(t) w*_t,   w̃ = w* − w̄,   w′ = w − w*,

    each of which has an encoder of its own; their features are added before the one decoder.
    Source: R. Wang et al., KDD 2020 (arXiv 1911.08655), with a vorticity in place of two velocities and the
    filters starting as means. Width 41 has the 7.5 M parameters of Li et al., ICLR 2021; 16 has 1.1 M.

    Args:
        frames: T; the input channels are T frames of ``channels`` each, (B, T·channels, H, W).
        channels: of a frame, and of the output.
    """

    def __init__(self, frames: int, channels: int, *, width: int = 16, levels: int = 3, filter_size: int = 5):
        super().__init__()
        self.frames, self.channels, self.least = frames, channels, 2**levels
        size = filter_size
        self.spatial = nn.Parameter(torch.full((size, size), 1 / size**2))
        self.temporal = nn.Parameter(torch.full((frames,), 1 / frames))
        # the mean is one frame, the two others all of them
        self.encoders = nn.ModuleList(
            _Encoder(n + 2, width, levels) for n in (channels, frames * channels, frames * channels)
        )
        self.decoder = _Decoder(channels, width, levels)

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T·C, H, W) → w̄ (B, C, H, W), w̃ and w′ (B, T·C, H, W)."""
        pad = self.spatial.shape[0] // 2
        flat = x.flatten(0, 1)[:, None]
        padded = nn.functional.pad(flat, (pad,) * 4, mode="circular")
        filtered = nn.functional.conv2d(padded, self.spatial[None, None]).reshape(x.shape)
        by_frame = filtered.unflatten(1, (self.frames, self.channels))
        mean = torch.einsum("t,btchw->bchw", self.temporal, by_frame)
        return mean, (by_frame - mean[:, None]).flatten(1, 2), x - filtered

    def forward(self, x: Tensor) -> Tensor:
        """(B, T·channels, H, W) → (B, channels, H, W). Raises ``InputError`` on a grid too small."""
        _check_size(x, self.least)
        parts = [_with_coordinates(part) for part in self.scales(x)]
        features = [encode(part) for encode, part in zip(self.encoders, parts, strict=True)]
        return self.decoder([sum(f[1:], f[0]) for f in zip(*features, strict=True)])


def _check_size(x: Tensor, least: int) -> None:
    if min(x.shape[-2:]) < least:
        found = f"{x.shape[-2]} × {x.shape[-1]}"
        raise InputError(f"a grid of at least {least} points per axis", found, "take fewer levels")
