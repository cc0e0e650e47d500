"""Training as a sentence: trajectory file → windows → model → rollout → relative L2 → checkpoint → export."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from monarch_sciml.errors import InputError, one_line
from monarch_sciml.nn import LearnedTransform
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows, train_test_split
from monarch_sciml.pde.inspection import check_periodic, check_targets, doubts, moments, summary
from monarch_sciml.pde.metrics import relative_l2
from monarch_sciml.pde.models import (
    FramePredictor,
    Kind,
    ModelConfig,
    can_fuse,
    channel_units,
    spectral_weights,
)
from monarch_sciml.pde.rollouts import one_step_errors, rollout, rollout_errors
from monarch_sciml.pde.symmetries import Symmetries, apply_symmetry, check_symmetries, n_symmetries
from monarch_sciml.training import (
    check_choices,
    check_device,
    check_run,
    check_settings,
    create_run,
    is_finished,
    use_paths,
    warn_of_other_data,
)
from monarch_sciml.training.batches import Draw
from monarch_sciml.training.distributed import check_batch, joined, launch, together, world

__all__ = ["TrainConfig", "chosen", "digest", "loaded", "split", "train"]

LEAST: dict[str, int] = dict.fromkeys(("seed", "first_frame", "noise", "checkpoint_minutes"), 0)
LEAST |= dict.fromkeys(("transform_rate", "spectral_rate"), 0) | {"width": 2}
LEAST |= dict.fromkeys(("modes", "layers", "n_train", "n_test", "frames", "every"), 1)
LEAST |= dict.fromkeys(("epochs", "batch", "devices", "threads"), 1)
MOST: dict[str, int] = dict.fromkeys(("modes", "width", "layers"), 65536)
MOST |= dict.fromkeys(("learning_rate", "transform_rate", "spectral_rate", "noise"), 10**6)
MOST |= {"threads": 1024}


@dataclass(frozen=True)
class TrainConfig:
    """Train a neural operator on trajectories."""

    data: Path
    """Trajectories: .mat, HDF5 (ours, PDEBench), .npy, .npz or neuraloperator's .pt."""
    out: Path
    """Directory for the run: configuration, checkpoint, metrics.csv, TensorBoard logs, exported model."""
    model: Kind = "fno-monarch"
    """The FFT-based baseline, the same network with learned Monarch transforms; or a convolutional one."""
    protocol: Literal["A", "B"] = "B"
    """A: ten frames in, trained through the whole rollout (Li et al.). B: Markov, one in, one step ahead."""
    modes: int = 16
    """Fourier modes per axis, in total, of fno and fno-monarch."""
    width: int = 16
    """Hidden channels, at full resolution; published are fno 20, unet 54, tf-net 41 and resnet 42."""
    layers: int = 4
    """Fourier layers of fno and fno-monarch."""
    residual: bool = False
    """Predict the change from the last frame instead of the next frame."""
    n_train: int = 100
    """Train on the first so many trajectories."""
    n_test: int = 40
    """Hold out the last so many; their errors are reported after every epoch, nothing is selected by them."""
    first_frame: int = 0
    """Leave out earlier frames; 1 skips the initial condition in this package's own files."""
    frames: int | None = None
    """Use so many frames, all by default."""
    every: int = 1
    """Keep one grid point in so many along each axis: a divisor of their number n on a periodic grid, of
    n − 1 where both ends are points."""
    key: str | None = None
    """Name of the array in the file; by default the usual one of its format, or the only one that fits."""
    axes: str | None = None
    """Order of its axes, such as "n x y t c", trajectory, space, time, channel; by default the format's."""
    epochs: int = 10
    """Passes over the training windows."""
    batch: int = 20
    """Windows per step, in total: several processes share them."""
    learning_rate: float | None = None
    """Peak learning rate; by default 1e-3 (A: Adam, halved every fifth) and 5e-3 (B: AdamW, cosine)."""
    transform_rate: float = 1.0
    """Learning rate of the learned transforms relative to the rest; 0.3 is better in long trainings."""
    spectral_rate: float = 3.0
    """Learning rate of the weights per mode, of fno too, relative to the rest; published is 1."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the input frames, relative to the data's."""
    symmetries: Symmetries = "none"
    """Move every window by a random symmetry: of vorticity that decays on a square torus (unforced), or with
    the benchmark's forcing (forced). Wrong for any other data."""
    seed: int = 0
    """Seed of weights, order, noise and symmetries."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    devices: int = 1
    """Processes on this machine that train together, one GPU each; under torchrun or srun, their number."""
    threads: int | None = None
    """CPU threads; torch decides by default."""
    resume: bool = False
    """Continue a run in --out; a finished one is left as it is."""
    checkpoint_minutes: float = 10.0
    """Between checkpoints inside an epoch; there is one at the end of each, and when interrupted."""
    quiet: bool = False
    """No progress bar and no epochs; print the run directory alone."""

    def __post_init__(self) -> None:
        use_paths(self, "data", "out")
        check_choices(self)
        check_settings(self, LEAST, MOST)

    @property
    def n_in(self) -> int:
        """Frames the model sees."""
        return 10 if self.protocol == "A" else 1

    @property
    def selection(self) -> dict[str, Any]:
        """What of the file is used: arguments of ``TrajectoryDataset``."""
        stop = None if self.frames is None else self.first_frame + self.frames
        times = slice(self.first_frame, stop)
        return {"times": times, "every": self.every, "key": self.key, "axes": self.axes}

    @property
    def peak_rate(self) -> float:
        """The learning rate in use."""
        return self.learning_rate or {"A": 1e-3, "B": 5e-3}[self.protocol]


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run directory.

    Every check of the data and the model happens before the run directory is made. Unless ``quiet``, prints
    how the file was understood; warns of what in it looks wrong. Raises ``InputError``, and
    ``KeyboardInterrupt`` when interrupted.
    """
    if config.devices > 1 and world()[1] == 1:
        together(check_run, config.out, config, resume=config.resume)
        return launch(train, config, config.devices)
    with joined(config.device):
        return _train(config)


