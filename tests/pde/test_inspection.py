"""What is said of a file before training: how it was understood, and what in it looks wrong."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from small_runs import SETTINGS
from waves import save_waves, waves

from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.pde.inspection import doubts, summary
from monarch_sciml.pde.recipe import TrainConfig, split, train

TINY = {**SETTINGS, "epochs": 1}


def said(data: Path, **changes) -> list[str]:
    config = TrainConfig(data=data, out=Path("run"), **{**TINY, **changes})
    return doubts(split(config)[0], guessed=config.axes is None, every=config.every)


def channels(*parts: np.ndarray) -> TrajectoryDataset:
    return TrajectoryDataset.from_array(np.stack(parts, -1), axes="n t x y c")


def test_summary(tmp_path):
    """Of what is used: frames and points after the selection, all trajectories of the file."""
    config = TrainConfig(
        data=save_waves(tmp_path / "a.npy"), out=tmp_path, first_frame=1, every=2, n_train=3, n_test=2
    )
    parts = split(config)
    assert summary(*parts) == (
        "a.npy (NumPy): 8 trajectories × 5 frames × 1 channel, 8 × 8 points; 3 to train on, 2 held out"
    )
    assert parts[0].stored == (8, 6, 1, 16, 16)
    line = TrajectoryDataset(save_waves(tmp_path / "b.npy", grid=(20,)))
    assert "8 trajectories × 6 frames × 1 channel, 20 points; 8 to" in summary(line, line)


def test_training_says_it_unless_quiet(data, tmp_path, capsys):
    train(TrainConfig(data=data, out=tmp_path / "a", **{**TINY, "quiet": False}))
    out = capsys.readouterr().out
    assert out.startswith("waves.npy (NumPy): 8 trajectories × 6 frames × 1 channel, 16 × 16 points; 6 to tr")
    train(TrainConfig(data=data, out=tmp_path / "b", **TINY))
    assert capsys.readouterr().out == ""


def test_nothing_to_doubt(data):
    assert said(data) == []
    assert doubts(channels(waves(), 1e-5 * waves()), guessed=True) == []  # each has its own scale
    assert doubts(channels(5 * waves().std() + waves()), guessed=True) == []


def test_values_far_from_zero(tmp_path):
    (line,) = doubts(channels(waves(), 300 + waves()), guessed=True)
    assert "the mean of channel 1 (the first is 0) is 300 and the standard deviation" in line
    np.save(tmp_path / "a.npy", 300 + waves())
    (line,) = said(tmp_path / "a.npy")
    assert line.startswith("a.npy: the mean of the values is 300 and the standard deviation")
    assert doubts(channels(waves(), 0 * waves() + 2), guessed=True)  # a channel that is constant


@pytest.mark.parametrize(
    ("times", "doubtful"),
    [
        ([0, 1, 2, 3, 4, 8], True),
        (np.geomspace(1, 2, 6), True),
        (np.linspace(0, 0.1, 6), False),
        ((1e3 + np.linspace(0, 0.1, 6)).astype(np.float32), False),  # as even as float32 can be
    ],
)
def test_steps_that_differ(tmp_path, times, doubtful):
    file = tmp_path / "a.npz"
    np.savez(file, u=waves(), t=times)
    lines = said(file)
    assert len(lines) == doubtful
    assert all("a.npz: the steps between its times are" in line for line in lines)
    # the frames that are used count
    assert said(file, frames=2) == []


def test_time_last(tmp_path):
    """[n, x, y, t], which an array does not tell from [n, t, x, y]."""
    benchmark = waves().transpose(0, 2, 3, 1)  # (8, 16, 16, 6)
    np.save(tmp_path / "a.npy", benchmark)
    (line,) = said(tmp_path / "a.npy", modes=2)
    assert "16 frames of 16 × 6 points; if it is [n, x, y, t], 6 frames of 16 × 16" in line
    assert "pass --axes nxyt" in line
    assert said(tmp_path / "a.npy", axes="nxyt") == []
    # who names the axes, or the times, is believed
    assert said(tmp_path / "a.npy", axes="ntxy", modes=2) == []
    np.savez(tmp_path / "b.npz", u=benchmark, t=np.arange(16))
    assert said(tmp_path / "b.npz", modes=2) == []
    np.save(tmp_path / "c.npy", waves(frames=16))  # as many frames as points along both axes
    assert said(tmp_path / "c.npy") == []


def test_fields_without_times(tmp_path):
    """[n, x, y], which an array does not tell from [n, t, x]; of a MATLAB file time is the last axis."""
    fields = waves(frames=1)[:, 0]
    np.save(tmp_path / "a.npy", fields)
    scipy.io.savemat(tmp_path / "a.mat", {"sol": fields})
    for name in ("a.npy", "a.mat"):
        (line,) = said(tmp_path / name)
        assert "read as 16 frames of 16 points; if these are fields of 16 × 16 points, [n, x, y]" in line
    scipy.io.savemat(tmp_path / "b.mat", {"u": fields, "t": np.arange(16)})
    assert said(tmp_path / "b.mat") == []
    assert said(tmp_path / "a.npy", axes="ntx") == []


def test_points_of_which_every_does_not_divide_the_number(tmp_path):
    """Right for a domain whose ends are points, too short a gap in a periodic one."""
    (line,) = said(save_waves(tmp_path / "a.npy", grid=(33, 17)), every=4)
    assert "a.npy: every=4 keeps the first and the last of 33 points, right where these are the ends" in line
    assert "use a divisor of 33 as --every" in line
    assert said(save_waves(tmp_path / "b.npy", grid=(36, 16)), every=4) == []
    assert said(tmp_path / "a.npy") == []


def test_a_pair_of_very_different_size(tmp_path):
    """Such as a coefficient and what it leads to."""
    pairs = waves(frames=2)
    pairs[:, 1] /= 100
    np.save(tmp_path / "a.npy", pairs)
    (line,) = said(tmp_path / "a.npy")
    assert "the first of two frames is about" in line
    assert "multiply one of them in the file" in line
    np.save(tmp_path / "b.npy", waves(frames=2))
    assert said(tmp_path / "b.npy") == []


def test_training_warns(tmp_path):
    np.save(tmp_path / "a.npy", 300 + waves())
    with pytest.warns(UserWarning, match=r"a.npy: the mean of the values is 300") as caught:
        train(TrainConfig(data=tmp_path / "a.npy", out=tmp_path / "run", **TINY))
    assert Path(caught[0].filename) == Path(__file__)
    assert len(caught) == 1
