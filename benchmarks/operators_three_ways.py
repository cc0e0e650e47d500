"""Dense to sparse and sparse to dense on operators and MRI networks that were trained before.

    python benchmarks/operators_three_ways.py [--workers 2]

Each trained network is trained on for a little as it is (the control), and after a change of its structure:
Fourier transforms become learned Monarch transforms, which loses nothing; dense layers are projected onto
Monarch matrices; Monarch transforms are multiplied out to dense matrices. Three seeds. Navier–Stokes at
ν = 1e-3, 32 × 32, as in ``make demo`` but for one learning rate for all weights; MRI as in
``benchmarks/paper_mri/``, whose data and trained networks it uses. One thread per training; resumable. Writes
``benchmarks/results/operators_three_ways.*``.
"""

import argparse
import datetime
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from monarch_sciml import pde
from monarch_sciml.mri import recipe as mri
from monarch_sciml.mri.masks import MaskConfig, draw_mask, volume_seed
from monarch_sciml.mri.metrics import scores
from monarch_sciml.mri.models import SliceReconstructor
from monarch_sciml.mri.simulation import SimulateConfig, simulate
from monarch_sciml.nn import LearnedFourier, densify, monarchize, use_learned_transforms
from monarch_sciml.pde.metrics import relative_l2
from monarch_sciml.pde.models import FramePredictor, count_parameters
from monarch_sciml.pde.rollouts import rollout_errors
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "operators_three_ways"
RUNS = ROOT / "runs" / "three_ways"
FLOW = ROOT / "data" / "demo_ns_V1e-3.h5"
SCANS = ROOT / "data" / "paper_mri"
SEEDS = (0, 1, 2)
RATE = {"pde": 1e-3, "mri": 3e-4}
"""Peak learning rates, a fifth and a third of those of the training before."""
EPOCHS = {"pde": 4, "mri": 1}

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Case:
    """A trained network and what is changed before it is trained on."""

    base: str
    change: str
    seed: int

    @property
    def field(self) -> str:
        """The half of the package it belongs to."""
        return "pde" if self.base.startswith("fno") else "mri"

    @property
    def answer(self) -> Path:
        """Where the result is kept."""
        return RUNS / "answers" / f"{self.base}-{self.change.replace(' ', '_')}-{self.seed}.json"


CHANGES = {
    "fno": ("none", "learned transforms", "learned transforms, Monarch products"),
    "fno-monarch": ("none", "dense transforms"),
    "unet": ("none", "Monarch convolutions", "Monarch convolutions, from scratch"),
    "varnet": ("none", "learned transforms", "Monarch convolutions"),
    "varnet-monarch": ("none", "dense transforms"),
}
CASES = [
    Case(base, change, seed) for base, changes in CHANGES.items() for change in changes for seed in SEEDS
]


def change(model: nn.Module, case: Case, shape: tuple[int, int]) -> None:
    """Alter the structure of ``model`` in place."""
    match case.change:
        case "learned transforms" | "learned transforms, Monarch products" if case.field == "pde":
            use_learned_transforms(model, shape)
            if "products" in case.change:
                monarchize(model, 4, include=("*mlp*", "*lifting*", "*projection*"))
        case "learned transforms":
            model.transforms = nn.ModuleList([LearnedFourier(shape, inverse=True)])
        case "Monarch convolutions":
            monarchize(model, 2)
        case "Monarch convolutions, from scratch":
            for module in model.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    module.reset_parameters()
            monarchize(model, 2, mode="init")
        case "dense transforms":
            densify(model)
        case _:
            assert case.change == "none"


