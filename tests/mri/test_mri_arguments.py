"""What people pass out of habit or by mistake: it works where its meaning is clear, or is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from kspace_files import noise, npy
from laws import relative_error

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.classical import METHODS, density_compensated, sampling_density
from monarch_sciml.mri.evaluation import EvaluateConfig
from monarch_sciml.mri.formats import open_kspace
from monarch_sciml.mri.inputs import as_tensor
from monarch_sciml.mri.masks import MaskConfig, apply_mask, draw_mask, find_acs
from monarch_sciml.mri.models import ModelConfig
from monarch_sciml.mri.operators import Sampling, Sensitivity, conjugate_gradients, encoding
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.reconstruction import ReconstructConfig
from monarch_sciml.mri.sensitivity import espirit, estimate_maps, low_resolution, root_sum_of_squares
from monarch_sciml.mri.simulation import SimulateConfig, simulate_volume
from monarch_sciml.mri.slices import reconstruct_slice

C, H, W = 4, 24, 20
K = simulate_volume(SimulateConfig(volumes=1, slices=2, shape=(H, W), coils=(C,)), 0).kspace
COLUMNS = MaskConfig("equispaced", 2.0, 0.3)
MASK = draw_mask(COLUMNS, K.shape, 0)
Y = apply_mask(K[0], MASK)
MAPS = espirit(Y, MASK.acs)
OPTIONS = {"cg-sense": {"iterations": 4}, "l1-wavelet": {"iterations": 4}, "tv": {"iterations": 2}}
TRANSFORMS = [None, FourierTransform((C, H, W))]


def solve(name, *inputs):
    return METHODS[name](*inputs, **OPTIONS.get(name, {}))


# -------------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("fourier", TRANSFORMS, ids=["fft", "passed"])
def test_operators_refuse_what_would_broadcast(fourier):
    A = encoding(MAPS, MASK.pattern, fourier)
    for wrong in (Y[0], Y[:1], Y[:, :, 1:], Y[:0]):
        shape = ", ".join(map(str, wrong.shape))
        with pytest.raises(InputError, match=rf"expected k-space \(..., 4, 24, 20\); found \({shape}\)"):
            A.H(wrong)
    for wrong in (torch.ones(H, W + 1), torch.ones(1, W), torch.ones(W)):
        for operator in (A, A.gram):
            with pytest.raises(
                InputError,
                match=r"expected an image \(..., 24, 20\); found .*; pass what belongs to these maps",
            ):
                operator(wrong + 0j)
    with pytest.raises(InputError, match=r"found \(0, 24, 20\); pass at least one slice"):
        A(torch.ones(0, H, W) + 0j)


@pytest.mark.parametrize("fourier", TRANSFORMS, ids=["fft", "passed"])
def test_maps_without_coils_and_masks_with_them(fourier):
    with pytest.raises(
        InputError, match=r"coil maps \(..., coils, H, W\); found \(24, 20\); keep the coil axis"
    ):
        encoding(MAPS[0], MASK.pattern, fourier)
    for shape in ((C, H, W), (C, 1, W), (3, 1, W)):
        with pytest.raises(
            InputError, match=r"without the axis of the coils for \(4, 24, 20\); found \([34]"
        ):
            encoding(MAPS, MASK.pattern.expand(shape), fourier)
    with pytest.raises(InputError, match="without the axis of the coils"):
        Sampling(MASK.pattern.expand(C, H, W), (C, H, W))(Y)


def test_batches_that_do_not_go_together():
    maps, masks = MAPS.expand(2, C, H, W), MASK.pattern.expand(2, 1, W)
    with pytest.raises(InputError, match=r"a mask .*for \(2, 4, 24, 20\); found \(3, 1, 20\)"):
        encoding(maps, MASK.pattern.expand(3, 1, W))
    A = encoding(maps, masks)
    with pytest.raises(
        InputError, match=r"an image \(..., 24, 20\), and a batch that goes with \(2,\); found"
    ):
        A(torch.ones(3, H, W) + 0j)
    with pytest.raises(
        InputError, match=r"without the axis of the coils for \(3, 4, 24, 20\); found \(2, 1, 20\)"
    ):
        A.H(Y.expand(3, C, H, W))
    shared = encoding(MAPS[None], masks)  # one set of maps for slices with masks of their own
    assert relative_error(shared.H(Y.expand(2, C, H, W)), A.H(Y.expand(2, C, H, W))) < 1e-6


def test_masks_of_every_usual_shape_mean_the_same():
    A = encoding(MAPS, MASK.pattern)
    x = A.H(Y)
    for pattern in (
        MASK.pattern[0],
        MASK.pattern[None],
        MASK.pattern[None, None],
        MASK.pattern.expand(1, H, W),
    ):
        B = encoding(MAPS, pattern)
        assert torch.equal(B.H(K[0]), x)
        assert B(x).shape == (C, H, W)
        assert relative_error(B.gram(x), A.gram(x)) < 1e-6


# ---------------------------------------------------------------------------------------- classical methods


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_every_usual_mask_and_uses_it(name):
    expected = solve(name, Y, MASK.pattern, MAPS)
    columns = MASK.pattern[0]
    for pattern in (columns, columns[None], columns[None, None], columns.expand(H, W), columns.float()[None]):
        assert relative_error(solve(name, K[0], pattern, MAPS), expected) < 1e-5
    batch = solve(name, K, columns.expand(2, 1, 1, W), MAPS.expand(2, C, H, W))
    assert relative_error(batch[0], expected) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_numpy_and_refuse_what_they_cannot_mean(name):
    expected = solve(name, Y, MASK.pattern, MAPS)
    found = solve(name, *(t.numpy() for t in (Y, MASK.pattern, MAPS)))
    assert isinstance(found, torch.Tensor)
    assert relative_error(found, expected) < 1e-6
    with pytest.raises(InputError, match=r"without the axis of the coils .*found \(4, 24, 20\)"):
        solve(name, Y, MASK.pattern.expand(C, H, W), MAPS)
    with pytest.raises(InputError, match="a mask of 0 and 1; found other values"):
        solve(name, Y, 0.5 * MASK.pattern, MAPS)
    with pytest.raises(InputError, match=r"at least one slice, coil, row and column; found \(0, 4, 24, 20\)"):
        solve(name, Y[None][:0], MASK.pattern, MAPS)
    with pytest.raises(InputError, match="a mask as a tensor or an array of numbers; found Mask"):
        solve(name, Y, MASK, MAPS)


# --------------------------------------------------------------------------------------------------- arrays


def test_numpy_and_single_numbers_everywhere():
    k, y = K[0].numpy(), Y.numpy()
    assert torch.equal(apply_mask(k, MASK.pattern.numpy()), Y)
    for square in (12, np.int64(12)):
        assert torch.equal(espirit(k, square), espirit(K[0], (12, 12)))
    assert torch.equal(low_resolution(k, 12), low_resolution(K[0], (12, 12)))
    assert torch.equal(estimate_maps(k, 12), estimate_maps(K[0], (12, 12)))
    assert torch.equal(root_sum_of_squares(y), root_sum_of_squares(Y))
    assert find_acs(MASK.pattern.numpy()) == find_acs(MASK.pattern)
    A, B = encoding(MAPS.numpy(), MASK.pattern.numpy()), encoding(MAPS, MASK.pattern)
    b = B.H(Y)
    assert relative_error(A.H(y), b) < 1e-6
    assert relative_error(A(b.numpy()), B(b)) < 1e-6
    assert relative_error(Sensitivity(MAPS.numpy()).H(y), Sensitivity(MAPS).H(Y)) < 1e-6
    solved = (conjugate_gradients(A, x, iterations=2) for x in (b.numpy(), b))
    assert relative_error(*solved) < 1e-5
    density = torch.full((1, W), 0.5)
    compensated = density_compensated(y, MASK.pattern.numpy(), MAPS.numpy(), density.numpy())
    assert relative_error(compensated, density_compensated(Y, MASK.pattern, MAPS, density)) < 1e-6
    patterns = torch.stack([MASK.pattern, ~MASK.pattern])
    assert torch.equal(sampling_density(patterns.numpy()), sampling_density(patterns))
    by_name = reconstruct_slice(k, "cg-sense", sampling=COLUMNS)
    assert torch.equal(by_name.image, reconstruct_slice(K[0], METHODS["cg-sense"], sampling=COLUMNS).image)


def test_a_slice_with_a_mask_as_an_array():
    expected = reconstruct_slice(Y, "cg-sense", mask=MASK)
    columns = MASK.pattern[0].numpy()
    for mask in (
        columns,
        columns[None],
        columns[None, None],
        columns.astype(np.uint8),
        MASK.pattern.expand(H, W),
    ):
        found = reconstruct_slice(K[0], "cg-sense", mask=mask)
        assert found.mask.acs == (H, 6)
        assert not found.retrospective
        assert relative_error(found.image, expected.image) < 1e-5
    with pytest.raises(InputError, match=r"a mask \(1, 20\) or \(24, 20\); found \(19,\)"):
        reconstruct_slice(K[0], "cg-sense", mask=columns[1:])
    with pytest.raises(InputError, match="a mask that keeps something"):
        reconstruct_slice(K[0], "cg-sense", mask=0 * columns)


def test_arrays_of_any_layout_without_a_warning():
    plain = np.arange(24, dtype=np.complex64).reshape(4, 6)
    read_only = plain.copy()
    read_only.flags.writeable = False
    for array in (read_only, plain[::-1, ::-1], plain.T, plain.astype(">c8"), plain.tolist()):
        assert np.array_equal(as_tensor(array, "k-space").numpy(), np.asarray(array))
    for wrong in (None, "k-space", object(), [1, "a"], [[1], [1, 2]]):
        with pytest.raises(InputError, match="expected k-space as a tensor or an array of numbers; found"):
            as_tensor(wrong, "k-space")


def test_slices_one_at_a_time():
    with pytest.raises(InputError, match=r"k-space \(coils, H, W\); found \(2, 4, 24, 20\); pass one slice"):
        espirit(K, 12)
    for wrong in (K, K[0, 0]):
        with pytest.raises(InputError, match=r"k-space \(coils, H, W\); found .*; pass one slice"):
            reconstruct_slice(wrong, "tv")
    with pytest.raises(
        InputError, match=r"a method out of zero-filled, cg-sense, .*; found 'varnet'; choose one"
    ):
        reconstruct_slice(K[0], "varnet")


@pytest.mark.parametrize("shape", [(2, 48, 40, 4), (48, 40, 4), (2, 320, 300, 32), (20, 20, 1)])
def test_coils_that_come_last(shape: tuple[int, ...], tmp_path: Path):
    h, w, coils = shape[-3:]
    array = noise(*shape)
    message = (
        rf"found \(., {h}, {w}, {coils}\) .*; if the coils come last, save numpy.moveaxis\(array, -1, -3\)"
    )
    with pytest.raises(InputError, match=message):
        open_kspace(npy(tmp_path / "a.npy", array))
    with open_kspace(npy(tmp_path / "a.npy", np.moveaxis(array, -1, -3))) as file:
        assert file.shape[1:] == (coils, h, w)


@pytest.mark.parametrize("shape", [(64, 256, 32), (8, 256, 1), (32, 8, 8), (2, 32, 640, 16)])
def test_many_coils_that_come_first(shape: tuple[int, ...], tmp_path: Path):
    assert open_kspace(npy(tmp_path / "a.npy", noise(*shape))).shape[1:] == shape[-3:]


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("rate", [2.0, 2, [2.0], np.float32(2), np.array([2.0])])
def test_masks_of_single_numbers_and_lists(rate):
    config = MaskConfig("equispaced", rate, 0.25)
    assert config == MaskConfig("equispaced", (2.0,), (0.25,))
    assert hash(config) == hash(MaskConfig("equispaced", (2.0,), (0.25,)))
    assert type(config.accelerations[0]) in (int, float)


@pytest.mark.parametrize("rate", ["4", ["4"], [None], [[4.0]], 4j])
def test_rates_that_are_no_numbers(rate):
    with pytest.raises(InputError, match=r"accelerations as numbers; found .*; pass 4.0, or several"):
        MaskConfig("random", rate, 0.08)


def test_masks_for_the_shape_of_kspace():
    for shape in (K.shape, K[0].numpy().shape):
        assert torch.equal(draw_mask(COLUMNS, shape, 0).pattern, MASK.pattern)
    with pytest.raises(InputError, match=r"a shape \(..., H, W\); found \(20,\); pass that of k-space"):
        draw_mask(COLUMNS, (W,), 0)


def test_paths_as_text():
    config = ReconstructConfig("a.h5", "out", "tv", maps="maps.npy", sampling=MaskConfig(mask_file="m.npy"))
    paths = (*config.files, config.out, config.maps, config.sampling.mask_file)
    assert paths == tuple(map(Path, ("a.h5", "out", "maps.npy", "m.npy")))
    assert ReconstructConfig(["a.h5", "b.h5"], "out", "tv").files == (Path("a.h5"), Path("b.h5"))
    assert ReconstructConfig("a.h5", "out", run="run", maps="espirit").run == Path("run")
    assert ReconstructConfig("a.h5", "out", run="run", maps="espirit").maps == "espirit"
    training = TrainConfig("data", "out", held_out="more")
    assert (training.data, training.out, training.held_out) == (Path("data"), Path("out"), Path("more"))
    evaluation = EvaluateConfig("target", "images", "out")
    assert (evaluation.target, evaluation.prediction) == (Path("target"), (Path("images"),))
    assert EvaluateConfig("target", ["a", "b"]).prediction == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ReconstructConfig("a.h5", "out", "cg_sense"),
            "method out of zero-filled, cg-sense, .*'cg_sense'",
        ),
        (
            lambda: ReconstructConfig("a.h5", "out", "tv", device="gpu"),
            "device out of cpu, cuda; found 'gpu'",
        ),
        (
            lambda: train(TrainConfig("data", "out", model="VarNet")),
            "model out of unet, msense, varnet, .*'VarNet'",
        ),
        (
            lambda: train(TrainConfig("data", "out", maps="ESPIRiT")),
            "maps out of espirit, .*learned; found 'ESPIRiT'",
        ),
        (
            lambda: ModelConfig("varnet", (8, 8), maps="learnt"),
            "maps out of espirit, .*learned; found 'learnt'",
        ),
        (
            lambda: ModelConfig("varnet", (8, 8), regulariser="UNet"),
            "regulariser out of unet, spectral; .*'UNet'",
        ),
        (lambda: ModelConfig("U-Net", (8, 8)), "kind out of unet, msense, .*; found 'U-Net'; choose one"),
    ],
)
def test_words_that_a_setting_does_not_know(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_single_number_of_coils_and_of_noise():
    assert SimulateConfig(coils=8, noise=0.01) == SimulateConfig(coils=(8,), noise=(0.01, 0.01))
    with pytest.raises(InputError, match=r"numbers of coils from 1 to 1024; found coils=\(0,\)"):
        SimulateConfig(coils=0)
