"""FNO and FNO-Monarch: one body, neuraloperator's, with one operand exchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.nn import MonarchSpectralConv, use_pointwise_products
from monarch_sciml.training.hub import Pretrained, read_settings
from monarch_sciml.training.model_card import About, count

__all__ = ["FramePredictor", "ModelConfig", "count_parameters", "fno", "fno_monarch"]


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

    Before training it is the FNO, on every grid. ``learned=False`` keeps the exact DFT. The 1 × 1
    convolutions of the body run as products, with the same result.
    """
    conv = MonarchSpectralConv.on_grid(grid, learned=learned)
    return use_pointwise_products(_body(n_modes, width, in_channels, out_channels, layers, conv_module=conv))


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


def count_parameters(model: nn.Module) -> int:
    """Real numbers that are trained: a complex parameter counts twice."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a model again."""

    kind: Literal["fno", "fno-monarch"]
    grid: tuple[int, ...]
    channels: int
    n_in: int
    modes: int
    width: int
    layers: int
    scale: float = 1.0
    residual: bool = False

    def build(self) -> "FramePredictor":
        """A freshly initialised model; torch's global random state decides the weights."""
        n_modes = (self.modes,) * len(self.grid)
        if self.modes > min(self.grid):
            raise InputError(
                f"at most {min(self.grid)} modes on a grid of {self.grid}",
                f"modes={self.modes}",
                "lower --modes, or keep more grid points with a smaller --every",
            )
        n_in, n_out = self.n_in * self.channels, self.channels
        match self.kind:
            case "fno":
                operator = fno(n_modes, self.width, in_channels=n_in, out_channels=n_out, layers=self.layers)
            case "fno-monarch":
                operator = fno_monarch(
                    n_modes, self.width, self.grid, in_channels=n_in, out_channels=n_out, layers=self.layers
                )
            case _:
                raise InputError("the model fno or fno-monarch", repr(self.kind), "choose one of them")
        return FramePredictor(operator, self)


class FramePredictor(Pretrained):
    """Frames in, next frame out: (B, n_in, C, *grid) → (B, C, *grid).

    Frames become channels of the operator, divided by ``scale``, the standard deviation of the training data.
    With ``residual`` the operator predicts the change since the last frame.
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
                f"this model takes {c.n_in} frames of {c.channels} channels",
            )
        change = self.operator(frames.flatten(1, 2) / c.scale) * c.scale
        return frames[:, -1] + change if c.residual else change

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new model of the settings in a ``config.json``. Raises ``InputError``."""
        settings = read_settings(ModelConfig, config)
        return cls(settings.build().operator, settings)

    def about(self) -> About:
        """For the model card."""
        from monarch_sciml.pde.recipe import TrainConfig  # which imports this module

        c = self.config
        size, grid = " × ".join(map(str, c.grid)), ", ".join(map(str, c.grid))
        name = {"fno": "FNO", "fno-monarch": "FNO-Monarch"}[c.kind]
        transforms = {
            "fno": "Its transforms are the FFT.",
            "fno-monarch": "Its transforms are learned Monarch matrices, the DFT on this grid at first.",
        }
        return About(
            title=f"{name} on {size}",
            summary=(
                f"Predicts the next frame of a trajectory{', as a change of the last one,' * c.residual} "
                f"from {count(c.n_in, 'frame')}: (batch, {c.n_in}, {c.channels}, {grid}) → (batch, "
                f"{c.channels}, {grid}), equal steps in time. A Fourier neural operator of "
                f"{count(c.layers, 'layer')}, {c.modes} modes per axis and width {c.width}: "
                f"{count_parameters(self):,} parameters. {transforms[c.kind]}"
            ),
            task=("other", "prediction of the next frames of a trajectory"),
            tags=("neural-operator", "fno", c.kind, "partial-differential-equations")[c.kind == "fno" :],
            usage=USAGE,
            command="pde train",
            options=TrainConfig,
            metrics={"one_step": ("relative_l2", "relative L2, one step ahead"), "rollout": ROLLOUT},
            limits=(
                "For trajectories like those of the training: equation, coefficients, domain and time step.",
                "Input in the units of the training data. Domains are taken as periodic.",
                f"Takes other grids too; what is finer than {size} passes through the skip connections only.",
            ),
            data=_training_data,
        )


USAGE = """\
from monarch_sciml.pde import FramePredictor, rollout

model = FramePredictor.from_pretrained("{source}")
prediction = rollout(model, frames, 20)  # the next 20 frames, each of them predicted from the ones before"""
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
