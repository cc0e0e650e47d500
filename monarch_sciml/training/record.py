"""What a training leaves in its run directory, at all times: checkpoint, table, and where to go on from.

``last.ckpt`` is written when an epoch ends, every so many minutes, and before an interrupted training ends.
It is replaced as a whole or not at all.
"""

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from tqdm import tqdm

from monarch_sciml.errors import InputError
from monarch_sciml.training.batches import Batches, Order
from monarch_sciml.training.distributed import Part, agreed, refuse, total, world
from monarch_sciml.training.files import whole_file
from monarch_sciml.training.interruption import Interruption

__all__ = ["Files", "Interrupted", "Record", "cannot_write"]


class Interrupted(Exception):
    """A training that was asked to stop, with the number of steps that its checkpoint holds."""


def cannot_write(run: Path, error: BaseException) -> InputError:
    """Of a full disk, say, in the middle of a training."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # torch says something of its own instead
        cause = cause.__context__
    reason = str(cause or error).partition("\n")[0] or type(error).__name__
    remedy = "make room there, then continue from the last checkpoint with --resume"
    return InputError("a run directory that can be written", f"{reason} in {run}", remedy)


class Files(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and are read without executing anything.

    Only one process writes; ``failure`` is what kept it from doing so the last time, for the others to know.
    """

    failure: InputError | None = None

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write, without raising what a disk may do."""
        try:
            with whole_file(Path(path)) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # the latter is torch's word for a file that does not grow
            self.failure = cannot_write(Path(path).parent, error)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        """Raises ``InputError`` for anything but a whole checkpoint."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage shows in many ways
            reason = str(error).partition("\n")[0] or type(error).__name__
            remedy = "delete it to start this training over"
            raise InputError(f"a checkpoint {path}", reason, remedy) from None


