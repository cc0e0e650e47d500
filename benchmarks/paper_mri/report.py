"""The report of ``table.py``: Markdown, JSON, pictures, from whatever has been answered."""

import csv
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

import answers as mri
import torch
from answers import Answer, Case, Method, Question, Setting
from matplotlib.figure import Figure
from torch import Tensor

from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.masks import volume_seed
from monarch_sciml.mri.metrics import scores, summarise
from monarch_sciml.mri.models import SliceReconstructor, learned_transforms
from monarch_sciml.mri.plots import save_comparison, save_transform
from monarch_sciml.mri.reconstruction import reconstruct_slice
from monarch_sciml.training import is_finished, write_json
from monarch_sciml.training.plots import COLOURS, MARKERS, new_axes, save_figure
from monarch_sciml.training.run import environment

RESULTS = mri.ROOT / "benchmarks" / "results"
TWINS = ("VarNet", "VarNet, Monarch")
LINEAR = ("mSENSE, one step", "mSENSE")
SHOWN = ("zero-filled", *LINEAR, "U-Net", "CG-SENSE", "L1-wavelet", *TWINS)
SCAN_DETAILS = (4.0, 8.0)
DIGITS = {"nmse": 5, "psnr": 2, "ssim": 3}
# PSNR of SENSE, which is zero-filled there, and of mSENSE, first and second echo (Dao et al., 2022)
PUBLISHED = {
    "2×": ((32.8, 35.4), (34.3, 36.6)),
    "the next higher": ((30.9, 33.5), (32.3, 34.6)),
    "the highest": ((30.1, 32.8), (31.2, 33.5)),
}


@dataclass(frozen=True)
class Results:
    """What was asked, and what has been answered."""

    held_out: list[Setting]
    robust: list[Setting]
    scans: dict[str, list[Setting]]
    workers: int
    found: dict[Question, Answer] = field(default_factory=dict)

    def volumes(self, method: str, setting: Setting) -> list[dict[str, float]]:
        """Scores of each volume, the mean over seeds; none if a training is missing."""
        return self.of(mri.methods(setting)[method], setting)

    def of(self, methods: Sequence[Method], setting: Setting) -> list[dict[str, float]]:
        """The same of trainings."""
        each = [self.found.get(Question(method, setting)) for method in methods]
        if None in each:
            return []
        every = zip(*(found["volumes"] for found in each if found), strict=True)
        return [{key: mean(v[key] for v in seeds) for key in seeds[0]} for seeds in every]


