"""MonarchLinear is a linear layer with a Monarch weight: map, start and manners of a dense one."""

import io

import pytest
import torch
from laws import assert_same, relative_error
from torch import nn

from monarch_sciml import InputError, MonarchLinear
from monarch_sciml.kernels import dispatch

# in, out, nblocks: divisible, wide, narrow, ragged, prime, one block, more blocks than features
SIZES = [
    (32, 32, 4),
    (16, 64, 4),
    (64, 16, 4),
    (30, 50, 4),
    (13, 7, 3),
    (9, 5, 1),
    (3, 2, 4),
    (1, 1, 1),
    (17, 40, 2),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_dense_layer_of_the_same_map(sizes, bias, double):
    layer = MonarchLinear(*sizes, bias=bias)
    dense = layer.to_linear()
    assert (dense.in_features, dense.out_features) == sizes[:2]
    assert (dense.bias is not None) == bias
    for batch in ((), (5,), (2, 3)):
        assert_same(layer, dense, torch.randn(*batch, sizes[0]), tol=1e-13)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tiles_of_the_weight_are_products_of_the_blocks(sizes, double):
    _, _, n = sizes
    layer = MonarchLinear(*sizes, bias=False)
    weight = layer.to_linear().weight
    (_, S, q), I = layer.L.shape, layer.R.shape[2]
    T = q // n
    for j in range(n):
        for k in range(n):
            tile = weight[j * S : (j + 1) * S, k * I : (k + 1) * I]
            expected = layer.L[j][:, k * T : (k + 1) * T] @ layer.R[k][j * T : (j + 1) * T]
            assert relative_error(tile, expected[: tile.shape[0], : tile.shape[1]]) < 1e-14


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients_of_the_parameters_are_those_of_the_dense_weight(sizes, double):
    layer = MonarchLinear(*sizes)
    x, seed = torch.randn(6, sizes[0]), torch.randn(6, sizes[1])
    found = torch.autograd.grad(layer(x), list(layer.parameters()), seed)
    # by finite differences along a random direction
    for parameter, g in zip(layer.parameters(), found, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter += step * direction
                values.append((layer(x) * seed).sum())
                parameter -= step * direction
        assert (g * direction).sum().item() == pytest.approx(
            (values[0] - values[1]).item() / 2e-4, rel=1e-6, abs=1e-9
        )


@pytest.mark.parametrize(
    ("sizes", "number"), [((768, 3072), 737_280), ((3072, 768), 737_280), ((768, 768), 294_912)]
)
def test_as_many_parameters_as_in_the_paper(sizes, number):
    layer = MonarchLinear(*sizes, bias=False, device="meta")
    assert sum(p.numel() for p in layer.parameters()) == number
    q = layer.L.shape[2]
    assert number == q * sum(sizes)


@pytest.mark.parametrize(
    "sizes",
    [(256, 256, 4), (256, 1024, 4), (1024, 256, 4), (250, 333, 4), (127, 509, 7), (600, 61, 3), (17, 64, 8)],
    ids=str,
)
def test_outputs_start_with_the_variance_of_a_dense_layer(sizes):
    dense, layers = nn.Linear(*sizes[:2]), [MonarchLinear(*sizes) for _ in range(20)]
    weights = torch.stack([layer.to_linear().weight for layer in layers])
    third = 1 / (3 * sizes[0])
    assert dense.weight.var().item() == pytest.approx(third, rel=0.05)
    assert weights.var().item() == pytest.approx(third, rel=0.05)
    assert abs(weights.mean().item()) < 0.01 * third**0.5
    x = torch.randn(200, sizes[0])
    outputs = torch.stack([layer(x) - layer.bias for layer in layers])
    # every output alike, whichever block it comes from
    assert outputs.var(dim=(0, 1)).mean().item() == pytest.approx(1 / 3, rel=0.05)
    assert 1 / 6 < outputs.var(dim=(0, 1)).min().item() < outputs.var(dim=(0, 1)).max().item() < 2 / 3
    bias = torch.stack([layer.bias for layer in layers])
    assert bias.abs().max().item() <= sizes[0] ** -0.5
    assert bias.var().item() == pytest.approx(third, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(256, 256, 4), (256, 1024, 4), (1024, 256, 4), (127, 509, 7)], ids=str)
def test_blocks_start_orthogonal(sizes, dtype):
    layer = MonarchLinear(*sizes, dtype=dtype)
    for factor in (layer.L, layer.R):
        values = torch.linalg.svdvals(factor.detach().double())
        # one singular value alone, in every block: the mean square is that of the entries
        expected = factor.detach().double().square().sum((1, 2)) / values.shape[1]
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        assert (values.square() / expected.mean() - 1).abs().max().item() < tolerance


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_monarch_weight_is_recovered(sizes, double):
    layer = MonarchLinear(*sizes)
    found = MonarchLinear.from_linear(layer.to_linear(), sizes[2])
    x = torch.randn(4, sizes[0])
    assert relative_error(found(x), layer(x)) < 1e-13
    assert found.nblocks == layer.nblocks
    # balanced: both factors of a tile have the same size
    J, S, I = *found.L.shape[:2], found.R.shape[2]
    norms = found.L.view(J, S, J, -1).norm(dim=(1, 3)), found.R.view(J, J, -1, I).norm(dim=(2, 3)).T
    assert relative_error(*norms) < 1e-12


@pytest.mark.parametrize("sizes", [(12, 12, 2), (30, 50, 4), (13, 7, 3)], ids=str)
def test_no_layer_nearby_is_closer_to_a_dense_one(sizes, double):
    dense = nn.Linear(*sizes[:2])
    layer = MonarchLinear.from_linear(dense, sizes[2])
    assert torch.equal(layer.bias, dense.bias)

    def distance():
        return (layer.to_linear().weight - dense.weight).norm().item()

    best = distance()
    # the tails of the tiles' spectra, whatever is padded
    S, I, T = layer.L.shape[1], layer.R.shape[2], layer.L.shape[2] // sizes[2]
    tiles = [tile for rows in dense.weight.split(S) for tile in rows.split(I, dim=1)]
    tail = sum(torch.linalg.svdvals(tile)[T:].square().sum().item() for tile in tiles)
    assert best == pytest.approx(tail**0.5, rel=1e-12)
    assert 0 < best < dense.weight.norm().item()
    L, R = layer.L.detach().clone(), layer.R.detach().clone()
    for step in (1e-1, 1e-3, 1e-5):
        for _ in range(30):
            with torch.no_grad():
                layer.L.copy_(L + step * torch.randn_like(L))
                layer.R.copy_(R + step * torch.randn_like(R))
            assert distance() >= best


def test_one_block_loses_nothing(double):
    dense = nn.Linear(9, 5, bias=False)
    layer = MonarchLinear.from_linear(dense, nblocks=1)
    assert layer.bias is None
    assert relative_error(layer.to_linear().weight, dense.weight) < 1e-14


def test_dtypes_are_kept():
    dense = nn.Linear(12, 8, dtype=torch.bfloat16)
    layer = MonarchLinear.from_linear(dense)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer.to_linear().weight.dtype == torch.bfloat16
    assert layer(torch.randn(3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.int64], ids=str
)
def test_input_of_another_dtype_is_refused(dtype):
    """As by ``nn.Linear``."""
    layer, x = MonarchLinear(30, 50), torch.ones(3, 30, dtype=dtype)
    with pytest.raises(RuntimeError):
        nn.Linear(30, 50)(x)
    with pytest.raises(
        InputError, match=r"in float32, the dtype of the weights; found \w+; .*x.to\(torch.flo"
    ):
        layer(x)
    if dtype.is_floating_point:
        assert layer.to(dtype)(x).dtype == dtype


@pytest.mark.parametrize("sizes", [(16, 64, 4), (30, 50, 4)], ids=str)
def test_autocast_computes_in_its_dtype(sizes):
    layer = MonarchLinear(*sizes)
    x = torch.randn(8, sizes[0], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    operands = [x, *layer.parameters()]
    found = torch.autograd.grad(y.float().square().sum(), operands)
    expected = torch.autograd.grad(layer(x).square().sum(), operands)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32
        assert relative_error(f, e) < 3e-2


def test_state_round_trip():
    layer, other = MonarchLinear(30, 50), MonarchLinear(30, 50)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 30)
    assert torch.equal(other(x), layer(x))
    assert set(layer.state_dict()) == {"L", "R", "bias"}


# torch.compile itself, when it traces an explicit backward pass
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("sizes", [(16, 64, 4), (30, 50, 4)], ids=str)
def test_compiles_without_graph_breaks(sizes, native, monkeypatch):
    if not native:
        monkeypatch.setattr(dispatch.native, "available", lambda: False)
    torch.compiler.reset()
    layer = MonarchLinear(*sizes)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_same(compiled, layer, torch.randn(5, sizes[0]), tol=1e-6)
    x, parameters = torch.randn(5, sizes[0]), list(layer.parameters())
    found, expected = (torch.autograd.grad(f(x).square().sum(), parameters) for f in (compiled, layer))
    for f, e in zip(found, expected, strict=True):
        assert relative_error(f, e) < 1e-6


def test_exports_for_any_batch():
    layer = MonarchLinear(30, 50).eval()
    batch = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(layer, (torch.randn(5, 30),), dynamic_shapes=batch)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (2, 70):
        x = torch.randn(rows, 30)
        assert relative_error(loaded(x), layer(x)) < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("sizes", [(16, 64, 4), (30, 50, 4)], ids=str)
def test_it_is_traced_by_jit(sizes):
    layer = MonarchLinear(*sizes)
    traced = torch.jit.trace(layer, torch.randn(5, sizes[0]))
    x = torch.randn(7, 2, sizes[0])[:, 0]
    assert relative_error(traced(x), layer(x)) < 1e-6


def test_it_prints_like_a_linear_layer():
    text = "MonarchLinear(in_features=30, out_features=50, nblocks=4, bias=True)"
    assert str(MonarchLinear(30, 50)) == text


def test_errors_name_the_remedy():
    with pytest.raises(
        InputError, match=r"at least one feature and one block; found .* nblocks=0; pass positive"
    ):
        MonarchLinear(4, 4, nblocks=0)
    with pytest.raises(InputError, match="found in_features=0"):
        MonarchLinear(0, 4)
    with pytest.raises(InputError, match=r"a last dimension of 30; found x \(5, 32\); check in_features"):
        MonarchLinear(30, 50)(torch.randn(5, 32))
    with pytest.raises(InputError, match=r"a last dimension of 30; found x \(\)"):
        MonarchLinear(30, 50)(torch.tensor(1.0))
