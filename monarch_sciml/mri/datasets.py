"""Slices of many k-space files as one data set, and the split of files into training, validation and test."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from monarch_sciml.errors import InputError, decoding
from monarch_sciml.mri.formats import KSpaceFile, open_kspace
from monarch_sciml.mri.header import Header

__all__ = ["Slice", "SliceDataset", "list_files", "split_volumes"]

OPEN_FILES = 8  # handles a process keeps; a shuffled loader finds few of them again anyway

PathLike = str | os.PathLike[str]


class Slice(NamedTuple):
    """Slice ``index`` of the file ``name``, as it lies there: neither masked nor normalised."""

    kspace: Tensor  # complex64 (coils, H, W), zero frequency at H // 2, W // 2
    target: Tensor | None  # float32 (h, w), in the units of the inverse orthonormal Fourier transform
    mask: Tensor | None  # bool (W,), of a file that is undersampled and says so
    padding: tuple[int, int]  # only the columns left ≤ w < right were measured; (0, W) without a header
    name: str  # of the file, with its ending: the seed of reproducible masks
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    attributes: dict[str, str | float | int]
    header: Header | None


class SliceDataset(Dataset[Slice]):
    """Every slice of every file, ordered by file and slice; sizes and numbers of coils may differ.

    Opening the data set reads shapes and headers only; a slice is read when asked for. Each process opens
    the files for itself and keeps at most ``OPEN_FILES`` of them, so that DataLoader workers are safe and
    neither memory nor handles grow. As sizes differ, load one slice at a time:
    ``DataLoader(dataset, batch_size=None, num_workers=4)``.

    Args:
        source: a folder (all its ``.h5`` files), one file of any format of :func:`open_kspace`, or a list
            of files.
        acquisition: keep the files whose attribute ``acquisition`` is this, or one of these.
        coils: keep the files with so many coils.
        min_slices: keep the files with at least so many slices.
        middle: keep this fraction of each file's slices, around the middle one: the outermost often show
            nothing. At least one slice stays.
        include_target: read the target too, where there is one.
        header: False ignores the headers of the files, for damaged or incomplete ones.

    Attributes:
        volumes: the files that were kept, as :class:`KSpaceFile`, closed until they are read.

    Raises:
        InputError: no file, one that cannot be read (the message names it), or none that is kept.
    """

    def __init__(
        self,
        source: PathLike | Sequence[PathLike],
        *,
        acquisition: str | Sequence[str] | None = None,
        coils: int | None = None,
        min_slices: int = 1,
        middle: float = 1.0,
        include_target: bool = True,
        header: bool = True,
    ):
        if not 0 < middle <= 1:
            raise InputError("0 < middle ≤ 1", f"middle={middle}", "pass the fraction of slices to keep")
        wanted = (
            None if acquisition is None else {acquisition} if isinstance(acquisition, str) else {*acquisition}
        )
        self.include_target = include_target
        self.volumes: list[KSpaceFile] = []
        seen = set()
        for path in list_files(source):
            with open_kspace(path, header) as file:
                kind = str(file.attributes.get("acquisition", "none"))
                seen.add(f"{kind} with {file.shape[1]} coils and {len(file)} slices")
                fits = (wanted is None or kind in wanted) and coils in (None, file.shape[1])
                if fits and len(file) >= min_slices:
                    self.volumes.append(file)
        if not self.volumes:
            asked = f"acquisition {acquisition}, coils {coils}, min_slices {min_slices}"
            raise InputError(f"files with {asked}", f"only {', '.join(sorted(seen)[:6])}", "ask for less")
        # an array, not a list of tuples: workers share it with the process they were forked from
        self._slices = np.array(
            [(v, s) for v, file in enumerate(self.volumes) for s in _middle(len(file), middle)]
        )
        self._open: OrderedDict[int, KSpaceFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> Slice:
        volume, number = (int(i) for i in self._slices[range(len(self))[index]])
        file = self._opened(volume)
        target = file.target(number) if self.include_target else None
        width = file.shape[3]
        return Slice(
            kspace=torch.from_numpy(file[number]),
            target=None if target is None else torch.from_numpy(target),
            mask=None if file.mask is None else torch.from_numpy(file.mask.copy()),
            padding=(0, width) if file.header is None else file.header.measured(width),
            name=file.path.name,
            index=number,
            attributes=dict(file.attributes),
            header=file.header,
        )

    def leave_blanks_out(self) -> dict[str, list[int]]:
        """Keep the slices that hold something; those that were left out, by the name of their file.

        Blank is what :meth:`KSpaceFile.is_blank` says: k-space of zeros, or a target of zeros.

        Raises:
            InputError: a file that cannot be read, or blank slices only.
        """
        blank = np.array([self._opened(v).is_blank(int(s)) for v, s in self._slices])
        if blank.all():
            found = f"zeros only in {self.volumes[0].path.name}"
            raise InputError(
                "slices that hold something", found + " and others" * (len(self.volumes) > 1), "check them"
            )
        left_out: dict[str, list[int]] = {}
        for volume, number in self._slices[blank]:
            left_out.setdefault(self.volumes[volume].path.name, []).append(int(number))
        self._slices = self._slices[~blank]
        return left_out

    def middle_rows(self) -> dict[int, np.ndarray]:
        """Of the first slice of each volume its number and row H // 2, complex (coils, W)."""
        firsts = np.unique(self._slices[:, 0], return_index=True)[1].tolist()
        places = {i: self._slices[i].tolist() for i in firsts}
        return {i: self._opened(volume).middle_row(number) for i, (volume, number) in places.items()}

    def close(self) -> None:
        """Close the open files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, volume: int) -> KSpaceFile:
        """The file, the most recently used of those that stay open."""
        self._open[volume] = self.volumes[volume]
        self._open.move_to_end(volume)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return self.volumes[volume]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}


def list_files(source: PathLike | Sequence[PathLike]) -> list[Path]:
    """The ``.h5`` files of a folder in alphabetical order, one file, or the files of a list as given.

    Raises:
        InputError: a folder without such a file, or an empty list.
    """
    if isinstance(source, str | os.PathLike):
        with decoding(Path(source), "k-space"):
            folder = Path(source).expanduser()
            if not folder.is_dir():
                return [folder]
        # names that begin with a dot are what other systems leave behind in archives
        found = sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))
        if not found:
            raise InputError("a folder of .h5 files", f"none in {folder}", "check the path")
        return found
    if not source:
        raise InputError("at least one file", "an empty list", "check where the list comes from")
    return [Path(path) for path in source]


def split_volumes(
    source: SliceDataset | PathLike | Sequence[PathLike],
    parts: Sequence[float] | Sequence[int],
    seed: int = 0,
) -> list[list[Path]]:
    """Distribute whole files at random, so that no slice of a volume is in two parts.

    The order of the files does not matter: the same files and seed give the same parts. Several volumes may
    show the same person (attribute ``patient_id``); split by person yourself where that matters.

    Args:
        source: a data set (the files it kept), or what :class:`SliceDataset` accepts.
        parts: numbers of files, such as (80, 10, 10), or fractions, such as (0.8, 0.1, 0.1); they may leave
            files over.
        seed: of the shuffle.

    Returns:
        The files of each part, sorted, to be passed to :class:`SliceDataset`.

    Raises:
        InputError: more files asked for than there are, or a part without any.
    """
    files = [v.path for v in source.volumes] if isinstance(source, SliceDataset) else list_files(source)
    files = sorted(set(files))
    n = len(files)
    counted = all(isinstance(part, int) for part in parts)
    ends = [float(end) * (1 if counted else n) for end in accumulate(parts, initial=0)]
    edges = [round(end) if 0 <= end < n + 1 else n + 1 for end in ends]  # NaN and infinity too
    if not parts or max(edges) > n or any(start >= stop for start, stop in pairwise(edges)):
        found = f"parts {tuple(parts)} of {n} files"
        raise InputError("parts of at least one file each, no more than there are", found, "change the parts")
    order = np.random.default_rng(seed).permutation(n)
    return [sorted(files[i] for i in order[start:stop]) for start, stop in pairwise(edges)]


def _middle(n: int, fraction: float) -> range:
    kept = max(1, round(fraction * n))
    return range((n - kept) // 2, (n - kept) // 2 + kept)
