"""A training may end at any step, and goes on from there: to the same weights, means and rows."""

import signal
from pathlib import Path

import pytest
import torch
from test_loop import DATA, EPOCHS, STEPS, Experiment, Stop, table, whole, without_seconds

from monarch_sciml.errors import InputError
from monarch_sciml.training import files
from monarch_sciml.training.loop import Task, fit

__all__ = ["whole"]
TOTAL = EPOCHS * STEPS


def place(run: Path) -> int:
    """Steps done, by the checkpoint."""
    return torch.load(run / "last.ckpt", weights_only=True)["global_step"]


def assert_goes_on(run: Path, whole: tuple[Experiment, Path], done: int) -> None:
    """Resuming takes the steps that are left, and ends as if nothing had happened."""
    resumed = Experiment()
    torch.rand(3)
    resumed.fit(run, resume=True)
    assert resumed.steps == TOTAL - done
    assert torch.equal(resumed.weights, whole[0].weights)
    assert without_seconds(run) == without_seconds(whole[1])
    assert sorted(f.name for f in run.iterdir()) == ["last.ckpt", "metrics.csv", "tensorboard"]


@pytest.mark.parametrize("step", [1, 3, 4, 5, TOTAL - 1])
def test_killed_at_any_step(whole, tmp_path, step):
    """With a checkpoint after every step, none is done twice."""
    experiment = Experiment()

    def die(at: int) -> None:
        if at == step:
            raise Stop

    experiment.at_step = die
    with pytest.raises(Stop):
        experiment.fit(tmp_path, checkpoint_minutes=0)
    assert place(tmp_path) == step
    (tmp_path / "last.ckpt.partial").write_bytes(b"half")  # as a kill in the middle of writing leaves it
    assert_goes_on(tmp_path, whole, step)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 5, TOTAL - 1])
def test_interrupted_after_the_step_with_a_checkpoint(whole, tmp_path, kind, step, capsys):
    experiment = Experiment()
    experiment.at_step = lambda at: at == step and signal.raise_signal(kind)
    with pytest.raises(
        KeyboardInterrupt, match=rf"after step {step + 1}, which .*last.ckpt holds; .*--resume"
    ):
        experiment.fit(tmp_path)
    assert place(tmp_path) == step + 1
    assert len(table(tmp_path)) if step >= STEPS else not (tmp_path / "metrics.csv").exists()
    assert_goes_on(tmp_path, whole, step + 1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("call", [2, TOTAL - 1])
def test_interrupted_in_the_middle_of_the_evaluation(whole, tmp_path, call):
    """Three batches of it an epoch: what was trained is saved, and evaluated when the run goes on."""
    experiment, calls = Experiment(), iter(range(1, 100))
    experiment.at_metrics = lambda: next(calls) == call and signal.raise_signal(signal.SIGTERM)
    done = -(-call // STEPS) * STEPS
    with pytest.raises(KeyboardInterrupt, match=rf"after step {done}, which"):
        experiment.fit(tmp_path)
    assert place(tmp_path) == done
    # and once more, while the resumed run does it
    again = Experiment()
    again.at_metrics = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=rf"after step {done}, which"):
        again.fit(tmp_path, resume=True)
    assert_goes_on(tmp_path, whole, done)


def test_second_interrupt_does_not_wait_for_the_step(whole, tmp_path):
    experiment = Experiment()

    def insist(at: int) -> None:
        if at == STEPS + 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    experiment.at_step = insist
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; continue from .*last.ckpt with --resume"):
        experiment.fit(tmp_path)
    assert place(tmp_path) == STEPS
    assert_goes_on(tmp_path, whole, STEPS)


def test_interrupted_before_anything_was_saved(tmp_path):
    experiment = Experiment()

    def insist(at: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    experiment.at_step = insist
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint; start it again with --resume"):
        experiment.fit(tmp_path)


def test_minutes_between_checkpoints(tmp_path, monkeypatch):
    """Saved when they have passed and when the epoch ends, not otherwise."""
    saved = []

    def note(checkpoint, *arguments):
        saved.append(checkpoint["global_step"])

    monkeypatch.setattr(torch, "save", note)
    Experiment().fit(tmp_path)
    assert saved == [3, 6, 9, 12]
    saved.clear()
    Experiment().fit(tmp_path, checkpoint_minutes=0)
    assert saved == list(range(1, TOTAL + 1))


def fail_to_write(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """A full disk, found out at the very end of writing ``name`` for the ``call``-th time."""
    replace, calls = files.os.replace, iter(range(1, 10**6))

    def full(source: Path, target: Path) -> None:
        if Path(target).name == name and next(calls) == call:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)


@pytest.mark.parametrize(("name", "call"), [("last.ckpt", 1), ("last.ckpt", 5), ("metrics.csv", 1)])
def test_full_disk_is_one_line_and_keeps_the_checkpoint(whole, tmp_path, monkeypatch, name, call):
    with monkeypatch.context() as patch:
        fail_to_write(patch, name, call)
        with pytest.raises(
            InputError,
            match=r"that can be written; found .*No space left.*; make room.*--resume",
        ) as error:
            Experiment().fit(tmp_path, checkpoint_minutes=0)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.partial"))
    done = {"last.ckpt": call - 1, "metrics.csv": 2}[name]
    assert (place(tmp_path) if done else 0) == done
    assert_goes_on(tmp_path, whole, done)


@pytest.mark.parametrize("bad", ["loss", "metrics"])
def test_mistake_in_the_data_found_late_is_its_one_line(tmp_path, bad):
    experiment = Experiment()

    def refuse(*_: int) -> None:
        if experiment.steps == STEPS:
            raise InputError("finite numbers", "NaN in a late sample", "leave it out")

    setattr(experiment, {"loss": "at_step", "metrics": "at_metrics"}[bad], refuse)
    with pytest.raises(InputError, match="found NaN in a late sample; leave it out"):
        experiment.fit(tmp_path)


def test_sample_that_cannot_be_read_is_its_one_line(tmp_path):
    class Damaged(type(DATA)):
        def __getitem__(self, index: int):
            raise InputError("a readable slice", "damage", "copy the file again")

    experiment = Experiment()
    task = Task(experiment.model, experiment.loss, experiment.metrics, experiment.optimiser)
    data = Damaged(*DATA.tensors)
    with pytest.raises(InputError, match="found damage; copy the file again"):
        fit(task, data, DATA, tmp_path, epochs=2, batch=4, device="cpu", progress=False)


def test_memory_does_not_grow_with_the_steps(tmp_path):
    """After a warm-up, hundreds of steps and tens of checkpoints and rows add nothing of note."""
    page, experiment, used = 4096, Experiment(), {}

    def note(step: int) -> None:
        if step in (90, 390):
            used[step] = int(Path("/proc/self/statm").read_text().split()[1]) * page

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    experiment.at_step = note
    experiment.batches = type("Forgetful", (), {"append": lambda self, batch: None})()
    experiment.fit(tmp_path, epochs=131)
    assert used[390] - used[90] < 8 << 20
