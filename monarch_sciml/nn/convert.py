"""Model surgery: linear layers to Monarch layers (``monarchize``) and back (``densify``), in any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from monarch_sciml.errors import InputError
from monarch_sciml.linalg.projection import is_finite
from monarch_sciml.nn.attention import ProjectedAttention, projections
from monarch_sciml.nn.conv import MonarchConv
from monarch_sciml.nn.fourier import LearnedFourier
from monarch_sciml.nn.linear import MonarchLinear, MonarchPointwise, StackedLinear
from monarch_sciml.nn.pointwise import PointwiseConv
from monarch_sciml.nn.pointwise import _is_pointwise as is_pointwise
from monarch_sciml.nn.report import Report, Row, stack_name
from monarch_sciml.nn.transform import LearnedTransform

__all__ = ["Part", "Product", "Report", "Row", "densify", "monarchize", "multiply_out"]

# layers whose outputs are two or three blocks of as many features as come in: Q, K and V, or K and V
FUSED = {"c_attn", "qkv", "to_qkv", "in_proj", "qkv_proj", "Wqkv", "kv", "to_kv"}
LEARNED = (LearnedTransform, LearnedFourier)


def monarchize(
    model: nn.Module,
    nblocks: int = 4,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    mode: Literal["init", "project"] = "project",
) -> Report:
    """Replace linear layers inside ``model`` by Monarch layers, in place.

    Taken are ``nn.Linear``, transformers' ``Conv1D``, the four projections of ``nn.MultiheadAttention``
    (which becomes a ``ProjectedAttention``: name.q_proj, k_proj, v_proj, out_proj), and convolutions in one
    group (``MonarchConv``; 1 × 1 ones ``MonarchPointwise``), whose features are the numbers of a patch.
    A fused projection, by its name (c_attn, qkv, in_proj, …) and out = 2·in or 3·in, becomes one matrix per
    block. Where the blocks are interleaved by heads (query_key_value of GPT-NeoX) it is one matrix. A layer
    stays dense, with the reason in the report, when its weight is shared with another module (tied
    embeddings) or computed from others (weight_norm), when it would not become smaller, when ``nblocks`` does
    not divide the channels of a convolution, or when the patterns leave it out.

    Args:
        model: any model; devices, dtypes and ``requires_grad`` are kept, also on the meta device. Hooks of
            a replaced layer are lost, and code that reads its ``.weight`` fails: exclude such a layer. Make
            the optimiser afterwards.
        nblocks: blocks per factor, see ``MonarchLinear``.
        include, exclude: patterns as of the shell over qualified names, ``"encoder.layer.0.attention.*"``;
            ``*`` stands for dots too. The name of a module stands for everything inside it.
        mode: "project" starts at the nearest Monarch matrix, for trained models. "init" draws new factors
            with the variance of the weight that was there: for a new ``nn.Linear`` the start of
            ``MonarchLinear``, for GPT-2 its 0.02, for a weight of zeros L = 0. Biases stay in both.

    Raises:
        InputError: the patterns match no layer, or a weight has entries that are not finite.
    """
    if mode not in ("init", "project"):
        raise InputError("mode 'init' or 'project'", repr(mode), "choose one of them")
    layers = list(_layers(model))
    reasons = _reasons(model, layers, nblocks, include, exclude)
    if all(reason == "not matched" for reason in reasons):
        raise InputError(
            f"linear layers inside the model that match {list(include)} without {list(exclude)}",
            ", ".join(sorted({stack_name(layer.name) for layer in layers})) or "no linear layer in it",
            "choose among these names, or use MonarchLinear.from_linear for a single layer",
        )
    before = _numbers(model)
    exchange: dict[nn.Module, nn.Module] = {}
    rows = []
    for layer, reason in zip(layers, reasons, strict=True):
        macs = layer.weight.numel()
        dense = macs + (0 if layer.bias is None else layer.bias.numel())
        sizes = (layer.name, layer.kind, layer.weight.shape[1], layer.weight.shape[0])
        if reason is not None:
            rows.append(Row(*sizes, dense, dense, macs, macs, None, reason))
            continue
        parts, error = _parts(layer, nblocks, mode)
        if isinstance(parts[0], MonarchConv):
            parts[0].bias = layer.bias
            exchange[layer.module] = parts[0].train(layer.module.training)
        elif layer.projection is None:
            exchange[layer.module] = _assemble(layer, parts)
        else:
            attention = exchange.setdefault(layer.module, ProjectedAttention(layer.module))
            parts[0].bias = getattr(attention, layer.projection).bias
            setattr(attention, layer.projection, parts[0])
        fewer = sum(part.L.numel() + part.R.numel() for part in parts)
        rows.append(Row(*sizes, dense, fewer + dense - macs, macs, fewer, error, None))
    _replace(model, exchange)
    return Report(tuple(rows), before, _numbers(model))


def _numbers(model: nn.Module) -> int:
    """Parameters, without those of lazy layers that have no size yet."""
    return sum(p.numel() for p in model.parameters() if not is_lazy(p))


def densify(model: nn.Module) -> nn.Module:
    """Multiply every Monarch matrix of this package out, in place: the same map with dense weights.

    ``MonarchLinear`` becomes ``nn.Linear``, a fused projection one ``nn.Linear`` (also where a ``Conv1D``
    was), a 1 × 1 convolution that convolution; attention keeps its separate projections, then dense. Learned
    transforms keep their class, see ``LearnedTransform.densify_``. A dense weight is trained if one of its
    factors was, and shared where both were. Returns ``model``, or the dense layer where ``model`` itself is a
    Monarch one. Raises ``InputError`` for a parametrised learned transform.
    """
    return multiply_out(model)[0]


# L and R, and how tiles (J, K, S, I), complex where the factors are, become rows of the weight as stored
Part = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Product:
    """What became of factors: the dense ``weight`` is made of the ``parts``, one above the other.

    ``sources`` are the parameters that the parts are, or are computed from (weight_norm).
    """

    weight: nn.Parameter
    parts: tuple[Part, ...]
    sources: tuple[Tensor, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for products of the same factors."""
        return self.weight.shape, *(id(factor) for part in self.parts for factor in part[:2])


