"""FNO and FNO-Monarch: the same operator but for the transforms; export; refusals."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from laws import relative_error
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.nn import LearnedTransform, MonarchSpectralConv
from monarch_sciml.pde.models import (
    FramePredictor,
    ModelConfig,
    count_parameters,
    fno,
    fno_monarch,
)

SMALL = ModelConfig("fno-monarch", grid=(12, 10), channels=2, n_in=3, modes=4, width=4, layers=2, scale=2.5)
KINDS = ("fno", "fno-monarch")


def config(kind: str, **changes) -> ModelConfig:
    return dataclasses.replace(SMALL, kind=kind, **changes)  # type: ignore[arg-type]


def monarch_weights(baseline: nn.Module, monarch: nn.Module) -> dict[str, Tensor]:
    """The state of ``baseline`` under the names and in the layout of ``monarch``; its transforms stay."""
    theirs, state = baseline.state_dict(), dict(monarch.state_dict())
    theirs.pop("_metadata", None), state.pop("_metadata", None)
    for name, ours in state.items():
        if (
            "convs" in name
            and name.endswith(".weight")
            and "analysis" not in name
            and "synthesis" not in name
        ):
            # (in, out, m_1 … m_d) complex → (m_1 … m_d, in, out, 2)
            source = theirs.get(name, theirs.get(name + ".tensor"))
            state[name] = torch.view_as_real(source.movedim((0, 1), (-2, -1)).resolve_conj()).contiguous()
            assert state[name].shape == ours.shape
        elif name in theirs:
            state[name] = theirs[name]
        else:
            assert "analysis" in name or "synthesis" in name, name
    return state


@pytest.mark.parametrize(("modes", "grid"), [((6, 8), (16, 18)), ((5,), (20,)), ((4, 6, 4), (8, 12, 10))])
@pytest.mark.parametrize("learned", [False, True])
def test_with_the_same_weights_it_is_the_fno(modes, grid, learned):
    """In float32, as neuraloperator cannot compute in float64."""
    channels = {"in_channels": 2, "out_channels": 3, "layers": 2}
    baseline = fno(modes, 5, **channels)
    monarch = fno_monarch(modes, 5, grid, learned=learned, **channels)
    monarch.load_state_dict(monarch_weights(baseline, monarch))
    x = torch.randn(2, 2, *grid)
    assert relative_error(monarch(x), baseline(x)) < 2e-6


def test_same_parameters_but_for_the_transforms():
    channels = {"in_channels": 1, "out_channels": 1}
    baseline = fno((16, 16), 16, **channels)
    exact = fno_monarch((16, 16), 16, (32, 32), learned=False, **channels)
    learned = fno_monarch((16, 16), 16, (32, 32), **channels)
    transforms = sum(
        p.numel() for m in learned.modules() if isinstance(m, LearnedTransform) for p in m.parameters()
    )
    assert count_parameters(exact) == count_parameters(baseline)
    assert count_parameters(learned) == count_parameters(baseline) + transforms
    assert 0 < transforms <= 0.05 * count_parameters(baseline)  # at the default modes, width and grid
    assert sum(isinstance(m, MonarchSpectralConv) for m in learned.modules()) == 4


def test_complex_parameters_count_twice():
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(3))
    model.b = nn.Parameter(torch.zeros(5, dtype=torch.complex64))
    model.c = nn.Parameter(torch.zeros(7), requires_grad=False)
    assert count_parameters(model) == 3 + 2 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_state_holds_tensors_only(kind):
    state = config(kind).build().state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    wrapped = nn.ModuleDict({"model": config(kind).build()}).state_dict()
    assert all(isinstance(value, Tensor) for value in wrapped.values())
    assert set(wrapped) == {f"model.{name}" for name in state}


def test_each_channel_has_its_own_scale():
    units, frames = torch.tensor([2.0, 0.25])[:, None, None], torch.randn(3, 3, 2, 12, 10)
    torch.manual_seed(0)
    plain = dataclasses.replace(SMALL, scale=1.0, residual=True).build()
    torch.manual_seed(0)
    scaled = dataclasses.replace(SMALL, scale=(2.0, 0.25), residual=True).build()
    torch.testing.assert_close(scaled(units * frames), units * plain(frames))


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_scales_with_the_data(kind):
    """Divided by ``scale`` before the operator and multiplied after it; frames become channels."""
    model = config(kind).build().eval()
    frames = torch.randn(2, 3, 2, 12, 10)
    expected = 2.5 * model.operator(torch.cat([frames[:, 0], frames[:, 1], frames[:, 2]], dim=1) / 2.5)
    torch.testing.assert_close(model(frames), expected)
    residual = FramePredictor(model.operator, config(kind, residual=True))
    torch.testing.assert_close(residual(frames), frames[:, -1] + expected)
    assert model(frames).shape == (2, 2, 12, 10)


@pytest.mark.parametrize("kind", ["fno", "fno-monarch", "resnet"])
def test_dtype_of_the_frames_is_that_of_the_weights(kind):
    """As for torch's own layers; autocast converts."""
    model, frames = config(kind).build().eval(), torch.randn(2, 3, 2, 12, 10)
    for wrong in (frames.double(), frames.half(), (frames > 0).long()):
        with pytest.raises(InputError, match=r"in float32, the dtype of the weights; found \w+; convert one"):
            model(wrong)
    if kind != "fno":  # whose FFT knows float32 only
        exact = config(kind).build().double()(frames.double())
        assert exact.dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert model(frames.bfloat16()).shape == (2, 2, 12, 10)


