"""Training as a sentence: k-space slices → mask → coil maps → network → magnitude → loss → export."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from monarch_sciml.errors import InputError
from monarch_sciml.mri.classical import sampling_density
from monarch_sciml.mri.datasets import SliceDataset, list_files
from monarch_sciml.mri.examples import Example, Examples, MapCache
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    apply_mask,
    draw_mask,
    volume_seed,
    within,
)
from monarch_sciml.mri.metrics import center_crop, scores
from monarch_sciml.mri.models import (
    CASCADES,
    Kind,
    ModelConfig,
    MSense,
    SliceReconstructor,
    departures,
    learned_transforms,
)
from monarch_sciml.mri.regularisers import UNet
from monarch_sciml.mri.sensitivity import LEAST_CENTRE
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

__all__ = ["Example", "TrainConfig", "train"]

LEAST: dict[str, int] = dict.fromkeys(("seed", "penalty", "transform_rate", "checkpoint_minutes"), 0)
LEAST |= dict.fromkeys(("cascades", "channels", "pools", "modes"), 1)
LEAST |= dict.fromkeys(("epochs", "batch", "n_train", "n_test", "devices", "threads"), 1)
MOST: dict[str, int] = dict.fromkeys(("cascades", "channels", "modes"), 65536)
MOST |= dict.fromkeys(("learning_rate", "transform_rate", "penalty"), 10**6) | {"pools": 10, "threads": 1024}
POISSON_DISCS = 32  # different ones in training, of all accelerations together: each takes a while to draw
PRIOR = 400  # of mSENSE: how many slices its start counts for
SAID = 10  # files with blank slices that are named


@dataclass(frozen=True)
class TrainConfig:
    """Train a reconstruction network on fully sampled k-space, undersampled anew at every step."""

    data: Path
    """Folder of fastMRI files; the last --n-test volumes are held out."""
    out: Path
    """Directory for the run: configuration, checkpoint, metrics.csv, TensorBoard logs, exported model."""
    model: Kind = "varnet-monarch"
    """U-Net; mSENSE; an unrolled network with the FFT, or the same with a learned Monarch transform."""
    sampling: MaskConfig = field(default_factory=MaskConfig)
    maps: Literal["espirit", "low-resolution", "learned"] = "espirit"
    """Coil maps, from the fully sampled centre alone; learned: refined by a network trained along."""
    n_train: int | None = None
    """Train on the first so many volumes; all that are not held out by default."""
    n_test: int = 4
    """Hold out the last so many; reported after every epoch, nothing is selected by them."""
    held_out: Path | None = None
    """Hold out the last of this folder instead, such as fastMRI's multicoil_val."""
    acquisition: str | None = None
    """Only volumes of this acquisition, such as AXT2."""
    shape: tuple[int, int] | None = None
    """(H, W): the grid that learned transforms belong to; that of the first volume by default."""
    cascades: int | None = None
    """Unrolled iterations; by default 4, of msense 8. With 1, msense is the method of the paper."""
    channels: int = 12
    """Of the U-Nets' first level."""
    pools: int = 2
    """Levels below it, each with half the resolution and twice the channels."""
    regulariser: Literal["unet", "spectral"] = "unet"
    """Of the unrolled networks; spectral: Fourier layers with learned Monarch transforms."""
    modes: int = 24
    """Frequencies per axis of the spectral regulariser."""
    share_transforms: bool = True
    """All cascades share one learned transform, unless --no-share-transforms is given: then one each."""
    penalty: float | None = None
    """Weight of the learned transforms' squared relative distance from the FFT in the loss; by default 0, of
    msense, whose start is density compensation, 400 over the number of training slices."""
    epochs: int = 10
    """Passes over the training slices."""
    batch: int = 1
    """Slices per step, in total: several processes share them. Sizes and coil counts may differ."""
    learning_rate: float = 1e-3
    """Peak of a one-cycle schedule."""
    transform_rate: float = 3.0
    """Learning rate of an unrolled network's learned transforms relative to the rest."""
    seed: int = 0
    """Seed of weights, order and masks."""
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
        use_paths(self, "data", "out", "held_out")
        check_settings(self, LEAST, MOST)


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run directory.

    The settings, the shapes of all files, a row of each and a first slice are checked before the run
    directory is made, other slices when they are read. Those of zeros, or with a target of zeros, are left
    out, and a warning says which. Raises ``InputError``, and ``KeyboardInterrupt`` when interrupted.
    """
    check_choices(config)
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
    settings, model, maps, training, held_out = together(_prepare, config)
    data = {"training": _summary(training), "held out": _summary(held_out)}
    data |= {"digests": [Examples(part).digest() for part in (training, held_out)]}
    run = create_run(config.out, config, data)

    from monarch_sciml.training.loop import Task, fit  # Lightning: only when training

    task = Task(
        model,
        _loss(config, maps, _penalty(config, len(training))),
        _held_out_scores(config, maps),
        _optimiser(config),
        seed=config.seed,
    )
    fit(
        task,
        Examples(training),
        Examples(held_out, len(training)),
        run,
        epochs=config.epochs,
        batch=config.batch,
        resume=config.resume,
        device=config.device,
        progress=not config.quiet,
        clip=1.0,
        collate=list,
        checkpoint_minutes=config.checkpoint_minutes,
    )
    trained = SliceReconstructor(model, settings)
    together(lambda: trained.save_pretrained(run / "model", run=run) if world()[0] == 0 else None)
    training.close()
    held_out.close()
    return run


def _prepare(config: TrainConfig) -> tuple[ModelConfig, nn.Module, MapCache, SliceDataset, SliceDataset]:
    """The network, its coil maps, training and held-out slices: all that may be refused."""
    check_device(config.device)
    check_batch(config.batch)
    if config.threads:
        torch.set_num_threads(config.threads)
    training, held_out = split(config)
    torch.manual_seed(config.seed)
    settings = ModelConfig(
        kind=config.model,
        shape=config.shape or training.volumes[0].shape[2:],
        cascades=config.cascades or CASCADES[config.model],
        channels=config.channels,
        pools=config.pools,
        regulariser=config.regulariser,
        share_transforms=config.share_transforms,
        modes=config.modes,
        maps=config.maps,
    )
    model = settings.build()
    maps = MapCache("espirit" if config.maps == "espirit" else "low-resolution")
    _check(config, training, held_out)
    for module in model.modules():
        if isinstance(module, MSense):
            module.compensate(expected_density(config.sampling, settings.shape))
        if isinstance(module, UNet):
            for volume in (*training.volumes, *held_out.volumes):
                module.check((volume.shape[2], volume.shape[3]))
    # what cannot be masked, or has no centre to estimate maps from, is refused here
    for examples in (Examples(training), Examples(held_out, len(training))):
        first = examples[0]
        undersample(first, draw_mask(config.sampling, _shape(first), 0), maps)
        examples.check()
    return settings, model, maps, training, held_out


def split(config: TrainConfig) -> tuple[SliceDataset, SliceDataset]:
    """Training and held-out slices, of different volumes, as the configuration divides the files."""
    whole = SliceDataset(config.data, acquisition=config.acquisition)
    files = [volume.path for volume in whole.volumes]
    if config.held_out is not None:
        held_out = [v.path for v in SliceDataset(config.held_out, acquisition=config.acquisition).volumes]
        held_out = held_out[-config.n_test :]
    else:
        held_out, files = files[-config.n_test :], files[: -config.n_test]
    both = {path.resolve() for path in files} & {path.resolve() for path in held_out}
    if both:
        found = f"{len(both)} of its files in {config.data}, such as {min(both).name}"
        raise InputError("another folder to hold out than to train on", found, "change --held-out")
    wanted = len(files) if config.n_train is None else config.n_train
    if not 1 <= wanted <= len(files):
        raise InputError(
            f"{config.n_train or 'at least 1'} volumes to train on beside {len(held_out)} held out",
            f"{len(list_files(config.data))} files in {config.data}, {len(files)} left",
            "lower --n-train or --n-test",
        )
    return SliceDataset(files[:wanted]), SliceDataset(held_out)


def _check(config: TrainConfig, *parts: SliceDataset) -> None:
    """Refuse before the run begins what would end it in the middle, and leave blank slices out."""
    volumes = [volume for part in parts for volume in part.volumes]
    for volume in volumes:
        if volume.mask is not None and not volume.mask.all():
            expected, found = "fully sampled k-space to train on", f"a mask in {volume.path.name}"
            raise InputError(expected, found, "leave test files out")
        if config.model == "msense" and volume.shape[1] < 2:
            raise InputError("at least two coils for mSENSE", f"one in {volume.path.name}", "train a unet")
    pairs = zip(config.sampling.accelerations, config.sampling.center_fractions, strict=True)
    masks = [replace(config.sampling, accelerations=(r,), center_fractions=(f,)) for r, f in pairs]
    for volume in {(v.shape[1] > 1, *v.shape[2:]): v for v in volumes}.values():
        for sampling in masks:
            rows, columns = draw_mask(sampling, volume.shape, 0).acs
            if volume.shape[1] > 1 and min(rows, columns) < LEAST_CENTRE:
                expected = f"a fully sampled centre of at least {LEAST_CENTRE} × {LEAST_CENTRE}"
                found = f"{rows} × {columns} in {volume.path.name} under {sampling}"
                raise InputError(expected, found, "raise --center-fractions")
    blank = [found for part in parts for found in part.leave_blanks_out().items()]
    if blank and world()[0] == 0:
        listed = [f"{name} ({', '.join(map(str, slices))})" for name, slices in blank]
        listed[SAID:] = [f"and some of {len(blank) - SAID} more files"] * (len(blank) > SAID)
        said = f"slices of zeros, or with a target of zeros, are left out: {', '.join(listed)}"
        warnings.warn(said, stacklevel=2)


def _shape(example: Example) -> tuple[int, int]:
    return example.kspace.shape[-2], example.kspace.shape[-1]


def expected_density(sampling: MaskConfig, shape: tuple[int, int]) -> Tensor:
    """Probability (1, W) or (H, W) of each point being measured by masks as in training, without data."""
    masks = [draw_mask(sampling, shape, seed).pattern for seed in range(POISSON_DISCS)]
    return sampling_density(torch.stack(masks), smoothing=2.0)


def _penalty(config: TrainConfig, slices: int) -> float:
    if config.penalty is not None:
        return config.penalty
    return PRIOR / slices if config.model == "msense" else 0.0


def _summary(data: SliceDataset) -> str:
    names = [volume.path.name for volume in data.volumes]
    return f"{len(data)} slices of {len(names)} volumes, {names[0]} … {names[-1]}"


def undersample(example: Example, mask: Mask, maps: MapCache) -> tuple[Tensor, Tensor, Tensor]:
    """What a network is given, with a batch dimension of one: masked k-space, pattern, maps."""
    mask = within(mask, example.padding)
    kspace = apply_mask(example.kspace, mask)
    found = maps(example.key, kspace, mask.acs)
    return kspace[None], mask.pattern[None].to(kspace.device), found[None].to(kspace.device)


def _reconstruct(model: nn.Module, example: Example, mask: Mask, maps: MapCache) -> Tensor:
    image = model(*undersample(example, mask, maps))[0].abs()
    height, width = example.target.shape
    return center_crop(image, (height, width))


def _loss(config: TrainConfig, maps: MapCache, penalty: float):
    """Mean over the slices of ‖|x| − target‖ / ‖target‖, and the penalty on the learned transforms."""

    def loss(model: nn.Module, batch: list[Example], draw: Draw) -> Tensor:
        errors = []
        for example, seed in zip(batch, draw.integers(2**31), strict=True):
            if config.sampling.mask == "poisson":
                seed %= POISSON_DISCS
            image = _reconstruct(model, example, draw_mask(config.sampling, _shape(example), seed), maps)
            errors.append((image - example.target).norm() / example.target.norm().clamp_min(1e-30))
        total = torch.stack(errors).mean()
        return total + penalty * departures(model) if penalty else total

    return loss


def _held_out_scores(config: TrainConfig, maps: MapCache):
    """NMSE, PSNR and SSIM slice by slice, each volume under the mask that its file name gives."""

    def metrics(model: nn.Module, batch: list[Example]) -> Mapping[str, Tensor]:
        found: list[dict[str, float]] = []
        for example in batch:
            mask = draw_mask(config.sampling, _shape(example), volume_seed(example.name))
            found.append(scores(example.target, _reconstruct(model, example, mask, maps)))
        return {name: torch.tensor([s[name] for s in found]).mean() for name in found[0]}

    return metrics


def _optimiser(config: TrainConfig):
    def optimiser(model: nn.Module, steps_per_epoch: int) -> tuple[Optimizer, LRScheduler]:
        transforms = {p for t in learned_transforms(model) for p in t.parameters()}
        rest = [p for p in model.parameters() if p not in transforms]
        apart = [p for p in model.parameters() if p in transforms]
        rates = [config.learning_rate, config.learning_rate * (config.transform_rate if rest else 1)]
        groups = [(p, rate) for p, rate in zip((rest, apart), rates, strict=True) if p]
        adam = torch.optim.Adam([{"params": p, "lr": rate} for p, rate in groups])
        # of 10 steps or fewer, the tenth that warms up is empty, by which torch divides
        steps = max(11, config.epochs * steps_per_epoch)
        return adam, OneCycleLR(adam, [rate for _, rate in groups], total_steps=steps, pct_start=0.1)

    return optimiser
