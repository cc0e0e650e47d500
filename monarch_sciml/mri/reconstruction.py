"""Any k-space file to images: mask → coil maps → method → magnitude, one slice at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
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
    volume_seed,
)
from monarch_sciml.mri.metrics import center_crop, scores
from monarch_sciml.mri.models import KINDS, learned_transforms, load_model
from monarch_sciml.mri.operators import encoding
from monarch_sciml.mri.sensitivity import estimate_maps, root_sum_of_squares
from monarch_sciml.mri.writers import NOTICE, save_nifti, save_png, save_reconstruction
from monarch_sciml.training import check_device, is_finished, write_json

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
    method: Method = "varnet-monarch"
    """Classical: zero-filled, cg-sense, l1-wavelet, tv. Trained, with --run: the others."""
    run: Path | None = None
    """Directory of the training whose network is used."""
    sampling: MaskConfig = field(default_factory=MaskConfig)
    """For fully sampled k-space, drawn with the file name as seed; undersampled k-space keeps its own."""
    maps: Path | Literal["espirit", "low-resolution"] | None = None
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
        if (self.method in KINDS) != (self.run is not None):
            trained = self.method in KINDS
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
    retrospective: bool
    """Whether the k-space was fully sampled before."""
    data_consistency: float
    """‖A x − y‖ / ‖y‖ with the Fourier transform in A, whatever the method used; of the complex image."""
    target: Tensor | None
    """Magnitude (h, w) from fully sampled k-space: the file's own target, or root sum of squares."""


@dataclass(frozen=True)
class Report:
    """Means over the slices of one file."""

    file: str
    method: str
    format: str
    slices: int
    coils: int
    shape: tuple[int, int]
    acceleration: float
    retrospective: bool
    header: bool
    data_consistency: float
    nonunitarity: float | None
    """Of the learned transforms, ‖WᴴW − I‖/√n, mean; None where nothing is learned."""
    departure: float | None
    """Of the learned transforms from the Fourier transform, ‖W − F‖/‖F‖."""
    nmse: float | None
    psnr: float | None
    ssim: float | None
    """Slice by slice, then averaged; None where there is nothing to compare with."""
    seconds: float
    """Per slice, from file to file."""
    notice: str = NOTICE


def reconstruct(config: ReconstructConfig) -> list[Report]:
    """Reconstruct every file into ``config.out`` and return what there is to say of each.

    A file appears when all of its slices are there, or not at all. Memory does not depend on the number of
    slices. Raises ``InputError`` for files, masks, maps or models that cannot be used.
    """
    check_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    outputs = [config.out / f"{_stem(path)}.h5" for path in config.files]
    if len({*outputs}) < len(outputs):
        raise InputError(
            "files of different names", f"{sorted(_stem(p) for p in config.files)}", "rename one"
        )
    for path, output in zip(config.files, outputs, strict=True):
        if output.exists() and output.resolve() == path.resolve():
            raise InputError("another folder than that of the data", f"{config.out}", "choose another --out")
    method = _method(config)
    reports = [
        _reconstruct_file(config, path, output, method)
        for path, output in zip(config.files, outputs, strict=True)
    ]
    write_json(config.out / "report.json", [asdict(report) for report in reports])
    (config.out / "table.md").write_text(markdown_table(reports))
    return reports


@dataclass(frozen=True)
class _Method:
    """A method ready to run, and what is known of it."""

    run: Reconstruct
    maps: str = "espirit"
    nonunitarity: float | None = None
    departure: float | None = None


def _method(config: ReconstructConfig) -> _Method:
    if config.run is None:
        return _Method(METHODS[config.method])
    if not is_finished(config.run):
        raise InputError(f"a finished training in {config.run}", "no exported model", "check --run, or train")
    model, settings = load_model(config.run / "model")
    if settings.kind != config.method:
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
        return _Method(run, maps)
    with torch.no_grad():
        return _Method(
            run,
            maps,
            float(torch.stack([t.nonunitarity() for t in transforms]).mean()),
            float(torch.stack([t.departure() for t in transforms]).mean()),
        )


