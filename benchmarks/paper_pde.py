"""The Navier–Stokes table of the paper on Monarch matrices, at two scales, with seeds, spread and time.

    python benchmarks/paper_pde.py [--scale small|full] [--tables NAME …] [--workers 2] [--hours H]

FNO, FNO-Monarch, U-Net, TF-Net and ResNet at ν = 1e-3, 1e-4 and 1e-5 in the protocols A (ten frames in,
trained through the whole rollout) and B (one frame in, one step ahead), with their published optimisers;
then FNO against FNO-Monarch with other numbers of trajectories and of modes. Nothing is tuned on the
held-out trajectories. ``small`` is for two cores, ``full`` is the original protocol, for a GPU.

Resumable: data and trainings are reused where they are complete. ``--hours`` begins no training after that
time. Every start writes ``benchmarks/results/paper_pde_<scale>.{md,json,png}`` with what there is.
"""

import argparse
import csv
import datetime
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import get_args

from matplotlib.figure import Figure

from monarch_sciml.pde import GenerateConfig, TrainConfig, generate, train
from monarch_sciml.pde.evaluation import Evaluation, evaluate_run
from monarch_sciml.pde.models import NAMES, Kind
from monarch_sciml.training import write_json
from monarch_sciml.training.plots import COLOURS
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = (0, 1, 2)
BOTH: tuple[Kind, ...] = ("fno", "fno-monarch")
# the solver's grid where 64 points do not resolve the flow, and how many trajectories fit its cache
SOLVERS = {
    "1e-3": {},
    "1e-4": {"solver_resolution": 128, "batch": 8},
    "1e-5": {"solver_resolution": 256, "batch": 4},
}
END = {"1e-3": 50.0, "1e-4": 30.0, "1e-5": 20.0}
# relative L2, protocol A, 64 × 64, N = 1000 at 1e-3 and 1e-4, as Dao et al. (2022) print them
PUBLISHED = {
    ("fno", "1e-3"): 0.017,
    ("fno", "1e-4"): 0.178,
    ("fno", "1e-5"): 0.155,
    ("fno-monarch", "1e-3"): 0.010,
    ("fno-monarch", "1e-4"): 0.145,
    ("fno-monarch", "1e-5"): 0.136,
    ("unet", "1e-3"): 0.025,
    ("unet", "1e-4"): 0.205,
    ("unet", "1e-5"): 0.198,
    ("tf-net", "1e-3"): 0.023,
    ("tf-net", "1e-4"): 0.225,
    ("tf-net", "1e-5"): 0.227,
    ("resnet", "1e-3"): 0.070,
    ("resnet", "1e-4"): 0.287,
    ("resnet", "1e-5"): 0.275,
}


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    samples: dict[str, int]
    """Trajectories generated for each viscosity; the last ``n_test`` are held out."""
    n_train: int
    n_test: int
    every: int
    frames: dict[str, int]
    """After the initial condition."""
    modes: int
    width: dict[str, int]
    epochs: dict[str, int]
    """For each protocol."""
    n_trains: tuple[int, ...]
    many_modes: tuple[int, ...]
    settings: dict[str, object] = field(default_factory=dict)


SCALES = {
    "small": Scale(
        samples={"1e-3": 540, "1e-4": 240, "1e-5": 240},
        n_train=100,
        n_test=40,
        every=2,
        frames={"1e-3": 20, "1e-4": 20, "1e-5": 20},
        modes=16,
        width={"fno": 16, "fno-monarch": 16, "unet": 8, "tf-net": 8, "resnet": 24},
        epochs={"A": 30, "B": 20},
        n_trains=(50, 200, 500),
        many_modes=(8, 24),
        settings={"threads": 1, "device": "cpu"},
    ),
    "full": Scale(
        samples={"1e-3": 1200, "1e-4": 1200, "1e-5": 1200},
        n_train=1000,
        n_test=200,
        every=1,
        frames={"1e-3": 50, "1e-4": 30, "1e-5": 20},
        modes=24,
        width={"fno": 20, "fno-monarch": 20, "unet": 54, "tf-net": 41, "resnet": 42},
        epochs={"A": 500, "B": 500},
        n_trains=(50, 100, 200, 500),
        many_modes=(16, 32),
        settings={"device": "auto"},
    ),
}


