"""Neural operators on PDE trajectories: solver, data sets, models, training, evaluation."""

from monarch_sciml.pde.datasets import TrajectoryDataset, Windows, train_test_split
from monarch_sciml.pde.evaluation import EvaluateConfig, evaluate
from monarch_sciml.pde.generation import GenerateConfig, generate
from monarch_sciml.pde.metrics import energy_spectrum, relative_l2
from monarch_sciml.pde.models import (
    FramePredictor,
    ModelConfig,
    count_parameters,
    fno,
    fno_monarch,
)
from monarch_sciml.pde.navier_stokes import gaussian_random_field, solve_navier_stokes
from monarch_sciml.pde.recipe import TrainConfig, train
from monarch_sciml.pde.rollouts import rollout
from monarch_sciml.pde.symmetries import apply_symmetry, n_symmetries

__all__ = [
    "EvaluateConfig",
    "FramePredictor",
    "GenerateConfig",
    "ModelConfig",
    "TrainConfig",
    "TrajectoryDataset",
    "Windows",
    "apply_symmetry",
    "count_parameters",
    "energy_spectrum",
    "evaluate",
    "fno",
    "fno_monarch",
    "gaussian_random_field",
    "generate",
    "n_symmetries",
    "relative_l2",
    "rollout",
    "solve_navier_stokes",
    "train",
    "train_test_split",
]
