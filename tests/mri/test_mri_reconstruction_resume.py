"""Reconstructions that were interrupted continue, are shared among processes, and never replace others."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import fastmri, noise, npy

from monarch_sciml.errors import InputError
from monarch_sciml.mri import reconstruction
from monarch_sciml.mri.header import write_header
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.models import ModelConfig, SliceReconstructor
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct

S, C, H, W = 2, 3, 24, 20
K = noise(S, C, H, W)
HEADER = write_header((H, W, S), (H, W))
COLUMNS = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))


@pytest.fixture
def files(tmp_path) -> list[Path]:
    (tmp_path / "data").mkdir()
    return [fastmri(tmp_path / "data" / f"{n}.h5", noise(S, C, H, W, seed=n), HEADER) for n in range(5)]


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """Names of the files that are reconstructed during the test."""
    original, names = reconstruction._reconstruct_file, []

    def noted(config, path, *more):
        names.append(path.name)
        return original(config, path, *more)

    monkeypatch.setattr(reconstruction, "_reconstruct_file", noted)
    return names


def config(files: list[Path], **changes) -> ReconstructConfig:
    settings = {"method": "zero-filled", "sampling": COLUMNS, "maps": "low-resolution", "quiet": True}
    return ReconstructConfig(tuple(files), **{"out": files[0].parents[1] / "out", **settings, **changes})


def images(out: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(out.glob("*.h5")):
        with h5py.File(path) as file:
            found[path.name] = file["reconstruction"][()].tobytes()
    return found


def test_a_rerun_keeps_what_is_finished(files, done):
    first = reconstruct(config(files))
    table = (files[0].parents[1] / "out" / "table.md").read_text()
    assert reconstruct(config(files)) == first  # timings too: nothing was done
    assert done == [path.name for path in files]
    assert (files[0].parents[1] / "out" / "table.md").read_text() == table


def test_an_interrupted_run_continues_and_its_table_covers_all(files, done, monkeypatch, tmp_path):
    whole = reconstruct(config(files, out=tmp_path / "whole"))
    done.clear()
    original, of = reconstruction.reconstruct_slice, []

    def interrupted(*arguments, **settings):
        of.append(done[-1])
        if of.count("3.h5") == 2:  # its first slice is written already
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "reconstruct_slice", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(config(files))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.h5", "1.h5", "2.h5"]
    reports = reconstruct(config(files))
    assert done == ["0.h5", "1.h5", "2.h5", "3.h5", "3.h5", "4.h5"]
    assert [r.data_consistency for r in reports] == [r.data_consistency for r in whole]
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [r["file"] for r in saved] == [path.name for path in files]


def test_an_input_that_changed_is_made_anew(files, done, tmp_path):
    reconstruct(config(files))
    before = images(tmp_path / "out")
    done.clear()
    fastmri(files[1], noise(S, C, H, W, seed=99), HEADER)
    reconstruct(config(files))
    assert done == ["1.h5"]
    after = images(tmp_path / "out")
    assert [name for name in after if after[name] != before[name]] == ["1.h5"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"method": "cg-sense"},
            "made with method=cg-sense as .*0.h5; found method=zero-filled in it; choose",
        ),
        (
            {"sampling": MaskConfig()},
            r"accelerations=\[4.0\], center_fractions=\[0.08\] .*found accelerations",
        ),
        ({"header": False}, "header=False .*found header=True"),
        ({"maps": "espirit"}, "maps=espirit .*found maps=low-resolution"),
    ],
)
def test_outputs_of_other_settings_are_left_alone(files, done, tmp_path, changes, match):
    reconstruct(config(files[:1]))
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match=match):
        reconstruct(config([files[1], files[0]], **changes))
    assert done == ["0.h5"]  # refused before any work
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"not HDF5", None])
def test_files_of_another_origin_are_left_alone(files, tmp_path, content):
    path = tmp_path / "out" / "0.h5"
    path.parent.mkdir()
    if content is None:
        with h5py.File(path, "w") as file:
            file["reconstruction"] = np.ones((S, H, W))
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"found a file of another origin; choose another --out, or delete"):
        reconstruct(config(files))
    assert path.read_bytes() == before


def test_other_weights_and_other_maps_are_other_settings(files, tmp_path):
    settings = ModelConfig("unet", (H, W), channels=2, pools=1)
    for seed in range(2):
        reconstruction.torch.manual_seed(seed)
        SliceReconstructor(settings.build(), settings).save_pretrained(tmp_path / "run")
        network = config(files[:1], method=None, run=tmp_path / "run", out=tmp_path / "a")
        if seed == 0:
            reconstruct(network)
    with pytest.raises(InputError, match=r"made with network=[0-9a-f]{16} .*found network=[0-9a-f]{16}"):
        reconstruct(network)
    maps = npy(tmp_path / "maps.npy", K[0] / np.linalg.norm(K[0], axis=0))
    reconstruct(config(files[:1], maps=maps, out=tmp_path / "b"))
    os.utime(maps, ns=(0, 0))
    with pytest.raises(InputError, match=r"maps=\['maps.npy', \d+, 0\].*found maps=\['maps.npy'"):
        reconstruct(config(files[:1], maps=maps, out=tmp_path / "b"))


def test_pictures_that_are_missing_or_old_are_made(files, done, tmp_path):
    nifti, png = tmp_path / "out" / "0.nii.gz", tmp_path / "out" / "png" / "0_001.png"
    reconstruct(config(files[:1]))
    reconstruct(config(files[:1], png=True, nifti=True))
    assert done == ["0.h5"]
    before = (nifti.read_bytes(), png.read_bytes(), nifti.stat().st_mtime_ns, png.stat().st_mtime_ns)
    reconstruct(config(files[:1], png=True, nifti=True))
    assert (nifti.stat().st_mtime_ns, png.stat().st_mtime_ns) == before[2:]  # kept
    fastmri(files[0], noise(S, C, H, W, seed=99), HEADER)
    reconstruct(config(files[:1], png=True, nifti=True))
    assert nifti.read_bytes() != before[0]
    assert png.read_bytes() != before[1]


@pytest.mark.parametrize("order", [(0, 1), (2, 0, 1)])
def test_processes_share_the_files_and_the_last_one_writes_the_table(
    files, done, tmp_path, monkeypatch, order
):
    whole = reconstruct(config(files, out=tmp_path / "whole"))
    done.clear()
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(len(order)))
        assert not (tmp_path / "out" / "table.md").exists()
        reports = reconstruct(config(files))
        assert bool(reports) == (rank == order[-1])
    assert sorted(done) == [path.name for path in files]
    assert [r.file for r in reports] == [r.file for r in whole]
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_a_rerun_completes_what_a_dead_process_left(files, done, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        patch.setenv("WORLD_SIZE", "2")
        assert reconstruct(config(files)) == []
    assert len(reconstruct(config(files))) == 5
    assert done == ["1.h5", "3.h5", "0.h5", "2.h5", "4.h5"]


# ----------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "...npy",
        "..h5.npy",
        "a|b.npy",
        "two\nlines.npy",
        "-rf.npy",
        "%s{out}.npy",
        "räum λ.npy",
        "x" * 236 + ".npy",
    ],
)
def test_outputs_stay_in_their_folder_whatever_the_names(tmp_path, name):
    (tmp_path / "data").mkdir()
    path = npy(tmp_path / "data" / name, K)
    (report,) = reconstruct(config([path], png=True, nifti=True))
    out = tmp_path / "out"
    assert report.file == name
    assert {p.name for p in tmp_path.iterdir()} == {"data", "out"}
    assert len([*out.iterdir()]) == 5  # .h5, .nii.gz, png, report.json, table.md
    assert len([*(out / "png").iterdir()]) == S
    lines = (out / "table.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 3
    assert lines[2].replace(r"\|", "").count("|") == lines[0].count("|")


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "data").mkdir()
    path = npy(tmp_path / "data" / os.fsdecode(b"\xff.npy"), K)
    (report,) = reconstruct(config([path], png=True, nifti=True))
    assert report.file == "\ufffd.npy"
    assert "\ufffd" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("names", [("scan", "SCAN"), ("Straße", "strasse"), ("e\u0301", "\u00e9")])
def test_names_that_some_disks_do_not_tell_apart(tmp_path, names):
    (tmp_path / "data").mkdir()
    paths = [npy(tmp_path / "data" / f"{name}.npy", K) for name in names]
    with pytest.raises(InputError, match=r"files of different names, not in case alone; .*; rename one"):
        reconstruct(config(paths))
    assert not (tmp_path / "out").exists()


def test_names_too_long_or_with_a_nul(tmp_path):
    (tmp_path / "data").mkdir()
    path = npy(tmp_path / "data" / ("λ" * 121 + ".npy"), K)
    with pytest.raises(InputError, match=r"file names of 1 to 240 bytes .*; rename the file"):
        reconstruct(config([path]))
    with pytest.raises(InputError, match=r"none of them NUL; found 'a.x00b.npy'"):
        reconstruct(config([tmp_path / "data" / "a\0b.npy"]))
    with pytest.raises(InputError, match="1 to 240 bytes"):
        reconstruct(config([tmp_path / "data" / ("x" * 300 + ".npy")]))
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_way_is_replaced_not_followed(files, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.h5.partial").symlink_to(precious)
    reconstruct(config(files[:1]))
    assert precious.read_text() == "mine"
    assert not (tmp_path / "out" / "0.h5").is_symlink()
