"""The training loop: Lightning, with a resume that is exact.

Everything random in an epoch is a function of (seed, epoch) or (seed, step) alone, and checkpoints are taken
between epochs, so a run that was killed and resumed ends with the very weights of one that was not.
"""

import csv
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from monarch_sciml.errors import InputError

__all__ = ["Task", "fit", "seeded_generator"]

Loss = Callable[[nn.Module, Any, torch.Generator], Tensor]
Metrics = Callable[[nn.Module, Any], Mapping[str, Tensor]]
Optimiser = Callable[[nn.Module, int], tuple[Optimizer, LRScheduler]]


def seeded_generator(*key: int) -> torch.Generator:
    """A generator that depends on the integers of ``key`` alone, such as (seed, step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class Task(lightning.LightningModule):
    """A model and what to do with it, as functions.

    Args:
        model: what is trained.
        loss: (model, batch, generator) → scalar; draws random numbers only from the generator.
        metrics: (model, batch) → named per-sample means on held-out data, evaluated without gradients.
        optimiser: (model, steps per epoch) → optimiser and a schedule that advances every step.
        seed: of the loss's generator.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, metrics: Metrics, optimiser: Optimiser, *, seed: int = 0
    ):
        super().__init__()
        self.model, self.loss, self.metrics = model, loss, metrics
        self.optimiser, self.seed = optimiser, seed

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One loss; stops with a clear message when it is no longer finite."""
        loss = self.loss(self.model, batch, seeded_generator(self.seed, self.global_step))
        if not torch.isfinite(loss):
            raise InputError(
                "a finite loss",
                f"{loss.item()} at step {self.global_step}",
                "lower the learning rate; the last checkpoint in the run directory is from before",
            )
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=_batch_size(batch))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Metrics on held-out data."""
        for name, value in self.metrics(self.model, batch).items():
            self.log(name, value, prog_bar=True, batch_size=_batch_size(batch), sync_dist=True)

    def on_train_epoch_end(self) -> None:
        """Runs before the checkpoint is written, which must not replace a good one by a useless one."""
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            raise InputError(
                "finite weights",
                f"NaN or infinity after epoch {self.current_epoch + 1}",
                "lower the learning rate; the last checkpoint in the run directory is from before",
            )

    def configure_optimizers(self) -> Any:
        """As Lightning wants it."""
        steps = self.trainer.estimated_stepping_batches // (self.trainer.max_epochs or 1)
        optimiser, schedule = self.optimiser(self.model, int(steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _batch_size(batch: Any) -> int:
    """Of a tensor, of a tuple of tensors, or of a list of samples."""
    return len(batch[0]) if isinstance(batch, (tuple, list)) and isinstance(batch[0], Tensor) else len(batch)


class _EpochShuffle(Sampler[int]):
    """A permutation that is a function of (seed, epoch); Lightning calls ``set_epoch``."""

    def __init__(self, data: Sized, seed: int):
        self.data, self.seed, self.epoch = data, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self), generator=seeded_generator(self.seed, self.epoch))
        return iter(order.tolist())


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Writes into a neighbouring file and renames it: a checkpoint under its name is always complete.

    Reads without executing anything.
    """

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, f"{path}.partial", storage_options)
        os.replace(f"{path}.partial", path)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage shows in many ways
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"a checkpoint {path}", reason, "delete it to start this training over"
            ) from None


class _EpochTable(Callback):
    """``metrics.csv``: one row an epoch, with the seconds of training so far; continues after a resume."""

    def __init__(self, path: Path):
        self.path, self.seconds, self.rows = path, 0.0, []

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.rows = state_dict["seconds"], state_dict["rows"]

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # validation runs inside the epoch, and its time is not training time
        self.seconds += time.perf_counter() - self.start

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch + 1, "seconds": round(self.seconds, 3), **metrics})
        if trainer.is_global_zero:
            partial = self.path.with_suffix(".partial")
            with partial.open("w", newline="") as file:
                table = csv.DictWriter(file, fieldnames=list(self.rows[0]))
                table.writeheader()
                table.writerows(self.rows)
            os.replace(partial, self.path)


class _Progress(Callback):
    """One bar over the whole training, and a line when an epoch ends; without a terminal only the lines."""

    def __init__(self) -> None:
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = int(trainer.estimated_stepping_batches)
        self.bar = tqdm(
            total=total, initial=trainer.global_step, unit="step", disable=None, dynamic_ncols=True
        )

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = "  ".join(f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items())
        tqdm.write(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}")

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
) -> Task:
    """Train ``task`` for ``epochs`` in the run directory, from its last checkpoint if ``resume``.

    ``clip`` bounds the norm of the gradient; ``collate`` makes a batch of a list of samples. ``device`` is
    "auto", "cpu" or "cuda"; one device is used. Writes a checkpoint, a row of ``metrics.csv`` and TensorBoard
    scalars after every epoch. On a CPU, with the same number of threads, an interrupted and resumed run gives
    bitwise the same weights.

    Raises:
        InputError: a loss or weights that are not finite, or a checkpoint that cannot be read.
        KeyboardInterrupt: by Ctrl-C or SIGTERM.
    """
    table = _EpochTable(run / "metrics.csv")
    checkpoint = ModelCheckpoint(
        run, filename="last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = run / "last.ckpt"
    order = _EpochShuffle(cast(Sized, train), task.seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # advice about DataLoader workers (the data are in memory), logging intervals and the full directory
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*is smaller than the log.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
        # the choice of a device, and a run that was moved before it was resumed, are no mistakes
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module="(lightning|torch|tensorboard).*")
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            callbacks=[table, checkpoint, *([_Progress()] if progress else [])],
            plugins=[_AtomicCheckpointIO()],
            logger=TensorBoardLogger(run, name="", version="tensorboard"),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=clip,
            log_every_n_steps=10,
        )
        try:
            trainer.fit(
                task,
                DataLoader(train, batch, sampler=order, collate_fn=collate),
                DataLoader(held_out, batch, collate_fn=collate),
                ckpt_path=last if resume and last.exists() else None,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C and SIGTERM, whose exit status may say success
            raise KeyboardInterrupt from None
    return task
