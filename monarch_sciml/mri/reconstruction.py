"""Any k-space file to images: mask → coil maps → method → magnitude, one slice at a time."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed import is_initialized
from tqdm import tqdm

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.mri.formats import KSpaceFile, open_kspace
from monarch_sciml.mri.given_maps import GivenMaps
from monarch_sciml.mri.inputs import strong_edges
from monarch_sciml.mri.masks import Mask, MaskConfig, MaskOptions, find_acs, volume_seed
from monarch_sciml.mri.methods import REGULARISED, Method, MethodName, classical_method, trained_method
from monarch_sciml.mri.metrics import scores
from monarch_sciml.mri.models import KINDS
from monarch_sciml.mri.names import check_names, identity, shown, stem
from monarch_sciml.mri.reports import Report, as_attributes, markdown_table, read_report, write_reports
from monarch_sciml.mri.sharing import Failed, all_of, sharing
from monarch_sciml.mri.slices import Reconstructed, Result, reconstruct_slice, with_blanks
from monarch_sciml.mri.writers import save_pictures, save_reconstruction
from monarch_sciml.training import check_choices, check_device, use_paths
from monarch_sciml.training.distributed import refuse, together, world

__all__ = [
    "ReconstructConfig",
    "Reconstructed",
    "Report",
    "markdown_table",
    "reconstruct",
    "reconstruct_slice",
]

Work = tuple[Path, Path, Mapping[str, Any]]
"""Input, output, and what the output is made with."""

MOST_WEIGHT, MOST_ITERATIONS = 1e6, 100_000


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruct k-space: fastMRI, ISMRMRD, BART or .npy; undersampled, or fully sampled and then masked."""

    files: tuple[Path, ...]
    """The files; BART's by either name."""
    out: Path
    """Folder for one HDF5 file with `reconstruction` for each, report.json and table.md; finished files of
    the same settings are kept."""
    method: MethodName | None = None
    """Classical: zero-filled, cg-sense, l1-wavelet, tv. The others are trained; given --run, its own."""
    run: Path | None = None
    """Directory of a training, or a folder with an exported model."""
    sampling: MaskOptions = field(default_factory=MaskOptions)
    """For fully sampled k-space, drawn with the file name, ending in .h5, as seed; undersampled k-space keeps
    its own. What is left out is as in the training of --run, or else
    --mask random --accelerations 4 --center-fractions 0.08."""
    maps: Literal["espirit", "low-resolution"] | Path | None = None
    """Coil maps (C, H, W) or (S, C, H, W), .npy or BART .cfl, with Σ|S|² = 1 where a coil sees anything
    (others are scaled), or how to estimate them from the centre of k-space; by default as the network was
    trained, or ESPIRiT."""
    regularisation: float | None = None
    """λ of cg-sense (by default 0.005), l1-wavelet, tv (0.001), where the zero-filled image is 1 bright."""
    iterations: int | None = None
    """Of cg-sense (by default 20), l1-wavelet (60), tv (20)."""
    png: bool = False
    """Also save every slice as PNG."""
    nifti: bool = False
    """Also save each volume as NIfTI (.nii.gz)."""
    header: bool = True
    """The file's header is used, for the size to crop to and the columns that were measured, unless
    --no-header is given."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where networks run."""
    threads: int | None = None
    """CPU threads; torch decides by default."""
    quiet: bool = False
    """No progress bar, no list of files."""

    def __post_init__(self) -> None:
        files = (self.files,) if isinstance(self.files, str | Path) else self.files
        object.__setattr__(self, "files", tuple(map(Path, files)))
        use_paths(self, "out", "run", *(["maps"] if self.maps not in ("espirit", "low-resolution") else []))
        check_choices(self)
        if not self.files:
            raise InputError("at least one k-space file", "none", "name the files")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise InputError("1 to 1024 threads", f"{self.threads}", "change --threads")
        if self.method is None and self.run is None:
            raise InputError("a --method, or the --run of a training", "neither", "try --method cg-sense")
        trained = self.method is None or self.method in KINDS
        if trained != (self.run is not None):
            raise InputError(
                f"{'the directory of a training' if trained else 'no --run'} for the method {self.method}",
                "none" if trained else f"{self.run}",
                "pass --run DIR" if trained else "leave --run out, or choose a trained method",
            )
        if not trained:
            self.sampling.filled(MaskConfig())  # refuses what does not go together
        tuned = self.regularisation is not None or self.iterations is not None
        if tuned and self.method not in REGULARISED:
            remedy = "leave --regularisation and --iterations out"
            raise InputError(f"one of {', '.join(REGULARISED)} to tune", f"{self.method}", remedy)
        if self.regularisation is not None and not 0 <= self.regularisation <= MOST_WEIGHT:
            found, remedy = f"{self.regularisation}", "change --regularisation"
            raise InputError(f"a regularisation from 0 to {MOST_WEIGHT:g}", found, remedy)
        if self.iterations is not None and not 1 <= self.iterations <= MOST_ITERATIONS:
            found, remedy = f"{self.iterations}", "change --iterations"
            raise InputError(f"1 to {MOST_ITERATIONS} iterations", found, remedy)


