"""Sparse to dense in the middle of a training, and dense to sparse after one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from monarch_sciml.errors import InputError
from monarch_sciml.nn.convert import Part, Product, monarchize, multiply_out
from monarch_sciml.nn.report import Report

__all__ = ["ReverseSparsification", "fine_tune", "reverse_sparsification"]

MEANS = {"exp_avg", "momentum_buffer"}  # of the gradient
SQUARES = {"exp_avg_sq", "max_exp_avg_sq"}  # of its square
# callbacks that keep a copy of the model; the second came with Lightning 2.6
AVERAGES = tuple(
    getattr(callbacks, name)
    for name in ("StochasticWeightAveraging", "WeightAveraging")
    if hasattr(callbacks, name)
)


def reverse_sparsification(model: nn.Module, optimizer: Optimizer) -> nn.Module:
    """Multiply the Monarch matrices of ``model`` out and let ``optimizer`` go on with the dense weights.

    "Reverse sparsification" of Dao et al. (ICML 2022): most of the steps with Monarch matrices, the rest
    dense. The output of the model stays as it was. A dense weight W takes the place of its factors in their
    parameter group (the first one that holds a factor that is trained), with its learning rate and weight
    decay; schedules go on. Call it between two steps::

        if step == round(0.9 * steps):
            reverse_sparsification(model, optimizer)

    The state of SGD and Adam, AdamW too, is carried over. A tile of W is U V, a block of L times one of R,
    and a gradient G of it has been seen as g_U = G Vᴴ and g_V = Uᴴ G. Averages of the gradient become the
    smallest G that agrees with both, ``H + U (Uᴴ U)⁻¹ (g_V − Uᴴ H)`` with ``H = g_U (V Vᴴ)⁻¹ V``. Averages of
    its square become a product of rows and columns, as in Adafactor (arXiv 1804.04235): for independent
    entries ``E g_U[s,t]² = Σ_i E G[s,i]² V[t,i]²``, so the mean over row s of a tile is
    ``Σ_t E g_U[s,t]² / ‖V‖²``, and likewise for columns. Steps are counted on. Other optimisers start the
    dense weights without a state, with a warning; so do weights with a factor that is frozen or parametrised.

    Why so: on a small regression (AdamW, switched after 70 % of the steps, three seeds) the test loss in the
    next 20 steps is at most 1.00 times what it was at the switch. With an empty state it is 1.03, with
    both averages zero and the steps counted on 1.14, with the average of squares alone zero 12. At the end of
    that training an empty state was level or slightly ahead (0.972 against 0.976 of the loss at the switch):
    what is carried over is smoothness, not quality.

    Returns ``model``, or the dense layer where ``model`` itself is a Monarch one.

    Raises:
        InputError: there is no Monarch matrix in the model, or the optimiser is LBFGS, which keeps a list of
            parameters that nothing can be exchanged in.
    """
    _check_groups(optimizer)
    order = {p: i for i, p in enumerate(model.parameters())}
    model, products = multiply_out(model)
    if not products:
        raise InputError(
            "a model with Monarch matrices", "none", "convert it with monarchize before training"
        )
    now = {p: i for i, p in enumerate(model.parameters())}
    gone = {source for product in products for source in product.sources if source not in now}
    places = _places(products, optimizer)
    states = {}
    for product in products:
        states[product.weight] = _carried(product, optimizer)
    for group in optimizer.param_groups:
        _exchange(group, places, gone, order, now)
    for source in gone:
        optimizer.state.pop(source, None)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.update({weight: state for weight, state in states.items() if state and weight in held})
    return model


def _check_groups(optimizer: Optimizer) -> None:
    """Refuse an optimiser whose parameters can not be exchanged in its groups."""
    if isinstance(optimizer, LBFGS):
        raise InputError(
            "an optimiser that finds its parameters in its groups",
            "LBFGS, which keeps a list of its own",
            "call densify and make a new LBFGS",
        )


def _places(products: list[Product], optimizer: Optimizer) -> dict[Tensor, list[nn.Parameter]]:
    """For a factor the dense weights that take its place: the first held by a group, trained ones first."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    places: dict[Tensor, list[nn.Parameter]] = {}
    for product in products:
        candidates = sorted(product.sources, key=lambda source: not source.requires_grad)
        first = next((source for source in candidates if source in held), None)
        if first is not None:
            places.setdefault(first, []).append(product.weight)
    return places


