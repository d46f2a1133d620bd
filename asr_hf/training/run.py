"""A training run: from options to a finished MODEL folder, through checkpoints, on one process or many ranks."""

import math
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from asr_hf.cluster.device import chosen_device
from asr_hf.cluster.launch import launched_ranks
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.errors import Diverged, InputError, OptionError
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.saved import load_model, log_prior, save_model
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.objective.objective import OutOfMemory, UpdateLost
from asr_hf.optimizers.optimizer import MOST_HALVINGS, Optimizer, State
from asr_hf.options import option, require
from asr_hf.training.checkpoint import checkpoints, restore_latest, write_checkpoint
from asr_hf.training.corpus import Corpus, load_corpus
from asr_hf.training.monitor import Monitor
from asr_hf.training.preemption import Preemption
from asr_hf.training.run_config import is_finished, save_config

Options = dict[str, Any]  # config group -> its options
ROUNDING = 1e-9  # of a sum of gradient-equivalents, relative


@dataclass
class TrainingOptions:
    """How a run is started, saved and finished."""

    seed: int = option(0, "seed of initial weights, samples and orders")
    init: str = option("", "MODEL folder to start from instead of random weights; {seed} in it is the seed")
    init_seed: int | None = option(None, "seed of initial weights alone; null: training.seed")
    checkpoint_seconds: float = option(300.0, "seconds between checkpoints within an epoch of a first-order method")
    keep_checkpoints: int = option(2, "last checkpoints that are kept; so is the one with the lowest held-out loss")
    prior_floor: float = option(1e-5, "smallest prior of a pdf: rarer pdfs get this share of the frames")
    bad_share: float = option(0.01, "largest share of utterances that may turn non-finite in an update")
    requeue_status: int = option(99, "exit status after a scheduler's signal: 99 has SGE queue the job again")
    budget: float = option(0.0, "gradient-equivalents after which the run ends, its last update whole (0: no limit)")

    def __post_init__(self) -> None:
        for name, seed in (("seed", self.seed), ("init_seed", self.init_seed or 0)):
            require(seed >= 0, f"training.{name}", seed, "must not be negative")
        require(self.checkpoint_seconds > 0, "training.checkpoint_seconds", self.checkpoint_seconds, "must be positive")
        require(self.keep_checkpoints >= 1, "training.keep_checkpoints", self.keep_checkpoints, "must be at least 1")
        require(0 < self.prior_floor < 1, "training.prior_floor", self.prior_floor, "must lie in (0, 1)")
        require(0 <= self.bad_share <= 1, "training.bad_share", self.bad_share, "must lie in [0, 1]")
        require(1 <= self.requeue_status <= 255, "training.requeue_status", self.requeue_status, "must lie in 1 … 255")
        require(self.budget >= 0, "training.budget", self.budget, "must not be negative")


@dataclass(frozen=True)
class Task:
    """What the master hands to the workers once: the options, from which they build the same evaluator."""

    options: Options


def prepare(task: object) -> tuple[Evaluator, bool]:
    """A worker's evaluator, and whether the master is dedicated."""
    from asr_hf.cluster.ranks import all_ranks

    assert isinstance(task, Task)
    cluster = task.options["cluster"]
    all_ranks().watch(cluster)
    torch.set_num_threads(cluster.threads)
    _, evaluator = build(task.options, load_data(task.options, check=False))
    return evaluator, cluster.dedicated_master


def train(run_dir: Path, options: Options, config_yaml: str) -> str:
    """Train, or go on where an unfinished run stopped.

    Args:
        run_dir: the RUN folder.
        options: {group: options} of corpus, model, criterion, curvature, optimizer, cluster and training.
        config_yaml: the resolved configuration as text, saved with the run.

    Returns:
        A sentence that says how the run ended.

    Raises:
        InputError: bad options or data, or a run folder that belongs to other options.
        SystemExit: with `training.requeue_status`, a scheduler's signal came (`preemption`).
    """
    with Preemption(options["training"].requeue_status) as preemption:
        return _train(run_dir, options, config_yaml, preemption)


