"""monarchize and densify on real small models: what is replaced, with what, and that the map stays."""

import copy
import json
import pickle

import pytest
import torch
from laws import relative_error
from safetensors.torch import load_file, save_file
from torch import nn

from monarch_sciml import InputError, MonarchLinear
from monarch_sciml.linalg import project
from monarch_sciml.nn import LearnedFourier, PointwiseConv
from monarch_sciml.nn.convert import densify, monarchize
from monarch_sciml.nn.linear import MonarchPointwise, StackedLinear


def mlp():
    return nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 30), nn.GELU(), nn.Linear(30, 2))


def image():
    return torch.randn(2, 3, 16, 16)


def tokens():
    return torch.randint(0, 50, (2, 7))


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **sizes))


def vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(num_hidden_layers=2, image_size=16, **sizes)
    )


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)


def fno():
    from neuralop.models import FNO

    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=16, n_layers=2)
    for p in model.parameters():  # neuraloperator's complex weights do not follow the default dtype
        if p.is_complex():
            p.data = p.data.to(torch.get_default_dtype().to_complex())
    return model


def fno_monarch():
    from monarch_sciml.pde.models import fno_monarch

    return fno_monarch((6, 5), 16, (12, 11), in_channels=1, out_channels=1, layers=2)


MODELS = {
    "mlp": (mlp, lambda: torch.randn(5, 24)),
    "gpt2": (gpt2, tokens),
    "bert": (bert, tokens),
    "vit": (vit, image),
    "encoder": (encoder, lambda: torch.randn(2, 5, 16)),
    "fno": (fno, lambda: torch.randn(2, 1, 12, 10)),
    "fno_monarch": (fno_monarch, lambda: torch.randn(2, 1, 12, 11)),
}


def out(model, x):
    with torch.no_grad():
        y = model(x)
    return y.logits if hasattr(y, "logits") else y


def tensors(model):
    return {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize("mode", ["project", "init"])
@pytest.mark.parametrize("name", MODELS)
def test_smaller_and_back_again_with_the_same_output(name, mode, double):
    build, data = MODELS[name]
    model, x = build().eval(), data()
    before = sum(p.numel() for p in model.parameters())
    report = monarchize(model, 4, mode=mode)
    assert report.parameters_before == before
    assert report.parameters_after == sum(p.numel() for p in model.parameters()) < before
    assert report.linear_before - report.linear_after == before - report.parameters_after
    for parameter in model.parameters():  # biases, which start at zero, too
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    y = out(model, x)
    assert densify(model) is model
    assert not [m for m in model.modules() if isinstance(m, (MonarchLinear, StackedLinear, MonarchPointwise))]
    assert relative_error(out(model, x), y) < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_one_block_keeps_the_map(name, double, monkeypatch):
    """A projection without loss: layer by layer the new one must read and write what the old one did."""
    build, data = MODELS[name]
    model, x = build().eval(), data()
    y = out(model, x)
    # one block never makes a layer smaller: let it pass
    from monarch_sciml.nn import convert

    monkeypatch.setattr(convert, "_reasons", lambda m, layers, *_: [_shared(layer, m) for layer in layers])
    report = monarchize(model, 1)
    assert max(row.error or 0 for row in report.rows) < 1e-13
    assert relative_error(out(model, x), y) < 1e-12
    densify(model)
    assert relative_error(out(model, x), y) < 1e-12


def _shared(layer, model):
    owners = [m for m in model.modules() for p in m._parameters.values() if p is layer.holder]
    return "shares" if len(owners) > 1 else None


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_states_load_into_a_fresh_model(name, dense, tmp_path):
    build, data = MODELS[name]

    def convert(model):
        monarchize(model, 4)
        return densify(model) if dense else model

    model, other, x = convert(build().eval()), convert(build().eval()), data()
    save_file({k: v.clone().contiguous() for k, v in tensors(model).items()}, tmp_path / "m.safetensors")
    state = load_file(tmp_path / "m.safetensors")
    assert list(dict(other.named_parameters())) == list(dict(model.named_parameters()))
    assert set(state) == set(tensors(other))
    if "_metadata" in other.state_dict():  # neuraloperator's constructor arguments
        state["_metadata"] = other.state_dict()["_metadata"]
    other.load_state_dict(state, strict=True)
    assert torch.equal(out(other, x), out(model, x))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["mlp", "gpt2", "encoder"])
def test_copies(name, dense):
    build, data = MODELS[name]
    model, x = build().eval(), data()
    monarchize(model, 4)
    model = densify(model) if dense else model
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(out(twin, x), out(model, x))


