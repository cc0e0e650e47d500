"""Networks on a device that has no memory: run by ``test_devices.py`` in a process of its own.

Tensors there have shapes and a place and no numbers. An operation on tensors of two devices fails, as it does
with a GPU, so that a constant left on the CPU is found without one.
"""

from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from monarch_sciml.mri.models import Kind as Reconstruction
from monarch_sciml.mri.models import ModelConfig as ReconstructionConfig
from monarch_sciml.nn import LearnedFourier, MonarchLinear, MonarchSpectralConv, monarchize
from monarch_sciml.pde.models import Kind, ModelConfig
from monarch_sciml.pde.recipe import _held_out_errors, _loss

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)
MODE, THERE = FakeTensorMode(), torch.device(NAME, 0)
COMPLEX = torch.complex64


def there(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with MODE:
        return torch.empty(shape, dtype=dtype, device=THERE)


def moved(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                new = there(*p.shape, dtype=p.dtype)
                part._parameters[name] = nn.Parameter(new, requires_grad=p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = there(*b.shape, dtype=b.dtype)
    return module


def check(what: str, found: Tensor, model: nn.Module | None = None) -> None:
    """What came out is there, and so are its gradients."""
    assert found.device == THERE, what
    if model is not None:
        found.abs().sum().backward()
        assert {p.grad.device for p in model.parameters() if p.grad is not None} == {THERE}, what


def layers() -> None:
    for model, shape in (
        (MonarchLinear(12, 20, nblocks=4), (3, 12)),
        (MonarchSpectralConv(3, 4, 5, grid=12), (2, 3, 12)),
        (MonarchSpectralConv(3, 4, (4, 5), grid=(12, 10)), (2, 3, 12, 10)),
        (MonarchSpectralConv(3, 4, (4, 5), grid=(12, 10)), (2, 3, 9, 15)),
        (MonarchSpectralConv(3, 4, (12, 10), grid=(12, 10), learned=False), (2, 3, 12, 10)),
        (MonarchSpectralConv(3, 4, (3, 3, 3), grid=(6, 5, 4)), (2, 3, 6, 5, 4)),
    ):
        moved(model)
        with MODE:
            check(f"{model} of {shape}", model(there(*shape)), model)
    dense = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for model, shape in ((dense, (2, 8, 6, 5)), (encoder, (2, 5, 16))):
        monarchize(model, nblocks=2)
        moved(model)
        with MODE:
            check(f"{model}", model(there(*shape)), model)


class Noise:
    """Of a batch, as the loop draws it."""

    def normal(self, like: Tensor) -> Tensor:
        return torch.empty_like(like)


def predictors() -> None:
    for kind in get_args(Kind):
        for residual in (False, True):
            config = ModelConfig(kind, (32, 32), 1, n_in=2, modes=4, width=8, layers=2, residual=residual)
            model: Any = moved(config.build())
            batch = there(2, 2, 1, 32, 32), there(2, 3, 1, 32, 32)
            with MODE:
                check(kind, _loss(0.01)(model, batch, Noise()), model)  # type: ignore[arg-type]
                for name, error in _held_out_errors(model, batch).items():
                    check(f"{kind}: {name}", error)


def reconstructions() -> None:
    for kind in set(get_args(Reconstruction)) - {"msense", "varnet-monarch"}:
        for shape in ((32, 24), (30, 26)):
            model = moved(ReconstructionConfig(kind, (32, 24), cascades=2, channels=4, pools=1).build())
            kspace, maps = there(1, 4, *shape, dtype=COMPLEX), there(1, 4, *shape, dtype=COMPLEX)
            with MODE:
                check(kind, model(kspace, there(1, *shape, dtype=torch.bool), maps), model)
    # of the other two the transform: which columns were sampled is a question to numbers
    for shape in ((32, 24), (30, 26)):
        V = LearnedFourier((32, 24), inverse=True)
        moved(V)
        with MODE:
            check(f"{shape}", V.operator((2, *shape))(there(2, *shape, dtype=COMPLEX)), V)


if __name__ == "__main__":
    for scene in (layers, predictors, reconstructions):
        scene()
