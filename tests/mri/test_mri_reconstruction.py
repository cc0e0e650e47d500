"""Any file to images: every format, orientation, masks, maps, scores, memory; nothing leaks, nothing lies."""

import dataclasses
import json
import weakref
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from kspace_files import bart, fastmri, ismrmrd, lines, npy

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform, centered_dft
from monarch_sciml.mri import reconstruction
from monarch_sciml.mri.classical import METHODS, zero_filled
from monarch_sciml.mri.evaluation import EvaluateConfig, evaluate
from monarch_sciml.mri.formats import KSpaceFile
from monarch_sciml.mri.header import write_header
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    apply_mask,
    draw_mask,
    measured_columns,
    volume_seed,
    within,
)
from monarch_sciml.mri.metrics import scores
from monarch_sciml.mri.models import ModelConfig, UNetReconstruction
from monarch_sciml.mri.phantoms import coil_maps
from monarch_sciml.mri.reconstruction import ReconstructConfig, Reconstructed, reconstruct, reconstruct_slice
from monarch_sciml.mri.sensitivity import root_sum_of_squares
from monarch_sciml.mri.simulation import SimulateConfig, simulate, simulate_volume
from monarch_sciml.mri.writers import NOTICE

H, W = 24, 20
NARROW = MaskConfig(accelerations=(3.0,), center_fractions=(0.3,))
ALL = MaskConfig(accelerations=(1.0,), center_fractions=(1.0,))
EVERY_THIRD = MaskConfig("equispaced", (3.0,), (0.3,))
SIMULATED = SimulateConfig(volumes=2, slices=2, shape=(H, W), coils=(4,))
K = simulate_volume(SIMULATED, 0).kspace.numpy()
HEADER = write_header((H, W, 2), (H, W))


def run(out: Path, *files: Path, **settings):
    """Reports, and the images of each file."""
    config = {"method": "zero-filled", "sampling": NARROW, "maps": "low-resolution", "quiet": True}
    reports = reconstruct(ReconstructConfig(files, out, **{**config, **settings}))
    images = []
    for path in files:
        with h5py.File(out / f"{path.stem}.h5") as file:
            images.append(file["reconstruction"][()])
    return reports, images


def one(kspace: torch.Tensor, method=zero_filled, **settings) -> Reconstructed:
    return reconstruct_slice(kspace, method, **{"sampling": NARROW, "maps": "low-resolution", **settings})


