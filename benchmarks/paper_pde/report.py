"""The report of the paper's Navier–Stokes table: what is trained, with spread, time and published numbers."""

import csv
import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from statistics import mean, stdev
from typing import get_args

import beyond
import steps
from cases import (
    BOTH,
    GENTLE,
    NAMES,
    PUBLISHED,
    RATE,
    ROOT,
    SCALES,
    SEEDS,
    SOLVERS,
    Case,
    Kind,
    Tables,
    configuration,
)
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from monarch_sciml.pde.evaluation import Evaluation
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.plots import COLOURS, new_figure, plain, save_figure
from monarch_sciml.training.run import environment

RESULTS = ROOT / "benchmarks" / "results"
TITLES = {
    "rates-A": "Three times the learning rate for the spectral weights, beside the U-Net: protocol A",
    "symmetries": "Trajectories moved by the equation's symmetries, with the higher rate: protocol B",
    "symmetries-time": "The same for twice the time: protocol B",
    "protocol-A": "Protocol A: ten frames in, trained through the whole rollout",
    "protocol-B": "Protocol B: one frame in, one step ahead, noise",
    "rates": "Three times the learning rate for the spectral weights: protocol B",
    "time": "Twice the time, with the higher rate, beside TF-Net: protocol B",
    "data": "Data efficiency: protocol B at ν = 1e-3, the higher rate, other numbers of trajectories",
    "modes": "Modes: protocol B, the higher rate",
    "grid": "The paper's grid, 64 × 64: protocol B",
    "rates-grid": "Three times the learning rate for the spectral weights on the paper's grid: protocol B",
}
HEADER = [
    "| ν | model | trajectories | modes | n | parameters | epochs | training, s | one-step | rollout "
    "| against the FNO | each seed | to the FNO's error, epochs (s) | published |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|",
]


Curve = list[tuple[float, float]]  # seconds as they passed and held-out rollout error after every epoch


Clock = Callable[[Case, float], float]  # seconds of so many epochs


@dataclass(frozen=True)
class Run:
    """What is known of a training."""

    result: Evaluation
    beyond: beyond.Beyond | None
    curve: Curve
    """Empty where an old report does not tell it."""


def curve(name: str, case: Case) -> Curve:
    """Of a finished training."""
    with (configuration(case, name).out / "metrics.csv").open() as file:
        return [(float(row["seconds"]), float(row["rollout"])) for row in csv.DictReader(file)]


def kept(name: str) -> dict[Case, Run]:
    """The trainings of the last report."""
    path = RESULTS / f"paper_pde_{name}.json"
    runs = {}
    for row in read_json(path)["runs"] if path.exists() else []:
        case = Case(**{f.name: row[f.name] for f in fields(Case) if f.name in row})
        result = Evaluation(**{f.name: row[f.name] for f in fields(Evaluation) if f.name in row})
        further = row["beyond"] and beyond.Beyond(**row["beyond"])
        runs[case] = Run(result, further, [(s, e) for s, e in row.get("curve", [])])
    return runs