def cell(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean ± standard error."""
    if not values:
        return ""
    value, error = summarise([{"": v} for v in values])[""]
    return f"{value:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def gains(results: Results, setting: Setting, method: str) -> list[float]:
    """PSNR of mSENSE, of one step or more, minus that of zero-filled, volume by volume."""
    pairs = zip(results.volumes(method, setting), results.volumes("zero-filled", setting), strict=False)
    return [ours["psnr"] - theirs["psnr"] for ours, theirs in pairs]


def change(results: Results, pair: Sequence[Case], setting: Setting) -> list[float]:
    """Per cent by which the NMSE of a network changes with a Monarch transform; nothing if one is missing."""
    fft, monarch = (results.of([case], setting) for case in pair)
    if not fft or not monarch:
        return []
    return [100 * (mean(v["nmse"] for v in monarch) / mean(v["nmse"] for v in fft) - 1)]


def changes(results: Results, setting: Setting, trained: dict[str, list[Case]] = mri.UNROLLED) -> list[float]:
    """The same of the unrolled network, seed by seed."""
    pairs = zip(*trained.values(), strict=True)
    return [c for pair in pairs for c in change(results, pair, setting)]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, in per cent."""
    if not values:
        return ""
    return f"{mean(values):+.1f}" + (f" ± {stdev(values):.1f} %" if len(values) > 1 else " %")


# ---------------------------------------------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its first column to the left."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def summary(results: Results) -> list[str]:
    """What the paper claims of mSENSE, at a glance."""
    places = {"held out": results.held_out, **results.scans}
    rows = []
    for i, setting in enumerate(results.held_out):
        found = [gains(results, settings[i], name) for name in LINEAR for settings in places.values()]
        rows.append([f"{setting.rate:g}×", *(f"{c} dB" if (c := cell(g, 2, "+")) else "" for g in found)])
    return table(["acceleration", *(f"{name}; {place}" for name in LINEAR for place in places)], rows)


def unrolled(results: Results) -> list[str]:
    """What a learned transform changes in the unrolled network, at a glance."""
    rows = []
    for setting in results.held_out:
        by_seed = changes(results, setting)
        each = [f"{c:+.1f} %" for c in by_seed] + [""] * (len(mri.SEEDS) - len(by_seed))
        rows.append([f"{setting.rate:g}×", *each, spread(by_seed)])
    return table(["acceleration", *(f"seed {seed}" for seed in mri.SEEDS), "mean"], rows)


def overview(
    results: Results, settings: Sequence[Setting], score: str = "psnr", digits: int = 2
) -> list[str]:
    """A row for each method, a column for each setting."""
    rows = []
    for name in mri.methods(settings[0]):
        cells = [cell([v[score] for v in results.volumes(name, s)], DIGITS[score]) for s in settings]
        if any(cells):
            rows.append([name, *cells])
    rates, what = zip(*(s.title.split(", ", 1) for s in settings), strict=True)
    head = ["", *(what if len(set(rates)) == 1 else rates)]
    if score == "psnr":
        for name in LINEAR:
            cells = [cell(gains(results, s, name), 2, "+") for s in settings]
            rows.append([f"{name} − zero-filled", *cells])
        rows.append(["VarNet: NMSE with Monarch", *(spread(changes(results, s)) for s in settings)])
    return table(head, rows)


def details(results: Results, setting: Setting) -> list[str]:
    """All there is to say of each method in a setting."""
    head = ["method", "NMSE", "PSNR", "SSIM", "‖Ax − y‖/‖y‖", "‖W − F‖/‖F‖", "‖WᴴW − I‖/√n", "parameters"]
    rows = []
    for name, methods in mri.methods(setting).items():
        if volumes := results.volumes(name, setting):
            found = [results.found[Question(method, setting)] for method in methods]
            cells = [cell([v[score] for v in volumes], digits) for score, digits in DIGITS.items()]
            for key in ("data_consistency", "departure", "nonunitarity"):
                cells.append(f"{mean(f[key] for f in found):.3f}" if key in found[0] else "")
            cells.append(f"{found[0]['parameters']:,}" if "parameters" in found[0] else "")
            rows.append([name + (f", {len(found)} seeds" if len(found) > 1 else ""), *cells])
    return table(head, rows)


def few(results: Results, setting: Setting, score: str) -> list[str]:
    """A score on the held-out volumes against the number of volumes trained on."""
    digits = DIGITS[score]

    def values(method: Method) -> list[float]:
        return [v[score] for v in results.of([method], setting)]

    def against(ours: list[float], theirs: list[float]) -> str:
        both = [a - b for a, b in zip(ours, theirs, strict=False)]
        better = sum(d < 0 if score == "nmse" else d > 0 for d in both)
        return f"{cell(both, digits, '+')}; {better} of {len(both)}" if both else ""

    rows = [
        ["0", *(cell(values(start), digits) for start in ("density-compensated", "untrained")), "", "", ""]
    ]
    for n in mri.FEW:
        one, ours, theirs = (
            values(case(setting.rate, n)) for case in (mri.one_step, mri.linear, mri.small_unet)
        )
        cells = [cell(v, digits) for v in (one, ours, theirs)]
        rows.append([str(n), *cells, against(one, theirs), against(ours, theirs)])
    return table(["volumes", *LINEAR, "U-Net", *(f"{name} − U-Net" for name in LINEAR)], rows)


def narrow(results: Results) -> list[str]:
    """PSNR of the unrolled networks, trained with and without 2×."""
    trained = {"2×, 4×, 8×": mri.UNROLLED, "4×, 8×": mri.NARROW}
    head = [f"{name}; {on}" for on in trained for name in (*TWINS, "change of NMSE")]
    rows = []
    for setting in results.held_out:
        cells = [f"{setting.rate:g}×"]
        for twins in trained.values():
            cells += [cell([v["psnr"] for v in results.of(seeds, setting)], 2) for seeds in twins.values()]
            cells.append(spread(changes(results, setting, twins)))
        rows.append(cells)
    return table(["acceleration", *head], rows)


def published() -> list[str]:
    """What Dao et al. print, in the same words as our tables."""
    rows = []
    for rate, (sense, ours) in PUBLISHED.items():
        gain = [f"{a - b:+.1f}" for a, b in zip(ours, sense, strict=True)]
        rows.append([rate, *(" / ".join(map(str, part)) for part in (sense, ours, gain))])
    return table(["acceleration", "zero-filled", "mSENSE", "difference"], rows)


def training_seconds() -> Iterator[float]:
    """Of every finished training."""
    for case in mri.TRAININGS:
        path = mri.RUNS / str(case)
        if is_finished(path):
            with (path / "metrics.csv").open() as file:
                yield float([*csv.DictReader(file)][-1]["seconds"])


# ---------------------------------------------------------------------------------------------------- report


def report(results: Results) -> None:
    """Write ``paper_mri.{md,json,png}``, ``paper_mri_slice.png`` and ``paper_mri_transform.png``."""
    lines = [*introduction(results), *domain(results), *shots(results), *elsewhere(results)]
    (RESULTS / "paper_mri.md").write_text("\n".join(lines).rstrip() + "\n")
    content = [
        {"method": str(q.method), "setting": q.setting.title, **found} for q, found in results.found.items()
    ]
    about = {**environment(), "date": datetime.date.today().isoformat()}
    write_json(RESULTS / "paper_mri.json", {"environment": about, "answers": content})
    save_figure(plot(results), RESULTS / "paper_mri.png")
    pictures(results)


def introduction(results: Results) -> list[str]:
    """Setting, summary, plot, what the paper prints."""
    seconds = [*training_seconds()]
    spent = sum(seconds), sum(found["seconds"] for found in results.found.values())
    asked = len(mri.TRAININGS)
    minutes = [f"{s / 60:.0f}" for s in (*spent, sum(spent) / results.workers)]
    return [
        "# The paper's MRI tables",
        "",
        f"Means ± standard errors over {mri.HELD_OUT} simulated volumes never trained on, several seeds",
        "averaged volume by volume; variable-density Poisson discs, ESPIRiT maps from their fully sampled",
        "centre; target: root sum of squares of the fully sampled images without noise. Trained on simulated",
        "volumes alone: the networks on 2×, 4× and 8× together, so that they never saw 6×; mSENSE, which is",
        "linear, on each acceleration. mSENSE of one step is that of the paper; without these words it goes",
        "on with seven steps of heavy-ball descent and the same transform. Before training they are the rows",
        '"density-compensated", zero-filled with k-space divided by the sampling density^0.75, and "SENSE,',
        'untrained". *Research use only, not for clinical use.*',
        "",
        f"{len(seconds)} of {asked} trainings are done: {minutes[0]} minutes on one thread; reconstructions "
        f"{minutes[1]}; about {minutes[2]} with {results.workers} at a time. Reproduce: `make paper-mri`; "
        "scans are those named by `--kspace`.",
        "",
        "PSNR minus that of zero-filled SENSE:",
        "",
        *summary(results),
        "VarNet: the change of NMSE when its inverse FFT becomes a learned Monarch transform, negative is",
        "better; mean ± standard deviation over seeds:",
        "",
        *unrolled(results),
        "![PSNR against acceleration](paper_mri.png)",
        "",
        "Published, in dB, first / second echo of knees (SKM-TEA). Other data, other noise, other targets:",
        "only the differences can be compared.",
        "",
        *published(),
        ", ".join(f"{k} {v}" for k, v in environment().items()) + f", {datetime.date.today()}.",
        "",
    ]


def domain(results: Results) -> list[str]:
    """All methods at all accelerations."""
    lines = ["## Accelerations: PSNR in dB", "", *overview(results, results.held_out)]
    lines += ["A slice at 4×:", "", "![A slice by all methods](paper_mri_slice.png)", ""]
    for setting in results.held_out:
        lines += [f"## {setting.rate:g}×", "", *details(results, setting)]
    lines += [
        "## The unrolled networks without 2× in their training",
        "",
        "PSNR in dB, by the accelerations trained on; three seeds, the same number of steps. What a learned",
        "transform multiplies each frequency by belongs to the sampling densities of its training: **train",
        "on every acceleration you reconstruct**, or on either side of it. Below, the table's transform.",
        "",
        *narrow(results),
        "![Learned transform](paper_mri_transform.png)",
        "",
    ]
    return lines


def shots(results: Results) -> list[str]:
    """Few training volumes, in every score."""
    lines = [
        "## Few training volumes",
        "",
        "480 steps each; the held-out volumes. Differences are paired, with the number of volumes on which",
        "mSENSE is better. 0 volumes: density-compensated; SENSE, untrained. The U-Net's learning rate and",
        "mSENSE's start and penalty were chosen on other volumes; size and number of its steps were tried on",
        "these first and confirmed on ten others, where they rank alike. The U-Net gets the magnitude of the",
        "zero-filled image, as fastMRI's does: what more steps bring is what its input lacks.",
        "",
    ]
    for setting in (s for s in results.held_out if s.rate in mri.FEW_RATES):
        for score in DIGITS:
            lines += [f"{score.upper()} at {setting.rate:g}×:", "", *few(results, setting, score)]
    return lines


def elsewhere(results: Results) -> list[str]:
    """Other masks, coils and noise, and scans."""
    lines = [
        "## Robustness: PSNR in dB",
        "",
        f"{len(results.robust[0].files)} other volumes of the same kind, the same objects in every column.",
        "The first column is what the others differ from: Poisson discs, 8 coils, noise 0.008. In training",
        "there were discs alone, 4 to 16 coils, noise from 0.003 to 0.02. Of columns, 8 % lie in the sampled",
        "centre. Nothing was trained again; density compensation knows the masks, mSENSE those of training.",
        "",
        *overview(results, results.robust),
    ]
    for name, settings in results.scans.items():
        with open_kspace(settings[0].files[0]) as file:
            size = f"{len(file)} slice(s), {file.shape[1]} coils, {file.shape[2]} × {file.shape[3]}"
        lines += [f"## A scan: {name}", "", f"{size}; nothing was trained on it. PSNR in dB:", ""]
        lines += [*overview(results, settings), "SSIM:", "", *overview(results, settings, "ssim")]
        for setting in (s for s in settings if s.rate in SCAN_DETAILS):
            lines += [f"At {setting.rate:g}×:", "", *details(results, setting)]
    return lines


def plot(results: Results) -> Figure:
    """PSNR against acceleration, with standard errors."""
    figure, axes = new_axes(
        "Held-out simulated volumes",
        "acceleration",
        "PSNR in dB",
        note="bars: standard error over volumes; networks trained on 2×, 4× and 8×, mSENSE on each",
    )
    for i, name in enumerate(SHOWN):
        found = [(s.rate, results.volumes(name, s)) for s in results.held_out]
        points = [(rate, summarise(volumes)["psnr"]) for rate, volumes in found if volumes]
        axes.errorbar(
            [rate + 0.06 * (i - len(SHOWN) // 2) for rate, _ in points],  # side by side
            [value for _, (value, _) in points],
            [error or 0.0 for _, (_, error) in points],
            color=(*COLOURS, "0.35", "0.6")[i],
            marker=(*MARKERS, "X", "*")[i],
            markersize=4,
            linewidth=1.3,
            capsize=2,
            label=name,
        )
    axes.set_xticks(mri.RATES, [f"{rate:g}×" for rate in mri.RATES])
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def pictures(results: Results) -> None:
    """One held-out slice by all methods, and what an unrolled network's transform learned."""
    setting = next(s for s in results.held_out if s.rate == 4)
    path = setting.files[0]
    with open_kspace(path) as file:
        index, shape = (len(file) - 1) // 2, file.shape[2:]
        kspace, target = torch.from_numpy(file[index]), file.target(index)
    images: dict[str, Tensor] = {}
    for name in SHOWN:
        question = Question(mri.methods(setting)[name][0], setting)
        if question in results.found and target is not None:
            method, _ = mri.prepare(question, shape)
            found = reconstruct_slice(kspace, method, sampling=setting.sampling, seed=volume_seed(path))
            images[name] = found.image
    truth = torch.from_numpy(target)
    quality = {name: scores(truth, image) for name, image in images.items()}
    save_comparison(RESULTS / "paper_mri_slice.png", truth, images, scores=quality)
    monarch = mri.RUNS / str(mri.UNROLLED["varnet-monarch"][0])
    if is_finished(monarch):
        model = SliceReconstructor.from_pretrained(monarch)
        save_transform(RESULTS / "paper_mri_transform.png", learned_transforms(model)[0])
