"""Evaluation: exported models → one-step and rollout errors, spectra → JSON, Markdown table, plots."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from monarch_sciml.errors import InputError
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows
from monarch_sciml.pde.metrics import energy_spectrum, relative_l2
from monarch_sciml.pde.models import FramePredictor, channel_units, count_parameters
from monarch_sciml.pde.recipe import TrainConfig, chosen, digest, loaded, split
from monarch_sciml.pde.rollouts import one_step_errors, rollout_errors
from monarch_sciml.training import is_finished, last_row, read_config, read_json, use_paths, write_json
from monarch_sciml.training.export import CONFIG, WEIGHTS
from monarch_sciml.training.files import whole_files

__all__ = ["EvaluateConfig", "Evaluation", "evaluate", "evaluate_run", "markdown_table"]


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate trained models on held-out trajectories, side by side."""

    runs: tuple[Path, ...]
    """Run directories of finished trainings, or model folders; changes are given against the first."""
    out: Path
    """Directory for metrics.json, table.md, plots and evaluation.json (settings); all of them replace earlier
    ones, or none."""
    data: Path | None = None
    """Other trajectories than the held-out ones of the training; all of them are used. A model folder that is
    not in its run directory needs them."""
    key: str | None = None
    """Name of the array in --data; by default the usual one of its format, or the only one that fits."""
    axes: str | None = None
    """Order of its axes, such as "n x y t c"; by default the format's."""
    first_frame: int = 0
    """Leave out earlier frames of --data."""
    frames: int | None = None
    """Use so many frames of --data, all by default."""
    every: int | None = None
    """Keep one grid point in so many; by default as in training. Any grid works: 1 for super-resolution."""
    threads: int | None = None
    """CPU threads; torch decides by default."""
    quiet: bool = False
    """No progress bar, no list of files."""

    def __post_init__(self) -> None:
        use_paths(self, "out", "data")
        runs: str | Path | tuple[str | Path, ...] = self.runs
        runs = (runs,) if isinstance(runs, str | Path) else runs
        object.__setattr__(self, "runs", tuple(map(Path, runs)))
        if not self.runs:
            raise InputError("at least one run directory", "none", "pass --runs DIR [DIR …]")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise InputError("1 to 1024 threads", f"{self.threads}", "change --threads")


@dataclass(frozen=True)
class Evaluation:
    """Errors of one model on held-out trajectories; relative L2 throughout."""

    run: str
    model: str
    protocol: str
    seed: int | None
    grid: tuple[int, ...]
    parameters: int
    epochs: int | None
    train_seconds: float | None
    """None, as seed and epochs, of a model folder alone, which does not tell them."""
    trajectories: int
    one_step: float
    """Mean over frames, each predicted from true ones."""
    rollout: float
    """Mean over trajectories of the error over the whole predicted block."""
    rollout_standard_error: float | None
    """None for a single trajectory."""
    one_step_per_frame: list[float]
    rollout_per_frame: list[float]
    times: list[float]
    """Of the predicted frames, or their numbers if the file has no times."""
    spectrum: list[float] | None
    """Energy spectrum of the last predicted frame (2-D, one channel), and of the true one."""
    true_spectrum: list[float] | None
    rollout_per_channel: list[float | None] | None = None
    """Of each of several channels by itself, where all other errors take them together, each in units of its
    standard deviation in the training; None of a channel that is zero in some trajectory."""


def evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """Evaluate every run and write metrics.json, table.md and plots to ``config.out``.

    Raises ``InputError`` for an unfinished run, a damaged export, or data that do not fit.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    names = ("data", "key", "axes", "first_frame", "frames", "every")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    runs = tuple(_run_of(folder) for folder in config.runs)
    pairs = [evaluate_run(run, **options, progress=not config.quiet) for run in runs]
    results, examples = [result for result, _ in pairs], [example for _, example in pairs]
    if any(_subject(pair) != _subject(pairs[0]) for pair in pairs):
        raise InputError(
            "runs that predict the same frames of the same trajectories on the same grid",
            "; ".join(f"{r.run}: {len(r.times)} frames of {r.trajectories} on {r.grid}" for r in results),
            "evaluate them one by one",
        )
    try:
        with whole_files(config.out) as unfinished:
            write_json(unfinished / "evaluation.json", asdict(config))
            write_json(unfinished / "metrics.json", [asdict(result) for result in results])
            (unfinished / "table.md").write_text(markdown_table(results), encoding="utf-8")
            _save_plots(replace(config, out=unfinished, runs=runs), results, examples)
    except OSError as error:
        raise InputError(
            "an output directory that can be written", str(error), "free the disk, or choose another --out"
        ) from None
    return results


def _save_plots(
    config: EvaluateConfig, results: Sequence[Evaluation], examples: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Runs that differ in their seed alone are one curve, and one prediction, that of the first."""
    from monarch_sciml.pde import plots
    from monarch_sciml.training.plots import same_but_for_seed

    trained = [i for i, run in enumerate(config.runs) if not _is_model(run)]
    groups = [[trained[k] for k in group] for group in same_but_for_seed([config.runs[i] for i in trained])]
    groups = sorted(groups + [[i] for i in range(len(results)) if i not in trained])
    first = [group[0] for group in groups]
    candidates = [[results[i].model for i in first], [results[i].run for i in first]]
    names = next((n for n in candidates if len({*n}) == len(n)), [str(config.runs[i]) for i in first])
    seeds = dict(zip(names, groups, strict=True))
    truth, times = examples[0][0], results[0].times
    if len(results[0].grid) <= 2:
        predictions = {name: examples[group[0]][1] for name, group in seeds.items()}
        plots.save_rollouts(config.out / "rollout.png", truth, predictions, times)
        plots.save_animation(config.out / "rollout.gif", truth, predictions, times)
    curves = {name: [results[i].rollout_per_frame for i in group] for name, group in seeds.items()}
    plots.save_error_over_time(config.out / "error_over_time.png", curves, times)
    if results[0].true_spectrum is not None:
        spectra = {name: [results[i].spectrum or [] for i in group] for name, group in seeds.items()}
        plots.save_spectra(config.out / "spectrum.png", {"truth": results[0].true_spectrum, **spectra})
    tables = {
        name: [config.runs[i] / "metrics.csv" for i in group]
        for name, group in seeds.items()
        if group[0] in trained
    }
    if tables:
        plots.save_training_curves(config.out / "training.png", tables)
    for i in first:
        if results[i].model == "fno-monarch":
            plots.save_transform(config.out / "transform.png", FramePredictor.from_pretrained(config.runs[i]))
            break


