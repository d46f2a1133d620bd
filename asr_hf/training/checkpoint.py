"""Checkpoints: an optimiser's whole state as safetensors and JSON, written beside and renamed, checked when read."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asr_hf.errors import InputError
from asr_hf.optimizers.optimizer import State

TENSORS, SCALARS = "state.safetensors", "state.json"


def write_checkpoint(folder: Path, state: State, layout: list[dict[str, Any]], keep: int) -> Path:
    """Write `folder`/<number>/ with the state, as a whole or not at all, and delete all but the last `keep`.

    Args:
        folder: RUN/checkpoints.
        state: of the optimiser.
        layout: of the parameters, so that a checkpoint of another model is refused.
        keep: how many checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = f"{state.update:06d}-{getattr(state, 'position', 0):08d}"
    beside, final = folder / f".{number}.part", folder / number
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_file(_apart(state.tensors()), beside / TENSORS)
        description = {
            "state": type(state).__name__,
            "scalars": state.scalars(),
            "layout": layout,
            "sha256": _digest(beside / TENSORS),
        }
        (beside / SCALARS).write_text(json.dumps(description, indent=1) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(
            f"checkpoint {final} cannot be written ({error})",
            "Make room on the disk; the earlier checkpoint is whole, the same command goes on from there.",
        ) from None
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def restore_latest(
    folder: Path, state: State, layout: list[dict[str, Any]], say: Callable[[str], None] = print
) -> Path | None:
    """Fill `state` from the newest checkpoint that is whole; returns its folder, None if there is none.

    A damaged checkpoint is named and the one before taken.

    Raises:
        InputError: checkpoints exist and none is whole, or the newest is of another model or optimiser.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            description = json.loads((path / SCALARS).read_text())
            if description["sha256"] != _digest(path / TENSORS):
                raise ValueError("its checksum is wrong")
            tensors = load_file(path / TENSORS)
            kind, its_layout = description["state"], description["layout"]
            if set(tensors) != set(state.tensors()) or set(description["scalars"]) != set(state.scalars()):
                raise ValueError("it holds other fields")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            say(f"checkpoint {path} is damaged ({error}); trying the one before")
            continue
        if kind != type(state).__name__ or its_layout != layout:
            raise InputError(f"checkpoint {path} is of another model or optimiser", "Name another run folder.")
        for name, value in {**tensors, **description["scalars"]}.items():
            setattr(state, name, value)
        return path
    if found:
        raise InputError(f"no checkpoint in {folder} is whole", "Remove the run folder to start anew.")
    return None


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, and none a name for another's memory: what safetensors can write."""
    apart: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.cpu().contiguous()
        storage = held.untyped_storage().data_ptr()
        apart[name] = held.clone() if storage in storages else held
        storages.add(storage)
    return apart


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
