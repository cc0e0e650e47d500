"""One network with its transforms tied, shared, dense, fixed …: what of their freedom is it that helps?

A variant changes an FNO-Monarch in place before its training; before that, all of them are the same FNO,
except those with other modes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from problems import crowded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization

from monarch_sciml.linalg import balanced_factors, project
from monarch_sciml.nn import LearnedTransform, MonarchSpectralConv


def layers(model: nn.Module) -> list[MonarchSpectralConv]:
    """The spectral convolutions."""
    return [m for m in model.modules() if isinstance(m, MonarchSpectralConv)]


def transforms(model: nn.Module) -> Iterator[LearnedTransform]:
    """Every transform, of each axis, direction and layer."""
    return (m for m in model.modules() if isinstance(m, LearnedTransform))


def spectral_weights(model: nn.Module) -> list[nn.Parameter]:
    """What mixes the channels of each mode."""
    convolutions = [m for m in model.modules() if isinstance(m, (MonarchSpectralConv, Sines))]
    return [p for layer in convolutions for name, p in layer.named_parameters() if "weight" in name]


def replace(model: nn.Module, other: Callable[[MonarchSpectralConv], nn.Module]) -> None:
    """Another module in place of every spectral convolution."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, MonarchSpectralConv):
                setattr(parent, name, other(layer))


def as_it_is(model: nn.Module) -> None:
    """Two Monarch factors for each axis, direction and layer."""


def fixed(model: nn.Module) -> None:
    """The FFT's values: an FNO."""
    for transform in transforms(model):
        transform.requires_grad_(False)


def padded(model: nn.Module) -> None:
    """The FNO's own remedy where there are walls: a quarter of zeros beyond each axis, cut off at the end."""
    fixed(model)
    widened(model)


def widened(model: nn.Module) -> None:
    """The same, with transforms that learn."""
    model.operator = Padded(model.operator)


