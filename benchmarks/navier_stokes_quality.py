"""FNO against FNO-Monarch at equal modes, width, data, epochs and optimiser: error after two budgets, three seeds.

    python benchmarks/navier_stokes_quality.py [--threads 2]

Resumable: data, every training and every evaluation are reused where they are complete. Writes the table, the
numbers and the plot of error against seconds of training to ``benchmarks/results/``.
"""

import argparse
import csv
import datetime
import statistics
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from monarch_sciml.pde import GenerateConfig, TrainConfig, generate, train
from monarch_sciml.pde.evaluation import Evaluation, evaluate_run
from monarch_sciml.pde.plots import COLOURS
from monarch_sciml.training import write_json
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "data" / "quality_ns_V1e-3.h5"
MODELS = ("fno", "fno-monarch")
BUDGETS = (10, 40)
SEEDS = (0, 1, 2)


def configuration(model: str, epochs: int, seed: int, threads: int) -> TrainConfig:
    """The defaults of ``monarch-sciml pde train``, on every second grid point: 32 × 32."""
    return TrainConfig(
        data=DATA,
        out=ROOT / "runs" / "quality" / f"{model}-{epochs}-{seed}",
        model=model,  # type: ignore[arg-type]
        first_frame=1,
        every=2,
        epochs=epochs,
        seed=seed,
        threads=threads,
        resume=True,
        quiet=True,
    )


def main() -> None:
    """Generate, train, evaluate, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    threads = parser.parse_args().threads
    generate(DATA, GenerateConfig(samples=140, end_time=21), progress=False)
    results: dict[tuple[str, int], list[Evaluation]] = {}
    for epochs in BUDGETS:
        for seed in SEEDS:
            for model in MODELS:
                run = train(configuration(model, epochs, seed, threads))
                result, _ = evaluate_run(run)
                results.setdefault((model, epochs), []).append(result)
                print(f"{run.name}: one-step {result.one_step:.4f}, rollout {result.rollout:.4f}", flush=True)
    report(results, threads)


def report(results: dict[tuple[str, int], list[Evaluation]], threads: int) -> None:
    """Write ``navier_stokes_quality.{md,json,png}``."""
    lines = [
        "# FNO and FNO-Monarch on Navier–Stokes, ν = 1e-3",
        "",
        "32 × 32 points, 100 training and 40 held-out trajectories, one-step training (protocol B), rollout over",
        "20 frames from the first. Same modes, width, data, epochs, optimiser and learning rate; relative L2,",
        f"mean over the seeds {', '.join(map(str, SEEDS))}. Reproduce: `make quality`.",
        "",
        "| epochs | model | parameters | training, s | one-step | rollout | each seed | change |",
        "|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    for epochs in BUDGETS:
        baseline = statistics.mean(r.rollout for r in results[MODELS[0], epochs])
        for model in MODELS:
            runs = results[model, epochs]
            rollout = statistics.mean(r.rollout for r in runs)
            seconds = statistics.median(r.train_seconds or float("nan") for r in runs)
            each = " / ".join(f"{r.rollout:.4f}" for r in runs)
            change = f"{100 * (rollout / baseline - 1):+.0f} %" if model != MODELS[0] else ""
            lines.append(
                f"| {epochs} | {model} | {runs[0].parameters:,} | {seconds:.0f} "
                f"| {statistics.mean(r.one_step for r in runs):.4f} | {rollout:.4f} | {each} | {change} |"
            )
    stamp = {**environment(), "threads": threads, "date": datetime.date.today().isoformat()}
    lines += ["", "![Error against time](navier_stokes_quality.png)", ""]
    lines += [", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "navier_stokes_quality.md").write_text("\n".join(lines) + "\n")
    content = {"environment": stamp, "runs": [asdict(r) for runs in results.values() for r in runs]}
    write_json(RESULTS / "navier_stokes_quality.json", content)

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, epochs in zip(figure.subplots(1, len(BUDGETS), sharey=True), BUDGETS, strict=True):
        for colour, model in zip(COLOURS, MODELS, strict=False):
            for result in results[model, epochs]:
                table = ROOT / "runs" / "quality" / result.run / "metrics.csv"
                with table.open() as file:
                    rows = list(csv.DictReader(file))
                label = model if result.seed == SEEDS[0] else None
                x, y = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
                axes.semilogy(x, y, color=colour, label=label, alpha=0.8)
        axes.set(title=f"{epochs} epochs, {len(SEEDS)} seeds", xlabel="seconds of training")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("held-out rollout error (relative L2)")
    figure.savefig(RESULTS / "navier_stokes_quality.png", dpi=110)


if __name__ == "__main__":
    main()
