import json

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError, LearnedFourier
from monarch_sciml.mri.classical import density_compensated, zero_filled
from monarch_sciml.mri.models import (
    KINDS,
    LearnedMaps,
    ModelConfig,
    MoDL,
    MSense,
    SliceReconstructor,
    VarNet,
    count_parameters,
    departures,
    learned_transforms,
)
from monarch_sciml.mri.operators import encoding
from monarch_sciml.mri.regularisers import Refinement, UNet

SHAPE = (24, 20)
UNROLLED = [kind for kind in KINDS if kind.startswith(("varnet", "modl"))]


def scan(shape=SHAPE, coils=4, batch=1, columns=True, dtype=torch.complex64):
    """k-space, pattern and maps of random data."""
    maps = torch.randn(batch, coils, *shape, dtype=dtype)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    pattern = torch.rand(batch, 1 if columns else shape[0], shape[1]) < 0.4
    pattern[..., shape[1] // 2 - 2 : shape[1] // 2 + 2] = True
    kspace = torch.randn(batch, coils, *shape, dtype=dtype) * pattern[:, None]
    return kspace, pattern, maps


def build(kind, **settings):
    torch.manual_seed(1)
    return ModelConfig(kind, SHAPE, **{"cascades": 2, "channels": 2, "pools": 1, **settings}).build()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (17, 23), (32, 9)])
def test_every_model_takes_every_size_and_mask(kind, columns, shape):
    image = build(kind)(*scan(shape, columns=columns))
    assert image.shape == (1, *shape)
    assert image.isfinite().all()
    assert image.is_complex() == (kind != "unet")


