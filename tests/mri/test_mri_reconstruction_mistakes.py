"""Every mistake gives one line that names the file, and leaves nothing behind."""

import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kspace_files import bart, fastmri, ismrmrd, lines, noise, npy

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import write_header
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.models import ModelConfig, SliceReconstructor
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct, reconstruct_slice
from monarch_sciml.pde import TrajectoryDataset

S, C, H, W = 3, 4, 24, 20
K = noise(S, C, H, W)
HEADER = write_header((H, W, S), (H, W))
SAMPLING = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, match: str, *paths: Path, **settings) -> None:
    """The message is one line, and every file in the folder is as before."""
    before = files(folder)
    config = {"method": "zero-filled", "sampling": SAMPLING, "maps": "low-resolution", "quiet": True}
    with pytest.raises(InputError, match=match) as error:
        reconstruct(ReconstructConfig(paths, **{"out": folder / "out", **config, **settings}))
    assert "\n" not in str(error.value)
    assert files(folder) == before


def good(folder: Path, name: str = "good.h5") -> Path:
    return fastmri(folder / name, K, HEADER)


def export(run: Path, kind: str) -> Path:
    """The part of a finished run that is needed to reconstruct."""
    config = ModelConfig(kind, (H, W), cascades=2, channels=2, pools=1)
    SliceReconstructor(config.build(), config).save_pretrained(run / "model")
    return run


