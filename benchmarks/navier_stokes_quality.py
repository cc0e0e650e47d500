"""FNO against FNO-Monarch at equal modes, width, data, epochs and optimiser.

    python benchmarks/navier_stokes_quality.py [--workers 2]

Three seeds; ten epochs at three peak learning rates, the published one of protocol B and twice and four
times that, so that each model is also seen at its best; then forty epochs. The model predicts either the next
frame, as published, or its change, which helps the FNO. One thread per training. Resumable: data and
trainings are reused where they are complete. Writes tables, numbers and the plot of error against seconds of
training to ``benchmarks/results/navier_stokes_quality.*``.
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
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """What both models of a comparison share."""

    target: str
    epochs: int
    rate: float

    def __str__(self) -> str:
        return f"predicts the {self.target}, {self.epochs} epochs at {self.rate:g}"


@dataclass(frozen=True)
class Model:
    """A row of the table."""

    kind: str
    transform_rate: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.transform_rate == 1 else f"{self.kind}, transforms × {self.transform_rate:g}"


FNO, MONARCH, SLOW = Model("fno"), Model("fno-monarch"), Model("fno-monarch", 0.1)
COMPARISONS = {
    Setting("change", 10, 2.5e-3): (FNO, MONARCH),
    Setting("change", 10, 5e-3): (FNO, MONARCH),
    Setting("change", 10, 1e-2): (FNO, MONARCH, SLOW),
    Setting("change", 40, 2.5e-3): (FNO, MONARCH),
    Setting("frame", 10, 2.5e-3): (FNO, MONARCH),
    Setting("frame", 10, 5e-3): (FNO, MONARCH),
    Setting("frame", 10, 1e-2): (FNO, MONARCH),
    Setting("frame", 40, 5e-3): (FNO, MONARCH),
}
Case = tuple[Setting, Model, int]


def configuration(case: Case) -> TrainConfig:
    """``monarch-sciml pde train`` on every second grid point, 32 × 32; one rate for all but transforms."""
    setting, model, seed = case
    name = f"{model.kind}-{model.transform_rate:g}-{setting.target}-{setting.epochs}-{setting.rate:g}-{seed}"
    return TrainConfig(
        data=DATA,
        out=ROOT / "runs" / "quality" / name,
        model=model.kind,  # type: ignore[arg-type]
        residual=setting.target == "change",
        first_frame=1,
        every=2,
        epochs=setting.epochs,
        learning_rate=setting.rate,
        transform_rate=model.transform_rate,
        spectral_rate=1.0,
        seed=seed,
        threads=1,
        resume=True,
        quiet=True,
    )


def run(case: Case) -> Evaluation:
    """Train, or find it trained, and evaluate."""
    result, _ = evaluate_run(train(configuration(case)))
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
    # neighbours in this order run at the same time: the models of one setting, so that their times compare
    cases = [
        (setting, model, seed)
        for setting, models in COMPARISONS.items()
        for seed, model in itertools.product(SEEDS, models)
    ]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        report(dict(zip(cases, pool.map(run, cases), strict=True)), workers)


def report(results: dict[Case, Evaluation], workers: int) -> None:
    """Write ``navier_stokes_quality.{md,json,png}``."""

    def runs(setting: Setting, model: Model) -> list[Evaluation]:
        return [results[setting, model, seed] for seed in SEEDS]

    def rollout(setting: Setting, model: Model) -> float:
        return mean(r.rollout for r in runs(setting, model))

    def against(error: float, baseline: float) -> str:
        return f"{100 * (error / baseline - 1):+.0f} %"

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
    for setting, models in COMPARISONS.items():
        for model in models:
            mine = runs(setting, model)
            errors = [r.rollout for r in mine]
            change = "" if model == FNO else against(mean(errors), rollout(setting, FNO))
            lines.append(
                f"| {setting.target} | {setting.epochs} | {setting.rate:g} | {model} "
                f"| {mine[0].parameters:,} | {median(r.train_seconds for r in mine):.0f} "
                f"| {mean(r.one_step for r in mine):.4f} | {mean(errors):.4f} ± {stdev(errors):.4f} "
                f"| {' / '.join(f'{e:.4f}' for e in errors)} | {change} |"
            )
    lines += [
        "",
        "Ten epochs, each model at whichever of these learning rates has the lowest of these errors, three",
        "for the FNO, four for FNO-Monarch where it predicts the change; an FNO with a rate of its own for",
        "the spectral weights is in [the ablation](transform_ablation.md):",
        "",
    ]
    lines += ["| predicts | FNO | FNO-Monarch | change |", "|---|---:|---:|---:|"]
    for target in ("change", "frame"):
        choices = [(s, m) for s, models in COMPARISONS.items() for m in models if s.target == target]
        choices = [(s, m) for s, m in choices if s.epochs == 10]
        fno = min(rollout(s, m) for s, m in choices if m == FNO)
        monarch = min(rollout(s, m) for s, m in choices if m != FNO)
        lines.append(f"| {target} | {fno:.4f} | {monarch:.4f} | {against(monarch, fno)} |")
    stamp = {**environment(), "threads": 1, "trainings at a time": workers}
    stamp["date"] = datetime.date.today().isoformat()
    lines += ["", "![Error against time](navier_stokes_quality.png)", ""]
    lines += [", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "navier_stokes_quality.md").write_text("\n".join(lines) + "\n")
    rows = [
        {**asdict(setting), **asdict(model), **asdict(result)}
        for (setting, model, _), result in results.items()
    ]
    write_json(RESULTS / "navier_stokes_quality.json", {"environment": stamp, "runs": rows})
    plot(results).savefig(RESULTS / "navier_stokes_quality.png", dpi=110)


def plot(results: dict[Case, Evaluation]) -> Figure:
    """Held-out rollout error against seconds of training, a panel per setting."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(2, 4, sharey=True).flat
    for axes, (setting, models) in zip(panels, COMPARISONS.items(), strict=True):
        for (colour, model), seed in itertools.product(zip(COLOURS, models, strict=False), SEEDS):
            with (configuration((setting, model, seed)).out / "metrics.csv").open() as file:
                rows = list(csv.DictReader(file))
            x, y = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
            axes.semilogy(x, y, color=colour, label=str(model) if seed == SEEDS[0] else None, alpha=0.8)
        axes.set_title(str(setting), fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[2].legend(frameon=False, fontsize=8)
    figure.supxlabel("seconds of training on one CPU thread")
    figure.supylabel("rollout error on held-out trajectories (relative L2)")
    return figure


if __name__ == "__main__":
    main()