@pytest.mark.parametrize("maps", ["espirit", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_data_have_the_precision_of_the_weights(kind, maps):
    model, (kspace, pattern, S) = build(kind, maps=maps), scan(dtype=torch.complex128)
    match = "of complex64, as the weights; found complex128; convert .*complex64"
    for data in ((kspace, pattern, S), (kspace.cfloat(), pattern, S), (kspace, pattern, S.cfloat())):
        with pytest.raises(InputError, match=match) as error:
            model(*data)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="of complex128, as the weights; found complex64"):
        model.double()(kspace.cfloat(), pattern, S)
    assert model(kspace, pattern, S).abs().dtype == torch.float64


@pytest.mark.parametrize("maps", ["espirit", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_data_that_are_no_batch(kind, maps):
    model, (kspace, pattern, S) = build(kind, maps=maps), scan(batch=3)
    match = (
        r"k-space \(batch, coils, H, W\), and maps of .*; found \(.*\) and \(.*\); keep the axis of the batch"
    )
    data = [(kspace[0], S[0]), (kspace[None], S[None]), (kspace, S[0]), (kspace[:1], S), (kspace[:2], S)]
    for one, its_maps in data:
        with pytest.raises(InputError, match=match):
            model(one, pattern[0], its_maps)
    with pytest.raises(InputError, match=r"as tensors; found ndarray; pass torch\.from_numpy"):
        model(kspace.numpy(), pattern, S.numpy())
    with pytest.raises(InputError, match=r"weights of float32 or float64; found bfloat16; .*autocast"):
        model.bfloat16()(kspace, pattern, S)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_one_slice_serve_a_batch(kind):
    model, (kspace, pattern, S) = build(kind), scan(batch=3)
    with torch.no_grad():
        found, expected = (model(kspace, pattern[0], maps) for maps in (S[:1], S[:1].expand(3, -1, -1, -1)))
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("regulariser", ["unet", "spectral"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("base", ["varnet", "modl"])
@pytest.mark.parametrize("columns", [True, False])
def test_at_initialisation_the_monarch_variant_is_the_network_with_the_fft(base, share, regulariser, columns):
    settings = {"share_transforms": share, "regulariser": regulariser, "modes": 6}
    fft, monarch = (build(base + suffix, **settings) for suffix in ("", "-monarch"))
    monarch.load_state_dict(fft.state_dict(), strict=False)
    with torch.no_grad():
        for shape in (SHAPE, (21, 26)):
            inputs = scan(shape, columns=columns)
            assert relative_error(monarch(*inputs), fft(*inputs)) < 1e-5


def test_msense_is_zero_filled_sense_at_initialisation_and_linear():
    model = build("msense", cascades=1)
    kspace, pattern, maps = scan(batch=2)
    with torch.no_grad():
        assert relative_error(model(kspace, pattern, maps), zero_filled(kspace, pattern, maps)) < 1e-6
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        other = torch.randn_like(kspace)
        sum_of_both = model(2j * kspace + other, pattern, maps)
        both = 2j * model(kspace, pattern, maps) + model(other, pattern, maps)
        assert relative_error(sum_of_both, both) < 1e-5


@pytest.mark.parametrize("compensated", [True, False])
def test_iterated_msense_is_linear_and_ends_at_the_solution_of_sense(compensated):
    """Whatever it starts from, more iterations end at the least-squares solution of A x = y."""
    torch.manual_seed(0)
    kspace, pattern, maps = scan(batch=2, columns=False, coils=12)
    A = encoding(maps, pattern)
    image = torch.randn(2, *SHAPE, dtype=torch.complex64)
    errors = []
    for iterations in (1, 8, 64):
        model = build("msense", cascades=iterations)
        if compensated:
            model.compensate(0.2 + 0.8 * torch.rand(SHAPE))
        with torch.no_grad():
            errors.append(relative_error(model(A(image), pattern, maps), image))
            other = torch.randn_like(kspace) * pattern[:, None]
            both = 2j * model(kspace, pattern, maps) + model(other, pattern, maps)
            assert relative_error(model(2j * kspace + other, pattern, maps), both) < 1e-5
    assert errors[0] > 0.2
    assert errors[1] < errors[0] / 4
    assert errors[2] < 1e-4


def test_iterations_of_msense_follow_the_equation():
    """Against the formula, with a V that was changed."""
    model, (kspace, pattern, maps) = build("msense", cascades=3), scan(columns=False)
    A = encoding(maps, pattern)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        V = model.inverse.operator(tuple(maps.shape[-3:]))

        def back(y):
            return (maps.conj() * V(y)).sum(1)

        first = back(kspace)
        v = 2.2 * back(kspace - A(first))
        second = first + v
        v = 0.5 * v + 2.2 * back(kspace - A(second))
        assert relative_error(model(kspace, pattern, maps), second + v) < 1e-5


@pytest.mark.parametrize("shape", [SHAPE, (1, SHAPE[1])])
def test_compensated_msense_starts_as_density_compensation(shape):
    model, density = build("msense", cascades=1), 0.1 + 0.9 * torch.rand(shape)
    kspace, pattern, maps = scan(batch=2, columns=False)
    density[..., 0] = 0  # never measured
    pattern[..., 0] = False
    kspace = kspace * pattern[:, None]
    model.compensate(density)
    with torch.no_grad():
        expected = density_compensated(kspace, pattern, maps, density, power=0.75)
        assert relative_error(model(kspace, pattern, maps), expected) < 1e-6
    assert model.weights.isfinite().all()
    assert not any(name.startswith("weights") for name, _ in model.named_parameters())


@pytest.mark.parametrize("shape", [(48, 40), (17, 31), (12, 10)])
def test_weights_of_msense_are_the_same_at_the_same_fraction_of_the_highest_frequency(shape):
    """Weights that are linear in k/n along either axis are met exactly by linear interpolation."""

    def weights(shape):
        y, x = (torch.arange(n, dtype=torch.float64) / n - (n // 2) / n for n in shape)
        return (2 + y[:, None]) * (3 - x)

    model = build("msense", cascades=1)
    model.compensate(1 / weights(SHAPE), power=1)
    kspace, pattern, maps = scan(shape, columns=False)
    inner = torch.zeros(shape)  # beyond the outermost frequency of the smaller grid the weight is constant
    inner[2:-2, 2:-2] = 1
    kspace = kspace * inner
    with torch.no_grad():
        expected = zero_filled(kspace * weights(shape).float(), pattern, maps)
        assert relative_error(model(kspace, pattern, maps), expected) < 1e-5


@pytest.mark.parametrize("shape", [(20, 24), (24, 19), (2, 24, 20), (20,)])
def test_a_density_of_another_grid_is_refused(shape):
    with pytest.raises(InputError, match=r"a density for \(24, 20\), the grid of the transform"):
        build("msense").compensate(torch.ones(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_the_data_is_the_scale_of_the_image(kind):
    model, (kspace, pattern, maps) = build(kind).eval(), scan()
    with torch.no_grad():
        image = model(kspace, pattern, maps)
        assert relative_error(model(1e-6 * kspace, pattern, maps) * 1e6, image) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (17, 23)])
def test_what_was_not_sampled_does_not_count(kind, columns, shape):
    model, (kspace, pattern, maps) = build(kind).eval(), scan(shape, columns=columns)
    whole = torch.where(pattern[:, None], kspace, torch.randn_like(kspace))
    with torch.no_grad():
        assert torch.equal(model(whole, pattern, maps), model(kspace, pattern, maps))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [True, False])
def test_a_batch_is_its_slices(kind, columns):
    model, (kspace, pattern, maps) = build(kind).eval(), scan(batch=3, columns=columns)
    with torch.no_grad():
        together = model(kspace, pattern, maps)
        apart = [model(*(t[i : i + 1] for t in (kspace, pattern, maps))) for i in range(3)]
    assert relative_error(together, torch.cat(apart)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maps_of", ["espirit", "learned"])
@pytest.mark.parametrize("shape", [SHAPE, (18, 25)])
def test_where_no_coil_is_sensitive_the_image_is_zero_whatever_the_weights(kind, maps_of, shape):
    model, (kspace, pattern, maps) = build(kind, maps=maps_of), scan(shape, batch=2, columns=False)
    maps[..., :5] = 0
    maps[0, :, 7, 9] = 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        image = model(kspace, pattern, maps)
        # a slice that no coil sees, in the units of any scanner
        assert not model(1e9 * kspace, pattern, 0 * maps).any()
    assert (image[..., :5] == 0).all()
    assert image[0, 7, 9] == 0
    assert image.count_nonzero() > 0.4 * image.numel()  # a U-Net cuts off what would be negative


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model = build(kind, share_transforms=False, maps="learned")
    model(*scan(columns=False)).abs().sum().backward()
    # a U-Net of magnitudes is the only one that uses the maps just once
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("kind", ["varnet-monarch", "msense", "modl-monarch"])
@pytest.mark.parametrize("shape", [SHAPE, (18, 25)])
@pytest.mark.parametrize("narrow", [True, False])
def test_the_quick_paths_without_gradients_change_nothing(kind, shape, narrow):
    """Factors in place of matrices, coil after coil, and only the columns that were sampled."""
    model = build(kind).eval()
    kspace, pattern, maps = scan(shape, batch=2)
    if narrow:  # few enough columns to leave the others out
        pattern = torch.zeros_like(pattern)
        pattern[..., 8:13] = True
        kspace = kspace * pattern[:, None]
    with torch.no_grad():
        for transform in learned_transforms(model):
            for parameter in transform.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        quick = model(kspace, pattern, maps)
    assert relative_error(quick, model(kspace, pattern, maps).detach()) < 1e-5


class Nothing(torch.nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_without_a_regulariser_varnet_is_gradient_descent(double):
    kspace, pattern, maps = scan(dtype=torch.complex128)
    A = encoding(maps, pattern)
    x = A.H(kspace)
    for _ in range(3):
        x = x - 0.7 * A.H(A(x) - kspace)
    model = VarNet([Nothing() for _ in range(3)])
    with torch.no_grad():
        model.steps.fill_(0.7)
        assert relative_error(model(kspace, pattern, maps), x) < 1e-12


def test_modl_solves_its_normal_equations(double):
    """With D = 0 a cascade is (AᴴA + λI)⁻¹ (Aᴴy + λx), from x = Aᴴy."""
    kspace, pattern, maps = scan((6, 5), dtype=torch.complex128)
    model = MoDL(Nothing(), 1, iterations=40)
    A = encoding(maps[0], pattern[0]).to_dense(torch.complex128)
    y, damping = kspace.flatten(), model.log_damping.exp()
    b = A.mH @ y
    expected = torch.linalg.solve(A.mH @ A + damping * torch.eye(30), b + damping * b)
    with torch.no_grad():
        assert relative_error(model(kspace, pattern, maps).flatten(), expected) < 1e-8


def test_twins_have_nearly_equal_parameters():
    sizes = [count_parameters(ModelConfig(kind, (128, 128)).build()) for kind in ("varnet", "varnet-monarch")]
    assert sizes[0] < sizes[1] < 1.05 * sizes[0]
    assert count_parameters(ModelConfig("msense", (128, 128)).build()) == 12288


def test_learned_transforms_are_found_and_their_departure_is_a_penalty():
    model = build("varnet-monarch", share_transforms=False)
    assert len(learned_transforms(model)) == 2
    assert departures(model) < 1e-12
    assert departures(build("varnet")) == 0
    with torch.no_grad():
        learned_transforms(model)[0].L_y.mul_(3)
    penalty = departures(model)
    penalty.backward()
    assert penalty > 0.1
    assert learned_transforms(model)[0].L_y.grad.any()


class Maps(torch.nn.Module):
    """The maps that a model is given."""

    def forward(self, kspace, pattern, maps):
        return maps


def test_learned_maps_stay_normalised():
    refined = LearnedMaps(Maps())(*scan(batch=2))
    assert torch.allclose(refined.abs().square().sum(1), torch.ones(2, *SHAPE), atol=1e-5)


def test_maps_that_a_network_of_zeros_refines_are_the_given_ones_normalised():
    kspace, pattern, maps = scan(batch=2)
    maps[..., :3] = 0
    model = LearnedMaps(Maps())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert relative_error(model(kspace, pattern, 3j * maps), 1j * maps) < 1e-6


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 4)])
def test_unet_keeps_every_size(size):
    assert UNet(2, 3, 4, 2)(torch.randn(1, 2, *size).expand(2, -1, -1, -1)).shape == (2, 3, *size)


def test_refinement_ignores_offset_and_scale():
    """D(a x) = a D(x), part by part, because each is normalised before the network."""
    refine, x = Refinement(UNet(2, 2, 2, 1)), torch.randn(1, 12, 12, dtype=torch.complex64)
    assert relative_error(refine(5 * x), 5 * refine(x)) < 1e-4


@pytest.mark.parametrize("maps", ["espirit", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_export_and_load(kind, maps, tmp_path):
    config = ModelConfig(kind, SHAPE, cascades=2, channels=2, pools=1, maps=maps)
    model, inputs = config.build().eval(), scan()
    if kind == "msense" and maps == "espirit":
        model.compensate(0.1 + torch.rand(SHAPE))
    SliceReconstructor(model, config).save_pretrained(tmp_path / "model")
    loaded = SliceReconstructor.from_pretrained(tmp_path / "model")
    assert loaded.config == config
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), model(*inputs))
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{count_parameters(model):,} parameters" in card
    assert "not for clinical use" in card
    assert type(loaded.network) is type(model)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"kind": "msense", "shape": [24, 20], "colour": 1}, r"the settings of a model \(.*unknown: colour"),
        ({"kind": "msense"}, r"the settings of a model \(.*; found missing: shape"),
        ({"kind": "transformer", "shape": [24, 20]}, "kind of the type .*'unet', 'msense'.*; found 'transf"),
        ({"kind": "msense", "shape": [24, 20, 1]}, r"shape of the type tuple\[int, int\]; found \[24, 20, 1"),
        ({"kind": "msense", "shape": [24, -20]}, r"shape of the type tuple\[int, int\]; found \[24, -20"),
        ({"kind": "msense", "shape": [20, 24]}, "weights that fit the configuration"),
        ({"kind": "fno", "architecture": "FramePredictor"}, "a SliceReconstructor in .*; found a FramePred"),
    ],
)
def test_what_cannot_be_loaded_is_said(tmp_path, content, match):
    config = ModelConfig("msense", SHAPE)
    SliceReconstructor(config.build(), config).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=match):
        SliceReconstructor.from_pretrained(tmp_path)


def test_types():
    assert isinstance(build("msense"), MSense)
    assert isinstance(build("msense").inverse, LearnedFourier)
    assert build("varnet").transforms is None
    assert UNROLLED == ["varnet", "varnet-monarch", "modl", "modl-monarch"]
