"""C++ kernels for CPUs, compiled for the processor at hand on first use; see ``build.library``."""

from monarch_sciml.kernels.native.build import available
from monarch_sciml.kernels.native.monarch import monarch_multiply
from monarch_sciml.kernels.native.pointwise import pointwise_layer
from monarch_sciml.kernels.native.sense import sense_normal
from monarch_sciml.kernels.native.separable import separable_multiply
from monarch_sciml.kernels.native.spectral import spectral_convolution
from monarch_sciml.kernels.native.transform import transform_planes

__all__ = [
    "available",
    "monarch_multiply",
    "pointwise_layer",
    "sense_normal",
    "separable_multiply",
    "spectral_convolution",
    "transform_planes",
]