@pytest.mark.parametrize("name", ["unet", "msense", "varnet", "varnet-monarch", "modl", "modl-monarch"])
def test_mri_models_keep_their_output(name):
    from monarch_sciml.mri.models import ModelConfig

    model = ModelConfig(name, (12, 10), cascades=2, channels=4).build().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    maps = torch.randn(2, 3, 12, 10, dtype=torch.complex64)
    maps /= maps.abs().square().sum(1, keepdim=True).sqrt()
    kspace, pattern = torch.randn(2, 3, 12, 10, dtype=torch.complex64), torch.rand(12, 10) < 0.6
    with torch.no_grad():
        y = model(kspace * pattern, pattern, maps)
        learned = [m for m in model.modules() if isinstance(m, LearnedFourier)]
        densify(model)
        assert relative_error(model(kspace * pattern, pattern, maps), y) < 1e-5
    assert bool(learned) == (name == "msense" or name.endswith("monarch"))
    assert all(m.L_y.shape == (1, 12, 12, 2) and "R_y" not in dict(m.named_parameters()) for m in learned)


def test_projection_is_the_nearest_and_its_error_is_reported(double):
    model = mlp()
    weight = model[0].weight.detach().clone()
    row = monarchize(model, 4).rows[0]
    A = weight.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
    best = relative_error(project(A, (4, 4), rank=model[0].L.shape[2] // 4).to_dense(), A)
    assert row.error == pytest.approx(best, rel=1e-9)
    assert row.error == pytest.approx(relative_error(model[0].to_linear().weight.detach(), weight), rel=1e-6)


@pytest.mark.parametrize("std", [0.02, 0.3, 0.0])
def test_new_factors_keep_the_variance_that_was_there(std):
    model = nn.Sequential(nn.Linear(256, 512))
    nn.init.normal_(model[0].weight, std=std)
    bias = model[0].bias
    report = monarchize(model, 4, mode="init")
    assert report.rows[0].error is None
    assert model[0].bias is bias
    assert model[0].to_linear().weight.std().item() == pytest.approx(std, rel=0.05)
    model(torch.randn(3, 256)).square().sum().backward()
    assert any(p.grad.any() for p in (model[0].L, model[0].R))


def test_fused_projections_are_blocks_of_their_own(double):
    model = nn.Module()
    model.qkv, model.mix, model.kv = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(16, 32, bias=False)
    model.query_key_value = nn.Linear(16, 48)
    weight, names = model.qkv.weight.detach(), dict(model.named_children())
    monarchize(model)
    kinds = {name: type(getattr(model, name)).__name__ for name in names}
    assert kinds == {
        "qkv": "StackedLinear",
        "kv": "StackedLinear",
        "mix": "MonarchLinear",
        "query_key_value": "MonarchLinear",
    }
    assert [len(model.qkv.parts), len(model.kv.parts)] == [3, 2]
    for part, block in zip(model.qkv.parts, weight.chunk(3), strict=True):
        dense = nn.Linear(16, 16, bias=False)
        dense.weight.data = block
        assert torch.equal(part.to_linear().weight, MonarchLinear.from_linear(dense).to_linear().weight)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(axes, bias, double):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    plain, wide = conv(16, 12, 1, bias=bias), conv(16, 12, 3)
    model = nn.ModuleDict({"a": plain, "b": PointwiseConv(conv(16, 12, 1, bias=bias)), "c": wide})
    report = monarchize(model, 2)
    assert [(row.name, row.reason) for row in report.rows] == [("a", None), ("b", None), ("c", None)]
    x = torch.randn(2, 16, *range(3, 3 + axes))
    values = [model[name](x) for name in "abc"]
    assert model["a"](x[0]).shape == values[0][0].shape
    densify(model)
    assert type(model["a"]) is conv
    assert isinstance(model["b"], PointwiseConv)
    for name, value in zip("abc", values, strict=True):
        assert relative_error(model[name](x), value) < 1e-13


def test_what_stays_dense_and_why():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Module()
    model.embedding, model.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
    model.head.weight = model.embedding.weight
    model.small, model.left, model.taken = nn.Linear(2, 3), nn.Linear(16, 16), nn.Linear(16, 16)
    model.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    model.other = Scaled(16, 16)
    model.taken.requires_grad_(False)
    report = monarchize(model, exclude=("left",))
    assert {row.name: row.reason for row in report.rows} == {
        "head": "shares its weight with embedding",
        "small": "would not become smaller",
        "left": "not matched",
        "taken": None,
        "normed": "its weight is computed from other parameters",
    }
    assert model.head.weight is model.embedding.weight
    assert isinstance(model.taken, MonarchLinear)
    assert not any(p.requires_grad for p in model.taken.parameters())
    densify(model)
    assert not any(p.requires_grad for p in model.taken.parameters())
    assert report.linear_before == 9 + 3 * 272  # neither the embedding nor the 16 numbers of weight_norm


def test_one_module_in_two_places_stays_one():
    model = nn.ModuleDict({"a": nn.Linear(16, 16)})
    model["b"] = model["a"]
    assert len(monarchize(model).rows) == 1
    assert model["a"] is model["b"]
    densify(model)
    assert model["a"] is model["b"]
    assert isinstance(model["a"], nn.Linear)


def test_layers_without_a_size_stay_as_they_are():
    model = nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(64), nn.LazyConv1d(4, 3))
    report = monarchize(model)
    assert [(row.name, row.reason) for row in report.rows] == [("0", None)]
    assert report.parameters_before - report.parameters_after == report.linear_before - report.linear_after
    assert model[:2](torch.randn(3, 64)).shape == (3, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_projected_in_single(dtype):
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(48, 64, 1), nn.Conv1d(64, 64, 3)).to(dtype)
    single = copy.deepcopy(model).float()
    report, expected = monarchize(model), monarchize(single)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for row, other in zip(report.rows, expected.rows, strict=True):
        assert row.error == pytest.approx(other.error, rel=1e-3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, single.get_parameter(name).to(dtype)), name


def test_patterns_name_layers_and_what_is_around_them():
    model = encoder()
    report = monarchize(model, 4, include=("layers.0", "*.linear2"), exclude=("*.out_proj",))
    taken = {row.name for row in report.rows if row.reason is None}
    first = {f"layers.0.{n}" for n in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "linear1")}
    assert taken == first | {"layers.0.linear2", "layers.1.linear2"}
    assert isinstance(model.layers[1].self_attn, nn.MultiheadAttention)
    assert type(model.layers[0].self_attn.out_proj) is nn.Linear