def _train(run_dir: Path, options: Options, config_yaml: str, preemption: Preemption) -> str:
    if is_finished(run_dir, config_yaml, options):
        return f"{run_dir} is finished already; remove it to train anew"
    torch.set_num_threads(options["cluster"].threads)
    settings: TrainingOptions = options["training"]
    preemption.checkpoint = next(reversed(checkpoints(run_dir / "checkpoints")), None)
    said: list[str] = []  # by what comes before the line that says whether the run goes on, which shall be the first
    corpus = load_data(options, check=True, say=said.append)
    model, evaluator = build(options, corpus)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    if settings.init:
        theta = _initial(settings.init.replace("{seed}", str(settings.seed)), evaluator).to(evaluator.device)
    optimizer, preemption.checkpoint = _started(run_dir, options, theta, evaluator, said.append)
    if preemption.checkpoint:
        said.insert(0, f"resuming {run_dir} after update {optimizer.state.update}, from {preemption.checkpoint}")
    else:
        said.insert(0, f"starting a new run in {run_dir}")
    print("\n".join(said), flush=True)
    save_config(run_dir, config_yaml)
    objective = open_objective(options, evaluator)
    print(
        f"{len(corpus.sets['train'].ids)} utterances, {objective.frames('train'):,} frames; "
        f"held-out {objective.frames('heldout'):,} frames; {corpus.num_pdfs} pdfs; "
        f"{evaluator.layout.size:,} parameters; {launched_ranks()} ranks\n{optimizer.view()}"
    )
    try:
        while not _loop(run_dir, objective, optimizer, settings, preemption):
            halvings = objective.halvings
            optimizer, preemption.checkpoint = _started(run_dir, options, theta, evaluator, print)
            _halve(optimizer.state, halvings)
            print(f"beginning again after update {optimizer.state.update}", flush=True)
        write_model(run_dir, model, evaluator, *optimizer.best(), options, corpus)
    except OSError as error:
        raise InputError(
            f"run folder {run_dir} cannot be written ({error})",
            "Make room on the disk; the same command goes on from the last checkpoint.",
        ) from None
    return f"finished: {optimizer.state.finished}. Model in {run_dir}"


def _started(
    run_dir: Path, options: Options, theta: torch.Tensor, evaluator: Evaluator, say: Callable[[str], None]
) -> tuple[Optimizer, Path | None]:
    """The optimiser where the run's last checkpoint left it, and that; or at θ, and None."""
    optimizer: Optimizer = options["optimizer"].start(theta.clone(), options["training"].seed)
    folder, layout = run_dir / "checkpoints", evaluator.layout.to_json()
    restored = restore_latest(folder, optimizer.state, layout, say, tensor_sizes(optimizer.state, evaluator))
    optimizer.state.move(evaluator.device)
    return optimizer, restored


def tensor_sizes(state: State, evaluator: Evaluator) -> dict[str, int]:
    """Elements of those tensors of a state whose number the model determines, by field name."""
    sizes = {"buffers": evaluator.buffers.size}
    return {**sizes, "factors": evaluator.factors.size} if hasattr(state, "factors") else sizes


def _halve(state: State, halvings: int) -> None:
    """Let minibatches be so much smaller; an epoch in work is at the same frame of its plan."""
    if hasattr(state, "position"):
        state.position <<= halvings - state.halvings
    state.halvings = halvings


def _loop(
    run_dir: Path, objective: LocalObjective, optimizer: Optimizer, settings: TrainingOptions, preemption: Preemption
) -> bool:
    """Update after update, each followed by its row and its checkpoint; False where one must begin again."""
    with closing(Monitor(run_dir, optimizer.state.update)) as monitor:
        return _updates(run_dir, objective, optimizer, settings, preemption, monitor)


def _updates(
    run_dir: Path,
    objective: LocalObjective,
    optimizer: Optimizer,
    settings: TrainingOptions,
    preemption: Preemption,
    monitor: Monitor,
) -> bool:
    layout = objective.layout.to_json()
    if hasattr(optimizer, "pause_after"):
        optimizer.pause_after = settings.checkpoint_seconds
        preemption.pause = lambda: setattr(optimizer, "pause_after", 0.0)
    state, account, entered = optimizer.state, objective.account, 0.0
    objective.halvings = state.halvings
    if state.buffers.numel():
        objective.set_buffers(state.buffers)
    while not state.finished:
        preemption.end_if_asked()
        try:
            report = optimizer.step(objective)
        except UpdateLost:
            return False
        except OutOfMemory as error:
            halve_minibatches(objective, error)
            return False
        if objective.account is not account:  # the same one while an epoch is paused
            account, entered = objective.account, 0.0
        state.spent += account.gradient_equivalents - entered
        entered = account.gradient_equivalents
        if report is not None:
            monitor.row(report)
            if not math.isfinite(report.heldout):
                raise Diverged(
                    f"the held-out loss is not finite after update {report.update}",
                    "Lower the learning rate or raise the damping.",
                )
            if settings.budget and state.spent >= settings.budget * (1 - ROUNDING) and not state.finished:
                state.finished = f"the budget of {settings.budget:g} gradient-equivalents is spent"
        with preemption.deferred():
            folder = run_dir / "checkpoints"
            preemption.checkpoint = write_checkpoint(folder, state, layout, settings.keep_checkpoints)
    return True


