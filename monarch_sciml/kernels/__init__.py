"""Tensors in, tensors out: the arithmetic of Monarch products and spectral convolutions.

Every operation has a plain twin in ``reference`` that defines the truth and a fast path beside it;
``dispatch`` picks one. Nothing here holds state.
"""

from monarch_sciml.kernels.dispatch import (
    check_factors,
    monarch_multiply,
    separable_multiply,
    spectral_convolution,
)
from monarch_sciml.kernels.reference import monarch_dense

__all__ = ["check_factors", "monarch_dense", "monarch_multiply", "separable_multiply", "spectral_convolution"]
