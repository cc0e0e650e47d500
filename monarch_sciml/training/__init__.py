"""Run directories and export; the loop itself, which needs Lightning, is in ``training.loop``.

Knows neither PDEs nor MRI.
"""

from monarch_sciml.training.export import load_weights, save_model
from monarch_sciml.training.run import (
    check_choices,
    check_device,
    check_run,
    check_settings,
    create_run,
    is_finished,
    last_row,
    read_config,
    read_json,
    use_paths,
    warn_of_other_data,
    write_json,
)

__all__ = [
    "check_choices",
    "check_device",
    "check_run",
    "check_settings",
    "create_run",
    "is_finished",
    "last_row",
    "load_weights",
    "read_config",
    "read_json",
    "save_model",
    "use_paths",
    "warn_of_other_data",
    "write_json",
]
