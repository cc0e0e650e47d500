"""What the MRI tables are made of: trainings, and the scores of a method on files under masks.

A training is a ``Case``; ``Question`` is a method in a ``Setting``, and its answer is kept beside the
trainings. Nothing is done twice.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor

from monarch_sciml.mri.classical import METHODS, density_compensated
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import MaskConfig, volume_seed
from monarch_sciml.mri.metrics import scores
from monarch_sciml.mri.models import (
    CASCADES,
    MSense,
    SliceReconstructor,
    count_parameters,
    learned_transforms,
)
from monarch_sciml.mri.recipe import TrainConfig, expected_density, train
from monarch_sciml.mri.reconstruction import reconstruct_slice
from monarch_sciml.training import is_finished, read_json, write_json

Reconstruct = Callable[[Tensor, Tensor, Tensor], Tensor]
Answer = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "paper_mri"
RUNS = ROOT / "runs" / "paper_mri"
HELD_OUT = 12  # the last so many volumes
SEEDS = (0, 1, 2)
RATES = (2.0, 4.0, 6.0, 8.0)
TRAINED = (2.0, 4.0, 8.0)  # on these together; 6× stays unseen
CENTRE = 0.12  # of each axis, fully sampled
COLUMNS_CENTRE = 0.08  # where whole columns are sampled


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    accelerations: tuple[float, ...] = TRAINED
    seed: int = 0
    volumes: int | None = None
    epochs: int = 5
    learning_rate: float = 1e-3
    cascades: int | None = None

    def __str__(self) -> str:
        rate = "-".join(f"{a:g}x" for a in self.accelerations)
        few = "" if self.volumes is None else f"-{self.volumes}volumes"
        speed = "" if self.learning_rate == 1e-3 else f"-lr{self.learning_rate:g}"
        iterations = "" if self.cascades is None else f"-{self.cascades}iterations"
        return f"{self.model}{iterations}-{rate}{few}-{self.epochs}epochs{speed}-{self.seed}"


Method = str | Case  # classical by its name, or trained


def linear(rate: float, volumes: int = 5) -> Case:
    """mSENSE: for one acceleration at a time, and on few volumes, as more bring nothing."""
    return Case("msense", (rate,), volumes=volumes, epochs=480 // (4 * volumes))


def one_step(rate: float, volumes: int = 5) -> Case:
    """mSENSE as the paper has it."""
    return replace(linear(rate, volumes), cascades=1)


def small_unet(rate: float, volumes: int) -> Case:
    """A U-Net trained as mSENSE is, with 3e-3, on other volumes better than 1e-3."""
    return Case("unet", (rate,), volumes=volumes, epochs=480 // (4 * volumes), learning_rate=3e-3)


UNROLLED = {model: [Case(model, seed=seed) for seed in SEEDS] for model in ("varnet", "varnet-monarch")}
# what a learned transform does where it saw nothing
NARROW = {model: [Case(model, TRAINED[1:], seed) for seed in SEEDS] for model in UNROLLED}
MODL = [Case("modl", epochs=1), Case("modl-monarch", epochs=1)]
UNET = Case("unet")
FEW = (1, 2, 3, 5)
FEW_RATES = (2.0, 4.0)
# the longest first, so that two processes end at about the same time
TRAININGS = list(
    dict.fromkeys(
        [case for pair in zip(*UNROLLED.values(), strict=True) for case in pair]
        + [case for pair in zip(*NARROW.values(), strict=True) for case in pair]
        + MODL[::-1]
        + [UNET]
        + [few(rate, n) for rate in FEW_RATES for n in FEW for few in (small_unet, linear, one_step)]
        + [few(rate) for rate in RATES for few in (linear, one_step)]
    )
)


def configuration(case: Case) -> TrainConfig:
    """The defaults of ``monarch-sciml mri train``; few volumes have many epochs, each with few scores."""
    centres = (CENTRE,) * len(case.accelerations)
    return TrainConfig(
        data=DATA,
        out=RUNS / str(case),
        model=case.model,  # type: ignore[arg-type]
        sampling=MaskConfig("poisson", case.accelerations, centres),
        n_train=case.volumes,
        n_test=HELD_OUT if case.volumes is None else 1,
        epochs=case.epochs,
        cascades=case.cascades,
        learning_rate=case.learning_rate,
        seed=case.seed,
        threads=1,
        resume=True,
        quiet=True,
    )


def run(case: Case, stop: float) -> bool:
    """Train, or find it trained; nothing that would begin after the time is up."""
    config = configuration(case)
    if time.time() > stop and not is_finished(config.out):
        return False
    train(config)
    print(f"trained {case}", flush=True)
    return True


# ------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Setting:
    """Files, and the masks that they are sampled with: drawn with the file name as seed."""

    title: str
    files: tuple[Path, ...]
    sampling: MaskConfig

    @property
    def rate(self) -> float:
        """The acceleration."""
        return self.sampling.accelerations[0]

    @property
    def name(self) -> str:
        """For file names."""
        return self.title.replace("×", "x").replace(", ", "-").replace(" ", "-")


@dataclass(frozen=True)
class Question:
    """A method in a setting."""

    method: Method
    setting: Setting

    @property
    def answer(self) -> Path:
        """Where the answer is kept."""
        return RUNS / "evaluation" / f"{self.method}-at-{self.setting.name}.json"


def discs(rate: float, what: str, files: Sequence[Path]) -> Setting:
    """Variable-density Poisson discs, as in training."""
    return Setting(f"{rate:g}×, {what}", tuple(files), MaskConfig("poisson", (rate,), (CENTRE,)))


def columns(kind: Literal["random", "equispaced-fraction"], like: Setting) -> Setting:
    """The same files at the same acceleration under masks of whole columns."""
    sampling = MaskConfig(kind, (like.rate,), (COLUMNS_CENTRE,))
    return Setting(f"{like.rate:g}×, {kind.split('-')[0]} columns", like.files, sampling)


def methods(setting: Setting) -> dict[str, list[Method]]:
    """What tables call the methods; a network with several seeds has several trainings."""
    return {
        "zero-filled": ["zero-filled"],
        "density-compensated": ["density-compensated"],
        "mSENSE, one step": [one_step(setting.rate)],
        "SENSE, untrained": ["untrained"],
        "mSENSE": [linear(setting.rate)],
        "CG-SENSE": ["cg-sense"],
        "L1-wavelet": ["l1-wavelet"],
        "total variation": ["tv"],
        "U-Net": [UNET],
        "MoDL": [MODL[0]],
        "MoDL, Monarch": [MODL[1]],
        "VarNet": [*UNROLLED["varnet"]],
        "VarNet, Monarch": [*UNROLLED["varnet-monarch"]],
    }


def questions(settings: Sequence[Setting], names: Iterable[str]) -> list[list[Question]]:
    """For each setting, every training of the methods that tables call so."""
    return [[Question(method, s) for name in names for method in methods(s)[name]] for s in settings]


def prepare(question: Question, shape: tuple[int, int]) -> tuple[Reconstruct, Answer]:
    """The method as a function, and what there is to say of it."""
    if question.method == "density-compensated":
        d = expected_density(question.setting.sampling, shape)
        return partial(density_compensated, density=d, power=0.75), {}
    if question.method == "untrained":  # what mSENSE is before training, with the FFT
        start = MSense(shape, CASCADES["msense"])
        start.compensate(expected_density(question.setting.sampling, shape))
        return _network(start), {}
    if isinstance(question.method, str):
        return METHODS[question.method], {}
    model = SliceReconstructor.from_pretrained(RUNS / str(question.method))
    about: Answer = {"parameters": count_parameters(model)}
    transforms = learned_transforms(model)
    if transforms:
        with torch.no_grad():
            about["departure"] = mean(float(t.departure()) for t in transforms)
            about["nonunitarity"] = mean(float(t.nonunitarity()) for t in transforms)
    return _network(model), about


def _network(model: torch.nn.Module) -> Reconstruct:
    """A network for one slice."""

    def reconstruct(kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(kspace[None], pattern[None], maps[None])[0]

    return reconstruct


Maps = dict[tuple[Path, int], Tensor]  # of a slice: the same for every method in a setting


def answer(question: Question, maps: Maps) -> Answer:
    """Scores of every volume, mean data consistency, processor seconds; reused where they were computed."""
    if question.answer.exists():
        return read_json(question.answer)
    torch.set_num_threads(1)
    start = time.process_time()
    volumes, consistency, about = [], [], {}
    for path in question.setting.files:
        with open_kspace(path) as file:
            method, about = prepare(question, file.shape[2:])
            images, targets = [], []
            for index in range(len(file)):
                target = file.target(index)
                found = reconstruct_slice(
                    torch.from_numpy(file[index]),
                    keeping_maps(method, maps, (path, index)),
                    sampling=question.setting.sampling,
                    seed=volume_seed(path),
                    maps=maps.get((path, index), "espirit"),
                    target=None if target is None else torch.from_numpy(target),
                )
                images.append(found.image)
                targets.append(found.target)
                consistency.append(found.data_consistency)
        volumes.append(scores(torch.stack(targets), torch.stack(images)))
    seconds = time.process_time() - start
    result = {"volumes": volumes, "data_consistency": mean(consistency), **about, "seconds": seconds}
    question.answer.parent.mkdir(parents=True, exist_ok=True)
    write_json(question.answer, result)
    print(f"{question.answer.stem}: PSNR {mean(v['psnr'] for v in volumes):.2f}", flush=True)
    return result


def keeping_maps(method: Reconstruct, maps: Maps, key: tuple[Path, int]) -> Reconstruct:
    """The method, which leaves in ``maps`` those that it is given; estimating them takes most of the time."""

    def reconstruct(kspace: Tensor, pattern: Tensor, estimated: Tensor) -> Tensor:
        maps[key] = estimated
        return method(kspace, pattern, estimated)

    return reconstruct


def answers(asked: Sequence[Question]) -> dict[Question, Answer]:
    """To questions about one setting, but for networks that are not trained yet."""
    maps: Maps = {}
    known = [
        q
        for q in asked
        if isinstance(q.method, str) or q.answer.exists() or is_finished(RUNS / str(q.method))
    ]
    return {question: answer(question, maps) for question in known}