def _train(config: TrainConfig) -> Path:
    together(check_run, config.out, config, resume=config.resume)
    if is_finished(config.out):
        warn_of_other_data(config)
        return config.out
    predictor, training, held_out = together(_prepare, config)
    steps = training.n_times - config.n_in
    windows = Windows(training, config.n_in, steps if config.protocol == "A" else 1)
    whole = Windows(held_out, config.n_in, steps)

    scale = predictor.config.scale
    deviation = ", ".join(f"{s:.6g}" for s in (scale if isinstance(scale, tuple) else (scale,)))
    data = {"grid": training.grid, "frames": training.n_times, "standard deviation": deviation}
    data |= {"training": digest(training), "held out": digest(held_out)}
    run = create_run(config.out, config, data)
    if world()[0] == 0:
        for doubt in doubts(training, guessed=config.axes is None, every=config.every):
            warnings.warn(doubt, stacklevel=3)
        if not config.quiet:
            print(one_line(summary(training, held_out)), flush=True)

    from monarch_sciml.training.loop import Task, fit  # Lightning: only when training

    loss, errors = _loss(config.noise, config.symmetries, scale), partial(_held_out_errors, scale=scale)
    task = Task(predictor, loss, errors, _optimiser(config), seed=config.seed)
    fit(
        task,
        windows,
        whole,
        run,
        epochs=config.epochs,
        batch=config.batch,
        resume=config.resume,
        device=config.device,
        progress=not config.quiet,
        checkpoint_minutes=config.checkpoint_minutes,
    )
    together(lambda: predictor.save_pretrained(run / "model", run=run) if world()[0] == 0 else None)
    return run


def _prepare(config: TrainConfig) -> tuple[FramePredictor, TrajectoryDataset, TrajectoryDataset]:
    """The model, training and held-out trajectories: all that may be refused."""
    check_device(config.device)
    check_batch(config.batch)
    if config.threads:
        torch.set_num_threads(config.threads)
    training, held_out = split(config)
    check_symmetries(config.symmetries, training.grid, training.channels)
    if config.symmetries != "none":
        check_periodic(training, config.every)
    scale = _standard_deviations(training)
    torch.manual_seed(config.seed)
    predictor = ModelConfig(
        kind=config.model,
        grid=training.grid,
        channels=training.channels,
        n_in=config.n_in,
        modes=config.modes,
        width=config.width,
        layers=config.layers,
        scale=scale,
        residual=config.residual,
    ).build()
    return predictor, training, held_out


def split(config: TrainConfig) -> tuple[TrajectoryDataset, TrajectoryDataset]:
    """Training and held-out trajectories, in memory, as the configuration divides the file."""
    training, held_out = train_test_split(chosen(config, config.n_in), config.n_train, config.n_test)
    return loaded(training, config.n_in), loaded(held_out, config.n_in)