def coil_kspace(image: np.ndarray, coils: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Noiseless k-space of an image, and the maps."""
    maps = torch.from_numpy(coil_maps(coils, image.shape, np.random.default_rng(0))).to(torch.complex64)
    maps = maps / root_sum_of_squares(maps)
    return FourierTransform(tuple(maps.shape))(maps * torch.from_numpy(image)), maps


def spots(shape: tuple[int, int]) -> np.ndarray:
    """Three spots without any symmetry."""
    image = np.zeros(shape, np.float32)
    for place, value in {(0.35, 0.4): 3, (0.35, 0.65): 2, (0.7, 0.4): 1}.items():
        image[round(place[0] * shape[0]), round(place[1] * shape[1])] = value
    return image


# ------------------------------------------------------------------------------------------------- formats


@pytest.fixture(scope="module")
def same(tmp_path_factory) -> dict[str, Path]:
    """The same volume in every format, as scan.*, which all have the same seed."""
    folder = tmp_path_factory.mktemp("same")
    at = [(samples, {**fields, "center_sample": H // 2}) for samples, fields in lines(K)]
    return {
        "fastmri": fastmri(folder / "scan.h5", K, HEADER),
        "ismrmrd": ismrmrd(folder / "scan.mrd", at, HEADER),
        "bart": bart(folder / "scan", K),
        "npy": npy(folder / "scan.npy", K),
    }


@pytest.mark.parametrize("method", ["zero-filled", "cg-sense"])
def test_the_same_volume_gives_the_same_images_in_every_format(same, tmp_path, method):
    found = {kind: run(tmp_path / kind, path, method=method) for kind, path in same.items()}
    ((reference,), (images,)) = found["fastmri"]
    assert images.shape == (2, H, W)
    for kind, ((report,), (others,)) in found.items():
        np.testing.assert_array_equal(others, images, err_msg=kind)
        alike = {"file": "", "format": "", "header": True, "seconds": 0.0}
        assert dataclasses.replace(report, **alike) == dataclasses.replace(reference, **alike)
        assert (report.file, report.format) == (same[kind].name, kind)
        assert report.header == (kind in ("fastmri", "ismrmrd"))
        assert (report.slices, report.coils, report.shape, report.retrospective) == (2, 4, (H, W), True)


def test_fully_sampled_files_are_masked_by_their_names_and_scored(tmp_path):
    paths = simulate(tmp_path / "data", SIMULATED)
    reports, images = run(tmp_path / "out", *paths)
    for path, report, found in zip(paths, reports, images, strict=True):
        mask = draw_mask(NARROW, (H, W), volume_seed(path))
        assert report.acceleration == mask.acceleration > 1.5
        with h5py.File(path) as file:
            kspace, target = torch.from_numpy(file["kspace"][()]), file["reconstruction_rss"][()]
        by_hand = [one(y, zero_filled, seed=volume_seed(path)).image for y in kspace]
        np.testing.assert_array_equal(found, torch.stack(by_hand))
        each = [scores(t, x) for t, x in zip(target, found, strict=True)]
        for name in ("nmse", "psnr", "ssim"):
            assert getattr(report, name) == pytest.approx(np.mean([s[name] for s in each]), rel=1e-6)
        assert 0 < report.nmse < 0.5
    volumes = evaluate(EvaluateConfig(tmp_path / "data", (tmp_path / "out",)))["out"]
    assert [v.name for v in volumes] == [path.name for path in paths]
    assert volumes[0].acceleration == pytest.approx(reports[0].acceleration)


def test_test_files_keep_their_own_mask(tmp_path):
    """Stored or found from the zeros; another one asked for, and the file's name, change nothing."""
    (path,) = simulate(tmp_path / "data", dataclasses.replace(SIMULATED, volumes=1, acceleration=2.0))
    (stored,), (images,) = run(tmp_path / "a", path)
    with h5py.File(path) as file:
        kspace, mask = file["kspace"][()], file["mask"][()]
    (found,), (others,) = run(tmp_path / "b", npy(tmp_path / "other.npy", kspace), sampling=ALL)
    assert not stored.retrospective
    assert stored.nmse is stored.psnr is stored.ssim is None
    assert stored.acceleration == found.acceleration == W / mask.sum()
    np.testing.assert_array_equal(images, others)
    # the stored one holds, also where k-space says something else
    kspace[..., ~mask] = 1
    (again,), (others,) = run(tmp_path / "c", fastmri(tmp_path / "test.h5", kspace, HEADER, mask=mask))
    assert (again.retrospective, again.acceleration) == (False, stored.acceleration)
    np.testing.assert_array_equal(images, others)


def test_rows_may_be_undersampled_too(tmp_path):
    """Phase encoding along the rows: gaps between rows are undersampling, not a scan to be masked again."""
    kept = np.zeros(H, bool)
    kept[::2] = kept[8:16] = True
    (report,), _ = run(tmp_path / "out", npy(tmp_path / "rows.npy", K * kept[:, None]), sampling=ALL)
    assert not report.retrospective
    assert report.acceleration == H / kept.sum()


def test_a_stray_zero_is_no_undersampling():
    kspace = torch.from_numpy(K[0].copy())
    kspace[:, 2, 3] = 0
    assert one(kspace).retrospective


@pytest.mark.parametrize(
    ("pattern", "columns"),
    [
        (torch.ones(1, 9), (0, 9)),
        (torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0, 0]]), (1, 7)),
        (torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]), None),  # half of them: undersampled, with a centre
        (torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1, 1]]), None),
        (torch.ones(4, 9), (0, 9)),
        (torch.ones(4, 9).tril(5), None),
        (torch.tensor([[0.0] + 8 * [1.0]]).repeat(4, 1), (1, 9)),
    ],
)
def test_fully_sampled_but_for_edges(pattern, columns):
    mask = Mask(pattern.bool(), (3, 3))
    assert measured_columns(mask) == columns
    kept = within(mask, (1, 7))
    assert torch.equal(kept.pattern[:, 1:7], mask.pattern[:, 1:7])
    assert int(kept.pattern.sum()) == int(pattern[:, 1:7].sum())
    with pytest.raises(InputError, match="a mask that keeps something; found none among the columns 4 to 4"):
        within(mask, (4, 4))


