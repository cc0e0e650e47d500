"""MonarchConv is a convolution with a Monarch weight: map, start, projection, gradients."""

import pytest
import torch
from laws import relative_error
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn import MonarchConv, densify, monarchize

CONVS = [
    (nn.Conv2d(8, 12, 3, padding=1), 4),
    (nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False), 3),
    (nn.Conv2d(4, 8, (1, 5), padding="same", dilation=2), 2),
    (nn.Conv1d(6, 9, 4, padding=2), 3),
    (nn.Conv3d(4, 4, 2), 2),
    (nn.Conv2d(8, 4, 1), 4),
    (nn.Conv2d(3, 5, 3), 1),
]
IDS = [f"{type(c).__name__}-{c.in_channels}-{c.out_channels}-{c.kernel_size}-{n}" for c, n in CONVS]


def image(conv: nn.Module) -> torch.Tensor:
    return torch.randn(2, conv.in_channels, *(7, 6, 5)[: len(conv.kernel_size)])


@pytest.mark.parametrize(("conv", "nblocks"), CONVS, ids=IDS)
def test_it_is_the_dense_convolution_of_the_same_map(conv, nblocks, double):
    layer = MonarchConv(conv.double(), nblocks)
    dense, x = layer.to_conv(), image(conv)
    assert type(dense) is type(conv)
    assert dense.weight.shape == conv.weight.shape
    assert relative_error(layer(x), dense(x)) < 1e-14
    assert layer(x).shape == conv(x).shape
    assert torch.equal(layer(x[0]), layer(x[:1])[0])  # without a batch axis, as torch's


def test_an_image_without_a_batch_stays_one_when_a_model_is_converted():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    monarchize(model, 2)
    assert isinstance(model[0], MonarchConv)
    x = torch.randn(8, 8, 16)  # as many rows as channels
    found = model(x)
    assert relative_error(found, densify(model)(x)) < 1e-5


@pytest.mark.parametrize(("conv", "nblocks"), CONVS, ids=IDS)
def test_projection_recovers_a_monarch_weight_and_takes_the_bias(conv, nblocks, double):
    layer = MonarchConv(conv.double(), nblocks)
    found, x = MonarchConv.from_conv(layer.to_conv(), nblocks), image(conv)
    assert relative_error(found(x), layer(x)) < 1e-13


def test_no_layer_nearby_is_closer_to_the_dense_one(double):
    conv = CONVS[0][0].double()
    layer = MonarchConv.from_conv(conv, 4)
    assert torch.equal(layer.bias, conv.bias)

    def distance():
        return (layer.weight - conv.weight).square().sum()

    best = distance()
    for gradient in torch.autograd.grad(best, [layer.L, layer.R]):
        assert gradient.abs().max() < 1e-12
    for _ in range(100):
        saved = {name: p.clone() for name, p in layer.named_parameters()}
        with torch.no_grad():
            layer.L += 0.01 * torch.randn_like(layer.L)
            layer.R += 0.01 * torch.randn_like(layer.R)
        assert distance() > best
        layer.load_state_dict(saved)


def test_one_block_loses_nothing(double):
    conv = nn.Conv2d(3, 5, 3)
    x = torch.randn(2, 3, 6, 6)
    assert relative_error(MonarchConv.from_conv(conv, 1)(x), conv(x)) < 1e-13


def test_gradients(double):
    layer = MonarchConv(nn.Conv2d(4, 4, 3, padding=1), 2)
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def output(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *(p for _, p in layer.named_parameters())))


def test_outputs_start_with_the_variance_of_a_dense_convolution():
    conv = nn.Conv2d(32, 64, 3)
    weights = torch.stack([MonarchConv(conv, 4).weight for _ in range(30)])
    third = 1 / (3 * 32 * 9)
    assert weights.var().item() == pytest.approx(third, rel=0.05)
    biases = torch.stack([MonarchConv(conv, 4).bias for _ in range(30)])
    assert biases.abs().max().item() <= conv.bias.abs().max().item() * 1.2
    assert biases.var().item() == pytest.approx(third, rel=0.2)


def test_a_quarter_of_the_parameters_and_a_little():
    layer = MonarchConv(nn.Conv2d(64, 64, 3, bias=False), 4)
    assert sum(p.numel() for p in layer.parameters()) == 64 * 64 * 9 // 4 + 64 * 64 // 4


def test_what_it_does_not_do_is_said():
    with pytest.raises(InputError, match="divides 6 and 8 channels"):
        MonarchConv(nn.Conv2d(6, 8, 3), 4)
    with pytest.raises(InputError, match="groups=2"):
        MonarchConv(nn.Conv2d(4, 4, 3, groups=2), 2)
    with pytest.raises(InputError, match="circular"):
        MonarchConv(nn.Conv2d(4, 4, 3, padding_mode="circular"), 2)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 2, 1),
    )


def test_a_network_of_convolutions_is_converted_and_multiplied_out(double):
    model, x = network(), torch.randn(2, 1, 9, 7)
    dense = model(x)
    report = monarchize(model, 2)
    rows = {row.name: row for row in report.rows}
    assert {name for name, row in rows.items() if row.reason is None} == {"2"}
    assert rows["0"].reason == "2 does not divide its channels"
    assert rows["5"].reason == "would not become smaller"
    assert "4" not in rows  # in groups already
    conv = model[2]
    assert isinstance(conv, MonarchConv)
    assert rows["2"].parameters_after == sum(p.numel() for p in conv.parameters())
    assert 0 < rows["2"].error < 1
    monarch = model(x)
    assert relative_error(monarch, dense) > 1e-3
    densify(model)
    assert type(model[2]) is nn.Conv2d
    assert relative_error(model(x), monarch) < 1e-13


def test_new_factors_keep_the_variance_of_the_weight():
    model = nn.Sequential(nn.Conv2d(32, 64, 3))
    with torch.no_grad():
        model[0].weight.normal_(0, 0.02)
    monarchize(model, 4, mode="init")
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_training_goes_on_dense_with_the_state_of_the_optimiser():
    from monarch_sciml.training.sparsity import reverse_sparsification

    torch.manual_seed(0)
    teacher, model = network(), network()
    monarchize(model, 2)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    x = torch.randn(8, 1, 8, 8)

    def step():
        adam.zero_grad()
        loss = (model(x) - teacher(x).detach()).square().mean()
        loss.backward()
        adam.step()
        return loss.item()

    before = [step() for _ in range(60)]
    reverse_sparsification(model, adam)
    weight = model[2].weight
    assert adam.state[weight]["exp_avg_sq"].shape == weight.shape
    assert adam.state[weight]["step"] == 60
    after = [step() for _ in range(20)]
    assert max(after) < 1.05 * before[-1]
    assert after[-1] < before[-1]


def test_input_of_another_precision_is_refused():
    layer = MonarchConv(nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match=r"in float32, the dtype of the weights; found float64"):
        layer(torch.randn(1, 4, 5, 5, dtype=torch.float64))
