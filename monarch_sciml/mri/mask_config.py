"""Settings of undersampling masks: those that are chosen, and those that are left to somebody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from monarch_sciml.errors import InputError
from monarch_sciml.training import use_paths

__all__ = ["POISSON_LOWEST", "Kind", "MaskConfig", "MaskOptions"]

Kind = Literal["random", "equispaced", "equispaced-fraction", "magic", "magic-fraction", "poisson"]
WHOLE_STEPS = ("equispaced", "magic")  # every R-th column: R is a whole number
POISSON_LOWEST = 1.5  # acceleration; from some 1.3 downwards the points are as close as they get


@dataclass(frozen=True)
class MaskOptions:
    """Which points of k-space are kept; None leaves a choice to ``filled``."""

    mask: Kind | None = None
    """Columns: random, equispaced, magic (offset for conjugate symmetry; -fraction: count the fully sampled
    centre towards the acceleration). Points: poisson (variable-density Poisson disc)."""
    accelerations: tuple[float, ...] | None = None
    """One is drawn for each mask, together with its centre fraction."""
    center_fractions: tuple[float, ...] | None = None
    """Fully sampled part of the columns (poisson: of each axis) around the centre; one per acceleration."""
    mask_file: Path | None = None
    """A mask of your own instead, .npy or BART .cfl: 0 and 1 of shape (W,), (1, W) or (H, W)."""

    def __post_init__(self) -> None:
        use_paths(self, "mask_file")
        for name in ("accelerations", "center_fractions"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _numbers(name, value))

    def filled(self, others: MaskConfig) -> MaskConfig:
        """What was chosen, and the rest from ``others``; of its centre fractions one, if they are alike."""
        rates = others.accelerations if self.accelerations is None else self.accelerations
        fractions = self.center_fractions
        if fractions is None:
            fractions = others.center_fractions
            if len(set(fractions)) == 1:
                fractions = fractions[: max(1, len(rates))]
        return MaskConfig(self.mask or others.mask, rates, fractions, self.mask_file)


@dataclass(frozen=True)
class MaskConfig(MaskOptions):
    """Which points of k-space are kept. A single acceleration or fraction may be passed as a number."""

    mask: Kind = "random"
    """Columns: random, equispaced, magic (offset for conjugate symmetry; -fraction: count the fully sampled
    centre towards the acceleration). Points: poisson (variable-density Poisson disc)."""
    accelerations: tuple[float, ...] = (4.0,)
    """One is drawn for each mask, together with its centre fraction."""
    center_fractions: tuple[float, ...] = (0.08,)
    """Fully sampled part of the columns (poisson: of each axis) around the centre; one per acceleration."""
    mask_file: Path | None = None
    """A mask of your own instead, .npy or BART .cfl: 0 and 1 of shape (W,), (1, W) or (H, W)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in get_args(Kind):
            raise InputError(f"a mask out of {', '.join(get_args(Kind))}", f"{self.mask!r}", "choose one")
        if not self.accelerations or len(self.accelerations) != len(self.center_fractions):
            raise InputError(
                "as many center_fractions as accelerations, at least one",
                f"{len(self.center_fractions)} and {len(self.accelerations)}",
                "give them in pairs, as in (4, 8) with (0.08, 0.04)",
            )
        for rate in self.accelerations:
            if not 1 <= rate <= 65536:
                raise InputError("accelerations of 1 to 65536", f"{rate}", "keep one line in so many")
            if self.mask == "poisson" and rate < POISSON_LOWEST:
                expected = f"accelerations of at least {POISSON_LOWEST} for the mask poisson"
                raise InputError(expected, f"{rate}", "use random")
            if self.mask in WHOLE_STEPS and rate != round(rate):
                raise InputError(
                    f"whole accelerations for the mask {self.mask}", f"{rate}", f"use {self.mask}-fraction"
                )
        for fraction in self.center_fractions:
            if not 0 <= fraction <= 1:
                raise InputError("center_fractions between 0 and 1", f"{fraction}", "0.08 is 8 %")

    def filled(self, others: MaskConfig) -> MaskConfig:
        """Itself: all is chosen."""
        return self

    def __str__(self) -> str:
        """As in *poisson 4× (centre 12 %) or 8× (centre 12 %)*."""
        if self.mask_file is not None:
            return self.mask_file.name
        pairs = zip(self.accelerations, self.center_fractions, strict=True)
        return f"{self.mask} " + " or ".join(f"{rate:g}× (centre {100 * part:.3g} %)" for rate, part in pairs)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """One number or several, those of NumPy as those of Python."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    several = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(each, Real) for each in several):
        raise InputError(f"{name} as numbers", f"{value!r}", "pass 4.0, or several as in (4.0, 8.0)")
    return tuple(each.item() if isinstance(each, np.generic) else each for each in several)