def test_single_coil(tmp_path):
    """The image is |Fᴴ y|: nothing to combine, and with every column kept nothing is lost."""
    kspace = simulate_volume(dataclasses.replace(SIMULATED, coils=(1,)), 0).kspace.numpy()
    path = fastmri(tmp_path / "one.h5", kspace, HEADER)
    (report,), (images,) = run(tmp_path / "out", path, sampling=ALL)
    truth = FourierTransform((H, W)).H(torch.from_numpy(kspace)).abs()
    np.testing.assert_allclose(images, truth, rtol=1e-4, atol=1e-6 * truth.max())
    assert report.coils == 1
    assert report.data_consistency < 1e-6
    assert report.psnr > 90


def test_equal_images_leave_a_report_that_is_json(tmp_path):
    path = fastmri(tmp_path / "a.h5", K[:, 0], HEADER)
    _, (images,) = run(tmp_path / "first", path, sampling=ALL)
    path = fastmri(tmp_path / "a.h5", K[:, 0], HEADER, reconstruction_esc=images)
    (report,), _ = run(tmp_path / "out", path, sampling=ALL)
    assert (report.nmse, report.psnr) == (0, np.inf)
    refuse = pytest.fail  # called for Infinity and NaN, which JSON does not know
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=refuse)[0]["psnr"] is None
    )


# ------------------------------------------------------------------------------ headers, padding, orientation


