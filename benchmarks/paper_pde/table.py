"""The Navier–Stokes table of the paper on Monarch matrices, at two scales, with seeds, spread and time.

    python benchmarks/paper_pde/table.py [--scale small|full] [--tables NAME …] [--workers 2] [--hours H]
        [--missing]

FNO, FNO-Monarch, U-Net, TF-Net and ResNet at ν = 1e-3, 1e-4 and 1e-5 in the protocols A (ten frames in,
trained through the whole rollout) and B (one frame in, one step ahead), with the optimisers and learning
rates published with the FNO; FNO against FNO-Monarch with a higher rate of the spectral weights, so for twice
as long, which is TF-Net's time, with other numbers of trajectories and of modes, and with trajectories moved
by the equation's symmetries; and what the two do beyond their training, on other grids and far longer. That
higher rate is the one number chosen after looking at held-out trajectories, those at ν = 1e-3 in
``benchmarks/transforms``. ``small`` is for two cores, ``full`` is the original protocol, for a GPU.

Resumable: data and trainings are reused where they are complete. ``--hours`` begins no training after that
time. Every start writes ``benchmarks/results/paper_pde_<scale>.{md,json,png}``: what it trained or found
trained, and what the last report has besides, counted in it; without the .json of that one there is none.
``--missing`` trains only what the last report lacks.
"""

import argparse
import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from beyond import go_beyond, is_meant
from cases import SCALES, SEEDS, SOLVERS, Case, configuration, data, tables
from report import Run, curve, kept, report

from monarch_sciml.pde import train
from monarch_sciml.pde.evaluation import Evaluation, evaluate_run


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
    parser.add_argument("--missing", action="store_true", help="train only what the last report lacks")
    options = parser.parse_args()
    scale, stop = SCALES[options.scale], time.time() + 3600 * options.hours
    chosen = tables(scale)
    wanted = [rows for name, rows in chosen.items() if name in (options.tables or chosen)]
    before = kept(options.scale)
    # seed by seed, so that a part of it is a whole table; neighbours run at the same time
    every = (case for seed in SEEDS for rows in wanted for row in rows for case in row[seed:][:1])
    cases = [c for c in dict.fromkeys(every) if not (options.missing and c in before)]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(data, SOLVERS, itertools.repeat(scale)))
        found = pool.map(run, [(case, options.scale, stop) for case in cases])
        results = {case: result for case, result in zip(cases, found, strict=True) if result is not None}
        far = [case for case in results if is_meant(case, scale)]
        further = dict(zip(far, pool.map(go_beyond, far, itertools.repeat(options.scale)), strict=True))
    here = {
        case: Run(result, further.get(case), curve(options.scale, case)) for case, result in results.items()
    }
    report(options.scale, chosen, {**before, **here}, options.workers, trained_here=len(here))


if __name__ == "__main__":
    main()
