"""What a file of trajectories was taken for, in a line, and what in it makes training fail without a word."""

import torch
from torch import Tensor

from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.training.model_card import count

__all__ = ["doubts", "summary"]

FAR = 10.0  # between standard deviations, or of a mean in them: beyond that a warning
GUESSED = ("NumPy", "HDF5", "PyTorch")  # formats that do not name their axes


def summary(training: TrajectoryDataset, held_out: TrajectoryDataset) -> str:
    """``a.h5 (HDF5): 120 trajectories × 20 frames × 1 channel, 32 × 32 points; 100 to train on, …``."""
    points = " × ".join(map(str, training.grid))
    return (
        f"{training.path.name} ({training.format}): {training.stored[0]} trajectories × "
        f"{training.n_times} frames × {count(training.channels, 'channel')}, {points} points; "
        f"{len(training)} to train on, {len(held_out)} held out"
    )


def doubts(training: TrajectoryDataset, *, guessed: bool) -> list[str]:
    """A line for each thing that is probably not meant so; reads all trajectories.

    Steps in time that differ, which the model takes for equal; with ``guessed`` axes an array that may have
    time last; channels of very different size, or far from zero, for there is one scale for all.
    """
    name = training.path.name
    found = [*_uneven(training.times), *(_time_last(training) if guessed else [])]
    moments = [
        (w.double().mean(_but_channels(w)), w.double().square().mean(_but_channels(w))) for w in training
    ]
    mean, square = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
    deviation = (square - mean**2).clamp_min(0).sqrt()
    low, high = deviation.min().item(), deviation.max().item()
    if high > FAR * low:
        found.append(
            f"standard deviations of the channels are {low:.3g} to {high:.3g}, and all are divided by one "
            "number: the small ones will hardly be learned; divide each channel by its own"
        )
    far = (mean.abs() - FAR * deviation).argmax()
    if mean[far].abs() > FAR * deviation[far]:
        which = f"of channel {far} (the first is 0)" if training.channels > 1 else "of the values"
        found.append(
            f"the mean {which} is {mean[far]:.3g} and the standard deviation {deviation[far]:.3g}: what "
            "changes is lost in what does not; subtract the mean"
        )
    return [f"{name}: {line}" for line in found]


def _but_channels(w: Tensor) -> list[int]:
    return [axis for axis in range(w.ndim) if axis != 1]


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


def _time_last(dataset: TrajectoryDataset) -> list[str]:
    _, frames, channels, *grid = dataset.stored
    known = dataset.times is not None or dataset.format not in GUESSED
    if known or channels > 1 or len(grid) != 2 or not frames == grid[0] != grid[1]:
        return []
    return [
        f"read as [n, t, x, y], {frames} frames of {grid[0]} × {grid[1]} points; if it is [n, x, y, t], "
        f"{grid[1]} frames of {frames} × {grid[0]}, as the FNO benchmark has it, pass --axes nxyt"
    ]
