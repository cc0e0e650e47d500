"""What classical transforms are made of as Monarch matrices, and how exactly.

    python benchmarks/exact_forms.py

Writes ``docs/exact_forms.md``: the text below and one table per size, with the relative error of the dense
matrix in float64 against scipy, numpy or torch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

from monarch_sciml.linalg import LinearOperator, StridePermutation, dft, truncated_dft
from monarch_sciml.linalg.butterflies import butterfly, fastfood, hadamard, hd3, kronecker
from monarch_sciml.linalg.composition import monarch_factors
from monarch_sciml.linalg.convolutions import afdf, chirp_dft, circulant, convolution, hankel, toeplitz
from monarch_sciml.linalg.permutations import permutation
from monarch_sciml.linalg.trigonometric import acdc, dct, dst

DOC = Path(__file__).resolve().parents[1] / "docs" / "exact_forms.md"
SIZES = (64, 360, 225, 101)
# name, class in the paper, operator, dense matrix
Case = tuple[str, str, LinearOperator, np.ndarray]

TEXT = """\
# Exact Monarch forms

Written by `python benchmarks/exact_forms.py`.

A Monarch matrix (Dao et al. 2022) has its rows numbered (ℓ, j) and its columns (k, i), and **M[(ℓ,j),(k,i)]
= Σ_t L[j,ℓ,(k,t)] · R[k,(j,t),i]**: each slice M[:, j, k, :] has rank T, one in the paper. Many classical
transforms are such matrices, exactly, at about 2·T·n·√n numbers a factor in place of n². So a layer can
start at the transform and learn from there.

## Why they fit

**Fourier.** With n = p·q, input j = j1·q + j2 and output k = k1 + p·k2 the product jk = q·j1·k1 + n·j1·k2 +
j2·k, and n·j1·k2 does nothing in exp(−2πi jk/n). What is left is a function of (k1, j1) times a function of
(k, j2): slices of rank one, after the stride permutation that sorts the input by (j2, j1). F = M Π.

**Cosine and sine.** The same split of the angle, θ = α(m1, k1) + β(m2, k), and cos(α + β) = cos β cos α −
sin β sin α: slices of rank two. The angle of a DCT-II is 2π(2m + 1)k/4n, and its term m1·k2 would survive.
Sorted as in Makhoul (1980), even m ascending and then odd m descending, the inputs have the angles 2π(4m +
1)k/4n up to sign, and the term is a multiple of 2π. So types II and IV are ONE real Monarch matrix of rank
two after a fixed permutation, with as many real numbers as the complex DFT has; type III is the transpose.
Type I has period 2(n − 1), or 2(n + 1) for sines: the same with this number split, keeping the rows and
columns below n. The paper places DCT and DST in (MM\\*)².

**Circulant, Toeplitz, Hankel.** A circulant matrix is C = F D Fᴴ; the stride permutations cancel: C = M D
Mᴴ. A Toeplitz matrix is a corner of a circulant matrix of length N ≥ m + n − 1: rows of M that are not
needed are left out, T = M₁ D M₂ᴴ. Hankel matrices have the transpose in place of the adjoint, H = M₁ D M₂ᵀ.
Convolutions in all modes are Toeplitz, AFDF is a circulant matrix with scaled rows, and the DFT of a prime
length is a Toeplitz matrix between two diagonals (Bluestein). Diagonals cost nothing: they are absorbed in
a factor.

**Butterflies.** Factors of stride below √n stay within blocks of √n entries and multiply to R; the others
join entries at equal places of these blocks and multiply to L. Kronecker products A ⊗ B have L[j] = A and
R[k] = B; Hadamard is one.