def chosen(config: TrainConfig, n_in: int) -> TrajectoryDataset:
    """What the configuration chooses of its file.

    Raises:
        InputError: nothing to predict after ``n_in`` frames, and what ``TrajectoryDataset`` refuses.
    """
    dataset = TrajectoryDataset(config.data, **config.selection)
    if dataset.n_times <= n_in:
        other = "use protocol B, or" if config.protocol == "A" else "add the state to start from, or use"
        raise InputError(
            f"more than {n_in} frames for protocol {config.protocol}",
            f"{dataset.n_times} in {config.data.name}",
            f"{other} longer trajectories",
        )
    return dataset


def loaded(dataset: TrajectoryDataset, n_in: int) -> TrajectoryDataset:
    """The same in memory, where looking for zeros to predict after ``n_in`` frames reads no file again.

    Raises:
        InputError: there are such zeros, or numbers that are not finite.
    """
    dataset = dataset.load()
    check_targets(dataset, n_in)
    return dataset


def digest(dataset: TrajectoryDataset) -> str:
    """Of all values in their order, by which a training knows its trajectories again."""
    found = hashlib.sha256()
    for trajectory in dataset:
        found.update(trajectory.numpy().tobytes())
    return found.hexdigest()[:16]


def _standard_deviations(dataset: TrajectoryDataset) -> float | tuple[float, ...]:
    """Of all training values, or of each channel; of one that does not vary, that of all."""
    mean, square = moments(dataset)
    variance, total = square - mean**2, (square.mean() - mean.mean() ** 2).item()
    if not total > 1e-12 * square.mean():  # below that it is rounding
        raise InputError("training data that vary", "a constant field", "check the data")
    if dataset.channels == 1:
        return total**0.5
    return tuple(variance.where(variance > 1e-12 * square, total).sqrt().tolist())


def _loss(noise: float, symmetries: Symmetries = "none", scale: float | tuple[float, ...] = 1.0):
    """Mean over the batch of the per-frame relative L2, summed over the steps of the rollout.

    ``noise`` is the standard deviation of what is added to the input frames, in those of the data, ``scale``.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], draw: Draw) -> Tensor:
        context, target = batch
        units = channel_units(scale, target)
        if symmetries != "none":
            elements = draw.integers(n_symmetries(symmetries, context.shape[-1]))
            context, target = (apply_symmetry(frames, symmetries, elements) for frames in batch)
        if noise:
            deviation: Any = scale if units is None else units
            context = context + noise * deviation * draw.normal(context)
        prediction = rollout(model, context, target.shape[1])
        return relative_l2(prediction, target, first_dim=2, units=units).sum(dim=1).mean()

    return loss


def _held_out_errors(
    model: nn.Module, batch: tuple[Tensor, Tensor], scale: float | tuple[float, ...] = 1.0
) -> dict[str, Tensor]:
    trajectories, n_in = torch.cat(batch, dim=1), batch[0].shape[1]
    units = channel_units(scale, trajectories)
    _, _, block = rollout_errors(model, trajectories, n_in, units=units)
    one_step = one_step_errors(model, trajectories, n_in, units=units)
    return {"one_step": one_step.mean(), "rollout": block.mean()}


def _optimiser(config: TrainConfig):
    def optimiser(model: nn.Module, steps_per_epoch: int) -> tuple[Optimizer, LRScheduler]:
        groups = _parameter_groups(model, config)
        fused = can_fuse(model)
        if config.protocol == "A":
            # Li et al. sum the loss over the batch: Adam does not notice, but what it adds for decay does
            adam = torch.optim.Adam(groups, weight_decay=1e-4 / config.batch, fused=fused)
            return adam, StepLR(adam, max(1, config.epochs // 5) * steps_per_epoch, gamma=0.5)
        adamw = torch.optim.AdamW(groups, weight_decay=1e-4, fused=fused)
        return adamw, CosineAnnealingLR(adamw, config.epochs * steps_per_epoch)

    return optimiser


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Learned transforms and spectral weights apart, if they have learning rates of their own."""
    if config.transform_rate == 1 and config.spectral_rate == 1:
        return [{"params": list(model.parameters()), "lr": config.peak_rate}]
    rates = dict.fromkeys(model.parameters(), 1.0)
    transforms = (m for m in model.modules() if isinstance(m, LearnedTransform))
    rates |= {p: config.transform_rate for m in transforms for p in m.parameters()}
    rates |= dict.fromkeys(spectral_weights(model), config.spectral_rate)
    different = dict.fromkeys((1.0, config.transform_rate, config.spectral_rate))
    return [
        {"params": [p for p in rates if rates[p] == rate], "lr": config.peak_rate * rate}
        for rate in different
        if rate in rates.values()
    ]
