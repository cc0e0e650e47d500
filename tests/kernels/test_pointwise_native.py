"""The pass around a spectral convolution in C++ agrees with its formula; torch knows it as an operator."""

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import has_fast_pointwise_layer, native, pointwise_layer, reference

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
NAMES = ("x", "s", "W", "W1", "b1", "W2", "b2", "g")
# batch, C_in, C, H, C_out, points, which of s (with W) and g there are
CASES = {
    "a layer": (2, 32, 32, 16, 32, 1000, "sg"),
    "ragged everywhere": (3, 5, 7, 3, 5, 37, "sg"),
    "a channel": (2, 1, 1, 1, 1, 9, "sg"),
    "whole tiles": (1, 4, 4, 8, 4, 1024, "sg"),
    "perceptron": (2, 3, 3, 20, 9, 513, ""),
    "no gate": (2, 5, 7, 3, 6, 300, "s"),
    "gated perceptron": (2, 6, 6, 5, 6, 19, "g"),
    "no sample": (0, 3, 3, 2, 3, 8, "sg"),
}


def operands(case, dtype=torch.float32):
    B, Ci, C, H, Co, N, parts = CASES[case]
    torch.manual_seed(0)
    shapes = [(B, Ci, N), (B, C, N), (C, Ci), (H, C), (H,), (Co, H), (Co,), (Ci,)]
    made = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    absent = set() if "s" in parts else {1, 2}
    absent |= set() if "g" in parts else {7}
    return [None if i in absent else t for i, t in enumerate(made)]


def gradients(path, tensors, seed, activated):
    y = path.pointwise_layer(*tensors, activated=activated)
    return [y, *torch.autograd.grad(y, [t for t in tensors if t is not None], seed.to(y.dtype))]


def seed_of(case):
    B, _, _, _, Co, N, _ = CASES[case]
    return torch.randn(B, Co, N, generator=torch.Generator().manual_seed(1))


@needs_compiler
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_native_equals_reference_in_value_and_every_gradient(case, activated, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors, seed = operands(case), seed_of(case)
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    truth = gradients(reference, doubles, seed, activated)
    names = ["y", *(name for name, t in zip(NAMES, tensors, strict=True) if t is not None)]
    for name, found, expected in zip(names, gradients(native, tensors, seed, activated), truth, strict=True):
        assert relative_error(found.double(), expected) < 4e-6, name


@needs_compiler
def test_gelu_everywhere():
    """Through identity matrices y = gelu(x), and its slope, from the tails to the origin."""
    ends = [0.0, -1e-20, 1e-20, -1e30, 1e30, -3e38, 3e38]
    x = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor(ends)]).requires_grad_()
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y = native.pointwise_layer(x.view(1, 1, -1), None, None, one, zero, one, zero, None, activated=False)
    exact = x.detach().double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    # Φ is good to 1e-7, and multiplied by x
    assert torch.all((y.flatten() - expected).abs() <= 3e-7 * exact.abs().clamp(0.1, 40))
    slope, truth = (torch.autograd.grad(out.sum(), of)[0] for out, of in ((y, x), (expected, exact)))
    assert torch.all((slope - truth).abs() <= 5e-7)