@pytest.mark.parametrize(
    ("shape", "recon"), [((24, 20), (12, 20)), ((23, 19), (15, 12)), ((25, 18), (24, 17))]
)
@pytest.mark.parametrize("coils", [1, 4])
def test_orientation_is_kept_and_the_header_crops(tmp_path, shape, recon, coils):
    image = spots(shape)
    kspace = FourierTransform(shape)(torch.from_numpy(image).to(torch.complex64))[None]
    if coils > 1:
        kspace, _ = coil_kspace(image, coils)
    stored = kspace[None].numpy() if coils > 1 else kspace.numpy()
    path = fastmri(tmp_path / "a.h5", stored, write_header((*shape, 1), recon))
    (cropped,), (small,) = run(tmp_path / "crop", path, sampling=ALL)
    (whole,), (large,) = run(tmp_path / "whole", path, sampling=ALL, header=False)
    assert (cropped.shape, cropped.header, whole.shape, whole.header) == (recon, True, shape, False)
    np.testing.assert_allclose(large[0], image, atol=0.1)
    top, left = ((n - m) // 2 for n, m in zip(shape, recon, strict=True))
    np.testing.assert_allclose(small[0], image[top : top + recon[0], left : left + recon[1]], atol=0.1)


def test_zeros_at_the_edges_are_padding_and_nobody_measured_them(tmp_path):
    kspace = K.copy()
    kspace[..., :3] = kspace[..., 18:] = 0
    (report,), (images,) = run(tmp_path / "a", npy(tmp_path / "pad.npy", kspace), sampling=EVERY_THIRD)
    assert report.retrospective
    kept = draw_mask(EVERY_THIRD, (H, W), volume_seed("pad.h5")).pattern[0]
    assert report.acceleration == W / int(kept[3:18].sum())
    assert bool(kept[:3].any() | kept[18:].any())  # the test would say nothing otherwise
    # a header says the same
    limits = write_header((H, W, 2), (H, W)).replace(
        "<maximum>19</maximum><center>10", "<maximum>14</maximum><center>7"
    )
    (said,), (others,) = run(
        tmp_path / "b", fastmri(tmp_path / "pad.h5", kspace, limits), sampling=EVERY_THIRD
    )
    assert said.acceleration == report.acceleration
    assert said.data_consistency == report.data_consistency
    np.testing.assert_array_equal(others, images)
    # and what lies outside is not data, whatever it is
    kspace[..., :3] = 7
    said = r"not zero outside 3 to 17 of pad.h5 are left out, .*pass --no-header \(header=False in Python\)"
    with pytest.warns(UserWarning, match=said) as warned:
        _, (again,) = run(tmp_path / "c", fastmri(tmp_path / "pad.h5", kspace, limits), sampling=EVERY_THIRD)
    assert len(warned) == 1
    np.testing.assert_array_equal(again, images)


# ------------------------------------------------------------------------------------------- maps, no leakage


def test_given_maps_one_for_all_or_one_each(tmp_path):
    path = npy(tmp_path / "a.npy", K)
    maps = torch.randn(2, 4, H, W, dtype=torch.complex64)
    maps = (maps / root_sum_of_squares(maps)[:, None]).numpy()
    mask = draw_mask(NARROW, (H, W), volume_seed("a.h5"))
    y = apply_mask(torch.from_numpy(K), mask)
    cases = {
        "each": (npy(tmp_path / "each.npy", maps), maps),
        "one": (npy(tmp_path / "one.npy", maps[0]), maps[[0, 0]]),
        "cfl": (bart(tmp_path / "bart", maps), maps),
    }
    for name, (file, used) in cases.items():
        _, (images,) = run(tmp_path / name, path, maps=file)
        truth = zero_filled(y, mask.pattern, torch.from_numpy(used)).abs()
        np.testing.assert_allclose(images, truth, rtol=1e-5, atol=1e-6 * truth.max(), err_msg=name)


NETWORKS = [
    ModelConfig(kind, (H, W), cascades=2, channels=2, pools=1) for kind in ("unet", "msense", "modl-monarch")
]


@pytest.mark.parametrize("maps", ["espirit", "low-resolution"])
@pytest.mark.parametrize("method", [*METHODS, *NETWORKS], ids=lambda m: m if isinstance(m, str) else m.kind)
def test_nothing_leaks(method, maps):
    """Neither the target nor k-space that the mask takes away has any influence, down to the last bit."""
    if isinstance(method, str):
        solve = METHODS[method]
    else:
        model = method.build().eval()

        @torch.no_grad()
        def solve(*inputs):
            return model(*(t[None] for t in inputs))[0]

    kspace = torch.from_numpy(K[0])
    mask = draw_mask(NARROW, (H, W), 0)
    reference = one(kspace, solve, maps=maps)
    other = torch.where(mask.pattern, kspace, 1e3 * kspace.flip(-1) + 1)
    target = torch.rand(H, W)
    assert torch.equal(reference.mask.pattern, mask.pattern)
    assert torch.equal(one(other, solve, maps=maps).image, reference.image)
    assert torch.equal(one(kspace, solve, maps=maps, target=target).image, reference.image)
    changed = kspace.clone()
    changed[:, :, W // 2] *= 1.1  # while what is measured has
    assert not torch.equal(one(changed, solve, maps=maps).image, reference.image)


# ------------------------------------------------------------------------------------------- data consistency


def test_data_consistency_is_the_residual_by_dense_matrices():
    kspace, maps = torch.from_numpy(K[0]), torch.randn(4, H, W, dtype=torch.complex64)
    image = torch.randn(H, W, dtype=torch.complex64)
    found = one(kspace, lambda *_: image, maps=maps)
    Fy, Fx = (centered_dft(n).to(torch.complex128) for n in (H, W))
    kept = found.mask.pattern[0]
    assert int(kept.sum()) < W
    y, residual = kspace[..., kept], (Fy @ (maps * image).to(Fy) @ Fx.T)[..., kept] - kspace[..., kept]
    assert found.data_consistency == pytest.approx(float(residual.norm() / y.norm()), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-22, 1e17])
def test_data_consistency_does_not_depend_on_the_unit_of_the_data(scale):
    kspace, maps = torch.from_numpy(K[0]), torch.randn(4, H, W, dtype=torch.complex64)
    known, found = (one(s * kspace, "zero-filled", maps=maps).data_consistency for s in (1, scale))
    assert found == pytest.approx(known, rel=1e-5)


def test_a_consistent_image_has_no_residual():
    image = torch.randn(H, W, dtype=torch.complex64)
    kspace, maps = coil_kspace(image.numpy())
    assert one(kspace, lambda *_: image, maps=maps).data_consistency < 1e-5


def test_magnitudes_are_lent_the_phase_of_the_zero_filled_image():
    """A true magnitude of an object with phase counts as consistent, up to what undersampling does to it."""
    rows = torch.arange(H)[:, None] / H
    image = torch.from_numpy(spots((H, W))) * torch.exp(2j * torch.pi * rows)
    kspace, maps = coil_kspace(image.numpy())
    found = one(kspace, lambda *_: image.abs(), maps=maps, sampling=ALL)
    assert found.data_consistency < 1e-4
    assert isinstance(NETWORKS[0].build(), UNetReconstruction)
    assert one(kspace, lambda *_: image.abs(), maps=maps).data_consistency > 1e-3


# -------------------------------------------------------------------------------------------- outputs, memory


def test_outputs_say_what_they_are_not_for(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from PIL import Image

    field = write_header((H, W, 2), (10, W), (30.0, 80.0, 5.0))
    path = fastmri(tmp_path / "a.h5", K, field)
    (report,), (images,) = run(tmp_path / "out", path, png=True, nifti=True)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"a.h5", "a.nii.gz", "png/a_000.png", "png/a_001.png", "report.json", "table.md"}
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert file.attrs["notice"] == NOTICE
        assert file["reconstruction"].dtype == np.float32
    nifti = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert nifti.header.get_zooms() == (3.0, 4.0, 5.0)
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), images.transpose(1, 2, 0))
    with Image.open(tmp_path / "out" / "png" / "a_001.png") as picture:
        assert (picture.size, picture.text["Comment"]) == ((W, 10), NOTICE)
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert NOTICE == "Research use only, not for clinical use"
    assert NOTICE in table
    assert f"| a.h5 | zero-filled | 2 | 4 | {report.acceleration:.2f} | {report.nmse:.4f} |" in table
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved == [{**dataclasses.asdict(report), "shape": [10, W]}]


@pytest.mark.parametrize("slices", [2, 24])
def test_memory_does_not_depend_on_the_number_of_slices(tmp_path, monkeypatch, slices):
    """Read in order, one at a time; of k-space and of results no more than three are alive at any time."""
    path = npy(tmp_path / "a.npy", np.tile(K, (slices // 2, 1, 1, 1)))
    alive, results, most, order = weakref.WeakSet(), weakref.WeakSet(), [], []
    original = KSpaceFile.__getitem__

    class Watched(np.ndarray):
        __hash__ = object.__hash__

    def read(self, index):
        order.append(index)
        alive.add(watched := original(self, index).view(Watched))
        most.append(len(alive))
        return watched

    def watched_slice(*arguments, **settings):
        results.add(result := reconstruct_slice(*arguments, **settings))
        most.append(len(results))
        return result

    monkeypatch.setattr(KSpaceFile, "__getitem__", read)
    monkeypatch.setattr(reconstruction, "reconstruct_slice", watched_slice)
    run(tmp_path / "out", path, png=True, nifti=True)
    assert order == list(range(slices))
    assert len(most) == 2 * slices
    assert max(most) <= 3
