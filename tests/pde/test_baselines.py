"""Convolutional baselines: shapes, periodicity, the sizes published, and TF-Net's decomposition."""

import pytest
import torch
from torch import nn

from monarch_sciml.errors import InputError
from monarch_sciml.pde import baselines
from monarch_sciml.pde.baselines import ResNet, TFNet, UNet
from monarch_sciml.pde.models import NAMES, FramePredictor, ModelConfig, count_parameters

MODELS = {
    "resnet": lambda: ResNet(3, 1, width=6, blocks=2),
    "unet": lambda: UNet(3, 1, width=4, levels=2),
    "tf-net": lambda: TFNet(3, 1, width=4, levels=2),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


@pytest.mark.parametrize("shape", [(16, 16), (13, 20), (17, 7)])
def test_grid_is_kept_and_every_parameter_learns(model, shape):
    y = model(torch.randn(2, 3, *shape))
    assert y.shape == (2, 1, *shape)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_without_coordinates_a_shifted_flow_gives_a_shifted_prediction(model, monkeypatch):
    """The torus has no edge: shifts by the coarsest cell commute with all of it."""
    monkeypatch.setattr(baselines, "_with_coordinates", lambda x: nn.functional.pad(x, (0, 0, 0, 0, 0, 2)))
    x = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    model = model.double()
    shift = {"shifts": (4, 8), "dims": (-2, -1)}
    torch.testing.assert_close(model(x.roll(**shift)), model(x).roll(**shift), rtol=1e-10, atol=1e-10)


def test_they_know_where_they_are(model):
    """As a force that is fixed in space asks for; on still water they need not predict a constant."""
    x = torch.randn(1, 3, 6, 4)
    seen = baselines._with_coordinates(x)
    assert torch.equal(seen[:, :3], x)
    torch.testing.assert_close(seen[0, 3], (torch.arange(6) / 6)[:, None].expand(6, 4))
    torch.testing.assert_close(seen[0, 4], (torch.arange(4) / 4).expand(6, 4))
    assert model(torch.zeros(1, 3, 16, 16)).std() > 1e-3


def test_they_see_the_amplitude(model):
    """Normalisation removes it; shortcuts carry it past."""
    x = torch.randn(4, 3, 16, 16)
    y, larger = model(x), model(1.5 * x)
    assert torch.linalg.vector_norm(larger - y) > 0.1 * torch.linalg.vector_norm(y)


def test_samples_do_not_see_one_another(model):
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_tf_net_scales_add_up_and_separate():
    net = TFNet(4, 2, width=2, levels=1)
    x = torch.randn(2, 8, 12, 10)
    mean, resolved, unresolved = net.scales(x)
    torch.testing.assert_close(mean.repeat(1, 4, 1, 1) + resolved + unresolved, x)
    # a constant, steady flow is its own mean
    steady = torch.full((1, 8, 12, 10), 3.0)
    mean, resolved, unresolved = net.scales(steady)
    torch.testing.assert_close(mean, steady[:, :2])
    torch.testing.assert_close(resolved, torch.zeros_like(resolved), atol=1e-5, rtol=0)
    torch.testing.assert_close(unresolved, torch.zeros_like(unresolved), atol=1e-5, rtol=0)
    # a steady flow, filtered, is all mean: the resolved part is what changes in time
    still = torch.randn(1, 2, 12, 10).repeat(1, 4, 1, 1)
    torch.testing.assert_close(net.scales(still)[1], torch.zeros_like(still), atol=1e-5, rtol=0)


def test_filter_starts_as_the_mean_over_its_window():
    net = TFNet(1, 1, width=2, levels=1)
    x = torch.zeros(1, 1, 9, 9)
    x[..., 0, 0] = 25.0
    expected = torch.zeros(9, 9)
    expected[torch.tensor([-2, -1, 0, 1, 2])[:, None], torch.tensor([-2, -1, 0, 1, 2])] = 1.0
    torch.testing.assert_close(net.scales(x)[0][0, 0], expected)


def test_published_sizes():
    """Li et al., ICLR 2021, Table 1: ResNet 0.27 M, U-Net 25 M, TF-Net 7.5 M parameters."""
    assert count_parameters(ResNet(10, 1)) == pytest.approx(266_641, rel=0.05)
    assert count_parameters(UNet(10, 1, width=54)) == pytest.approx(24_950_491, rel=0.05)
    assert count_parameters(TFNet(10, 1, width=41)) == pytest.approx(7_451_724, rel=0.1)


@pytest.mark.parametrize("model", [UNet(1, 1, width=2, levels=3), TFNet(1, 1, width=2, levels=3)])
def test_small_grids_are_refused(model):
    with pytest.raises(InputError, match=r"at least 8 points per axis; found 8 × 6"):
        model(torch.randn(1, 1, 8, 6))


@pytest.mark.parametrize("kind", MODELS)
def test_by_name_to_a_file_and_back(kind, tmp_path):
    """Residual, several frames and channels, and a card that says what it is."""
    torch.manual_seed(0)
    config = ModelConfig(kind, (20, 17), channels=2, n_in=3, modes=4, width=4, layers=1, residual=True)
    model, frames = config.build().eval(), torch.randn(2, 3, 2, 20, 17)
    model.save_pretrained(tmp_path)
    loaded = FramePredictor.from_pretrained(tmp_path)
    assert loaded.config == config
    with torch.no_grad():
        assert loaded(frames).shape == (2, 2, 20, 17)
        assert torch.equal(loaded(frames), model(frames))
    card = (tmp_path / "README.md").read_text()
    assert f"A {NAMES[kind]} of width 4: {count_parameters(model):,} parameters." in card
    assert "Fourier" not in card


@pytest.mark.parametrize("kind", MODELS)
def test_grids_that_do_not_do(kind):
    with pytest.raises(InputError, match=rf"two axes for the model {kind}; found 1 axes; take fno"):
        ModelConfig(kind, (64,), 1, 1, 4, 4, 1).build()
    if kind != "resnet":
        with pytest.raises(InputError, match=rf"at least (8|16) points per axis for the model {kind}"):
            ModelConfig(kind, (32, 7), 1, 1, 4, 4, 1).build()
