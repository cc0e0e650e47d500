"""FNO against FNO-Monarch at equal modes, width, data, epochs and optimiser.

    python benchmarks/navier_stokes_quality.py [--workers 2]

Three seeds; ten epochs at three peak learning rates, the published one of protocol B and twice and four times
that, so that each model is also seen at its best; forty epochs at the middle one. The model predicts either
the next frame, as published, or its change, which helps the FNO. One thread per training. Resumable: data and
trainings are reused where they are complete. Writes tables, numbers and the plot of error against seconds of
training to ``benchmarks/results/navier_stokes_quality.*``.
"""

import argparse
import csv
import datetime
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import mean, median, stdev

from matplotlib.figure import Figure

from monarch_sciml.pde import GenerateConfig, TrainConfig, generate, train
from monarch_sciml.pde.evaluation import Evaluation, evaluate_run
from monarch_sciml.pde.plots import COLOURS
from monarch_sciml.training import write_json
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "data" / "demo_ns_V1e-3.h5"
MODELS = ("fno", "fno-monarch")
TARGETS = ("change", "frame")
BUDGETS = ((10, 5e-3), (10, 1e-2), (10, 2.5e-3), (40, 5e-3))  # epochs, peak learning rate
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    target: str
    epochs: int
    rate: float
    seed: int

    @property
    def config(self) -> TrainConfig:
        """The defaults of ``monarch-sciml pde train``, on every second grid point: 32 × 32."""
        return TrainConfig(
            data=DATA,
            out=ROOT / "runs" / "quality" / "-".join(map(str, astuple(self))),
            model=self.model,  # type: ignore[arg-type]
            first_frame=1,
            every=2,
            residual=self.target == "change",
            epochs=self.epochs,
            learning_rate=self.rate,
            seed=self.seed,
            threads=1,
            resume=True,
            quiet=True,
        )


def run(case: Case) -> Evaluation:
    """Train, or find it trained, and evaluate."""
    result, _ = evaluate_run(train(case.config))
    print(f"{result.run}: one-step {result.one_step:.4f}, rollout {result.rollout:.4f}", flush=True)
    return result


def main() -> None:
    """Generate, train, evaluate, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    workers = parser.parse_args().workers
    generate(DATA, GenerateConfig(samples=140, end_time=21), progress=False)
    # neighbours in this order run at the same time: the two models, so that their times compare
    cases = [
        Case(model, target, epochs, rate, seed)
        for (epochs, rate), target, seed, model in itertools.product(BUDGETS, TARGETS, SEEDS, MODELS)
    ]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        report(dict(zip(cases, pool.map(run, cases), strict=True)), workers)


def report(results: dict[Case, Evaluation], workers: int) -> None:
    """Write ``navier_stokes_quality.{md,json,png}``."""
    errors = {
        key: [results[Case(*key, seed)].rollout for seed in SEEDS]
        for key in {astuple(case)[:-1] for case in results}
    }
    lines = [
        "# FNO and FNO-Monarch on Navier–Stokes, ν = 1e-3",
        "",
        "32 × 32 points, 100 training and 40 held-out trajectories, one-step training (protocol B, AdamW,",
        "cosine schedule), then 20 steps of rollout from t = 1. Modes, width, data, epochs and optimiser are",
        f"equal in every pair. Relative L2, mean ± standard deviation over {len(SEEDS)} seeds.",
        "Reproduce: `make quality`.",
        "",
        "| predicts | epochs | learning rate | model | parameters | training, s | one-step | rollout "
        "| each seed | change |",
        "|---|---:|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    for target, (epochs, rate), model in itertools.product(TARGETS, sorted(BUDGETS), MODELS):
        runs = [results[Case(model, target, epochs, rate, seed)] for seed in SEEDS]
        mine, baseline = (errors[name, target, epochs, rate] for name in (model, MODELS[0]))
        change = "" if model == MODELS[0] else f"{100 * (mean(mine) / mean(baseline) - 1):+.0f} %"
        lines.append(
            f"| {target} | {epochs} | {rate:g} | {model} | {runs[0].parameters:,} "
            f"| {median(r.train_seconds or float('nan') for r in runs):.0f} "
            f"| {mean(r.one_step for r in runs):.4f} | {mean(mine):.4f} ± {stdev(mine):.4f} "
            f"| {' / '.join(f'{e:.4f}' for e in mine)} | {change} |"
        )
    lines += ["", "Ten epochs, each model at the learning rate that suits it best:", ""]
    lines += ["| predicts | FNO | FNO-Monarch | change |", "|---|---:|---:|---:|"]
    for target in TARGETS:
        tuned = {
            model: min(
                (mean(errors[model, target, 10, rate]), rate) for epochs, rate in BUDGETS if epochs == 10
            )
            for model in MODELS
        }
        cells = " | ".join(f"{error:.4f} (at {rate:g})" for error, rate in tuned.values())
        fno, monarch = (tuned[model][0] for model in MODELS)
        lines.append(f"| {target} | {cells} | {100 * (monarch / fno - 1):+.0f} % |")
    stamp = {**environment(), "threads": 1, "trainings at a time": workers}
    stamp["date"] = datetime.date.today().isoformat()
    lines += ["", "![Error against time](navier_stokes_quality.png)", ""]
    lines += [", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "navier_stokes_quality.md").write_text("\n".join(lines) + "\n")
    rows = [{**asdict(case), **asdict(result)} for case, result in results.items()]
    write_json(RESULTS / "navier_stokes_quality.json", {"environment": stamp, "runs": rows})
    plot(results).savefig(RESULTS / "navier_stokes_quality.png", dpi=110)


def plot(results: dict[Case, Evaluation]) -> Figure:
    """Held-out rollout error against seconds of training, a panel per target, budget and learning rate."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(len(TARGETS), len(BUDGETS), sharey=True, sharex="col")
    keys = itertools.product(TARGETS, sorted(BUDGETS))
    for axes, (target, (epochs, rate)) in zip(panels.flat, keys, strict=True):
        for (colour, model), seed in itertools.product(zip(COLOURS, MODELS, strict=False), SEEDS):
            table = Case(model, target, epochs, rate, seed).config.out / "metrics.csv"
            with table.open() as file:
                rows = list(csv.DictReader(file))
            x, y = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
            axes.semilogy(x, y, color=colour, label=model if seed == SEEDS[0] else None, alpha=0.8)
        axes.set_title(f"predicts the {target}; {epochs} epochs at {rate:g}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False)
    figure.supxlabel("seconds of training on one CPU thread")
    figure.supylabel("rollout error on held-out trajectories (relative L2)")
    return figure


if __name__ == "__main__":
    main()