def report(
    name: str, chosen: Tables, runs: dict[Case, Run], workers: int, *, trained_here: int | None = None
) -> None:
    """Write ``paper_pde_<scale>.{md,json,png}`` and ``paper_pde_<scale>_beyond.png``."""
    every = {case for rows in chosen.values() for row in rows for case in row}
    runs = {case: run for case, run in runs.items() if case in every}
    results = {case: run.result for case, run in runs.items()}
    further = {case: run.beyond for case, run in runs.items() if run.beyond}
    earlier = 0 if trained_here is None else len(runs) - trained_here
    note = f", {earlier} of them earlier" if earlier else ""
    scale = SCALES[name]
    points = 64 // scale.every
    lines = [
        f"# The paper's Navier–Stokes table, {name} scale",
        "",
        f"{points} × {points} points, {scale.n_train} training and {scale.n_test} held-out trajectories,",
        f"{scale.epochs['A']} epochs with batches of {scale.batch['A']} in protocol A, {scale.epochs['B']} "
        f"with {scale.batch['B']} in B. Relative L2 over the whole rollout, mean ± standard deviation over",
        f"seeds. {len(results)} of {len(every)} trainings are done{note}; n is how many a row has.",
        "*To the FNO's error*",
        "is epochs until the rollout error is first as low as the FNO's of the same seed ever was, mean over",
        "the seeds whose curves are kept, and the seconds they take; a dash where one never gets there.",
        "Seconds are the steps of a training times that of one, measured in turn for all models after the",
        "trainings, which had other work beside them. Published are errors of protocol A on 64 × 64 points,",
        "of 1000 trajectories, 500 epochs and longer rollouts: another task, for orientation only.",
        "Reproduce: `make paper-pde`.",
        "",
        "**How to read it.** At the published learning rate so few epochs leave the FNO on a plateau; three",
        "times that rate for its spectral weights alone frees it: the table of rates compares the two when",
        "both are free. FNO-Monarch stands there after as many epochs as the FNO and, below, after as much",
        "time. What is left with longer trainings is told by [one table](navier_stokes_quality.md) and, for",
        "other problems, walls among them, by [another](transform_ablation.md). The convolutional networks",
        "take 1.2 to 2.6 times the FNO's time, see coordinates as the operators do, and were not tuned.",
        "Symmetries are those of the equation with its forcing: each trajectory is shown moved by a random",
        "one, to all models alike.",
    ]
    times = _step_times(results, name) if results else {}
    lines += ["", *_about_steps(times, name)]
    clock = partial(steps.seconds, name=name, times=times)
    for table, rows in ((table, rows) for table, rows in chosen.items() if rows):
        lines += ["", f"## {TITLES[table]}", ""]
        done = any(case in results for row in rows for case in row)
        lines += _table(rows, runs, clock, table == "protocol-A") if done else ["Not trained yet."]
    lines += ["", f"![Error against time](paper_pde_{name}.png)", ""]
    if further:
        lines += [*beyond.section(scale, further), "", f"![Long rollouts](paper_pde_{name}_beyond.png)", ""]
        save_figure(beyond.plot(further), RESULTS / f"paper_pde_{name}_beyond.png", dpi=110)
    about = {**environment(), "trainings at a time": workers, "date": datetime.date.today().isoformat()}
    lines += [", ".join(f"{key} {value}" for key, value in about.items()) + "."]
    (RESULTS / f"paper_pde_{name}.md").write_text("\n".join(lines) + "\n")
    rows = [
        {
            **asdict(case),
            **asdict(run.result),
            "beyond": run.beyond and asdict(run.beyond),
            "curve": run.curve,
        }
        for case, run in runs.items()
    ]
    found = {"environment": about, "step_ms": {str(case): ms for case, ms in times.items()}, "runs": rows}
    write_json(RESULTS / f"paper_pde_{name}.json", found)
    save_figure(plot(name, runs, clock), RESULTS / f"paper_pde_{name}.png", dpi=110)


def _step_times(cases: Iterable[Case], name: str) -> dict[Case, float]:
    """Of all models, and of FNO-Monarch's layers with fixed transforms."""
    fnos = {case for case in cases if case.model == "fno"}
    return steps.milliseconds([*cases, *map(steps.with_fixed_transforms, fnos)], name)


def _about_steps(times: dict[Case, float], name: str) -> Iterator[str]:
    """The FNO is neuraloperator's: how long it takes on our layers, where a step of it was measured."""
    for fno in (case for case in times if case.model == "fno" and case.modes == SCALES[name].modes):
        points = 64 // configuration(fno, name).every
        learned, fixed = replace(fno, model="fno-monarch"), steps.with_fixed_transforms(fno)
        if learned in times:
            yield (
                f"* Protocol {fno.protocol}, {points} × {points} points: a step of the FNO, which is "
                f"neuraloperator's, takes {times[fno]:.0f} ms, of FNO-Monarch {times[learned]:.0f}, "
                f"with the same layers and fixed transforms {times[fixed]:.0f}."
            )


