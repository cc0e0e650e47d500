"""Commands that are killed again and again, and what is left of their results.

    python benchmarks/faults.py [--kills 7] [--seed 0] [--work FOLDER] [command …]

``pde generate``, ``pde train``, ``mri simulate``, ``mri train`` and ``mri reconstruct`` run at tiny sizes:
each once to its end, then killed with SIGKILL at moments drawn uniformly over the time that this took,
start-up included, and started again, the trainings with ``--resume``, until it was killed that often; a
command that ends before its kill begins anew in another folder. After every kill each file under a final
name has to be complete, and every result at the end the same as without kills: data, weights and images to
the last bit. Takes about ten minutes on one core; writes ``benchmarks/results/faults.md`` and ``.json``; exit
status 1 if anything fails.
"""

import argparse
import csv
import datetime
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from monarch_sciml.training import write_json
from monarch_sciml.training.run import environment

__all__ = ["COMMANDS", "Campaign", "Tally", "check_whole", "content"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "faults"
COLUMNS = "--mask random --accelerations 2 --center-fractions 0.3"
# {out} is the result, {inputs} what was made before; the sizes leave room for a kill in every phase
COMMANDS = {
    "pde generate": "--out {out}/flow.h5 --samples 24 --resolution 32 --viscosity 1e-3 --end-time 4 "
    "--batch 2 --quiet",
    "mri simulate": "--out {out} --volumes 16 --slices 2 --shape 64 64 --coils 4 8 --quiet",
    "mri reconstruct": "--files {inputs}/scans/*.h5 --out {out} --method cg-sense --png --nifti --quiet "
    + COLUMNS,
    "pde train": "--data {inputs}/flow.h5 --out {out} --modes 4 --width 8 --layers 2 --n-train 6 --n-test 2 "
    "--epochs 8 --batch 4 --noise 0.1 --device cpu --threads 1 --quiet",
    "mri train": "--data {inputs}/scans --out {out} --cascades 2 --channels 4 --pools 1 --epochs 5 "
    "--n-test 2 --maps low-resolution --device cpu --threads 1 --quiet " + COLUMNS,
}
INPUTS = {
    "pde generate": "--out {inputs}/flow.h5 --samples 8 --resolution 32 --viscosity 1e-3 --end-time 10 "
    "--quiet",
    "mri simulate": "--out {inputs}/scans --volumes 8 --slices 2 --shape 64 64 --coils 4 --quiet",
}
TRAININGS = ("pde train", "mri train")
OPENS: dict[str, Callable[[Path], object]] = {}


def opens(*suffixes: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register how files with these endings are read to their last byte."""

    def register(read: Callable[[Path], object]) -> Callable[[Path], object]:
        OPENS.update(dict.fromkeys(suffixes, read))
        return read

    return register


@opens(".h5")
def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Every data set, and that the file is as long as HDF5 believes."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
        finished = file.attrs.get("finished")
        assert finished is None or finished == len(found["w"]), f"{finished} samples finished in {path}"
    return found


@opens(".json")
def read_json(path: Path) -> object:
    """JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


@opens(".safetensors")
def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name."""
    return load_file(path)


@opens(".ckpt")
def read_checkpoint(path: Path) -> object:
    """Without executing anything."""
    return torch.load(path, weights_only=True)


@opens(".csv")
def read_table(path: Path) -> list[dict[str, str]]:
    """Rows, each as long as the head and the last one ended."""
    text = path.read_text()
    assert text.endswith("\n"), f"{path} ends in the middle of a line"
    head, *rows = list(csv.reader(text.splitlines()))
    assert all(len(row) == len(head) for row in rows), f"short rows in {path}"
    return [dict(zip(head, row, strict=True)) for row in rows]


@opens(".png", ".gif")
def read_picture(path: Path) -> bytes:
    """Pixels, of an animation the first."""
    with Image.open(path) as image:
        return image.tobytes()


@opens(".gz")
def read_nifti(path: Path) -> bytes:
    """A NIfTI header and as many numbers as it declares."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data[40:56], "<i2")
    count = int(np.prod(shape[1 : 1 + shape[0]].astype(int)))
    assert len(data) == 352 + 4 * count, f"{path} is not {352 + 4 * count} bytes long"
    return data


@opens(".md")
def read_text(path: Path) -> str:
    """A table or a card, of whole lines."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n"), f"{path} ends in the middle of a line"
    return text


def final_files(folder: Path) -> list[Path]:
    """Without what is said to be partial, and TensorBoard's logs, which grow line by line by design."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    parts = ((path, path.relative_to(folder).parts) for path in files)
    return [p for p, names in parts if not any(".partial" in n or n == "tensorboard" for n in names)]


def check_whole(folder: Path) -> int:
    """Open every file under a final name; how many there are. Raises whatever opening a damaged one does."""
    files = final_files(folder)
    for path in files:
        OPENS[path.suffix](path)
    return len(files)


def content(folder: Path) -> dict[str, object]:
    """Of a finished result, what has to be the same after kills: all but timings and places."""
    found: dict[str, object] = {}
    for path in final_files(folder):
        name = str(path.relative_to(folder))
        value = OPENS[path.suffix](path)
        if path.suffix == ".csv":
            value = [{k: v for k, v in row.items() if k != "seconds"} for row in value]  # type: ignore[union-attr]
        elif path.suffix in (".h5", ".safetensors"):
            # bytes say more than ==, for which NaN differs from itself
            arrays = {k: np.asarray(a) for k, a in value.items()}  # type: ignore[union-attr]
            value = {k: (a.shape, str(a.dtype), a.tobytes()) for k, a in arrays.items()}
        elif path.name == "report.json":
            value = [{k: v for k, v in report.items() if k != "seconds"} for report in value]  # type: ignore
        elif path.suffix in (".ckpt", ".md") or path.name in ("config.json", "evaluation.json"):
            value = None  # these hold seconds and places; that they are there has to be the same
        elif path.name == "metrics.json" and isinstance(value, dict):
            value = {k: v for k, v in value.items() if k != "config"}
        found[name] = value
    return found


@dataclass
class Tally:
    """What happened to one command."""

    command: str
    seconds: float = 0.0
    """Of the uninterrupted run."""
    kills: int = 0
    runs: int = 0
    """Results that were completed in spite of kills."""
    checked: int = 0
    """Files opened after kills."""
    failures: list[str] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """No failure, and something to show for it."""
        return not self.failures and self.runs > 0


class Campaign:
    """Runs commands in a folder of their own and kills them, at moments that depend on the seed."""

    def __init__(self, work: Path, seed: int = 0):
        self.work, self.random = work, random.Random(seed)
        self.inputs = work / "inputs"

    def prepare(self) -> None:
        """The data that some commands need."""
        for command, options in INPUTS.items():
            assert self.start(command, options, self.inputs).wait() == 0, f"{command} for the inputs"

    def start(self, command: str, options: str, out: Path, resume: bool = False) -> subprocess.Popen[bytes]:
        """The command as a process; its output goes to ``<out>.log``."""
        words: list[str] = []
        for word in options.format(out=out, inputs=self.inputs).split():
            folder, name = os.path.split(word)
            words += sorted(map(str, Path(folder).glob(name))) if "*" in word else [word]
        words += ["--resume"] if resume else []
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_name(out.name + ".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "monarch_sciml", *command.split(), *words],
                stdout=log,
                stderr=log,
                env=variables,
                cwd=self.work,
            )

    def run(self, command: str, kills: int, options: str | None = None) -> Tally:
        """Once to its end, then with so many kills, started again until it ends; the last one does."""
        tally, name = Tally(command), command.replace(" ", "-")
        options, resume = options or COMMANDS[command], command in TRAININGS
        whole = self.work / f"{name}-whole"
        begin = time.perf_counter()
        if self.start(command, options, whole).wait():
            tally.failures.append(f"the uninterrupted run failed, see {whole}.log")
            return tally
        tally.seconds = time.perf_counter() - begin
        expected = content(whole)
        while tally.kills < kills and not tally.failures:
            out = self.work / f"{name}-{tally.runs}"
            while (status := self.once(tally, command, options, out, resume, kills)) is None:
                pass
            if tally.failures:  # what is damaged is not compared
                break
            tally.runs += 1
            if status:
                tally.failures.append(f"exit status {status}, see {out}.log")
            elif (found := content(out)) != expected:
                names = {n for n in expected.keys() | found.keys() if expected.get(n, 0) != found.get(n, 0)}
                tally.failures.append(f"{', '.join(sorted(names))} differ in {out}")
            elif left := [p.name for p in out.rglob("*.partial*")]:
                tally.failures.append(f"left over in {out}: {', '.join(left)}")
        return tally

    def once(
        self, tally: Tally, command: str, options: str, out: Path, resume: bool, kills: int
    ) -> int | None:
        """One start; None if it was killed, else its exit status."""
        process = self.start(command, options, out, resume=resume)
        moment = self.random.uniform(0, tally.seconds) if tally.kills < kills else None
        try:
            return process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            return process.returncode
        tally.kills += 1
        try:
            tally.checked += check_whole(out)
        except Exception as error:  # damage shows in many ways
            tally.failures.append(f"after kill {tally.kills}: {type(error).__name__}: {error}")
            return 0
        return None


def report(tallies: Sequence[Tally], seed: int) -> None:
    """Write ``faults.md`` and ``faults.json``."""
    stamp = {**environment(), "seed": seed, "date": datetime.date.today().isoformat()}
    lines = [
        "# Killed and started again",
        "",
        "Every command runs once to its end, then again, killed with SIGKILL at moments uniform over that",
        "time, start-up included, and started again (trainings with `--resume`) until the result is",
        "complete. After each kill every file under a final name is opened and read; complete results are",
        "compared with the uninterrupted one: data, weights, images and metrics to the last bit, not",
        "timings. By `python benchmarks/faults.py`.",
        "",
        "| command | seconds uninterrupted | kills | results completed | files read after kills | equal |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for t in tallies:
        answer = "yes" if t.fine else "; ".join(t.failures) or "not completed"
        lines.append(f"| {t.command} | {t.seconds:.1f} | {t.kills} | {t.runs} | {t.checked} | {answer} |")
    total = sum(t.kills for t in tallies)
    lines += ["", f"{total} kills. " + ", ".join(f"{name} {value}" for name, value in stamp.items()) + "."]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    rows = [{**vars(t), "seconds": round(t.seconds, 2), "equal": t.fine} for t in tallies]
    write_json(RESULTS.with_suffix(".json"), {"environment": stamp, "results": rows})


def main() -> int:
    """Run the campaign and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", help="such as 'pde train'; all by default")
    parser.add_argument("--kills", type=int, default=7, help="of each command (default: 7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "faults", help="a new folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    campaign = Campaign(options.work / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S"), options.seed)
    campaign.prepare()
    tallies = []
    for command in options.commands or COMMANDS:
        tallies.append(tally := campaign.run(command, options.kills))
        print(tally, flush=True)
    if not options.commands:
        report(tallies, options.seed)
    return 0 if all(tally.fine for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
