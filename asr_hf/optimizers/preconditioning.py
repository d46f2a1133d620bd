"""Preconditioners of an optimiser's systems, made anew for every solve: use counts, Jacobi, L-BFGS, K-FAC.

Symbols: A = G + λI the damped matrix, P ≈ A the preconditioner, K uses per frame of each parameter (N,),
(s_k, y_k = A s_k) the curvature pairs that CG met in the solve before.
Source: Sainath et al. (2013), L-BFGS from CG's own steps (after Morales and Nocedal 2000); Martens (2010), section 4.7,
Jacobi; Haider et al. (2021), parameters shared over time; Martens and Grosse (2015), K-FAC.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from asr_hf.curvature.kronecker import LinearMap
from asr_hf.objective.layout import Layout
from asr_hf.objective.objective import Account, KroneckerSums, Named, Objective
from asr_hf.optimizers.blocks import Blocks
from asr_hf.options import option, require, require_choice
from asr_hf.solvers.kronecker import Factored, Kronecker, damped_inverses
from asr_hf.solvers.pairs import PairStore
from asr_hf.solvers.preconditioners import Diagonal, Lbfgs, Preconditioner, jacobi, product_of, use_counts

KINDS = ("uses", "jacobi", "lbfgs", "kfac")
SHARINGS = ("expand", "reduce")
STORAGE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class PreconditionerOptions:
    """The preconditioner of CG."""

    kinds: list[str] = option(
        [], "of uses, jacobi, lbfgs; diagonals multiply, and L-BFGS starts from them; or kfac, alone"
    )
    pairs: int = option(32, "lbfgs: consecutive pairs of the solve before that are kept; 16, 32 or 64")
    gamma: str = option("last", "lbfgs: scale of the initial matrix, by the last pair or the largest over all")
    storage: str = option("fp32", "lbfgs: fp32, or bf16 at half the memory")
    sharded: bool = option(False, "lbfgs: pairs cut over the ranks, each holds its slice")
    inside: bool = option(False, "lbfgs: use pairs within the solve that finds them (needs cg.beta=flexible)")
    exponent: float = option(0.75, "jacobi: exponent of (mean squared gradient + λ)")
    jacobi_share: float = option(0.1, "jacobi: share of the training utterances whose squared gradients are summed")
    power: float = option(1.0, "uses: exponent of K, 1 to 2")
    decay: float = option(0.95, "kfac: share of earlier updates in the average of factors, at most 1 − 1/k at the kth")
    sharing: str = option(
        "expand", "kfac: frames that share a weight: expand, each by itself, or reduce, put together in each piece"
    )

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        repeated = len(set(self.kinds)) < len(self.kinds)
        name = "optimizer.preconditioner"
        require(not unknown and not repeated, f"{name}.kinds", self.kinds, f"must be some of {', '.join(KINDS)}")
        require(self.pairs >= 1, f"{name}.pairs", self.pairs, "must be at least 1")
        require_choice(f"{name}.gamma", self.gamma, ("last", "largest"))
        require_choice(f"{name}.storage", self.storage, tuple(STORAGE))
        require(0 < self.exponent <= 1, f"{name}.exponent", self.exponent, "must lie in (0, 1]")
        require(0 < self.jacobi_share <= 1, f"{name}.jacobi_share", self.jacobi_share, "must lie in (0, 1]")
        require(1 <= self.power <= 2, f"{name}.power", self.power, "must lie in [1, 2]")
        alone = "kfac" not in self.kinds or self.kinds == ["kfac"]
        require(alone, f"{name}.kinds", self.kinds, "cannot hold kfac beside others: it is no diagonal")
        require(0 <= self.decay < 1, f"{name}.decay", self.decay, "must lie in [0, 1)")
        require_choice(f"{name}.sharing", self.sharing, SHARINGS)

    def view(self) -> str:
        """The preconditioner as configured, in a few words."""
        words = {
            "uses": f"use counts^{self.power:g}",
            "jacobi": f"Jacobi^{self.exponent:g} of {self.jacobi_share:.0%} of the utterances",
            "lbfgs": f"L-BFGS of {self.pairs} pairs in {self.storage}"
            + ", cut over the ranks" * self.sharded
            + ", used at once" * self.inside,
            "kfac": f"K-FAC ({self.sharing}, averaged with decay {self.decay:g})",
        }
        return " · ".join(words[kind] for kind in self.kinds) or "none"


class PairMemory:
    """The curvature pairs of each block, with the λ of their A.

    Args:
        blocks: of the system.
        new_store: makes an empty store of pairs.
    """

    def __init__(self, blocks: Blocks, new_store: Callable[[], PairStore]) -> None:
        self._blocks, self._new_store = blocks, new_store
        self.stores = [new_store() for _ in range(len(blocks))]
        self.damping = 0.0

    def fresh(self) -> list[PairStore]:
        """Empty stores for the pairs of the solve to come."""
        return [self._new_store() for _ in range(len(self._blocks))]

    def at(self, damping: float) -> None:
        """Make the pairs those of A at another λ: exactly y + (λ′ − λ)s."""
        for store in self.stores:
            if damping != self.damping:
                store.refresh(damping - self.damping)
        self.damping = damping

    def take(self, stores: list[PairStore], damping: float) -> None:
        """Go on with these stores, of A at this λ; the ones before are freed."""
        for store in self.stores:
            if store not in stores:
                store.drop()
        self.stores, self.damping = stores, damping

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """S and Y (m, N), the newest last; a block with fewer pairs than others has zeros before them."""
        if not any(store.count for store in self.stores):
            return torch.empty(0), torch.empty(0)
        if len(self.stores) == 1:
            return self.stores[0].vectors()
        s_mN, y_mN = (self._stacked(column) for column in zip(*(store.vectors() for store in self.stores), strict=True))
        return s_mN, y_mN

    def _stacked(self, of_blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        """(m, N) from the (m_b, N_b) of every block."""
        depth = max(len(rows) for rows in of_blocks)
        padded = [[None] * (depth - len(rows)) + list(rows) for rows in of_blocks]
        return torch.stack([self._blocks.join(row) for row in zip(*padded, strict=True)])

    def restore(self, s_mN: torch.Tensor, y_mN: torch.Tensor, damping: float) -> None:
        """Take over what `vectors` gave."""
        self.damping = damping
        if not s_mN.numel():
            return
        for store, s_mB, y_mB in zip(self.stores, self._blocks.cut(s_mN), self._blocks.cut(y_mN), strict=True):
            held = s_mB.any(dim=1)  # rows of zeros: this block has fewer pairs than others
            store.restore(s_mB[held], y_mB[held])


class Timed:
    """A preconditioner whose seconds are accounted for."""

    def __init__(self, account: Account, inner: Preconditioner) -> None:
        self._account, self._inner = account, inner

    def __call__(self, r_N: torch.Tensor) -> torch.Tensor:
        with self._account.measure("preconditioner"):
            return self._inner(r_N)

    def view(self) -> str:
        return self._inner.view()


def diagonal_of(
    options: PreconditionerOptions, layout: Layout, mean_square_N: torch.Tensor | None, damping: float
) -> torch.Tensor | None:
    """The diagonal (N,) of the diagonal kinds together, None without any.

    Args:
        mean_square_N: jacobi: squared gradients of utterances, summed, per frame.
        damping: λ, weight decay included.
    """
    found: list[Diagonal] = []
    if "uses" in options.kinds:
        uses_N = torch.cat([torch.full((slot.size,), slot.uses_per_frame) for slot in layout.slots])
        found.append(use_counts(uses_N, options.power))
    if "jacobi" in options.kinds:
        assert mean_square_N is not None
        found.append(jacobi(mean_square_N, damping, options.exponent))
    return product_of(found).d_N if found else None


def new_store(options: PreconditionerOptions, objective: Objective) -> PairStore:
    """An empty store of pairs, as the options say."""
    return objective.pair_store(options.pairs, STORAGE[options.storage], options.sharded)


def preconditioners(
    options: PreconditionerOptions,
    blocks: Blocks,
    diagonal_N: torch.Tensor | None,
    stores: Sequence[PairStore | None],
    account: Account,
) -> list[Preconditioner | None]:
    """P of each block: L-BFGS of its pairs upon the diagonal, or the diagonal alone; None is the identity."""
    diagonals = [None] * len(blocks) if diagonal_N is None else [Diagonal(part) for part in blocks.cut(diagonal_N)]
    made: list[Preconditioner | None] = []
    with account.measure("preconditioner"):
        for diagonal, store in zip(diagonals, stores, strict=True):
            inner: Preconditioner | None = diagonal
            if store is not None and (store.count or options.inside):
                inner = Lbfgs(store, diagonal, options.gamma, options.inside)
            made.append(None if inner is None else Timed(account, inner))
    return made


def averaged(before: torch.Tensor, new: torch.Tensor, passes: int, decay: float) -> torch.Tensor:
    """Factors after so many passes: their mean at first, then an exponential average (Martens and Grosse 2015)."""
    return new if passes == 1 else torch.lerp(new, before, min(1 - 1 / passes, decay))


def kronecker_preconditioners(
    sums: KroneckerSums, means: torch.Tensor, blocks: Blocks, damping: float, account: Account
) -> list[Preconditioner | None]:
    """P of each block from Kronecker factors.

    Args:
        sums: whose maps and layout these are.
        means: factors and diagonals per frame, averaged.
        damping: λ, weight decay included.
    """
    named = sums.layout.views(means)
    with account.measure("preconditioner"):
        return [Timed(account, _kronecker(sums.maps, named, layout, damping)) for layout in blocks.layouts]


def _kronecker(maps: Sequence[LinearMap], named: Named, layout: Layout, damping: float) -> Kronecker:
    where = {slot.name: slice(slot.offset, slot.offset + slot.size) for slot in layout.slots}
    factored = []
    for each in maps:
        if each.weight in where:
            weight, bias = where.pop(each.weight), where.pop(each.bias, None)
            factored.append(Factored(weight, bias, *damped_inverses(named[each.a], named[each.g], damping)))
    diagonals = [(place, named[name].flatten() + damping) for name, place in where.items()]
    return Kronecker(factored, diagonals)
