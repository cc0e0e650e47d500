"""Trained models as safetensors and JSON: loading them executes nothing."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from monarch_sciml.errors import InputError
from monarch_sciml.training.run import write_json

__all__ = ["load_weights", "save_model"]


def save_model(path: Path, model: nn.Module, config: Mapping[str, Any]) -> Path:
    """Write ``model.safetensors`` and ``config.json`` into the directory ``path``, whole or not at all."""
    unfinished = path.with_name(path.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, unfinished / "model.safetensors")
    write_json(unfinished / "config.json", dict(config))
    if path.exists():
        shutil.rmtree(path)
    os.replace(unfinished, path)
    return path


def load_weights(path: Path, model: nn.Module) -> nn.Module:
    """Load ``path/model.safetensors`` into a model built from ``path/config.json``.

    Raises ``InputError`` when the file is missing, damaged, or does not fit the model.
    """
    file = path / "model.safetensors"
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise InputError(
            f"exported weights {file}", "no such file", "train to the end, or check the path"
        ) from None
    except SafetensorError as error:
        raise InputError(f"a safetensors file {file}", str(error), "copy the file again") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"weights that fit the configuration in {path}",
            " ".join(str(error).split()),
            "keep config.json and model.safetensors together",
        ) from None
    return model
