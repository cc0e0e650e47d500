"""FNO against FNO-Monarch at equal modes, width, data, epochs and optimiser.

    python benchmarks/navier_stokes_quality.py [--workers 2]

Three seeds, two budgets, three peak learning rates: the published one of protocol B and twice and four times
that, so that each model is also seen at its best. One thread per training. Resumable: data, trainings and
evaluations are reused where they are complete. Writes the tables, the numbers and the plot of error against
seconds of training to ``benchmarks/results/navier_stokes_quality.*``.
"""

import argparse
import csv
import datetime
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
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
BUDGETS = (10, 40)
RATES = (2.5e-3, 5e-3, 1e-2)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    epochs: int
    rate: float
    seed: int

    @property
    def config(self) -> TrainConfig:
        """The defaults of ``monarch-sciml pde train``, on every second grid point: 32 × 32."""
        return TrainConfig(
            data=DATA,
            out=ROOT / "runs" / "quality" / f"{self.model}-{self.epochs}-{self.rate}-{self.seed}",
            model=self.model,  # type: ignore[arg-type]
            first_frame=1,
            every=2,
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
    cases = [Case(m, e, r, s) for e, r, s, m in itertools.product(BUDGETS, reversed(RATES), SEEDS, MODELS)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        report(dict(zip(cases, pool.map(run, cases), strict=True)), workers)


def report(results: dict[Case, Evaluation], workers: int) -> None:
    """Write ``navier_stokes_quality.{md,json,png}``."""

    def cell(model: str, epochs: int, rate: float) -> list[Evaluation]:
        return [results[Case(model, epochs, rate, seed)] for seed in SEEDS]

    def rollout(model: str, epochs: int, rate: float) -> float:
        return mean(r.rollout for r in cell(model, epochs, rate))

    lines = [
        "# FNO and FNO-Monarch on Navier–Stokes, ν = 1e-3",
        "",
        "32 × 32 points, 100 training and 40 held-out trajectories, one-step training (protocol B, AdamW, cosine",
        "schedule), then 20 steps of rollout from t = 1. Same modes, width, data, epochs and optimiser. Relative",
        f"L2, mean ± standard deviation over the seeds {', '.join(map(str, SEEDS))}. Reproduce: `make quality`.",
        "",
        "| epochs | learning rate | model | parameters | training, s | one-step | rollout | each seed | change |",
        "|---:|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    best: dict[tuple[str, int], float] = {}
    for epochs, rate, model in itertools.product(BUDGETS, RATES, MODELS):
        runs = cell(model, epochs, rate)
        errors = [r.rollout for r in runs]
        change = ""
        if model != MODELS[0]:
            change = f"{100 * (mean(errors) / rollout(MODELS[0], epochs, rate) - 1):+.0f} %"
        lines.append(
            f"| {epochs} | {rate:g} | {model} | {runs[0].parameters:,} "
            f"| {median(r.train_seconds or float('nan') for r in runs):.0f} "
            f"| {mean(r.one_step for r in runs):.4f} | {mean(errors):.4f} ± {stdev(errors):.4f} "
            f"| {' / '.join(f'{e:.4f}' for e in errors)} | {change} |"
        )
        best[model, epochs] = min(best.get((model, epochs), float("inf")), mean(errors))
    lines += ["", "Each model at the learning rate that suits it best:", ""]
    lines += ["| epochs | FNO | FNO-Monarch | change |", "|---:|---:|---:|---:|"]
    for epochs in BUDGETS:
        fno, monarch = (best[model, epochs] for model in MODELS)
        lines.append(f"| {epochs} | {fno:.4f} | {monarch:.4f} | {100 * (monarch / fno - 1):+.0f} % |")
    stamp = {**environment(), "threads": 1, "trainings at a time": workers}
    stamp["date"] = datetime.date.today().isoformat()
    lines += ["", "![Error against time](navier_stokes_quality.png)", ""]
    lines += [", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "navier_stokes_quality.md").write_text("\n".join(lines) + "\n")
    runs = [{**asdict(case), **asdict(result)} for case, result in results.items()]
    write_json(RESULTS / "navier_stokes_quality.json", {"environment": stamp, "runs": runs})
    plot(results).savefig(RESULTS / "navier_stokes_quality.png", dpi=110)


def plot(results: dict[Case, Evaluation]) -> Figure:
    """Held-out rollout error against seconds of training, a panel per budget and learning rate."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(len(BUDGETS), len(RATES), sharey=True, sharex="row")
    for axes, (epochs, rate) in zip(panels.flat, itertools.product(BUDGETS, RATES), strict=True):
        for (colour, model), seed in itertools.product(zip(COLOURS, MODELS, strict=False), SEEDS):
            table = Case(model, epochs, rate, seed).config.out / "metrics.csv"
            with table.open() as file:
                rows = list(csv.DictReader(file))
            x, y = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
            axes.semilogy(x, y, color=colour, label=model if seed == SEEDS[0] else None, alpha=0.8)
        axes.set_title(f"{epochs} epochs, learning rate {rate:g}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False)
    figure.supxlabel("seconds of training on one CPU thread")
    figure.supylabel("rollout error on held-out trajectories (relative L2)")
    return figure


if __name__ == "__main__":
    main()
