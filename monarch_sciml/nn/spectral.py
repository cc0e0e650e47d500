"""The spectral convolution of a Fourier neural operator, with transforms that learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from monarch_sciml.errors import InputError
from monarch_sciml.kernels import check_tensors, fourier_convolution, spectral_convolution
from monarch_sciml.kernels.derivatives import only_torch
from monarch_sciml.linalg import interpolation
from monarch_sciml.nn.inputs import check_dtype, integers, needs_grid
from monarch_sciml.nn.transform import LearnedTransform

__all__ = ["MonarchSpectralConv", "use_learned_transforms"]

MANY_MODES = 48  # an axis: from there on FFTs are quicker forward, on grids of 64² to 256²


class MonarchSpectralConv(nn.Module):
    """``y = V (w · (W x)) + b``: analyse along each axis, mix channels per mode, synthesise.

    W and V are truncated Monarch transforms, one per axis and direction, that start as the exact DFT and its
    inverse (norm="forward") and are trained like every other parameter. At initialisation the layer equals
    rfftn → truncate → multiply → irfftn, the convolution of Li et al. (arXiv 2010.08895), on every grid.

    Args:
        in_channels, out_channels: channel counts.
        n_modes: modes per axis, in total, as in neuraloperator: n_modes=(24, 24) keeps frequencies −12 … 11
            along the first axis and 0 … 12 along the last, whose negative half is redundant for real data.
        grid: points per axis the transforms are defined on, usually the training grid. Any sizes work;
            those with divisors near their square root have the smallest factors, primes have dense ones.
        learned: True trains the transforms, False keeps the exact DFT (a pruned-DFT FNO layer).
        bias: a constant per output channel.
        resolution_scaling_factor: output grid divided by input grid, one number or one per axis.
        max_n_modes: modes to hold weights for, when ``n_modes`` is to grow during training.

    Shapes:
        x (B, in_channels, n_1 … n_d), real, on a periodic grid over the same domain for every size → (B,
        out_channels, n′_1 … n′_d). Other grid sizes than ``grid`` compose the transforms with exact
        trigonometric interpolation. x has the dtype of the weights, float32, float64, bfloat16 or float16, as
        for torch's own layers; under autocast it is converted.

    Parameters are real: ``weight`` (m_1 … m_d, in_channels, out_channels, 2). Cost: one GEMM per axis and
    direction of 4·m·n multiply-adds per line and one batched GEMM over the kept modes.

    Raises:
        InputError: no grid, more modes than grid points, or an input whose axes or dtype do not match.
    """

    @needs_grid
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: int | Sequence[int],
        *,
        grid: int | Sequence[int],
        learned: bool = True,
        bias: bool = True,
        resolution_scaling_factor: float | Sequence[float] | None = None,
        max_n_modes: int | Sequence[int] | None = None,
    ):
        super().__init__()
        in_channels, out_channels = integers("channels", in_channels, out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.grid = _sizes(grid)
        total = _modes(n_modes if max_n_modes is None else max_n_modes, len(self.grid))
        for m, n in zip(total, self.grid, strict=True):
            if not 1 <= m <= n:
                raise InputError(
                    f"between 1 and {n} modes on a grid of {self.grid}",
                    f"n_modes={total}",
                    "lower n_modes or train on a finer grid",
                )
        self.max_n_modes = total
        self.resolution_scaling_factor = (
            None
            if resolution_scaling_factor is None
            else _per_axis(resolution_scaling_factor, len(self.grid), "resolution_scaling_factor")
        )

        def transforms(sign: int) -> nn.ModuleList:
            """sign −1: analysis, norm 1/n. sign +1: synthesis, stored as the adjoint of an analysis."""
            last = len(self.grid) - 1
            modules = []
            for axis, (m, n) in enumerate(zip(total, self.grid, strict=True)):
                half = axis == last
                modules.append(
                    LearnedTransform(
                        n,
                        m // 2 + 1 if half else m,
                        first=0 if half else None,
                        scale=n ** (sign / 2),
                        hermitian=half and sign > 0,
                        learned=learned,
                    )
                )
            return nn.ModuleList(modules)

        self.analysis, self.synthesis = transforms(-1), transforms(+1)
        std = (2 / (in_channels + out_channels)) ** 0.5
        modes = [t.n_modes for t in self._transforms(self.analysis)]
        # as torch's complex normal: the variance is shared by real and imaginary part
        self.weight = nn.Parameter(torch.randn(*modes, in_channels, out_channels, 2) * std * 2**-0.5)
        self.bias = nn.Parameter(std * torch.randn(out_channels, *[1] * len(self.grid))) if bias else None
        self.n_modes = n_modes

    @classmethod
    def on_grid(
        cls, grid: int | Sequence[int], *, learned: bool = True
    ) -> Callable[..., MonarchSpectralConv]:
        """A ``conv_module`` for ``neuralop.models.FNO``, with transforms defined on ``grid``.

        ``FNO(n_modes=(24, 24), …, conv_module=MonarchSpectralConv.on_grid((64, 64)))``. Options of
        neuraloperator's layer that have no meaning here (tensor factorisation of the weights, separable or
        complex-valued convolution, half-precision FFT) raise ``InputError`` rather than being ignored.
        """

        # picklable, since neuraloperator's state_dict contains the arguments of the model
        return partial(_conv_module, grid=grid, learned=learned)

    @classmethod
    def from_spectral_conv(
        cls, conv: nn.Module, grid: int | Sequence[int], *, learned: bool = True
    ) -> MonarchSpectralConv:
        """The same map as a (trained) ``SpectralConv`` of neuraloperator, with transforms that can learn.

        A factorised weight is multiplied out. ``grid`` is the one the transforms are defined on, usually that
        of the training. Modes that are stored and not in use (``max_n_modes``) are kept as far as the grid
        holds them. A frozen weight or bias stays frozen. Where the layer changes the resolution the map is
        the convolution that it stands for: neuraloperator 2.0 drops or misplaces negative frequencies there,
        of all axes but the last.

        Raises ``InputError`` for a separable or complex-valued convolution, for more modes in use than the
        grid holds, and for odd sizes of any axis but the last: neuraloperator 2.0 exchanges frequencies
        there, no convolution.
        """
        sizes = _sizes(grid)
        if getattr(conv, "separable", False) or getattr(conv, "complex_data", False):
            raise InputError(
                "a spectral convolution that mixes the channels of real data",
                "separable=True or complex_data=True",
                "leave this layer as it is",
            )
        if any(n % 2 for n in sizes[:-1]):
            raise InputError(
                "even sizes of all axes but the last",
                f"grid={sizes}",
                "train a MonarchSpectralConv on this grid from the start",
            )
        tensor: Any = conv.weight
        weight: Tensor = (tensor.to_tensor() if hasattr(tensor, "to_tensor") else tensor).detach()
        *modes, half = weight.shape[2:]
        *used, used_half = (int(m) for m in conv.n_modes)  # type: ignore[union-attr]
        kept = []
        for axis, (stored, m, n) in enumerate(zip(modes, used, sizes, strict=False), start=2):
            # those in use are in the middle, with frequency zero at the same place in both
            zero = (stored - m) // 2 + m // 2
            kept.append(max(m, min(stored, n, 2 * zero + 1)))
            weight = weight.narrow(axis, zero - kept[-1] // 2, kept[-1])
        half = max(used_half, min(half, sizes[-1] // 2 + 1))
        weight = weight[..., :half]
        scaling: Any = conv.resolution_scaling_factor
        layer = cls(
            weight.shape[0],
            weight.shape[1],
            (*used, max(1, 2 * (used_half - 1))),  # totals, as in the constructor
            grid=grid,
            learned=learned,
            bias=conv.bias is not None,
            resolution_scaling_factor=scaling,
            max_n_modes=(*kept, max(1, 2 * (half - 1))),
        )
        layer.to(weight.device)
        with torch.no_grad():
            layer.weight.copy_(torch.view_as_real(weight.movedim((0, 1), (-2, -1)).resolve_conj()))
            if layer.bias is not None:
                layer.bias.copy_(conv.bias)  # type: ignore[arg-type]
                layer.bias.requires_grad_(conv.bias.requires_grad)  # type: ignore[union-attr]
        trained = [p for name, p in conv.named_parameters() if name != "bias"]  # or its factors
        layer.weight.requires_grad_(any(p.requires_grad for p in trained))
        return layer

    @property
    def n_modes(self) -> tuple[int, ...]:
        """Modes in use per axis, in total. Can be set, up to ``max_n_modes``: the lowest ones are used."""
        return self._n_modes

    @n_modes.setter
    def n_modes(self, n_modes: int | Sequence[int]) -> None:
        modes = _modes(n_modes, len(self.grid))
        if any(not 1 <= m <= top for m, top in zip(modes, self.max_n_modes, strict=True)):
            raise InputError(
                f"n_modes between 1 and {self.max_n_modes}, for which there are weights",
                f"{modes}",
                "construct the layer with max_n_modes at least that large",
            )
        self._n_modes = modes
        # positions of the modes in use among those stored
        full = zip(modes[:-1], self.max_n_modes[:-1], strict=True)
        self._used = [slice(top // 2 - m // 2, top // 2 - m // 2 + m) for m, top in full]
        self._used.append(slice(0, modes[-1] // 2 + 1))

    @staticmethod
    def _transforms(modules: nn.ModuleList) -> list[LearnedTransform]:
        return [t for t in modules if isinstance(t, LearnedTransform)]

    def _output_sizes(self, x: Tensor, output_shape: Sequence[int] | None) -> tuple[int, ...]:
        sizes = tuple(x.shape[2:])
        if len(sizes) != len(self.grid):
            raise InputError(
                f"an input (batch, channels, {', '.join(f'n_{a + 1}' for a in range(len(self.grid)))})",
                f"shape {tuple(x.shape)}",
                f"the layer was built for {len(self.grid)} axes, grid {self.grid}",
            )
        if output_shape is not None:
            return _per_axis(output_shape, len(self.grid), "output_shape")
        if self.resolution_scaling_factor is not None:
            return tuple(round(n * f) for n, f in zip(sizes, self.resolution_scaling_factor, strict=True))
        return sizes

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """The convolution on the grid of ``x``, evaluated on ``output_shape`` (default: the same grid)."""
        check_tensors(x)
        sizes = self._output_sizes(x, output_shape)
        if x.shape[1] != self.in_channels or x.is_complex():
            raise InputError(
                f"a real input with {self.in_channels} channels",
                f"{x.dtype} of shape {tuple(x.shape)}",
                "channels are the second axis",
            )
        check_dtype(x, self.weight.dtype)
        bias = None if self.bias is None else self.bias.flatten()
        # taken apart only if needed: the gradient of a part is a second array as large as the whole
        weight = self.weight if self.n_modes == self.max_n_modes else self.weight[tuple(self._used)]
        if self._fft_is_quicker(x, sizes):
            return fourier_convolution(x, weight, bias)
        analysis = [
            t(n)[:, used]
            for t, n, used in zip(self._transforms(self.analysis), x.shape[2:], self._used, strict=True)
        ]
        synthesis = [
            t.adjoint(n)[..., used]
            for t, n, used in zip(self._transforms(self.synthesis), sizes, self._used, strict=True)
        ]
        return spectral_convolution(x, analysis, weight, synthesis, bias=bias)

    def _fft_is_quicker(self, x: Tensor, sizes: tuple[int, ...]) -> bool:
        """For fixed transforms that are the DFT, without gradients: FFTs do not grow with the modes."""
        return (
            not torch.is_grad_enabled()
            and not only_torch()  # nor with vmap, which cannot write into memory of others
            and tuple(x.shape[2:]) == sizes == self.grid
            and len(self.grid) == 2
            and sum(self.n_modes) > 2 * MANY_MODES
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not isinstance(self._transforms(self.analysis)[0].L, nn.Parameter)
            and not torch.compiler.is_compiling()  # whose shapes and branches must not depend on numbers
            and all(t.is_fourier() for m in (self.analysis, self.synthesis) for t in self._transforms(m))
        )

    def transform(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """``x`` on the output grid of ``forward``, by trigonometric interpolation: exact if band-limited."""
        for axis, n in enumerate(self._output_sizes(x, output_shape), start=2):
            if x.shape[axis] != n:
                T = interpolation(x.shape[axis], n).real.to(x)
                x = (x.movedim(axis, -1) @ T.mT).movedim(-1, axis)
        return x

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{self.in_channels} → {self.out_channels}, n_modes={self.n_modes}, grid={self.grid}"


def _conv_module(
    in_channels: int, out_channels: int, n_modes: Sequence[int], *, grid: Any, learned: bool, **options: Any
) -> MonarchSpectralConv:
    """A layer from the arguments that neuraloperator passes."""
    kept = {k: options.pop(k, None) for k in ("resolution_scaling_factor", "max_n_modes")}
    bias = options.pop("bias", True)
    for name in ("rank", "fixed_rank_modes", "implementation", "decomposition_kwargs"):
        options.pop(name, None)  # details of a factorisation, which must be absent
    neutral = {
        "factorization": (None, "Dense", "dense"),
        "separable": (False,),
        "complex_data": (False,),
        "fno_block_precision": ("full",),
    }
    for name, value in options.items():
        if value not in neutral.get(name, ()):
            raise InputError(
                "dense, real-valued, full-precision mode mixing",
                f"{name}={value!r}, which may be a default of the model",
                f"pass {name}={neutral[name][0]!r}, or build the model without conv_module and call "
                "use_learned_transforms(model, grid)"
                if name in neutral
                else "leave this option out",
            )
    return MonarchSpectralConv(
        in_channels, out_channels, n_modes, grid=grid, learned=learned, bias=bias, **kept
    )


def use_learned_transforms(model: nn.Module, grid: int | Sequence[int]) -> nn.Module:
    """Exchange every ``SpectralConv`` of neuraloperator inside ``model`` for one whose transforms can learn.

    A trained FNO becomes an FNO-Monarch that predicts the same, ready to be trained on: its Fourier
    transforms are Monarch matrices already, so nothing is lost. ``grid`` is usually the one it was trained
    on. Where the resolution changes between layers, predictions differ: the resampling of skip connections is
    exact afterwards, not bicubic, and negative frequencies stay where they are. Works in place and returns
    ``model``. Raises ``InputError`` when there is no such layer, or one that can not be
    represented.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # named_children leaves out what stands there twice
        if child is not None and is_spectral_conv(child)
    ]
    if not found:
        raise InputError(
            "a model with neuraloperator's SpectralConv inside", type(model).__name__, "pass an FNO"
        )
    layers = {id(c): MonarchSpectralConv.from_spectral_conv(c, grid) for _, _, c in found}
    for parent, name, child in found:
        setattr(parent, name, layers[id(child)])
    return model


def is_spectral_conv(module: nn.Module) -> bool:
    """Whether it is neuraloperator's layer, which takes seconds to import only to be asked."""
    return type(module).__name__ == "SpectralConv" and type(module).__module__.startswith("neuralop.")


def _sizes(grid: Any) -> tuple[int, ...]:
    return integers("grid", *(grid if isinstance(grid, Iterable) else (grid,)))


def _modes(n_modes: Any, d: int) -> tuple[int, ...]:
    return integers("n_modes", *_per_axis(n_modes, d, "n_modes"))


def _per_axis(value: Any, d: int, name: str) -> tuple:
    values = tuple(value) if isinstance(value, Iterable) else (value,) * d
    if len(values) != d:
        raise InputError(f"one number or {d}, one per axis, for {name}", repr(value), "match the grid's axes")
    return values
