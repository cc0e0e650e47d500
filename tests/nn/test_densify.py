"""densify: every Monarch matrix multiplied out, trained as its factors were and shared as they were."""

import copy

import pytest
import torch
from laws import relative_error
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from monarch_sciml import InputError, MonarchLinear
from monarch_sciml.mri.models import ModelConfig as ScanConfig
from monarch_sciml.mri.models import SliceReconstructor
from monarch_sciml.nn import LearnedFourier, LearnedTransform, MonarchConv
from monarch_sciml.nn.convert import densify, monarchize
from monarch_sciml.pde.models import FramePredictor
from monarch_sciml.pde.models import ModelConfig as FlowConfig


@pytest.mark.parametrize("sizes", [(12, 5), (13, 13), (10, 6)], ids=str)
@pytest.mark.parametrize("learned", [True, False])
def test_learned_transforms_become_dense_in_place(sizes, learned, double):
    n, modes = sizes
    transform = LearnedTransform(n, modes, scale=0.3, hermitian=True, first=0, learned=learned)
    W = transform()
    with torch.no_grad():
        transform.L.add_(0.1 * torch.randn_like(transform.L))
    W, coarse, adjoint = transform(), transform(n + 3), transform.adjoint(n - 2)
    shapes = transform.L.shape, transform.R.shape
    assert densify(transform) is transform
    if learned:
        assert [name for name, _ in transform.named_parameters()] == ["L"]
        assert transform.L.shape == (1, modes, n, 2)
    else:
        assert (transform.L.shape, transform.R.shape) == shapes
    for found, expected in (
        (transform(), W),
        (transform(n + 3), coarse),
        (transform.adjoint(n - 2), adjoint),
    ):
        assert relative_error(found, expected) < 1e-13
    L = transform.L
    assert transform.densify_().L is L
    other = LearnedTransform(n, modes, scale=0.3, hermitian=True, first=0, learned=learned).densify_()
    other.load_state_dict(transform.state_dict())
    assert torch.equal(other(), transform())


def test_states_saved_dense_make_transforms_dense(double):
    """So a model that was multiplied out is loaded as any other, into one that is built as before."""
    for make in (lambda: LearnedTransform(12, 5), lambda: LearnedFourier((12, 7))):
        dense = densify(make())
        with torch.no_grad():
            for p in dense.parameters():
                p += torch.randn_like(p)
        again = nn.Sequential(make())
        again.load_state_dict(nn.Sequential(dense).state_dict())
        assert [n for n, p in again.named_parameters()] == [f"0.{n}" for n, _ in dense.named_parameters()]
        for name, value in dense.state_dict().items():
            assert torch.equal(again.state_dict()[f"0.{name}"], value)
        plain = make()
        plain.load_state_dict(make().state_dict())  # and factors stay factors
        assert [n for n, _ in plain.named_parameters()] == [n for n, _ in make().named_parameters()]


def test_networks_saved_dense_come_back(tmp_path):
    network = FlowConfig("fno-monarch", (12, 10), channels=1, n_in=1, modes=6, width=4, layers=2).build()
    scans = ScanConfig("varnet-monarch", (12, 10), cascades=2, channels=2, pools=1)
    for model, load in (
        (network, FramePredictor.from_pretrained),
        (SliceReconstructor(scans.build(), scans), SliceReconstructor.from_pretrained),
    ):
        densify(model)
        model.save_pretrained(tmp_path / type(model).__name__)
        state = load(tmp_path / type(model).__name__).state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("inverse", [True, False])
def test_learned_fourier_becomes_dense_on_every_grid(inverse, double):
    fourier = LearnedFourier((12, 7), inverse=inverse)
    with torch.no_grad():
        for p in fourier.parameters():
            p += 0.1 * torch.randn_like(p)
    xs = [torch.randn(2, *s, dtype=torch.complex128) for s in ((12, 7), (10, 9))]
    before = [fourier.operator(tuple(x.shape))(x).detach() for x in xs]
    adjoints = [fourier.operator(tuple(x.shape)).H(x).detach() for x in xs]
    fourier.densify_()
    assert [name for name, _ in fourier.named_parameters()] == ["L_y", "L_x"]
    for x, y, a in zip(xs, before, adjoints, strict=True):
        operator = fourier.operator(tuple(x.shape))
        assert relative_error(operator(x), y) < 1e-12
        assert relative_error(operator.H(x), a) < 1e-12