def multiply_out(model: nn.Module) -> tuple[nn.Module, list[Product]]:
    """``densify``, and for every dense weight the factors that it came from."""
    for name, module in model.named_modules():
        if isinstance(module, LEARNED) and is_parametrized(module):
            raise InputError(
                "learned transforms without parametrizations",
                f"some of {name or 'the model'}",
                "take them off with torch.nn.utils.parametrize.remove_parametrizations",
            )
    exchange: dict[nn.Module, nn.Module] = {}
    products: dict[tuple[Any, ...], Product] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():  # the outer one first
        if module in inside:
            continue
        made: dict[str, Product] = {}
        if isinstance(module, LEARNED):
            made = _densify_transform(module)
        elif isinstance(module, (MonarchLinear, StackedLinear, MonarchPointwise, MonarchConv)):
            inside |= set(module.modules())
            exchange[module], made["weight"] = _densified(module)
        for name, product in made.items():
            weight = products.setdefault(product.key, product).weight
            setattr(exchange.get(module, module), name, weight)  # tied factors make a tied weight
    _replace(model, exchange)
    return exchange.get(model, model), list(products.values())


@dataclass(frozen=True)
class _Layer:
    """A linear layer as it was found: its weight as (out, in), and the parameter that holds it."""

    name: str
    kind: str
    module: Any
    weight: Tensor
    bias: Any
    holder: Tensor | None
    projection: str | None = None

    @property
    def blocks(self) -> int:
        """How many matrices are stacked in the weight."""
        out, inner = self.weight.shape
        return out // inner if self.name.rpartition(".")[2] in FUSED and out in (2 * inner, 3 * inner) else 1


