"""Any k-space file to images: mask → coil maps → method → magnitude, one slice at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import h5py
import torch
from torch import Tensor
from tqdm import tqdm

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.classical import METHODS
from monarch_sciml.mri.formats import KSpaceFile, open_kspace
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    apply_mask,
    draw_mask,
    find_acs,
    mask_from_kspace,
    measured_columns,
    volume_seed,
    within,
)
from monarch_sciml.mri.metrics import center_crop, scores
from monarch_sciml.mri.models import KINDS, learned_transforms, load_model
from monarch_sciml.mri.operators import encoding
from monarch_sciml.mri.reports import Report, markdown_table, write_reports
from monarch_sciml.mri.sensitivity import estimate_maps, root_sum_of_squares
from monarch_sciml.mri.writers import save_nifti, save_png, save_reconstruction
from monarch_sciml.training import check_device, is_finished

__all__ = [
    "ReconstructConfig",
    "Reconstructed",
    "Report",
    "markdown_table",
    "reconstruct",
    "reconstruct_slice",
]

Method = Literal[
    "zero-filled",
    "cg-sense",
    "l1-wavelet",
    "tv",
    "unet",
    "msense",
    "varnet",
    "varnet-monarch",
    "modl",
    "modl-monarch",
]
# (masked k-space (C, H, W), pattern, maps) → image (H, W)
Reconstruct = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruct k-space: fastMRI, ISMRMRD, BART or .npy; undersampled, or fully sampled and then masked."""

    files: tuple[Path, ...]
    """The files; BART's by either name."""
    out: Path
    """Folder for one HDF5 file with `reconstruction` for each, report.json and table.md."""
    method: Method | None = None
    """Classical: zero-filled, cg-sense, l1-wavelet, tv. The others are trained; given --run, its own."""
    run: Path | None = None
    """Directory of the training whose network is used."""
    sampling: MaskConfig = field(default_factory=MaskConfig)
    """For fully sampled k-space, drawn with the file name, ending in .h5, as seed; undersampled k-space keeps
    its own."""
    maps: Literal["espirit", "low-resolution"] | Path | None = None
    """Coil maps (C, H, W) or (S, C, H, W), .npy or BART .cfl, or how to estimate them from the centre of
    k-space; by default as the network was trained, or ESPIRiT."""
    png: bool = False
    """Also save every slice as PNG."""
    nifti: bool = False
    """Also save each volume as NIfTI (.nii.gz)."""
    header: bool = True
    """Use the file's header: the size to crop to, and columns that were not measured."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks run."""
    threads: int | None = None
    """CPU threads; torch decides by default."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("at least one k-space file", "none", "name the files")
        if self.method is None and self.run is None:
            raise InputError("a --method, or the --run of a training", "neither", "try --method cg-sense")
        trained = self.method is None or self.method in KINDS
        if trained != (self.run is not None):
            raise InputError(
                f"{'the directory of a training' if trained else 'no --run'} for the method {self.method}",
                "none" if trained else f"{self.run}",
                "pass --run DIR" if trained else "leave --run out, or choose a trained method",
            )


@dataclass(frozen=True)
class Reconstructed:
    """One slice: the image and how well it explains the data."""

    image: Tensor
    """Magnitude (h, w), real."""
    mask: Mask
    """What was used: without columns that nobody measured."""
    retrospective: bool
    """Whether the k-space was fully sampled before."""
    data_consistency: float
    """‖A x − y‖ / ‖y‖ with the Fourier transform in A, whatever the method used; of the complex image."""
    target: Tensor | None
    """Magnitude (h, w) from fully sampled k-space: the file's own target, or root sum of squares."""


def reconstruct(config: ReconstructConfig) -> list[Report]:
    """Reconstruct every file into ``config.out`` and return what there is to say of each.

    A file appears when all of its slices are there, or not at all. Memory does not depend on the number of
    slices. Raises ``InputError`` for files, masks, maps or models that cannot be used; it names the file.
    """
    check_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    outputs = [config.out / f"{_stem(path)}.h5" for path in config.files]
    if len({*outputs}) < len(outputs):
        raise InputError(
            "files of different names", f"{sorted(_stem(p) for p in config.files)}", "rename one"
        )
    # k-space of that name may lie there, even if of another format
    if config.out.resolve() in {path.resolve().parent for path in config.files}:
        raise InputError("another folder than that of the data", f"{config.out}", "choose another --out")
    method = _method(config)
    try:
        reports = [
            _reconstruct_file(config, path, output, method)
            for path, output in zip(config.files, outputs, strict=True)
        ]
        write_reports(config.out, reports)
    except OSError as error:
        raise InputError("an output folder that can be written", str(error), "choose another --out") from None
    return reports