def _carried(product: Product, optimizer: Optimizer) -> dict[str, Any]:
    """The state of W; empty, with a warning, where there was one of its factors that can not be carried."""
    known, name = isinstance(optimizer, (SGD, Adam)), type(optimizer).__name__
    factors = [[optimizer.state.get(factor, {}) for factor in part[:2]] for part in product.parts]
    state = _state(product, factors) if known else {}
    if not state and any(optimizer.state.get(source) for source in product.sources):
        reason = f"{name} has no state of one of the factors" if known else f"{name} is not known here"
        warnings.warn(f"{reason}: dense weights start without a state of it", stacklevel=3)
    return state


def _exchange(group: dict[str, Any], places: dict, gone: set, order: dict, now: dict) -> None:
    """In one parameter group, the dense weights in their places; the factors leave."""
    before = group["params"]
    names = group.get("param_names", [""] * len(before))
    pairs = zip(before, names, strict=True)
    kept = [(q, n) for p, n in pairs for q in (*places.get(p, ()), p) if q not in gone]
    # a group in the order of the model stays so: the state of an optimiser is saved by position
    positions = [order.get(p, -1) for p in before]
    if positions == sorted(positions) and all(p in now for p, _ in kept):
        kept.sort(key=lambda pair: now[pair[0]])
    group["params"] = [p for p, _ in kept]
    if "param_names" in group:
        group["param_names"] = [name for _, name in kept]