**Permutations** of a p × q grid are moves within rows, columns, rows (Hall's theorem): two factors. One
suffices when the entries of one row go to different columns.

## How to use them

```python
import torch
from monarch_sciml.linalg import dct, monarch_factors

C = dct(64, norm="ortho")  # an operator: C(x), C @ x, C.H, C.to_dense()
(M,) = monarch_factors(C)  # what it is made of: M.L, M.R; C is M after a permutation
L, R = (torch.nn.Parameter(t.clone()) for t in (M.L, M.R))
```

A learnable layer applies `MonarchMatrix(L, R)` where the operator has `M`. For real transforms L and R are
real. Factors are returned in float64 or complex128; `dtype=` asks for others.

## What each is made of

*here*: Monarch factors, J × K blocks of each. *rank*: the largest T. *numbers*: real numbers in the factors
(a complex one counts twice, a factor used twice counts twice), and in the dense matrix. *error*: relative,
float64, of the dense matrix. Blocks 1 × n or n × 1 are one dense block: n is prime, or, for a DCT-I or
DST-I, 2(n − 1) or 2(n + 1) has no divisors that make the form smaller than the matrix. The convolutions are
complex: a real Toeplitz matrix takes about 16·n·√n real numbers, fewer than n² beyond n = 256, a real
circulant one 8·n·√n, fewer beyond n = 64.
"""


def cases(n: int) -> Iterator[Case]:
    """All transforms of size n: operator and dense reference of the same entries."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    eye = np.eye(n)
    fourier = scipy.fft.fft(eye, axis=0, norm="ortho")
    yield "DFT", "𝓜Π", dft(n), fourier
    yield "inverse DFT", "𝓜Π", dft(n, inverse=True), fourier.conj()
    if n == 101:
        yield "DFT, Bluestein", "–", chirp_dft(n), fourier
    rows = truncated_dft(n, n // 4, 0)
    yield "DFT, first n/4 rows", "–", rows, fourier[: rows.shape[0]]
    functions: tuple[tuple[str, Callable[..., LinearOperator], Callable[..., np.ndarray]], ...] = (
        ("DCT", dct, scipy.fft.dct),
        ("DST", dst, scipy.fft.dst),
    )
    for name, ours, reference in functions:
        for type in (1, 2, 3, 4):
            kind = f"{name}-{('I', 'II', 'III', 'IV')[type - 1]}"
            yield kind, "(𝓜𝓜\\*)²", ours(n, type, norm="ortho"), reference(eye, type, norm="ortho", axis=0)
    c, r, a, d = draw(4, n)
    yield "circulant", "𝓜𝓜\\*", circulant(c), scipy.linalg.circulant(c.numpy())
    yield "Toeplitz", "𝓜𝓜\\*", toeplitz(c, r), scipy.linalg.toeplitz(c.numpy(), r.numpy())
    yield "Hankel", "–", hankel(c, r), scipy.linalg.hankel(c.numpy(), r.numpy())
    kernel = draw(9)
    same = np.stack([np.convolve(e, kernel.numpy(), "same") for e in eye], axis=1)
    yield "convolution, 9 taps, same", "𝓜𝓜\\*", convolution(kernel, n, mode="same"), same
    inner = scipy.fft.ifft(d.numpy()[:, None] * scipy.fft.fft(eye, axis=0), axis=0).conj()
    yield "AFDF", "𝓜𝓜\\*", afdf(a, d), a.numpy()[:, None] * inner
    cosine = scipy.fft.dct(eye, norm="ortho", axis=0)
    yield "ACDC", "(𝓜𝓜\\*)²", acdc(a, d), a.numpy()[:, None] * (cosine @ (d.numpy()[:, None] * cosine.T))
    order = torch.randperm(n, generator=generator)
    yield "random permutation", "–", permutation(order), eye[order.numpy()]
    p = next(p for p in range(int(n**0.5), 0, -1) if n % p == 0)
    A, B = draw(p, p), draw(n // p, n // p)
    yield "Kronecker product", "𝓜", kronecker(A, B), np.kron(A.numpy(), B.numpy())
    stride = StridePermutation(p, n // p)(torch.arange(n))
    yield f"stride permutation {p} × {n // p}", "–", permutation(stride), eye[stride.numpy()]
    if n & (n - 1) == 0:
        H = scipy.linalg.hadamard(n).astype(float)
        yield "Hadamard", "𝓜𝓜\\*", hadamard(n), H
        stages = draw(n.bit_length() - 1, n // 2, 2, 2)
        dense = eye
        for s, stage in enumerate(stages.numpy()):
            pairs = dense.reshape(-1, 2, 2**s, n)
            dense = np.einsum("hlab,hblc->halc", stage.reshape(-1, 2**s, 2, 2), pairs).reshape(n, n)
        yield "butterfly", "𝓜", butterfly(stages), dense
        signs = draw(3, n).sign()
        x, y, z = signs.numpy()
        yield "(HD)³", "(𝓜𝓜\\*)²", hd3(*signs), (H * x) @ (H * y) @ (H * z) / n**1.5
        middle = (H * r.numpy()) @ eye[order.numpy()] @ (H * d.numpy())
        yield "Fastfood", "(𝓜𝓜\\*)²", fastfood(a, r, order, d), a.numpy()[:, None] * middle


def row(case: Case) -> str:
    """Transform, class in the paper, factors, rank, numbers stored, numbers of the dense matrix, error."""
    name, paper, operator, reference = case
    found = operator.to_dense(torch.complex128).numpy()
    error = np.linalg.norm(found - reference) / np.linalg.norm(reference)
    factors = monarch_factors(operator)
    blocks = ", ".join(f"{J} × {K}" for J, K in (M.nblocks for M in factors))
    numbers = sum((M.L.numel() + M.R.numel()) * (1 + M.L.is_complex()) for M in factors)
    dense = reference.size * (1 + np.iscomplexobj(reference))
    rank = max(M.rank for M in factors)
    return f"| {name} | {paper} | {blocks} | {rank} | {numbers:,} | {dense:,} | {error:.0e} |"


def table(n: int) -> list[str]:
    """The lines of the table for size n."""
    kind = {225: ", odd", 101: ", prime"}.get(n, "")
    head = [
        "| transform | in the paper | here | rank | numbers | dense | error |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    return ["", f"### n = {n}{kind}", "", *head, *(row(case) for case in cases(n))]


def document() -> str:
    """The whole page."""
    return TEXT + "\n".join(line for n in SIZES for line in table(n)) + "\n"


if __name__ == "__main__":
    DOC.write_text(document())
    print(document())