@dataclass(frozen=True)
class Case:
    """One training."""

    model: Kind
    viscosity: str
    protocol: str
    seed: int
    n_train: int
    modes: int

    def __str__(self) -> str:
        return f"{self.model}-{self.viscosity}-{self.protocol}-n{self.n_train}-m{self.modes}-s{self.seed}"


Tables = dict[str, list[list[Case]]]  # rows of every table, a case for each seed


def tables(scale: Scale) -> Tables:
    """Every table with its rows; a training may be in several."""

    def row(model: Kind, viscosity: str, protocol: str, **changes: int) -> list[Case]:
        base = {"n_train": scale.n_train, "modes": scale.modes, **changes}
        return [Case(model, viscosity, protocol, seed, **base) for seed in SEEDS]

    every = list(itertools.product(SOLVERS, get_args(Kind)))
    return {
        "protocol-B": [row(model, viscosity, "B") for viscosity, model in every],
        "data": [row(model, "1e-3", "B", n_train=n) for n in scale.n_trains for model in BOTH],
        "modes": [row(model, "1e-3", "B", modes=m) for m in scale.many_modes for model in BOTH],
        "protocol-A": [row(model, viscosity, "A") for viscosity, model in every],
    }


def data(viscosity: str, scale: Scale) -> Path:
    """The trajectories, generated if need be."""
    samples = scale.samples[viscosity]
    config = GenerateConfig(
        samples=samples, viscosity=float(viscosity), end_time=END[viscosity], **SOLVERS[viscosity]
    )
    return generate(ROOT / "data" / f"paper_ns_V{viscosity}_N{samples}.h5", config, progress=False)


def configuration(case: Case, name: str) -> TrainConfig:
    """The published optimiser of the protocol; B adds noise to the input."""
    scale = SCALES[name]
    path = ROOT / "data" / f"paper_ns_V{case.viscosity}_N{scale.samples[case.viscosity]}.h5"
    rates = {"A": {"learning_rate": 1e-3}, "B": {"learning_rate": 2.5e-3, "noise": 0.01}}
    return TrainConfig(
        data=path,
        out=ROOT / "runs" / f"paper_pde_{name}" / f"{case}",
        model=case.model,
        protocol=case.protocol,  # type: ignore[arg-type]
        modes=case.modes,
        width=scale.width[case.model],
        n_train=case.n_train,
        n_test=scale.n_test,
        first_frame=1,
        frames=scale.frames[case.viscosity],
        every=scale.every,
        epochs=scale.epochs[case.protocol],
        seed=case.seed,
        resume=True,
        quiet=True,
        **rates[case.protocol],
        **scale.settings,  # type: ignore[arg-type]
    )


def run(task: tuple[Case, str, float]) -> Evaluation | None:
    """Train, or find it trained, and evaluate; nothing that would begin after the time is up."""
    case, name, stop = task
    config = configuration(case, name)
    if time.time() > stop and not (config.out / "model" / "config.json").exists():
        return None
    result, _ = evaluate_run(train(config), progress=False)
    print(f"{case}: {result.train_seconds:.0f} s, rollout {result.rollout:.4f}", flush=True)
    return result


