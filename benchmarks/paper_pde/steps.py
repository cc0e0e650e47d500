"""How long a step of training takes: all models in turn, so that all see the same machine."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median

import torch
from cases import SCALES, Case, configuration

from monarch_sciml.nn import LearnedTransform
from monarch_sciml.pde.metrics import relative_l2
from monarch_sciml.pde.models import ModelConfig, can_fuse
from monarch_sciml.pde.rollouts import rollout

__all__ = ["kind", "milliseconds", "seconds", "with_fixed_transforms"]

ROUNDS = 10


def kind(case: Case, name: str) -> Case:
    """What its steps depend on: of the viscosity, how many frames there are, and whether transforms learn."""
    frames = SCALES[name].frames
    viscosity = next(v for v in frames if frames[v] == frames[case.viscosity])
    return Case(
        case.model,
        viscosity,
        case.protocol,
        seed=0,
        n_train=1,
        modes=case.modes,
        every=case.every,
        transform_rate=float(case.transform_rate > 0),
    )


def with_fixed_transforms(case: Case) -> Case:
    """FNO-Monarch's layers as an FNO: what of the time is due to them, not to learning."""
    return replace(case, model="fno-monarch", transform_rate=0.0)


def milliseconds(cases: Iterable[Case], name: str, rounds: int = ROUNDS) -> dict[Case, float]:
    """Median of a step for every ``kind``, in as many threads as the trainings have."""
    before = torch.get_num_threads()
    torch.set_num_threads(configuration(next(iter(cases)), name).threads or before)
    steps = {case: step(case, name) for case in sorted({kind(case, name) for case in cases}, key=str)}
    times: dict[Case, list[float]] = {case: [] for case in steps}
    for _ in range(rounds + 1):
        for case, run in steps.items():
            begin = time.perf_counter()
            run()
            times[case].append(1e3 * (time.perf_counter() - begin))
    torch.set_num_threads(before)
    return {case: median(ms[1:]) for case, ms in times.items()}


def step(case: Case, name: str) -> Callable[[], None]:
    """Forward, backward and optimiser for a batch of noise, as ``pde train`` has them."""
    scale, config = SCALES[name], configuration(case, name)
    device = "cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu"
    points = 64 // config.every
    ahead = scale.frames[case.viscosity] - config.n_in if case.protocol == "A" else 1
    model = ModelConfig(
        kind=case.model,
        grid=(points, points),
        channels=1,
        n_in=config.n_in,
        modes=config.modes,
        width=config.width,
        layers=config.layers,
    ).build()
    model.to(device)
    if case.transform_rate == 0:
        for transform in (m for m in model.modules() if isinstance(m, LearnedTransform)):
            transform.requires_grad_(False)
    frames = torch.randn(config.batch, config.n_in + ahead, 1, points, points, device=device)
    optimiser = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=1e-3, fused=can_fuse(model)
    )

    def run() -> None:
        found = rollout(model, frames[:, : config.n_in], ahead)
        loss = relative_l2(found, frames[:, config.n_in :], first_dim=2).sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(case: Case, epochs: float, name: str, times: dict[Case, float]) -> float:
    """Of so many epochs of a training."""
    config = configuration(case, name)
    windows = case.n_train * (1 if case.protocol == "A" else SCALES[name].frames[case.viscosity] - 1)
    return epochs * math.ceil(windows / config.batch) * times[kind(case, name)] / 1e3