def truncated(folder: Path) -> Path:
    path = good(folder, "bad.h5")
    os.truncate(path, path.stat().st_size // 2)
    return path


def without_kspace(folder: Path) -> Path:
    with h5py.File(folder / "bad.h5", "w") as file:
        file["reconstruction_rss"] = np.ones((S, H, W), np.float32)
    return folder / "bad.h5"


def late_nan(folder: Path) -> Path:
    kspace = K.copy()
    kspace[-1, 1, 2, 3] = np.nan
    return fastmri(folder / "bad.h5", kspace, HEADER)


def silent(folder: Path) -> Path:
    return fastmri(folder / "bad.h5", 0 * K, HEADER)


def no_centre(folder: Path) -> Path:
    kspace = K.copy()
    kspace[..., 1::2] = 0
    return fastmri(folder / "bad.h5", kspace, HEADER)


BAD = {
    "truncated": (truncated, r"a readable HDF5 file; found bad.h5 of \d+ bytes"),
    "no k-space": (without_kspace, "a dataset 'kspace' .*; found reconstruction_rss in bad.h5"),
    "NaN": (late_nan, "NaN or infinity in slice 2 of bad.h5"),
    "bytes in BART's other order": (
        lambda f: bart(f / "bad", K.byteswap()),
        "NaN or infinity in slice 0 of bad.cfl; .*bytes may be swapped: BART's are little-endian$",
    ),
    "silent volume": (silent, "k-space with samples; found zeros only in bad.h5; check the file"),
    "no centre": (no_centre, r"centre of at least 3 × 3 .*\(slice 0 of bad.h5\); pass coil maps \(--maps\)"),
    "mask too long": (
        lambda f: fastmri(f / "bad.h5", K, HEADER, mask=np.ones(W + 1, bool)),
        f"a mask of {W} columns, as k-space has; found {W + 1} in bad.h5",
    ),
    "mask of nothing": (
        lambda f: fastmri(f / "bad.h5", K, HEADER, mask=np.zeros(W, bool)),
        r"a mask .*that keeps something; found .*zeros only, in bad.h5",
    ),
    "magnitudes": (lambda f: npy(f / "bad.npy", np.abs(K)), "found float32 in bad.npy"),
    "absent": (lambda f: f / "bad.h5", "found nothing at .*bad.h5"),
    "target too large": (
        lambda f: fastmri(f / "bad.h5", K, HEADER, reconstruction_rss=np.ones((S, H + 2, W), np.float32)),
        r"an image of at least 26 × 20, .*\(slice 0 of bad.h5\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used(case, tmp_path):
    make, match = BAD[case]
    refused(tmp_path, match, make(tmp_path))


@pytest.mark.parametrize(
    ("maps", "match"),
    [
        (K[0, :3], r"coil maps of shape \(4, 24, 20\), .*found \(3, 24, 20\) \(slice 0 of good.h5\)"),
        (K[0, :, :, 1:], r"coil maps of shape \(4, 24, 20\), .*found \(4, 24, 19\) \(slice 0 of good.h5\)"),
        (K[:2], "maps for 1 or 3 slices, as in good.h5; found 2 in maps.npy"),
        (np.abs(K[0]), "expected coil maps of complex numbers; found float32 in maps.npy; save array"),
        (np.full_like(K[0], np.nan), "finite numbers in coil maps; found NaN or infinity in slice 0 of maps"),
        (None, "found nothing at .*maps.npy"),
    ],
)
def test_maps_of_another_scan(maps, match, tmp_path):
    if maps is not None:
        np.save(tmp_path / "maps.npy", maps)
    refused(tmp_path, match, good(tmp_path), maps=tmp_path / "maps.npy")


def test_maps_as_half_a_bart_pair(tmp_path):
    maps = bart(tmp_path / "maps", K[:1])
    maps.with_suffix(".hdr").unlink()
    refused(tmp_path, "a BART pair .*found no maps.hdr", good(tmp_path), maps=maps)


def test_a_mask_of_another_size(tmp_path):
    np.save(tmp_path / "mask.npy", np.ones(W - 1, bool))
    sampling = MaskConfig(mask_file=tmp_path / "mask.npy")
    refused(
        tmp_path,
        rf"in mask.npy; found \({W - 1},\) \(slice 0 of good.h5\)",
        good(tmp_path),
        sampling=sampling,
    )


def test_undersampled_without_a_centre_works_with_maps_given(tmp_path):
    maps = npy(tmp_path / "maps.npy", K[0] / np.linalg.norm(K[0], axis=0))
    config = ReconstructConfig((no_centre(tmp_path),), tmp_path / "out", "zero-filled", maps=maps, quiet=True)
    assert reconstruct(config)[0].acceleration == 2


@pytest.mark.parametrize("method", ["cg-sense", "msense"])
def test_a_single_coil_has_nothing_to_unfold_with(method, tmp_path):
    path = fastmri(tmp_path / "single.h5", K[:, 0], HEADER)
    run = export(tmp_path / "run", "msense") if method == "msense" else None
    match = r"at least two coils for m?SENSE; found one \(slice 0 of single.h5\)"
    refused(tmp_path, match, path, method=method, run=run)


def test_names_that_would_overwrite_each_other(tmp_path):
    refused(tmp_path, "files of different names", good(tmp_path), npy(tmp_path / "good.npy", K))


def test_the_data_are_never_overwritten(tmp_path):
    good(tmp_path, "scan.h5")  # k-space; that of the .npy would take its name
    refused(tmp_path, "another folder than that of the data", npy(tmp_path / "scan.npy", K), out=tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    refused(
        tmp_path, "another folder than that of the data", good(tmp_path, "scan.h5"), out=tmp_path / "link"
    )


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_an_output_that_cannot_be_written(name, tmp_path):
    (tmp_path / "taken").write_text("a file")
    refused(
        tmp_path, "an output folder that can be written; found .*taken", good(tmp_path), out=tmp_path / name
    )


def test_paths_that_are_none(tmp_path):
    refused(tmp_path, "a k-space file; found the folder|file names of 1 to 240 bytes", Path())
    refused(tmp_path, "a file of coil maps; found the folder", good(tmp_path), maps=Path())
    loop = tmp_path / "loop.h5"
    loop.symlink_to(loop)
    refused(tmp_path, "a k-space file; found nothing at .*loop.h5", loop)


@pytest.mark.parametrize("threads", [0, -(2**63), 5000])
def test_numbers_of_threads_that_no_machine_has(threads, tmp_path):
    refused(tmp_path, f"1 to 1024 threads; found {threads}", good(tmp_path), threads=threads)


def test_methods_and_runs_that_do_not_belong_together(tmp_path):
    path, run = good(tmp_path), export(tmp_path / "run", "unet")
    refused(tmp_path, "at least one k-space file")
    refused(tmp_path, "a training for the method varnet; found none; pass --run", path, method="varnet")
    refused(tmp_path, "no --run for the method tv; found .*run", path, method="tv", run=run)
    refused(tmp_path, "a varnet in .*found a unet; pass --method unet", path, method="varnet", run=run)
    refused(tmp_path, "an exported model in .*none", path, method="unet", run=tmp_path / "none")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "last.ckpt").write_text("interrupted")
    refused(tmp_path, "an exported model in .*begun", path, method="unet", run=tmp_path / "begun")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("model.safetensors", b"short", "a safetensors file"),
        ("model.safetensors", None, "exported weights .*no such file"),
        ("config.json", b"{", "JSON in .*config.json"),
        ("config.json", b"[1, 2]", "settings of a"),
        ("config.json", b'{"kind": "unet"}', "the settings of a model .*missing: shape"),
        ("config.json", b'{"kind": "unet", "shape": [24, 20], "channels": 3}', "weights that fit"),
    ],
)
def test_damaged_exports(name, content, match, tmp_path):
    run = export(tmp_path / "run", "unet")
    damaged = run / "model" / name
    damaged.unlink() if content is None else damaged.write_bytes(content)
    refused(tmp_path, match, good(tmp_path), method="unet", run=run)


def test_an_image_that_is_not_finite():
    with pytest.raises(InputError, match="a finite image; found NaN or infinity"):
        reconstruct_slice(torch.from_numpy(K[0]), lambda y, *_: y[0] * torch.nan, sampling=SAMPLING)


def test_an_earlier_report_survives_a_later_mistake(tmp_path):
    config = ReconstructConfig(
        (good(tmp_path),),
        tmp_path / "out",
        "zero-filled",
        sampling=SAMPLING,
        maps="low-resolution",
        quiet=True,
    )
    reconstruct(config)
    refused(tmp_path, "NaN or infinity", late_nan(tmp_path))
    assert [r["file"] for r in json.loads((tmp_path / "out" / "report.json").read_text())] == ["good.h5"]


def test_names_inside_files_lead_nowhere(tmp_path):
    """Attributes, groups, members of archives and settings that look like paths: only ``out`` is written."""
    away, inside = f"{tmp_path}/away", "../away"
    attributes = {"patient_id": inside, "acquisition": away, "norm": 1.0, "max": 1.0}
    paths = [fastmri(tmp_path / "a.h5", K, HEADER, **attributes)]
    paths.append(ismrmrd(tmp_path / "b.mrd", lines(K), header=HEADER, group="away"))
    paths.append(bart(tmp_path / "c", K))
    comments = f"# Dimensions\n{H} {W} 1 {C} 1 1 1 1 1 1 1 1 1 {S} 1 1\n# Files\n {away} {inside}\n"
    paths[-1].with_suffix(".hdr").write_text(comments)
    run = export(tmp_path / "run", "unet")
    (run / "config.json").write_text(json.dumps({"config": {"out": away, "data": inside}}))
    before = files(tmp_path)
    settings = {"sampling": SAMPLING, "maps": "low-resolution", "png": True, "nifti": True, "quiet": True}
    reconstruct(ReconstructConfig(tuple(paths), tmp_path / "out", "unet", run=run, **settings))
    after = files(tmp_path)
    assert after.items() >= before.items()
    assert {Path(name).relative_to(tmp_path).parts[0] for name in after.keys() - before.keys()} == {"out"}
    assert len(list((tmp_path / "out").glob("*.h5"))) == 3
    assert not (tmp_path.parent / "away").exists()


def test_members_of_archives_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("../away.npy", f"{tmp_path}/away.npy", "u.npy"):
            content = io.BytesIO()
            np.save(content, np.random.default_rng(0).standard_normal((2, 3, 8, 8)))
            archive.writestr(name, content.getvalue())
    assert len(TrajectoryDataset(tmp_path / "a.npz", key="u")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert not (tmp_path.parent / "away.npy").exists()
