"""One run of a comparison: trained, read back as a curve, and its model's loss on dev."""

import gc
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asr_hf.decoding.output import write_json
from asr_hf.errors import Diverged
from asr_hf.models.saved import load_model
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.local import LocalObjective
from asr_hf.optimizers.samples import whole_set
from asr_hf.report.curves import best_at
from asr_hf.training.corpus import load_corpus
from asr_hf.training.monitor import read_log
from asr_hf.training.run import Options, train

TIMED = ("statistics", "preconditioner")  # phases whose cost is their time in units of a gradient's
MINIBATCH = 2048  # frames per minibatch of a model's loss


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Attributes:
        folder: the RUN folder.
        title: what it is called while it is reported.
        options, config_yaml: as `train` takes them.
        dev: FEATS and ALI or CHAIN on which the model's loss is measured; None: none.
    """

    folder: Path
    title: str
    options: Options
    config_yaml: str
    dev: tuple[str, str] | None


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        rows: its curve, see `curve`.
        dev: loss per frame (nats) of its model on dev; None: not measured.
        failed: why there is no model; None: there is one.
    """

    rows: list[dict[str, Any]]
    dev: float | None = None
    failed: str | None = None

    @property
    def heldout(self) -> float | None:
        return best_at(self.rows)

    @property
    def loss(self) -> float:
        """What chooses among trials: the loss on dev, or else on held-out."""
        loss = self.heldout if self.dev is None else self.dev
        return math.inf if loss is None else loss

    def spent(self, what: str) -> float:
        return self.rows[-1][what] if self.rows else 0

    def __str__(self) -> str:
        if self.failed:
            return f"failed: {self.failed}"
        dev = "" if self.dev is None else f", dev {self.dev:.4f}"
        return f"held-out {self.heldout:.4f}{dev}, cost {self.spent('cost'):.4g}, {self.spent('seconds'):.0f} s"


class Runner:
    """Does tasks; what a worker process holds."""

    def run(self, task: Task) -> Ended:
        """Train, or go on with an unfinished run; what it prints goes to RUN/output.txt. Divergence is a result."""
        dev, failed = None, None
        task.folder.mkdir(parents=True, exist_ok=True)
        with open(task.folder / "output.txt", "a", encoding="utf-8") as output, redirect_stdout(output):
            try:
                train(task.folder, task.options, task.config_yaml)
                if task.dev is not None:
                    of_dev = partial(model_loss, task.folder, task.options, task.dev)
                    dev = kept(task.folder / "dev.json", list(task.dev), of_dev)
            except Diverged as error:
                failed = str(error)
        gc.collect()  # models and their traced programs refer to themselves: some GB after a hundred runs
        ended = Ended(curve(read_log(task.folder / "log.jsonl")), dev, failed)
        print(f"{task.title}: {ended}", flush=True)
        return ended


def curve(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run with what was spent until each.

    `cost` are gradient-equivalents, of which `timed` are the seconds of statistics and preconditioner in units of a
    gradient's (the run's seconds of gradients over its gradients); `vectors` those (N,) between ranks; `seconds` wall
    seconds. Beside them `update`, `heldout`, `cg_iterations`, `damping` and `accepted` of the log.
    """
    gradients = sum(row["equivalents"]["gradient"] for row in log)
    seconds_of_a_gradient = sum(row["seconds"]["gradient"] for row in log) / gradients if gradients else 0.0
    rows, counted, timed, vectors, seconds = [], 0.0, 0.0, 0, 0.0
    for row in log:
        counted += row["gradient_equivalents"]
        timed += sum(row["seconds"].get(phase, 0.0) for phase in TIMED)
        vectors += row["vectors"]
        seconds += row["seconds"]["total"]
        extra = timed / seconds_of_a_gradient if seconds_of_a_gradient else 0.0
        spent = {"cost": counted + extra, "timed": extra, "vectors": vectors, "seconds": seconds}
        rows.append(
            {
                "update": row["update"],
                **{name: round(value, 6) for name, value in spent.items()},
                **{name: row[name] for name in ("heldout", "cg_iterations", "damping", "accepted")},
            }
        )
    return rows


def model_loss(folder: Path, options: Options, dev: tuple[str, str] | None = None) -> float:
    """Loss per frame (nats) of a finished model on the held-out set of its options, or on dev in its place.

    Args:
        folder: the MODEL folder.
        options: of its run.
        dev: FEATS and ALI or CHAIN.

    Raises:
        Diverged: it is not finite.
    """
    corpus_options = options["corpus"]
    if dev is not None:
        corpus_options = replace(corpus_options, heldout=dev[0], heldout_alignments=dev[1])
    corpus = load_corpus(corpus_options, options["model"].frame_model, options["criterion"].sequence, check=False)
    model = load_model(folder).module
    device = torch.device("cpu")
    evaluator = Evaluator(model, options["criterion"].build(corpus.hmm), corpus.sets, device, options["curvature"])
    objective = LocalObjective(evaluator)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach()
    loss = objective.loss(theta, whole_set(objective, "heldout", MINIBATCH)).mean
    if not math.isfinite(loss):
        which = "held-out" if dev is None else "dev"
        raise Diverged(f"the loss of the model in {folder} on {which} is not finite", "Lower the rate, or raise λ.")
    return loss


def kept(path: Path, request: Any, make: Callable[[], Any]) -> Any:
    """The result that a file in a RUN folder keeps of the same request; else it is made, and kept there."""
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["request"] == request:
            return saved["result"]
    result = make()
    write_json(path, {"request": request, "result": result})
    return result
