"""What `asr-hf bench scaling` starts: work on the ranks of one launch, or the cost model's constants on one process.

python -c "from asr_hf.bench.scaling_ranks import main; main()" JOB.json OUT.json
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from asr_hf.bench.cost_model import Spent
from asr_hf.bench.sizes import SIZES, TINY, DnnSize
from asr_hf.bench.watched import Watched, spent
from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Sample
from asr_hf.decoding.output import write_json
from asr_hf.models.dnn import DnnOptions
from asr_hf.objective.evaluator import Evaluator
from asr_hf.optimizers.hf import HfOptions
from asr_hf.solvers.cg import CgOptions

PROGRAM = "from asr_hf.bench.scaling_ranks import main; main()"
MODELS = {"dnn": SIZES["dnn"], "tiny": TINY["dnn"]}
SEED = 1
HELDOUT = 4  # minibatches of the training set for one of the held-out set
PRODUCTS, SINGLE_PRODUCTS = 3, 3  # timed in a launch, on an open linearisation
ADDITIONS = 5
NO_LIMIT = 1e6  # GiB: no minibatch is linearised anew


@dataclass(frozen=True)
class Setup:
    """What a launch works on: the task that the master hands to the workers.

    Attributes:
        model: of MODELS.
        minibatches: of the training set; the sample of gradients and products is all of it.
        iterations: of CG in an update.
    """

    model: str
    minibatches: int
    iterations: int

    @property
    def size(self) -> DnnSize:
        size = MODELS[self.model]
        assert isinstance(size, DnnSize)
        return size

    @property
    def heldout(self) -> int:
        """Minibatches of the held-out set."""
        return max(1, self.minibatches // HELDOUT)

    @property
    def sample(self) -> Sample:
        return Sample("train", "frames", 1.0, self.size.frames, seed=SEED, purpose="curvature")

    def evaluator(self) -> Evaluator:
        """The model, and normal features with uniform targets: the same on every rank."""
        size = self.size
        model = DnnOptions(size.layers, size.width, "relu", size.context, norm="none")
        sets = {"train": self._drawn(0, self.minibatches), "heldout": self._drawn(1, self.heldout)}
        return Evaluator(
            model.build(size.input_dim, size.pdfs, SEED),
            CrossEntropy(),
            sets,
            torch.device("cpu"),
            CurvatureOptions(budget_gib=NO_LIMIT),
        )

    def _drawn(self, subset: int, minibatches: int) -> TrainingSet:
        size, random = self.size, np.random.default_rng([SEED, subset])
        names = [f"{subset}-{index}" for index in range(minibatches)]
        features = [random.standard_normal((size.frames, size.input_dim), dtype=np.float32) for _ in names]
        targets = [random.integers(size.pdfs, size=size.frames, dtype=np.int32) for _ in names]
        return TrainingSet(names, features, targets, window=True)

    def optimizer(self) -> HfOptions:
        """Updates that ask for the same commands whatever the losses are: as in `cost_model.update`."""
        frames, cg = self.size.frames, CgOptions(max_iterations=self.iterations, progress_tolerance=0.0)
        return HfOptions(
            gradient_share=1.0, curvature_share=1.0, minibatch_frames=frames, curvature_minibatch_frames=frames,
            accept="always", cg=cg,
        )  # fmt: skip


def prepare(task: object) -> tuple[Evaluator, bool]:
    """A worker's evaluator; the master computes too."""
    assert isinstance(task, Setup)
    return task.evaluator(), False


