"""Tensors in, tensors out: the arithmetic of Monarch products and spectral convolutions.

Every operation has a plain twin in ``reference`` that defines the truth and a fast path beside it;
``dispatch`` picks one. Nothing here holds state.
"""

from monarch_sciml.kernels.dispatch import (
    check_factors,
    check_tensors,
    has_fast_pointwise_layer,
    has_fast_sense_normal,
    monarch_multiply,
    pointwise_layer,
    sense_normal,
    separable_multiply,
    spectral_convolution,
    transform_planes,
)
from monarch_sciml.kernels.fourier import fourier_convolution
from monarch_sciml.kernels.reference import monarch_dense

__all__ = [
    "check_factors",
    "check_tensors",
    "fourier_convolution",
    "has_fast_pointwise_layer",
    "has_fast_sense_normal",
    "monarch_dense",
    "monarch_multiply",
    "pointwise_layer",
    "sense_normal",
    "separable_multiply",
    "spectral_convolution",
    "transform_planes",
]