@pytest.mark.parametrize("kind", ["fno", "fno-monarch", "unet"])
def test_an_empty_batch_stays_empty(kind):
    model = config(kind, grid=(16, 16)).build()
    assert model(torch.zeros(0, 3, 2, 16, 16)).shape == (0, 2, 16, 16)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["fno-monarch", "unet", "tf-net", "resnet"])
def test_it_compiles_without_breaks_of_the_graph(kind):
    model = config(kind, grid=(16, 18), width=4, layers=1, scale=(0.5, 3.0)).build().eval()
    frames = torch.randn(5, 3, 2, 16, 18)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frames), model(frames))


@pytest.mark.parametrize("kind", ["fno-monarch", "unet", "tf-net", "resnet"])
def test_an_exported_program_takes_any_number_of_samples(kind):
    model = config(kind, grid=(16, 18), width=4, layers=1, scale=(0.5, 3.0)).build().eval()
    frames = torch.randn(5, 3, 2, 16, 18)
    exported = torch.export.export(model, (frames[:2],), dynamic_shapes=({0: torch.export.Dim("samples")},))
    torch.testing.assert_close(exported.module()(frames), model(frames))


def test_channels_in_the_wrong_place_and_converting_too_late():
    operator = fno_monarch((4, 4), 4, (12, 10), in_channels=1, out_channels=1, layers=1)
    with pytest.raises(
        InputError, match=r"of 3 channels; found shape \(2, 14, 10\); channels are the second"
    ):
        operator(torch.randn(2, 12, 10, 1))
    operator(torch.randn(2, 1, 12, 10))
    with pytest.raises(InputError, match=r"in float16, the dtype of the weights; found float32"):
        operator.half()(torch.randn(2, 1, 12, 10).half())  # the coordinates are float32 already
    fresh = fno_monarch((4, 4), 4, (12, 10), in_channels=1, out_channels=1, layers=1).half()
    assert fresh(torch.randn(2, 1, 12, 10).half()).dtype == torch.float16


def test_seed_decides_the_weights():
    def built(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(config("fno-monarch").build().parameters())

    assert torch.equal(built(3), built(3))
    assert not torch.equal(built(3), built(4))


@pytest.mark.parametrize("grid", [(24, 20), (15, 11), (36, 17)])
def test_other_grids_without_retraining(grid):
    """Of a band-limited field, the first layer's coefficients are the same on every grid that resolves it."""
    model = config("fno-monarch").build()
    nn.init.normal_(next(m for m in model.modules() if isinstance(m, LearnedTransform)).L)
    conv = next(m for m in model.modules() if isinstance(m, MonarchSpectralConv))

    def field(n_x: int, n_y: int) -> Tensor:
        x, y = torch.arange(n_x)[:, None] / n_x, torch.arange(n_y) / n_y
        return torch.cos(2 * torch.pi * (x - 2 * y)).expand(1, conv.in_channels, n_x, n_y)

    coarse, fine = conv(field(12, 10)), conv(field(*grid))
    assert relative_error(conv(field(12, 10), output_shape=grid), fine) < 1e-5
    assert relative_error(fine.mean((-2, -1)), coarse.mean((-2, -1))) < 1e-5
    assert model(torch.randn(1, 3, 2, *grid)).shape == (1, 2, *grid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2, 2, 12, 10), (2, 3, 1, 12, 10), (2, 3, 2, 12), (3, 2, 12, 10)])
