"""Slices to train on, with what is to come out, and their coil maps."""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.datasets import Slice, SliceDataset
from monarch_sciml.mri.masks import mask_from_kspace, measured_columns
from monarch_sciml.mri.sensitivity import estimate_maps, root_sum_of_squares

__all__ = ["Example", "Examples", "MapCache"]

CACHED_BYTES = 2 << 30


class Example(NamedTuple):
    """A fully sampled slice and what is to come out."""

    kspace: Tensor
    target: Tensor
    padding: tuple[int, int]
    name: str
    key: int


class Examples(Dataset[Example]):
    """Slices with a target: the one in the file, or the root sum of squares of the fully sampled images."""

    def __init__(self, slices: SliceDataset, first_key: int = 0):
        self.slices, self.first_key = slices, first_key

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Example:
        found: Slice = self.slices[index]
        columns = measured_columns(mask_from_kspace(found.kspace))
        if columns is None:
            expected, slice_ = "fully sampled k-space to train on", f"slice {found.index} of {found.name}"
            raise InputError(expected, f"gaps in {slice_}", "leave undersampled files out")
        padding = (max(columns[0], found.padding[0]), min(columns[1], found.padding[1]))
        target = found.target
        if target is None:
            inverse = FourierTransform(tuple(found.kspace.shape), inverse=True)
            target = root_sum_of_squares(inverse(found.kspace))
        return Example(found.kspace, target, padding, found.name, self.first_key + index)

    def check(self) -> None:
        """Refuse a volume that is undersampled, as far as the middle row of its first slice shows that.

        Raises:
            InputError: as reading does.
        """
        for index, row in self.slices.middle_rows().items():
            columns = np.flatnonzero(row.any(axis=0))
            if len(columns) and len(columns) <= columns[-1] - columns[0]:
                self[index]

    def digest(self) -> str:
        """Of a row of each volume, by which a training knows its volumes again."""
        found = hashlib.sha256()
        for row in self.slices.middle_rows().values():
            found.update(row.tobytes())
        return found.hexdigest()[:16]


class MapCache:
    """Coil maps of slices that come again in every epoch, the most recent ones up to some gigabytes."""

    def __init__(self, method: str, limit: int = CACHED_BYTES):
        self.method, self.limit, self.bytes = method, limit, 0
        self.kept: OrderedDict[tuple[int, tuple[int, int]], Tensor] = OrderedDict()

    def __call__(self, key: int, kspace: Tensor, acs: tuple[int, int]) -> Tensor:
        """Maps (C, H, W) of the slice ``key`` with calibration region ``acs``."""
        if (key, acs) not in self.kept:
            maps = estimate_maps(kspace, acs, self.method)
            self.kept[key, acs] = maps
            self.bytes += maps.nbytes
            while self.bytes > self.limit and len(self.kept) > 1:
                self.bytes -= self.kept.popitem(last=False)[1].nbytes
        self.kept.move_to_end((key, acs))
        return self.kept[key, acs]
