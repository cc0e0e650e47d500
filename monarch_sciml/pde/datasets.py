"""Trajectories of PDEs from files, as tensors (T, C, *grid), and windows of them for training.

``TrajectoryDataset`` reads MATLAB 5 and 7.3 (the FNO benchmark), this package's HDF5, PDEBench, the_well,
``.npy``, ``.npz`` and neuraloperator's ``.pt`` files; ``Windows`` cuts pairs (past, future) out of it.
"""

import math
import operator
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from monarch_sciml.errors import InputError, decoding
from monarch_sciml.pde.formats import open_source
from monarch_sciml.pde.sources import Source, Variable, named_source, refuse_masked, to_numpy

__all__ = ["TrajectoryDataset", "Windows", "train_test_split"]

BLOCK_BYTES = 2**27  # loading and checking hold about this much at a time
SCATTERED_BYTES = 2**28  # from here on, reading a scattered file one trajectory at a time is worth a warning


class TrajectoryDataset(Dataset[Tensor]):
    """The trajectories of one file; ``dataset[i]`` is trajectory i, a fresh tensor of shape (T, C, *grid).

    HDF5, MATLAB 7.3 and ``.npy`` files stay on disk and are read one trajectory at a time; the others are
    read into memory. Each process opens the file for itself, so that DataLoader workers are safe.

    MATLAB 7.3 stores time outermost: *one* trajectory is scattered over the *whole* file. Load such a file,
    which reads it once from start to end: ``TrajectoryDataset(path, samples=slice(1000)).load()``.

    Args:
        path: the file. Its format is found in its content.
        key: name of the array; by default the one usual for the format (``u``, ``sol``, ``w``, ``tensor``,
            the only one with three or more axes).
        axes: the order of the stored axes, such as ``"n t x y"`` or ``"n x y t c"``: n counts trajectories,
            c channels. Needed only if the order is not the one usual for the format. MATLAB axes are named
            as MATLAB and ``scipy.io.loadmat`` show them, in files of either version.
        samples: which trajectories, for example ``slice(0, 1000)``; must lie inside the file.
        times: which frames, for example ``slice(0, 20)``; counted after ``initial`` has been prepended.
        every: keep one grid point in so many along each spatial axis; divides n (periodic grids) or n − 1
            (grids with points on both ends).
        initial: prepend the array ``a`` of a MATLAB file, the state at time 0, to its ``u``. Without times
            that is done anyway where both are one state, (n, x) or (n, x, y), and with ``coeff`` and ``sol``.
        in_memory: load at once.
        dtype: a floating-point type. Integers, booleans and other floating-point types are converted.

    Attributes:
        format: the name of the format. channels: C. grid: points along each spatial axis. n_times: T.
        times: (T,) float64, or None if the file has none; in the file's units.
        stored: (N, T, C, *grid) of the whole file, before anything was chosen.
        viscosity: if the file states it, else None. attributes: what else the file says of itself.

    Raises:
        InputError: a file that is missing, damaged, of unknown kind, with other axes than expected, or a
            choice of trajectories or times outside it. Reading raises it for NaN, infinity and what an
            HDF5 file says stands for a missing value, naming trajectory and time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | None = None,
        axes: str | None = None,
        samples: slice = slice(None),
        times: slice = slice(None),
        every: int = 1,
        initial: bool = False,
        in_memory: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        # absolute: a worker that opens the file again may stand in another folder
        with decoding(Path(path), "trajectory"):
            self.path = Path(path).expanduser().absolute()
        self._how = {"key": key, "axes": axes, "initial": initial}
        source = open_source(self.path, **self._how)
        self._setup(source, samples, times, every, dtype)
        if in_memory or not source.lazy:
            self._load()

    @classmethod
    def from_array(
        cls,
        array: np.ndarray | Tensor,
        *,
        axes: str | None = None,
        times: Sequence[float] | np.ndarray | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Your own array, by default with axes ``"n t x"`` or ``"n t x y"``; ``times`` (T,) increase.

        Raises:
            InputError: as for a file, and masked values.
        """
        dataset = cls.__new__(cls)
        dataset.path = Path("the array")
        refuse_masked(array)
        try:
            arrays = {"array": to_numpy(array) if isinstance(array, Tensor) else np.asarray(array)}
            arrays |= {} if times is None else {"t": np.asarray(times, dtype=np.float64)}
        except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            found = f"{type(error).__name__}: {error}"
            raise InputError("a dense array, and times, of numbers", found, "convert them") from None
        dataset._setup(named_source(arrays, "array", axes, "array"), slice(None), slice(None), 1, dtype)
        dataset._load()
        return dataset

    def _setup(self, source: Source, samples: slice, times: slice, every: int, dtype: torch.dtype) -> None:
        if not dtype.is_floating_point:
            raise InputError("a floating-point dtype", str(dtype), "use torch.float32")
        if every < 1 or any(n % every and (n - 1) % every for n in source.grid):
            raise InputError(
                "every ≥ 1 that divides the number of grid points n, or n − 1 where both ends are points",
                f"every={every} for the grid {_product(source.grid)}",
                "use every=1 or a divisor",
            )
        self._source: Source | None = source
        self._process = os.getpid()
        self._samples = _chosen(samples, source.length("n"), "samples=", "trajectories")
        self._times = _chosen(times, source.length("t"), "times=", "time steps")
        self._every, self._dtype, self._checked = every, dtype, False
        self._numbers = range(source.length("n")), range(source.length("t"))  # of what the source holds
        self.format = source.format
        self.attributes: dict[str, Any] = source.attributes
        self.viscosity: float | None = source.viscosity
        self.channels = source.length("c")
        self.stored = (*(source.length(axis) for axis in "ntc"), *source.grid)
        self.grid = tuple(len(range(0, n, every)) for n in source.grid)
        self.n_times = len(self._times)
        self.times: Tensor | None = None
        if source.times is not None:
            self.times = torch.tensor(source.times[_as_slice(self._times)], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Tensor:
        return self.read(index)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames ``start`` … ``stop`` − 1 of one trajectory, shape (stop − start, C, *grid).

        Only these are read from the file. Raises ``InputError`` if there are none, or fewer.
        """
        index = _counted(index, len(self))
        times = self._times[_as_slice(_chosen(slice(start, stop), self.n_times, "start and stop", "frames"))]
        source = self._opened()
        if source.lazy and source.scattered and source.nbytes > SCATTERED_BYTES:
            warnings.warn(
                f"{self.path.name} scatters each trajectory over the whole file: call .load() once instead",
                stacklevel=3,
            )
        block = self._block(self._samples[index : index + 1], times)
        frames = torch.from_numpy(block[0]).to(self._dtype)
        if self._dtype.itemsize < 4 and not frames.float().isfinite().all():
            trajectory = self._numbers[0][self._samples[index]]
            found = f"larger ones in trajectory {trajectory} of {self.path.name}"
            raise InputError(f"numbers that {self._dtype} can hold", found, "use dtype=torch.float32")
        return frames

    def select(self, samples: slice) -> Self:
        """The same data set with only these of its trajectories; nothing is read or copied."""
        selected = self._twin()
        selected._samples = self._samples[_as_slice(_chosen(samples, len(self), "samples=", "trajectories"))]
        return selected

    def load(self) -> Self:
        """The same data set in memory, N · T · C · grid numbers; the file is read once, in stored order."""
        loaded = self._twin()
        loaded._load()
        return loaded

    def check(self) -> None:
        """Read everything, in blocks of bounded size, and refuse NaN and infinity.

        Raises:
            InputError: naming the first trajectory and time that are not finite, both counted as in the file.
        """
        for n, t in self._blocks():
            self._block(self._samples[n], self._times[t])

    def place(self, trajectory: int, time: int) -> str:
        """``trajectory 3 at time index 2 of a.h5``, both counted as in the file, for messages."""
        numbers, indices = self._numbers
        n, t = numbers[self._samples[trajectory]], indices[self._times[time]]
        return f"trajectory {n} at time index {t} of {self.path.name}"

    def _twin(self) -> Self:
        # copy.copy would go through __getstate__ and open the file once more
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def _load(self) -> None:
        shape = (len(self), self.n_times, self.channels, *self.grid)
        with decoding(self.path, self.format):
            data = np.empty(shape, np.float64 if self._dtype is torch.float64 else np.float32)
        for n, t in self._blocks():
            data[n, t] = self._block(self._samples[n], self._times[t])
        variable = Variable("loaded", data, "ntc" + "xyz"[: len(self.grid)])
        self._source = Source(self.format, [variable])
        numbers, indices = self._numbers
        self._numbers = numbers[_as_slice(self._samples)], indices[_as_slice(self._times)]
        self._samples, self._times = range(len(self)), range(self.n_times)
        self._every, self._checked = 1, True

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Pieces (trajectories, times) of about BLOCK_BYTES, in an order that suits the file."""
        source = self._opened()
        frames = max(1, BLOCK_BYTES // (8 * source.length("c") * math.prod(source.grid)))
        if source.scattered:
            n_step = min(frames, len(self))
            t_step = max(1, frames // n_step)
        else:
            t_step = min(frames, self.n_times)
            n_step = max(1, frames // t_step)
        pieces = [(n, t) for n in range(0, len(self), n_step) for t in range(0, self.n_times, t_step)]
        pieces.sort(key=lambda piece: piece[::-1] if source.scattered else piece)
        return ((slice(n, n + n_step), slice(t, t + t_step)) for n, t in pieces)

    def _block(self, samples: range, times: range) -> np.ndarray:
        """A fresh finite array (n, t, c, *grid); ``samples`` and ``times`` count as in the file."""
        with decoding(self.path, self.format):
            stored = self._opened().read(samples, times)
        # subsampled here and not in the file: HDF5 reads strided selections point by point
        stored = stored[(..., *[slice(None, None, self._every)] * len(self.grid))]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported below
            block = np.array(stored, np.float64 if self._dtype is torch.float64 else np.float32, order="C")
        if not self._checked and not np.isfinite(block).all():
            n, t = np.argwhere(~np.isfinite(block))[0, :2]
            missing = " or ".join(f"{number:g}" for number in self._opened().missing)
            what = f"NaN, infinity or {missing} (a missing value)" if missing else "NaN or infinity"
            raise InputError(
                "finite numbers",
                f"{what} in trajectory {samples[n]} at time index {times[t]} of {self.path.name}",
                "leave the trajectory out with samples=, or repair the file",
            )
        return block

    def _opened(self) -> Source:
        # an HDF5 handle must not be shared with the process it was forked from
        if self._source is None or (self._source.lazy and self._process != os.getpid()):
            self._source, self._process = open_source(self.path, **self._how), os.getpid()
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        keep = self._source is not None and not self._source.lazy
        return {**self.__dict__, "_source": self._source if keep else None}

    def __repr__(self) -> str:
        return (
            f"TrajectoryDataset({self.path.name}, {self.format}: {len(self)} trajectories × "
            f"{self.n_times} times × {self.channels} channels × {_product(self.grid)} points)"
        )


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (x, y) of consecutive frames: x (n_in, C, *grid) is followed by y (n_out, C, *grid).

    Window k of trajectory i starts at frame k · ``stride``; the windows of trajectory 0 come first. Only the
    frames of a window are read. With n_in = 10 and n_out = T − 10 there is one window, the full rollout of
    the FNO benchmark; n_in = n_out = 1 gives every step, as for a Markov model.

    Raises:
        InputError: fewer than n_in + n_out time steps, a number below 1, or another kind of data set.
    """

    def __init__(self, dataset: TrajectoryDataset, n_in: int, n_out: int, *, stride: int = 1):
        if not isinstance(dataset, TrajectoryDataset):  # such as the parts of torch's random_split
            remedy = "choose trajectories with select(slice(start, stop)), or permute the array first"
            raise InputError("a TrajectoryDataset", type(dataset).__name__, remedy)
        if min(n_in, n_out, stride) < 1:
            raise InputError(
                "n_in, n_out and stride of at least 1",
                f"n_in={n_in}, n_out={n_out}, stride={stride}",
                "raise them",
            )
        if dataset.n_times < n_in + n_out:
            raise InputError(
                f"at least n_in + n_out = {n_in + n_out} time steps",
                f"{dataset.n_times} in {dataset.path.name}",
                "lower n_in or n_out",
            )
        self.dataset, self.n_in, self.n_out = dataset, n_in, n_out
        self.starts = range(0, dataset.n_times - n_in - n_out + 1, stride)

    def __len__(self) -> int:
        return len(self.dataset) * len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        trajectory, window = divmod(_counted(index, len(self)), len(self.starts))
        start = self.starts[window]
        frames = self.dataset.read(trajectory, start, start + self.n_in + self.n_out)
        return frames[: self.n_in], frames[self.n_in :]


def train_test_split(
    dataset: TrajectoryDataset, n_train: int, n_test: int
) -> tuple[TrajectoryDataset, TrajectoryDataset]:
    """The first ``n_train`` and the last ``n_test`` trajectories, as the FNO benchmark divides its files.

    Raises:
        InputError: if the two would overlap, or one of them is empty.
    """
    if min(n_train, n_test) < 1 or n_train + n_test > len(dataset):
        raise InputError(
            f"n_train, n_test ≥ 1 that share the {len(dataset)} trajectories of {dataset.path.name}",
            f"n_train={n_train}, n_test={n_test}",
            "lower one of them",
        )
    return dataset.select(slice(n_train)), dataset.select(slice(len(dataset) - n_test, None))


def _counted(index: int, available: int) -> int:
    """Negative counts from the end; outside raises IndexError, by which Python's iteration ends."""
    try:
        return range(available)[operator.index(index)]
    except TypeError:
        remedy = "take several with torch.utils.data.Subset, or trajectories with select(slice(start, stop))"
        raise InputError("one whole number as index", f"{index!r}", remedy) from None


def _chosen(wanted: slice, available: int, argument: str, things: str) -> range:
    """``wanted`` as a range inside 0 … available − 1; what lies outside is refused, not cut off silently."""
    if not isinstance(wanted, slice):
        found, remedy = f"{type(wanted).__name__}", "write slice(start, stop, step)"
        raise InputError(f"{argument} as a slice of the {available} {things}", found, remedy)
    bounds = [bound for bound in (wanted.start, wanted.stop) if bound is not None]
    inside = all(-available <= bound <= available for bound in bounds)
    chosen = range(available)[wanted] if inside and (wanted.step is None or wanted.step > 0) else range(0)
    if not chosen:
        raise InputError(
            f"{argument} as a slice with a positive step inside the {available} {things} there are",
            f"{wanted.start}:{wanted.stop}:{wanted.step}",
            f"choose within 0:{available}",
        )
    return chosen


def _as_slice(chosen: range) -> slice:
    return slice(chosen.start, chosen.stop, chosen.step)


def _product(grid: tuple[int, ...]) -> str:
    return " × ".join(map(str, grid))