def reconstruct(config: ReconstructConfig, warn: Callable[[str], object] = warnings.warn) -> list[Report]:
    """Reconstruct every file into ``config.out`` and return what there is to say of each.

    A file appears when all of its slices are there, or not at all; it says by which settings it was made of
    which input. A rerun keeps what it would make again, so that a killed one continues where it stopped;
    files whose input has changed are made anew. Memory does not depend on the number of slices.

    A file that cannot be used does not keep the others from being done and reported; the error comes last and
    lists all that failed. Slices of zeros in a volume become zero images without scores.

    Several processes (``torchrun``, ``srun``) share the files: process r of n takes the r-th, the (r + n)-th
    … of them, and waits for the others. The first writes report.json and table.md of all and says what
    failed; the others return an empty list. Processes that know their ``RANK`` but no ``MASTER_ADDR`` do not
    wait: there the last one writes. If one died, a rerun, by any number of them, does what is missing.

    ``warn`` is told, once, of k-space whose zero frequency seems to be in a corner, of masks unlike those
    that a network was trained under, of maps that had to be normalised, of slices of zeros, and of samples
    that are left out because the header calls them padding.

    Raises:
        InputError: files, masks, maps or models that cannot be used, which it names; outputs of other
            settings in the way; a folder that cannot be written.
    """
    with sharing() as gather:
        method, work = together(_prepare, config)
        rank, size = world()
        failed = gather(_reconstruct_files(config, work[rank::size], method, _once(warn)))
        reports = together(_report, config, work, failed)
        refuse(all_of(failed, len(work)) if failed else None)
        return reports


def _prepare(config: ReconstructConfig) -> tuple[Method, list[Work]]:
    """The method and what there is to do with it; refuses before hours of work what is in the way."""
    check_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    outputs = check_names(config.files, config.out)
    if config.run is None:
        method = classical_method(str(config.method), config.regularisation, config.iterations)
    else:
        method = trained_method(config.run, config.method, config.device)
    settings = _settings(config, method)
    every = [settings | {"input": identity(path)} for path in config.files]
    work: list[Work] = [*zip(config.files, outputs, every, strict=True)]
    try:
        for _, output, expected in work:
            read_report(output, expected)
    except OSError as error:
        raise _unwritable(error) from None
    return method, work


def _unwritable(error: OSError) -> InputError:
    remedy = "free the disk, or choose another --out"
    return InputError("an output folder that can be written", str(error), remedy)


def _reconstruct_files(
    config: ReconstructConfig, work: Sequence[Work], method: Method, warn: Callable[[str], object]
) -> Failed:
    """Do what is not done yet; the files that failed, and why."""
    failed = {}
    for i, (path, output, settings) in enumerate(work):
        try:
            if read_report(output, settings) is None:
                _reconstruct_file(config, path, output, method, settings, warn)
            save_pictures(output, png=config.png, nifti=config.nifti)
        except InputError as error:
            failed[path] = error
        except OSError as error:  # of the disk, which the rest needs too
            return failed | dict.fromkeys((path for path, *_ in work[i:]), _unwritable(error))
    return failed


def _report(config: ReconstructConfig, work: Sequence[Work], failed: Failed) -> list[Report]:
    """report.json and table.md of all that is finished, by one process, when no other is busy any more."""
    if is_initialized() and world()[0]:
        return []
    try:
        reports = {path: read_report(output, expected) for path, output, expected in work}
        finished = [report for report in reports.values() if report is not None]
        if not {path for path, report in reports.items() if report is None} <= failed.keys():
            return []
        if finished:
            write_reports(config.out, finished)
    except OSError as error:
        raise _unwritable(error) from None
    return finished


def _sampling(config: ReconstructConfig, method: Method) -> MaskConfig:
    """The masks of fully sampled files: as they were asked for, else as in the training."""
    return config.sampling.filled(method.sampling or MaskConfig())


