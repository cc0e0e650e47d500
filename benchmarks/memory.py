"""Whether a training needs more memory the longer it runs.

    python benchmarks/memory.py [--steps 2000] [--work FOLDER]

``pde train`` and ``mri train`` at tiny sizes, where what leaks shows most beside what is used, with a
checkpoint every three seconds and held-out metrics after every epoch. The resident memory of the process
is read whenever a row of ``metrics.csv`` appears. A few minutes on one core; writes
``benchmarks/results/memory.md`` and ``.json``. Linux only.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from monarch_sciml.training import write_json
from monarch_sciml.training.run import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "memory"
INPUTS = (
    "pde generate --out flow.h5 --samples 8 --resolution 32 --viscosity 1e-3 --end-time 10 --quiet",
    "mri simulate --out scans --volumes 8 --slices 2 --shape 64 64 --coils 4 --quiet",
)
COMMON = "--epochs {epochs} --n-test 2 --device cpu --threads 1 --checkpoint-minutes 0.05 --quiet"
# the command and its steps per epoch
TRAININGS = {
    "pde train": (
        f"--data flow.h5 --out pde --modes 8 --width 8 --layers 2 --n-train 6 --batch 4 --noise 0.1 {COMMON}",
        15,
    ),
    "mri train": (
        "--data scans --out mri --cascades 2 --channels 4 --pools 1 --maps low-resolution --mask random "
        f"--accelerations 2 --center-fractions 0.3 {COMMON}",
        12,
    ),
}
PROGRAM = [sys.executable, "-m", "monarch_sciml"]


def resident(process: int) -> float:
    """MiB of memory that a process uses."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(command: str, settings: str, steps_per_epoch: int, steps: int, folder: Path) -> dict[int, float]:
    """MiB by the number of steps done."""
    epochs = -(-steps // steps_per_epoch) + 1
    words = [*command.split(), *settings.format(epochs=epochs).split()]
    table = folder / words[words.index("--out") + 1] / "metrics.csv"
    used: dict[int, float] = {}
    with subprocess.Popen([*PROGRAM, *words], cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            rows = len(table.read_text().splitlines()) - 1 if table.exists() else 0
            if rows > 0 and rows * steps_per_epoch not in used:
                used[rows * steps_per_epoch] = resident(process.pid)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    last = len(table.read_text().splitlines()) - 1
    assert last == epochs, (last, epochs)
    return used


def main() -> None:
    """Train, watch, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    folder = (options.work or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for words in INPUTS:
        subprocess.run([*PROGRAM, *words.split()], cwd=folder, check=True)
    used = {name: watch(name, *training, options.steps, folder) for name, training in TRAININGS.items()}

    marks = [options.steps * k // 10 for k in (1, 2, 4, 6, 8, 10)]
    lines = [
        "# Memory of a long training",
        "",
        "Resident memory in MiB after so many steps, with a checkpoint every three seconds and held-out",
        "metrics after every epoch. By `python benchmarks/memory.py`.",
        "",
        f"| command | {' | '.join(f'{mark:,} steps' for mark in marks)} | growth per 1,000 steps |",
        f"|---|{'---:|' * (len(marks) + 1)}",
    ]
    for name, found in used.items():
        near = {mark: found[min(found, key=lambda step, mark=mark: abs(step - mark))] for mark in marks}
        growth = (near[marks[-1]] - near[marks[0]]) / (marks[-1] - marks[0]) * 1000
        cells = " | ".join(f"{value:.1f}" for value in near.values())
        lines.append(f"| {name} | {cells} | {growth:.2f} |")
    about = {**environment(), "threads": 1, "date": f"{datetime.date.today()}"}
    lines += ["", ", ".join(f"{name} {value}" for name, value in about.items()) + "."]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    write_json(RESULTS.with_suffix(".json"), {"environment": about, "resident MiB": used})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
