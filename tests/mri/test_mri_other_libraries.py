"""Our operators in other people's libraries: deepinv, where it is installed, and sigpy."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from laws import relative_error
from torch import nn

from monarch_sciml import LearnedFourier
from monarch_sciml.mri import Sensitivity, conjugate_gradients, encoding

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "unrolled.md"
SHAPE, COILS = (48, 40), 4


def page(*languages: str) -> list[str]:
    """Blocks of code; the documentation's own tests run the ``python`` ones, ``py`` is left to this one."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


@pytest.fixture
def scan():
    maps = torch.randn(2, COILS, *SHAPE, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return maps, torch.rand(1, SHAPE[1]) < 0.5


@pytest.mark.filterwarnings("ignore:::deepinv", "ignore:::torchvision")
def test_in_deepinv(scan):
    """What the page shows, its assertions among them, and the same for a transform that has learned."""
    deepinv = pytest.importorskip("deepinv")
    maps, pattern = scan
    forward = LearnedFourier(SHAPE)
    scope = {
        "torch": torch,
        "nn": nn,
        "LearnedFourier": LearnedFourier,
        "encoding": encoding,
        "maps": maps,
        "pattern": pattern,
        "forward": forward,
    }
    blocks = page("py")
    assert len(blocks) == 2
    for text in blocks:
        exec(compile(text, str(PAGE), "exec"), scope)
    with torch.no_grad():
        for parameter in forward.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for A in (encoding(maps[0], pattern), encoding(maps[0], pattern, forward.operator((COILS, *SHAPE)))):
        physics = scope["as_physics"](A)
        assert isinstance(physics, deepinv.physics.LinearPhysics)
        assert physics.adjointness_test(num_samples=8) < 1e-5
        y = physics.A(torch.randn(2, 2, *SHAPE))
        damping = 0.5  # theirs is argmin γ/2 ‖Ax − y‖² + ½ ‖x − z‖²
        z = torch.randn(2, 2, *SHAPE)
        with torch.no_grad():
            theirs = physics.prox_l2(z, y, gamma=1 / damping, max_iter=100, tol=1e-7)
            b = scope["to_complex"](physics.A_adjoint(y) + damping * z)
            ours = conjugate_gradients(A, b, damping=damping, iterations=60)
        assert relative_error(scope["to_complex"](theirs), ours) < 1e-4
    learned = scope["learned"]  # whose way back has learned for one step
    assert learned.adjointness_test(img_size=(2, *SHAPE), num_samples=8) > 1e-5


def test_in_sigpy(scan):
    """The adjoint law by sigpy's own objects, and its composition with a transform of theirs."""
    sigpy = pytest.importorskip("sigpy")
    (text,) = (block for block in page("python") if "class Operator" in block)
    maps, pattern = scan
    scope = {"torch": torch, "encoding": encoding, "maps": maps, "pattern": pattern}
    exec(compile(text, str(PAGE), "exec"), scope)
    forward = LearnedFourier(SHAPE)
    with torch.no_grad():
        for parameter in forward.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    rng = np.random.default_rng(0)
    for fourier in (None, forward.operator((COILS, *SHAPE))):
        A = scope["Operator"](encoding(maps[0], pattern, fourier))
        x, y = (
            (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
            for shape in (A.ishape, A.oshape)
        )
        assert abs(np.vdot(A * x, y) - np.vdot(x, A.H * y)) < 1e-5 * np.linalg.norm(A * x) * np.linalg.norm(y)
        assert np.allclose(A.N * x, A.H * (A * x), atol=1e-5)
    theirs = sigpy.linop.FFT((COILS, *SHAPE), axes=(-2, -1)) * sigpy.linop.Multiply(SHAPE, maps[0].numpy())
    ours = scope["Operator"](encoding(maps[0], torch.ones(1, SHAPE[1])))
    assert np.allclose(ours * x, theirs * x, atol=1e-5)
    assert isinstance(
        scope["Operator"](Sensitivity(maps[0])) * sigpy.linop.Identity(SHAPE), sigpy.linop.Linop
    )