def _reconstruct_file(config: ReconstructConfig, path: Path, output: Path, method: _Method) -> Report:
    maps = method.maps if config.maps is None else config.maps
    results, images = [], output.with_suffix(".h5")
    with ExitStack() as stack:
        file = stack.enter_context(open_kspace(path, config.header))
        given = stack.enter_context(open_kspace(maps)) if isinstance(maps, Path) else None
        if given is not None and len(given) not in (1, len(file)):
            raise InputError(f"maps for 1 or {len(file)} slices", f"{len(given)}", "pass those of this scan")
        start = time.perf_counter()
        slices = (_one(config, file, index, method.run, given or str(maps)) for index in range(len(file)))
        first = next(slices)
        height, width = first.image.shape
        about = {"method": config.method, "acceleration": first.mask.acceleration, "source": path.name}
        write = stack.enter_context(save_reconstruction(images, len(file), (height, width), about))
        quiet = True if config.quiet else None
        bar = stack.enter_context(tqdm(total=len(file), desc=path.name, unit="slice", disable=quiet))
        for result in chain([first], slices):
            write(result.image)
            quality = {} if result.target is None else scores(result.target, result.image)
            results.append({"data_consistency": result.data_consistency, **quality})
            bar.update()
        seconds = (time.perf_counter() - start) / len(file)
        spacing = None if file.header is None else file.header.spacing
    if config.png or config.nifti:
        _pictures(config, images, spacing or (1.0, 1.0, 1.0))
    mean = {name: sum(r[name] for r in results) / len(results) for name in results[0]}
    return Report(
        file=path.name,
        method=config.method,
        format=file.format,
        slices=len(file),
        coils=file.shape[1],
        shape=(height, width),
        acceleration=first.mask.acceleration,
        retrospective=first.retrospective,
        header=file.header is not None,
        data_consistency=mean["data_consistency"],
        nonunitarity=method.nonunitarity,
        departure=method.departure,
        nmse=mean.get("nmse"),
        psnr=mean.get("psnr"),
        ssim=mean.get("ssim"),
        seconds=seconds,
    )


def _one(
    config: ReconstructConfig, file: KSpaceFile, index: int, method: Reconstruct, maps: KSpaceFile | str
) -> Reconstructed:
    """Slice ``index`` of a file, with what the file says of it."""
    if not isinstance(maps, str):
        maps_here: Tensor | str = torch.from_numpy(maps[index if len(maps) > 1 else 0])
    else:
        maps_here = maps
    mask, header, target = file.mask, file.header, file.target(index)
    known = None
    if mask is not None and not mask.all():
        pattern = torch.from_numpy(mask)[None]
        known = Mask(pattern, (file.shape[2], find_acs(pattern)[1]))
    return reconstruct_slice(
        torch.from_numpy(file[index]),
        method,
        sampling=config.sampling,
        seed=volume_seed(file.path),
        maps=maps_here,
        mask=known,
        padding=None
        if header is None
        else (max(header.padding[0], 0), min(header.padding[1], file.shape[3])),
        size=None if header is None else (header.recon[0], header.recon[1]),
        target=None if target is None else torch.from_numpy(target),
    )


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
        padding: (left, right), the columns that were measured.
        size: to crop the image to.
        target: to compare with; by default the root sum of squares of fully sampled k-space.

    Raises:
        InputError: maps, mask and k-space that do not fit together, or no centre to calibrate with.
    """
    found = mask_from_kspace(kspace) if mask is None else mask
    whole = mask is None and _is_whole(found.pattern)
    shape = (kspace.shape[-2], kspace.shape[-1])
    if whole and sampling is not None:
        found = draw_mask(sampling, shape, seed)
    y = apply_mask(kspace, found, padding)
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
    consistency = float((apply_mask(A(complete), found, padding) - y).norm() / y.norm().clamp_min(1e-30))
    size = shape if size is None else (min(size[0], shape[0]), min(size[1], shape[1]))
    if whole and target is None:
        target = root_sum_of_squares(FourierTransform(tuple(kspace.shape), inverse=True)(kspace))
        target = center_crop(target, size)
    if target is not None:
        size = (target.shape[-2], target.shape[-1])
    return Reconstructed(center_crop(x.abs(), size), found, whole, consistency, target if whole else None)


def _is_whole(pattern: Tensor) -> bool:
    """All points, or all columns but zero-padded edges."""
    if pattern.shape[0] > 1:
        return bool(pattern.all())
    kept = pattern[0].nonzero().squeeze(1)
    return len(kept) == int(kept[-1] - kept[0]) + 1 and 2 * len(kept) > pattern.shape[1]


def _stem(path: Path) -> str:
    """The name of the output: that of the input without its ending."""
    return path.name.removesuffix(path.suffix)


def markdown_table(reports: Sequence[Report]) -> str:
    """One row for each file."""
    lines = [
        "| file | method | slices | coils | acceleration | NMSE | PSNR | SSIM | ‖Ax − y‖/‖y‖ | s/slice |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in reports:
        cells = ("", "", "")
        if r.nmse is not None and r.psnr is not None and r.ssim is not None:
            cells = (f"{r.nmse:.4f}", f"{r.psnr:.2f}", f"{r.ssim:.3f}")
        lines.append(
            f"| {r.file} | {r.method} | {r.slices} | {r.coils} | {r.acceleration:.2f} | {' | '.join(cells)} "
            f"| {r.data_consistency:.3f} | {r.seconds:.2f} |"
        )
    lines.append("")
    first = reports[0]
    if first.nonunitarity is not None:
        lines.append(
            f"Learned transforms: departure from the Fourier transform {first.departure:.3f}, "
            f"‖WᴴW − I‖/√n {first.nonunitarity:.3f}.  "
        )
    if any(r.retrospective for r in reports):
        lines.append("Fully sampled k-space was undersampled here; scores are means over slices.  ")
    if not all(r.header for r in reports):
        lines.append("No header: the whole field of view is kept, and every column counts as measured.  ")
    return "\n".join([*lines, f"{NOTICE}."]) + "\n"