def _layers(model: nn.Module) -> Iterator[_Layer]:
    inside: set[nn.Module] = {model}  # nothing can take the place of the model itself
    for name, module in model.named_modules():
        m: Any = module
        kind = None if m in inside else _kind(m)
        if kind == "MultiheadAttention":
            inside |= set(m.modules())
            for part, (weight, bias) in projections(m).items():
                holder = m.out_proj.weight if part == "out_proj" else m.in_proj_weight
                holder = getattr(m, f"{part}_weight") if holder is None else holder
                yield _Layer(f"{name}.{part}", kind, m, weight.detach(), bias, holder, part)
        elif kind is not None:
            weight = m.weight.detach()
            weight = weight.mT if kind == "Conv1D" else weight.flatten(1)
            yield _Layer(name, kind, m, weight, m.bias, m._parameters.get("weight"))


def _is(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Also a subclass, if it computes the same: one with a forward of its own is something else."""
    return any(isinstance(module, c) and type(module).forward is c.forward for c in classes)


def _kind(m: Any) -> str | None:
    """What ``monarchize`` takes the module for, if for anything."""
    if isinstance(getattr(m, "weight", None), nn.UninitializedParameter):
        return None
    if _is(m, nn.MultiheadAttention):
        return "MultiheadAttention"
    if _is(m, nn.Linear):
        return "Linear"
    if type(m).__name__ == "Conv1D" and hasattr(m, "nf"):  # of transformers
        return "Conv1D"
    if isinstance(m, PointwiseConv):
        return "1×1 convolution"
    if _is(m, nn.Conv1d, nn.Conv2d, nn.Conv3d) and m.groups == 1 and m.padding_mode == "zeros":
        return "1×1 convolution" if is_pointwise(m) else "convolution"
    return None


def _reasons(
    model: nn.Module, layers: list[_Layer], nblocks: int, include: Sequence[str], exclude: Sequence[str]
) -> list[str | None]:
    """For each layer why it stays dense, or None."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(name)

    def reason(layer: _Layer) -> str | None:
        if not _matches(layer.name, include) or _matches(layer.name, exclude):
            return "not matched"
        if layer.holder is None:
            return "its weight is computed from other parameters"
        own = {layer.name, layer.name.rpartition(".")[0] if layer.projection else layer.name}
        others = [name or "the model" for name in owners[id(layer.holder)] if name not in own]
        if others:
            return f"shares its weight with {others[0]}"
        if layer.kind == "convolution" and (
            layer.module.in_channels % nblocks or layer.module.out_channels % nblocks
        ):
            return f"{nblocks} does not divide its channels"
        (out, inner), blocks = layer.weight.shape, layer.blocks
        part = MonarchLinear(inner, out // blocks, nblocks, bias=False, device="meta")
        if blocks * (part.L.numel() + part.R.numel()) >= layer.weight.numel():
            return "would not become smaller"
        return None

    return [reason(layer) for layer in layers]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits the name or that of a module around it."""
    pieces = name.split(".")
    names = [".".join(pieces[:n]) for n in range(1, len(pieces) + 1)]
    return any(fnmatchcase(n, pattern) for pattern in patterns for n in names)


def _parts(layer: _Layer, nblocks: int, mode: str) -> tuple[list[Any], float | None]:
    """The Monarch matrices for a layer, and the relative error of the projection."""
    parts, lost = [], 0.0
    meta = layer.weight.device.type == "meta"
    if not is_finite(layer.weight):
        raise InputError(
            f"finite weights in layer {layer.name}", "NaN or infinity", "mend them, or exclude the layer"
        )
    for weight in layer.weight.chunk(layer.blocks):
        out, inner = weight.shape
        if layer.kind == "convolution":
            new = MonarchConv.from_conv if mode == "project" and not meta else MonarchConv
            part: Any = new(layer.module, nblocks)
            if mode == "project" and not meta:
                lost = (part.weight.detach().flatten(1) - weight).double().square().sum().item()
            elif not meta:
                part.reset_parameters_like(weight)
        elif mode == "project" and not meta:
            dense = nn.Linear(inner, out, bias=False, device="meta")
            dense.weight = nn.Parameter(weight, requires_grad=False)
            part = MonarchLinear.from_linear(dense, nblocks)
            lost += (part.to_linear().weight.detach() - weight).double().square().sum().item()
        else:
            part = MonarchLinear(inner, out, nblocks, bias=False, device=weight.device, dtype=weight.dtype)
            if not meta:
                part.reset_parameters_like(weight)
        parts.append(part)
        for parameter in part.parameters():
            parameter.requires_grad_(layer.holder is not None and layer.holder.requires_grad)
    size = 0.0 if meta else layer.weight.double().square().sum().item()
    return parts, (lost / size) ** 0.5 if mode == "project" and size else None


def _assemble(layer: _Layer, parts: list[MonarchLinear]) -> nn.Module:
    """What takes the place of the layer; its bias remains the parameter that it was."""
    if len(parts) > 1:
        return StackedLinear(parts, layer.bias).train(layer.module.training)
    parts[0].bias = layer.bias
    module: nn.Module = parts[0]
    if layer.kind == "1×1 convolution":
        axes = None if isinstance(layer.module, PointwiseConv) else layer.module.weight.ndim - 2
        module = MonarchPointwise(parts[0], axes)
    return module.train(layer.module.training)


def _replace(model: nn.Module, exchange: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new modules wherever the old ones stand."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in exchange:
                setattr(parent, name, exchange[child])
    # torch's transformer layers read raw weights where they take their fast path: keep them off it
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            if not any(isinstance(m, (MonarchLinear, ProjectedAttention)) for m in module.modules()):
                continue
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def _densified(
    module: MonarchLinear | StackedLinear | MonarchPointwise | MonarchConv,
) -> tuple[nn.Module, Product]:
    """The dense layer, which takes over the bias as it is, and where its weight is from."""
    convolution = isinstance(module, (MonarchPointwise, MonarchConv))
    dense = module.to_conv() if convolution else module.to_linear()
    inner = module.linear if isinstance(module, MonarchPointwise) else module
    layers = inner.layers if isinstance(inner, StackedLinear) else [inner]
    sources = tuple(p for p in inner.parameters() if p is not inner.bias)
    dense.weight.requires_grad_(any(p.requires_grad for p in sources))
    dense.bias = inner.bias  # type: ignore[assignment]
    kernel = dense.weight.shape[2:]

    def part(layer: MonarchLinear | MonarchConv) -> Part:
        out = dense.weight.shape[0] if isinstance(layer, MonarchConv) else layer.out_features
        width = dense.weight[0].numel()

        def layout(tiles: Tensor) -> Tensor:
            W = tiles.transpose(1, 2).flatten(2).flatten(0, 1)
            return W[:out, :width].reshape(out, -1, *kernel)

        return layer.L, layer.R, layout

    parts = tuple(part(layer) for layer in layers)  # type: ignore[arg-type]
    return dense.train(module.training), Product(dense.weight, parts, sources)  # type: ignore[arg-type]


def _densify_transform(transform: LearnedTransform | LearnedFourier) -> dict[str, Product]:
    """Rows (ℓ, j), as many as are kept, and columns (i, k), for a stride permutation goes first."""
    axes = [""] if isinstance(transform, LearnedTransform) else ["_y", "_x"]
    factors = [(getattr(transform, f"L{a}"), getattr(transform, f"R{a}")) for a in axes]
    transform.densify_()
    products = {}
    for axis, (L, R) in zip(axes, factors, strict=True):
        weight: Any = getattr(transform, f"L{axis}")
        if weight is not L:
            rows = weight.shape[1]

            def layout(tiles: Tensor, rows: int = rows) -> Tensor:
                W = tiles.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)[:rows]
                return torch.view_as_real(W)[None] if W.is_complex() else W[None]

            products[f"L{axis}"] = Product(weight, ((L, R, layout),), (L, R))
    return products
