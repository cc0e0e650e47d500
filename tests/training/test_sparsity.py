"""The switch to dense weights in the middle of a training, and a dense model made Monarch after one."""

import copy
import math
from itertools import cycle

import pytest
import torch
from laws import relative_error
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from monarch_sciml import InputError, MonarchLinear
from monarch_sciml.nn import LearnedTransform
from monarch_sciml.nn.convert import StackedLinear, monarchize
from monarch_sciml.training.sparsity import fine_tune, reverse_sparsification

X = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
Y = torch.cat((X[:, :4].sin(), X[:, 4:8] * X[:, 8:12]), 1)
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
}


class Net(nn.Module):
    """A fused projection, a ragged layer and a 1 × 1 convolution."""

    def __init__(self):
        super().__init__()
        self.qkv, self.mix = nn.Linear(16, 48), nn.Conv1d(48, 30, 1)
        self.out = nn.Linear(30, 8)

    def forward(self, x):
        return self.out(self.mix(self.qkv(x).tanh()[..., None])[..., 0].tanh())


def network():
    model = Net()
    monarchize(model, mode="init")
    return model


def loss(model, batch=(X, Y)):
    return (model(batch[0]) - batch[1]).square().mean()


def train(model, optimizer, steps, schedule=None):
    for step in range(steps):
        i = torch.arange(32) + 32 * (step % 8)
        optimizer.zero_grad()
        loss(model, (X[i], Y[i])).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return loss(model).item()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_loss_goes_on_without_a_jump(name):
    model = network()
    optimizer = OPTIMISERS[name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    train(model, optimizer, 120, schedule)
    assert isinstance(model.qkv, StackedLinear)
    before, y, bias = loss(model).item(), model(X).detach(), model.out.bias
    rate = optimizer.param_groups[0]["lr"]
    assert reverse_sparsification(model, optimizer) is model
    assert relative_error(model(X).detach(), y) < 1e-5
    assert model.out.bias is bias
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert optimizer.param_groups[0]["lr"] == rate
    assert set(optimizer.state) <= set(model.parameters())
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape == parameter.shape
    losses = [train(model, optimizer, 1, schedule) for _ in range(10)]
    assert max(losses) < 1.02 * before
    assert train(model, optimizer, 70, schedule) < before
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("complex_", [False, True])
def test_averages_of_a_constant_gradient_are_its_part_within_the_monarch_matrices(complex_, double):
    """After one step of SGD that is the projection of its gradient on the tangent space."""
    if complex_:
        model: nn.Module = LearnedTransform(12, 7)
        model.L.data.add_(0.1 * torch.randn_like(model.L))
        G = torch.randn(2, 7, 12)
    else:
        model = MonarchLinear(10, 13, 3, bias=False)
        G = torch.randn(13, 10)
    inputs = () if complex_ else (torch.eye(10),)

    def value(L, R):
        y = torch.func.functional_call(model, {"L": L, "R": R}, inputs)
        return y if complex_ else y.mT

    # the tangent space: all derivatives of the matrix by its factors
    jacobians = torch.autograd.functional.jacobian(value, (model.L.detach(), model.R.detach()))
    T = torch.cat([J.flatten(G.ndim).flatten(0, G.ndim - 1) for J in jacobians], 1)
    expected = (T @ torch.linalg.lstsq(T, G.flatten()[:, None], driver="gelsd").solution).view_as(G)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30, momentum=0.9)
    (value(model.L, model.R) * G).sum().backward()
    optimizer.step()
    dense = reverse_sparsification(model, optimizer)
    carried = optimizer.state[dense.L if complex_ else dense.weight]["momentum_buffer"]
    carried = carried[0].movedim(-1, 0) if complex_ else carried
    assert relative_error(carried, expected) < 1e-9


def test_averages_of_squares_are_recovered_when_rows_and_columns_decide(double):
    layer = MonarchLinear(256, 256, 4, bias=False)
    rows, columns = torch.rand(256, 1) + 0.2, torch.rand(1, 256) + 0.2
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.0, betas=(0.9, 0.99))
    for _ in range(60):
        G = torch.randn(256, 256) * (rows * columns).sqrt()
        optimizer.zero_grad()
        (layer(torch.eye(256)).mT * G).sum().backward()
        optimizer.step()
    dense = reverse_sparsification(layer, optimizer)
    state = optimizer.state[dense.weight]
    assert state["step"] == 60
    found = state["exp_avg_sq"] / (1 - 0.99**60)
    assert relative_error(found, rows * columns) < 0.15
    assert found.mean().item() == pytest.approx((rows * columns).mean().item(), rel=0.05)


