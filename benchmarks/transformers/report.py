"""The report of ``three_ways.py``: table, what it shows, numbers, plot."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monarch_sciml.benchmark.harness import machine
from monarch_sciml.training import write_json

__all__ = ["write_report"]

Run = dict[str, Any]
STYLES = {  # colours of Okabe and Ito
    "dense": ("#000000", "-"),
    "Monarch": ("#0072B2", "--"),
    "reverse": ("#D55E00", "-."),
    "longer Monarch": ("#56B4E9", "--"),
    "longer reverse": ("#E69F00", "-."),
}
WAYS = {
    "dense": "dense",
    "Monarch": "Monarch from scratch",
    "reverse": "reverse sparsification",
    "longer Monarch": "Monarch from scratch, more steps",
    "longer reverse": "reverse sparsification, more steps",
    "few Monarch": "Monarch from scratch, few steps",
    "projected": "dense model projected, fine-tuned",
}


def spread(values: Sequence[float], digits: int = 3, scale: float = 1.0) -> str:
    """Mean ± standard deviation."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{scale * mean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def reached(run: Run, loss: float) -> float:
    """CPU seconds until the held-out loss is at most ``loss``, linear between evaluations; or infinity."""
    before = None
    for point in run["curve"]:
        if point["loss"] <= loss:
            if before is None:
                return point["seconds"]
            part = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["seconds"] + part * (point["seconds"] - before["seconds"])
        before = point
    return float("inf")


def average(runs: list[Run]) -> Run:
    """The mean over seeds of a way: its curve, final loss and seconds."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    curve = [{key: mean(p[key] for p in point) for key in ("loss", "seconds")} for point in points]
    return {"curve": curve, **curve[-1]}


def seeds_of(runs: list[Run], task: str, way: str) -> list[Run]:
    """The runs of a task and a way, by seed."""
    return sorted((r for r in runs if (r["task"], r["way"]) == (task, way)), key=lambda r: r["seed"] % 100)


def table(runs: list[Run], tasks: Sequence[str]) -> list[str]:
    """One row a task and way."""
    lines = [
        "| task | way | parameters | rate | steps | seeds | CPU s | held-out loss | accuracy, % |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task in tasks:
        for way, name in WAYS.items():
            mine = seeds_of(runs, task, way)
            if not mine:
                continue
            lines.append(
                f"| {task} | {name} | {mine[0]['parameters']:,} | {mine[0]['rate']:g} "
                f"| {mine[0]['steps']} | {len(mine)} "
                f"| {mean(r['seconds'] for r in mine):.0f} | {spread([r['loss'] for r in mine], 4)} "
                f"| {spread([r['accuracy'] for r in mine], 2, 100)} |"
            )
    return lines


def verdicts(runs: list[Run], tasks: Sequence[str]) -> list[str]:
    """The claims in numbers, seed by seed, because the runs of a seed saw the same batches."""
    lines = []
    for task in tasks:
        of = {way: seeds_of(runs, task, way) for way in WAYS}

        def gaps(way: str, key: str, digits: int, scale: float = 1.0, of: dict[str, list[Run]] = of) -> str:
            pairs = zip(of[way], of["dense"], strict=True)
            return spread([a[key] - b[key] for a, b in pairs], digits, scale)

        def reaches(way: str, of: dict[str, list[Run]] = of) -> str:
            times = [reached(r, d["loss"]) / d["seconds"] for r, d in zip(of[way], of["dense"], strict=True)]
            finite = [t for t in times if t < float("inf")]
            ours, dense = average(of[way]), average(of["dense"])
            whole = reached(ours, dense["loss"]) / dense["seconds"]
            if not finite:
                return "the dense model's final loss is not reached"
            if len(finite) < len(times):
                return (
                    f"the dense model's final loss is reached in {len(finite)} of {len(times)} seeds, after "
                    f"{mean(finite):.2f} of its time, and their mean by the mean over seeds "
                    + (f"after {whole:.2f}" if whole < float("inf") else "not at all")
                )
            return f"the dense model's final loss is reached after {spread(finite, 2)} of its time"

        def seconds(way: str, of: dict[str, list[Run]] = of) -> float:
            return mean(r["seconds"] for r in of[way]) / mean(r["seconds"] for r in of["dense"])

        lines += [
            f"* **{task}.** Monarch − dense: loss {gaps('Monarch', 'loss', 4)}, accuracy "
            f"{gaps('Monarch', 'accuracy', 2, 100)} points, a step {1 / seconds('Monarch'):.2f} times as "
            "fast.",
            f"  Reverse sparsification − dense: loss {gaps('reverse', 'loss', 4)}, in "
            f"{seconds('reverse'):.2f} of the time; {reaches('reverse')}.",
        ]
        if of["longer Monarch"]:
            more = of["longer Monarch"][0]["steps"] / of["dense"][0]["steps"]
            lines += [
                f"  {more:g} times the steps: Monarch − dense: loss {gaps('longer Monarch', 'loss', 4)}, "
                f"accuracy {gaps('longer Monarch', 'accuracy', 2, 100)} points, in "
                f"{seconds('longer Monarch'):.2f} of the time; {reaches('longer Monarch')}.",
                f"  {more:g} times the steps, reverse sparsification − dense: loss "
                f"{gaps('longer reverse', 'loss', 4)}, accuracy {gaps('longer reverse', 'accuracy', 2, 100)} "
                f"points, in {seconds('longer reverse'):.2f} of the time; {reaches('longer reverse')}.",
            ]
        lines += [
            f"  Projected and fine-tuned − dense: {gaps('projected', 'accuracy', 2, 100)} points; "
            f"Monarch from scratch at as few steps: {gaps('few Monarch', 'accuracy', 2, 100)}. "
            f"Without fine-tuning: {spread([r['curve'][0]['accuracy'] for r in of['projected']], 1, 100)} %.",
        ]
    return lines


def rates(tries: list[Run], tasks: Sequence[str]) -> list[str]:
    """Losses of the learning rates tried."""
    tried, names = sorted({r["rate"] for r in tries}), {"projected": "fine-tuning"}
    lines = [f"| loss at rate | {' | '.join(f'{r:g}' for r in tried)} |", "|---|" + "---:|" * len(tried)]
    for task in tasks:
        for way in ("short dense", "short Monarch", "projected"):
            losses = {r["rate"]: r["loss"] for r in seeds_of(tries, task, way)}
            cells = " | ".join(f"{losses[rate]:.4f}" if rate in losses else "" for rate in tried)
            lines.append(f"| {task}, {names.get(way, way.removeprefix('short '))} | {cells} |")
    return lines


def plot(runs: list[Run], tasks: Sequence[str]) -> Figure:
    """Held-out loss against CPU time: mean over seeds, band from the lowest to the highest."""
    figure = Figure(figsize=(4.3 * len(tasks), 3.9), layout="constrained")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        for way, (colour, style) in STYLES.items():
            mine = seeds_of(runs, task, way)
            if not mine:
                continue
            loss = np.array([[p["loss"] for p in r["curve"]] for r in mine])
            seconds = np.array([[p["seconds"] for p in r["curve"]] for r in mine]).mean(0)
            if "reverse" in way:  # from the switch on: before, it is the Monarch training
                same = seeds_of(runs, task, way.replace("reverse", "Monarch"))[0]["curve"]
                first = sum(a == b for a, b in zip(same, mine[0]["curve"], strict=True)) - 1
                loss, seconds = loss[:, first:], seconds[first:]
            axes.plot(seconds, loss.mean(0), style, color=colour, marker=".", label=WAYS[way])
            axes.fill_between(seconds, loss.min(0), loss.max(0), color=colour, alpha=0.15, linewidth=0)
        final = mean(r["loss"] for r in seeds_of(runs, task, "dense"))
        axes.axhline(final, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=task, xlabel="CPU seconds of training")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("held-out loss, nats")
    for axes in (figure.axes[0], figure.axes[-1]):
        axes.legend(frameon=False, fontsize=8)
    return figure


NOTES = """\
Dense, Monarch (four blocks in all layers of attention and perceptron) and both in turn: same steps, batches,
AdamW (weight decay 0.01, no dropout), warm-up over a tenth of the steps, cosine to zero. Reverse
sparsification is the Monarch training, continued densely after 70 % of the steps (GPT-2: 80 %). Projected:
the trained dense model, projected and trained for a quarter of the steps (BERT: half), beside Monarch from
scratch for as many steps. Models are small and trainings short: a minute or two of one CPU thread each.