def test_report():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3)) for _ in range(50)))
    report = monarchize(model, exclude=("7.*",))
    assert "49 × *.*            16 → 16" in str(report)
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["macs_after"] == 128
    many = nn.ModuleDict({f"layer{i}": nn.Linear(16, 16) for i in range(60)})
    text = str(monarchize(many)).splitlines()
    assert len(text) <= 40
    assert "… and 26 more" in text[-3]
    assert text[-1].split()[:2] == ["whole", "model"]


def test_meta_device_counts_without_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(768, 3072))
    report = monarchize(model)
    assert report.rows[0].macs_after == 737_280
    assert report.rows[0].error is None


# torch.compile itself, when it traces an explicit backward pass
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_graph_breaks():
    model, x = mlp(), torch.randn(5, 24)
    monarchize(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), model(x)) < 1e-6


@pytest.mark.parametrize("name", ["gpt2", "fno", "encoder"])
def test_autocast(name):
    if name == "fno":
        model, x = nn.Sequential(nn.Conv2d(16, 16, 1)), torch.randn(2, 16, 4, 4)
    else:
        model, x = MODELS[name][0]().eval(), MODELS[name][1]()
    monarchize(model)
    y = out(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative_error(out(model, x).float(), y) < 3e-2


def test_errors_name_what_there_is():
    with pytest.raises(InputError, match=r"match \['head'\] .*; found 0, 2, 4; choose among these names"):
        monarchize(mlp(), include=("head",))
    with pytest.raises(InputError, match=r"found no linear layer in it; .*from_linear"):
        monarchize(nn.Linear(16, 16))
    with pytest.raises(InputError, match="mode 'init' or 'project'; found 'svd'"):
        monarchize(mlp(), mode="svd")


@pytest.mark.parametrize("mode", ["project", "init"])
@pytest.mark.parametrize(
    ("layer", "parameter", "value"),
    [("0", "0.weight", torch.nan), ("1.v_proj", "1.in_proj_weight", torch.inf), ("2", "2.weight", torch.nan)],
)
def test_weights_that_are_not_finite_are_refused_by_name(layer, parameter, value, mode):
    model = nn.Sequential(nn.Linear(16, 16), nn.MultiheadAttention(16, 2), nn.Conv1d(16, 16, 3))
    model.get_parameter(parameter).data[-1, 3] = value
    with pytest.raises(InputError, match=f"finite weights in layer {layer}; found NaN or infinity; mend"):
        monarchize(model, mode=mode)
    assert isinstance(model[0], nn.Linear), "nothing is exchanged when something is refused"
    report = monarchize(model, mode=mode, exclude=(layer,))
    assert {row.name: row.reason for row in report.rows}[layer] == "not matched"