@dataclass(frozen=True)
class _Method:
    """A method ready to run, and what is known of it."""

    name: str
    run: Reconstruct
    maps: str = "espirit"
    nonunitarity: float | None = None
    departure: float | None = None


def _method(config: ReconstructConfig) -> _Method:
    if config.run is None:
        name = str(config.method)
        return _Method(name, METHODS[name])
    if not is_finished(config.run):
        raise InputError(f"a finished training in {config.run}", "no exported model", "check --run, or train")
    model, settings = load_model(config.run / "model")
    if config.method not in (None, settings.kind):
        raise InputError(
            f"a {config.method} in {config.run}", f"a {settings.kind}", f"pass --method {settings.kind}"
        )
    model.to(config.device)

    def run(kspace: Tensor, pattern: Tensor, maps: Tensor) -> Tensor:
        batch = (t[None].to(config.device) for t in (kspace, pattern, maps))
        with torch.inference_mode():
            return model(*batch)[0].cpu()

    maps = "espirit" if settings.maps == "espirit" else "low-resolution"
    transforms = learned_transforms(model)
    if not transforms:
        return _Method(settings.kind, run, maps)
    with torch.no_grad():
        return _Method(
            settings.kind,
            run,
            maps,
            float(torch.stack([t.nonunitarity() for t in transforms]).mean()),
            float(torch.stack([t.departure() for t in transforms]).mean()),
        )


def _reconstruct_file(config: ReconstructConfig, path: Path, output: Path, method: _Method) -> Report:
    maps = method.maps if config.maps is None else config.maps
    results: list[dict[str, float]] = []
    with ExitStack() as stack:
        file = stack.enter_context(open_kspace(path, config.header))
        given = stack.enter_context(open_kspace(maps)) if isinstance(maps, Path) else None
        if given is not None and len(given) not in (1, len(file)):
            expected, found = f"maps for 1 or {len(file)} slices, as in {path.name}", f"{len(given)}"
            raise InputError(expected, f"{found} in {given.path.name}", "pass those of this scan")
        start = time.perf_counter()
        slices = _slices(config, file, method.run, given or str(maps))
        first = next(slices)
        height, width = first[0].image.shape
        about = {"method": method.name, "acceleration": first[0].mask.acceleration, "source": path.name}
        write = stack.enter_context(save_reconstruction(output, len(file), (height, width), about))
        quiet = True if config.quiet else None
        bar = stack.enter_context(tqdm(total=len(file), desc=path.name, unit="slice", disable=quiet))
        for result, figures in chain([first], slices):
            write(result.image)
            results.append(figures)
            bar.update()
        seconds = (time.perf_counter() - start) / len(file)
        spacing = _spacing(file)
    if config.png or config.nifti:
        _pictures(config, output, spacing)
    # slices without a target, such as those that were undersampled before, have no scores
    listed = {name: [r[name] for r in results if name in r] for r in results for name in r}
    mean = {name: sum(values) / len(values) for name, values in listed.items()}
    return Report(
        file=path.name,
        method=method.name,
        format=file.format,
        slices=len(file),
        coils=file.shape[1],
        shape=(height, width),
        acceleration=first[0].mask.acceleration,
        retrospective=first[0].retrospective,
        header=file.header is not None,
        data_consistency=mean["data_consistency"],
        nonunitarity=method.nonunitarity,
        departure=method.departure,
        nmse=mean.get("nmse"),
        psnr=mean.get("psnr"),
        ssim=mean.get("ssim"),
        seconds=seconds,
    )


def _slices(
    config: ReconstructConfig, file: KSpaceFile, method: Reconstruct, maps: KSpaceFile | str
) -> Iterator[tuple[Reconstructed, dict[str, float]]]:
    """Slice after slice of a file, with what the file says of it; errors name both."""
    header, size, padding, known = file.header, None, None, None
    if header is not None:
        size = (header.recon[0], header.recon[1])
        padding = (max(header.padding[0], 0), min(header.padding[1], file.shape[3]))
    if file.mask is not None and not file.mask.all():
        pattern = torch.from_numpy(file.mask)[None]
        known = Mask(pattern, (file.shape[2], find_acs(pattern)[1]))
    # whatever the format, the name that fastMRI's file of this volume would have
    seed = volume_seed(f"{_stem(file.path)}.h5")
    for index in range(len(file)):
        kspace, target = torch.from_numpy(file[index]), file.target(index)
        here = maps if isinstance(maps, str) else torch.from_numpy(maps[index if len(maps) > 1 else 0])
        try:
            result = reconstruct_slice(
                kspace,
                method,
                sampling=config.sampling,
                seed=seed,
                maps=here,
                mask=known,
                padding=padding,
                size=size,
                target=None if target is None else torch.from_numpy(target),
            )
            quality = {} if result.target is None else scores(result.target, result.image)
        except InputError as error:
            expected, found, remedy = error.args
            raise InputError(expected, f"{found} (slice {index} of {file.path.name})", remedy) from error
        yield result, {"data_consistency": result.data_consistency, **quality}


