"""The loop on a small linear model: exact resume, honest seconds, and a clean stop whatever happens."""

import csv
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import Malice
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from monarch_sciml.errors import InputError
from monarch_sciml.training import loop
from monarch_sciml.training.loop import Draw, Task, fit, seeded_generator

EPOCHS, STEPS, BATCH = 4, 3, 4
X = torch.randn(10, 5, generator=torch.Generator().manual_seed(1))  # 3 steps an epoch, the last one smaller
DATA = TensorDataset(X, X.sin())


class Experiment:
    """Counts calls and lets a test act at one of them."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))
        self.seed, self.steps, self.batches, self.losses = seed, 0, [], []
        self.at_step, self.at_metrics = (lambda step: None), (lambda: None)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], draw: Draw) -> Tensor:
        self.at_step(self.steps)
        self.steps += 1
        x, y = batch
        self.batches.append(x)
        noise = draw.normal(x)
        loss = (model(x + 0.1 * noise) - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def metrics(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        self.at_metrics()
        return {"error": (model(batch[0]) - batch[1]).square().mean()}

    def optimiser(self, model: nn.Module, steps_per_epoch: int):
        assert steps_per_epoch == STEPS
        adam = torch.optim.AdamW(model.parameters(), lr=0.01)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS * steps_per_epoch)

    def fit(self, run: Path, **options: Any) -> "Experiment":
        run.mkdir(exist_ok=True)
        task = Task(self.model, self.loss, self.metrics, self.optimiser, seed=self.seed)
        how = {"epochs": EPOCHS, "batch": BATCH, "device": "cpu", "progress": False, **options}
        assert fit(task, DATA, DATA, run, **how) is task
        return self

    @property
    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table(run)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Experiment, Path]:
    run = tmp_path_factory.mktemp("whole")
    return Experiment().fit(run), run


def test_run_directory(whole):
    experiment, run = whole
    assert sorted(f.name for f in run.iterdir()) == ["last.ckpt", "metrics.csv", "tensorboard"]
    assert any(f.name.startswith("events") for f in (run / "tensorboard").iterdir())
    rows = table(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0]) == ["epoch", "seconds", "error", "loss"]
    error = (experiment.model(X) - X.sin()).square().mean().item()
    assert float(rows[-1]["error"]) == pytest.approx(error, rel=1e-6)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    # every sample counts once, those of the smaller last batch too
    last = zip(experiment.batches[-STEPS:], experiment.losses[-STEPS:], strict=True)
    assert float(rows[-1]["loss"]) == pytest.approx(sum(len(x) * loss for x, loss in last) / len(X), rel=1e-6)


def test_checkpoint_holds_no_code(whole):
    checkpoint = torch.load(whole[1] / "last.ckpt", weights_only=True)
    weights = nn.utils.parameters_to_vector(list(checkpoint["state_dict"].values()))
    assert torch.equal(weights, whole[0].weights)
    assert checkpoint["global_step"] == EPOCHS * STEPS


def test_epochs_are_different_permutations(whole):
    batches = whole[0].batches
    assert [len(b) for b in batches] == [4, 4, 2] * EPOCHS
    epochs = [torch.cat(batches[i : i + STEPS]) for i in range(0, EPOCHS * STEPS, STEPS)]
    for a in epochs:
        assert torch.equal(a.sort(0).values, X.sort(0).values)
        assert sum(torch.equal(a, b) for b in epochs) == 1


def test_same_seed_same_weights_other_seed_others(whole, tmp_path):
    again, other = Experiment().fit(tmp_path / "a"), Experiment(seed=1).fit(tmp_path / "b")
    assert torch.equal(again.weights, whole[0].weights)
    assert without_seconds(tmp_path / "a") == without_seconds(whole[1])
    assert not torch.equal(other.batches[0], again.batches[0])
    assert not torch.isclose(other.weights, again.weights).any()


class Stop(Exception):
    pass


def interrupt(experiment: Experiment, where: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until an exception at ``where``: a step, a validation, or the second time a file is written."""
    calls = 0

    def stop_at(call: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop

    if where == "first step":
        experiment.at_step = lambda step: stop_at(1)
    elif where == "loss":
        experiment.at_step = lambda step: stop_at(2 * STEPS + 2)
    elif where == "metrics":
        experiment.at_metrics = lambda: stop_at(2 * STEPS + 2)
    elif where == "after the last step":
        experiment.at_metrics = lambda: stop_at(EPOCHS * STEPS)
    replace = os.replace

    def replace_or_stop(source: Path, target: Path) -> None:
        if str(target).endswith(where):
            stop_at(2)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(loop.os, "replace", replace_or_stop)
        with pytest.raises(Stop):
            experiment.fit(run)


@pytest.mark.parametrize(
    "where", ["first step", "loss", "metrics", "after the last step", "last.ckpt", "metrics.csv"]
)
def test_resumed_run_equals_an_uninterrupted_one(whole, tmp_path, monkeypatch, where):
    interrupt(Experiment(), where, tmp_path, monkeypatch)
    resumed = Experiment()
    torch.rand(3)  # nothing depends on the global random state
    resumed.fit(tmp_path, resume=True)
    assert torch.equal(resumed.weights, whole[0].weights)
    assert without_seconds(tmp_path) == without_seconds(whole[1])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last.ckpt", "metrics.csv", "tensorboard"]
    done = {"first step": 0, "last.ckpt": 1, "metrics.csv": 1, "after the last step": 3}.get(where, 2)
    assert resumed.steps == (EPOCHS - done) * STEPS


def test_resuming_a_complete_training_restores_its_weights(whole, tmp_path):
    Experiment().fit(tmp_path)
    resumed = Experiment()
    resumed.fit(tmp_path, resume=True)
    assert resumed.steps == 0
    assert torch.equal(resumed.weights, whole[0].weights)


def test_run_that_was_moved_resumes(whole, tmp_path, monkeypatch):
    interrupt(Experiment(), "loss", tmp_path / "run", monkeypatch)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert torch.equal(Experiment().fit(moved, resume=True).weights, whole[0].weights)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_training_and_say_so(whole, tmp_path, kind, capsys):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    experiment = Experiment()
    experiment.at_step = lambda step: step == STEPS and signal.raise_signal(kind)
    with pytest.raises(KeyboardInterrupt):
        experiment.fit(tmp_path)
    assert experiment.steps <= STEPS + 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(table(tmp_path)) == 1
    assert torch.equal(Experiment().fit(tmp_path, resume=True).weights, whole[0].weights)
    assert capsys.readouterr() == ("", "")


def test_infinite_loss_stops_and_keeps_the_checkpoint(whole, tmp_path):
    experiment = Experiment()

    def destroy(step: int) -> None:
        if step == STEPS + 1:
            nn.init.constant_(experiment.model[0].bias, torch.nan)

    experiment.at_step = destroy
    with pytest.raises(
        InputError, match=r"expected a finite loss; found nan at step 4; lower the learning rate"
    ):
        experiment.fit(tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    assert all(w.isfinite().all() for w in checkpoint["state_dict"].values())
    assert len(table(tmp_path)) == 1
    assert torch.equal(Experiment().fit(tmp_path, resume=True).weights, whole[0].weights)


def test_infinite_weights_do_not_replace_the_checkpoint(tmp_path):
    """The loss of the last step of an epoch is finite, but its update is not."""
    experiment = Experiment()

    def destroy(step: int) -> None:
        if step == 2 * STEPS - 1:
            experiment.model[0].bias.register_hook(lambda gradient: gradient / 0)

    experiment.at_step = destroy
    with pytest.raises(InputError, match=r"finite weights; found NaN or infinity after step 6; lower the"):
        experiment.fit(tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == STEPS


def test_two_trainings_do_not_share_a_directory(whole, tmp_path):
    """The second is refused before it writes; the first ends as if it had been alone, and leaves it free."""
    run, second = tmp_path / "run", Experiment()
    first, refused = Experiment(), []

    def meanwhile(step: int) -> None:
        if step == STEPS + 1:
            with pytest.raises(InputError, match=r"run to be free; found that another .*; wait for it, or"):
                second.fit(run, resume=True)
            refused.append(step)

    first.at_step = meanwhile
    first.fit(run)
    assert refused == [STEPS + 1]
    assert second.steps == 0
    for own, expected in zip(first.model.parameters(), whole[0].model.parameters(), strict=True):
        assert torch.equal(own, expected)
    Experiment().fit(run, resume=True)


def test_damaged_checkpoint_is_one_message(whole, tmp_path):
    content = (whole[1] / "last.ckpt").read_bytes()
    for damaged in (
        b"",
        content[:100],
        content[:-300],
        b"\0" * 300,
        pickle.dumps(Malice(tmp_path / "owned")),
    ):
        (tmp_path / "last.ckpt").write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"expected a checkpoint .*last.ckpt; found .+; delete it"
        ) as error:
            Experiment().fit(tmp_path, resume=True)
        assert "\n" not in str(error.value)
    torch.save({"state_dict": Malice(tmp_path / "owned")}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"expected a checkpoint .*last.ckpt"):
        Experiment().fit(tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()
    (tmp_path / "last.ckpt").unlink()  # the remedy
    assert torch.equal(Experiment().fit(tmp_path, resume=True).weights, whole[0].weights)


def test_metrics_may_lie_on_another_device(tmp_path, monkeypatch):
    """Tensors without numbers stand in for those of a GPU: they mix with others as little."""
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda t: torch.full(t.shape, 5.0) if t.is_meta else cpu(t))
    experiment = Experiment()
    monkeypatch.setattr(experiment, "metrics", lambda *_: {"error": torch.ones((), device="meta")})
    experiment.fit(tmp_path / "run", epochs=1)
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines())
    assert float(row["error"]) == 5.0 / len(X)


def test_seconds_are_those_of_training_alone(tmp_path, monkeypatch):
    experiment, save = Experiment(), torch.save
    experiment.at_step = lambda step: time.sleep(0.02)
    experiment.at_metrics = lambda: time.sleep(0.1)  # three batches an epoch
    monkeypatch.setattr(torch, "save", lambda *a, **k: (time.sleep(0.3), save(*a, **k)))
    start = time.perf_counter()
    experiment.fit(tmp_path, epochs=2)
    assert time.perf_counter() - start > 1.2
    seconds = [float(row["seconds"]) for row in table(tmp_path)]
    assert 0.06 <= seconds[0] < 0.3
    assert seconds[0] + 0.06 <= seconds[1] < 0.6


def test_seconds_continue_after_a_resume(tmp_path):
    experiment = Experiment()
    experiment.at_step = lambda step: time.sleep(0.1)
    experiment.fit(tmp_path, epochs=1)
    Experiment().fit(tmp_path, epochs=2, resume=True)
    first, second = (float(row["seconds"]) for row in table(tmp_path))
    assert first >= 0.3
    assert first < second < first + 0.3


def test_progress_without_a_terminal_is_one_plain_line_an_epoch(tmp_path, capsys):
    Experiment().fit(tmp_path, progress=True, epochs=2)
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert all("error" in line and "loss" in line and line.isprintable() for line in out.splitlines())


def test_seeded_generators_differ_in_every_part_of_the_key():
    draws = {
        float(torch.rand(1, generator=seeded_generator(*key))) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]
    }
    assert len(draws) == 4
    again = torch.rand(1, generator=seeded_generator(1, 1))
    assert float(again) in draws
