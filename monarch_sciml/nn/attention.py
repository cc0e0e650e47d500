"""Multi-head attention whose projections are modules, so that any of them can be a Monarch layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monarch_sciml.errors import InputError

__all__ = ["ProjectedAttention", "projections"]


class ProjectedAttention(nn.Module):
    """``nn.MultiheadAttention`` with its four projections as layers of their own.

    torch's module multiplies by raw weights, three of them in one matrix, so that nothing can stand in for
    them. This one is called in the same way and returns the same: ``softmax(Q Kᵀ/√d + mask) V`` per head with
    Q, K, V = ``q_proj(query)``, ``k_proj(key)``, ``v_proj(value)``, then ``out_proj``. It also serves inside
    torch's transformer layers, where it keeps off their fast path for inference, which reads raw weights.

    Args:
        attention: the module to take over, settings and values. Nested tensors are not supported.
    """

    # what torch's transformer layers look at before they take the fast path: these values keep them off it
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        for name, (weight, bias) in projections(attention).items():
            setattr(self, name, _linear(weight, bias))
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``: the output, and the weights or None."""
        if is_causal and attn_mask is None:
            raise InputError("attn_mask beside is_causal", "none", "pass the causal mask, as torch requires")
        batched = query.ndim == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat((t, b.to(t).expand(t.shape[0], 1, -1)), 1)
                for t, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))

        # is_causal says what attn_mask holds: where it is the only mask, the kernel knows the triangle itself
        plain = k.shape[2] == key.shape[1] and key_padding_mask is None and not need_weights
        causal = is_causal and plain
        mask = None if causal else self._mask(q, k, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            out = weights.to(v.dtype) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            weights = None
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    @staticmethod
    def _mask(
        q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """Both masks as one, added to the scores (N, heads, L, S); True means −∞."""
        (N, heads, L, _), S = q.shape, k.shape[2]
        total = None
        if attn_mask is not None:
            total = _additive(attn_mask, q)
            total = total.view(N, heads, L, -1) if attn_mask.ndim == 3 else total
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)[:, None, None]
            total = padding if total is None else total + padding
        # the constant key and the zero key are always seen
        return None if total is None else F.pad(total, (0, S - total.shape[-1]))


def projections(attention: nn.MultiheadAttention) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weight (out, in) and bias of the four projections of torch's module, as views of its parameters."""
    weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    out = attention.out_proj
    return dict(
        zip(
            ("q_proj", "k_proj", "v_proj", "out_proj"),
            zip((*weights, out.weight), (*biases, out.bias), strict=True),
            strict=True,
        )
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta", bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return linear


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
