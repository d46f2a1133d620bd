"""Several solves side by side, one round of products serving all: the blocks of a block-diagonal system."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from asr_hf.solvers.cg import CgResult, Iterate, Steps
from asr_hf.solvers.stopping import UNHEALTHY

Products = Callable[[list[torch.Tensor | None]], list[torch.Tensor | None]]  # None for a solve that has finished
Join = Callable[[list[torch.Tensor]], torch.Tensor]


def lock_step(solves: Sequence[Steps], product: Products) -> list[CgResult]:
    """Run solves to their ends, a product of each that still goes on in every round.

    Args:
        solves: as `cg.cg_steps` makes them, of one size or another.
        product: the vectors of all solves ↦ their products, None for those that have finished.

    Returns:
        The result of each; the same bits as if it had run alone.

    Source: the blocks of Zhang et al. (2017); that they run in lock-step is our choice.
    """
    results: dict[int, CgResult] = {}

    def advance(index: int, step: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """The next vector of a solve; None when it has finished."""
        try:
            return step()
        except StopIteration as stop:
            results[index] = stop.value
            return None

    vectors = [advance(index, partial(next, solve)) for index, solve in enumerate(solves)]
    while len(results) < len(solves):
        answers = {index: answer for index, answer in enumerate(product(vectors)) if answer is not None}

        def answered(index: int, answers: dict[int, torch.Tensor] = answers) -> torch.Tensor:
            return solves[index].send(answers.pop(index))  # which alone holds it then

        vectors = [
            advance(index, partial(answered, index)) if index in answers else None for index in range(len(solves))
        ]
    return [results[index] for index in range(len(solves))]


def combine(results: Sequence[CgResult], join: Join) -> CgResult:
    """The result of a block-diagonal system from those of its blocks.

    There is an iterate of every iteration of which a block kept one: other blocks give their latest kept before it,
    zeros if there is none, and their last once they have finished. φ are summed, ‖r‖ too, in squares; the reason is the
    worst, else that of the block that ran longest.

    Args:
        results: of the blocks.
        join: vectors of the blocks ↦ the vector of the system (N,), a new tensor where there are several.
    """
    longest = max(results, key=lambda result: result.iterations)
    faults = [reason for reason in UNHEALTHY if any(result.reason is reason for result in results)]
    kept = sorted({iterate.iteration for result in results for iterate in result.iterates})
    iterates = [_joined([_at(result, iteration) for result in results], iteration, join) for iteration in kept]
    last = iterates[-1] if iterates else _joined([_at(result, 0) for result in results], 0, join)
    return CgResult(
        last.x,
        last.quadratic,
        longest.iterations,
        faults[0] if faults else longest.reason,
        iterates,
        [math.sqrt(sum(r * r for r in column)) for column in _columns([result.residuals for result in results])],
        [sum(column) for column in _columns([result.quadratics for result in results])],
        max((result.drift for result in results), key=lambda drift: math.inf if math.isnan(drift) else drift),
    )


def _at(result: CgResult, iteration: int) -> Iterate:
    """What a block gives at an iteration: its latest kept iterate, its last once finished, zeros before the first."""
    if iteration >= result.iterations:
        return Iterate(result.x, result.iterations, result.quadratic)
    earlier = [iterate for iterate in result.iterates if iterate.iteration <= iteration]
    return earlier[-1] if earlier else Iterate(torch.zeros_like(result.x), 0, 0.0)


def _joined(parts: Sequence[Iterate], iteration: int, join: Join) -> Iterate:
    return Iterate(join([part.x for part in parts]), iteration, sum(part.quadratic for part in parts))


def _columns(series: Sequence[list[float]]) -> list[tuple[float, ...]]:
    """The values of all blocks at iteration 0, 1, …; a block that has finished stays at its last."""
    length = max(len(values) for values in series)
    return list(zip(*(values + [values[-1]] * (length - len(values)) for values in series), strict=True))
