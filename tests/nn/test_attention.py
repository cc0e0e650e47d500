"""ProjectedAttention is torch's multi-head attention, whatever its options, with projections of their own."""

import pytest
import torch
from laws import relative_error
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn.attention import ProjectedAttention
from monarch_sciml.nn.convert import densify, monarchize

OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 10},
]


def pair(**options):
    attention = nn.MultiheadAttention(12, 3, **options).eval()
    for p in attention.parameters():
        nn.init.normal_(p, std=0.5)  # biases are zero at first
    return attention, ProjectedAttention(attention)


def inputs(options, N=2, L=5, S=7):
    sizes = ((L, 12), (S, options.get("kdim", 12)), (S, options.get("vdim", 12)))
    first = options.get("batch_first", False)
    return [torch.randn(*((N, n) if first else (n, N)), d) for n, d in sizes]


def assert_alike(found, expected):
    assert relative_error(found[0], expected[0]) < 1e-13
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        assert relative_error(found[1], expected[1]) < 1e-13


@pytest.mark.parametrize("weights", ["none", "average", "heads"])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "padding", "both", "heads"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_computes_what_torch_does(options, mask, weights, double):
    theirs, ours = pair(**options)
    hide = torch.rand(5, 7) < 0.3
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    masks = {
        "none": {},
        "bool": {"attn_mask": hide},
        "float": {"attn_mask": torch.randn(5, 7)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": hide & (torch.arange(7) > 0), "key_padding_mask": padding},
        "heads": {"attn_mask": torch.randn(6, 5, 7)},
    }
    how = {"need_weights": weights != "none", "average_attn_weights": weights == "average", **masks[mask]}
    qkv = inputs(options)
    assert_alike(ours(*qkv, **how), theirs(*qkv, **how))


@pytest.mark.parametrize("need_weights", [True, False])
def test_causal_and_without_batch(need_weights, double):
    theirs, ours = pair()
    x = torch.randn(5, 2, 12)
    triangle = torch.ones(5, 5, dtype=torch.bool).triu(1)
    how = {"attn_mask": triangle, "is_causal": True, "need_weights": need_weights}
    assert_alike(ours(x, x, x, **how), theirs(x, x, x, **how))
    q, kv = torch.randn(4, 12), torch.randn(6, 12)
    how = {"key_padding_mask": torch.arange(6) > 3, "need_weights": need_weights}
    assert_alike(ours(q, kv, kv, **how), theirs(q, kv, kv, **how))
    with pytest.raises(InputError, match="attn_mask beside is_causal; found none"):
        ours(x, x, x, is_causal=True)


def test_dropout_falls_on_the_weights_in_training():
    theirs, ours = pair(dropout=0.5)
    x = torch.randn(3, 2, 12)
    results = []
    for module in (theirs, ours):
        module.train()
        torch.manual_seed(3)
        results.append(module(x, x, x)[0].detach())
    assert relative_error(results[1], results[0]) < 1e-5
    assert not torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x)[0], ours(x, x, x)[0])


def test_frozen_parameters_stay_frozen():
    attention = nn.MultiheadAttention(12, 3).requires_grad_(False)
    assert not any(p.requires_grad for p in ProjectedAttention(attention).parameters())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_inside_the_transformer_layers_of_torch(kind, batch_first, double):
    options = {"dropout": 0.0, "batch_first": batch_first, "activation": "gelu"}
    if kind == "encoder":
        layer = nn.TransformerEncoderLayer(16, 4, 32, **options)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
    else:
        model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, **options), 2)
    more = () if kind == "encoder" else (torch.randn(3, 3, 16),)
    monarchize(model)
    x = torch.randn(3, 3, 16)
    trained = model.train()(x, *more).detach()
    padding = torch.zeros(3, 3, dtype=torch.bool)
    padding[1, 2] = True
    name = "src_key_padding_mask" if kind == "encoder" else "tgt_key_padding_mask"
    model.eval()
    with torch.no_grad():  # where torch would take its fast path
        assert relative_error(model(x, *more), trained) < 1e-13
        hidden = model(x, *more, **{name: padding})
        densify(model)
        assert relative_error(model(x, *more), trained) < 1e-13
        assert relative_error(model(x, *more, **{name: padding}), hidden) < 1e-13


def test_the_fast_path_stays_off_when_only_the_feed_forward_part_is_monarch():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True), 2)
    report = monarchize(model, include=("*.linear1", "*.linear2"))
    assert sum(row.reason is None for row in report.rows) == 4
    x, padding = torch.randn(3, 4, 16), torch.tensor([[False] * 3 + [True]] * 3)
    trained = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        assert relative_error(model.eval()(x, src_key_padding_mask=padding), trained.detach()) < 1e-6