class Padded(nn.Module):
    """The operator on a larger grid."""

    def __init__(self, operator: nn.Module):
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n_1 …) → (B, C, n_1 …)."""
        sizes = x.shape[2:]
        wider = self.operator(F.pad(x, [side for n in reversed(sizes) for side in (0, n // 4)]))
        for axis, n in enumerate(sizes, start=2):
            wider = wider.narrow(axis, 0, n)
        return wider


def small(model: nn.Module) -> None:
    """An FNO whose spectral weights begin as those of Li et al., between 0 and 1 / (in · out)."""
    fixed(model)
    for layer in layers(model):
        nn.init.uniform_(layer.weight, 0, 1 / (layer.in_channels * layer.out_channels))


def sines(model: nn.Module) -> None:
    """Sine transforms, which are the natural ones between walls where the solution vanishes."""
    replace(model, Sines)


class Sines(nn.Module):
    """``y = Sᵀ (w · (S x)) + b`` with S_kj = √(2/n) sin(π k x_j), k = 1 … m: as fine as m Fourier modes.

    Real weights (m, …, in, out), about as many numbers as the complex ones of as many Fourier modes.
    """

    def __init__(self, like: MonarchSpectralConv):
        super().__init__()
        channels = like.in_channels, like.out_channels
        self.weight = nn.Parameter(torch.randn(*like.n_modes, *channels) * (2 / sum(channels)) ** 0.5)
        self.bias = nn.Parameter(like.bias.detach().clone())
        # points as in ``problems``: in the middle of cells between the ends, or from one wall on
        offset = 0.5 if len(like.grid) == 1 else 0.0
        for axis, (m, n) in enumerate(zip(like.n_modes, like.grid, strict=True)):
            k, j = torch.arange(1, m + 1)[:, None], torch.arange(n) + offset
            self.register_buffer(f"S{axis}", (2 / n) ** 0.5 * (math.pi * k * j / n).sin())

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """(B, in, n_1 …) → (B, out, n_1 …)."""
        S = [buffer for _, buffer in self.named_buffers()]
        for axis, matrix in enumerate(S, start=2):
            x = (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
        x = torch.einsum("bi...,...io->bo...", x, self.weight)
        for axis, matrix in enumerate(S, start=2):
            x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
        return x + self.bias

    def transform(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """``x``: the grid does not change."""
        return x


def from_natural(model: nn.Module) -> None:
    """On the stretched grid, dense matrices that begin as the Fourier series of the flow.

    W_kj = exp(−2πi k x_j) (dx/ds)_j / n, the trapezoidal rule in s, and V_jk = exp(2πi k x_j). In the
    order of the FFT, a Monarch matrix is exact for equal distances, and 60 % or more away from these.
    """
    for layer in layers(model):
        for analysis, synthesis in zip(layer.analysis, layer.synthesis, strict=True):
            x, density = crowded(analysis.n)
            k = analysis.first + torch.arange(analysis.n_modes)
            waves = torch.exp(-2j * math.pi * k[:, None] * x)
            analysis.start_from_(waves * density / analysis.n)
            synthesis.start_from_(waves)  # the adjoint of V


def natural(model: nn.Module) -> None:
    """The Fourier series of the flow on the stretched grid, as it stands."""
    from_natural(model)
    fixed(model)


def from_sines(model: nn.Module) -> None:
    """Between walls, dense matrices that begin as sine transforms; modes of the half spectrum hold two."""
    for layer in layers(model):
        for analysis, synthesis in zip(layer.analysis, layer.synthesis, strict=True):
            n, half = analysis.n, synthesis.hermitian
            k = torch.arange(1, analysis.n_modes * (2 if half else 1) + 1)
            S = (math.pi * k[:, None] * torch.arange(n) / n).sin()
            S = torch.complex(S[::2], S[1::2]) if half else S.cfloat()
            analysis.start_from_(2 / n * S)
            if half:
                S[1:] /= 2  # the adjoint counts them twice
            synthesis.start_from_(S)


def tied(model: nn.Module) -> None:
    """Synthesis is the adjoint of analysis."""
    for layer in layers(model):
        for analysis, synthesis in zip(layer.analysis, layer.synthesis, strict=True):
            synthesis.L, synthesis.R = analysis.L, analysis.R


def shared(model: nn.Module) -> None:
    """All layers have the transforms of the first."""
    first, *others = layers(model)
    for layer in others:
        layer.analysis, layer.synthesis = first.analysis, first.synthesis


def synthesis_only(model: nn.Module) -> None:
    """Analysis stays the DFT."""
    for layer in layers(model):
        layer.analysis.requires_grad_(False)


def dense(model: nn.Module) -> None:
    """Every entry of the truncated matrix is free: an upper bound for any factorisation."""
    for transform in transforms(model):
        transform.densify_()


def gains(model: nn.Module) -> None:
    """The DFT times one learned number per frequency, axis, direction and layer: no other functions."""
    for transform in transforms(model):
        transform.requires_grad_(False)
        register_parametrization(transform, "L", Gains(transform.L))


class Gains(nn.Module):
    """A factor per row of W, (c, ℓ) of L, that begins as 1."""

    def __init__(self, L: Tensor):
        super().__init__()
        self.gains = nn.Parameter(L.new_ones(*L.shape[:2], 1, 1))

    def forward(self, L: Tensor) -> Tensor:
        """The rows in their weight."""
        return L * self.gains


def blocks(model: nn.Module) -> None:
    """Every mode of the grid; channels mix in four groups, for as many numbers as half the modes hold."""
    replace(model, lambda layer: in_blocks(layer, 4))


def fixed_blocks(model: nn.Module) -> None:
    """The same with the FFT's values."""
    blocks(model)
    fixed(model)


