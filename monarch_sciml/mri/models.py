"""Networks that reconstruct, and what the Monarch variant of each swaps.

All of them are called alike: k-space (B, C, H, W), which counts only where it was sampled, the sampled
pattern and the coil maps go in; images (B, H, W) come out. The zero-filled image gives the scale of the data.
Where no coil is sensitive nothing was measured and the image is zero, as that of any SENSE method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FactoredTransform, LinearOperator, Product, SeparableTransform
from monarch_sciml.mri.inputs import check_data
from monarch_sciml.mri.operators import Sampling, Sensitivity, conjugate_gradients, encoding, normalise
from monarch_sciml.mri.regularisers import Refinement, SpectralRefinement, UNet
from monarch_sciml.mri.sensitivity import root_sum_of_squares
from monarch_sciml.nn import LearnedFourier
from monarch_sciml.training import check_choices
from monarch_sciml.training.hub import Pretrained, read_settings
from monarch_sciml.training.model_card import About, count, count_parameters

__all__ = [
    "KINDS",
    "LearnedMaps",
    "MSense",
    "MoDL",
    "ModelConfig",
    "SliceReconstructor",
    "UNetReconstruction",
    "VarNet",
    "count_parameters",
    "departures",
    "learned_transforms",
]

Kind = Literal["unet", "msense", "varnet", "varnet-monarch", "modl", "modl-monarch"]
KINDS: tuple[Kind, ...] = ("unet", "msense", "varnet", "varnet-monarch", "modl", "modl-monarch")
CASCADES = {kind: 8 if kind == "msense" else 4 for kind in KINDS}
"""Unrolled iterations, unless others are asked for."""
STEP, MOMENTUM = 2.2, 0.5  # of mSENSE


def scanner(network: nn.Module, kspace: Tensor, pattern: Tensor, maps: Tensor) -> LinearOperator:
    """A = Sampling @ F @ Sensitivity, for data that the network can take; else raises ``InputError``."""
    check_data(network, kspace, maps)
    return encoding(maps, pattern)


def support(maps: Tensor) -> Tensor:
    """Where any coil is sensitive: maps (..., C, H, W) → boolean (..., H, W)."""
    return (maps != 0).any(-3)


class UNetReconstruction(nn.Module):
    """The baseline without physics: U-Net of the zero-filled magnitude image (Zbontar et al., 1811.08839).

    Input and output are normalised by mean and standard deviation of the input image, clamped to ±6.
    """

    def __init__(self, channels: int, pools: int):
        super().__init__()
        self.net = UNet(1, 1, channels, pools)

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """→ magnitude image (B, H, W), real."""
        image = scanner(self, kspace, pattern, maps).H(kspace).abs()
        mean, deviation = image.mean((-2, -1), keepdim=True), image.std((-2, -1), keepdim=True)
        deviation = deviation.clamp_min(1e-30)
        out = self.net(((image - mean) / deviation).clamp(-6, 6).unsqueeze(1)).squeeze(1)
        return (out * deviation + mean).clamp_min(0) * support(maps)


class MSense(nn.Module):
    """mSENSE of Dao et al. (ICML 2022): ``x₁ = Σ_c S̄_c V (w y_c)``, the inverse FFT of SENSE made learnable.

    V is a separable Monarch transform that starts as the centred inverse FFT; linear in the data, some ten
    thousand parameters, no network. The weights w (H, W) are not learned, but saved with the model: 1, or
    after ``compensate`` those of density compensation. V can learn them too, as far as they are separable,
    but needs many volumes for it. On other grids w is the same at the same fraction of the highest frequency.

    One iteration is the method of the paper. More solve ``A x = y``, which is what SENSE means elsewhere
    (Pruessmann et al., MRM 2001), with the same V: ``x_{t+1} = x_t + v_t``, ``v_t = β v_{t−1} + τ Σ_c S̄_c V
    (y − A x_t)_c``, heavy-ball steps (Polyak 1964) with τ = 2.2 and β = 0.5, stable as the eigenvalues of AᴴA
    lie between 0 and 1. Their number is what keeps noise in check.
    """

    weights: Tensor

    def __init__(self, shape: tuple[int, int], iterations: int = 1):
        super().__init__()
        self.inverse, self.iterations = LearnedFourier(shape, inverse=True), iterations
        self.register_buffer("weights", torch.ones(shape))

    def compensate(self, density: Tensor, *, power: float = 0.75) -> None:
        """Weigh points of k-space by ``d^(−power)``, d (1, W) or (H, W) their probability of being measured.

        Until V is trained, x₁ is then the image of ``classical.density_compensated`` with this power. Points
        that are never measured have the weight 1. Raises ``InputError`` for a density of another grid.
        """
        if density.ndim != 2 or any(
            n not in (1, m) for n, m in zip(density.shape, self.inverse.shape, strict=True)
        ):
            expected = f"a density for {self.inverse.shape}, the grid of the transform"
            raise InputError(expected, f"{tuple(density.shape)}", "take it from masks of this size")
        self.weights.copy_(torch.where(density > 0, density, 1.0).pow(-power))

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """→ complex image (B, H, W). Raises ``InputError`` for a single coil."""
        if maps.shape[-3] < 2:
            raise InputError("at least two coils for mSENSE", "one", "use unet, varnet or modl")
        weights = _stretch(_stretch(self.weights, kspace.shape[-1]).mT, kspace.shape[-2]).mT
        A, B = scanner(self, kspace, pattern, maps), _backward(maps, self.inverse, pattern)
        kspace = Sampling(pattern, tuple(kspace.shape[-3:]))(kspace)  # unlike Aᴴ, V takes in all it is given
        x, v = B(kspace * weights), 0.0
        for _ in range(1, self.iterations):
            v = MOMENTUM * v + STEP * B(kspace - A(x))
            x = x + v
        return x


def _stretch(weights: Tensor, size: int) -> Tensor:
    """Linear interpolation along the last axis, a centred one, to ``size`` points: k/n stays k/n."""
    n = weights.shape[-1]
    if size == n:
        return weights
    k = torch.arange(size, dtype=torch.float64, device=weights.device) - size // 2
    place = (k * (n / size) + n // 2).clamp(0, n - 1)
    below = place.long()
    return torch.lerp(
        weights[..., below], weights[..., (below + 1).clamp_max(n - 1)], (place - below).to(weights)
    )


class VarNet(nn.Module):
    """Unrolled gradient descent: ``x₀ = B₀ y``, ``x_{t+1} = x_t − η_t B_t(A x_t − y) + D_t(x_t)``.

    A = Sampling @ F @ Sensitivity is what the scanner does. With FFT transforms B_t = Aᴴ: the variational
    network of Hammernik et al. (MRM 2018), D_t a U-Net as in Sriram et al. (MICCAI 2020). In the Monarch
    variant ``B_t = Sᴴ V_t`` with a learned inverse transform V_t: the model of the scanner stays exact, and
    what is learned is how a residual in k-space is turned into a step, a preconditioner among other things.

    Args:
        refinements: D_t, one per cascade: a complex image (B, H, W) → correction.
        transforms: None for the FFT; one learned inverse transform for all cascades, or one for each.
    """

    def __init__(self, refinements: list[nn.Module], transforms: list[LearnedFourier] | None = None):
        super().__init__()
        self.refinements = nn.ModuleList(refinements)
        self.steps = nn.Parameter(torch.ones(len(refinements)))
        self.transforms = None if transforms is None else nn.ModuleList(transforms)

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """→ complex image (B, H, W)."""
        A = scanner(self, kspace, pattern, maps)
        B: list[Callable[[Tensor], Tensor]] = [A.H]
        if self.transforms is not None:
            B = [_backward(maps, V, pattern) for V in self.transforms]  # type: ignore[arg-type]
            kspace = Sampling(pattern, tuple(kspace.shape[-3:]))(kspace)  # unlike Aᴴ, V takes in the rest too
        x = B[0](kspace)
        scale = normalise(x)
        x, y = x / scale, kspace / scale.unsqueeze(-3)
        seen = support(maps)
        for t, refine in enumerate(self.refinements):
            x = x - self.steps[t] * B[t % len(B)](A(x) - y) + refine(x) * seen
        return x * scale


class MoDL(nn.Module):
    """MoDL of Aggarwal et al. (TMI 2019): ``x_{t+1} = (AᴴA + λI)⁻¹ (Aᴴ y + λ D(x_t))``, D and λ shared.

    The inverse is a few conjugate-gradient iterations. They need an exact adjoint, so the Monarch variant
    learns one transform W and uses A = Sampling @ W @ Sensitivity with Wᴴ, the same factors, in Aᴴ.
    """

    def __init__(
        self,
        refinement: nn.Module,
        cascades: int,
        transform: LearnedFourier | None = None,
        *,
        iterations: int = 6,
    ):
        super().__init__()
        self.refinement, self.cascades, self.iterations = refinement, cascades, iterations
        self.log_damping = nn.Parameter(torch.tensor(-3.0))
        self.transform = transform

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """→ complex image (B, H, W)."""
        scale = normalise(scanner(self, kspace, pattern, maps).H(kspace))
        fourier = None if self.transform is None else self.transform.operator(tuple(maps.shape[-3:]))
        A = encoding(maps, pattern, fourier)
        b = A.H(kspace / scale.unsqueeze(-3))
        damping, seen = self.log_damping.exp(), support(maps)
        x = b
        for _ in range(self.cascades):
            z = x + self.refinement(x) * seen
            x = conjugate_gradients(A, b + damping * z, z, damping=damping, iterations=self.iterations)
        return x * scale


class LearnedMaps(nn.Module):
    """Coil maps refined by a network before ``model`` uses them (Sriram et al., MICCAI 2020).

    One small U-Net is applied to every coil of the low-resolution maps; the sum of its output and the maps is
    brought back to Σ|S|² = 1. Where no coil is sensitive, none becomes so.
    """

    def __init__(self, model: nn.Module, channels: int = 6, pools: int = 2):
        super().__init__()
        self.model, self.refinement = model, Refinement(UNet(2, 2, channels, pools))

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """As ``model``."""
        check_data(self, kspace, maps)
        refined = self.refinement(maps.flatten(0, 1)).view_as(maps)
        maps = maps + refined * support(maps).unsqueeze(-3)
        return self.model(kspace, pattern, maps / root_sum_of_squares(maps).clamp_min(1e-12).unsqueeze(-3))


def _backward(maps: Tensor, inverse: LearnedFourier, pattern: Tensor) -> Callable[[Tensor], Tensor]:
    """``y ↦ Σ_c S̄_c V y_c``: the learned inverse transform, then coil combination.

    On the transform's own grid, where V has factors, no coil images are ever held. Columns that were not
    sampled are left out on other grids, where V is a matrix.
    """
    V = inverse.operator(tuple(maps.shape[-3:]))
    if isinstance(V, FactoredTransform):
        return partial(V.combine, maps=maps)
    combine = Sensitivity(maps).H
    columns = pattern.reshape(-1, pattern.shape[-1]).any(0).nonzero().squeeze(1)
    if 2 * len(columns) >= pattern.shape[-1]:
        return Product(combine, V)
    sampled = SeparableTransform(V.A, V.B[:, columns], V.planes)
    return lambda y: combine(sampled(y[..., columns]))


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a network again."""

    kind: Kind
    shape: tuple[int, int]
    """(H, W): the grid that learned transforms belong to."""
    cascades: int = 4
    """Unrolled iterations; of mSENSE 1 is the method of the paper."""
    channels: int = 12
    """Of the first level of each U-Net."""
    pools: int = 2
    regulariser: Literal["unet", "spectral"] = "unet"
    share_transforms: bool = True
    """One learned transform for all cascades, or one each."""
    modes: int = 24
    """Of the spectral regulariser."""
    maps: Literal["espirit", "low-resolution", "learned"] = "espirit"
    """The coil maps that the model is trained with: estimated, or refined by a network of its own."""

    def __post_init__(self) -> None:
        check_choices(self)

    def build(self) -> nn.Module:
        """A new network, randomly initialised; learned transforms start as Fourier transforms."""
        model = self._model()
        return LearnedMaps(model) if self.maps == "learned" else model

    def _model(self) -> nn.Module:
        monarch = self.kind.endswith("-monarch")
        match self.kind.removesuffix("-monarch"):
            case "unet":
                return UNetReconstruction(self.channels, self.pools)
            case "msense":
                return MSense(self.shape, self.cascades)
            case "varnet":
                refinements = [self._refinement() for _ in range(self.cascades)]
                count = (1 if self.share_transforms else self.cascades) if monarch else 0
                transforms = [LearnedFourier(self.shape, inverse=True) for _ in range(count)]
                return VarNet(refinements, transforms if monarch else None)
            case _:
                transform = LearnedFourier(self.shape) if monarch else None
                return MoDL(self._refinement(), self.cascades, transform)

    def _refinement(self) -> nn.Module:
        if self.regulariser == "unet":
            return Refinement(UNet(2, 2, self.channels, self.pools))
        return SpectralRefinement(self.channels, self.modes, self.shape)


