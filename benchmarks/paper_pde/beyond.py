"""What FNO and FNO-Monarch do beyond their training: on grids they have not seen, and far longer."""

from dataclasses import asdict, dataclass
from statistics import mean

import numpy as np
import torch
from cases import BOTH, NAMES, RATE, ROOT, SCALES, Case, Scale, configuration, data
from matplotlib.figure import Figure

from monarch_sciml.pde import GenerateConfig, generate
from monarch_sciml.pde.datasets import TrajectoryDataset
from monarch_sciml.pde.metrics import energy_spectrum
from monarch_sciml.pde.models import FramePredictor
from monarch_sciml.pde.rollouts import rollout_errors
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.plots import draw_curves, new_figure, plain

VISCOSITY = "1e-3"  # the one with the longest trajectories


@dataclass(frozen=True)
class Beyond:
    """Relative L2 errors of one model on held-out trajectories."""

    grids: dict[str, float]
    """Points per side → rollout error over the frames of the training."""
    frames: list[float]
    """Error of every predicted frame from t = 2 on, on the training grid."""
    spectrum: list[float]
    """Energy spectrum of the last of them."""
    true_spectrum: list[float]


def is_meant(case: Case, scale: Scale) -> bool:
    """Protocol B at the viscosity with long trajectories, at the rates with which both train well."""
    best = Case(case.model, VISCOSITY, "B", case.seed, scale.n_train, scale.modes, spectral_rate=RATE)
    return case == best and case.model in BOTH


def held_out(scale: Scale, every: int, frames: int) -> torch.Tensor:
    """Trajectories never trained on, from t = 1, with one point in ``every`` of the finest grid."""
    if scale.fine == 64:
        path = data(VISCOSITY, scale)
    else:
        settings = {"samples": scale.n_test, "resolution": scale.fine, "end_time": scale.long, "seed": 1}
        config = GenerateConfig(**settings)
        path = generate(ROOT / "data" / f"paper_ns_V{VISCOSITY}_fine{scale.fine}.h5", config, progress=False)
    trajectories = TrajectoryDataset(path, times=slice(1, 1 + frames), every=every)
    return torch.stack([*trajectories.select(slice(len(trajectories) - scale.n_test, None)).load()])


@torch.no_grad()
def go_beyond(case: Case, name: str) -> Beyond:
    """Evaluate a finished training; kept beside it."""
    scale, config = SCALES[name], configuration(case, name)
    kept = config.out / "beyond.json"
    if kept.exists():
        return Beyond(**read_json(kept))
    torch.set_num_threads(config.threads or torch.get_num_threads())
    model, grids = FramePredictor.from_pretrained(config.out), {}
    for every in (1, 2, 4):
        trajectories = held_out(scale, every, scale.frames[VISCOSITY])
        errors = [rollout_errors(model, part, 1)[2] for part in trajectories.split(20)]
        grids[str(scale.fine // every)] = float(torch.cat(errors).mean())
    trajectories = held_out(scale, 2, scale.long)
    found = [rollout_errors(model, part, 1) for part in trajectories.split(20)]
    last = torch.cat([prediction[:, -1, 0] for prediction, _, _ in found])
    result = Beyond(
        grids,
        torch.cat([frames for _, frames, _ in found]).mean(0).tolist(),
        energy_spectrum(last).mean(0).tolist(),
        energy_spectrum(trajectories[:, -1, 0]).mean(0).tolist(),
    )
    write_json(kept, asdict(result))
    return result


def section(scale: Scale, results: dict[Case, Beyond]) -> list[str]:
    """Of the report."""
    sizes = [str(scale.fine // every) for every in (1, 2, 4)]
    trained = scale.frames[VISCOSITY]
    times = (trained, (trained + scale.long) // 2, scale.long)
    lines = [
        "## Beyond the training",
        "",
        f"Protocol B at ν = 1e-3, spectral weights × {RATE:g}, trained on {sizes[1]} × {sizes[1]} points up "
        f"to t = {trained}. Left: rollout error over these frames on other grids, without training there. "
        f"Right: error of single frames of a rollout to t = {scale.long} on the training grid.",
        "",
        "| model | n | "
        + " | ".join(f"{size} × {size}" for size in sizes)
        + "".join(f" | t = {t}" for t in times)
        + " |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in BOTH:
        mine = [beyond for case, beyond in results.items() if case.model == model]
        if mine:
            grids = [f"{mean(b.grids[size] for b in mine):.4f}" for size in sizes]
            frames = [f"{mean(b.frames[t - 2] for b in mine):.3f}" for t in times]
            lines.append(f"| {NAMES[model]} | {len(mine)} | " + " | ".join([*grids, *frames]) + " |")
    return lines


def plot(results: dict[Case, Beyond]) -> Figure:
    """Error of every frame, and the energy spectrum of the last one beside the true one."""
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    frames, spectra = {}, {}
    for model in BOTH:
        mine = [beyond for case, beyond in results.items() if case.model == model]
        if mine:
            errors, energy = (np.array([getattr(b, part) for b in mine]) for part in ("frames", "spectrum"))
            frames[NAMES[model]] = (np.arange(2, errors.shape[1] + 2), errors)
            spectra[NAMES[model]] = (np.arange(1, energy.shape[1]), energy[:, 1:])
    truth = next(iter(results.values())).true_spectrum[1:]
    right.plot(np.arange(1, len(truth) + 1), truth, color="black", linewidth=2.5, alpha=0.6, label="truth")
    left.set(title="Long rollouts", xlabel="time", ylabel="relative L2 error of the frame", yscale="log")
    right.set(title="Energy spectrum at the end", xlabel="wavenumber |k|", ylabel="E(k)")
    right.set(xscale="log", yscale="log")
    for axes, curves in ((left, frames), (right, spectra)):
        plain(axes)
        draw_curves(axes, curves)
        axes.get_legend().set_loc("lower right" if axes is left else "lower left")
    return figure
