"""Operator algebra: Monarch matrices, the transforms they represent exactly, the nearest Monarch matrix."""

from monarch_sciml.linalg.butterflies import butterfly, fastfood, hadamard, hd3, kronecker
from monarch_sciml.linalg.composition import Cropped, Selection, absorb, monarch_factors
from monarch_sciml.linalg.convolutions import afdf, chirp_dft, circulant, convolution, hankel, toeplitz
from monarch_sciml.linalg.factorization import factorize
from monarch_sciml.linalg.fitting import Fit, fit
from monarch_sciml.linalg.fourier import FactoredTransform, FourierTransform, SeparableTransform, centered_dft
from monarch_sciml.linalg.layouts import from_block_layout, linear_factors, to_block_layout
from monarch_sciml.linalg.monarch import MonarchMatrix, StridePermutation
from monarch_sciml.linalg.operator import LinearOperator, Product
from monarch_sciml.linalg.permutations import block_diagonal, identity, permutation
from monarch_sciml.linalg.projection import (
    BlockChoice,
    choose_blocks,
    compare_blocks,
    project,
    project_padded,
)
from monarch_sciml.linalg.transforms import (
    balanced_factors,
    dft,
    fourier_factors,
    interpolation,
    truncated_dft,
)
from monarch_sciml.linalg.trigonometric import acdc, dct, dst

__all__ = [
    "BlockChoice",
    "Cropped",
    "FactoredTransform",
    "Fit",
    "FourierTransform",
    "LinearOperator",
    "MonarchMatrix",
    "Product",
    "Selection",
    "SeparableTransform",
    "StridePermutation",
    "absorb",
    "acdc",
    "afdf",
    "balanced_factors",
    "block_diagonal",
    "butterfly",
    "centered_dft",
    "chirp_dft",
    "choose_blocks",
    "circulant",
    "compare_blocks",
    "convolution",
    "dct",
    "dft",
    "dst",
    "factorize",
    "fastfood",
    "fit",
    "fourier_factors",
    "from_block_layout",
    "hadamard",
    "hankel",
    "hd3",
    "identity",
    "interpolation",
    "kronecker",
    "linear_factors",
    "monarch_factors",
    "permutation",
    "project",
    "project_padded",
    "to_block_layout",
    "toeplitz",
    "truncated_dft",
]
