"""MRI reconstruction: fastMRI's data and masks, operators, classical methods, learned transforms."""

from monarch_sciml.mri.classical import cg_sense, l1_wavelet, total_variation, zero_filled
from monarch_sciml.mri.datasets import Slice, SliceDataset, split_volumes
from monarch_sciml.mri.formats import KSpaceFile, open_kspace
from monarch_sciml.mri.masks import (
    Mask,
    MaskConfig,
    MaskOptions,
    apply_mask,
    draw_mask,
    mask_from_kspace,
    volume_seed,
)
from monarch_sciml.mri.metrics import nmse, psnr, ssim
from monarch_sciml.mri.models import ModelConfig, MoDL, MSense, SliceReconstructor, VarNet
from monarch_sciml.mri.operators import Sampling, Sensitivity, conjugate_gradients, encoding
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct, reconstruct_slice
from monarch_sciml.mri.sensitivity import espirit, estimate_maps, low_resolution, root_sum_of_squares
from monarch_sciml.mri.simulation import SimulateConfig, simulate, simulate_volume

__all__ = [
    "KSpaceFile",
    "MSense",
    "Mask",
    "MaskConfig",
    "MaskOptions",
    "MoDL",
    "ModelConfig",
    "ReconstructConfig",
    "Sampling",
    "Sensitivity",
    "SimulateConfig",
    "Slice",
    "SliceDataset",
    "SliceReconstructor",
    "TrainConfig",
    "VarNet",
    "apply_mask",
    "cg_sense",
    "conjugate_gradients",
    "draw_mask",
    "encoding",
    "espirit",
    "estimate_maps",
    "l1_wavelet",
    "low_resolution",
    "mask_from_kspace",
    "nmse",
    "open_kspace",
    "psnr",
    "reconstruct",
    "reconstruct_slice",
    "root_sum_of_squares",
    "simulate",
    "simulate_volume",
    "split_volumes",
    "ssim",
    "total_variation",
    "train",
    "volume_seed",
    "zero_filled",
]
