"""C++ kernels for CPUs, compiled for the processor at hand on first use; see ``build.library``."""

from monarch_sciml.kernels.native.build import available
from monarch_sciml.kernels.native.spectral import spectral_convolution

__all__ = ["available", "spectral_convolution"]
