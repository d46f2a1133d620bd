"""Started by test_pairs.py under mpiexec: sharded stores against stores of one process, bit by bit.

Usage: sharded_pairs.py CORPUS OUT [dedicated]
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.cluster.objective import ClusterObjective
from asr_hf.cluster.options import ClusterOptions
from asr_hf.cluster.pairs import ShardedPairs, Shelf, cuts
from asr_hf.cluster.protocol import HEADER, Operation
from asr_hf.criteria.cross_entropy import CrossEntropyOptions
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.models.dnn import DnnOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.samples import drawn
from asr_hf.solvers.cg import CgOptions
from asr_hf.solvers.pairs import Pairs, PairStore
from asr_hf.solvers.vectors import BLOCK
from asr_hf.training.corpus import CorpusOptions
from asr_hf.training.run import TrainingOptions, build, load_data, open_objective, prepare

LIMIT = 3
SIZES = (0, 1, BLOCK, BLOCK + 1, 6 * BLOCK, 13 * BLOCK + 5, 100 * BLOCK)
CUT = [(size, *ranks) for size in SIZES for ranks in ((1, 0), (2, 0), (2, 1), (3, 1), (7, 0), (7, 1))]


def master(corpus: Path, out: Path, dedicated: bool) -> None:
    options = {
        "corpus": CorpusOptions(str(corpus / "train"), str(corpus / "heldout"), str(corpus / "ali")),
        "model": DnnOptions(hidden_layers=1, width=3000, context=1, norm="none"),
        "criterion": CrossEntropyOptions(),
        "curvature": CurvatureOptions(),
        "cluster": ClusterOptions(dedicated_master=dedicated),
        "training": TrainingOptions(),
        "optimizer": None,
    }
    model, evaluator = build(options, load_data(options, check=True))
    objective = open_objective(options, evaluator)
    assert isinstance(objective, ClusterObjective)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    differences: list[str] = []
    with objective.linearize(theta, drawn(objective, "curvature", 0.3, 100, 3, 1, 10, masks=1)) as lin:
        before = lin.product(theta)
        differences += compare(objective, 2 * BLOCK + 77, torch.float32)
        differences += compare(objective, 2 * BLOCK + 77, torch.bfloat16)
        differences += compare(objective, 1000, torch.float32)  # of one block: the other ranks have no slice
        if not torch.equal(before, lin.product(theta)):
            differences.append("a product on a linearisation that was open meanwhile")
    store = objective.pair_store(LIMIT, torch.float32, True)
    fill(store, 3 * BLOCK, 2)
    answers = {
        "differences": differences,
        "held": store._own.pairs.vectors()[0].shape[1] / BLOCK,
        "vectors": moved(objective, theta.numel()),
        "runs": [whole_run(objective, theta, inside) for inside in (False, True)],
        "shelf": [len(shelf) for shelf in obeying(Shelf(objective.ranks, 0, objective.device))],
        "cuts": {f"{size} {ranks} {reserved}": cuts(size, ranks, reserved) for size, ranks, reserved in CUT},
    }
    out.write_text(json.dumps(answers))


def compare(objective: ClusterObjective, size: int, dtype: torch.dtype) -> list[str]:
    """What differs between a sharded store and one of this process to which the same is done."""
    sharded, whole = objective.pair_store(LIMIT, dtype, True), objective.pair_store(LIMIT, dtype, False)
    assert isinstance(sharded, ShardedPairs)
    assert isinstance(whole, Pairs)
    random, found = torch.Generator().manual_seed(1), []
    diagonals = [None, *(torch.rand(2, size, generator=random) + 0.5)]

    def look(after: str) -> None:
        for name, (ours, theirs) in {
            "s": [store.vectors()[0] for store in (sharded, whole)],
            "y": [store.vectors()[1] for store in (sharded, whole)],
            "count": [torch.tensor([store.count, store.appended, store.refused]) for store in (sharded, whole)],
            **inner_products(sharded, whole, random, diagonals),
        }.items():
            if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
                found.append(f"{name} of {size} elements in {dtype} after {after}")

    look("nothing")
    for store in (sharded, whole):
        fill(store, size, 2)
    look("two pairs")
    for store in (sharded, whole):
        fill(store, size, 3)
    look("more than the limit")
    for store in (sharded, whole):
        store.refresh(0.3)
    look("a refresh")
    for store in (sharded, whole):
        kept = [rows.clone() for rows in store.vectors()]
        store.clear()
        fill(store, size, 1)
    look("a new beginning")
    for store in (sharded, whole):
        store.restore(*kept)
    look("restoring")
    diagonals[-1].mul_(2)  # in place, the one used last: the ranks need it anew
    diagonals.reverse()
    look("another diagonal")
    sharded.drop()
    return found


def fill(store: PairStore, size: int, number: int) -> None:
    """Pairs of a diagonal matrix, and one of negative curvature."""
    random = torch.Generator().manual_seed(number)
    a_N = torch.rand(size, generator=random) + 0.5
    for _ in range(number):
        s_N = torch.randn(size, generator=random)
        store.append(s_N, a_N * s_N)
    store.append(a_N, -a_N)


def inner_products(
    sharded: PairStore, whole: PairStore, random: torch.Generator, diagonals: list[torch.Tensor | None]
) -> dict[str, list[torch.Tensor]]:
    """(ours, theirs) of `gram`, `along` and `combine`, by one diagonal and another."""
    pairs: dict[str, list[torch.Tensor]] = {}
    if not whole.count:
        return pairs
    coefficients = torch.randn(2 * whole.count, generator=random, dtype=torch.float64)
    for index, d_N in enumerate(diagonals):
        r_N = torch.randn(whole.vectors()[0].shape[1], generator=random)
        for name, ask in {
            "gram": lambda store, d_N=d_N: store.gram(d_N),
            "last column": lambda store, d_N=d_N: store.gram(d_N, store.count - 1),
            "along": lambda store, d_N=d_N, r_N=r_N: store.along(r_N, d_N),
            "combine": lambda store, d_N=d_N: store.combine(coefficients, d_N),
        }.items():
            pairs[f"{name} by diagonal {index}"] = [ask(store) for store in (sharded, whole)]
    return pairs


def moved(objective: ClusterObjective, size: int) -> float:
    """Vectors (N,) of θ's size that the account counts for two pairs of half the size and one application."""
    store, half = objective.pair_store(LIMIT, torch.bfloat16, True), size // 2
    objective.account.vectors = 0.0
    fill(store, half, 2)
    d_N = torch.ones(half)
    store.gram(d_N)
    store.along(d_N, d_N)
    store.combine(torch.ones(4, dtype=torch.float64), d_N)
    store.drop()
    return objective.account.vectors * size / half