class SliceReconstructor(Pretrained):
    """A network with its settings: k-space (B, C, H, W), sampled pattern and coil maps → images (B, H, W)."""

    def __init__(self, network: nn.Module, config: ModelConfig):
        super().__init__()
        self.network, self.config = network, config

    def forward(self, kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        """As the network: complex images, magnitudes for "unet"."""
        return self.network(kspace, pattern, maps)

    @property
    def trained(self) -> nn.Module:
        """The network: weights keep the names that they have in a training."""
        return self.network

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new model of the settings in a ``config.json``. Raises ``InputError``."""
        settings = read_settings(ModelConfig, config)
        return cls(settings.build(), settings)

    def about(self) -> About:
        """For the model card."""
        c = self.config
        size = f"{c.shape[0]} × {c.shape[1]}"
        unrolled = c.kind.startswith(("varnet", "modl"))
        parts = [count(c.cascades, "cascade")] * unrolled
        parts += [count(c.cascades, "iteration")] * (c.kind == "msense")
        if c.kind == "unet" or (unrolled and c.regulariser == "unet"):
            parts += [f"U-Nets of {count(c.channels, 'channel')} and {count(c.pools, 'level')}"]
        elif unrolled:
            parts += [f"spectral regularisers of {count(c.channels, 'channel')} and {c.modes} modes"]
        parts += [f"{count_parameters(self.network):,} parameters"]
        learned = f" Its learned transforms started as Fourier transforms on {size}."
        return About(
            title=f"{NAMES[c.kind]} for accelerated MRI",
            notice="**Research use only, not for clinical use.**",
            summary=(
                "Reconstructs undersampled two-dimensional Cartesian k-space: centred k-space (batch, coils, "
                "H, W), zero where nothing was sampled, the sampled pattern and the coil maps → images "
                f"(batch, H, W). {', '.join(parts)}; coil maps: {c.maps}."
                + learned
                * bool(learned_transforms(self.network))
            ),
            task=("image-to-image", "accelerated MRI reconstruction"),
            tags=("mri", "image-reconstruction", "medical-imaging", c.kind),
            usage=USAGE,
            shell="monarch-sciml mri reconstruct --files scan.h5 --out images --run {source}",
            command="mri train",
            metrics={"nmse": ("nmse", "NMSE"), "psnr": ("psnr", "PSNR in dB"), "ssim": ("ssim", "SSIM")},
            limits=(
                "For sampling, contrast, anatomy and noise like those of the training: on other data it may "
                "invent or remove structure. Compare with a classical reconstruction of the same data.",
                "Where no coil is sensitive the image is zero.",
            ),
            data=_training_data,
        )


NAMES: dict[Kind, str] = {
    "unet": "U-Net",
    "msense": "mSENSE",
    "varnet": "VarNet",
    "varnet-monarch": "VarNet-Monarch",
    "modl": "MoDL",
    "modl-monarch": "MoDL-Monarch",
}
USAGE = """\
from monarch_sciml.mri.models import SliceReconstructor

model = SliceReconstructor.from_pretrained("{source}")
image = model(kspace, pattern, maps)  # coil maps from monarch_sciml.mri.espirit, for example"""


def _training_data(settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    """Counts and the sampling; no names of files or folders, which may be those of patients."""
    sampling = settings.get("sampling") or {}
    rates = " or ".join(f"{rate:g}×" for rate in sampling.get("accelerations", ()))
    mask = f"{sampling.get('mask', 'unknown')} sampling" + f" at {rates}" * bool(rates)
    training, held_out = (
        str(data.get(k, "not recorded")).partition(",")[0] for k in ("training", "held out")
    )
    kind = settings.get("acquisition")
    name = f"fully sampled k-space{f' ({kind})' if kind else ''}"
    return {"name": f"{name}, {mask}", "training": training, "held out": held_out}


def learned_transforms(model: nn.Module) -> list[LearnedFourier]:
    """Every learned transform of a model."""
    return [module for module in model.modules() if isinstance(module, LearnedFourier)]


def departures(model: nn.Module) -> Tensor:
    """Mean over the learned transforms of ‖W − F‖²/‖F‖²: a penalty, zero where there are none."""
    found = [transform.departure() ** 2 for transform in learned_transforms(model)]
    return torch.stack(found).mean() if found else torch.zeros(())
