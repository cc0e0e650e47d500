"""Masks like those of the training, maps of any scale, one's own weights: what is done, and what is said."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from kspace_files import npy

from monarch_sciml.errors import InputError
from monarch_sciml.mri.classical import cg_sense, l1_wavelet
from monarch_sciml.mri.masks import MaskConfig, MaskOptions, apply_mask, draw_mask, volume_seed
from monarch_sciml.mri.models import ModelConfig, SliceReconstructor
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct, reconstruct_slice
from monarch_sciml.mri.simulation import SimulateConfig, simulate_volume

C, H, W = 4, 32, 40
K = simulate_volume(SimulateConfig(volumes=1, slices=2, shape=(H, W), coils=(C,)), 0).kspace.numpy()
POISSON = MaskConfig("poisson", (3.0, 5.0), (0.2, 0.2))
PAIRS = {"mask": "poisson", "accelerations": [3.0, 5.0], "center_fractions": [0.2, 0.2], "mask_file": None}


@pytest.fixture
def scan(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return npy(tmp_path / "data" / "scan.npy", K)


def export(run: Path, sampling: object = PAIRS) -> Path:
    """What a finished training leaves, as far as reconstructions read it."""
    config = ModelConfig("unet", (H, W), channels=2, pools=1)
    SliceReconstructor(config.build(), config).save_pretrained(run / "model")
    (run / "config.json").write_text(json.dumps({"config": {"sampling": sampling}}))
    return run


def made(scan: Path, name: str = "out", **settings):
    """The report, the table and what was said; method and maps are quick ones."""
    said: list[str] = []
    if "run" not in settings:
        settings = {"method": "zero-filled", **settings}
    out = scan.parents[1] / name
    config = ReconstructConfig((scan,), out, **{"maps": "low-resolution", "quiet": True, **settings})
    (report,) = reconstruct(config, said.append)
    return report, (out / "table.md").read_text(encoding="utf-8"), said


def image(scan: Path, name: str = "out") -> np.ndarray:
    with h5py.File(scan.parents[1] / name / "scan.h5") as file:
        return file["reconstruction"][()]


# ------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("place", ["", "model"])
def test_a_network_gets_masks_like_those_of_its_training(scan, tmp_path, place):
    report, table, said = made(scan, run=export(tmp_path / "run") / place)
    mask = draw_mask(POISSON, (H, W), volume_seed("scan.h5"))
    assert said == []
    assert report.acceleration == mask.acceleration
    assert (report.mask, report.center_fraction) == ("poisson", 0.2)
    assert report.asked_acceleration == mask.drawn.accelerations[0]
    assert f"undersampled here: poisson {report.asked_acceleration:g}× (centre 20 %)" in table
    assert "trained under masks poisson 3× (centre 20 %) or 5× (centre 20 %)" in table
    (saved,) = json.loads((tmp_path / "out" / "report.json").read_text())
    names = ("mask", "asked_acceleration", "center_fraction", "trained_under")
    assert [saved[name] for name in names] == [getattr(report, name) for name in names]


@pytest.mark.parametrize(
    ("sampling", "warned"),
    [
        (MaskOptions(accelerations=4), None),  # the kind and the centre are those of the training
        (MaskOptions(accelerations=(3, 5)), None),
        (POISSON, None),
        (
            MaskOptions(accelerations=2),
            r"the mask is poisson 2× \(centre 20 %\), but .* trained under poisson 3×",
        ),
        (MaskOptions(accelerations=6), r"the mask is poisson 6×"),
        (
            MaskOptions(mask="random"),
            r"the mask is random [35]× \(centre 20 %\), but .*: results may be worse",
        ),
        (MaskConfig(), r"the mask is random 4× \(centre 8 %\)"),
    ],
)
def test_masks_unlike_those_of_the_training(scan, tmp_path, sampling, warned):
    report, _, said = made(scan, run=export(tmp_path / "run"), sampling=sampling)
    assert report.asked_acceleration == pytest.approx(report.acceleration, rel=0.5)
    if warned is None:
        assert said == []
        assert report.mask == "poisson"
    else:
        (line,) = said
        assert "\n" not in line
        assert re.search(warned, line)


def test_undersampled_scans_unlike_the_training(scan, tmp_path):
    run = export(tmp_path / "run")
    columns = draw_mask(MaskConfig("random", 4.0, 0.2), (H, W), 0)
    points = draw_mask(MaskConfig("poisson", 4.0, 0.2), (H, W), 0)
    many = draw_mask(MaskConfig("poisson", 2.0, 0.2), (H, W), 0)
    for index, (mask, words) in enumerate(
        {columns: "of columns, ", many: "of points, 2", points: ""}.items()
    ):
        path = npy(scan.with_name("own.npy"), apply_mask(K, mask).numpy())
        config = ReconstructConfig(path, tmp_path / f"own{index}", run=run, maps="low-resolution", quiet=True)
        said: list[str] = []
        (report,) = reconstruct(config, said.append)
        assert (report.mask, report.asked_acceleration, report.retrospective) == ("as acquired", None, False)
        assert len(said) == bool(words)
        assert not said or f"the mask is {words}" in said[0]
        table = (tmp_path / f"own{index}" / "table.md").read_text(encoding="utf-8")
        assert "kept its own mask: as acquired (centre " in table


@pytest.mark.parametrize(
    "sampling",
    [
        None,
        [],
        {},
        {**PAIRS, "mask": ["poisson"]},
        {**PAIRS, "accelerations": None},
        {**PAIRS, "accelerations": [[4]]},
        {**PAIRS, "mask_file": "/etc/passwd"},
    ],
)
def test_a_training_that_does_not_tell_its_masks(scan, tmp_path, sampling):
    run = export(tmp_path / "run", sampling)
    report, table, said = made(scan, run=run)
    assert report.mask == "random"
    assert report.trained_under is None
    assert "trained under" not in table
    (line,) = said
    assert line.startswith("the masks of the training are not known here: drawn are random 4× (centre 8 %)")
    assert made(scan, "chosen", run=run, sampling=MaskConfig())[2] == []
    (line,) = made(scan, "rate", run=run, sampling=MaskOptions(accelerations=3))[2]
    assert "random 3×" in line


def test_a_model_without_its_run_says_so_once_and_in_python_as_a_warning(scan, tmp_path):
    model = (export(tmp_path / "run") / "model").rename(tmp_path / "copied")
    files = (scan, npy(scan.with_name("other.npy"), K))
    config = ReconstructConfig(files, tmp_path / "out", run=model, maps="low-resolution", quiet=True)
    with pytest.warns(UserWarning, match="not known here: drawn are random 4×") as said:
        reconstruct(config)
    assert len(said) == 1


def test_a_mask_file_is_named(scan, tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(W) % 2 == 0)
    np.save(tmp_path / "ones.npy", np.ones((C, H, W), np.complex64) / np.sqrt(C))
    sampling = MaskConfig(mask_file=str(tmp_path / "mine.npy"))
    report, table, _ = made(scan, sampling=sampling, maps=tmp_path / "ones.npy")
    assert (report.mask, report.asked_acceleration, report.acceleration) == ("mine.npy", None, 2)
    assert "undersampled here: mine.npy (centre" in table


def test_options_fill_up_what_was_not_chosen():
    assert MaskOptions().filled(POISSON) == POISSON
    assert MaskOptions(accelerations=8).filled(MaskConfig()) == MaskConfig("random", 8, 0.08)
    assert MaskConfig().filled(POISSON) == MaskConfig()
    with pytest.raises(InputError, match=r"as many center_fractions as accelerations.*found 2 and 1"):
        MaskOptions(accelerations=2).filled(MaskConfig("random", (4, 8), (0.08, 0.04)))
    with pytest.raises(InputError, match="as many center_fractions as accelerations"):
        ReconstructConfig("a.h5", "out", "tv", sampling=MaskOptions(accelerations=(4, 8)))


# ------------------------------------------------------------------------------------------- scale of maps


def test_maps_of_another_scale_are_normalised_and_said(scan, tmp_path):
    rng = np.random.default_rng(0)
    maps = (rng.standard_normal((C, H, W)) + 1j * rng.standard_normal((C, H, W))).astype(np.complex64)
    maps /= np.linalg.norm(maps, axis=0)
    maps[:, :, :5] = 0
    scale = np.linspace(0.5, 4, H, dtype=np.float32)[:, None]
    _, _, said = made(scan, "right", maps=npy(tmp_path / "right.npy", maps))
    assert said == []
    _, _, said = made(scan, "nearly", maps=npy(tmp_path / "nearly.npy", 1.005 * maps))
    assert said == []
    _, _, said = made(scan, "scaled", maps=npy(tmp_path / "scaled.npy", scale * maps))
    assert said == ["coil maps in scaled.npy have √Σ|S|² of 0.5 to 4: they are scaled to 1"]
    for name in ("nearly", "scaled"):
        np.testing.assert_allclose(image(scan, name), image(scan, "right"), rtol=1e-4, atol=1e-9)
    assert not image(scan, "scaled")[:, :, :5].any()
    _, _, said = made(scan, "nothing", maps=npy(tmp_path / "nothing.npy", 0 * maps))
    assert said == []
    assert not image(scan, "nothing").any()


# -------------------------------------------------------------------------------- weights and iterations


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [("cg-sense", cg_sense, "damping"), ("l1-wavelet", l1_wavelet, "regularisation")],
)
def test_regularisation_and_iterations(scan, name, method, words):
    sampling = MaskConfig("random", 2.0, 0.3)
    plain, *_ = made(scan, "plain", method=name, sampling=sampling, iterations=3)
    tuned, table, _ = made(scan, method=name, sampling=sampling, iterations=3, regularisation=0.1)
    assert (plain.method, tuned.method) == (f"{name}, 3 iterations", f"{name}, λ = 0.1, 3 iterations")
    assert tuned.method in table
    by_hand = reconstruct_slice(
        K[0],
        lambda *inputs: method(*inputs, iterations=3, **{words: 0.1}),
        sampling=sampling,
        seed=volume_seed("scan.h5"),
        maps="low-resolution",
    )
    np.testing.assert_array_equal(image(scan)[0], by_hand.image)
    assert not np.array_equal(image(scan), image(scan, "plain"))
    with pytest.raises(InputError, match=f"made with method={name} as .*found method={name}, λ = 0.1, 3"):
        made(scan, method=name, sampling=sampling)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"method": "zero-filled", "iterations": 3},
            "one of cg-sense, l1-wavelet, tv to tune; found zero-filled",
        ),
        ({"run": "run", "regularisation": 0.1}, "one of cg-sense, l1-wavelet, tv to tune; found None"),
        ({"method": "tv", "regularisation": -1.0}, "regularisation from 0 to 1e.06; found -1.0"),
        ({"method": "tv", "regularisation": float("nan")}, "regularisation from 0 to 1e.06; found nan"),
        ({"method": "tv", "iterations": 0}, "1 to 100000 iterations; found 0; change --iterations"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(InputError, match=match):
        ReconstructConfig("a.h5", "out", **settings)


@pytest.mark.parametrize(
    ("axes", "named"), [((-2, -1), "rows and columns"), ((-2,), "rows"), ((-1,), "columns"), ((), None)]
)
def test_zero_frequency_in_a_corner_is_told(tmp_path, axes, named):
    (tmp_path / "data").mkdir()
    scan = npy(tmp_path / "data" / "scan.npy", np.fft.ifftshift(K, axes=axes) if axes else K)
    mask = MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    said = [line for line in made(scan, sampling=mask)[2] if "strongest at the edges" in line]
    assert len(said) == (named is not None)  # once for all slices
    assert all(f"edges of its {named}: zero frequency belongs in the middle" in line for line in said)
