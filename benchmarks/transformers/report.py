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
    "longer Monarch": ("#009E73", ":"),
    "reverse": ("#D55E00", "-."),
}
WAYS = {
    "dense": "dense",
    "Monarch": "Monarch from scratch",
    "reverse": "reverse sparsification",
    "longer Monarch": "Monarch from scratch, about the time of dense",
    "short Monarch": "Monarch from scratch, few steps",
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

        def gaps(way: str, key: str, of: dict[str, list[Run]] = of) -> list[float]:
            return [a[key] - b[key] for a, b in zip(of[way], of["dense"], strict=False)]

        speed = mean(r["seconds"] for r in of["dense"]) / mean(r["seconds"] for r in of["Monarch"])
        times = [
            reached(r, d["loss"]) / d["seconds"] for r, d in zip(of["reverse"], of["dense"], strict=True)
        ]
        never = sum(t == float("inf") for t in times)
        finite = [t for t in times if t < float("inf")]
        reaches = f"is reached after {spread(finite, 2)} of its time" if finite else "is not reached"
        longer = gaps("longer Monarch", "accuracy") if of["longer Monarch"] else []
        lines += [
            f"* **{task}.** Monarch − dense: loss {spread(gaps('Monarch', 'loss'), 4)}, accuracy "
            f"{spread(gaps('Monarch', 'accuracy'), 2, 100)} points, a step {speed:.2f} times as fast."
            + (f" In about the time of dense: {spread(longer, 2, 100)} points." if longer else ""),
            f"  Reverse sparsification − dense: loss {spread(gaps('reverse', 'loss'), 4)}; the dense "
            f"model's final loss {reaches}"
            + (f" (in {never} of {len(times)} seeds not)." if finite and never else "."),
            f"  Projected and fine-tuned − dense: {spread(gaps('projected', 'accuracy'), 2, 100)} points; "
            f"Monarch from scratch at as few steps: {spread(gaps('short Monarch', 'accuracy'), 2, 100)}. "
            f"Without fine-tuning: {spread([r['curve'][0]['accuracy'] for r in of['projected']], 1, 100)} %.",
        ]
    return lines


def rates(tries: list[Run], tasks: Sequence[str]) -> list[str]:
    """Losses of the learning rates tried."""
    tried = sorted({r["rate"] for r in tries})
    lines = [f"| loss at rate | {' | '.join(f'{r:g}' for r in tried)} |", "|---|" + "---:|" * len(tried)]
    for task in tasks:
        for way in ("short dense", "short Monarch"):
            losses = {r["rate"]: r["loss"] for r in seeds_of(tries, task, way)}
            cells = " | ".join(f"{losses[rate]:.4f}" if rate in losses else "" for rate in tried)
            lines.append(f"| {task}, {way.removeprefix('short ')} | {cells} |")
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
            if way == "reverse":  # from the switch on: before, it is the Monarch training
                same = seeds_of(runs, task, "Monarch")[0]["curve"]
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
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


NOTES = """\
Dense, Monarch (four blocks in all layers of attention and perceptron) and both in turn: same steps, batches,
AdamW (weight decay 0.01, no dropout), warm-up over a tenth of the steps, cosine to zero. Reverse
sparsification is the Monarch training, continued densely after 80 % of the steps. Projected: the trained
dense model, projected and trained for a quarter of the steps at half the rate of Monarch, beside Monarch from
scratch for as many steps. Models are small and trainings short: a minute or two of one CPU thread each.

* **ViT, digits**: two layers of width 256, patches of 2 × 2; 1200 images of scikit-learn's digits, moved by
  up to a pixel, 32 a batch; 597 held out.
* **GPT-2, next byte**: two layers of width 384 over 128 bytes; the top-level modules of Python's standard
  library, every tenth file held out (4.3 MB and 0.4 MB with Python 3.11), 512 bytes a batch. Counting bytes
  gives 3.14 nats, counting pairs 2.43.
* **BERT, masked bytes**: the same text and sizes over 32 bytes, 15 % of them hidden. 300 steps are too
  few: no model here gets beyond guessing the most frequent byte, so that only losses differ. A dense one
  with sines as positions did not either in 600 steps at a rate of 1e-3.

Learning rates were chosen on the held-out data of seed 0; the rate of fine-tuning was not tuned. Reverse
sparsification ended at most 3 % below the loss of Monarch to the end: the time won is that of Monarch."""


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
        "Learning rates tried for both, seed 0, a quarter of the steps; the best one was taken:",
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