def _once(warn: Callable[[str], object]) -> Callable[[str], object]:
    said: set[str] = set()

    def tell(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    return tell


def _settings(config: ReconstructConfig, method: Method) -> dict[str, Any]:
    """What the images depend on besides the input, in the types of JSON."""
    sampling = asdict(_sampling(config, method))
    if config.sampling.mask_file is not None:
        sampling = {"mask_file": identity(config.sampling.mask_file)}
    maps = identity(config.maps) if isinstance(config.maps, Path) else config.maps or method.maps
    settings = {"method": method.name, "network": method.network, "header": config.header}
    return json.loads(json.dumps({**settings, "maps": maps, **sampling}))


def _reconstruct_file(
    config: ReconstructConfig,
    path: Path,
    output: Path,
    method: Method,
    settings: Mapping[str, Any],
    warn: Callable[[str], object],
) -> None:
    maps = method.maps if config.maps is None else config.maps
    results: list[dict[str, float]] = []
    with ExitStack() as stack:
        file = stack.enter_context(open_kspace(path, config.header))
        given = stack.enter_context(GivenMaps(maps, warn)) if isinstance(maps, Path) else None
        if given is not None and len(given) not in (1, len(file)):
            expected, found = f"maps for 1 or {len(file)} slices, as in {path.name}", f"{len(given)}"
            raise InputError(expected, f"{found} in {given.file.path.name}", "pass those of this scan")
        start = time.perf_counter()
        name = shown(path)
        slices = with_blanks(name, _slices(config, file, method, given or str(maps), warn), warn)
        first = next(slices)
        mask = first[0].mask
        chosen = config.sampling.mask is not None
        if doubt := method.doubt(mask, chosen):
            warn(doubt)
        height, width = first[0].image.shape
        about: dict[str, Any] = {"method": method.name, "acceleration": mask.acceleration}
        about |= {"source": name, "spacing": _spacing(file), "version": __version__}
        write = stack.enter_context(save_reconstruction(output, len(file), (height, width), about))
        quiet = True if config.quiet else None
        bar = stack.enter_context(tqdm(total=len(file), desc=path.name, unit="slice", disable=quiet))
        for result, figures in chain([first], slices):
            write(result.image)
            results.append(figures)
            bar.update()
        # slices without a target, such as those of fastMRI's test files, have no scores
        listed = {name: [r[name] for r in results if name in r] for r in results for name in r}
        mean = {name: sum(values) / len(values) for name, values in listed.items()}
        report = Report(
            file=name,
            method=method.name,
            format=file.format,
            slices=len(file),
            coils=file.shape[1],
            shape=(height, width),
            acceleration=mask.acceleration,
            retrospective=first[0].retrospective,
            header=file.header is not None,
            data_consistency=mean["data_consistency"],
            nonunitarity=method.nonunitarity,
            departure=method.departure,
            nmse=mean.get("nmse"),
            psnr=mean.get("psnr"),
            ssim=mean.get("ssim"),
            seconds=(time.perf_counter() - start) / len(file),
            **_about_mask(mask, method),
        )
        about |= as_attributes(report, settings)


def _about_mask(mask: Mask, method: Method) -> dict[str, Any]:
    """What a report says of the mask: the numbers asked for, or found where nobody asked."""
    drawn, known = mask.drawn, method.sampling
    about = {"mask": "as acquired", "center_fraction": mask.center_fraction}
    if drawn is not None and drawn.mask_file is not None:
        about["mask"] = shown(drawn.mask_file)
    elif drawn is not None:
        about = {"mask": drawn.mask, "center_fraction": drawn.center_fractions[0]}
        about["asked_acceleration"] = drawn.accelerations[0]
    return about | {"trained_under": None if known is None else str(known)}


def _slices(
    config: ReconstructConfig,
    file: KSpaceFile,
    method: Method,
    maps: GivenMaps | str,
    warn: Callable[[str], object],
) -> Iterator[Result | None]:
    """Slice after slice of a file, with what the file says of it, None for one of zeros; errors name both."""
    header, size, padding, known = file.header, None, None, None
    if header is not None:
        size, padding = header.image_shape(file.shape[2:]), header.measured(file.shape[3])
    if file.mask is not None and not file.mask.all():
        pattern = torch.from_numpy(file.mask)[None]
        known = Mask(pattern, (file.shape[2], find_acs(pattern)[1]))
    # whatever the format, the name that fastMRI's file of this volume would have
    seed = volume_seed(f"{stem(file.path)}.h5")
    sampling, first = _sampling(config, method), True
    for index in range(len(file)):
        kspace, target = torch.from_numpy(file[index]), file.target(index)
        if not kspace.any():
            yield None
            continue
        if first and (axes := strong_edges(kspace, padding)):
            warn(
                f"k-space of {shown(file.path)} is strongest at the edges of its {' and '.join(axes)}: "
                "zero frequency belongs in the middle, as after numpy.fft.fftshift"
            )
        first = False
        if padding is not None and (kspace[..., : padding[0]].any() or kspace[..., padding[1] :].any()):
            warn(_left_out(file, padding))
        here = maps if isinstance(maps, str) else maps.read(index, file.shape[1:])
        try:
            result = reconstruct_slice(
                kspace,
                method.run,
                sampling=sampling,
                seed=seed,
                maps=here,
                mask=known,
                padding=padding,
                size=size,
                target=None if target is None else torch.from_numpy(target),
            )
            # of a target of zeros there are none
            image, truth = result.image, result.target
            quality = scores(truth, image) if truth is not None and truth.any() else {}
        except InputError as error:
            expected, found, remedy = error.args
            raise InputError(expected, f"{found} (slice {index} of {file.path.name})", remedy) from error
        yield result, {"data_consistency": result.data_consistency, **quality}


def _left_out(file: KSpaceFile, padding: tuple[int, int]) -> str:
    measured = f"outside {padding[0]} to {padding[1] - 1} of {shown(file.path)}"
    why = "are left out, as its header calls them padding: if that is wrong, pass --no-header"
    return f"columns that are not zero {measured} {why} (header=False in Python)"


def _spacing(file: KSpaceFile) -> tuple[float, float, float]:
    """Size of a voxel in mm, 1 where it is not known."""
    known = None if file.header is None else file.header.voxel(file.shape[2:])
    return known or (1.0, 1.0, 1.0)
