"""Starting MPI ranks from tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Mpiexec = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def mpiexec() -> Mpiexec:
    """mpiexec(ranks, *arguments of python): the finished process, its output as text; a hang fails."""
    launcher = Path(sys.executable).parent / "mpiexec"
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def run(ranks: int, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
        command = [str(launcher), "--oversubscribe", "-n", str(ranks), sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    return run