def in_blocks(layer: MonarchSpectralConv, groups: int) -> MonarchSpectralConv:
    """Another layer with all modes of its grid, of which each mixes channels within groups."""
    channels = layer.in_channels, layer.out_channels
    wider = MonarchSpectralConv(*channels, layer.grid, grid=layer.grid)
    register_parametrization(wider, "weight", Blocks(groups))
    with torch.no_grad():  # a sum over fewer channels has larger terms
        wider.parametrizations.weight.original.mul_(groups**0.5)
    return wider


class Blocks(nn.Module):
    """Blocks (…, groups, in / groups, out / groups, 2) on the diagonal of (…, in, out, 2)."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, blocks: Tensor) -> Tensor:
        """The weight, with zeros between groups."""
        eye = torch.eye(self.groups, dtype=blocks.dtype)[:, None, :, None, None]
        return (blocks.unsqueeze(-3) * eye).flatten(-3, -2).flatten(-4, -3)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What lies on the diagonal."""
        blocks = weight.unflatten(-2, (self.groups, -1)).unflatten(-4, (self.groups, -1))
        return blocks.diagonal(dim1=-5, dim2=-3).movedim(-1, -4).contiguous()


def axes(model: nn.Module) -> None:
    """Channels mix once along each of two axes: a wider network for as many numbers."""
    for layer in layers(model):
        register_parametrization(layer, "weight", Axes())


def fixed_axes(model: nn.Module) -> None:
    """The same with the FFT's values."""
    axes(model)
    fixed(model)


class Axes(nn.Module):
    """``w[k, l] = A[k] B[l]``, matrices over the channels, (m_1, C, C, 2) and (m_2, C, C, 2).

    Over modes and channels together it is a product of two block-diagonal matrices and a permutation, a
    Monarch matrix whose blocks repeat, in place of one block-diagonal matrix.
    """

    def forward(self, A: Tensor, B: Tensor) -> Tensor:
        """The weight (m_1, m_2, C, C, 2)."""
        left, right = (torch.view_as_complex(factor) for factor in (A, B))
        w = left.flatten(0, 1) @ right.movedim(1, 0).flatten(1)  # (k, in) by (l, out)
        w = w.view(*left.shape[:2], len(right), -1).transpose(1, 2)
        return torch.view_as_real(w.contiguous())

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Random factors, whose product has the variance of a new layer's weight."""
        m_1, m_2, channels = weight.shape[:3]
        A, B = (torch.randn(m, channels, channels, 2) / (2 * channels) ** 0.5 for m in (m_1, m_2))
        return A, B


def uneven(model: nn.Module) -> None:
    """Factors of blocks as unequal as possible, n = 2 · n/2; the DFT has an exact form for every split."""
    for transform in transforms(model):
        split(transform, 2)


@torch.no_grad()
def split(transform: LearnedTransform, p: int) -> None:
    """The same matrix with other block sizes, n = p·q: its projection, which is exact for a DFT."""
    q, rows = transform.n // p, -(-transform.n_modes // p) * p
    assert balanced_factors(transform.n) != (p, q)
    full = LearnedTransform(transform.n, rows, transform.first, learned=False).double()
    W = torch.complex(*full()).reshape(rows, p, q).mT.flatten(1)  # columns sorted by (j2, j1)
    M = project(W, (p, q))
    scale = torch.linalg.vector_norm(M.R) / M.R.numel() ** 0.5 * p**0.5  # R as large as in the even split
    L, R = (torch.view_as_real(factor.resolve_conj()).float() for factor in (M.L * scale, M.R / scale))
    transform.L, transform.R = nn.Parameter(L.contiguous()), nn.Parameter(R.contiguous())


@dataclass(frozen=True)
class Variant:
    """A change of the model, the learning rate of the transforms relative to the rest, and what else."""

    title: str
    change: Callable[[nn.Module], None] = as_it_is
    rate: float = 0.3
    penalty: float = 0.0
    """λ of λ Σ ‖factor − its initial value‖²."""
    spectral: float = 1.0
    """Learning rate of the spectral weights, relative to the rest as well."""
    noise: float = 0.0
    """On the input, in standard deviations of the data."""
    width: int | None = None
    """If not that of the problem."""


