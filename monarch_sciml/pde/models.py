"""FNO and FNO-Monarch, one body, neuraloperator's, with one operand exchanged; and their company by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.nn import MonarchSpectralConv, use_pointwise_products
from monarch_sciml.nn.inputs import check_dtype
from monarch_sciml.nn.spectral import is_spectral_conv
from monarch_sciml.pde.baselines import ResNet, TFNet, UNet
from monarch_sciml.training.hub import Pretrained, read_settings
from monarch_sciml.training.model_card import About, count, count_parameters

__all__ = [
    "FramePredictor",
    "Kind",
    "ModelConfig",
    "can_fuse",
    "count_parameters",
    "fno",
    "fno_monarch",
    "spectral_weights",
]

Kind = Literal["fno", "fno-monarch", "unet", "tf-net", "resnet"]
NAMES: dict[Kind, str] = {
    "fno": "FNO",
    "fno-monarch": "FNO-Monarch",
    "unet": "U-Net",
    "tf-net": "TF-Net",
    "resnet": "ResNet",
}


def fno(
    n_modes: tuple[int, ...], width: int, *, in_channels: int, out_channels: int, layers: int = 4
) -> nn.Module:
    """The Fourier neural operator of neuraloperator, with its own FFT-based convolution: the baseline.

    (B, in_channels, n_1 … n_d) → (B, out_channels, n_1 … n_d). ``n_modes`` are totals per axis.
    """
    return _body(n_modes, width, in_channels, out_channels, layers)


def fno_monarch(
    n_modes: tuple[int, ...],
    width: int,
    grid: tuple[int, ...],
    *,
    in_channels: int,
    out_channels: int,
    layers: int = 4,
    learned: bool = True,
) -> nn.Module:
    """The same operator with learned Monarch transforms defined on ``grid``, initialised to the DFT.

    Before training it is the FNO, on every grid. ``learned=False`` keeps the exact DFT. On a CPU the rest of
    each layer runs in one pass, with the same result (``nn.fused``). Input has the dtype of the weights; to
    another than float32, convert the model before its first call: neuraloperator keeps the coordinates of it.
    """
    conv = MonarchSpectralConv.on_grid(grid, learned=learned)
    model = use_pointwise_products(_body(n_modes, width, in_channels, out_channels, layers, conv_module=conv))
    from monarch_sciml.nn.fused import use_fused_layers  # imports neuraloperator

    return use_fused_layers(model)


def _body(n_modes: tuple[int, ...], width: int, in_channels: int, out_channels: int, layers: int, **options):
    from neuralop.models import FNO  # takes seconds to import, so only when a model is built

    return FNO(
        n_modes=n_modes,
        in_channels=in_channels,
        out_channels=out_channels,
        hidden_channels=width,
        n_layers=layers,
        **options,
    )


def can_fuse(model: nn.Module) -> bool:
    """Whether torch's fused Adam takes the parameters: one pass over memory in place of ten, none complex."""
    return not any(p.is_complex() for p in model.parameters())


def spectral_weights(model: nn.Module) -> list[nn.Parameter]:
    """What mixes the channels of each mode, in spectral convolutions of neuraloperator and this package."""
    found = []
    for module in model.modules():
        if isinstance(module, MonarchSpectralConv):
            found.append(module.weight)
        elif is_spectral_conv(module):
            weight: Any = module.weight  # a parameter, or a factorised one
            found += [weight] if isinstance(weight, nn.Parameter) else weight.parameters()
    return found


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a model again."""

    kind: Kind
    grid: tuple[int, ...]
    channels: int
    n_in: int
    modes: int
    """Per axis, and ``layers``: of Fourier neural operators; the others have the depth of their sources."""
    width: int
    layers: int
    scale: float | tuple[float, ...] = 1.0
    """What frames are divided by: one number, or one for each channel."""
    residual: bool = False

    def build(self) -> "FramePredictor":
        """A freshly initialised model; torch's global random state decides the weights."""
        if self.kind not in get_args(Kind):
            raise InputError(f"a model among {', '.join(get_args(Kind))}", repr(self.kind), "choose one")
        if isinstance(self.scale, tuple) and len(self.scale) != self.channels:
            expected = f"one scale, or one for each of {self.channels} channels"
            raise InputError(expected, f"{len(self.scale)}", "correct it")
        operator = self._operator() if self.kind in ("fno", "fno-monarch") else self._convolutional()
        return FramePredictor(operator, self)

    def _operator(self) -> nn.Module:
        n_modes = (self.modes,) * len(self.grid)
        if self.modes > min(self.grid):
            raise InputError(
                f"at most {min(self.grid)} modes on a grid of {self.grid}",
                f"modes={self.modes}",
                "lower --modes, or keep more grid points with a smaller --every",
            )
        n_in, n_out = self.n_in * self.channels, self.channels
        if self.kind == "fno":
            return fno(n_modes, self.width, in_channels=n_in, out_channels=n_out, layers=self.layers)
        return fno_monarch(
            n_modes, self.width, self.grid, in_channels=n_in, out_channels=n_out, layers=self.layers
        )

    def _convolutional(self) -> nn.Module:
        if len(self.grid) != 2:
            found = f"{len(self.grid)} axes"
            raise InputError(
                f"a grid of two axes for the model {self.kind}", found, "take fno or fno-monarch"
            )
        match self.kind:
            case "unet":
                network = UNet(self.n_in * self.channels, self.channels, width=self.width)
            case "tf-net":
                network = TFNet(self.n_in, self.channels, width=self.width)
            case _:
                return ResNet(self.n_in * self.channels, self.channels, width=self.width)
        if min(self.grid) < network.least:
            expected = f"at least {network.least} points per axis for the model {self.kind}"
            raise InputError(expected, f"{self.grid}", "keep more with a smaller --every")
        return network


