"""Where, when and why transforms that learn are better than the Fourier transform.

    python benchmarks/transforms/ablation.py [--workers 2] [--hours H] [--inputs DIR] [--problems NAME …]
        [--missing]

The same network, data, order of the batches (another with noise, drawn beside it, from the second epoch on)
and optimiser (AdamW, peak rate 5e-3, cosine schedule, batch 20, one step ahead); what differs is which
transforms may learn, and how fast. ``--inputs`` is the directory of neuraloperator's mini files
``darcy_{train,test}_16.pt`` and ``burgers_{train,test}_16.pt``; without it those two are not trained.
Resumable: a training that is done is not repeated, and ``--hours`` begins none after that time. Every start
writes ``benchmarks/results/transform_ablation.*``: what it trained or found trained, and what the last report
has besides; without its .json there is none. ``--missing`` trains only what the last report lacks.
"""

import argparse
import datetime
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from problems import PROBLEMS, Problem
from torch import Tensor
from variants import VARIANTS, Variant, departures, spectral_weights, transforms

from monarch_sciml.pde.metrics import relative_l2
from monarch_sciml.pde.models import FramePredictor, ModelConfig, count_parameters
from monarch_sciml.pde.rollouts import one_step_errors, rollout_errors
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.plots import draw_curves, new_figure, plain, save_figure, save_transform
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parents[2]
RESULTS, RUNS = ROOT / "benchmarks" / "results", ROOT / "runs" / "transform_ablation"
SEEDS = (0, 1, 2)
# what the conclusions rest on has all seeds, the rest shows which way it goes
SEEDED = ("fixed", "fixed-fast", "gains", "x0.3", "x1", "fast")
SEEDED += ("padded", "padded-x1", "dense-noise", "from-sines-noise")
SEEDED += ("natural-noise", "natural-fast-noise", "from-natural-noise")
SEEDED += ("fixed-noise", "fixed-fast-noise", "noise", "x1-noise", "fixed-axes", "axes")
RATE, BATCH = 5e-3, 20
FEW = ("fixed", "padded", "fixed-fast", "x0.3", "x1", "dense")
WALLS = ("padded", "padded-x1", "sines", "sines-fast")
FROM_SINES = ("from-sines", "from-sines-noise")
STRETCHED = ("natural", "natural-noise", "natural-fast-noise", "from-natural-noise", "dense-noise")
ELSEWHERE = WALLS + FROM_SINES + STRETCHED
NOISE = ("fixed-noise", "fixed-fast-noise", "noise", "x1-noise")
MIXING = ("fixed-blocks", "blocks", "fixed-axes", "axes")
NOT_OF_FRAMES = (*ELSEWHERE, *NOISE, "x3", "penalty", "fixed-blocks", "blocks")
# every variant where it is cheap, the main ones elsewhere
WANTED = {
    "torus": tuple(name for name in VARIANTS if name not in ELSEWHERE),
    "torus-frame": tuple(name for name in VARIANTS if name not in NOT_OF_FRAMES),
    "torus-500": ("fixed", "x0.3"),
    "torus-1e-4": ("fixed", "fixed-fast", "x0.3", "fixed-noise", "noise", *MIXING),
    "torus-1e-5": ("fixed", "fixed-fast", "x0.3", "x1", "fixed-noise", "noise", *MIXING),
    "stretched": ("fixed", "x0.3", "dense", *STRETCHED, *NOISE),
    "basin": (*FEW, *WALLS[1:], *FROM_SINES, "fast", *NOISE, "penalty"),
    "burgers": FEW + WALLS[1:],
    "darcy": FEW,
    "burgers-periodic": FEW[:1] + FEW[2:],
}
SHOWN = ("fixed", "fixed-fast", "x0.3", "x1", "fixed-noise", "noise")
SHOWN += ("natural-noise", "from-natural-noise")
PICTURED = (("torus", "x0.3"), ("basin", "x0.3"))
Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One training."""

    problem: str
    variant: str
    seed: int

    @property
    def path(self) -> Path:
        """Where the result is kept."""
        return RUNS / f"{self.problem}-{self.variant}-{self.seed}.json"


def wanted(problems: Iterable[str]) -> list[Case]:
    """Seed by seed, so that a part of it is a whole table."""
    return [
        Case(problem, variant, seed)
        for seed in SEEDS
        for problem in problems
        for variant in WANTED[problem]
        if seed == SEEDS[0] or variant in SEEDED
    ]


def run(case: Case, stop: float, inputs: Path | None) -> Result | None:
    """Train, or find it trained; nothing that would begin after the time is up."""
    if case.path.exists():
        return read_json(case.path)
    if time.time() > stop:
        return None
    torch.set_num_threads(1)
    problem, variant = PROBLEMS[case.problem], VARIANTS[case.variant]
    training, held_out = (torch.stack([*part]) for part in problem.split(inputs))
    model = build(problem, variant, training, case.seed)
    variant.change(model)
    curve = train(model, training, held_out, problem, variant, case.seed)
    change, nonunitarity = departures(model)
    result = {
        "problem": case.problem,
        "variant": case.variant,
        "seed": case.seed,
        "parameters": count_parameters(model),
        "departure": change,
        "nonunitarity": nonunitarity,
        "curve": curve,
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    if (case.problem, case.variant) in PICTURED and case.seed == 0:
        save_transform(RESULTS / f"transform_ablation_{case.problem}.png", model)
    write_json(case.path, result)
    last = curve[-1]
    print(f"{case.path.stem}: {last['seconds']:.0f} s, rollout {last['rollout']:.4f}", flush=True)
    return result


def build(problem: Problem, variant: Variant, training: Tensor, seed: int) -> FramePredictor:
    """The FNO-Monarch of ``monarch-sciml pde train``: before its training, an FNO."""
    torch.manual_seed(seed)
    return ModelConfig(
        kind="fno-monarch",
        grid=tuple(training.shape[3:]),
        channels=1,
        n_in=1,
        modes=problem.modes,
        width=variant.width or problem.width,
        layers=4,
        scale=float(training.std()),
        residual=problem.residual,
    ).build()


def train(
    model: FramePredictor, training: Tensor, held_out: Tensor, problem: Problem, variant: Variant, seed: int
) -> list[Result]:
    """Markov training; errors after every tenth of the epochs, with the CPU seconds so far."""
    x, y = training[:, :-1].flatten(0, 1)[:, None], training[:, 1:].flatten(0, 1)
    start = {p: p.detach().clone() for t in transforms(model) for p in t.parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(groups(model, variant), weight_decay=1e-4)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, problem.epochs * steps)
    draw = torch.Generator().manual_seed(seed)
    curve, seconds = [], 0.0
    for epoch in range(1, problem.epochs + 1):
        began, total = time.process_time(), 0.0
        for some in torch.randperm(len(x), generator=draw).split(BATCH):
            frames = x[some]
            if variant.noise:
                size = variant.noise * model.config.scale
                frames = frames + size * torch.randn(frames.shape, generator=draw)
            loss = relative_l2(model(frames), y[some]).mean()
            total += float(loss.detach()) * len(some)
            if variant.penalty:
                loss = loss + variant.penalty * sum((p - q).square().sum() for p, q in start.items())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        seconds += time.process_time() - began
        if epoch % max(1, problem.epochs // 10) == 0 or epoch == problem.epochs:
            row = {"epoch": epoch, "seconds": seconds, "training": total / len(x)}
            curve.append({**row, **errors(model, held_out)})
    return curve


def groups(model: FramePredictor, variant: Variant) -> list[Result]:
    """Parameters with their learning rates: transforms, spectral weights, the rest."""
    rates = {p: RATE for p in model.parameters() if p.requires_grad}
    rates |= dict.fromkeys(spectral_weights(model), RATE * variant.spectral)
    rates |= {p: RATE * variant.rate for t in transforms(model) for p in t.parameters() if p in rates}
    return [{"params": [p for p in rates if rates[p] == rate], "lr": rate} for rate in {*rates.values()}]


@torch.no_grad()
def errors(model: FramePredictor, held_out: Tensor) -> dict[str, float]:
    """Relative L2 one step ahead, and over the whole rollout."""
    _, _, blocks = rollout_errors(model, held_out, 1)
    return {"one_step": float(one_step_errors(model, held_out, 1).mean()), "rollout": float(blocks.mean())}


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no training after so long")
    parser.add_argument("--inputs", type=Path, help="directory of neuraloperator's mini files")
    parser.add_argument("--problems", nargs="+", choices=WANTED, help="train only these")
    parser.add_argument("--missing", action="store_true", help="train only what the last report lacks")
    options = parser.parse_args()
    stop = time.time() + 3600 * options.hours
    before = kept()
    names = options.problems or [
        n for n in WANTED if options.inputs or n not in ("darcy", "burgers-periodic")
    ]
    cases = [case for case in wanted(names) if not (options.missing and case in before)]
    for name in {case.problem for case in cases}:
        PROBLEMS[name].read(options.inputs)  # generated here, once
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        found = pool.map(run, cases, repeat(stop), repeat(options.inputs))
        here = {case: result for case, result in zip(cases, found, strict=True) if result}
    results = {**before, **here}
    report(results, len({*wanted(WANTED), *results}))


def kept() -> dict[Case, Result]:
    """The trainings of the last report."""
    path = RESULTS / "transform_ablation.json"
    rows = read_json(path)["runs"] if path.exists() else []
    return {Case(row["problem"], row["variant"], row["seed"]): row for row in rows}


# ---------------------------------------------------------------------------------------------------- report


def report(results: dict[Case, Result], total: int) -> None:
    """Write ``transform_ablation.{md,json,png}``."""
    lines = [
        "# Which transforms learn, where it helps, and when",
        "",
        "One network, one order of the batches (another with noise, from the second epoch on), one",
        "optimiser for all rows of a table: see `benchmarks/transforms/`. Relative L2 errors on held-out",
        "trajectories, mean ± standard deviation over seeds; n is their number. "
        f"{len(results)} of {total} trainings are done. Seconds are those of",
        "one CPU thread in training. *To the FNO's error*: seconds after which the rollout error is first as",
        "low as the lowest of the fixed transforms. *Against fixed*: over the seeds that both have, perhaps",
        "fewer than n. Reproduce: `make ablation`.",
        "",
        "![Rollout error against time](transform_ablation.png)",
        "",
    ]
    for name in dict.fromkeys(case.problem for case in results):
        problem = PROBLEMS[name]
        lines += [f"## {problem.title}", "", f"{problem.epochs} epochs, {problem.modes} modes.", ""]
        lines += [*table(name, results), ""]
    about = {**environment(), "threads of a training": 1, "date": datetime.date.today().isoformat()}
    lines += [", ".join(f"{key} {value}" for key, value in about.items()) + "."]
    (RESULTS / "transform_ablation.md").write_text("\n".join(lines) + "\n")
    write_json(RESULTS / "transform_ablation.json", {"environment": about, "runs": list(results.values())})
    plot(results)


def rows(name: str, results: dict[Case, Result]) -> dict[str, list[Result]]:
    """Of each variant of a problem, the results of its seeds."""
    found = {v: [results[c] for s in SEEDS if (c := Case(name, v, s)) in results] for v in WANTED[name]}
    return {variant: mine for variant, mine in found.items() if mine}


def table(name: str, results: dict[Case, Result]) -> Iterator[str]:
    """All variants of a problem."""
    yield (
        "| transforms | n | parameters | training, s | training error | one-step | rollout | against fixed "
        "| to the FNO's error, s | ‖W − F‖/‖F‖ | ‖WWᴴ − I‖/√m |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    found = rows(name, results)
    for variant, mine in found.items():
        last = [result["curve"][-1] for result in mine]
        rollouts = [row["rollout"] for row in last]
        spread = f" ± {stdev(rollouts):.4f}" if len(mine) > 1 else ""
        fixed = {r["seed"]: r["curve"][-1]["rollout"] for r in found.get("fixed", [])}
        lowest = {r["seed"]: min(row["rollout"] for row in r["curve"]) for r in found.get("fixed", [])}
        pairs = [(r["curve"][-1]["rollout"], fixed[r["seed"]]) for r in mine if r["seed"] in fixed]
        against = (
            f"{100 * (mean(a for a, _ in pairs) / mean(b for _, b in pairs) - 1):+.0f} %" if pairs else ""
        )
        yield (
            f"| {VARIANTS[variant].title} | {len(mine)} | {mine[0]['parameters']:,} "
            f"| {mean(row['seconds'] for row in last):.0f} | {mean(row['training'] for row in last):.4f} "
            f"| {mean(row['one_step'] for row in last):.4f} | {mean(rollouts):.4f}{spread} "
            f"| {'' if variant == 'fixed' else against} | {time_to(mine, lowest)} "
            f"| {mean(r['departure'] for r in mine):.3f} | {mean(r['nonunitarity'] for r in mine):.3f} |"
        )


def time_to(mine: list[Result], targets: dict[int, float]) -> str:
    """Mean seconds until the target of each seed is reached; a dash if a seed never does."""
    seconds = []
    for result in mine:
        if result["seed"] not in targets:
            continue
        reached = [r["seconds"] for r in result["curve"] if r["rollout"] <= targets[result["seed"]]]
        if not reached:
            return "–"
        seconds.append(reached[0])
    return f"{mean(seconds):.0f}" if seconds else ""


def plot(results: dict[Case, Result]) -> None:
    """Rollout error on held-out trajectories against seconds of training, a panel for each problem."""
    names, titles = list(dict.fromkeys(case.problem for case in results)), [VARIANTS[v].title for v in SHOWN]
    figure = new_figure(13, 3.4 * -(-len(names) // 3) + 0.6)
    panels = figure.subplots(-(-len(names) // 3), min(3, len(names)), squeeze=False).flatten()
    lines = {}
    for axes, name in zip(panels, names, strict=False):
        found, curves = rows(name, results), {}
        for variant in (v for v in SHOWN if v in found):
            seconds, error = (
                np.array([[row[key] for row in r["curve"]] for r in found[variant]])
                for key in ("seconds", "rollout")
            )
            curves[VARIANTS[variant].title] = (seconds.mean(0), error)
        axes.set_yscale("log")
        axes.set_title(PROBLEMS[name].title, fontsize=9)
        plain(axes)
        draw_curves(axes, curves, titles)
        axes.get_legend().remove()  # one for all panels
        lines |= dict(zip(curves, axes.lines, strict=True))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    shown = [title for title in titles if title in lines]
    note = "mean of the seeds, band: lowest to highest; a line without a band is one seed"
    figure.legend(
        [lines[title] for title in shown],
        shown,
        loc="outside upper center",
        ncols=3,
        frameon=False,
        title=note,
        title_fontsize=9,
    )
    figure.supxlabel("seconds of training on one CPU thread", fontsize=10)
    figure.supylabel("rollout error on held-out trajectories", fontsize=10)
    save_figure(figure, RESULTS / "transform_ablation.png", dpi=110)


if __name__ == "__main__":
    main()