def test_wrong_input_shapes_are_named(kind, shape):
    with pytest.raises(
        InputError,
        match=r"frames \(batch, 3, 2, 2 grid axes\); found shape .*; pass as many frames and channels",
    ):
        config(kind).build()(torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_more_modes_than_points(kind):
    with pytest.raises(InputError, match=r"at most 10 modes on a grid of \(12, 10\); found modes=11; lower"):
        config(kind, modes=11).build()
    assert config(kind, modes=10).build()


def test_unknown_kind():
    with pytest.raises(InputError, match=r"a model among fno, .*resnet; found 'mlp'; choose"):
        config("mlp").build()


@pytest.fixture(params=KINDS)
def exported(request, tmp_path) -> tuple[FramePredictor, Path]:
    scale = (0.5, 3.0) if request.param == "fno-monarch" else 2.5
    model = config(request.param, residual=request.param == "fno", scale=scale).build().eval()
    return model, model.save_pretrained(tmp_path / "model")


def test_export_round_trip(exported):
    model, path = exported
    state = torch.random.get_rng_state()
    loaded = FramePredictor.from_pretrained(path)
    assert torch.equal(torch.random.get_rng_state(), state)  # loading draws nothing
    assert loaded.config == model.config
    assert not loaded.training
    assert any(p.is_complex() for p in loaded.parameters()) == (model.config.kind == "fno")
    x = torch.randn(2, 3, 2, 12, 10)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert f"{count_parameters(model):,} parameters" in (path / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"expected JSON in .*config.json"),
        ("[]", r"the settings of a model in .*config.json; found a list"),
        ("{}", r"the settings of a model \(kind, .*; found missing: channels, .*; unknown: none; check"),
        ({"depth": 3}, r"the settings of a model \(.*; found missing: none; unknown: depth"),
        ({"width": "wide"}, r"width of the type int; found 'wide'; check .*config.json"),
        ({"width": 5.0}, r"width of the type int; found 5.0"),
        ({"width": True}, r"width of the type int; found True"),
        ({"layers": 0}, r"layers of the type int; found 0"),
        ({"grid": []}, r"grid of the type tuple\[int, ...\]; found \[\]"),
        ({"grid": 12}, r"grid of the type tuple\[int, ...\]; found 12"),
        ({"scale": float("nan")}, r"scale of the type .*; found nan"),
        ({"scale": 0}, r"scale of the type .*; found 0"),
        ({"scale": [1.0, 0.0]}, r"scale of the type .*; found \[1.0, 0.0\]"),
        ({"scale": [1.0, 2.0, 3.0]}, r"one for each of \d channels; found 3"),
        ({"residual": 1}, r"residual of the type .*; found 1"),
        ({"kind": "mlp"}, r"kind of the type Literal\['fno', .*'resnet'\]; found 'mlp'"),
        ({"modes": 11}, r"at most 10 modes on a grid of \(12, 10\); found modes=11; check .*config.json"),
        ({"grid": [12] * 9}, r"settings that make a model; found \w+: |weights that fit"),
        ({"width": 5}, r"weights that fit the configuration in .*; found .*size mismatch"),
        ({"grid": [12, 12, 12]}, r"weights that fit the configuration in"),
        ({"architecture": "SliceReconstructor"}, r"a FramePredictor in .*; found a SliceReconstructor; load"),
    ],
)
def test_damaged_configuration(exported, content, match):
    _, path = exported
    file = path / "config.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(InputError, match=match):
        FramePredictor.from_pretrained(path)


def test_an_export_without_card_and_architecture_loads(exported):
    model, path = exported
    file = path / "config.json"
    content = json.loads(file.read_text())
    assert content.pop("architecture") == "FramePredictor"
    assert content.pop("monarch_sciml_version")
    file.write_text(json.dumps(content))
    (path / "README.md").unlink()
    assert FramePredictor.from_pretrained(path).config == model.config


def test_a_model_of_half_precision_loads_in_single(tmp_path):
    config = ModelConfig("fno-monarch", (16, 16), channels=1, n_in=1, modes=16, width=16, layers=1)
    model = config.build().bfloat16()
    model.save_pretrained(tmp_path)
    loaded = FramePredictor.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value.float()), name


def test_no_model_there(tmp_path):
    with pytest.raises(InputError, match=r"an exported model in .*nowhere; found no such folder"):
        FramePredictor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"an exported model in .*; found none; train to the end"):
        FramePredictor.from_pretrained(tmp_path)
