"""FNO and FNO-Monarch: one body, neuraloperator's, with one operand exchanged."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.nn import MonarchSpectralConv, use_pointwise_products
from monarch_sciml.training import load_weights, read_json, save_model

__all__ = ["FramePredictor", "ModelConfig", "count_parameters", "fno", "fno_monarch", "load_model"]


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


class FramePredictor(nn.Module):
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

    def save(self, path: Path) -> Path:
        """Export as safetensors and JSON into the directory ``path``."""
        return save_model(path, self, asdict(self.config))


def _drop_metadata(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    state.pop("_metadata", None)


def load_model(path: Path) -> FramePredictor:
    """A model exported by ``FramePredictor.save``; executes nothing from the files. Raises ``InputError``."""
    content = read_json(path / "config.json")
    try:
        config = ModelConfig(**{**content, "grid": tuple(content["grid"])})
        with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
            model = config.build()
    except InputError:
        raise
    except (TypeError, KeyError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(
            "the configuration of an exported model", found, f"check {path / 'config.json'}"
        ) from None
    load_weights(path, model)
    return model.eval()
