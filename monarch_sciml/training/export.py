"""Trained models as safetensors and JSON: loading them executes nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from monarch_sciml.errors import InputError
from monarch_sciml.training.files import whole_file, whole_files

__all__ = ["CARD", "CONFIG", "WEIGHTS", "load_weights", "save_model"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def save_model(folder: Path, model: nn.Module, config: Mapping[str, Any], card: str) -> Path:
    """Write weights, configuration and model card into ``folder``, beside what else lies there.

    Raises ``InputError`` where nothing can be written. If that happens, or the process is killed, there is
    the model that was there before, or none: ``config.json``, without which there is no model, comes last.
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
    return folder


def load_weights(folder: Path, model: nn.Module) -> nn.Module:
    """Load ``folder/model.safetensors`` into a model built from ``folder/config.json``.

    Raises ``InputError`` when the file is missing, damaged, not finite, or does not fit the model.
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
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise InputError(f"finite weights in {file}", f"NaN or infinity in {bad[0]}", "copy the file again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"weights that fit the configuration in {folder}",
            " ".join(str(error).split()),
            f"keep {CONFIG} and {WEIGHTS} together",
        ) from None
    return model