def train_on(
    model: nn.Module, loss: Loss, batches: Callable[[], Iterator[Any]], case: Case, steps: int
) -> float:
    """One-cycle Adam; seconds of CPU time of this thread."""
    model.train()
    rate = RATE[case.field]
    adam = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    schedule = OneCycleLR(adam, rate, total_steps=steps, pct_start=0.1)
    start, step = time.thread_time(), 0
    while step < steps:
        for batch in batches():
            adam.zero_grad()
            loss(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            step += 1
            if step == steps:
                break
            schedule.step()
    model.eval()
    return time.thread_time() - start


# ---------------------------------------------------------------------------------- the two kinds of problem


def flow_problem(case: Case):
    """FNO on Navier–Stokes: the run of ``monarch-sciml pde train`` and the pieces to go on with."""
    config = pde.TrainConfig(
        data=FLOW,
        out=RUNS / f"{case.base}-{case.seed}",
        model=case.base,  # type: ignore[arg-type]
        residual=True,
        first_frame=1,
        every=2,
        transform_rate=1.0,
        spectral_rate=1.0,
        seed=case.seed,
        threads=1,
        resume=True,
        quiet=True,
    )
    model = FramePredictor.from_pretrained(pde.train(config))
    training, held_out = pde.recipe.split(config)
    windows = pde.Windows(training, 1, 1)
    loader = DataLoader(
        windows, config.batch, shuffle=True, generator=torch.Generator().manual_seed(case.seed)
    )

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return relative_l2(model(batch[0]), batch[1][:, 0], first_dim=1).mean()

    def error(model: nn.Module) -> float:
        trajectories = torch.stack([held_out[i] for i in range(len(held_out))])
        with torch.no_grad():
            return rollout_errors(model, trajectories, 1)[2].mean().item()

    return model, loss, lambda: iter(loader), error, EPOCHS["pde"] * len(loader), training.grid


def scan_problem(case: Case):
    """A reconstruction network at 2×, 4× and 8×, trained by ``benchmarks/paper_mri/`` or alike here."""
    sampling = MaskConfig("poisson", (2.0, 4.0, 8.0), (0.12,) * 3)
    name = f"{case.base}-2x-4x-8x-5epochs-{case.seed}"
    earlier = ROOT / "runs" / "paper_mri" / name
    config = mri.TrainConfig(
        data=SCANS,
        out=earlier if (earlier / "model").exists() else RUNS / name,
        model=case.base,  # type: ignore[arg-type]
        sampling=sampling,
        n_test=12,
        epochs=5,
        seed=case.seed,
        threads=1,
        resume=True,
        quiet=True,
    )
    run = config.out if (config.out / "model").exists() else mri.train(config)
    trained = SliceReconstructor.from_pretrained(run)
    model, settings = trained.network, trained.config
    parts = mri.split(config)
    training = mri.Examples(parts[0])
    held_out = mri.Examples(parts[1], len(training))  # keys of their own in the cache of coil maps
    maps, generator = mri.MapCache("espirit"), torch.Generator().manual_seed(case.seed)

    def reconstruct(model: nn.Module, example: mri.Example, mask) -> Tensor:
        return model(*mri.undersample(example, mask, maps))[0].abs()

    def batches() -> Iterator[mri.Example]:
        return (training[int(i)] for i in torch.randperm(len(training), generator=generator))

    def loss(model: nn.Module, example: mri.Example) -> Tensor:
        seed = int(torch.randint(mri.POISSON_DISCS, (), generator=generator))
        image = reconstruct(model, example, draw_mask(sampling, settings.shape, seed))
        return (image - example.target).norm() / example.target.norm()

    def error(model: nn.Module) -> float:
        found = []
        with torch.inference_mode():
            for rate in (4.0, 8.0):
                masks = MaskConfig("poisson", (rate,), (0.12,))
                for example in (held_out[i] for i in range(len(held_out))):
                    mask = draw_mask(masks, settings.shape, volume_seed(example.name))
                    image = reconstruct(model, example, mask)
                    found.append(scores(example.target, image)["nmse"])
        return mean(found)

    return model, loss, batches, error, EPOCHS["mri"] * len(training), settings.shape


def run(case: Case) -> dict[str, Any]:
    """Load, change, train on, and measure before and after."""
    if case.answer.exists():
        return read_json(case.answer)
    torch.set_num_threads(1)
    torch.manual_seed(case.seed)
    problem = flow_problem if case.field == "pde" else scan_problem
    model, loss, batches, error, steps, shape = problem(case)
    change(model, case, shape)
    result: dict[str, Any] = {
        "parameters": count_parameters(model),
        "before": error(model),
        "seconds": train_on(model, loss, batches, case, steps),
        "after": error(model),
    }
    case.answer.parent.mkdir(parents=True, exist_ok=True)
    write_json(case.answer, result)
    print(f"{case}: {result}", flush=True)
    return result


def report(results: dict[Case, dict[str, Any]]) -> None:
    """Write ``operators_three_ways.{md,json}``: means ± standard deviations over the seeds."""

    def spread(values: list[float]) -> str:
        return f"{mean(values):.5f} ± {stdev(values):.5f}"

    lines = [
        "# Dense to sparse, sparse to dense: operators and MRI networks",
        "",
        f"Trained networks, changed, then trained on: {EPOCHS['pde']} epochs on Navier–Stokes (ν = 1e-3,",
        f"relative L2 of a 20-step rollout), {EPOCHS['mri']} in MRI (NMSE at 4× and 8×). The change none is",
        f"the control: the same network, trained on. Mean ± standard deviation over {len(SEEDS)} seeds; CPU",
        "seconds of one thread.",
        "",
        "| network | change | parameters | error at the change | after | against the control | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for base, changes in CHANGES.items():
        control = mean(results[Case(base, "none", s)]["after"] for s in SEEDS)
        for name in changes:
            found = [results[Case(base, name, s)] for s in SEEDS]
            after = [f["after"] for f in found]
            against = "" if name == "none" else f"{100 * (mean(after) / control - 1):+.1f} %"
            lines.append(
                f"| {base} | {name} | {found[0]['parameters']:,} | {spread([f['before'] for f in found])} "
                f"| {spread(after)} | {against} | {mean(f['seconds'] for f in found):.0f} |"
            )
    stamp = {**environment(), "threads": 1, "date": datetime.date.today().isoformat()}
    lines += ["", ", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    rows = [
        {"network": c.base, "change": c.change, "seed": c.seed, **result} for c, result in results.items()
    ]
    write_json(RESULTS.with_suffix(".json"), {"environment": stamp, "results": rows})


def main() -> None:
    """Train, change, train on, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    options = parser.parse_args()
    pde.generate(FLOW, pde.GenerateConfig(samples=140, end_time=21), progress=False)
    simulate(SCANS, SimulateConfig(volumes=92))
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        # the controls first: each trains its network before others want it
        list(pool.map(run, [case for case in CASES if case.change == "none"]))
        report(dict(zip(CASES, pool.map(run, CASES), strict=True)))


if __name__ == "__main__":
    main()
