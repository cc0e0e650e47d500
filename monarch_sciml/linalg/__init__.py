"""Operator algebra: Monarch matrices, the transforms they represent exactly, the nearest Monarch matrix."""

from monarch_sciml.linalg.fourier import FactoredTransform, FourierTransform, SeparableTransform, centered_dft
from monarch_sciml.linalg.monarch import MonarchMatrix, StridePermutation
from monarch_sciml.linalg.operator import LinearOperator
from monarch_sciml.linalg.projection import project
from monarch_sciml.linalg.transforms import (
    balanced_factors,
    dft,
    fourier_factors,
    interpolation,
    truncated_dft,
)

__all__ = [
    "FactoredTransform",
    "FourierTransform",
    "LinearOperator",
    "MonarchMatrix",
    "SeparableTransform",
    "StridePermutation",
    "balanced_factors",
    "centered_dft",
    "dft",
    "fourier_factors",
    "interpolation",
    "project",
    "truncated_dft",
]
