"""Run folders that hypothesis has damaged: the checkpoint before is taken, or the reason said; nothing is overwritten.

10,000 examples of each: pytest tests/training/test_bad_folders.py --hypothesis-profile=thorough --timeout=0
"""

import contextlib
import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.errors import InputError
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.optimizer import Optimizer
from asr_hf.training.checkpoint import restore_latest, write_checkpoint
from asr_hf.training.run import build, load_data, tensor_sizes
from asr_hf.training.run_config import is_finished

SMALL = ["model.hidden_layers=1", "model.width=6", "model.context=0", "model.norm=batch"]
CG = ["optimizer.cg.max_iterations=3", "optimizer.curvature_share=0.2", "optimizer.updates=9"]
OPTIMIZERS = {
    "hf": ["optimizer=hf", *CG, "optimizer.preconditioner.kinds=[jacobi,lbfgs]", "optimizer.preconditioner.pairs=4"],
    "nghf": ["optimizer=nghf", *CG],
    "kfac": ["optimizer=kfac", *CG],
    "sgd": ["optimizer=sgd", "optimizer.epochs=5"],
    "adam": ["optimizer=adam", "optimizer.epochs=5"],
    "nlcg": ["optimizer=nlcg", "optimizer.epochs=5", "optimizer.minibatches_per_step=1"],
}
TENSORS, SCALARS, SUMS = FILES = ("state.safetensors", "state.json", "SHA256SUMS")


@dataclass
class Begun:
    """A run of which two checkpoints are written: its objective, how its optimiser starts, where they lie."""

    objective: LocalObjective
    start: Callable[[], Optimizer]
    folder: Path
    states: list[dict[str, Any]]

    def restore(self, folder: Path) -> tuple[Optimizer, Path | None, list[str]]:
        """A new optimiser from a folder of checkpoints, which one it took, and what was said."""
        optimizer, said = self.start(), []
        layout, sizes = self.objective.layout.to_json(), tensor_sizes(optimizer.state, self.objective.evaluator)
        return optimizer, restore_latest(folder, optimizer.state, layout, said.append, sizes), said


@pytest.fixture(scope="module", params=OPTIMIZERS)
def begun(request, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    data = [f"corpus.{name}={tiny_corpus / folder}" for name, folder in (("train", "heldout"), ("heldout", "train"))]
    options = compose(GROUPS, [*data, f"corpus.alignments={tiny_corpus}/ali", *SMALL, *OPTIMIZERS[request.param]])
    model, evaluator = build(options, load_data(options, check=False))
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach()
    objective = LocalObjective(evaluator, say=lambda line: None)
    start = lambda: options["optimizer"].start(theta.clone(), 0)  # noqa: E731
    begun = Begun(objective, start, tmp_path_factory.mktemp(request.param) / "checkpoints", [])
    optimizer = start()
    for _ in range(2):
        if hasattr(optimizer, "pause_after"):
            optimizer.pause_after = 0.0  # the checkpoints lie within the first epoch
        optimizer.step(objective)
        write_checkpoint(begun.folder, optimizer.state, objective.layout.to_json(), keep=2)
        begun.states.append(copy.deepcopy({**optimizer.state.tensors(), **optimizer.state.scalars()}))
    return begun


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """fresh(): an empty folder for an example; the one before is gone."""
    folder = tmp_path_factory.mktemp("example") / "run"

    def make() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    return make


def copied(begun: Begun, folder: Path) -> tuple[Path, Path]:
    """A copy of the checkpoints, and the newest in it."""
    shutil.copytree(begun.folder, folder, dirs_exist_ok=True)
    return folder, max(folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holds(optimizer: Optimizer, values: dict[str, Any]) -> bool:
    state = {**optimizer.state.tensors(), **optimizer.state.scalars()}
    return state.keys() == values.keys() and all(
        torch.equal(value, values[name]) if isinstance(value, torch.Tensor) else repr(value) == repr(values[name])
        for name, value in state.items()
    )


@st.composite
def broken(draw, whole: bytes) -> bytes | None:
    """Other bytes than these, or None: no file."""
    kind = draw(st.sampled_from(["flipped", "cut", "longer", "other", "gone"]))
    if kind == "flipped":
        place, mask = draw(st.integers(0, len(whole) - 1)), draw(st.integers(1, 255))
        return whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole) - 1))]
    if kind == "gone":
        return None
    other = draw(st.binary(min_size=1, max_size=60))
    return whole + other if kind == "longer" else other


@given(data=st.data())
def test_damaged_bytes_are_named_and_the_one_before_taken(begun: Begun, fresh, data: st.DataObject) -> None:
    folder, newest = copied(begun, fresh())
    name = data.draw(st.sampled_from(FILES))
    whole = (newest / name).read_bytes()
    other = data.draw(broken(whole))
    (newest / name).unlink()
    if other is not None and other != whole:
        (newest / name).write_bytes(other)
    before = contents(folder)
    optimizer, taken, said = begun.restore(folder)
    assert taken == min(folder.iterdir())
    assert holds(optimizer, begun.states[0])
    assert len(said) == 1
    assert f"checkpoint {newest} is damaged (" in said[0]
    assert contents(folder) == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
