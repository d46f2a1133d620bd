"""Replicas of a run, trained one after the other from one start with other data orders, and their average.

θ̄ = (θ_1 + … + θ_K) / K    in float64, rounded to float32 once; where the model has batch normalisations, their
                           statistics are made anew at θ̄ over the whole training set
Every replica is a run of its own, so K is not the number of ranks, and each has all of them.
Source: Gupta, Serrano and DeCoste (2020), "Stochastic weight averaging in parallel: large-batch training that
generalizes well" (SWAP), phases 2 and 3; the start is its phase 1.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from asr_hf.data.fingerprint import read_fingerprint, require_same
from asr_hf.errors import Diverged, InputError
from asr_hf.hmm.model import HmmModel
from asr_hf.models.saved import load_model
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.layout import Layout
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import OutOfMemory
from asr_hf.optimizers.samples import whole_set
from asr_hf.options import option, require
from asr_hf.training.corpus import Corpus
from asr_hf.training.preemption import Preemption
from asr_hf.training.run import Options, build, halve_minibatches, load_data, open_objective, train, write_model
from asr_hf.training.run_config import is_finished, save_config

FILE = "average.json"
MINIBATCH = 2048  # frames per minibatch of held-out losses and statistics
Result = TypeVar("Result")


@dataclass
class AverageOptions:
    """What is averaged."""

    replicas: int = option(0, "replicas to be trained; 0: none")
    models: list[str] = option([], "MODEL folders to be averaged instead")


@dataclass(frozen=True)
class Member:
    """A model that is averaged: its folder, θ (N,), and statistics of normalisations (empty: none)."""

    folder: Path
    theta: torch.Tensor
    buffers: torch.Tensor


def average(out: Path, options: Options, what: AverageOptions, to_yaml: Callable[[Options], str]) -> str:
    """Train the replicas, or go on where that stopped, and make OUT the MODEL of the average.

    Args:
        out: the folder; replica k is the run OUT/replica-<k>, of seed training.seed + k.
        options: as `train` takes them.
        what: replicas, or finished models in their place.
        to_yaml: options as the text of a config.yaml.

    Returns:
        A sentence that says how it ended. OUT/average.json has the held-out losses per frame (nats) of members and
        average, and how far each member is from the average, relative to that.

    Raises:
        InputError: what `train` refuses; a member that is another model; an OUT begun with other options.
        Diverged: the held-out loss of the average is not finite.
    """
    if what.models:
        require(len(what.models) > 1, "--of", what.models, "must name at least two models")
    else:
        require(what.replicas > 1, "--replicas", what.replicas, "must be at least 2")
    saved = {**options, "average": what}
    if is_finished(out, to_yaml(saved), saved):
        return f"{out} is finished already; remove it to average anew"
    folders = [Path(folder) for folder in what.models] or _replicas(out, options, what.replicas, to_yaml)
    with Preemption(options["training"].requeue_status) as preemption:
        preemption.checkpoint = folders[-1]
        return _average(out, options, folders, to_yaml(saved))


def _replicas(out: Path, options: Options, count: int, to_yaml: Callable[[Options], str]) -> list[Path]:
    """Train every replica that is not finished; they differ in the seed of samples, orders and dropout masks alone."""
    settings, folders = options["training"], [_replica(out, k) for k in range(count)]
    start = {
        "init": settings.init.replace("{seed}", str(settings.seed)),
        "init_seed": settings.seed if settings.init_seed is None else settings.init_seed,
    }
    for k, folder in enumerate(folders):
        of_replica = {**options, "training": replace(settings, seed=settings.seed + k, **start)}
        print(f"replica {k + 1} of {count}", flush=True)
        print(train(folder, of_replica, to_yaml(of_replica)), flush=True)
    return folders


def _replica(out: Path, k: int) -> Path:
    return out / f"replica-{k}"


def replica_folders(out: Path) -> list[Path]:
    """The runs whose average is in OUT (InputError: there is none, or it is of models that lie elsewhere)."""
    try:
        members = json.loads((out / FILE).read_text("utf-8"))["members"]
        folders = [out / member["model"] for member in members]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{out} holds no average ({error})", "Make one with asr-hf average OUT --replicas K."
        ) from None
    if folders != [_replica(out, k) for k in range(len(folders))]:
        raise InputError(f"{out} is an average of finished models", "Name one of asr-hf average --replicas K.")
    return folders


def _average(out: Path, options: Options, folders: list[Path], config_yaml: str) -> str:
    torch.set_num_threads(options["cluster"].threads)
    corpus = load_data(options, check=True)
    model, evaluator = build(options, corpus)
    members = [_member(folder, options, corpus, evaluator) for folder in folders]
    theta = _mean([member.theta for member in members])
    objective = open_objective(options, evaluator)
    rows = []
    for member in members:
        loss, distance = _heldout(objective, member), _relative_distance(member.theta, theta)
        print(f"{member.folder}: held-out {loss:.4f}, {distance:.3g} of the average's length away from it", flush=True)
        name = member.folder.name if member.folder.parent == out else str(member.folder)
        rows.append({"model": name, "heldout": loss, "distance": distance})
    buffers = _statistics(objective, theta)
    loss = _heldout(objective, Member(out, theta, buffers))
    print(f"average: held-out {loss:.4f}", flush=True)
    try:
        save_config(out, config_yaml)
        _write(out / FILE, {"heldout": loss, "members": rows})
        write_model(out, model, evaluator, theta, buffers, options, corpus)
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error})", "Make room and give the same command again.") from None
    return f"average of {len(members)} models in {out}"


def _member(folder: Path, options: Options, corpus: Corpus, evaluator: Evaluator) -> Member:
    """A member, checked to be the model that the options describe, of the same pdfs and features (InputError)."""
    saved, wanted = load_model(folder), options["model"]
    module, ours, theirs = saved.module, asdict(wanted), asdict(saved.options)
    differing = [name for name, value in ours.items() if theirs.get(name) != value]
    if type(saved.options) is not type(wanted) or differing or Layout.of(module) != evaluator.layout:
        raise InputError(
            f"the model in {folder} is another than this command's"
            + (f": model.{', model.'.join(differing)} differ" if differing else ""),
            "Average models of one kind, and give the model options of their runs.",
        )
    if _pdfs(folder) != _pdfs(corpus.hmm):
        raise InputError(f"the pdfs of {folder} are not those of {corpus.hmm}", "Average models of one tree.")
    require_same(read_fingerprint(folder), corpus.fingerprint, str(folder), options["corpus"].train)
    theta = evaluator.layout.flatten(dict(module.named_parameters())).detach().clone()
    return Member(folder, theta, evaluator.buffers.flatten(dict(module.named_buffers())).clone())


def _pdfs(folder: Path) -> tuple[Any, ...]:
    hmm = HmmModel.load(folder)
    return hmm.num_pdfs, hmm.phones, hmm.topology, hmm.trees


def _mean(vectors: list[torch.Tensor]) -> torch.Tensor:
    """The mean of float32 vectors (N,): summed in float64, rounded once."""
    total = torch.zeros_like(vectors[0], dtype=torch.float64)
    for vector in vectors:
        total += vector
    return total.div_(len(vectors)).float()


def _relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def _statistics(objective: LocalObjective, theta: torch.Tensor) -> torch.Tensor:
    """Statistics of normalisations at θ over the training set; empty: the model has none."""
    if not objective.normalisations:
        return torch.empty(0)
    whole, at = whole_set(objective, "train", MINIBATCH), theta.to(objective.device)
    return _fitting(objective, lambda: objective.statistics(at, whole))


def _heldout(objective: LocalObjective, model: Member) -> float:
    """Held-out loss per frame (nats); Diverged names a model of which it is not finite."""
    if objective.normalisations:
        objective.set_buffers(model.buffers)
    heldout, at = whole_set(objective, "heldout", MINIBATCH), model.theta.to(objective.device)
    loss = _fitting(objective, lambda: objective.loss(at, heldout).mean)
    if not math.isfinite(loss):
        raise Diverged(
            f"the held-out loss of the model for {model.folder} is not finite", "Average runs of a common start."
        )
    return loss


def _fitting(objective: LocalObjective, evaluate: Callable[[], Result]) -> Result:
    """Evaluate, with smaller minibatches where a device has too little memory."""
    while True:
        try:
            return evaluate()
        except OutOfMemory as error:
            halve_minibatches(objective, error)


def _write(path: Path, content: dict[str, Any]) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)
