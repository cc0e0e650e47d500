"""Coil maps out of files: read as k-space is, and brought to the scale that reconstructions need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.sensitivity import normalise_maps

__all__ = ["GivenMaps"]

WELL_SCALED = 0.01  # maps this close to √Σ|S|² = 1 are not worth a word


class GivenMaps:
    """A file of maps, in the formats of k-space, closed at the end of a ``with``.

    ``warn`` is told of the first slice whose scale is off. Raises ``InputError``, which speaks of maps.
    """

    def __init__(self, path: Path, warn: Callable[[str], object]):
        with _of_maps():
            self.file = open_kspace(path)
        self.warn: Callable[[str], object] | None = warn

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """Those of a slice, the same for all if there are none but one, normalised: they scale the image.

        Maps of another ``shape`` (C, H, W) are left as they are to who refuses them.
        """
        with _of_maps():
            found = torch.from_numpy(self.file[index if len(self) > 1 else 0])
        if found.shape != shape:
            return found
        found, (low, high) = normalise_maps(found)
        if self.warn is not None and max(high - 1, 1 - low) > WELL_SCALED:
            name = self.file.path.name
            self.warn(f"coil maps in {name} have √Σ|S|² of {low:.3g} to {high:.3g}: they are scaled to 1")
            self.warn = None
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@contextmanager
def _of_maps() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        named = (part.replace("a k-space file", "a file of coil maps") for part in error.args)
        expected, found, remedy = (part.replace("k-space", "coil maps") for part in named)
        raise InputError(expected, found, remedy) from error