def _state(product: Product, states: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The optimiser's state of W from those of its factors; empty before the first step."""
    if not all(state for pair in states for state in pair):
        return {}
    result: dict[str, Any] = {}
    for name, value in states[0][0].items():
        if name in MEANS | SQUARES and value is not None:
            rows = [
                _carry(part, left[name], right[name], square=name in SQUARES)
                for part, (left, right) in zip(product.parts, states, strict=True)
            ]
            result[name] = torch.cat(rows).to(value.dtype).reshape(product.weight.shape).contiguous()
        else:
            result[name] = value.clone() if isinstance(value, Tensor) else value
    return result


def _carry(part: Part, left: Tensor, right: Tensor, *, square: bool) -> Tensor:
    """The average for W, as W is stored, from those for L and R."""
    L, R, layout = part
    (U, V), (g_U, g_V) = _tiles(L, R), _tiles(left, right, square=square)
    # padding to whole blocks has no gradient and is no part of W
    U, V = U * (g_U != 0).any(-1, keepdim=True), V * (g_V != 0).any(-2, keepdim=True)
    W = layout((_square if square else _mean)(U, V, g_U, g_V))
    return W[..., None].expand(*W.shape, 2) / 2 if square and L.ndim == 4 else W  # real and imaginary part


def _tiles(L: Tensor, R: Tensor, *, square: bool = False) -> tuple[Tensor, Tensor]:
    """U (J, K, S, T) and V (J, K, T, I) of the tiles U V; complex for factors with a trailing 2.

    Squares of real and imaginary part are added instead and are real.
    """
    L, R = (f.detach().to(torch.promote_types(f.dtype, torch.float32)) for f in (L, R))
    if L.ndim == 4:
        L, R = (f.sum(-1) if square else torch.view_as_complex(f.contiguous()) for f in (L, R))
    R = R.flatten(2)  # the kernel of a convolution
    J, K = L.shape[0], R.shape[0]
    return L.unflatten(-1, (K, -1)).transpose(1, 2), R.unflatten(1, (J, -1)).transpose(0, 1)


def _mean(U: Tensor, V: Tensor, g_U: Tensor, g_V: Tensor) -> Tensor:
    """The smallest G (J, K, S, I) with G Vᴴ = g_U and Uᴴ G = g_V, as far as both can hold."""
    from_rows = g_U @ torch.linalg.pinv(V).mH
    return from_rows + torch.linalg.pinv(U).mH @ (g_V - U.mH @ from_rows)


def _square(U: Tensor, V: Tensor, g_U: Tensor, g_V: Tensor) -> Tensor:
    """Mean squares of the entries of G (J, K, S, I), real, of the form row × column."""
    tiny = torch.finfo(torch.float32).tiny
    rows = g_U.sum(-1) / V.abs().square().sum((-2, -1)).clamp_min(tiny)[..., None]
    columns = g_V.sum(-2) / U.abs().square().sum((-2, -1)).clamp_min(tiny)[..., None]
    # rows are weighted means over a row, columns over a column: their totals agree but for correlations
    total = 0.5 * (rows.mean(-1) + columns.mean(-1))
    product = rows.mean(-1) * columns.mean(-1)
    return rows[..., :, None] * columns[..., None, :] * (total / product.clamp_min(tiny))[..., None, None]


class ReverseSparsification(Callback):
    """Lightning: train with Monarch matrices, then ``reverse_sparsification`` after part of the steps.

    ``Trainer(callbacks=[ReverseSparsification(0.9)])`` around a module whose model is converted with
    ``monarchize``. The last step is dense at the latest. A run that is resumed from a checkpoint of after the
    switch goes on dense: build it as at the start, with this callback. ``trainer.test(model, ckpt_path=…)``
    needs the callback too; ``load_from_checkpoint`` does not know it and finds other weights than it expects.

    Args:
        fraction: of the trainer's estimated number of steps, 0 < fraction < 1.

    Raises:
        InputError: when training starts: on several devices, with a callback that averages weights, with
            several optimisers or LBFGS, or when nobody knows how many steps there will be.
    """

    def __init__(self, fraction: float = 0.9):
        if not 0 < fraction < 1:
            raise InputError("a fraction of the steps between 0 and 1", str(fraction), "0.9 is usual")
        self.fraction, self.switched = fraction, False
        self._hook: Any = None
        self._trained: lightning.LightningModule | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """From here on a dense checkpoint makes the model dense; another module than before is a new one."""
        if self._hook is not None:  # of a training that failed, perhaps of another module
            self._hook.remove()
        self._hook = pl_module.register_load_state_dict_pre_hook(_densify_for)
        if stage == "fit" and pl_module is not self._trained:  # a checkpoint is loaded after this
            self._trained, self.switched = pl_module, False

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the module as it was found."""
        self._hook.remove()
        self._hook = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse before the first step what could not be switched after most of them."""
        _check_trainer(trainer)
        if len(trainer.optimizers) != 1:
            raise InputError("one optimiser", str(len(trainer.optimizers)), "switch in a loop of your own")
        _check_groups(trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Switch when the time has come."""
        steps = trainer.estimated_stepping_batches
        if not self.switched and trainer.global_step >= min(self.fraction * steps, steps - 1):
            reverse_sparsification(pl_module, trainer.optimizers[0])
            self.switched = True

    def state_dict(self) -> dict[str, Any]:
        """Whether the switch has been."""
        return {"switched": self.switched}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Whether the switch has been."""
        self.switched = state_dict["switched"]


def _check_trainer(trainer: lightning.Trainer) -> None:
    """Refuse what keeps a list or a copy of the parameters, and a training of unknown length."""
    if trainer.world_size > 1:
        raise InputError("one device", str(trainer.world_size), "set devices=1, or switch between two runs")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AVERAGES):
            name = type(callback).__name__
            raise InputError("no callback that averages weights", name, "leave out one of the two")
    if math.isinf(trainer.estimated_stepping_batches):
        raise InputError("a known number of steps", "no end of the training", "set max_steps or max_epochs")


def _densify_for(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: multiply out if what is coming are not the factors that are here."""
    own = module.state_dict()
    fits = all(
        prefix + name in state and state[prefix + name].shape == value.shape
        for name, value in own.items()
        if isinstance(value, Tensor)
    )
    if not fits:
        multiply_out(module)


def fine_tune(
    model: nn.Module,
    nblocks: int,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    steps: int,
    learning_rate: float,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    mode: Literal["init", "project"] = "project",
) -> Report:
    """Dense to sparse: project the layers of a trained model to Monarch matrices, and train on, in place.

    AdamW, its learning rate rising over the first tenth of the steps and falling to zero as a cosine.

    Args:
        model, nblocks, include, exclude, mode: as of ``monarchize``; "init" is training from the start.
        loss: (model, batch) → scalar.
        batches: gone through as often as needed, such as a ``DataLoader``.
        steps, learning_rate: of the training; a tenth of the original learning rate is a place to start.

    Returns:
        the report of ``monarchize``, with the errors of the projection. The model is in training mode.

    Raises:
        InputError: no step or no batch, or a loss that is not finite.
    """
    if steps < 1:
        raise InputError("at least one step", str(steps), "use monarchize to project only")
    report = monarchize(model, nblocks, include=include, exclude=exclude, mode=mode)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=learning_rate)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * t / steps))
    )
    model.train()
    source = iter(batches)
    for step in range(steps):
        batch = next(source, None)
        if batch is None:  # once around
            source = iter(batches)
            batch = next(source, None)
            if batch is None:
                raise InputError(
                    "batches that can be gone through again", "none", "pass a list or DataLoader"
                )
        value = loss(model, batch)
        if not torch.isfinite(value):
            raise InputError("a finite loss", f"{value.item()} at step {step}", "lower the learning rate")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return report