def whole_run(objective: ClusterObjective, theta: torch.Tensor, inside: bool) -> tuple[bool, int]:
    """Whether runs of two blocks, sharded and not, end at one θ; and how many stores the first leaves on the ranks."""
    told: Counter[Operation] = Counter()
    tell = objective._tell_store

    def counted(store: int, operation: Operation, *moved: int, **fields: float) -> AbstractContextManager[None]:
        told[operation] += 1
        return tell(store, operation, *moved, **fields)

    objective._tell_store = counted  # type: ignore[method-assign]
    ends = []
    for sharded in (True, False):
        kinds = PreconditionerOptions(["lbfgs"], pairs=4, sharded=sharded, inside=inside)
        cg = CgOptions(6, beta="flexible" if inside else "standard")
        optimizer = HfOptions(3, 0.5, 0.2, preconditioner=kinds, cg=cg, blocks=2).start(theta.clone(), 0)
        while not optimizer.state.finished:
            optimizer.step(objective)
        ends.append(optimizer.best()[0])
    objective._tell_store = tell  # type: ignore[method-assign]
    assert told[Operation.COMBINE] > 0
    assert not torch.equal(ends[0], theta)
    return torch.equal(*ends), told[Operation.NEW] - told[Operation.DROP]


def obeying(shelf: Shelf) -> Iterator[Shelf]:
    """A worker's shelf after each of three commands."""
    header = np.zeros(1, dtype=HEADER)
    for operation, store in ((Operation.NEW, 1), (Operation.NEW, 2), (Operation.DROP, 1)):
        header["operation"], header["store"], header["rows"] = operation, store, LIMIT
        shelf.obey(header[0])
        yield shelf


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["dedicated"]
    assert launched_ranks() > 1
    run_on_ranks(lambda: master(*arguments), prepare)
