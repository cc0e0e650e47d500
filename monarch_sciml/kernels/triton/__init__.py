"""Fused CUDA kernels in Triton, with the signatures of ``kernels.reference`` and a choice of precision.

Each function is an operator of ``torch.library`` with an explicit backward pass, so that it can be compiled,
exported and captured in a CUDA graph. Importing this package needs Triton. With ``TRITON_INTERPRET=1`` set
before that, the same kernels run on CPU tensors, slowly: so their logic is tested without a GPU.
"""

from monarch_sciml.kernels.triton.launch import Precision
from monarch_sciml.kernels.triton.monarch import monarch_multiply
from monarch_sciml.kernels.triton.sense import sense_normal
from monarch_sciml.kernels.triton.spectral import spectral_convolution

__all__ = ["Precision", "monarch_multiply", "sense_normal", "spectral_convolution"]
