"""Evaluation: reconstructions against their targets, in fastMRI files → JSON, Markdown table."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tqdm import tqdm

from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import single_attributes
from monarch_sciml.mri.metrics import center_crop, per_slice, scores, summarise
from monarch_sciml.mri.reports import cell
from monarch_sciml.training import use_paths, write_json
from monarch_sciml.training.files import whole_files

__all__ = ["EvaluateConfig", "VolumeScores", "evaluate", "markdown_table"]

TARGETS = ("reconstruction_esc", "reconstruction_rss")  # single-coil files have both: theirs is the first
PREDICTION = "reconstruction"
NOTICE = "Research use only, not for clinical use."
DESCRIBED_BY = {"acquisition": str, "acceleration": float, "asked_acceleration": float}
"""The attributes by which volumes are chosen."""
NEAR = 0.1  # of an acceleration: what becomes of a mask is not exactly what was asked for


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare reconstructions with the images of fully sampled k-space: NMSE, PSNR, SSIM."""

    target: Path
    """Directory of fastMRI files (.h5) with the target images."""
    prediction: tuple[Path, ...]
    """Directory of files of the same names with a dataset reconstruction (slices, height, width); several
    directories are compared, each by its name."""
    out: Path | None = None
    """Directory for metrics.json (per volume and slice), table.md, comparison.png; all replace earlier ones,
    or none."""
    acquisition: str | None = None
    """Only volumes with this attribute, such as CORPD_FBK or AXT2."""
    acceleration: float | None = None
    """Only volumes of this acceleration: the one asked for in the reconstruction, or else, within 10 %, that
    of the target or of the prediction."""
    quiet: bool = False
    """No progress bar, no list of files."""

    def __post_init__(self) -> None:
        prediction = (self.prediction,) if isinstance(self.prediction, str | Path) else self.prediction
        object.__setattr__(self, "prediction", tuple(map(Path, prediction)))
        use_paths(self, "target", "out")


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one volume; the data range of PSNR and SSIM is the maximum of its target."""

    name: str
    acquisition: str | None
    acceleration: float | None
    target: str
    """Dataset the prediction was compared with."""
    target_shape: tuple[int, int]
    shape: tuple[int, int]
    """Compared part: smaller than the target where the prediction is."""
    scores: dict[str, float]
    """nmse, psnr, ssim of the volume."""
    slices: list[dict[str, float]]
    """The same for each slice, with the data range of the volume."""
    asked_acceleration: float | None = None
    """Of the mask that was drawn; ``acceleration`` is what became of it."""


def evaluate(config: EvaluateConfig) -> dict[str, list[VolumeScores]]:
    """Score every chosen volume of every prediction, in the order of names; write to ``out``, if any.

    Target and prediction are centre-cropped, each axis to the shorter of both. (fastMRI's own script cuts
    targets that are higher than wide to a square first; ours keeps them whole.)

    Raises:
        InputError: a missing folder; a prediction without target or a target without prediction; a damaged
            file, one without its dataset, with NaN, or with another number of slices; nothing to compare.
    """
    folders = {os.path.basename(os.path.realpath(folder)): folder for folder in config.prediction}
    if not folders or len(folders) < len(config.prediction):
        found = ", ".join(map(str, config.prediction)) or "none"
        raise InputError("prediction directories of different names", found, "rename one")
    targets = _files(config.target)
    chosen = {name: _comparable(config, targets, folder) for name, folder in folders.items()}
    if config.out is not None:
        try:
            config.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("an output directory", str(error), "choose another --out") from None
    hidden = config.quiet or None  # None: where there is no terminal
    bar = tqdm(total=sum(map(len, chosen.values())), unit="volume", disable=hidden, leave=False)
    results: dict[str, list[VolumeScores]] = {name: [] for name in folders}
    with bar:
        for name, volumes in chosen.items():
            for file, attributes in volumes.items():
                results[name].append(_evaluate_volume(targets[file], folders[name] / file, attributes))
                bar.update()
    if config.out is not None:
        details = {
            name: {
                "mean_and_error": _for_json(summarise([volume.scores for volume in found])),
                "volumes": [_for_json(asdict(volume)) for volume in found],
            }
            for name, found in results.items()
        }
        content = {"notice": NOTICE, "config": asdict(config), "predictions": details}
        try:
            with whole_files(config.out) as unfinished:
                (unfinished / "table.md").write_text(markdown_table(results), encoding="utf-8")
                write_json(unfinished / "metrics.json", content)
                _save_picture(unfinished / "comparison.png", targets, folders, results)
        except OSError as error:
            raise InputError(
                "an output directory with room", str(error), "free the disk, or choose another --out"
            ) from None
    return results


def markdown_table(results: Mapping[str, Sequence[VolumeScores]]) -> str:
    """Mean over volumes ± standard error: all of them, and each acquisition if there are several, and each
    acceleration that was asked for.

    Raises:
        InputError: no results.
    """
    lines = [
        "| prediction | acquisition | volumes | slices | NMSE | PSNR in dB | SSIM |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    every = [volume for found in results.values() for volume in found]
    for label, belongs in _groups(every):
        for name, found in results.items():
            group = [volume for volume in found if belongs(volume)]
            if found and not group:
                continue
            summary = summarise([volume.scores for volume in group])
            cells = [
                cell(name),
                cell(label),
                str(len(group)),
                str(sum(len(volume.slices) for volume in group)),
                _cell(*summary["nmse"], 4),
                _cell(*summary["psnr"], 2),
                _cell(*summary["ssim"], 4),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Mean over volumes ± standard error; the data range is the maximum of the target volume."]
    cut = [volume.name for volume in every if volume.shape != volume.target_shape]
    if cut:
        lines.append(f"Predictions smaller than their targets, compared on what they cover: {_few(cut)}.")
    return "\n".join([*lines, NOTICE]) + "\n"


def _groups(volumes: Sequence[VolumeScores]) -> Iterator[tuple[str, Callable[[VolumeScores], bool]]]:
    """What has rows of its own in the table: its label, and which volumes belong to it."""
    yield "all", lambda volume: True
    kinds = {volume.acquisition for volume in volumes if volume.acquisition is not None}
    for kind in sorted(kinds) if len(kinds) > 1 else ():
        yield kind, lambda volume, kind=kind: volume.acquisition == kind
    rates = {volume.asked_acceleration for volume in volumes if volume.asked_acceleration is not None}
    for rate in sorted(rates) if len(rates) > 1 else ():
        yield f"all at {rate:g}×", lambda volume, rate=rate: volume.asked_acceleration == rate


def _comparable(config: EvaluateConfig, targets: dict[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    """The chosen volumes, all of which have a prediction in ``folder``, and their attributes."""
    predictions = _files(folder)
    strangers = sorted(predictions.keys() - targets.keys())
    if strangers:
        raise InputError(
            f"a target in {config.target} for every prediction",
            f"none for {_few(strangers)}",
            "move them away",
        )
    chosen = _chosen(config, targets, predictions)
    missing = [name for name in chosen if name not in predictions]
    if missing:
        raise InputError(
            f"a prediction in {folder} for every target",
            f"none for {_few(missing)}",
            "reconstruct them, or choose fewer with acquisition or acceleration",
        )
    return chosen


def _save_picture(
    path: Path,
    targets: dict[str, Path],
    folders: dict[str, Path],
    results: dict[str, list[VolumeScores]],
) -> None:
    """The middle slice of the first volume that all predictions have."""
    common = set.intersection(*({volume.name for volume in found} for found in results.values()))
    if not common:
        return
    from monarch_sciml.mri.plots import save_comparison  # matplotlib: only here

    file = min(common)
    _, target = _read(targets[file], TARGETS)
    middle = len(target) // 2
    images = {name: _read(folder / file, (PREDICTION,))[1][middle] for name, folder in folders.items()}
    shape = tuple(min(image.shape[axis] for image in (target[middle], *images.values())) for axis in (0, 1))
    save_comparison(
        path,
        torch.from_numpy(center_crop(target[middle], shape)),
        {name: torch.from_numpy(center_crop(image, shape)) for name, image in images.items()},
        scores={
            name: next(volume for volume in found if volume.name == file).slices[middle]
            for name, found in results.items()
        },
    )


def _cell(mean: float, error: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# ---------------------------------------------------------------------------------------------------- files


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        found = f"the file {folder}" if folder.exists() else f"nothing at {folder}"
        raise InputError("a directory of .h5 files", found, "check the path")
    files = {path.name: path for path in sorted(folder.glob("*.h5")) if not path.name.startswith(".")}
    if not files:
        raise InputError(f".h5 files in {folder}", "none", "check the path")
    return files


def _chosen(
    config: EvaluateConfig, targets: dict[str, Path], predictions: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """The attributes of the volumes that are asked for."""
    chosen, seen = {}, set()
    for name, path in targets.items():
        attributes = _attributes(predictions[name]) if name in predictions else {}
        attributes |= _attributes(path)
        acquisition, rate = attributes.get("acquisition"), _rate(attributes)
        seen.add(f"{acquisition or 'unknown'} at {f'{rate:g}×' if rate else 'unknown rate'}")
        if config.acquisition not in (None, acquisition):
            continue
        if config.acceleration is not None and not _is_rate(attributes, config.acceleration):
            continue
        chosen[name] = attributes
    if not chosen:
        wanted = [config.acquisition or "any acquisition"]
        wanted += [] if config.acceleration is None else [f"at {config.acceleration:g}×"]
        raise InputError(f"volumes of {' '.join(wanted)}", _few(sorted(seen)), "choose one of these")
    return chosen


def _rate(attributes: Mapping[str, Any]) -> float | None:
    """The acceleration that was asked for, or else the one that is known."""
    return attributes.get("asked_acceleration", attributes.get("acceleration"))


def _is_rate(attributes: Mapping[str, Any], wanted: float) -> bool:
    rate = _rate(attributes)
    near = 1e-9 if "asked_acceleration" in attributes else NEAR
    return rate is not None and math.isclose(rate, wanted, rel_tol=near)


def _attributes(path: Path) -> dict[str, Any]:
    """``acquisition`` as text and accelerations as numbers, where the file has them."""
    with _reading(path) as file:
        found = single_attributes(file)
        return {name: kind(found[name]) for name, kind in DESCRIBED_BY.items() if name in found}


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Say of any failure inside that the file is damaged: h5py raises all kinds of exceptions."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (InputError, MemoryError):
        raise
    except Exception as error:
        found = f"{path} ({type(error).__name__}: {error})"
        raise InputError(
            "a readable HDF5 file", found, "it is damaged or incomplete: write it again"
        ) from error


def _read(path: Path, names: Sequence[str]) -> tuple[str, np.ndarray]:
    """The first of the datasets that the file has, (slices, height, width)."""
    with _reading(path) as file:
        name = next((name for name in names if name in file), None)
        if name is None:
            raise InputError(
                f"a dataset {' or '.join(names)} in {path}",
                f"only {_few(sorted(file)) or 'nothing'}",
                "add it",
            )
        dataset: Any = file[name]
        if (
            not isinstance(dataset, h5py.Dataset)
            or len(dataset.shape) != 3
            or dataset.dtype.kind not in "iuf"
        ):
            found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "a group"
            raise InputError(f"real {name} (slices, height, width) in {path}", found, "write it again")
        volume = dataset[()]
    bad = np.flatnonzero(~np.isfinite(volume).all(axis=(1, 2)))
    if len(bad):
        raise InputError(
            f"finite {name} in {path}", f"NaN or infinite values in slice {bad[0]}", "reconstruct it again"
        )
    return name, volume


def _evaluate_volume(target_path: Path, prediction_path: Path, attributes: dict[str, Any]) -> VolumeScores:
    key, target = _read(target_path, TARGETS)
    _, prediction = _read(prediction_path, (PREDICTION,))
    if len(target) != len(prediction):
        raise InputError(
            f"{len(target)} slices in {prediction_path}, as in its target",
            f"{len(prediction)}",
            "reconstruct the whole volume",
        )
    whole = target.shape[1:]
    shape = min(whole[0], prediction.shape[1]), min(whole[1], prediction.shape[2])
    try:
        target, prediction = center_crop(target, shape), center_crop(prediction, shape)
        of_volume, of_slices = scores(target, prediction), per_slice(target, prediction)
    except InputError as error:  # which does not know the file
        expected, found, remedy = error.args
        raise InputError(expected, f"{found} in {target_path.name}", remedy) from None
    return VolumeScores(
        name=target_path.name,
        acquisition=attributes.get("acquisition"),
        acceleration=attributes.get("acceleration"),
        asked_acceleration=attributes.get("asked_acceleration"),
        target=key,
        target_shape=whole,
        shape=shape,
        scores=of_volume,
        slices=of_slices,
    )


def _for_json(content: Any) -> Any:
    """Without NaN and infinity, which JSON does not know: null instead."""
    if isinstance(content, dict):
        return {name: _for_json(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_for_json(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