def halve_minibatches(objective: LocalObjective, error: OutOfMemory) -> None:
    """Let an objective whose device has too little memory evaluate smaller minibatches (InputError: none are left)."""
    if objective.halvings == MOST_HALVINGS:
        raise InputError(
            f"{error}, though minibatches have 2^-{MOST_HALVINGS} of their frames",
            "Lower curvature.budget_gib, or take a smaller model.",
        ) from None
    objective.halvings += 1
    print(f"{error}; minibatches have 2^-{objective.halvings} of the frames from now on", flush=True)


def load_data(options: Options, check: bool, say: Callable[[str], None] = print) -> Corpus:
    """The corpus of a run; the master checks it and says what it leaves out, workers (`check` False) do neither."""
    frames, sequence = options["model"].frame_model, options["criterion"].sequence
    return load_corpus(options["corpus"], frames, sequence, check, say if check else lambda line: None)


def build(options: Options, corpus: Corpus) -> tuple[AcousticModel, Evaluator]:
    """The model of a run with its initial weights, and this process' evaluator."""
    settings: TrainingOptions = options["training"]
    criterion = options["criterion"].build(corpus.hmm)
    seed = settings.seed if settings.init_seed is None else settings.init_seed
    model = options["model"].build(corpus.sets["train"].dim, corpus.num_pdfs, seed)
    if criterion.branched:
        model.add_branch(seed)
    if not criterion.sequence:
        model.start_from_prior(torch.from_numpy(log_prior(corpus.pdf_counts, settings.prior_floor)))
    curvature = _with_states(options, model)
    if corpus.subsampling not in (0, model.subsampling):
        raise OptionError(
            f"{corpus.hmm} has one label for {corpus.subsampling} frames, the model one output for {model.subsampling}",
            f"Set model.subsampling={corpus.subsampling} (tdnn, tdnnf, lstm), or make another folder with asr-hf chain "
            f"chain.subsampling={model.subsampling}.",
        )
    for name, chunk in (("model", model.chunk), ("criterion", criterion.chunk)):
        require(
            corpus.timed or not chunk, f"{name}.chunk", chunk,
            f"must be 0: {corpus.hmm} is a flat start, whose labels have no times",
        )  # fmt: skip
    device = chosen_device(options["cluster"].device)
    evaluator = Evaluator(model, criterion, corpus.sets, device, curvature)
    if hasattr(options["optimizer"], "require_fit"):
        options["optimizer"].require_fit(evaluator.layout, criterion)
    return model, evaluator


def _with_states(options: Options, model: AcousticModel) -> CurvatureOptions:
    """The curvature options, all hidden states named where structural damping names none.

    Raises:
        OptionError: the model does not have such states, or has none.
    """
    curvature: CurvatureOptions = options["curvature"]
    states, structural = curvature.states, getattr(options["optimizer"], "structural", 0.0)
    unknown = [name for name in states if name not in model.states]
    require(not unknown, "curvature.states", states, f"must be hidden states of the model: {', '.join(model.states)}")
    if not structural or states:
        return curvature
    require(bool(model.states), "optimizer.structural", structural, "needs a model with hidden states")
    return replace(curvature, states=list(model.states))


def open_objective(options: Options, evaluator: Evaluator) -> LocalObjective:
    """The objective of this run."""
    bad_share = options["training"].bad_share
    if launched_ranks() == 1:
        return LocalObjective(evaluator, bad_share)
    from asr_hf.cluster.objective import ClusterObjective
    from asr_hf.cluster.ranks import all_ranks

    ranks, cluster = all_ranks(), options["cluster"]
    ranks.watch(cluster)
    return ClusterObjective(ranks, Task(options), evaluator, cluster.dedicated_master, bad_share)


def _initial(folder: str, evaluator: Evaluator) -> torch.Tensor:
    """θ of a finished model of the same layout."""
    from asr_hf.objective.layout import Layout

    module = load_model(folder).module
    if Layout.of(module) != evaluator.layout:
        raise OptionError(
            f"option training.init={folder}: that model has another layout than this run's",
            "Give the run the model options of training.init, and criterion.branch only if that had it.",
        )
    return evaluator.layout.flatten(dict(module.named_parameters())).detach().clone()


def write_model(
    folder: Path,
    model: AcousticModel,
    evaluator: Evaluator,
    theta: torch.Tensor,
    buffers: torch.Tensor,
    options: Options,
    corpus: Corpus,
) -> None:
    """Make a folder a MODEL: θ (N,), statistics (empty: none), prior, hmm.json and the fingerprint of the features."""
    with torch.no_grad():
        for name, value in evaluator.layout.views(theta).items():
            model.get_parameter(name).copy_(value)
    if buffers.numel():
        evaluator.set_buffers(buffers)
    shutil.copyfile(corpus.hmm / "hmm.json", folder / "hmm.json")
    corpus.fingerprint.save(folder)
    save_model(folder, model, options["model"], log_prior(corpus.pdf_counts, options["training"].prior_floor))
