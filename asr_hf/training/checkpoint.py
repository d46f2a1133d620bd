"""Checkpoints: an optimiser's whole state as safetensors and JSON with their checksums, checked when read.

RUN/checkpoints/<update>-<minibatches of the epoch that follows>/ appears at once or not at all, also when the machine
loses its power: the files are flushed to disk in a folder beside, then renamed. `sha256sum -c SHA256SUMS` checks one.
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asr_hf.errors import InputError
from asr_hf.optimizers.optimizer import State

TENSORS, SCALARS, SUMS = "state.safetensors", "state.json", "SHA256SUMS"
NAME = re.compile(r"(\d{6,18})-(\d{8,18})")
LARGEST_COUNT = 2**53  # what every reader of JSON takes for a whole number

Layout = list[dict[str, Any]]
Sizes = Mapping[str, int]
NO_SIZES: Sizes = MappingProxyType({})


def write_checkpoint(folder: Path, state: State, layout: Layout, keep: int) -> Path:
    """Write a checkpoint as a whole or not at all; of it and the earlier ones the last `keep` and the best stay.

    The best has the lowest held-out loss. One written within an epoch is none: its loss is not known.

    Args:
        folder: RUN/checkpoints.
        state: of the optimiser.
        layout: of the parameters, so that a checkpoint of another model is refused.
        keep: how many of the last checkpoints stay.

    Returns:
        The folder of this checkpoint.

    Raises:
        InputError: it cannot be written; the earlier ones are untouched.
    """
    beside, final = folder / ".part", folder / _name(state)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _flush(folder.parent)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_file(_apart(state.tensors()), beside / TENSORS)
        description = {"state": type(state).__name__, "scalars": state.scalars(), "layout": layout}
        (beside / SCALARS).write_text(json.dumps(description, indent=1) + "\n")
        (beside / SUMS).write_text(_sums(beside))
        for path in (beside / TENSORS, beside / SCALARS, beside / SUMS, beside):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)  # one that was found damaged
        os.replace(beside, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(
            f"checkpoint {final} cannot be written ({error})",
            "Make room on the disk; the earlier checkpoint is whole, the same command goes on from there.",
        ) from None
    upto = [path for path in checkpoints(folder) if _number(path) <= _number(final)]
    best = min(reversed(upto), key=_heldout)  # of equal ones the newest; of none known that, too
    for old in upto[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((path for path in folder.glob("*") if NAME.fullmatch(path.name) and path.is_dir()), key=_number)


def restore_latest(
    folder: Path, state: State, layout: Layout, say: Callable[[str], None] = print, sizes: Sizes = NO_SIZES
) -> Path | None:
    """Fill `state` from the newest checkpoint that is whole; returns its folder, None if there is none.

    A damaged checkpoint is named and the one before taken. Damaged is also one whose checksums are right but whose
    values no run of this state can have.

    Args:
        folder: RUN/checkpoints.
        state: as it is at the start of a run; left alone unless a checkpoint is taken.
        layout: of the parameters.
        say: receives a line about each damaged checkpoint.
        sizes: elements of tensors that are empty at the start of a run, where the model determines them.

    Raises:
        InputError: checkpoints exist and none is whole, or the newest is of another model or optimiser.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        try:
            description = _description(path)
            if description["state"] != type(state).__name__ or description["layout"] != layout:
                raise InputError(f"checkpoint {path} is of another model or optimiser", "Name another run folder.")
            values = {**load_file(path / TENSORS), **description["scalars"]}
            fault = _fault(state, values, layout, sizes) or _misplaced(path, values)
            if fault:
                raise ValueError(fault)
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            say(f"checkpoint {path} is damaged ({error}); trying the one before")
            damaged.append(f"{path.name}: {error}")
            continue
        for name, value in values.items():
            setattr(state, name, value)
        return path
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)})", "Remove the run folder to start anew."
        )
    return None


def _description(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint whose files have their checksums; ValueError with the reason otherwise."""
    if (path / SUMS).read_bytes() != _sums(path).encode():
        raise ValueError("its checksum is wrong")
    description = json.loads((path / SCALARS).read_text())
    if not isinstance(description, dict) or set(description) != {"state", "scalars", "layout"}:
        raise ValueError(f"{SCALARS} does not describe a state")
    if not isinstance(description["scalars"], dict):
        raise ValueError(f"{SCALARS} holds no scalars by name")
    return description


def _fault(state: State, values: dict[str, Any], layout: Layout, sizes: Sizes) -> str:
    """Why `values` cannot be those of a state like this one, which is at its start; empty if they can."""
    fields = {field.name: field for field in dataclasses.fields(state)}
    if set(values) != set(fields):
        return f"it holds other fields: {', '.join(sorted(set(values) ^ set(fields)))}"
    for name, field in fields.items():
        value, start = values[name], getattr(state, name)
        fits = _tensor_fits(value, start) if isinstance(start, torch.Tensor) else _scalar_fits(value, field.type, start)
        if not fits:
            return f"{name} is of another type or shape, or not finite"
    there = copy.copy(state)
    for name, value in values.items():
        setattr(there, name, value)
    if layout and there.theta.numel() != sum(math.prod(slot["shape"]) for slot in layout):
        return "theta is not of the layout"
    for name, size in sizes.items():
        if getattr(there, name).numel() not in (0, size):
            return f"{name} are not those of the model"
    return there.fault()


def _tensor_fits(value: object, start: torch.Tensor) -> bool:
    """Whether it is finite and like the tensor at the start; one that is empty there may grow, and be in bf16."""
    if not isinstance(value, torch.Tensor):
        return False
    if start.numel():
        alike = value.dtype == start.dtype and value.shape == start.shape
    else:
        alike = value.dtype in (start.dtype, torch.bfloat16 if start.is_floating_point() else start.dtype)
    return alike and bool(value.isfinite().all())


def _scalar_fits(value: object, kind: object, start: object) -> bool:
    """Whether it is of the field's type; whole numbers are counts, and numbers finite where they are at the start."""
    if kind is int:
        return type(value) is int and 0 <= value < LARGEST_COUNT
    if kind is float:
        small = type(value) is float or (type(value) is int and abs(value) < LARGEST_COUNT)
        return small and (math.isfinite(value) or not math.isfinite(start))  # type: ignore[arg-type]
    return type(value) is type(start)


def _misplaced(path: Path, values: dict[str, Any]) -> str:
    number = values["update"], values.get("position", 0)
    return "" if number == _number(path) else f"it is of update {number[0]}, minibatch {number[1]}"


def _name(state: State) -> str:
    return f"{state.update:06d}-{getattr(state, 'position', 0):08d}"


def _number(path: Path) -> tuple[int, int]:
    """(update, position) in the name of a checkpoint's folder."""
    update, position = path.name.split("-")
    return int(update), int(position)


def _heldout(path: Path) -> float:
    """Held-out loss per frame (nats) of a checkpoint's θ; inf where it is not known or cannot be read."""
    try:
        scalars = json.loads((path / SCALARS).read_text())["scalars"]
        loss = math.inf if scalars.get("position") else scalars.get("heldout")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


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


def _sums(path: Path) -> str:
    """What SHA256SUMS of a checkpoint's folder has to hold."""
    sums = ""
    for name in (SCALARS, TENSORS):
        with open(path / name, "rb") as file:
            sums += f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n"
    return sums


def _flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
