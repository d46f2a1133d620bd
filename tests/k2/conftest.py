"""Values and gradients by k2, which runs in a process of its own Python."""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_hf.hmm.chain_graph import ChainGraph, Numerator

BACKEND = Path(__file__).parents[2] / "asr_hf" / "criteria" / "k2_backend.py"
By = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def k2_python() -> str:
    """A Python that has k2."""
    python = os.environ.get("K2_PYTHON")
    if not python:
        pytest.skip("K2_PYTHON is not set: it names a Python that has k2 (scripts/k2_env makes one)")
    return python


@pytest.fixture
def by_k2(k2_python: str, tmp_path: Path) -> By:
    """(graphs, y_BTP, frames_B, output_beam) of some cases → log_total_B and posteriors_BTP of each, by k2.

    The graphs of a case are a denominator, or a list of numerators.
    """

    def compute(*cases: tuple[Any, ...]) -> list[dict[str, Any]]:
        torch.save([_job(*case) for case in cases], tmp_path / "jobs")
        subprocess.run([k2_python, BACKEND, tmp_path / "jobs", tmp_path / "results"], check=True, timeout=240)
        return torch.load(tmp_path / "results")["results"]

    return compute


def _job(
    graphs: ChainGraph | Sequence[Numerator], y_BTP: torch.Tensor, frames_B: torch.Tensor, output_beam: float = 1e10
) -> dict[str, Any]:
    if isinstance(graphs, ChainGraph):
        named: dict[str, Any] = {"denominator": _tensors(asdict(graphs))}
    else:
        named = {"numerators": [_tensors(asdict(numerator)) for numerator in graphs]}
    return {**named, "y_BTP": y_BTP, "frames_B": frames_B, "output_beam": output_beam, "repeats": 1}


def _tensors(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: _tensors(v) if isinstance(v, dict) else torch.as_tensor(v) for k, v in fields.items()}
