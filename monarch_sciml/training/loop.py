"""The training loop: Lightning, with a resume that is exact.

Everything random in an epoch is a function of (seed, epoch) or (seed, step) alone, and checkpoints hold the
place in the epoch, so a run that was killed and resumed ends with the very weights of one that was not. A
batch is what one step of the optimiser sees in total: several processes share it, and train the same model.
"""

import contextlib
import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from tqdm import tqdm

from monarch_sciml.errors import InputError
from monarch_sciml.training.batches import Batches, Draw, Order, seeded_generator
from monarch_sciml.training.distributed import joined, together, world
from monarch_sciml.training.files import lock
from monarch_sciml.training.interruption import Interruption
from monarch_sciml.training.record import Interrupted, Record, cannot_write

__all__ = ["Draw", "Task", "fit", "seeded_generator"]

Loss = Callable[[nn.Module, Any, Draw], Tensor]
Metrics = Callable[[nn.Module, Any], Mapping[str, Tensor]]
Optimiser = Callable[[nn.Module, int], tuple[Optimizer, LRScheduler]]
# what only writing raises
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class Task(lightning.LightningModule):
    """A model and what to do with it, as functions.

    Args:
        model: what is trained.
        loss: (model, batch, draw) → the mean over the samples; takes random numbers only from ``draw``.
        metrics: (model, batch) → named per-sample means on held-out data, evaluated without gradients.
        optimiser: (model, steps per epoch) → optimiser and a schedule that advances every step.
        seed: of the random numbers.
    """

    record: Record  # given by ``fit``

    def __init__(
        self, model: nn.Module, loss: Loss, metrics: Metrics, optimiser: Optimiser, *, seed: int = 0
    ):
        super().__init__()
        self.model, self.loss, self.metrics = model, loss, metrics
        self.optimiser, self.seed = optimiser, seed

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One loss; stops with a clear message when it is no longer finite."""
        part = self.record.order.batches.part(batch_idx)
        loss, refusal = torch.zeros((), device=self.device), batch if isinstance(batch, InputError) else None
        if refusal is None:
            draw = Draw(seeded_generator(self.seed, self.global_step), part.mine, part.whole)
            try:
                loss = self.loss(self.model, batch, draw)
            except InputError as error:
                refusal = error
        self.record.step(loss, refusal, part, self.global_step)
        size = world()[1]
        # the mean over the processes, which is what their gradients become, is then the mean over the samples
        return loss if size == 1 else loss * (part.counted * size / part.whole)

    def configure_optimizers(self) -> Any:
        """As Lightning wants it."""
        optimiser, schedule = self.optimiser(self.model, len(self.record.order))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Progress(Callback):
    """One bar over the whole training; nothing without a terminal."""

    def __init__(self) -> None:
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.bar = tqdm(
            total=total, initial=trainer.global_step, unit="step", disable=None, dynamic_ncols=True
        )

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.bar.close()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        self.bar.close()


def fit(
    task: Task,
    train: Dataset[Any],
    held_out: Dataset[Any],
    run: Path,
    *,
    epochs: int,
    batch: int,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
    clip: float | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    checkpoint_minutes: float = 10.0,
) -> Task:
    """Train ``task`` for ``epochs`` in the run directory, from its last checkpoint if ``resume``.

    ``batch`` is the number of samples of a step, in total; ``clip`` bounds the norm of the gradient;
    ``collate`` makes a batch of a list of samples. ``device`` is "auto", "cpu" or "cuda". Writes a
    checkpoint, a row of ``metrics.csv`` and TensorBoard scalars after every epoch, and a checkpoint every
    ``checkpoint_minutes`` inside one. On a CPU, with the same number of threads, an interrupted and resumed
    run gives bitwise the same weights.

    One process uses one device. Where ``torchrun`` or ``srun`` started several, all call this and train with
    the gradient of the whole batch; a run may be resumed with another number of them.

    Raises:
        InputError: a loss or weights that are not finite, a checkpoint that cannot be read or written, a
            batch that the processes cannot share, or another training in the directory.
        KeyboardInterrupt: by Ctrl-C or SIGTERM, after the step and with a checkpoint; at once by a second
            Ctrl-C. Says how to continue.
    """
    order = Order(Batches(train, batch, collate), task.seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with joined(device), _alone_in(run), warnings.catch_warnings(), Interruption() as interruption:
        _quiet()
        record = Record(
            run, order, Batches(held_out, batch, collate), checkpoint_minutes, interruption, progress
        )
        task.record = record
        resumed = together(lambda: resume and record.last.exists())
        trainer = lightning.Trainer(
            **_where(device, record),
            max_epochs=epochs,
            callbacks=[record, *([_Progress()] if record.say else [])],
            logger=TensorBoardLogger(run, name="", version="tensorboard"),
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=clip,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(task, order.loader(), ckpt_path=record.last if resumed else None)
        except (Interrupted, SystemExit) as stop:
            # Lightning answers a KeyboardInterrupt by an exit, whose status may say success
            if isinstance(stop, SystemExit) and stop.code != 1:
                raise
            if world()[0]:
                raise SystemExit(130) from None  # one process says it
            raise KeyboardInterrupt(_how_to_continue(record, stop)) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise cannot_write(run, error) from None
    return task


@contextlib.contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    """Two trainings would replace each other's files; what a killed one held is free again."""
    held = together(lambda: _locked(run) if world()[0] == 0 else None)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _locked(folder: Path) -> int:
    """The descriptor that holds the lock. Raises ``InputError`` if another process has one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        remedy = "wait for it, or choose another --out"
        raise InputError(f"{folder} to be free", "that another process is training in it", remedy) from None
    return descriptor


def _where(device: str, record: Record) -> dict[str, Any]:
    """Lightning's settings for the device, and for the processes."""
    size = world()[1]
    if size == 1:
        # named, so that a batch job is not mistaken for one of several processes
        return {"accelerator": device, "devices": 1, "plugins": [record.files, LightningEnvironment()]}
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if size % here:
        expected, found = "as many processes on every machine", f"{here} of {size} here"
        raise InputError(expected, found, "start the same number everywhere")
    return {
        "accelerator": "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu",
        "devices": here,
        "num_nodes": size // here,
        "strategy": DDPStrategy(broadcast_buffers=False),  # they are constants
        "plugins": [record.files, TorchElasticEnvironment()],
    }


def _how_to_continue(record: Record, stop: BaseException) -> str:
    if isinstance(stop, Interrupted):
        return f"interrupted after step {stop.args[0]}, which {record.last} holds; continue with --resume"
    if record.last.exists():
        return f"interrupted; continue from {record.last} with --resume"
    return "interrupted before the first checkpoint; start it again with --resume"


def _quiet() -> None:
    """Advice that does not apply here: the data are in memory, and the directory is ours."""
    for advice in (
        "does not have many workers",
        "number of training batches.*is smaller than the log",
        "Checkpoint directory.*exists and is not empty",
        "GPU available but not used",
        "your dataloader is not resumable",  # it is, through Order.skip
        "callbacks used to create the checkpoint need to be provided",  # it is an earlier version's
    ):
        warnings.filterwarnings("ignore", message=f".*{advice}.*")
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module="(lightning|torch|tensorboard).*")
