"""Learnable Monarch transforms for neural operators and MRI reconstruction."""

from monarch_sciml.errors import InputError
from monarch_sciml.linalg import LinearOperator, MonarchMatrix, dft, project, truncated_dft
from monarch_sciml.nn import LearnedFourier, LearnedTransform, MonarchLinear, MonarchSpectralConv

__all__ = [
    "InputError",
    "LearnedFourier",
    "LearnedTransform",
    "LinearOperator",
    "MonarchLinear",
    "MonarchMatrix",
    "MonarchSpectralConv",
    "dft",
    "project",
    "truncated_dft",
]
__version__ = "0.1.0"