def channel_units(scale: float | tuple[float, ...], frames: Tensor) -> Tensor | None:
    """The scale of each channel of frames (B, T, C, *grid), as a tensor (C, *1); None if one serves all."""
    return frames.new_tensor(scale).view(-1, *[1] * (frames.ndim - 3)) if isinstance(scale, tuple) else None


class FramePredictor(Pretrained):
    """Frames in, next frame out: (B, n_in, C, *grid) → (B, C, *grid).

    Frames become channels of the operator, divided by ``scale``, the standard deviation of the training data,
    of each channel where there are several. With ``residual`` the operator predicts the change since the last
    frame. Frames have the dtype of the weights, float32; a forward pass under autocast converts.
    """

    def __init__(self, operator: nn.Module, config: ModelConfig):
        super().__init__()
        self.operator, self.config = operator, config
        # neuraloperator adds its constructor arguments to the state, which then holds more than tensors
        self.register_state_dict_post_hook(_drop_metadata)

    def forward(self, frames: Tensor) -> Tensor:
        """Predict the next frame, on whatever grid ``frames`` are given."""
        d, c = len(self.config.grid), self.config
        if frames.ndim != d + 3 or frames.shape[1:3] != (c.n_in, c.channels):
            raise InputError(
                f"frames (batch, {c.n_in}, {c.channels}, {d} grid axes)",
                f"shape {tuple(frames.shape)}",
                "pass as many frames and channels as the model was trained with",
            )
        # of an FNO's weights some are complex; torch.compile does not know the dtype of their parts
        check_dtype(frames, next(p.dtype for p in self.parameters() if not p.is_complex()))
        if frames.shape[0] == 0:  # len(frames) would bind an exported model to one number of samples
            return frames[:, -1]
        units = channel_units(c.scale, frames)
        scale = c.scale if units is None else units
        change = self.operator((frames / scale).flatten(1, 2)) * scale
        return frames[:, -1] + change if c.residual else change

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new model of the settings in a ``config.json``. Raises ``InputError``."""
        settings = read_settings(ModelConfig, config)
        return cls(settings.build().operator, settings)

    def about(self) -> About:
        """For the model card."""
        c = self.config
        size, grid = " × ".join(map(str, c.grid)), ", ".join(map(str, c.grid))
        spectral = c.kind in ("fno", "fno-monarch")
        operator = (
            f"A Fourier neural operator of {count(c.layers, 'layer')}, {c.modes} modes per axis and"
            if spectral
            else f"A {NAMES[c.kind]} of"
        )
        transforms = {
            "fno": "Its transforms are the FFT.",
            "fno-monarch": "Its transforms are learned Monarch matrices, the DFT on this grid at first.",
        }
        grids = {
            True: f"Takes other grids too; what is finer than {size} passes the skip connections only.",
            False: "For the grid spacing of the training only: convolutions know points, not lengths.",
        }
        return About(
            title=f"{NAMES[c.kind]} on {size}",
            summary=(
                f"Predicts the next frame of a trajectory{', as a change of the last one,' * c.residual} "
                f"from {count(c.n_in, 'frame')}: (batch, {c.n_in}, {c.channels}, {grid}) → (batch, "
                f"{c.channels}, {grid}), equal steps in time. {operator} width {c.width}: "
                f"{count_parameters(self):,} parameters. {transforms.get(c.kind, '')}".rstrip()
            ),
            task=("other", "prediction of the next frames of a trajectory"),
            tags=(
                "partial-differential-equations",
                c.kind,
                *(("neural-operator", "fno") if spectral else ()),
            ),
            usage=USAGE,
            command="pde train",
            metrics={"one_step": ("relative_l2", "relative L2, one step ahead"), "rollout": ROLLOUT},
            limits=(
                "For trajectories like those of the training: equation, coefficients, domain and time step.",
                f"Input in the units of the training data. {DOMAINS[c.kind == 'fno-monarch']}",
                grids[spectral],
            ),
            data=_training_data,
        )


USAGE = """\
from monarch_sciml.pde import FramePredictor, rollout

model = FramePredictor.from_pretrained("{source}")
prediction = rollout(model, frames, 20)  # the next 20 frames, each of them predicted from the ones before"""
DOMAINS = (
    "Domains are taken as periodic.",
    "Transforms began as those of a periodic domain.",
)
ROLLOUT = ("relative_l2", "relative L2, rollout over all frames")


def _training_data(settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    grid = " × ".join(map(str, data.get("grid", "?")))
    return {
        "name": Path(str(settings.get("data", "trajectories"))).name,
        "training": f"the first {settings.get('n_train')} trajectories, {data.get('frames')} frames, {grid}",
        "held out": f"the last {settings.get('n_test')} trajectories",
    }


def _drop_metadata(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    state.pop("_metadata", None)
