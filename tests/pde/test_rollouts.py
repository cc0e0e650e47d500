"""Rollouts and their errors with models whose predictions are known."""

import pytest
import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.rollouts import one_step_errors, rollout, rollout_errors


def doubling(frames: Tensor) -> Tensor:
    return 2 * frames[:, -1]


@pytest.fixture
def powers() -> Tensor:
    """Trajectories (2, 6, 1, 4) that double at every step."""
    return torch.randn(2, 1, 1, 4) * 2.0 ** torch.arange(6).reshape(1, 6, 1, 1)


def test_window_slides_over_predictions():
    """Fibonacci: each frame is the sum of the two before it, of which the first drops out."""
    seen = []

    def add(frames: Tensor) -> Tensor:
        seen.append(frames.flatten().tolist())
        return frames.sum(1)

    context = torch.ones(1, 2, 1, 1)
    assert rollout(add, context, 5).flatten().tolist() == [2, 3, 5, 8, 13]
    assert seen == [[1, 1], [1, 2], [2, 3], [3, 5], [5, 8]]
    assert context.flatten().tolist() == [1, 1]


def test_shape_and_markov_context(powers):
    prediction = rollout(doubling, powers[:, :1], 5)
    assert prediction.shape == (2, 5, 1, 4)
    assert torch.equal(prediction, powers[:, 1:])


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(powers, steps):
    with pytest.raises(InputError, match=rf"at least one step; found steps={steps}; raise steps"):
        rollout(doubling, powers[:, :1], steps)


def test_gradient_flows_through_every_step(double):
    factor = torch.tensor(1.3, requires_grad=True)
    first = torch.ones(1, 1, 1, 1)
    prediction = rollout(lambda frames: factor * frames[:, -1], first, 4).flatten()
    torch.testing.assert_close(prediction, 1.3 ** torch.arange(1.0, 5))
    (gradient,) = torch.autograd.grad(prediction[-1], factor)
    torch.testing.assert_close(gradient, torch.tensor(4 * 1.3**3))


def test_perfect_model(powers):
    for n_in in (1, 3):
        assert torch.equal(one_step_errors(doubling, powers, n_in), torch.zeros(2, 6 - n_in))
        prediction, frames, block = rollout_errors(doubling, powers, n_in)
        assert torch.equal(prediction, powers[:, n_in:])
        assert torch.equal(frames, torch.zeros(2, 6 - n_in))
        assert torch.equal(block, torch.zeros(2))


def test_biased_model_errs_once_per_step_or_more_and_more(powers):
    """A factor 2 · 1.1 errs by 10 % in one step and by 1.1ⁿ − 1 after n."""
    n = torch.arange(1.0, 6)
    expected = (1.1**n - 1).expand(2, 5)

    def biased(frames: Tensor) -> Tensor:
        return 1.1 * doubling(frames)

    torch.testing.assert_close(one_step_errors(biased, powers, 1), torch.full((2, 5), 0.1))
    _, frames, block = rollout_errors(biased, powers, 1)
    torch.testing.assert_close(frames, expected)
    # over the block, each frame counts by its size
    whole = ((expected[0] * 2**n).square().sum() / (2**n).square().sum()).sqrt()
    torch.testing.assert_close(block, whole.expand(2))