@needs_compiler
def test_uninitialised_memory_never_shows(monkeypatch):
    def dirty(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", dirty(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))
    for found in gradients(native, operands("ragged everywhere"), seed_of("ragged everywhere"), True):
        assert torch.isfinite(found).all()


@needs_compiler
@pytest.mark.parametrize("wanted", range(len(NAMES)), ids=NAMES)
def test_each_operand_may_be_the_only_one_with_a_gradient(wanted):
    tensors = [t.detach() for t in operands("ragged everywhere")]
    tensors[wanted].requires_grad_()
    found, expected = (
        torch.autograd.grad(path.pointwise_layer(*tensors, activated=True).square().sum(), tensors[wanted])[0]
        for path in (native, reference)
    )
    assert relative_error(found, expected) < 2e-6


@needs_compiler
def test_second_derivatives():
    def second(path):
        tensors = operands("ragged everywhere")
        y = path.pointwise_layer(*tensors, activated=True)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    for found, expected in zip(second(native), second(reference), strict=True):
        assert relative_error(found, expected) < 5e-6


def test_the_definition_passes_gradcheck():
    tensors = operands("ragged everywhere", torch.float64)
    assert torch.autograd.gradcheck(lambda *t: pointwise_layer(*t, activated=True), tensors, fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("case", ["ragged everywhere", "perceptron"])
def test_torch_knows_the_operator(case):
    torch.library.opcheck(torch.ops.monarch_sciml.pointwise.default, (*operands(case), True))


@needs_compiler
def test_compiles_without_graph_breaks():
    tensors, seed = operands("a layer"), seed_of("a layer")
    compiled = torch.compile(
        lambda *t: pointwise_layer(*t, activated=True), fullgraph=True, backend="aot_eager"
    )
    y = compiled(*tensors)
    found = [y, *torch.autograd.grad(y, tensors, seed)]
    for a, b in zip(found, gradients(native, tensors, seed, True), strict=True):
        assert relative_error(a, b) < 1e-6


@needs_compiler
@pytest.mark.parametrize("path", [native, reference])
def test_points_of_a_grid_are_points(path):
    tensors, seed = operands("ragged everywhere"), seed_of("ragged everywhere")
    on_a_grid = [
        t.detach().unflatten(-1, (37, 1)).requires_grad_() if i < 2 else t for i, t in enumerate(tensors)
    ]
    found = gradients(path, on_a_grid, seed.unflatten(-1, (37, 1)), True)
    for a, b in zip(found, gradients(path, tensors, seed, True), strict=True):
        assert relative_error(a.view_as(b), b) < 1e-6


@needs_compiler
def test_the_gradient_of_a_shared_input_is_summed_in_place():
    """Where it were a view of an array, torch would make a third one."""
    x, s, *weights = (t.detach() for t in operands("a layer"))
    x, s = x.requires_grad_(), s.requires_grad_()
    z = x * 1
    other = z.sin()  # before, so that its gradient comes after
    total = native.pointwise_layer(z, s, *weights, activated=True).sum() + other.sum()
    with torch.profiler.profile() as profile:
        torch.autograd.grad(total, x)
    assert {event.name for event in profile.events() if "add" in event.name} == {"aten::add_"}


@needs_compiler
def test_several_threads_sum_in_the_same_order_every_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    tensors, seed = operands("a layer"), seed_of("a layer")
    first = gradients(native, tensors, seed, True)
    for _ in range(10):
        assert all(map(torch.equal, gradients(native, tensors, seed, True), first))


def test_what_it_cannot_do_is_left_to_the_definition():
    doubles = operands("a layer", torch.float64)
    floats = doubles[0].float()
    assert has_fast_pointwise_layer(floats, 128) == native.available()
    assert not has_fast_pointwise_layer(floats, 129)
    assert not has_fast_pointwise_layer(doubles[0], 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not has_fast_pointwise_layer(floats, 32)
    expected = reference.pointwise_layer(*doubles, activated=True)
    assert torch.equal(pointwise_layer(*doubles, activated=True), expected)


@pytest.mark.parametrize("wrong", [*range(len(NAMES)), "s alone", "x of a grid"])
def test_shapes_that_do_not_fit_are_refused(wrong):
    tensors = [t.detach() for t in operands("ragged everywhere")]
    if wrong == "s alone":
        tensors[2] = None
    elif wrong == "x of a grid":
        tensors[0] = tensors[0].unflatten(-1, (37, 1))
    else:
        tensors[wrong] = torch.cat([tensors[wrong], tensors[wrong]], -1)
    with pytest.raises(InputError, match=r"x \(B, C_in, …\), s \(B, C, …\) with W .*weights of one"):
        pointwise_layer(*tensors, activated=True)
