"""HMMs of phones: topology, the tree from phones in context to pdfs, and transition probabilities.

Bakis: a phone is a chain of two or more states. A frame spent in a state either stays (self-loop) or goes on to the
next state; no state is skipped, so a phone lasts at least as many frames as it has states. Each state has a pdf, given
by the phone's neighbours through a decision tree (triphones) or by itself (monophones).

Chain (Povey et al. 2016, "Purely sequence-trained neural networks for ASR based on lattice-free MMI"): a phone is one
state with two pdfs, entry for its first frame and loop for each further frame, so that it may last one frame.

A *unit* is a state as graphs see it: the pdf that enters it and the pdf that stays. Of a Bakis state both are the same.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asr_hf.errors import InputError


@dataclass(frozen=True)
class Split:
    """A question of a decision tree: is the phone on that side one of `phones`?"""

    side: str  # "left" or "right"
    phones: frozenset[int]
    yes: "Node"
    no: "Node"


Node = Split | int  # a question, or the pdf of a leaf
TOPOLOGIES = ("bakis", "chain")


def leaf(node: Node, left: int, right: int) -> int:
    """The pdf that a tree gives to a phone between `left` and `right`."""
    while isinstance(node, Split):
        node = node.yes if (left if node.side == "left" else right) in node.phones else node.no
    return node


def leaves(node: Node) -> Iterator[int]:
    """The pdfs of a tree, from left to right."""
    if isinstance(node, Split):
        yield from leaves(node.yes)
        yield from leaves(node.no)
    else:
        yield node


@dataclass
class HmmModel:
    """The HMMs of all phones.

    Attributes:
        num_pdfs: P, the number of pdfs.
        phones: names; the number of a phone is its place plus one, as in phones.txt.
        silence: name of the silence phone; an utterance's edge counts as silence in every context.
        states: number of pdfs of each phone: one a state of Bakis, two (entry, loop) of a chain model.
        trees: for each phone, the tree of each of these.
        self_loop: (P,) probability of staying for one frame more in a state that is entered under that pdf.
        topology: "bakis" or "chain".

    A model of imported alignments knows `num_pdfs` alone; its other fields are empty.
    """

    num_pdfs: int
    phones: tuple[str, ...] = ()
    silence: str = ""
    states: tuple[int, ...] = ()
    trees: tuple[tuple[Node, ...], ...] = ()
    self_loop: np.ndarray = field(default_factory=lambda: np.zeros(0))
    topology: str = "bakis"

    def __post_init__(self) -> None:
        self.first_state = np.cumsum([0, *self.states])  # number of (phone, state 0) among all phone-states
        self.context = any(isinstance(tree, Split) for trees in self.trees for tree in trees)
        self._pdfs: dict[tuple[int, int, int], tuple[int, ...]] = {}

    @cached_property
    def silence_number(self) -> int:
        return self.phones.index(self.silence) + 1

    def pdfs(self, left: int, phone: int, right: int) -> tuple[int, ...]:
        """The pdf of each state of a phone between its neighbours (0: the edge of the utterance)."""
        key = (left or self.silence_number, phone, right or self.silence_number)
        found = self._pdfs.get(key)
        if found is None:
            found = self._pdfs[key] = tuple(leaf(tree, key[0], key[2]) for tree in self.trees[phone - 1])
        return found

    @cached_property
    def units(self) -> np.ndarray:
        """(U, 2) entry and loop pdf of every unit, sorted; of Bakis HMMs unit u is pdf u twice."""
        if self.topology == "bakis":
            return np.repeat(np.arange(self.num_pdfs), 2).reshape(-1, 2)
        phones = range(1, len(self.phones) + 1)
        pairs = {
            self.pdfs(left, phone, right)
            for phone in phones
            for left in (phones if self.depends_on_context(phone) else (0,))
            for right in (phones if self.depends_on_context(phone) else (0,))
        }
        return np.array(sorted(pairs)).reshape(-1, 2)

    @cached_property
    def _unit_number(self) -> dict[tuple[int, ...], int]:
        return {tuple(pair): unit for unit, pair in enumerate(self.units.tolist())}

    def units_of(self, left: int, phone: int, right: int) -> tuple[int, ...]:
        """The units that a phone between its neighbours (0: the edge of the utterance) passes through."""
        pdfs = self.pdfs(left, phone, right)
        return pdfs if self.topology == "bakis" else (self._unit_number[pdfs],)

    def depends_on_context(self, phone: int) -> bool:
        return any(isinstance(tree, Split) for tree in self.trees[phone - 1])

    def phone_of_state(self) -> np.ndarray:
        """The phone number of every phone-state (the numbers that state alignments hold)."""
        return np.repeat(np.arange(1, len(self.phones) + 1), self.states)

    def log_stay_and_leave(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) log probabilities of staying in and of leaving a state, by pdf."""
        return np.log(self.self_loop), np.log1p(-self.self_loop)

    def require_topology(self, folder: Path | str) -> None:
        """Refuse a model of imported alignments where phones are needed (InputError)."""
        if not self.phones:
            raise InputError(
                f"{folder} holds imported alignments: their phones and decision tree are not known",
                "Align with a model that asr-hf mono or tri trained.",
            )

    def require_bakis(self, folder: Path | str) -> None:
        """Refuse a chain model where states of a Bakis HMM are needed (InputError)."""
        if self.topology != "bakis":
            raise InputError(
                f"{folder} holds a chain model, which has no HMM states to align frames with",
                "Name a model that asr-hf mono or tri trained, or a network trained on their alignments.",
            )

    def save(self, folder: Path | str) -> None:
        """Write hmm.json."""
        names = ("", *self.phones)
        trees = {
            phone: [_to_json(tree, names) for tree in trees]
            for phone, trees in zip(self.phones, self.trees, strict=True)
        }
        facts = {
            "num_pdfs": self.num_pdfs,
            "phones": list(self.phones),
            "silence": self.silence,
            "topology": self.topology,
            "trees": trees,
            "self_loop": [round(float(p), 6) for p in self.self_loop],
        }
        (Path(folder) / "hmm.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> "HmmModel":
        """Read hmm.json of a MODEL or ALI folder (InputError when it is missing or damaged)."""
        path = Path(folder) / "hmm.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            phones = tuple(facts["phones"])
            number = {name: place for place, name in enumerate(phones, 1)}
            trees = tuple(tuple(_from_json(tree, number) for tree in facts["trees"][phone]) for phone in phones)
            states = tuple(len(state_trees) for state_trees in trees)
            self_loop = np.array(facts["self_loop"], dtype=np.float64)
            topology = facts.get("topology", "bakis")  # older files do not name it
            if topology not in TOPOLOGIES or (topology == "chain" and set(states) - {2}):
                raise ValueError(f"topology {topology} with {sorted(set(states))} pdfs a phone")
            return cls(int(facts["num_pdfs"]), phones, facts["silence"], states, trees, self_loop, topology)
        except OSError:
            raise InputError(f"{path} is missing", "Name a folder that mono, tri, align or train wrote.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error})", "Make its folder again.") from None


def _to_json(node: Node, names: tuple[str, ...]) -> Any:
    if isinstance(node, Split):
        phones = [names[phone] for phone in sorted(node.phones)]
        return {node.side: phones, "yes": _to_json(node.yes, names), "no": _to_json(node.no, names)}
    return node


def _from_json(value: Any, number: dict[str, int]) -> Node:
    if isinstance(value, int):
        return value
    side = "left" if "left" in value else "right"
    phones = frozenset(number[name] for name in value[side])
    return Split(side, phones, _from_json(value["yes"], number), _from_json(value["no"], number))


def monophone_model(phones: tuple[str, ...], silence: str, states: int, silence_states: int) -> HmmModel:
    """HMMs without context: one pdf for every state of every phone, self-loop probability ½."""
    counts = tuple(silence_states if phone == silence else states for phone in phones)
    first = np.cumsum([0, *counts])
    trees = tuple(
        tuple(int(start) + state for state in range(count)) for start, count in zip(first, counts, strict=False)
    )
    return HmmModel(int(first[-1]), phones, silence, counts, trees, np.full(int(first[-1]), 0.5))