def main() -> None:
    """Generate, train, evaluate, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--tables", nargs="+", choices=tables(SCALES["small"]), help="only these")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no training after so long")
    options = parser.parse_args()
    scale, stop = SCALES[options.scale], time.time() + 3600 * options.hours
    chosen = tables(scale)
    wanted = [rows for name, rows in chosen.items() if name in (options.tables or chosen)]
    # seed by seed, so that a part of it is a whole table; neighbours run at the same time
    cases = list(
        dict.fromkeys(case for seed in SEEDS for rows in wanted for row in rows for case in row[seed:][:1])
    )
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(data, SOLVERS, itertools.repeat(scale)))
        found = pool.map(run, [(case, options.scale, stop) for case in cases])
        results = {case: result for case, result in zip(cases, found, strict=True) if result is not None}
    report(options.scale, {name: chosen[name] for name in options.tables or chosen}, results, options.workers)


def report(name: str, chosen: Tables, results: dict[Case, Evaluation], workers: int) -> None:
    """Write ``paper_pde_<scale>.{md,json,png}``."""
    scale = SCALES[name]
    total = len({case for rows in chosen.values() for row in rows for case in row})
    points = 64 // scale.every
    lines = [
        f"# The paper's Navier–Stokes table, {name} scale",
        "",
        f"{points} × {points} points, {scale.n_train} training and {scale.n_test} held-out trajectories, "
        f"{scale.epochs['A']} epochs in protocol A, {scale.epochs['B']} in B. Relative L2 over the whole",
        f"rollout, mean ± standard deviation over seeds. {len(results)} of {total} trainings are done; n is "
        "how many a row has. Seconds depend on what else the machine did, errors do not. "
        "Reproduce: `make paper-pde`.",
        "",
        "So few epochs at the published learning rates leave the FNO far from converged; what is left of the",
        "difference with longer and with tuned trainings is [another table](navier_stokes_quality.md).",
    ]
    titles = {
        "protocol-A": "Protocol A: ten frames in, trained through the whole rollout",
        "protocol-B": "Protocol B: one frame in, one step ahead, noise",
        "data": "Data efficiency: protocol B at ν = 1e-3, other numbers of training trajectories",
        "modes": "Modes: protocol B at ν = 1e-3",
    }
    for table, rows in chosen.items():
        if not any(case in results for row in rows for case in row):
            lines += ["", f"## {titles[table]}", "", "Not trained yet."]
            continue
        lines += ["", f"## {titles[table]}", "", *_table(rows, results, table == "protocol-A")]
    about = {**environment(), "threads of a training": 1, "trainings at a time": workers}
    about["date"] = datetime.date.today().isoformat()
    lines += ["", f"![Error against time](paper_pde_{name}.png)", ""]
    lines += [", ".join(f"{key} {value}" for key, value in about.items()) + "."]
    (RESULTS / f"paper_pde_{name}.md").write_text("\n".join(lines) + "\n")
    rows = [{**asdict(case), **asdict(result)} for case, result in results.items()]
    write_json(RESULTS / f"paper_pde_{name}.json", {"environment": about, "runs": rows})
    plot(name, results).savefig(RESULTS / f"paper_pde_{name}.png", dpi=110)


def _table(rows: list[list[Case]], results: dict[Case, Evaluation], published: bool) -> Iterator[str]:
    yield (
        "| ν | model | trajectories | modes | n | parameters | training, s | one-step | rollout "
        "| against the FNO | published |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        done = [case for case in row if case in results]
        if not done:
            continue
        first, mine = done[0], [results[case] for case in done]
        errors = [result.rollout for result in mine]
        spread = f" ± {stdev(errors):.4f}" if len(errors) > 1 else ""
        # of the same seeds
        fno = [results.get(replace(case, model="fno")) for case in done]
        against = ""
        if first.model != "fno" and all(fno):
            against = f"{100 * (mean(errors) / mean(result.rollout for result in fno if result) - 1):+.0f} %"
        value = PUBLISHED.get((first.model, first.viscosity)) if published else None
        yield (
            f"| {first.viscosity} | {NAMES[first.model]} | {first.n_train} "
            f"| {first.modes if first.model in BOTH else ''} | {len(done)} | {mine[0].parameters:,} "
            f"| {median(result.train_seconds for result in mine):.0f} | {mean(r.one_step for r in mine):.4f} "
            f"| {mean(errors):.4f}{spread} | {against} | {'' if value is None else f'{value:g}'} |"
        )


def plot(name: str, results: dict[Case, Evaluation]) -> Figure:
    """Held-out rollout error against seconds of training, a panel for each viscosity and protocol."""
    scale = SCALES[name]
    protocols = sorted({case.protocol for case in results})
    figure = Figure(figsize=(12, 0.5 + 3.5 * len(protocols)), layout="constrained")
    panels = figure.subplots(max(1, len(protocols)), len(SOLVERS), squeeze=False)
    for (i, protocol), (j, viscosity) in itertools.product(enumerate(protocols), enumerate(SOLVERS)):
        axes = panels[i, j]
        for colour, model in zip(COLOURS, get_args(Kind), strict=False):
            shown = False
            for seed in SEEDS:
                case = Case(model, viscosity, protocol, seed, scale.n_train, scale.modes)
                if case not in results:
                    continue
                with (configuration(case, name).out / "metrics.csv").open() as file:
                    rows = list(csv.DictReader(file))
                x, y = [float(r["seconds"]) for r in rows], [float(r["rollout"]) for r in rows]
                axes.loglog(x, y, color=colour, label=None if shown else NAMES[model], alpha=0.8)
                shown = True
        axes.set_title(f"protocol {protocol}, ν = {viscosity}", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=7)
    figure.supxlabel("seconds of training")
    figure.supylabel("rollout error on held-out trajectories (relative L2)")
    return figure


if __name__ == "__main__":
    main()
