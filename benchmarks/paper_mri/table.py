"""The MRI tables of the paper on Monarch matrices: simulated volumes, and scans of one's own.

    python benchmarks/paper_mri/table.py [--workers 2] [--hours H] [--kspace FILE …]

92 simulated volumes of four 128 × 128 slices, 4 to 16 coils; 80 to train on, 12 held out. Variable-density
Poisson discs at 2×, 4×, 6× and 8×. Networks are trained on 2×, 4× and 8× together, the unrolled ones with
three seeds, and without 2×; mSENSE, which is linear, for one acceleration at a time and on 5
volumes, with one step as in the paper and with eight, our default. Both and the U-Net are also trained on 1,
2, 3 and 5 volumes. For robustness one thing at a time is changed at 4×: columns for discs, the number of
coils, the noise. ``--kspace`` files (fully sampled, any format) are reconstructed by what was trained on
simulations. One thread per training; with two workers about an hour, said in the report as it was measured.

Resumable: data, trainings and answers are reused where they are complete. ``--hours`` begins no training
after that time. Every start writes ``benchmarks/results/paper_mri*.{md,json,png}`` with what there is.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import answers as mri
from answers import Question, Setting
from report import Results, report

from monarch_sciml.mri.simulation import SimulateConfig, simulate

SIMULATED = SimulateConfig(volumes=92)
# objects are the same in all sets for robustness; what is measured of them is not
ROBUST = SimulateConfig(volumes=6, coils=(8,), noise=(0.008, 0.008), seed=1)
COILS = (2, 4, 32)
NOISE = (0.001, 0.06)  # a third of the least and three times the most in training
ROBUST_RATE = 4.0
IN_DOMAIN = (
    *("zero-filled", "density-compensated", "mSENSE, one step", "SENSE, untrained", "mSENSE"),
    *("CG-SENSE", "L1-wavelet", "U-Net"),
    *("MoDL", "MoDL, Monarch", "VarNet", "VarNet, Monarch"),
)
IN_ROBUSTNESS = tuple(name for name in IN_DOMAIN if "MoDL" not in name)
IN_SCANS = (*IN_DOMAIN, "total variation")  # the slowest, on single slices only


def held_out() -> list[Setting]:
    """Volumes like those in training, at every acceleration."""
    files = simulate(mri.DATA, SIMULATED)[-mri.HELD_OUT :]
    return [mri.discs(rate, "held out", files) for rate in mri.RATES]


def robustness() -> list[Setting]:
    """What no training saw; the first setting is what the others differ from."""
    sets = {"8 coils": ROBUST}
    sets |= {f"{n} coils": replace(ROBUST, coils=(n,)) for n in COILS}
    sets |= {f"noise {sigma:g}": replace(ROBUST, noise=(sigma, sigma)) for sigma in NOISE}
    made = []
    for what, config in sets.items():
        folder = mri.DATA.with_name(f"{mri.DATA.name}_{what.replace(' ', '_')}")
        made.append(mri.discs(ROBUST_RATE, what, simulate(folder, config)))
    first = made[0]
    return [first, mri.columns("random", first), mri.columns("equispaced-fraction", first), *made[1:]]


def scans(files: Sequence[Path]) -> dict[str, list[Setting]]:
    """Each of these files at every acceleration."""
    return {path.stem: [mri.discs(rate, path.stem, [path]) for rate in mri.RATES] for path in files}


def asked(results: Results) -> list[list[Question]]:
    """All questions, those about one setting together; trainings of one table only are asked in theirs."""
    inside = mri.questions(results.held_out, IN_DOMAIN)
    for setting, group in zip(results.held_out, inside, strict=True):
        group += [Question(case, setting) for cases in mri.NARROW.values() for case in cases]
        if setting.rate in mri.FEW_RATES:
            kinds = (mri.linear, mri.one_step, mri.small_unet)
            cases = [few(setting.rate, n) for n in mri.FEW for few in kinds]
            group += [q for case in cases if (q := Question(case, setting)) not in group]
    outside = mri.questions(results.robust, IN_ROBUSTNESS)
    for settings in results.scans.values():
        outside += mri.questions(settings, IN_SCANS)
    return inside + outside


def main() -> None:
    """Simulate, train, reconstruct, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no training after so long")
    parser.add_argument("--kspace", type=Path, nargs="*", default=[], help="fully sampled files")
    options = parser.parse_args()
    stop = time.time() + 3600 * options.hours
    results = Results(held_out(), robustness(), scans(options.kspace), options.workers)
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(mri.run, mri.TRAININGS, itertools.repeat(stop)))
        for found in pool.map(mri.answers, asked(results)):
            results.found.update(found)
    report(results)


if __name__ == "__main__":
    main()