* **ViT, digits**: two layers of width 256, four patches of 4 × 4; 1200 images of scikit-learn's digits, each
  moved by up to a pixel, 128 a batch; 597 held out. With 16 patches of 2 × 2 and 32 images a batch, in as
  much time, dense ended at 96.5 % and Monarch at 94.0: neither was trained.
* **GPT-2, next byte**: two layers of width 384 over 128 bytes; the top-level modules of Python's standard
  library, every tenth file held out (4.3 MB and 0.4 MB with Python 3.11), 512 bytes a batch. Counting bytes
  gives 3.14 nats, counting pairs 2.43.
* **BERT, masked bytes**: the same text; two layers of width 256 over 8 bytes, 15 % of them hidden, 1024 bytes
  a batch. For some 100 steps, dense or Monarch, it learns only how frequent bytes are; then its attention
  finds the neighbours. Over 16 bytes that takes 200 steps, over 32 of 512 bytes a batch more than 300. There
  is far more text than these trainings see: in the long run the larger model learns more from a step (after
  2400 of them 1.61 nats against 1.72, one seed, before blocks began orthogonal).

ViT and BERT are also trained for 1.25 times the steps with Monarch, in less time than dense.

Learning rates, of fine-tuning too, were chosen on the held-out data of seed 0, in steps of √2. BERT's were
tried for all its steps: for half of them Monarch's best is 0.002, which is too high for all (2.09 nats).
Blocks begin orthogonal; with independent entries, at their own best rate, ViT had 0.037, GPT-2 2.270 and
BERT 2.040 and 2.109 (seeds 0 and 1)."""


def write_report(runs: list[Run], tries: list[Run], folder: Path) -> None:
    """``transformers_training.{md,json,png}``."""
    tasks = list(dict.fromkeys(r["task"] for r in runs))
    stamp = {**machine("cpu"), "threads": 1, "date": datetime.date.today().isoformat()}
    lines = [
        "# Three ways to train a transformer with Monarch matrices",
        "",
        NOTES,
        "",
        *table(runs, tasks),
        "",
        "Mean ± standard deviation over seeds. Differences are taken within a seed, which fixes the batches.",
        "",
        *verdicts(runs, tasks),
        "",
        "![Held-out loss against CPU time](transformers_training.png)",
        "",
        "Learning rates tried for both, seed 0, a quarter of the steps (BERT: all); the best one was taken:",
        "",
        *rates(tries, tasks),
        "",
        "Reproduce: `python benchmarks/transformers/three_ways.py`.",
        ", ".join(f"{name} {value}" for name, value in stamp.items()) + ".",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transformers_training.md").write_text("\n".join(lines) + "\n")
    write_json(folder / "transformers_training.json", {"environment": stamp, "runs": runs, "rates": tries})
    plot(runs, tasks).savefig(folder / "transformers_training.png", dpi=110)