def test_groups_names_and_frozen_layers():
    model = network()
    model.out.requires_grad_(False)
    factors = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    biases = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.ndim == 1]
    groups = [{"params": biases, "weight_decay": 0.0}, {"params": factors, "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.2)
    train(model, optimizer, 2)
    reverse_sparsification(model, optimizer)
    first, second = optimizer.param_groups
    assert first["params"] == [p for _, p in biases]
    assert second["params"] == [model.qkv.weight, model.mix.weight]
    assert (second["lr"], second["weight_decay"], first["weight_decay"]) == (0.1, 0.2, 0.0)
    assert len(second["param_names"]) == 2
    assert not model.out.weight.requires_grad
    assert math.isfinite(train(model, optimizer, 2))


def test_unknown_optimisers_say_that_they_start_anew():
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.001)
    train(model, optimizer, 3)
    with pytest.warns(UserWarning, match="RMSprop is not known here: dense weights start without a state"):
        reverse_sparsification(model, optimizer)
    assert model.qkv.weight not in optimizer.state
    assert model.qkv.bias in optimizer.state
    assert math.isfinite(train(model, optimizer, 2))
    with pytest.raises(InputError, match="a model with Monarch matrices; found none"):
        reverse_sparsification(model, optimizer)


def test_before_the_first_step_there_is_nothing_to_carry():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    reverse_sparsification(model, optimizer)
    assert not optimizer.state
    assert math.isfinite(train(model, optimizer, 2))


def test_an_optimiser_with_a_list_of_its_own_is_refused_before_anything_changes():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = list(model.parameters())
    with pytest.raises(
        InputError, match=r"in its groups; found LBFGS, .*; call densify and make a new LBFGS"
    ):
        reverse_sparsification(model, optimizer)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("frozen", ["L", "R"])
@pytest.mark.parametrize("everything", [True, False])
def test_a_weight_with_one_frozen_factor_takes_the_place_of_the_other(frozen, everything):
    model = nn.Sequential(MonarchLinear(16, 16), nn.Tanh(), MonarchLinear(16, 8))
    for layer in (model[0], model[2]):
        getattr(layer, frozen).requires_grad_(False)
    trained = [p for n, p in model.named_parameters() if n.endswith("LR".replace(frozen, ""))]
    rest = [p for n, p in model.named_parameters() if n.endswith((frozen, "bias") if everything else "bias")]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": trained, "lr": 0.01}], lr=0.1)
    train(model, optimizer, 3)
    with pytest.warns(UserWarning, match="AdamW has no state of one of the factors: dense weights start"):
        reverse_sparsification(model, optimizer)
    weights = [model[0].weight, model[2].weight]
    first, second = optimizer.param_groups
    assert second["params"] == weights
    assert first["params"] == [model[0].bias, model[2].bias]
    before = [weight.detach().clone() for weight in weights]
    train(model, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


@pytest.mark.parametrize("factors", ["L", "R", "LR"])
def test_a_weight_takes_the_place_of_what_its_factors_are_computed_from(factors):
    layer = MonarchLinear(16, 8)
    for factor in factors:
        weight_norm(layer, factor)
    model = nn.Sequential(nn.Linear(16, 16), layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, 3)
    with pytest.warns(UserWarning, match="SGD has no state of one of the factors"):
        reverse_sparsification(model, optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert set(optimizer.state) == {*model.parameters()} - {model[1].weight}
    assert math.isfinite(train(model, optimizer, 2))


def test_tied_factors_go_on_as_one_weight():
    model = nn.Sequential(MonarchLinear(16, 16), nn.Tanh(), MonarchLinear(16, 16), MonarchLinear(16, 16))
    model[2].L, model[2].R, model[3].L = model[0].L, model[0].R, model[0].L
    head = nn.Sequential(model, nn.Linear(16, 8))
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    train(head, optimizer, 60)
    before = loss(head).item()
    reverse_sparsification(head, optimizer)
    assert model[0].weight is model[2].weight
    assert optimizer.param_groups[0]["params"] == list(head.parameters())
    assert set(optimizer.state) == set(head.parameters())
    losses = [train(head, optimizer, 1) for _ in range(10)]
    assert max(losses) < 1.02 * before


def test_a_factor_that_is_used_elsewhere_stays():
    model, other = MonarchLinear(16, 16), nn.Module()
    other.L = model.L
    both = nn.ModuleList([model, other])
    optimizer = torch.optim.SGD(both.parameters(), lr=0.01)
    reverse_sparsification(both, optimizer)
    assert optimizer.param_groups[0]["params"] == [*both[0].parameters(), other.L]


def test_fine_tuning_recovers_what_the_projection_lost():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(dense.parameters(), lr=3e-3)
    trained = train(dense, optimizer, 400)
    projected, tuned, soon, scratch = (copy.deepcopy(dense) for _ in range(4))
    monarchize(projected)
    batches = [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 256, 32)]
    report = fine_tune(tuned, 4, loss, batches, 200, 1e-2)
    assert report.parameters_after < 0.75 * report.parameters_before
    assert loss(projected).item() > 20 * trained
    assert loss(tuned).item() < 0.25 * loss(projected).item()
    # after few steps it is ahead of what starts anew; on so small a problem many make up for it
    fine_tune(soon, 4, loss, batches, 50, 1e-2)
    fine_tune(scratch, 4, loss, batches, 50, 1e-2, mode="init")
    assert loss(soon).item() < 0.8 * loss(scratch).item()


def test_fine_tuning_says_what_is_wrong():
    model = Net()
    with pytest.raises(InputError, match="at least one step; found 0"):
        fine_tune(model, 4, loss, [(X, Y)], 0, 1e-3)
    with pytest.raises(InputError, match="batches that can be gone through again; found none"):
        fine_tune(model, 4, loss, [], 3, 1e-3)
    with pytest.raises(InputError, match="a finite loss; found nan at step 0; lower"):
        fine_tune(Net(), 4, lambda m, b: loss(m, b) * math.nan, cycle([(X, Y)]), 3, 1e-3)
