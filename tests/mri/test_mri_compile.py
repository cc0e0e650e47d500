"""Reconstruction networks under torch.compile: one graph, the same images."""

import pytest
import torch
from laws import relative_error

from monarch_sciml.mri.models import KINDS, ModelConfig
from monarch_sciml.mri.sensitivity import root_sum_of_squares

SHAPE = (16, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_one_graph(kind):
    torch.compiler.reset()  # what earlier tests compiled counts against a limit
    torch.manual_seed(0)
    maps = torch.randn(1, 3, *SHAPE, dtype=torch.complex64)
    maps = maps / root_sum_of_squares(maps).unsqueeze(-3)
    pattern = torch.rand(1, 1, SHAPE[1]) < 0.5
    pattern[..., 4:8] = True
    kspace = torch.randn(1, 3, *SHAPE, dtype=torch.complex64) * pattern[:, None]
    network = ModelConfig(kind, SHAPE, cascades=2, channels=2, pools=1).build()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    image = compiled(kspace, pattern, maps)
    assert relative_error(image, network(kspace, pattern, maps)) < 1e-5
    image.abs().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
