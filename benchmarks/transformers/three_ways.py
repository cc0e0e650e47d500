"""Dense, Monarch from scratch, reverse sparsification, projection and fine-tuning: three transformers.

    python benchmarks/transformers/three_ways.py [--quick] [--workers 2]

Three seeds of each task in ``tasks.py``, one thread a training, time in CPU seconds. Dense and Monarch each
take the best of the same learning rates, tried on seed 0 for a part of the steps; so does fine-tuning of a
few. Resumable: what is finished lies in ``runs/transformers``. Writes table, numbers and plot to
``benchmarks/results/transformers_training.*``.
"""

import argparse
import copy
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import write_report
from tasks import TASKS, Task
from torch import nn

from monarch_sciml.nn.convert import monarchize
from monarch_sciml.training import write_json
from monarch_sciml.training.sparsity import reverse_sparsification

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
TUNED_RATES = (0.25, 0.5, 1.0)  # to try: rate of fine-tuning / rate of the Monarch training from scratch
EVALUATIONS = 8


@dataclass(frozen=True)
class Plan:
    """What differs between the real experiment and a quick look at it."""

    tasks: Sequence[Task] = TASKS
    seeds: Sequence[int] = SEEDS
    runs: Path = ROOT / "runs" / "transformers"
    results: Path = ROOT / "benchmarks" / "results"


@dataclass
class Training:
    """A model on its way: optimiser, steps done, CPU seconds so far, the held-out values seen."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: float
    steps: int
    seed: int
    done: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    @classmethod
    def start(cls, model: nn.Module, rate: float, steps: int, seed: int) -> "Training":
        """The optimiser of every way."""
        return cls(model, torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01), rate, steps, seed)

    def advance(self, task: Task, until: int) -> "Training":
        """Train up to a step: warm-up over a tenth of the steps, then a cosine down to zero.

        The batch of a step depends on seed and step alone, so that all ways of a seed see the same.
        """
        every = max(1, self.steps // EVALUATIONS)
        while self.done < until:
            batch = task.draw(torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + self.done))
            begin = time.process_time()
            for group in self.optimizer.param_groups:
                warm, cosine = 10 * (self.done + 1) / self.steps, math.cos(math.pi * self.done / self.steps)
                group["lr"] = self.rate * min(warm, 0.5 + 0.5 * cosine)
            task.loss(self.model, *batch).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.seconds += time.process_time() - begin
            self.done += 1
            if self.done % every == 0 or self.done == self.steps:
                self.curve.append({"step": self.done, "seconds": self.seconds, **task.evaluate(self.model)})
        return self

    def record(self, task: Task, way: str) -> dict[str, Any]:
        """What is kept of a finished training."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "task": task.name,
            "way": way,
            "seed": self.seed,
            "steps": self.steps,
            "rate": self.rate,
            "parameters": parameters,
            **self.curve[-1],
            "curve": self.curve,
        }


def build(task: Task, seed: int, *, monarch: bool = False) -> nn.Module:
    """The model of a seed in training mode."""
    torch.manual_seed(seed)
    model = task.build()
    if monarch:
        monarchize(model, 4, include=task.include, mode="init")
    return model.train()


def dense(task: Task, seed: int, rate: float, *tuned_rates: float) -> list[dict[str, Any]]:
    """A dense training; then its projection, fine-tuned at each of some rates."""
    training = Training.start(build(task, seed), rate, task.steps, seed).advance(task, task.steps)
    rows, steps = [training.record(task, "dense")], int(task.tuning * task.steps)
    projected = training.model
    monarchize(projected, 4, include=task.include, mode="project")
    for tuned_rate in tuned_rates:
        tuned = Training.start(copy.deepcopy(projected), tuned_rate, steps, seed + 100)
        tuned.curve.append({"step": 0, "seconds": 0.0, **task.evaluate(tuned.model)})
        rows.append(tuned.advance(task, steps).record(task, "projected"))
    return rows


def monarch(task: Task, seed: int, rate: float, *, longer: bool = False) -> list[dict[str, Any]]:
    """A Monarch training; and its copy that goes on densely from the switch."""
    steps, more = (int(task.longer * task.steps), "longer ") if longer else (task.steps, "")
    training = Training.start(build(task, seed, monarch=True), rate, steps, seed)
    training.advance(task, int(task.switch * steps))
    reverse = copy.deepcopy(training)
    training.advance(task, steps)
    begin = time.process_time()
    reverse_sparsification(reverse.model, reverse.optimizer)
    reverse.seconds += time.process_time() - begin
    reverse.advance(task, steps)
    return [training.record(task, f"{more}Monarch"), reverse.record(task, f"{more}reverse")]


