"""Reconstruction methods on simulated volumes never seen in training, and on other k-space, such as scans.

    python benchmarks/mri_quality.py [--workers 2] [--kspace FILE …]

92 simulated volumes of four 128 × 128 slices, 4 to 16 coils; 80 to train on, 12 held out. Variable-density
Poisson discs, as in Dao et al. (ICML 2022). Unrolled networks are trained on 4× and 8× together, three seeds
each; mSENSE, a linear method, for one acceleration at a time and on 5 volumes, as more bring nothing. It and
the U-Net are also trained on 1, 2, 3 and 5 volumes for 2× and 4×, and then tested on twelve other volumes as
well. ``--kspace`` files (fully sampled, any format) are reconstructed by what was trained on simulations. One
thread per training. Resumable: data and trainings are reused where they are complete. Writes
``benchmarks/results/mri_quality.*``.
"""

import argparse
import datetime
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.mri.classical import METHODS, density_compensated, sampling_density
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import MaskConfig, draw_mask, volume_seed
from monarch_sciml.mri.metrics import scores, summarise
from monarch_sciml.mri.models import SliceReconstructor, count_parameters, learned_transforms
from monarch_sciml.mri.plots import save_comparison, save_transform
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.reconstruction import reconstruct_slice
from monarch_sciml.mri.simulation import SimulateConfig, simulate
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.run import environment

Reconstruct = Callable[[Tensor, Tensor, Tensor], Tensor]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT / "data" / "mri_quality"
RUNS = ROOT / "runs" / "mri_quality"
HELD_OUT = 12
VALIDATION = slice(60, 72)  # settings for few volumes were chosen on these
SEEDS = (0, 1, 2)
CENTRE = 0.12


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    accelerations: tuple[float, ...] = (4.0, 8.0)
    seed: int = 0
    volumes: int | None = None
    epochs: int = 5
    transform_rate: float = 3.0
    learning_rate: float = 1e-3

    @property
    def title(self) -> str:
        """As tables name it."""
        few = "" if self.volumes is None else f"{self.volumes} volumes, "
        return f"{self.model} ({few}{self.epochs} epoch{'s' if self.epochs > 1 else ''})"

    def __str__(self) -> str:
        rate = "-".join(f"{a:g}x" for a in self.accelerations)
        few = "" if self.volumes is None else f"-{self.volumes}volumes"
        speed = "" if self.transform_rate == 3 else f"-rate{self.transform_rate:g}"
        speed += "" if self.learning_rate == 1e-3 else f"-lr{self.learning_rate:g}"
        return f"{self.model}-{rate}{few}-{self.epochs}epochs{speed}-{self.seed}"


