"""What a file of trajectories was taken for, in a line, and what in it makes training fail."""

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.training.model_card import count

__all__ = ["check_periodic", "check_targets", "doubts", "moments", "summary"]

FAR = 10.0  # between the frames of a pair, or of a mean in standard deviations: beyond that a warning
GUESSED = ("NumPy", "HDF5", "PyTorch")  # formats that do not name their axes
MATLAB = ("MATLAB 5", "MATLAB 7.3")  # nor do these; with four, time is known to be the last


def summary(training: TrajectoryDataset, held_out: TrajectoryDataset) -> str:
    """``a.h5 (HDF5): 120 trajectories × 20 frames × 1 channel, 32 × 32 points; 100 to train on, …``."""
    points = " × ".join(map(str, training.grid))
    return (
        f"{training.path.name} ({training.format}): {training.stored[0]} trajectories × "
        f"{training.n_times} frames × {count(training.channels, 'channel')}, {points} points; "
        f"{len(training)} to train on, {len(held_out)} held out"
    )


def check_targets(dataset: TrajectoryDataset, n_in: int) -> None:
    """Refuse zeros to predict: the relative error of a frame that is zero everywhere is infinite.

    Reads all trajectories (T, C, *grid); frames from number ``n_in`` on are predicted.

    Raises:
        InputError: naming the first such frame as the file counts.
    """
    for i in range(len(dataset)):
        zero = ~dataset[i][n_in:].flatten(1).any(dim=1)
        if zero.any():
            raise InputError(
                "frames to predict that are not zero everywhere, for errors are relative to them",
                f"zeros in {dataset.place(i, n_in + int(zero.int().argmax()))}",
                "leave such frames out with --first-frame and --frames, or trajectories out of the file",
            )


def check_periodic(dataset: TrajectoryDataset, every: int) -> None:
    """Refuse a part of the points that is no periodic grid: ``every`` must divide their number n.

    Raises:
        InputError: it divides n − 1 only.
    """
    for n in _cut(dataset, every):
        found = f"every={every}, after which the last gap of {n} points is 1 and not {every}"
        remedy = f"use a divisor of {n} as --every, or train without symmetries"
        raise InputError("points that are a periodic grid, for symmetries", found, remedy)


def doubts(training: TrajectoryDataset, *, guessed: bool, every: int = 1) -> list[str]:
    """A line for each thing that is probably not meant so; reads all trajectories.

    Steps in time that differ, which the model takes for equal; with ``guessed`` axes an array that may have
    others; every so many points of a grid that has both ends, or has not; two frames of very
    different size, for there is one scale for both; values far from zero.
    """
    name = training.path.name
    found = [
        *_uneven(training.times),
        *(_other_axes(training) if guessed else []),
        *_both_ends(training, every),
        *_unlike_frames(training),
    ]
    mean, square = moments(training)
    deviation = (square - mean**2).clamp_min(0).sqrt()
    far = (mean.abs() - FAR * deviation).argmax()
    if mean[far].abs() > FAR * deviation[far]:
        which = f"of channel {far} (the first is 0)" if training.channels > 1 else "of the values"
        found.append(
            f"the mean {which} is {mean[far]:.3g} and the standard deviation {deviation[far]:.3g}: what "
            "changes is lost in what does not; subtract the mean"
        )
    return [f"{name}: {line}" for line in found]


def moments(dataset: TrajectoryDataset) -> Tensor:
    """Mean of the values and of their squares, for each channel, in double precision."""
    sums = torch.zeros(2, dataset.channels, dtype=torch.float64)
    for trajectory in dataset:
        w = trajectory.double()
        others = [axis for axis in range(w.ndim) if axis != 1]
        sums += torch.stack([w.mean(others), w.square().mean(others)])
    return sums / len(dataset)


def _uneven(times: Tensor | None) -> list[str]:
    if times is None or len(times) < 3:
        return []
    steps = times.diff()
    # times stored in float32 are not even to the last digit
    if steps.max() - steps.min() <= 0.01 * steps.mean() + 1e-6 * times.abs().max():
        return []
    return [
        f"the steps between its times are {steps.min():.4g} to {steps.max():.4g}, which the model takes for "
        "equal; interpolate, or leave frames out with --first-frame and --frames"
    ]


def _cut(dataset: TrajectoryDataset, every: int) -> list[int]:
    """Numbers of stored points that ``every`` does not divide."""
    return [n for n in dataset.stored[3:] if n % every]


def _both_ends(dataset: TrajectoryDataset, every: int) -> list[str]:
    return [
        f"every={every} keeps the first and the last of {n} points, right where these are the ends of the "
        f"domain; if that is periodic, the last gap is too short: use a divisor of {n} as --every"
        for n in _cut(dataset, every)[:1]
    ]


def _unlike_frames(dataset: TrajectoryDataset) -> list[str]:
    """Of pairs, such as a coefficient and a solution."""
    if dataset.n_times != 2:
        return []
    squares = torch.zeros(2, dtype=torch.float64)
    for w in dataset:
        squares += w.double().square().flatten(1).mean(1)
    first, second = (squares / len(dataset)).sqrt().tolist()
    if max(first, second) <= FAR * min(first, second):
        return []
    return [
        f"the first of two frames is about {first:.3g}, the second {second:.3g}, and both are divided by one "
        "number: training will be slow; multiply one of them in the file"
    ]


def _other_axes(dataset: TrajectoryDataset) -> list[str]:
    """Where an array does not tell them: one channel, no times, and sizes as other orders have them."""
    _, frames, channels, *grid = dataset.stored
    if dataset.times is not None or channels > 1:
        return []
    if grid == [frames] and dataset.format in (*GUESSED, *MATLAB):
        return [
            f"read as {frames} frames of {frames} points; if these are fields of {frames} × {frames} points, "
            "[n, x, y], write each behind what to predict it from, as [n, t, x, y]"
        ]
    if dataset.format not in GUESSED or len(grid) != 2 or not frames == grid[0] != grid[1]:
        return []
    return [
        f"read as [n, t, x, y], {frames} frames of {grid[0]} × {grid[1]} points; if it is [n, x, y, t], "
        f"{grid[1]} frames of {frames} × {grid[0]}, as the FNO benchmark has it, pass --axes nxyt"
    ]
