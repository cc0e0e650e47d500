"""Trainable layers built on Monarch transforms."""

from monarch_sciml.nn.attention import ProjectedAttention
from monarch_sciml.nn.conv import MonarchConv
from monarch_sciml.nn.convert import densify, monarchize
from monarch_sciml.nn.fourier import LearnedFourier
from monarch_sciml.nn.linear import MonarchLinear, MonarchPointwise, StackedLinear
from monarch_sciml.nn.pointwise import PointwiseConv, use_pointwise_products
from monarch_sciml.nn.report import Report
from monarch_sciml.nn.spectral import MonarchSpectralConv, use_learned_transforms
from monarch_sciml.nn.transform import LearnedTransform

__all__ = [
    "LearnedFourier",
    "LearnedTransform",
    "MonarchConv",
    "MonarchLinear",
    "MonarchPointwise",
    "MonarchSpectralConv",
    "PointwiseConv",
    "ProjectedAttention",
    "Report",
    "StackedLinear",
    "densify",
    "monarchize",
    "use_learned_transforms",
    "use_pointwise_products",
]