UNROLLED = [Case(model, seed=seed) for seed in SEEDS for model in ("varnet", "varnet-monarch")]
LINEAR = [Case("msense", (rate,), volumes=5, epochs=24) for rate in (2.0, 4.0, 8.0)]
OTHERS = [Case("unet"), Case("modl", epochs=1), Case("modl-monarch", epochs=1)]
# the U-Net with 3e-3, better than 1e-3 on the validation volumes
FEW = [
    Case(model, (rate,), volumes=n, epochs=480 // (4 * n), learning_rate=learning_rate)
    for rate in (2.0, 4.0)
    for n in (1, 2, 3, 5)
    for model, learning_rate in (("msense", 1e-3), ("unet", 3e-3))
]


def configuration(case: Case) -> TrainConfig:
    """The defaults of ``monarch-sciml mri train``; few volumes have many epochs, each with few scores."""
    centres = (CENTRE,) * len(case.accelerations)
    return TrainConfig(
        data=DATA,
        out=RUNS / str(case),
        model=case.model,  # type: ignore[arg-type]
        sampling=MaskConfig("poisson", case.accelerations, centres),
        n_train=case.volumes,
        n_test=HELD_OUT if case.volumes is None else 1,
        epochs=case.epochs,
        transform_rate=case.transform_rate,
        learning_rate=case.learning_rate,
        seed=case.seed,
        threads=1,
        resume=True,
        quiet=True,
    )


def run(case: Case) -> Path:
    """Train, or find it trained."""
    path = train(configuration(case))
    print(f"trained {case}", flush=True)
    return path


# ------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class Question:
    """A method, classical by its name or trained, at one acceleration on some files."""

    method: str | Case
    acceleration: float
    files: tuple[Path, ...]

    @property
    def answer(self) -> Path:
        """Where the answer is kept."""
        return RUNS / "evaluation" / f"{self.method}-at-{self.acceleration:g}x-{self.files[0].stem}.json"

    @property
    def sampling(self) -> MaskConfig:
        """The masks, drawn with the file name as seed."""
        return MaskConfig("poisson", (self.acceleration,), (CENTRE,))


MAPS: dict[tuple[Path, int, float], Tensor] = {}
"""Coil maps of a slice at an acceleration: the same for every method, and what takes most of the time."""


def keeping_maps(method: Reconstruct, key: tuple[Path, int, float]) -> Reconstruct:
    """The method, which leaves the maps that it is given in ``MAPS``."""

    def reconstruct(kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        MAPS[key] = maps
        return method(kspace, pattern, maps)

    return reconstruct


def density(sampling: MaskConfig, shape: tuple[int, int]) -> Tensor:
    """Of other masks than those of the evaluation."""
    masks = torch.stack([draw_mask(sampling, shape, seed).pattern for seed in range(8)])
    return sampling_density(masks, smoothing=2.0)


def prepare(question: Question, shape: tuple[int, int]) -> tuple[Reconstruct, dict[str, Any]]:
    """The method as a function, and what there is to say of it."""
    if question.method == "density-compensated":
        d = density(question.sampling, shape)
        return partial(density_compensated, density=d, power=0.75), {}
    if isinstance(question.method, str):
        return METHODS[question.method], {}
    model = SliceReconstructor.from_pretrained(RUNS / str(question.method))

    def network(kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(kspace[None], pattern[None], maps[None])[0]

    about: dict[str, Any] = {"parameters": count_parameters(model)}
    transforms = learned_transforms(model)
    if transforms:
        with torch.no_grad():
            about["departure"] = mean(float(t.departure()) for t in transforms)
            about["nonunitarity"] = mean(float(t.nonunitarity()) for t in transforms)
    return network, about


def answer(question: Question) -> dict[str, Any]:
    """Scores of every volume, and the mean data consistency; reused where they were computed before."""
    if question.answer.exists():
        return read_json(question.answer)
    torch.set_num_threads(1)
    volumes, consistency, about = [], [], {}
    for path in question.files:
        with open_kspace(path) as file:
            method, about = prepare(question, file.shape[2:])
            images, targets = [], []
            for index in range(len(file)):
                target, key = file.target(index), (path, index, question.acceleration)
                found = reconstruct_slice(
                    torch.from_numpy(file[index]),
                    keeping_maps(method, key),
                    sampling=question.sampling,
                    seed=volume_seed(path),
                    maps=MAPS.get(key, "espirit"),
                    target=None if target is None else torch.from_numpy(target),
                )
                images.append(found.image)
                targets.append(found.target)
                consistency.append(found.data_consistency)
        volumes.append(scores(torch.stack(targets), torch.stack(images)))
    result = {"volumes": volumes, "data_consistency": mean(consistency), **about}
    question.answer.parent.mkdir(parents=True, exist_ok=True)
    write_json(question.answer, result)
    print(f"{question.answer.stem}: PSNR {mean(v['psnr'] for v in volumes):.2f}", flush=True)
    return result


def questions(files: tuple[Path, ...]) -> list[Question]:
    """Every method at the accelerations it is for; total variation, the slowest, on single files only."""
    linear = [Question(m, r, files) for m in ("zero-filled", "density-compensated") for r in (2.0, 4.0, 8.0)]
    linear += [Question(case, case.accelerations[0], files) for case in LINEAR]
    slow = ["tv"] if len(files) == 1 else []
    names: list[str | Case] = ["cg-sense", "l1-wavelet", *slow, *OTHERS, *UNROLLED]
    return linear + [Question(name, rate, files) for name in names for rate in (4.0, 8.0)]


# ---------------------------------------------------------------------------------------------------- report


def row(name: str, found: Sequence[dict[str, Any]]) -> str:
    """One line of a table: means over volumes, the networks of several seeds pooled."""
    summary = summarise([v for f in found for v in f["volumes"]])
    cells = [
        f"{m:.{d}f}" + ("" if e is None else f" ± {e:.{d}f}")
        for (m, e), d in zip((summary[k] for k in ("nmse", "psnr", "ssim")), (5, 2, 3), strict=True)
    ]
    extras = []
    for key, digits in (("data_consistency", 3), ("departure", 3), ("nonunitarity", 3)):
        extras.append(f"{mean(f[key] for f in found):.{digits}f}" if key in found[0] else "")
    parameters = f"{found[0]['parameters']:,}" if "parameters" in found[0] else ""
    return "| " + " | ".join([name, *cells, *extras, parameters]) + " |"


HEADER = [
    "| method | NMSE | PSNR | SSIM | ‖Ax − y‖/‖y‖ | ‖W − F‖/‖F‖ | ‖WᴴW − I‖/√n | parameters |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
]


def table(found: dict[Question, dict[str, Any]], rate: float) -> list[str]:
    """All methods at one acceleration."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for question, result in found.items():
        if question.acceleration == rate:
            method = question.method
            name = method if isinstance(method, str) else method.title
            grouped.setdefault(name, []).append(result)
    rows = [row(name + (f", {len(r)} seeds" if len(r) > 1 else ""), r) for name, r in grouped.items()]
    return [*HEADER, *rows, ""]


def twins(found: dict[Question, dict[str, Any]], rate: float) -> list[str]:
    """The unrolled networks, seed by seed."""
    lines = ["| seed | varnet | varnet-monarch | change of NMSE | PSNR |", "|---:|---:|---:|---:|---:|"]
    changes = []
    for seed in SEEDS:
        pair = [
            next(
                summarise(r["volumes"])
                for q, r in found.items()
                if q.acceleration == rate and q.method == Case(model, seed=seed)
            )
            for model in ("varnet", "varnet-monarch")
        ]
        fft, monarch = (p["nmse"][0] for p in pair)
        changes.append(100 * (monarch / fft - 1))
        gain = pair[1]["psnr"][0] - pair[0]["psnr"][0]
        lines.append(f"| {seed} | {fft:.5f} | {monarch:.5f} | {changes[-1]:+.1f} % | {gain:+.2f} dB |")
    return [*lines, f"| mean | | | {mean(changes):+.1f} ± {stdev(changes):.1f} % | |", ""]


FEW_NOTE = (
    "480 steps each; means ± standard errors over the 12 volumes reconstructed, also of the differences, and "
    "on how many of them mSENSE is better. 0 volumes: density-compensated, where mSENSE starts."
)
CHOSEN = "by which the U-Net's learning rate and mSENSE's weights and penalty were chosen"


def few(found: dict[Question, dict[str, Any]], files: tuple[Path, ...], score: str, digits: int) -> list[str]:
    """A score on these files against the number of volumes trained on."""

    def values(method: str | Case, rate: float) -> Tensor:
        return torch.tensor([v[score] for v in found[Question(method, rate, files)]["volumes"]])

    def cell(x: Tensor, sign: str = "") -> str:
        return f"{float(x.mean()):{sign}.{digits}f} ± {float(x.std() / len(x) ** 0.5):.{digits}f}"

    models = ("msense", "unet")
    head = [f"{column}, {r}×" for r in (2, 4) for column in (*models, "difference")]
    lines = ["| volumes | " + " | ".join(head) + " |", "|---:|" + "---:|" * len(head)]
    start = [cell(values("density-compensated", rate)) for rate in (2.0, 4.0)]
    lines.append(f"| 0 | {start[0]} | | | {start[1]} | | |")
    for n in (1, 2, 3, 5):
        cells = []
        for rate in (2.0, 4.0):
            linear, network = (
                values(next(c for c in FEW if (c.model, c.accelerations, c.volumes) == (m, (rate,), n)), rate)
                for m in models
            )
            difference = linear - network
            better = int(((difference < 0) if score == "nmse" else (difference > 0)).sum())
            cells += [cell(linear), cell(network), f"{cell(difference, '+')}; {better} of {len(difference)}"]
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def pictures(path: Path) -> None:
    """One held-out slice by all methods, and what an unrolled network's transform learned."""
    with open_kspace(path) as file:
        kspace, truth, shape = torch.from_numpy(file[1]), file.target(1), file.shape[2:]
    named: dict[str, str | Case] = {
        "zero-filled": "zero-filled",
        "mSENSE": LINEAR[1],
        "U-Net": OTHERS[0],
        "CG-SENSE": "cg-sense",
        "L1-wavelet": "l1-wavelet",
        "VarNet": UNROLLED[0],
        "VarNet, Monarch": UNROLLED[1],
    }
    images = {}
    for name, method in named.items():
        question = Question(method, 4.0, (path,))
        run_method, _ = prepare(question, shape)
        found = reconstruct_slice(kspace, run_method, sampling=question.sampling, seed=volume_seed(path))
        images[name] = found.image
    target = torch.from_numpy(truth)
    quality = {name: scores(target, image) for name, image in images.items()}
    save_comparison(RESULTS / "mri_quality.png", target, images, scores=quality)
    model = SliceReconstructor.from_pretrained(RUNS / str(UNROLLED[1]))
    save_transform(RESULTS / "mri_transform.png", learned_transforms(model)[0])


def main() -> None:
    """Simulate, train, reconstruct, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--kspace", type=Path, nargs="*", default=[], help="fully sampled files")
    options = parser.parse_args()
    volumes = simulate(DATA, SimulateConfig(volumes=92))
    held_out, validation = tuple(volumes[-HELD_OUT:]), tuple(volumes[VALIDATION])
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run, UNROLLED + LINEAR + FEW + OTHERS))
        asked = questions(held_out)
        asked += [Question(c, c.accelerations[0], files) for c in FEW for files in (held_out, validation)]
        asked += [Question("density-compensated", rate, validation) for rate in (2.0, 4.0)]
        scans = {path: questions((path,)) for path in options.kspace}
        every = asked + [q for group in scans.values() for q in group]
        found = dict(zip(every, pool.map(answer, every), strict=True))
    simulated = {q: found[q] for q in questions(held_out)}
    lines = [
        "# MRI reconstruction: methods side by side",
        "",
        f"{datetime.date.today()}; {', '.join(f'{k} {v}' for k, v in environment().items())}. "
        "By `python benchmarks/mri_quality.py`, see there for the setting.",
        "",
        f"Means ± standard errors over {HELD_OUT} simulated volumes never trained on; variable-density "
        "Poisson discs, ESPIRiT maps from their fully sampled centre; target: root sum of squares of the "
        "fully sampled images without noise. Density-compensated: zero-filled with k-space divided by the "
        "sampling density^0.75, no training.",
        "",
    ]
    for rate in (2.0, 4.0, 8.0):
        lines += [f"## {rate:g}×", "", *table(simulated, rate)]
    for rate in (4.0, 8.0):
        lines += [
            f"## The same unrolled network, FFT against Monarch, {rate:g}×",
            "",
            *twins(simulated, rate),
        ]
    lines += ["## Few training volumes", "", FEW_NOTE, ""]
    for score, digits in (("psnr", 2), ("nmse", 5), ("ssim", 3)):
        lines += [f"{score.upper()}, the held-out volumes:", "", *few(found, held_out, score, digits)]
        lines += [f"{score.upper()}, twelve others, {CHOSEN}:", "", *few(found, validation, score, digits)]
    for path, group in scans.items():
        here = {q: found[q] for q in group}
        with open_kspace(path) as file:
            size = f"{len(file)} slice(s), {file.shape[1]} coils, {file.shape[2]} × {file.shape[3]}"
        lines += [f"# {path.stem}", "", f"{size}; nothing was trained on it.", ""]
        for rate in (4.0, 8.0):
            lines += [f"## {rate:g}×", "", *table(here, rate)]
    (RESULTS / "mri_quality.md").write_text("\n".join(lines))
    content = [
        {"method": str(q.method), "rate": q.acceleration, "files": q.files[0].stem, **r}
        for q, r in found.items()
    ]
    write_json(RESULTS / "mri_quality.json", content)
    pictures(held_out[0])


if __name__ == "__main__":
    main()
