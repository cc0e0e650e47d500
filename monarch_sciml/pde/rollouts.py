"""Autoregressive prediction: the model's own output becomes its next input."""

from collections.abc import Callable

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.pde.metrics import relative_l2

__all__ = ["one_step_errors", "rollout", "rollout_errors"]

Predictor = Callable[[Tensor], Tensor]
"""(B, n_in, C, *grid) → the next frame (B, C, *grid)."""


def rollout(model: Predictor, context: Tensor, steps: int) -> Tensor:
    """Predict ``steps`` frames after ``context`` (B, n_in, C, *grid): (B, steps, C, *grid).

    The window of n_in frames slides over the predictions. Differentiable, so it also serves training.

    Raises:
        InputError: fewer than one step, or what ``model`` refuses.
    """
    if steps < 1:
        raise InputError("at least one step", f"steps={steps}", "raise steps")
    frames = []
    for _ in range(steps):
        frame = model(context)
        frames.append(frame)
        context = torch.cat((context[:, 1:], frame[:, None]), dim=1)
    return torch.stack(frames, dim=1)


def one_step_errors(
    model: Predictor, trajectories: Tensor, n_in: int, *, units: Tensor | None = None
) -> Tensor:
    """Relative L2 of each frame predicted from the true ones before it, in ``units``: (B, T − n_in)."""
    steps = trajectories.shape[1] - n_in
    frames = [model(trajectories[:, s : s + n_in]) for s in range(steps)]
    return relative_l2(torch.stack(frames, dim=1), trajectories[:, n_in:], first_dim=2, units=units)


def rollout_errors(
    model: Predictor, trajectories: Tensor, n_in: int, *, units: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Roll out from the first n_in frames to the end.

    Returns the predictions (B, steps, C, *grid), the relative L2 of every frame (B, steps), and that over the
    whole block (B,), both in ``units``.
    """
    target = trajectories[:, n_in:]
    prediction = rollout(model, trajectories[:, :n_in], target.shape[1])
    of_frames = relative_l2(prediction, target, first_dim=2, units=units)
    return prediction, of_frames, relative_l2(prediction, target, units=units)
