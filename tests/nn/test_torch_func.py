"""Derivatives of every kind that torch offers: forward, of functions, of batches, of any order."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from monarch_sciml.nn import LearnedFourier, MonarchConv, MonarchLinear, MonarchSpectralConv
from monarch_sciml.pde import fno_monarch

# torch says this of itself, when it derives forward derivatives
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
DTYPES = [torch.float32, torch.float64]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 2e-3, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}


def operator(**options) -> nn.Module:
    return fno_monarch((6, 6), width=4, grid=(12, 12), in_channels=1, out_channels=1, layers=2, **options)


class Images(LearnedFourier):
    """As a module that can be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The transform of x (..., H, W)."""
        return self.operator(x.shape)(x)


LAYERS = {
    "linear": (lambda: MonarchLinear(24, 36, nblocks=4), (3, 24)),
    "spectral": (lambda: MonarchSpectralConv(3, 2, (6, 6), grid=(12, 12)), (2, 3, 12, 12)),
    "spectral of one axis": (lambda: MonarchSpectralConv(2, 2, 6, grid=12), (2, 2, 12)),
    "fixed": (lambda: MonarchSpectralConv(2, 2, (5, 5), grid=(9, 9), learned=False), (2, 2, 9, 9)),
    "operator": (operator, (2, 1, 12, 12)),
    "conv": (lambda: MonarchConv(nn.Conv2d(4, 8, 3, padding=1), 2), (2, 4, 8, 8)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer and an input."""
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def smooth(model: nn.Module):
    """A function of the input that is neither linear in it nor in the parameters."""
    return lambda x: model(x).tanh().square().sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_mode_agrees_with_reverse_mode(case, dtype):
    model, x = case[0].to(dtype), case[1].to(dtype)
    v = torch.randn_like(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(smooth(model)(x), x)
    _, tangent = jvp(smooth(model), (x.detach(),), (v,))
    torch.testing.assert_close(tangent, (expected * v).sum(), **tolerance(dtype))
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), v)
        tangent = torch.autograd.forward_ad.unpack_dual(smooth(model)(dual)).tangent
    torch.testing.assert_close(tangent, (expected * v).sum(), **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_functions_are_those_of_autograd(case, dtype):
    model, x = case[0].to(dtype), case[1].to(dtype)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return functional_call(model, parameters, (x,)).square().sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    found = grad(loss)({name: p.detach() for name, p in parameters.items()}, x)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_each_sample(case, dtype):
    model, x = case[0].to(dtype), case[1].to(dtype)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return functional_call(model, parameters, (x[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    alone = [grad(loss)(parameters, one) for one in x]
    for name, found in each.items():
        expected = torch.stack([one[name] for one in alone])
        torch.testing.assert_close(found, expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_ensemble_under_autocast(dtype):
    models, x = [operator() for _ in range(2)], torch.randn(3, 1, 12, 12)
    states = stack_module_state(models)

    def together(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (x,))

    with torch.autocast("cpu", dtype=dtype):
        found = vmap(together)(*states)
    expected = torch.stack([model(x) for model in models])
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_second_derivatives_of_functions():
    torch.manual_seed(0)
    model = MonarchLinear(6, 6, nblocks=2).double()
    x = torch.randn(6, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(smooth(model), x)
    torch.testing.assert_close(hessian(smooth(model))(x), expected)
    torch.testing.assert_close(jacfwd(jacfwd(smooth(model)))(x), expected)


def test_jacobians_agree_forward_and_backward(case):
    model, x = case[0].double(), case[1][:1].double()
    expected = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(jacrev(model)(x), expected)
    torch.testing.assert_close(jacfwd(model)(x), expected)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("linear", grad),
        ("linear", jacfwd),
        ("linear", lambda f: lambda x: jvp(f, (x,), (x,))[1]),
        ("spectral of one axis", grad),
        ("operator", lambda f: lambda x: jvp(f, (x,), (x,))[1]),
    ],
)
def test_compiled_derivatives_are_those_of_eager_mode(name, transform):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model, x = make(), torch.randn(shape)
    derivative = transform(smooth(model))
    plain = torch.compile(smooth(model), backend="aot_eager")  # traced before, and as it was afterwards
    value = plain(x)
    found = torch.compile(derivative, backend="aot_eager")(x)
    torch.testing.assert_close(found, derivative(x), **tolerance(x.dtype))
    assert torch.equal(plain(x), value)


def test_batches_of_what_is_done_by_ffts_without_gradients():
    torch.manual_seed(0)
    layer = MonarchSpectralConv(2, 2, (50, 50), grid=(50, 50), learned=False)
    x = torch.randn(3, 1, 2, 50, 50)
    with torch.no_grad():
        torch.testing.assert_close(vmap(layer)(x)[:, 0], layer(x[:, 0]), **tolerance(x.dtype))


def test_images_are_differentiated_forward():
    torch.manual_seed(0)
    layer = Images((6, 8))
    x, v = torch.randn(2, 2, 6, 8, dtype=torch.complex64).unbind()
    _, tangent = jvp(layer, (x,), (v,))
    torch.testing.assert_close(tangent, layer(v))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_graph_of_the_gradient_does_not_change_it(layers):
    torch.manual_seed(0)
    model = fno_monarch((6, 6), width=4, grid=(12, 12), in_channels=1, out_channels=1, layers=layers)
    x = torch.randn(2, 1, 12, 12, requires_grad=True)
    inputs = [x, *model.parameters()]
    loss = model(model(x)).square().sum()  # each step's input comes from the same weights
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs, create_graph=True)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("make", "shape", "dtype"),
    [
        (lambda: MonarchSpectralConv(3, 3, (6, 6), grid=(12, 12)), (2, 3, 12, 12), torch.float32),
        (lambda: MonarchLinear(16, 16, nblocks=4), (3, 16), torch.float32),
        (lambda: Images((6, 8)), (3, 6, 8), torch.complex64),
    ],
    ids=["spectral", "linear", "fourier"],
)
def test_a_layer_used_twice(make, shape, dtype):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape, dtype=dtype)
    inputs = list(layer.parameters())
    loss = layer(layer(x).tanh()).abs().square().sum()
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs, create_graph=True)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