class Record(Checkpoint):
    """One row of ``metrics.csv`` and of TensorBoard an epoch, checkpoints, and the end of a training.

    Args:
        run: its directory.
        order: of the training batches; skips what was done where a training goes on inside an epoch.
        held_out: evaluated after every epoch.
        minutes: between checkpoints inside an epoch.
        interruption: tells that the training is to end after this step.
        say: whether a line is printed when an epoch ends.
    """

    # Lightning calls a Checkpoint after everything else that happens when an epoch ends

    def __init__(
        self,
        run: Path,
        order: Order,
        held_out: Batches,
        minutes: float,
        interruption: Interruption,
        say: bool,
    ):
        self.last, self.files, self.order, self.held_out = run / "last.ckpt", Files(), order, held_out
        self.minutes, self.interruption, self.say = minutes, interruption, say and world()[0] == 0
        self.rows: list[dict[str, float]] = []
        self.seconds, self.since, self.saved_at = 0.0, None, time.monotonic()
        self.loss, self.seen = torch.tensor(0.0), 0  # of this epoch and this process: sum, samples
        self.trained: float | None = None  # mean loss of an epoch that was trained, but not evaluated yet
        self.stop = self.due = False

    @property
    def state_key(self) -> str:
        """The name in the checkpoint."""
        return "_EpochTable"  # under which earlier versions kept the rows

    def state_dict(self) -> dict[str, Any]:
        """What the rest of an epoch needs, summed over the processes by ``save``."""
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As left by any number of processes."""
        self.seconds, self.rows = state_dict["seconds"], state_dict["rows"]
        self.trained = state_dict.get("trained")
        if world()[0] == 0:
            self.loss, self.seen = torch.tensor(state_dict.get("loss", 0.0)), state_dict.get("seen", 0)

    def step(self, loss: Tensor, refusal: InputError | None, part: Part, number: int) -> None:
        """Take note of a loss before the weights change; stops all processes if one has to stop."""
        wrong = refusal is None and not torch.isfinite(loss)
        due = world()[0] == 0 and time.monotonic() >= self.saved_at + 60 * self.minutes
        refused, wrong, self.stop, self.due = agreed(refusal is not None, wrong, self.interruption.asked, due)
        if refused:
            refuse(refusal)
        if wrong:
            found = total(loss.detach() if part.counted else torch.zeros_like(loss)).item()
            refuse(self._diverged("a finite loss", f"{found} at step {number}"))
        self.loss = self.loss.to(loss.device) + loss.detach() * part.counted
        self.seen += part.counted

    def _diverged(self, expected: str, found: str) -> InputError:
        """Resuming would diverge again in the same way, so the remedy is another training."""
        kept = f"; {self.last} is from before" if self.last.exists() else ""
        remedy = "lower the learning rate: train into another --out with a lower --learning-rate"
        return InputError(expected, found, f"{remedy} or --transform-rate{kept}")

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Finish an epoch that was interrupted between its last step and its end."""
        if self.trained is not None:
            self._finish_epoch(trainer, pl_module)
            if self.stop:
                raise Interrupted((len(self.rows) + 1) * len(self.order))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on where the checkpoint is from."""
        self.interruption.listen()
        self.order.skip = trainer.global_step % len(self.order)
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop where it is time; the last step of an epoch leaves it to the epoch's end."""
        if (self.stop or self.due) and batch_idx + 1 < len(self.order):
            self._save(trainer, pl_module)
            if self.stop:
                raise Interrupted(trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate, write the row, save."""
        self._refuse_divergence(trainer, pl_module)
        with self._clock_stopped():
            loss, seen = self._epoch_loss()
            self.trained = float(loss / seen)
            self.loss, self.seen = torch.tensor(0.0), 0
            if not self.stop:
                self._finish_epoch(trainer, pl_module)
            self._save(trainer, pl_module)
            if self.stop:
                raise Interrupted(trainer.global_step)

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Neither validation nor writing is training time."""
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
        self.since = None
        yield
        self.since = time.perf_counter()

    def _epoch_loss(self) -> Tensor:
        """Sum and number of samples, over all processes."""
        return total(torch.stack([self.loss, torch.tensor(float(self.seen)).to(self.loss)]))

    def _refuse_divergence(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        """Before a good checkpoint is replaced by a useless one."""
        if not all(torch.isfinite(p).all() for p in task.parameters()):
            refuse(self._diverged("finite weights", f"NaN or infinity after step {trainer.global_step}"))

    def _save(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        self._refuse_divergence(trainer, task)
        with self._clock_stopped():
            loss, seen = self._epoch_loss().tolist()
            self.state = {
                "seconds": self.seconds,
                "rows": self.rows,
                "trained": self.trained,
                "loss": loss,
                "seen": int(seen),
            }
            trainer.save_checkpoint(self.last)
            refuse(self.files.failure)
        self.saved_at = time.monotonic()

    def _finish_epoch(self, trainer: lightning.Trainer, task: Any) -> None:
        """Held-out metrics, then the row; stops in the middle when interrupted."""
        modes = {module: module.training for module in task.modules()}
        task.eval()
        with torch.no_grad():
            metrics = self._evaluate(trainer, task)
        for module, mode in modes.items():
            module.training = mode
        if self.stop:
            return
        assert self.trained is not None
        metrics, self.trained = {**metrics, "loss": self.trained}, None
        epoch = len(self.rows) + 1
        self.rows.append({"epoch": epoch, "seconds": round(self.seconds, 3), **metrics})
        refuse(self._write_table() if world()[0] == 0 else None)
        if trainer.logger is not None:
            trainer.logger.log_metrics({**metrics, "epoch": epoch}, epoch * len(self.order))
        if self.say:
            line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            tqdm.write(f"epoch {epoch}/{trainer.max_epochs}  {line}")

    def _evaluate(self, trainer: lightning.Trainer, task: Any) -> dict[str, float]:
        """Means over the held-out samples of all processes."""
        sums: dict[str, Tensor] = {}
        seen = 0
        for part, batch in self.held_out.in_order():
            found, refusal = {}, batch if isinstance(batch, InputError) else None
            if refusal is None:
                try:
                    found = task.metrics(task.model, trainer.strategy.batch_to_device(batch))
                except InputError as error:
                    refusal = error
            refused, self.stop = agreed(refusal is not None, self.interruption.asked)
            if refused:
                refuse(refusal)
            if self.stop:
                return {}
            for name, value in found.items():
                counted = value * part.counted if part.counted else torch.zeros_like(value)
                sums[name] = sums.get(name, torch.tensor(0.0, device=value.device)) + counted
            seen += part.counted
        # sums lie where the model does; what is counted does not
        *values, seen = total(torch.stack([*(v.cpu() for v in sums.values()), torch.tensor(float(seen))]))
        return {name: float(value / seen) for name, value in zip(sums, values, strict=True)}

    def _write_table(self) -> InputError | None:
        try:
            with (
                whole_file(self.last.with_name("metrics.csv")) as partial,
                partial.open("w", newline="") as file,
            ):
                table = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                table.writeheader()
                table.writerows(self.rows)
        except OSError as error:
            return cannot_write(self.last.parent, error)
        return None