def _subject(pair: tuple[Evaluation, tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
    """What a run was asked to predict."""
    result, (truth, _) = pair
    return result.times, result.grid, result.trajectories, truth.tolist()


def _is_model(folder: Path) -> bool:
    """Whether it is a model folder and not a run directory, in which that lies."""
    return not is_finished(folder) and all((folder / name).is_file() for name in (CONFIG, WEIGHTS))


def _run_of(folder: Path) -> Path:
    """The run directory of a model folder that still lies in it; of others the folder itself."""
    parent = folder.absolute().parent
    inside = _is_model(folder) and folder.absolute().name == "model" and (parent / CONFIG).is_file()
    return parent if inside and "config" in read_json(parent / CONFIG) else folder


def _changes(data: Path | None, every: int | None, of_data: dict[str, Any]) -> dict[str, Any]:
    """Of the settings of the training: what is said of a file, ``of_data``, holds for that file alone."""
    changes = {} if every is None else {"every": every}
    if data is not None:
        return {"data": data, **of_data, **changes}
    given = [name for name, value in of_data.items() if value != getattr(EvaluateConfig, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(
            f"--data beside {options}, which say what of it to use",
            "none: the file of the training is read as in training",
            f"pass --data, be it that file, or leave {options} out",
        )
    return changes


def _settings(run: Path, model: FramePredictor, changes: dict[str, Any]) -> TrainConfig:
    """Those of the training, or as far as a model folder tells them, with ``changes``."""
    if _is_model(run):
        if "data" not in changes:
            raise InputError(
                f"trajectories for the model {run}, which does not say where those of its training are",
                "none",
                "pass --data, or the run directory of the training",
            )
        protocol = "A" if model.config.n_in > 1 else "B"
        return TrainConfig(out=run, model=model.config.kind, protocol=protocol, **changes)
    saved = read_config(run)
    try:
        return TrainConfig(**{**saved, "data": Path(saved["data"]), "out": run, **changes})
    except (TypeError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(f"the settings of a training in {run}", found, "check its config.json") from None


def evaluate_run(
    run: Path,
    *,
    data: Path | None = None,
    key: str | None = None,
    axes: str | None = None,
    first_frame: int = 0,
    frames: int | None = None,
    every: int | None = None,
    progress: bool = True,
) -> tuple[Evaluation, tuple[Tensor, Tensor]]:
    """Errors of one run, or of a model folder on ``data``; truth and prediction (steps, *grid) of the first
    trajectory, channel 0. Options as of ``EvaluateConfig``. Raises ``InputError``."""
    of_data = {"key": key, "axes": axes, "first_frame": first_frame, "frames": frames}
    changes = _changes(data, every, of_data)
    run = _run_of(Path(run))
    if not is_finished(run) and not _is_model(run):
        begun = (run / CONFIG).exists()
        remedy = "train it to its end with pde train --resume" if begun else "check the path"
        raise InputError(f"a finished training in {run}", "no exported model", remedy)
    model = FramePredictor.from_pretrained(run)
    settings, n_in = _settings(run, model, changes), model.config.n_in
    held_out = split(settings)[1] if data is None else loaded(chosen(settings, n_in), n_in)
    if held_out.channels != model.config.channels or len(held_out.grid) != len(model.config.grid):
        raise InputError(
            f"trajectories of {model.config.channels} channels on {len(model.config.grid)} axes",
            f"{held_out}",
            "evaluate on data like those of the training",
        )
    if not changes:
        _check_held_out(run, held_out)
    return _evaluation(run, model, settings, held_out, progress)


def _check_held_out(run: Path, held_out: TrajectoryDataset) -> None:
    """Refuse a file that was replaced after the training, which may hold out what was trained on."""
    known = read_json(run / CONFIG).get("data")
    # earlier trainings did not take note of it
    if isinstance(known, dict) and "held out" in known and known["held out"] != digest(held_out):
        raise InputError(
            f"the held-out trajectories of the training in {run}",
            f"others in {held_out.path}",
            "bring that file back, or pass --data to evaluate on all trajectories of one",
        )


def _evaluation(
    run: Path, model: FramePredictor, settings: TrainConfig, held_out: TrajectoryDataset, progress: bool
) -> tuple[Evaluation, tuple[Tensor, Tensor]]:
    """The errors of ``model`` on ``held_out``, and an example."""
    n_in, alone = model.config.n_in, _is_model(run)
    per_frame, per_block, per_channel, one_step, spectra = [], [], [], [], []
    examples: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        hidden = None if progress else True  # None: where there is no terminal
        loader = DataLoader(Windows(held_out, n_in, held_out.n_times - n_in), settings.batch)
        for context, target in tqdm(loader, run.name, unit="batch", disable=hidden, leave=False):
            trajectories = torch.cat((context, target), dim=1)
            units = channel_units(model.config.scale, trajectories)
            prediction, frames, blocks = rollout_errors(model, trajectories, n_in, units=units)
            per_channel.append(relative_l2(prediction.transpose(1, 2), target.transpose(1, 2), first_dim=2))
            per_frame.append(frames)
            per_block.append(blocks)
            one_step.append(one_step_errors(model, trajectories, n_in, units=units))
            examples = examples or [(target[0, :, 0], prediction[0, :, 0])]
            if target.shape[2] == 1 and target.ndim == 5:
                last = torch.stack((target[:, -1, 0], prediction[:, -1, 0]))
                spectra.append(energy_spectrum(last.double()))  # (2, B, κ)
    blocks, frames, steps = torch.cat(per_block), torch.cat(per_frame).mean(0), torch.cat(one_step).mean(0)
    channels = [e if math.isfinite(e) else None for e in torch.cat(per_channel).mean(0).tolist()]
    true, predicted = torch.cat(spectra, dim=1).mean(1).tolist() if spectra else (None, None)
    times = (held_out.times if held_out.times is not None else torch.arange(held_out.n_times))[n_in:]
    result = Evaluation(
        run=run.absolute().name,
        model=settings.model,
        protocol=settings.protocol,
        seed=None if alone else settings.seed,
        grid=held_out.grid,
        parameters=count_parameters(model),
        epochs=None if alone else settings.epochs,
        train_seconds=None if alone else last_row(run)["seconds"],
        trajectories=len(held_out),
        one_step=steps.mean().item(),
        rollout=blocks.mean().item(),
        rollout_standard_error=(blocks.std() / len(blocks) ** 0.5).item() if len(blocks) > 1 else None,
        one_step_per_frame=steps.tolist(),
        rollout_per_frame=frames.tolist(),
        times=[float(t) for t in times],
        spectrum=predicted,
        true_spectrum=true,
        rollout_per_channel=None if len(channels) == 1 else channels,
    )
    return result, examples[0]


def _listed(errors: Sequence[float | None]) -> str:
    return ", ".join("none, as it is zero" if error is None else f"{error:.4f}" for error in errors)


def markdown_table(results: Sequence[Evaluation]) -> str:
    """One row per run; the last column is the change of the rollout error against the first run."""
    lines = [
        "| model | seed | parameters | training | one-step error | rollout error | against the first |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        spread = "" if r.rollout_standard_error is None else f" ± {r.rollout_standard_error:.4f}"
        seed = "" if r.seed is None else r.seed
        seconds = "" if r.train_seconds is None else f"{r.train_seconds:.0f} s"
        change = f"{100 * (r.rollout / results[0].rollout - 1):+.0f} %" if r is not results[0] else ""
        lines.append(
            f"| {r.model} | {seed} | {r.parameters:,} | {seconds} | {r.one_step:.4f} "
            f"| {r.rollout:.4f}{spread} | {change} |"
        )
    r = results[0]
    grid = " × ".join(map(str, r.grid))
    lines += [
        "",
        f"Relative L2 errors over {r.trajectories} held-out trajectories on {grid} points, mean ± standard "
        f"error; rollout over {len(r.times)} frames, t = {r.times[0]:g} … {r.times[-1]:g}.",
    ]
    if r.rollout_per_channel:
        lines += [
            "All channels together, each in units of its standard deviation in the training. Rollout errors "
            "of each by itself:",
            "",
        ]
        lines += [f"* {run.run}: {_listed(run.rollout_per_channel or [])}" for run in results]
    return "\n".join(lines) + "\n"
