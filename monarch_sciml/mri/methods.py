"""Methods by name, ready to run: classical ones with their settings, trained ones with their network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.mri.classical import METHODS
from monarch_sciml.mri.masks import Mask, MaskConfig
from monarch_sciml.mri.models import SliceReconstructor, learned_transforms
from monarch_sciml.mri.slices import Reconstruct
from monarch_sciml.training import read_config
from monarch_sciml.training.distributed import local_device
from monarch_sciml.training.export import WEIGHTS
from monarch_sciml.training.hub import find_model

__all__ = ["REGULARISED", "Method", "MethodName", "classical_method", "trained_method"]

MethodName = Literal[
    "zero-filled",
    "cg-sense",
    "l1-wavelet",
    "tv",
    "unet",
    "msense",
    "varnet",
    "varnet-monarch",
    "modl",
    "modl-monarch",
]
REGULARISED = {"cg-sense": "damping", "l1-wavelet": "regularisation", "tv": "regularisation"}
"""What each method calls its λ."""
SLACK = 1.25  # of the acceleration of a mask that was found: its centre comes on top


@dataclass(frozen=True)
class Method:
    """A method ready to run, and what is known of it."""

    name: str
    run: Reconstruct
    maps: str = "espirit"
    network: str | None = None
    """A hash of its weights."""
    sampling: MaskConfig | None = None
    """The masks of its training, if they are known."""
    nonunitarity: float | None = None
    departure: float | None = None

    def doubt(self, mask: Mask, chosen: bool) -> str | None:
        """What to say of a mask unlike those of the training, or of a kind that nobody has ``chosen``."""
        trained, drawn = self.sampling, mask.drawn
        if trained is None:
            if self.network is None or drawn is None or drawn.mask_file is not None or chosen:
                return None
            return (
                f"the masks of the training are not known here: drawn are {drawn}; its README.md names them"
            )
        low, high = min(trained.accelerations), max(trained.accelerations)
        if drawn is not None and drawn.mask_file is None:
            alike, rate, shown = drawn.mask == trained.mask, drawn.accelerations[0], str(drawn)
        else:
            points = mask.pattern.shape[-2] > 1
            alike, rate = points == (trained.mask == "poisson"), mask.acceleration
            low, high = low / SLACK, high * SLACK
            shown = f"of {'points' if points else 'columns'}, {rate:.3g}×"
        if alike and low <= rate <= high:
            return None
        return f"the mask is {shown}, but the network was trained under {trained}: results may be worse"


def classical_method(name: str, regularisation: float | None, iterations: int | None) -> Method:
    """A method without training; its name tells which of its defaults were changed."""
    settings: dict[str, Any] = {}
    shown = [name]
    if regularisation is not None:
        settings[REGULARISED[name]] = regularisation
        shown.append(f"λ = {regularisation:g}")
    if iterations is not None:
        settings["iterations"] = iterations
        shown.append(f"{iterations} iterations")
    return Method(", ".join(shown), partial(METHODS[name], **settings))


def trained_method(run: Path, name: str | None, device: Literal["cpu", "cuda"]) -> Method:
    """The network in a run directory or an exported folder.

    Raises:
        InputError: no model there, a damaged one, or one of another kind than ``name``.
    """
    reconstructor = SliceReconstructor.from_pretrained(run)
    model, settings = reconstructor.network, reconstructor.config
    if name not in (None, settings.kind):
        found, remedy = f"a {settings.kind}", f"pass --method {settings.kind}"
        raise InputError(f"a {name} in {run}", found, remedy)
    place = local_device(device)
    model.to(place)

    def solve(kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        batch = (t[None].to(place) for t in (kspace, pattern, maps))
        with torch.inference_mode():
            return model(*batch)[0].cpu()

    folder = find_model(run)
    transforms = learned_transforms(model)
    return Method(
        settings.kind,
        solve,
        maps="espirit" if settings.maps == "espirit" else "low-resolution",
        network=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16],
        sampling=_trained_sampling(folder),
        nonunitarity=_mean(t.nonunitarity() for t in transforms),
        departure=_mean(t.departure() for t in transforms),
    )


def _mean(values: Iterable[Tensor]) -> float | None:
    with torch.no_grad():
        found = list(values)
    return float(torch.stack(found).mean()) if found else None


def _trained_sampling(folder: Path) -> MaskConfig | None:
    """The masks of the training that left its model in ``folder``; None where nobody, or a file, tells."""
    folder = folder.resolve()
    if folder.name != "model":
        return None
    try:
        saved = read_config(folder.parent)["sampling"]
        known = MaskConfig(saved["mask"], saved["accelerations"], saved["center_fractions"])
        # a path out of somebody's settings is not followed
        return None if saved.get("mask_file") else known
    except (InputError, KeyError, TypeError):
        return None