def _table(rows: list[list[Case]], runs: dict[Case, Run], clock: Clock, published: bool) -> Iterator[str]:
    results = {case: run.result for case, run in runs.items()}
    yield from HEADER
    for row in rows:
        done = [case for case in row if case in results]
        if not done:
            continue
        first, mine = done[0], [results[case] for case in done]
        errors = [result.rollout for result in mine]
        spread = f" ± {stdev(errors):.4f}" if len(errors) > 1 else ""
        theirs = [fno_beside(case, rows) for case in done]
        fno = [results.get(case) for case in theirs]
        against, each, until = "", "", ""
        seconds = clock(first, mine[0].epochs)
        if first.model != "fno" and all(fno):
            others = [result.rollout for result in fno if result]
            against = _change(mean(errors), mean(others))
            each = ", ".join(_change(*pair) for pair in zip(errors, others, strict=True))
            curves = [(runs[ours].curve, runs[fno].curve) for ours, fno in zip(done, theirs, strict=True)]
            reached = [_epochs_to(*pair) for pair in curves if all(pair)]
            found = [epochs for epochs in reached if epochs]
            share = mean(found) / mine[0].epochs if found else 0
            if reached:
                until = f"{mean(found):.1f} ({share * seconds:.0f})" if all(reached) else "–"
        value = PUBLISHED[first.model, first.viscosity] if published else ""
        yield (
            f"| {first.viscosity} | {_name(first)} | {first.n_train} "
            f"| {first.modes if first.model in BOTH else ''} | {len(done)} | {mine[0].parameters:,} "
            f"| {mine[0].epochs} | {seconds:.0f} | {mean(r.one_step for r in mine):.4f} "
            f"| {mean(errors):.4f}{spread} | {against} | {each} | {until} | {value} |"
        )


def _name(case: Case) -> str:
    return NAMES[case.model] + (f", transforms × {case.transform_rate:g}" if case.transform_rate != 1 else "")


def _change(ours: float, theirs: float) -> str:
    return f"{100 * (ours / theirs - 1):+.0f} %"


def fno_beside(case: Case, rows: list[list[Case]]) -> Case:
    """The FNO of the same seed, viscosity, trajectories and modes in this table."""
    every = (other for row in rows for other in row if other.model == "fno")
    same = ("viscosity", "seed", "n_train", "modes")
    return next(o for o in every if all(getattr(o, key) == getattr(case, key) for key in same))


def _epochs_to(ours: Curve, fno: Curve) -> int | None:
    """Epochs until the rollout error is first at most the lowest of the FNO."""
    target = min(error for _, error in fno)
    return next((i for i, (_, error) in enumerate(ours, start=1) if error <= target), None)


def plot(name: str, runs: dict[Case, Run], clock: Clock) -> Figure:
    """Held-out rollout error against seconds of training, a panel for each viscosity and protocol.

    FNO-Monarch is trained for as long as the FNO.
    """
    scale = SCALES[name]
    protocols = sorted({case.protocol for case in runs})
    figure = new_figure(12, 0.5 + 3.5 * len(protocols))
    panels = figure.subplots(max(1, len(protocols)), len(SOLVERS), squeeze=False)
    for (i, protocol), (j, viscosity) in itertools.product(enumerate(protocols), enumerate(SOLVERS)):
        axes = panels[i, j]
        longer = {"fno": 1, "fno-monarch": scale.in_its_time.get(protocol, 1)}
        times = 2 if protocol == "B" else 1
        for colour, model in zip(COLOURS, get_args(Kind), strict=False):
            base = {"longer": longer.get(model, 1)}
            gentle = model == "fno-monarch" and protocol == "B"
            rates = {"spectral_rate": RATE, "transform_rate": GENTLE if gentle else 1}
            higher = {**rates, "longer": times * base["longer"]}
            for changes, style, note in ((base, "-", ""), (higher, "--", ", higher rate")):
                label: str | None = NAMES[model] + note
                for seed in SEEDS:
                    case = Case(model, viscosity, protocol, seed, scale.n_train, scale.modes, **changes)
                    if case in runs and (found := runs[case].curve):
                        seconds = [clock(case, epoch) for epoch in range(1, len(found) + 1)]
                        errors = [error for _, error in found]
                        axes.loglog(seconds, errors, style, color=colour, label=label, alpha=0.8)
                        label = None
        axes.set_title(f"protocol {protocol}, ν = {viscosity}", fontsize=9)
        plain(axes)
        axes.xaxis.set_minor_formatter(NullFormatter())
        if axes.lines:
            axes.legend(frameon=False, fontsize=7)
    figure.supxlabel("seconds of training", fontsize=10)
    figure.supylabel("rollout error on held-out trajectories", fontsize=10)
    return figure