class Bench:
    """Work of one setup on the ranks of this launch, warmed up.

    Attributes:
        objective: on all ranks.
        theta, direction: θ and v (N,).
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.ranks = setup, launched_ranks()
        evaluator = setup.evaluator()
        self.objective = _open(setup, evaluator)
        self.theta = evaluator.layout.flatten(dict(evaluator.model.named_parameters())).detach().clone()
        self.direction = torch.randn(self.theta.numel(), generator=torch.Generator().manual_seed(SEED))
        on_each_rank = replace(setup.sample, count=self.ranks)
        self.objective.gradient(self.theta, on_each_rank)
        self.objective.loss(self.theta, on_each_rank)
        with self.objective.linearize(self.theta, on_each_rank) as lin:
            lin.product(self.direction)

    def gradient(self) -> Spent:
        """A gradient at a θ that the ranks do not know yet."""
        theta = self.theta.clone()
        return self._timed(lambda: self.objective.gradient(theta, self.setup.sample))

    def products(self, count: int, minibatches: int = 0) -> list[Spent]:
        """Products one after the other, of so many minibatches (0: all)."""
        sample = replace(self.setup.sample, count=minibatches)
        with self.objective.linearize(self.theta, sample) as lin:
            return [self._timed(lambda: lin.product(self.direction)) for _ in range(count)]

    def update(self) -> Spent:
        """The first update of a run."""
        optimizer = self.setup.optimizer().start(self.theta.clone(), SEED)
        return self._timed(lambda: optimizer.step(self.objective))

    def _timed(self, work: Callable[[], Any]) -> Spent:
        self.objective.done.clear()
        begin = time.perf_counter()
        work()
        return spent(time.perf_counter() - begin, self.objective.done, self.ranks)


def measure_work(setup: Setup) -> dict[str, list[Spent]]:
    """Every `what` of the rows, strong and weak, on the ranks of this launch."""
    bench, ranks = Bench(setup), launched_ranks()
    found = {
        "gradient": [bench.gradient()],
        "product": bench.products(PRODUCTS),
        "product, 1 minibatch": bench.products(SINGLE_PRODUCTS, 1),
        "update": [bench.update()],
    }
    if ranks > 1:
        bench = Bench(replace(setup, minibatches=ranks * setup.minibatches))
        found["gradient, weak"] = [bench.gradient()]
        found["product, weak"] = bench.products(PRODUCTS)
        found["update, weak"] = [bench.update()]
    return found


def measure_constants(setup: Setup, repeats: int) -> dict[str, Any]:
    """The fields of `cost_model.Machine`, from updates on this process alone: medians."""
    bench = Bench(setup)
    rates: dict[str, list[float]] = {}
    algebra = []
    for _ in range(repeats):
        seconds = bench.update().seconds
        done = bench.objective.done
        for command in done:
            rates.setdefault(command.kind, []).append(command.seconds / command.frames)
        algebra.append((seconds - sum(command.seconds for command in done)) / setup.iterations)
    return {
        "parameters": bench.theta.numel(),
        "seconds_per_frame": {kind: median(found) for kind, found in rates.items()},
        "algebra": median(algebra),
        "add": _addition_seconds(bench.theta.numel()),
    }


def _addition_seconds(elements: int) -> float:
    total, other = np.ones(elements), np.ones(elements)
    seconds = []
    for _ in range(ADDITIONS):
        begin = time.perf_counter()
        total += other
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def _open(setup: Setup, evaluator: Evaluator) -> Watched:
    if launched_ranks() == 1:
        return Watched(evaluator)
    from asr_hf.cluster.objective import ClusterObjective
    from asr_hf.cluster.ranks import all_ranks

    class WatchedCluster(Watched, ClusterObjective):
        pass

    return WatchedCluster(all_ranks(), setup, evaluator)


def main() -> None:
    """Do the job of a JSON file: `setup`, and `constants`, the repeats of these, or 0 for the work of the rows."""
    torch.set_num_threads(1)
    job_file, out = map(Path, sys.argv[1:])
    job = json.loads(job_file.read_text("utf-8"))
    setup = Setup(**job["setup"])

    def master() -> None:
        if job["constants"]:
            write_json(out, measure_constants(setup, job["constants"]))
        else:
            found = measure_work(setup)
            write_json(out, {what: [asdict(each) for each in repeats] for what, repeats in found.items()})

    if launched_ranks() > 1:
        run_on_ranks(master, prepare)
    else:
        master()