def short(task: Task, seed: int, rate: float, *, kind: str) -> list[dict[str, Any]]:
    """The trial of a learning rate from scratch, with a schedule of its length."""
    steps = int(task.trial * task.steps)
    training = Training.start(build(task, seed, monarch=kind == "Monarch"), rate, steps, seed)
    return [training.advance(task, steps).record(task, f"short {kind}")]


def few(task: Task, seed: int, rate: float) -> list[dict[str, Any]]:
    """Monarch from scratch for as many steps as fine-tuning takes."""
    steps = int(task.tuning * task.steps)
    training = Training.start(build(task, seed, monarch=True), rate, steps, seed)
    return [training.advance(task, steps).record(task, "few Monarch")]


WAYS = {
    "dense": dense,
    "Monarch": monarch,
    "longer Monarch": partial(monarch, longer=True),
    "few Monarch": few,
    "short dense": partial(short, kind="dense"),
    "short Monarch": partial(short, kind="Monarch"),
}
Job = tuple[str, Task, int, tuple[float, ...]]


def run(job: Job, runs: Path) -> list[dict[str, Any]]:
    """Train in one thread, or find it trained."""
    way, task, seed, rates = job
    name = f"{task.name}-{way}-{task.steps}-{'-'.join(f'{r:g}' for r in rates)}-{seed}.json"
    path = runs / name.replace(", ", "-").replace(" ", "_")
    if not path.exists():
        torch.set_num_threads(1)
        rows = WAYS[way](task, seed, *rates)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"rows": rows})
        for row in rows:
            print(
                f"{task.name}, {row['way']}, seed {seed}, rate {row['rate']:g}: loss {row['loss']:.4f}, "
                f"accuracy {100 * row['accuracy']:.2f} %, {row['seconds']:.0f} s",
                flush=True,
            )
    return json.loads(path.read_text())["rows"]


def experiment(plan: Plan, workers: int) -> None:
    """Learning rates, trainings, report."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def trained(jobs: list[Job]) -> list[dict[str, Any]]:
            return [row for rows in pool.map(partial(run, runs=plan.runs), jobs) for row in rows]

        kinds = ("dense", "Monarch")
        tries = trained([(f"short {k}", t, 0, (r,)) for t in plan.tasks for k in kinds for r in t.rates])

        def best(task: Task, way: str, rows: list[dict[str, Any]] = tries) -> float:
            mine = [row for row in rows if (row["task"], row["way"]) == (task.name, way)]
            return min(mine, key=lambda row: row["loss"])["rate"]

        rates = {t.name: (best(t, "short dense"), best(t, "short Monarch")) for t in plan.tasks}
        search = [
            ("dense", t, 0, (rates[t.name][0], *(rates[t.name][1] * factor for factor in TUNED_RATES)))
            for t in plan.tasks
        ]
        first = trained(search)
        tries += [row for row in first if row["way"] == "projected"]
        tuned = {t.name: best(t, "projected", first) for t in plan.tasks}
        runs = [row for row in first if row["way"] == "dense" or row["rate"] == tuned[row["task"]]]
        jobs: list[Job] = []
        for seed in plan.seeds:
            for task in plan.tasks:
                rate, monarch_rate = rates[task.name]
                jobs += [
                    ("Monarch", task, seed, (monarch_rate,)),
                    ("few Monarch", task, seed, (monarch_rate,)),
                ]
                jobs += [("longer Monarch", task, seed, (monarch_rate,))] * (task.longer > 1)
                jobs += [("dense", task, seed, (rate, tuned[task.name]))] * (seed != 0)
        write_report(runs + trained(jobs), tries, plan.results)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    parser.add_argument(
        "--quick", action="store_true", help="20 steps, one seed, into runs/transformers/quick"
    )
    options = parser.parse_args()
    experiment(quick(Plan().runs / "quick") if options.quick else Plan(), options.workers)


def quick(folder: Path) -> Plan:
    """Twenty steps of one seed at one rate."""
    tasks = [replace(task, steps=20, rates=task.rates[:1]) for task in TASKS]
    return Plan(tasks, SEEDS[:1], folder, folder)


if __name__ == "__main__":
    main()