VARIANTS = {
    "fixed": Variant("fixed, the FNO", fixed),
    "padded": Variant("fixed, padded by a quarter", padded),
    "padded-x1": Variant("learned, rate × 1, padded by a quarter", widened, rate=1.0),
    "fixed-fast": Variant("fixed, spectral weights × 3", fixed, spectral=3.0),
    "small": Variant("fixed, small spectral weights at first", small),
    "sines": Variant("fixed, sine transforms", sines),
    "sines-fast": Variant("fixed, sine transforms, spectral weights × 3", sines, spectral=3.0),
    "natural": Variant("fixed, Fourier series on the stretched points", natural),
    "natural-noise": Variant("fixed, Fourier series on the stretched points, noise", natural, noise=0.01),
    "natural-fast-noise": Variant(
        "fixed, Fourier series on the stretched points, spectral weights × 3, noise",
        natural,
        spectral=3.0,
        noise=0.01,
    ),
    "from-natural-noise": Variant("dense, beginning as that series, noise", from_natural, noise=0.01),
    "dense-noise": Variant("dense matrices, noise", dense, noise=0.01),
    "from-sines": Variant("dense, beginning as sine transforms", from_sines),
    "from-sines-noise": Variant("dense, beginning as sine transforms, noise", from_sines, noise=0.01),
    "gains": Variant("fixed, a learned gain per frequency", gains, rate=1.0),
    "x0.1": Variant("learned, rate × 0.1", rate=0.1),
    "x0.3": Variant("learned, rate × 0.3"),
    "x1": Variant("learned, rate × 1", rate=1.0),
    "fast": Variant("learned, rate × 1, spectral weights × 3", rate=1.0, spectral=3.0),
    "x3": Variant("learned, rate × 3", rate=3.0),
    "tied": Variant("tied: synthesis is the adjoint of analysis", tied),
    "shared": Variant("shared by all layers", shared),
    "synthesis": Variant("synthesis only", synthesis_only),
    "dense": Variant("dense matrices", dense),
    "blocks": Variant("all modes, channels mix in four groups, learned", blocks),
    "fixed-blocks": Variant("all modes, channels mix in four groups, fixed", fixed_blocks),
    # 16 × 16 modes: as many numbers as 16 channels have otherwise
    "fixed-axes": Variant("fixed, channels mix along each axis, width 37", fixed_axes, width=37),
    "axes": Variant("learned, channels mix along each axis, width 37", axes, width=37),
    "uneven": Variant("factors n = 2 · n/2", uneven),
    "penalty": Variant("pulled towards the DFT, λ = 1e-3", penalty=1e-3),
    "fixed-noise": Variant("fixed, noise on the input", fixed, noise=0.01),
    "fixed-fast-noise": Variant("fixed, spectral weights × 3, noise", fixed, spectral=3.0, noise=0.01),
    "noise": Variant("learned, noise on the input", noise=0.01),
    "x1-noise": Variant("learned, rate × 1, noise", rate=1.0, noise=0.01),
}


def departures(model: nn.Module) -> tuple[float, float]:
    """Mean over transforms of ‖W − F‖ / ‖F‖ and of ‖W Wᴴ − I‖ / √m: how far from Fourier, from unitary."""
    changes, products = [], []
    for t in transforms(model):
        W = torch.complex(*t().detach().double()) / t.scale
        exact = torch.complex(*LearnedTransform(t.n, t.n_modes, t.first, learned=False).double()())
        changes.append(relative(W, exact))
        products.append(float(torch.linalg.matrix_norm(W @ W.mH - torch.eye(len(W)))) / len(W) ** 0.5)
    return sum(changes) / max(1, len(changes)), sum(products) / max(1, len(products))


def relative(A: Tensor, B: Tensor) -> float:
    """‖A − B‖ / ‖B‖, Frobenius."""
    return float(torch.linalg.matrix_norm(A - B) / torch.linalg.matrix_norm(B))