def test_the_model_itself():
    layer = MonarchLinear(16, 12)
    assert isinstance(densify(layer), nn.Linear)


def fused():
    model = nn.ModuleDict({"qkv": nn.Linear(16, 48)})
    monarchize(model)
    return model


LAYERS = {
    "linear": (lambda: MonarchLinear(16, 12), "L", "R"),
    "convolution": (lambda: MonarchConv(nn.Conv1d(16, 12, 3)), "L", "R"),
    "fused": (fused, "qkv.parts.1.L", "qkv.parts.1.R"),
    "transform": (lambda: LearnedTransform(12, 7), "L", "R"),
    "image transform": (lambda: LearnedFourier((12, 8)), "L_x", "R_x"),
}


@pytest.mark.parametrize("trained", [0, 1], ids=["L", "R"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_dense_weight_is_trained_if_one_of_its_factors_was(name, trained):
    build, *factors = LAYERS[name]
    model = build().requires_grad_(False)
    model.get_parameter(factors[trained]).requires_grad_(True)
    model = densify(model)
    found = [n for n, p in model.named_parameters() if p.requires_grad]
    dense = {"fused": "qkv.weight", "transform": "L", "image transform": "L_x"}
    assert found == [dense.get(name, "weight")]


@pytest.mark.parametrize("trained", [0, 1], ids=["L", "R"])
@pytest.mark.parametrize("name", ["transform", "image transform"])
def test_a_transform_densified_by_itself_is_trained_likewise(name, trained):
    build, *factors = LAYERS[name]
    transform = build().requires_grad_(False)
    transform.get_parameter(factors[trained]).requires_grad_(True)
    found = [n for n, p in transform.densify_().named_parameters() if p.requires_grad]
    assert found == factors[:1]


def tie(a, b, names):
    for name in names:
        setattr(b, name, getattr(a, name))


@pytest.mark.parametrize("name", ["linear", "convolution", "transform", "image transform"])
def test_tied_factors_make_a_tied_weight(name, double):
    build, L, R = LAYERS[name]
    model = nn.ModuleList([build() for _ in range(3)])
    tie(model[0], model[1], (L, R))
    tie(model[0], model[2], (L,))
    separate = copy.deepcopy(model)
    densify(model)
    weight = L if "transform" in name else "weight"
    first, twin, other = (layer.get_parameter(weight) for layer in model)
    assert first is twin
    assert first is not other, "one factor in common is no weight in common"
    for layer, before in zip(model, separate, strict=True):
        dense = densify(before).get_parameter(weight)
        assert relative_error(layer.get_parameter(weight).detach(), dense.detach()) < 1e-14


def test_factors_of_other_sizes_are_not_tied():
    wide, narrow = MonarchLinear(16, 16), MonarchLinear(16, 15)
    tie(wide, narrow, "LR")
    wide, narrow = densify(nn.Sequential(wide, narrow))
    assert narrow.weight.shape == (15, 16)
    assert torch.equal(wide.weight[:15], narrow.weight)


@pytest.mark.parametrize("factor", ["L", "R"])
def test_parametrised_factors_are_multiplied_out(factor):
    layer, x = weight_norm(MonarchLinear(16, 12), factor), torch.randn(3, 16)
    y = layer(x)
    with torch.no_grad():  # where what is computed asks for no gradient
        dense = densify(layer)
    assert type(dense) is nn.Linear
    assert dense.weight.requires_grad
    assert relative_error(dense(x), y) < 1e-6


def test_a_parametrised_transform_is_refused_before_anything_changes():
    model = nn.Sequential(MonarchLinear(12, 12), weight_norm(LearnedTransform(12, 7), "L"))
    with pytest.raises(InputError, match=r"without parametrizations; found some of 1; take them off with"):
        densify(model)
    assert isinstance(model[0], MonarchLinear)
