"""Nothing is left on the CPU when a network is elsewhere: without a GPU, on a device that has no memory."""

import subprocess
import sys
from pathlib import Path

import pytest

backends = pytest.importorskip("torch.utils.backend_registration")


@pytest.mark.skipif(
    not hasattr(backends, "_setup_privateuseone_for_python_backend"), reason="torch has no devices in Python"
)
def test_a_network_is_where_it_was_moved_to():
    script = Path(__file__).with_name("elsewhere.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