def _spacing(file: KSpaceFile) -> tuple[float, float, float]:
    """Size of a voxel in mm, 1 where it is not known."""
    header = file.header
    if header is None or header.field_of_view is None:
        return 1.0, 1.0, 1.0
    # images are never interpolated to a finer matrix than was measured
    points = (min(header.recon[0], file.shape[2]), min(header.recon[1], file.shape[3]), header.recon[2])
    x, y, z = (length / n for length, n in zip(header.field_of_view, points, strict=True))
    return x, y, z


def _pictures(config: ReconstructConfig, path: Path, spacing: tuple[float, float, float]) -> None:
    """PNG and NIfTI, out of the finished file: what failed before it was finished leaves none."""
    with h5py.File(path, "r") as file:
        images = cast(h5py.Dataset, file["reconstruction"])
        if config.png:
            for index, image in enumerate(images):
                save_png(path.parent / "png" / f"{path.stem}_{index:03d}.png", image)
        if config.nifti:
            save_nifti(path.with_suffix(".nii.gz"), images, spacing)


def reconstruct_slice(
    kspace: Tensor,
    method: Reconstruct,
    *,
    sampling: MaskConfig | None = None,
    seed: int | tuple[int, ...] = 0,
    maps: Tensor | str = "espirit",
    mask: Mask | None = None,
    padding: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    target: Tensor | None = None,
) -> Reconstructed:
    """Reconstruct one slice of k-space (C, H, W).

    Args:
        kspace: fully sampled: masked as ``sampling`` says; undersampled: as it is, with the mask given or
            found from its zeros.
        method: (masked k-space, pattern, maps) → image (H, W), such as an entry of ``METHODS``.
        sampling, seed: the mask for fully sampled k-space.
        maps: (C, H, W), or how to estimate them from the centre of the masked k-space.
        mask: of k-space that is undersampled, if known.
        padding: (left, right), the columns that were measured; of fully sampled k-space, those of zeros at
            the edges are left out in any case.
        size: to crop the image to.
        target: to compare with; by default the root sum of squares of fully sampled k-space.

    Raises:
        InputError: maps, mask and k-space that do not fit together, or no centre to calibrate with.
    """
    found = mask_from_kspace(kspace) if mask is None else mask
    columns = measured_columns(found) if mask is None else None
    whole = columns is not None
    shape = (kspace.shape[-2], kspace.shape[-1])
    if whole and sampling is not None:
        found = draw_mask(sampling, shape, seed)
    for edges in (columns, padding):
        found = within(found, edges or (0, shape[1]))
    y = apply_mask(kspace, found)
    if isinstance(maps, str):
        maps = estimate_maps(y, found.acs, maps)
    elif maps.shape != kspace.shape:
        raise InputError(
            f"coil maps of shape {tuple(kspace.shape)}, as k-space",
            f"{tuple(maps.shape)}",
            "pass the maps of this scan, or leave --maps out",
        )
    x = method(y, found.pattern, maps)
    if not torch.isfinite(x).all():
        raise InputError("a finite image", "NaN or infinity", "check the data, or lower the regularisation")
    A = encoding(maps, found.pattern)
    # a method of magnitudes has no phase: it is lent that of the zero-filled image
    complete = x if x.is_complex() else x * torch.exp(1j * A.H(y).angle())
    consistency = float((A(complete) - y).norm() / y.norm().clamp_min(1e-30))
    size = shape if size is None else (min(size[0], shape[0]), min(size[1], shape[1]))
    if whole and target is None:
        target = root_sum_of_squares(FourierTransform(tuple(kspace.shape), inverse=True)(kspace))
        target = center_crop(target, size)
    if target is not None:
        size = (target.shape[-2], target.shape[-1])
    return Reconstructed(center_crop(x.abs(), size), found, whole, consistency, target if whole else None)


def _stem(path: Path) -> str:
    """The name of the output: that of the input without its ending."""
    return path.name.removesuffix(path.suffix)
