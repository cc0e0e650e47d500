"""Of many files, one that fails or holds a slice of zeros costs nothing but itself."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import fastmri, noise, npy

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import write_header
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.metrics import scores
from monarch_sciml.mri.reconstruction import ReconstructConfig, markdown_table, reconstruct

S, C, H, W = 3, 4, 24, 20
K = noise(S, C, H, W)
HEADER = write_header((H, W, S), (H, W))
SETTINGS = {
    "method": "zero-filled",
    "sampling": MaskConfig(accelerations=(2.0,), center_fractions=(0.3,)),
    "maps": "low-resolution",
    "quiet": True,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def config(*files: Path, **changes) -> ReconstructConfig:
    return ReconstructConfig(files, **{"out": files[0].parents[1] / "out", **SETTINGS, **changes})


def good(folder: Path, name: str) -> Path:
    return fastmri(folder / f"{name}.h5", K, HEADER)


def bad(folder: Path, name: str) -> Path:
    kspace = K.copy()
    kspace[1, 1, 2, 3] = np.nan
    return fastmri(folder / f"{name}.h5", kspace, HEADER)


def reported(folder: Path) -> list[str]:
    out = folder.parent / "out"
    names = [report["file"] for report in json.loads((out / "report.json").read_text())]
    assert all(name in (out / "table.md").read_text(encoding="utf-8") for name in names)
    assert names == sorted(path.name for path in out.glob("*.h5"))
    return names


# ------------------------------------------------------------------------------------------ files that fail


def test_files_that_fail_are_listed_and_the_others_done_and_reported(folder):
    paths = bad(folder, "a"), good(folder, "b"), folder / "c.h5", good(folder, "d")
    first = (
        r"expected 4 files that can be reconstructed; found 2 that cannot: a.h5 \(expected finite .*a.h5; .*"
    )
    with pytest.raises(
        InputError, match=rf"{first}\), c.h5 \(.*nothing at .*c.h5.*\); mend them or"
    ) as error:
        reconstruct(config(*paths))
    assert "\n" not in str(error.value)
    assert reported(folder) == ["b.h5", "d.h5"]


def test_a_rerun_after_mending_does_what_is_missing(folder):
    paths = bad(folder, "a"), good(folder, "b")
    with pytest.raises(InputError, match=r"2 files that can be reconstructed; found 1 that cannot: a.h5"):
        reconstruct(config(*paths))
    about = (folder.parent / "out" / "b.h5").stat()
    good(folder, "a")
    assert [report.file for report in reconstruct(config(*paths))] == ["a.h5", "b.h5"]
    assert (folder.parent / "out" / "b.h5").stat().st_mtime_ns == about.st_mtime_ns
    assert reported(folder) == ["a.h5", "b.h5"]


def test_many_failures_are_named_and_some_told_in_full(folder):
    paths = [bad(folder, name) for name in "abcdef"]
    listed = r"6 that cannot: a.h5 \(.*\), b.h5 \(.*\), c.h5 \(.*\), d.h5, e.h5, f.h5; mend"
    with pytest.raises(InputError, match=listed):
        reconstruct(config(*paths))
    assert not (folder.parent / "out" / "table.md").exists()


def test_a_mistake_that_is_none_of_the_files_is_said_once(folder):
    maps = folder / "absent.npy"
    with pytest.raises(
        InputError, match=r"^expected a file of coil maps; found nothing at [^;]*absent.npy; check"
    ):
        reconstruct(config(good(folder, "a"), good(folder, "b"), maps=maps))


def test_a_process_whose_files_fail_leaves_the_table_to_the_last(folder, monkeypatch):
    paths = bad(folder, "a"), good(folder, "b")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"1 that cannot: a.h5"):
        reconstruct(config(*paths))
    monkeypatch.setenv("RANK", "1")
    assert reconstruct(config(*paths)) == []
    assert not (folder.parent / "out" / "table.md").exists()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"1 that cannot: a.h5"):
        reconstruct(config(*paths))
    assert reported(folder) == ["b.h5"]


# ----------------------------------------------------------------------------------------- slices of zeros


@pytest.mark.parametrize("empty", [[1], [0], [0, 1], [2], [0, 2]])
@pytest.mark.parametrize("scored", [True, False])
def test_a_slice_of_zeros_becomes_a_zero_image_without_scores(folder, empty, scored):
    kspace, targets = K.copy(), {"reconstruction_rss": np.ones((S, H, W), np.float32)} if scored else {}
    kspace[empty] = 0
    kept = [i for i in range(S) if i not in empty]
    some = {name: target[kept] for name, target in targets.items()}
    only = reconstruct(config(fastmri(folder / "a.h5", kspace[kept], HEADER, **some)))
    with h5py.File(folder.parent / "out" / "a.h5") as file:
        truth = file["reconstruction"][()]
    said: list[str] = []
    path = fastmri(folder / "a.h5", kspace, HEADER, **targets)
    (report,) = reconstruct(config(path, out=folder.parent / "all"), said.append)
    with h5py.File(folder.parent / "all" / "a.h5") as file:
        images = file["reconstruction"][()]
    np.testing.assert_array_equal(images[kept], truth)
    assert images.shape == (S, H, W)
    assert not images[empty].any()
    listed = ", ".join(map(str, empty))
    assert said == [f"slices of zeros in a.h5, left zero and not scored: {listed}"]
    for name in ("nmse", "psnr", "ssim", "data_consistency", "acceleration", "mask"):
        assert getattr(report, name) == getattr(only[0], name), name


def test_a_slice_with_a_target_of_zeros_is_reconstructed_and_not_scored(folder):
    """Whatever its k-space; the scores are the means of the other slices."""
    targets = np.ones((S, H, W), np.float32)
    (only,) = reconstruct(config(fastmri(folder / "a.h5", K[::2], HEADER, reconstruction_rss=targets[::2])))
    targets[1] = 0
    path = fastmri(folder / "a.h5", K, HEADER, reconstruction_rss=targets)
    (report,) = reconstruct(config(path, out=folder.parent / "all"))
    assert (report.nmse, report.psnr, report.ssim) == (only.nmse, only.psnr, only.ssim)
    with h5py.File(folder.parent / "all" / "a.h5") as file:
        assert all(image.any() for image in file["reconstruction"])


def test_an_undersampled_volume_may_have_slices_of_zeros_too(folder):
    kspace = K.copy()
    kspace[..., 1::2] = 0
    kspace[..., 7:13] = K[..., 7:13]
    kspace[0] = 0
    said: list[str] = []
    (report,) = reconstruct(config(npy(folder / "a.npy", kspace)), said.append)
    assert report.psnr is None
    assert not report.retrospective
    assert [re.sub(".*: ", "", line) for line in said] == ["0"]


def test_an_undersampled_volume_is_scored_where_the_file_holds_the_target(folder):
    """Whether its mask is stored or found; without a target there is nothing to compare with."""
    kept = np.arange(W) % 2 == 0
    kept[W // 2 - 3 : W // 2 + 3] = True
    target = np.abs(noise(S, 12, 10)).astype(np.float32)
    stored = fastmri(folder / "a.h5", K * kept, HEADER, mask=kept, reconstruction_rss=target)
    found = fastmri(folder / "b.h5", K * kept, HEADER, reconstruction_rss=target)
    without = fastmri(folder / "c.h5", K * kept, HEADER, mask=kept)
    reports = reconstruct(config(stored, found, without))
    with h5py.File(folder.parent / "out" / "a.h5") as file:
        images = np.asarray(file["reconstruction"])
    each = [scores(t, x) for t, x in zip(target, images, strict=True)]
    for report in reports[:2]:
        assert not report.retrospective
        for name in ("nmse", "psnr", "ssim"):
            assert getattr(report, name) == pytest.approx(np.mean([one[name] for one in each]))
    assert reports[2].nmse is reports[2].psnr is reports[2].ssim is None
    assert "Scores are means over slices." in markdown_table(reports)
    assert "Scores" not in markdown_table(reports[2:])
