"""The seam of the optimisers: Objective + own state → the next θ and a StepReport."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from asr_hf.objective.objective import Account, Objective

MOST_HALVINGS = 6  # of minibatches, for devices with too little memory


@dataclass
class StepReport:
    """One row of the log.

    Attributes:
        update: number of the update, from 1 (first-order methods: the epoch).
        accepted: whether θ moved.
        loss, heldout: mean loss per frame on the training sample before, and on held-out after the update (nats).
        gradient_norm: ‖g/frames‖₂ before the update.
        step: factor of the direction that was taken (first-order methods: the learning rate).
        note: why the update went as it did, a sentence for people.
        damping, rho, cg_iterations, cg_stop: of second-order methods.
        seconds: per phase of the account, "master" (the optimiser's own vector algebra) and "total".
        equivalents: gradient-equivalents per counted phase (gradient, linearisation, products, evaluation).
        gradient_equivalents: their sum, without statistics and preconditioners, whose seconds tell what they cost.
        master_per_iteration: the master's own seconds per CG iteration.
        precision: of the curvature products.
        recomputed: minibatches that did not fit the byte budget and were linearised anew at every product.
        vectors: vectors (N,) that a cluster sends or reduces, as in the account.
        rank_frames, rank_seconds: per rank.
    """

    update: int
    accepted: bool
    loss: float
    heldout: float
    gradient_norm: float
    step: float
    note: str = ""
    damping: float | None = None
    rho: float | None = None
    cg_iterations: int | None = None
    cg_stop: str | None = None
    precision: str | None = None
    recomputed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    equivalents: dict[str, float] = field(default_factory=dict)
    gradient_equivalents: float = 0.0
    master_per_iteration: float | None = None
    vectors: int = 0
    rank_frames: list[int] = field(default_factory=list)
    rank_seconds: list[float] = field(default_factory=list)

    def add_account(self, account: Account, elapsed: float) -> None:
        """Enter an account of this step; what no phase took is the optimiser's own vector algebra."""
        seconds = dict(account.seconds)
        seconds["master"] = max(0.0, elapsed - sum(seconds.values()))
        seconds["total"] = elapsed
        self.seconds = {phase: round(value, 4) for phase, value in seconds.items()}
        self.equivalents, self.gradient_equivalents = dict(account.equivalents), account.gradient_equivalents
        self.vectors, self.recomputed = round(account.vectors), account.recomputed
        self.rank_frames = list(account.rank_frames)
        self.rank_seconds = [round(value, 4) for value in account.rank_seconds]
        if account.idle_ranks:
            self.note += f"; ranks without a minibatch of any gradient: {account.idle_ranks}"


@dataclass
class State:
    """Everything that an optimiser must remember over a crash; subclasses add tensors (N,), numbers, lists of numbers.

    Attributes:
        theta: the parameters (N,).
        update: updates (first-order: whole epochs) done.
        finished: why the run is over, empty while it is not.
        buffers: statistics of the model's normalisations, which travel with θ (empty: not yet known, or none).
        spent: gradient-equivalents of the run so far.
        halvings: by how many halves minibatches are smaller than the options say, since a device had too little memory.
    """

    theta: torch.Tensor
    update: int = 0
    finished: str = ""
    buffers: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    spent: float = 0.0
    halvings: int = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by field name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}

    def scalars(self) -> dict[str, Any]:
        """Everything else, by field name, as JSON can hold it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if not isinstance(value, torch.Tensor)}

    def move(self, device: torch.device) -> None:
        """Have the tensors of a checkpoint on the device of the vectors."""
        for name, value in self.tensors().items():
            setattr(self, name, value.to(device))

    def fault(self) -> str:
        """Why no run can be in this state, which a checkpoint gave, in a few words; empty if one can.

        Types are those of the fields and numbers finite already; subclasses look at what is theirs, too.
        """
        for name in ("theta", "buffers"):
            if getattr(self, name).dtype != torch.float32 or getattr(self, name).dim() != 1:
                return f"{name} is no vector in float32"
        return "" if self.halvings <= MOST_HALVINGS else f"halvings are {self.halvings}"


class Optimizer(Protocol):
    """An optimiser in the middle of a run."""

    state: State

    def view(self) -> str:
        """The method as configured, in a few lines."""
        ...

    def step(self, objective: Objective) -> StepReport | None:
        """Do one update (first-order: at most one epoch, less if the time is up, then None is returned)."""
        ...

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What to keep when the run is over: parameters (N,), and statistics of normalisations (empty: none)."""
        ...