EXTREME = st.sampled_from([0, -1, 1, 2**31, 2**53 - 1, 2**63, 10**400, 0.0, -1.0, 0.5, 1e-300, 1e300, -0.0])
VALUES = EXTREME | JSON
DTYPES = st.sampled_from([torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])


@st.composite
def other_tensor(draw, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of another type or shape, or with another number in it."""
    kind = draw(st.sampled_from(["number", "type", "longer", "matrix", "scalar", "empty"]))
    if kind == "type":
        return tensor.to(draw(DTYPES))
    if kind == "matrix":
        return tensor.reshape(1, *tensor.shape).repeat(draw(st.integers(1, 9)), *[1] * tensor.dim())
    if kind == "scalar" or not tensor.numel():
        return torch.tensor(draw(st.floats(width=32)))
    if kind == "empty":
        return tensor[:0]
    if kind == "longer":
        return torch.cat([tensor, tensor[:1]])
    changed = tensor.clone()
    changed.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.floats(width=32))
    return changed


@st.composite
def described_otherwise(draw, description: dict[str, Any]) -> Any:
    """Another state.json: a field changed, removed or added in one of its objects, or all of it another thing."""
    other = copy.deepcopy(description)
    at = draw(st.sampled_from(["scalars"] * 6 + ["top", "layout", "all"]))
    if at == "all":
        return draw(JSON)
    if at == "layout":
        other["layout"] = draw(JSON | st.just(other["layout"][1:]))
        return other
    inside = other["scalars"] if at == "scalars" else other
    name = draw(st.sampled_from(sorted(inside)))
    how = draw(st.sampled_from(["changed", "changed", "changed", "removed", "added"]))
    if how == "removed":
        del inside[name]
    else:
        inside[name if how == "changed" else draw(st.text(max_size=8))] = draw(VALUES)
    return other


def sum_up(checkpoint: Path) -> None:
    """SHA256SUMS as sha256sum writes it."""
    sums = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in (SCALARS, TENSORS)]
    (checkpoint / SUMS).write_text("".join(sums))


@given(data=st.data())
def test_what_is_wrong_under_a_right_checksum_is_refused_or_harmless(begun: Begun, fresh, data: st.DataObject) -> None:
    """A state that is taken is the one in the file, and does its next update, or says that it diverges."""
    folder, newest = copied(begun, fresh())
    kind = data.draw(st.sampled_from(["json", "json", "tensors", "tensors", "bytes"]))
    tensors, description = load_file(newest / TENSORS), json.loads((newest / SCALARS).read_text())
    if kind == "bytes":
        name = data.draw(st.sampled_from([TENSORS, SCALARS]))
        other = data.draw(broken((newest / name).read_bytes()).filter(lambda them: them is not None))
        (newest / name).unlink()
        (newest / name).write_bytes(other)
    elif kind == "json":
        description = data.draw(described_otherwise(description))
        (newest / SCALARS).write_text(json.dumps(description))
    else:
        name = data.draw(st.sampled_from(sorted(tensors)))
        how = data.draw(st.sampled_from(["changed", "changed", "changed", "removed", "added"]))
        if how == "removed":
            del tensors[name]
        else:
            tensors[name + "2" * (how == "added")] = data.draw(other_tensor(tensors[name]))
        (newest / TENSORS).unlink()
        save_file(tensors, newest / TENSORS)
    sum_up(newest)
    before = contents(folder)
    refused = ""
    try:
        optimizer, taken, said = begun.restore(folder)
    except InputError as error:
        refused = str(error)
    finally:
        assert contents(folder) == before
    if refused:
        event("of another model")
        assert f"checkpoint {newest} is of another model or optimiser" in refused
        return
    if taken != newest:
        event("refused")
        assert holds(optimizer, begun.states[0])
        assert f"checkpoint {newest} is damaged (" in said[0]
        return
    event("taken")
    if kind != "bytes":
        assert holds(optimizer, {**tensors, **description["scalars"]})
    if optimizer.state.buffers.numel():
        begun.objective.set_buffers(optimizer.state.buffers)
    with contextlib.suppress(InputError):  # it diverges, and says so
        optimizer.step(begun.objective)


@pytest.fixture(scope="module")
def run_options(tiny_corpus: Path) -> tuple[dict[str, Any], str]:
    options = compose(GROUPS, [f"corpus.{name}={tiny_corpus}/ali" for name in ("train", "heldout", "alignments")])
    return options, to_yaml(options)


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@given(data=st.data())
def test_a_damaged_config_is_refused_or_equal(run_options, fresh, data: st.DataObject) -> None:
    (options, text), folder = run_options, fresh()
    (folder / "checkpoints").mkdir()
    how = data.draw(st.sampled_from(["bytes", "line", "thing"]))
    if how == "bytes":
        other = data.draw(broken(text.encode()))
    elif how == "line":
        lines = text.splitlines(True)
        lines[data.draw(st.integers(0, len(lines) - 1))] = data.draw(TEXT) + "\n"
        other = "".join(lines).encode()
    else:
        other = json.dumps(data.draw(JSON)).encode()
    if other is not None:
        (folder / "config.yaml").write_bytes(other)
    before, refused = contents(folder), ""
    try:
        assert not is_finished(folder, text, options)
    except InputError as error:
        refused = str(error)
    event("refused" if refused else "equal")
    assert not refused or str(folder) in refused
    assert contents(folder) == before
