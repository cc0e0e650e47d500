"""Trained models as safetensors and JSON: loading them executes nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.training.files import whole_file, whole_files

__all__ = ["CARD", "CONFIG", "WEIGHTS", "load_weights", "save_model"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any], card: str) -> Path:
    """Write weights, configuration and model card into ``folder``, beside what else lies there.

    Raises ``InputError`` where nothing can be written or tensors share memory. If that happens, or the
    process is killed, there is the model that was there before, or none: ``config.json``, without which there
    is no model, comes last.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        with whole_file(folder / CONFIG) as partial:
            partial.write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
            with whole_files(folder) as unfinished:
                save_file(weights, unfinished / WEIGHTS, metadata={"format": "pt"})
                (unfinished / CARD).write_text(card, encoding="utf-8")
                # safetensors makes files for the owner alone; who may read the card may read the weights
                (unfinished / WEIGHTS).chmod((unfinished / CARD).stat().st_mode)
                # all is written: from here on files are only renamed, and the old model ends
                (folder / CONFIG).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        expected = f"a folder for the model that can be written, {folder}"
        raise InputError(expected, str(error), "free some space, or choose another") from None
    except RuntimeError as error:  # of save_file: its first line says which
        found = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError("tensors without common memory", found, "clone the tied ones first") from None
    return folder


def load_weights(folder: Path, model: nn.Module) -> nn.Module:
    """Load ``folder/model.safetensors`` into a model built from ``folder/config.json``.

    Weights are converted to the precision of the model. Raises ``InputError`` when the file is missing,
    damaged, not finite in that precision, or does not fit the model: in names, shapes, or by being real,
    complex or of integers.
    """
    file = folder / WEIGHTS
    if file.exists() and not file.is_file():
        raise InputError(f"exported weights {file}", "no regular file", "check the path")
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise InputError(
            f"exported weights {file}", "no such file", "train to the end, or check the path"
        ) from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"a safetensors file {file}", str(error), "copy the file again") from None
    for name, own in model.state_dict().items():
        if name in weights:
            weights[name] = _converted(name, weights[name], own.dtype, file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"weights that fit the configuration in {folder}",
            " ".join(str(error).split()),
            f"keep {CONFIG} and {WEIGHTS} together",
        ) from None
    return model


def _converted(name: str, value: Tensor, dtype: torch.dtype, file: Path) -> Tensor:
    """``value`` in the dtype of the model; refused where that loses a kind of number or is not finite."""
    if (value.is_complex(), value.is_floating_point()) != (dtype.is_complex, dtype.is_floating_point):
        expected, found = f"{dtype} for {name} in {file}", f"{value.dtype}"
        raise InputError(expected, found, f"keep {CONFIG} and {WEIGHTS} together")
    value = value.to(dtype)
    if not value.isfinite().all():
        found = f"NaN or infinity in {name} as {dtype}"
        raise InputError(f"finite weights in {file}", found, "copy the file again")
    return value
