"""The block layout of the literature: the same matrix, checked against its definition in plain reshapes."""

import pytest
import torch
from laws import relative_error
from torch import nn
from torch.nn import functional as F

from monarch_sciml import InputError, MonarchMatrix
from monarch_sciml.linalg.layouts import from_block_layout, linear_factors, to_block_layout
from monarch_sciml.nn import MonarchLinear

DTYPES = [torch.float64, torch.complex128]
# (k, q, p), (l, s): square, rectangular, several ranks, one block
FACTORS = [
    ((4, 4, 4), (4, 4)),
    ((3, 4, 5), (2, 7)),
    ((3, 6, 5), (2, 7)),
    ((2, 9, 1), (3, 1)),
    ((1, 5, 3), (5, 2)),
    ((5, 3, 2), (1, 4)),
    ((4, 12, 13), (4, 20)),
]


def factors(first, last, dtype=torch.float64):
    (k, q, _), (l, s) = first, last
    return torch.randn(first, dtype=dtype), torch.randn(l, s, k * q // l, dtype=dtype)


def by_definition(x, w1, w2):
    """Two dense block-diagonal matrices, a transposition after either."""
    l = w2.shape[0]
    z = x @ torch.block_diag(*w1).mT
    z = z.view(*x.shape[:-1], -1, l).mT.flatten(-2)  # (r, l) → (l, r)
    y = z @ torch.block_diag(*w2).mT
    return y.view(*x.shape[:-1], l, -1).mT.flatten(-2)  # (l, s) → (s, l)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FACTORS, ids=str)
def test_both_layouts_are_the_same_matrix(case, dtype):
    w1, w2 = factors(*case, dtype)
    M = from_block_layout(w1, w2)
    x = torch.randn(3, M.shape[1], dtype=dtype)
    assert relative_error(M(x), by_definition(x, w1, w2)) < 1e-14
    assert M.rank == w1.shape[1] // w2.shape[0]
    back = to_block_layout(M)
    assert torch.equal(back[0], w1)
    assert torch.equal(back[1], w2)


@pytest.mark.parametrize("blocks", [(3, 4, 4, 3, 1), (2, 5, 3, 7, 2), (3, 2, 2, 4, 3)], ids=str)
def test_every_monarch_matrix_has_a_block_layout(blocks):
    J, S, K, I, T = blocks
    M = MonarchMatrix(torch.randn(J, S, K * T), torch.randn(K, J * T, I))
    w1, w2 = to_block_layout(M)
    x = torch.randn(2, K * I)
    assert relative_error(by_definition(x, w1, w2), M(x)) < 1e-6
    found = from_block_layout(w1, w2)
    assert torch.equal(found.L, M.L)
    assert torch.equal(found.R, M.R)


def test_batches_and_gradients():
    w1, w2 = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 2, 3, 6, dtype=torch.float64)
    M = from_block_layout(w1, w2)
    for b in range(2):
        assert torch.equal(M.to_dense()[b], from_block_layout(w1[b], w2[b]).to_dense())
    assert all(torch.equal(*pair) for pair in zip(to_block_layout(M), (w1, w2), strict=True))
    inputs = [w1[0].requires_grad_(), w2[0].requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: from_block_layout(a, b).to_dense(), inputs)


class BlockLayer(nn.Module):
    """A layer as the public checkpoints hold it: padded input, cropped output, a bias."""

    def __init__(self, in_features, out_features, nblocks=4):
        super().__init__()
        I, S = -(-in_features // nblocks), -(-out_features // nblocks)
        self.padding, self.out_features = nblocks * I - in_features, out_features
        self.blkdiag1 = nn.Parameter(torch.randn(nblocks, min(I, S), I))
        self.blkdiag2 = nn.Parameter(torch.randn(nblocks, S, min(I, S)))
        self.bias = nn.Parameter(torch.randn(out_features))

    def forward(self, x):
        y = by_definition(F.pad(x, (0, self.padding)), self.blkdiag1, self.blkdiag2)
        return y[..., : self.out_features] + self.bias


@pytest.mark.parametrize(
    "sizes", [(96, 384, 4), (384, 96, 4), (64, 64, 4), (30, 64, 4), (64, 30, 4), (27, 83, 3)], ids=str
)
def test_a_checkpoint_becomes_a_monarch_linear(sizes, double):
    in_features, out_features, n = sizes
    state = BlockLayer(*sizes).state_dict()
    reference = BlockLayer(*sizes)
    reference.load_state_dict(state)
    w1, w2 = state["blkdiag1"], state["blkdiag2"]
    layer = MonarchLinear(in_features, w2.shape[0] * w2.shape[1], n)
    L, R, order = linear_factors(w1, w2)
    with torch.no_grad():
        layer.L.copy_(L)
        layer.R.copy_(R)
        layer.bias.zero_()[order[:out_features]] = state["bias"]
    x = torch.randn(5, in_features)
    assert relative_error(layer(x)[..., order[:out_features]], reference(x)) < 1e-13
    assert sorted(order.tolist()) == list(range(layer.out_features))
    if layer.out_features == out_features:  # the layer that follows can absorb the order
        following, permuted = nn.Linear(out_features, 7), nn.Linear(out_features, 7)
        with torch.no_grad():
            permuted.weight[:, order] = following.weight
            permuted.bias.copy_(following.bias)
        assert relative_error(permuted(layer(x)), following(reference(x))) < 1e-13


def test_errors_name_the_remedy():
    with pytest.raises(
        InputError, match=r"k·q = l·r; found w1 \(3, 4, 5\) and w2 \(2, 7, 5\); check the order"
    ):
        from_block_layout(torch.randn(3, 4, 5), torch.randn(2, 7, 5))
    with pytest.raises(InputError, match="k·q = l·r"):
        from_block_layout(torch.randn(4, 5), torch.randn(2, 7, 5))
    with pytest.raises(
        InputError, match=r"a multiple of the 4 blocks of w2; found 6 rows; slices of unequal"
    ):
        from_block_layout(*factors((4, 6, 5), (4, 3)))
    with pytest.raises(InputError, match=r"as many blocks in w1 as in w2; found 3 and 2"):
        linear_factors(*factors((3, 4, 5), (2, 7)))


def test_layouts_that_are_refused_have_slices_of_unequal_rank():
    w1, w2 = factors((4, 6, 8), (4, 7))
    dense = by_definition(torch.eye(32, dtype=torch.float64), w1, w2).mT
    ranks = torch.linalg.matrix_rank(dense.view(7, 4, 4, 8).permute(1, 2, 0, 3))
    assert (ranks.min(), ranks.max()) == (1, 2)
