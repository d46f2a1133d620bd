"""Chain HMMs: which phones in context have an entry and a loop pdf of their own.

Without context every phone has two pdfs. An untied biphone model gives two to each phone after each left neighbour, so
that it needs no alignments (Hadian et al. 2018, "End-to-end speech recognition using lattice-free MMI"); a tied one
shares them by a decision tree. Silence has no context.
Shape suffixes: T frames, D feature dim, N phones of an utterance.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from asr_hf.data.archive import FeatureArchive
from asr_hf.hmm.alignment import chunks_by_length
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel, Node, Split
from asr_hf.hmm.phone_lm import PhoneLmOptions
from asr_hf.hmm.tree import ContextStats, TreeOptions, build_tree
from asr_hf.hmm.triphone import TREE_FLOOR, contexts_of
from asr_hf.options import option, require, require_choice

CONTEXTS = ("mono", "biphone", "triphone")
_STAY = 0.5  # of every state, as in Kaldi's chain topology
_SIDES = {"biphone": ("left",), "triphone": ("left", "right")}


@dataclass
class ChainOptions:
    """HMMs and supervision of lattice-free MMI."""

    context: str = option("biphone", "what pdfs depend on: mono, biphone (left neighbour) or triphone")
    tied: bool = option(True, "a tree ties the pdfs of contexts; false: each biphone has its own")
    subsampling: int = option(3, "input frames (of 10 ms) per output frame of the network")
    tolerance: int = option(5, "input frames by which a phone may begin earlier or end later than in the alignment")
    draws: int = option(10, "flat start: drawn pronunciations and silences per transcript for the phone n-gram")
    seed: int = option(0, "flat start: seed of these draws")
    lm: PhoneLmOptions = field(default_factory=PhoneLmOptions, metadata={"help": "phone n-gram"})

    def __post_init__(self) -> None:
        require_choice("chain.context", self.context, CONTEXTS)
        require(self.tied or self.context != "triphone", "chain.tied", self.tied, "is not possible with triphones")
        require(self.subsampling >= 1, "chain.subsampling", self.subsampling, "must be at least 1")
        require(self.tolerance >= 0, "chain.tolerance", self.tolerance, "must be 0 or more")
        require(self.draws >= 1, "chain.draws", self.draws, "must be at least 1")
        require(self.seed >= 0, "chain.seed", self.seed, "must be 0 or more")

    @property
    def needs_tree(self) -> bool:
        return self.tied and self.context != "mono"


def chain_model(phones: tuple[str, ...], silence: str, context: str) -> HmmModel:
    """Chain HMMs whose pdfs are not tied: `mono`, or `biphone`, two for every phone after every left neighbour."""
    pdf = count()
    lefts = tuple(range(1, len(phones) + 1))

    def trees(phone: str) -> tuple[Node, Node]:
        return _by_left(lefts, pdf) if context == "biphone" and phone != silence else (next(pdf), next(pdf))

    by_phone = tuple(trees(phone) for phone in phones)
    num_pdfs = next(pdf)
    return HmmModel(num_pdfs, phones, silence, (2,) * len(phones), by_phone, np.full(num_pdfs, _STAY), "chain")


def _by_left(lefts: tuple[int, ...], pdf: Iterator[int]) -> tuple[Node, Node]:
    """Entry and loop tree that ask about the left neighbour until it is known."""
    if len(lefts) == 1:
        return next(pdf), next(pdf)
    half, rest = lefts[: len(lefts) // 2], lefts[len(lefts) // 2 :]
    (entry_yes, loop_yes), (entry_no, loop_no) = _by_left(half, pdf), _by_left(rest, pdf)
    question = frozenset(half)
    return Split("left", question, entry_yes, entry_no), Split("left", question, loop_yes, loop_no)


def tied_model(
    archive: FeatureArchive,
    alignments: dict[str, np.ndarray],
    old: HmmModel,
    options: ChainOptions,
    tree_options: TreeOptions,
) -> HmmModel:
    """Chain HMMs whose pdfs are tied by a tree that is grown on the alignments of a Bakis model.

    Args:
        archive: features of the utterances.
        alignments: utterance → (T,) phone-states of `old`.
        old: the model of the alignments.
        options: context and subsampling.
        tree_options: see TreeOptions.
    """
    stats = chain_stats(archive, alignments, old, options.subsampling)
    frames, first_D, second_D = np.split(stats.stats.sum(0), [1, 1 + archive.dim])
    variance_D = second_D / frames - (first_D / frames) ** 2
    mono = chain_model(old.phones, old.silence, "mono")
    tree = build_tree(stats, mono, TREE_FLOOR * variance_D, tree_options, _SIDES[options.context])
    return replace(tree, self_loop=np.full(tree.num_pdfs, _STAY))


def chain_stats(
    archive: FeatureArchive, alignments: dict[str, np.ndarray], old: HmmModel, subsampling: int
) -> ContextStats:
    """Statistics of all frames by context and class, 0 for entry and 1 for loop.

    The first `subsampling` frames of a phone are entry: whatever the phase of the output frames, one of them is the
    first that falls into the phone.
    """
    total: list[ContextStats] = []
    for chunk in chunks_by_length(archive.subset(alignments)):
        contexts = np.concatenate([_chain_contexts(alignments[name], old, subsampling) for name in chunk])
        feats = np.concatenate([archive[name] for name in chunk])
        total = [ContextStats.merged([*total, ContextStats.from_frames(contexts, feats)])]
    return total[0]


def _chain_contexts(state_T: np.ndarray, old: HmmModel, subsampling: int) -> np.ndarray:
    contexts_T4 = contexts_of(state_T, old)
    begin_N, _ = segments(state_T, old)
    age_T = np.arange(len(state_T)) - np.repeat(begin_N, np.diff(begin_N, append=len(state_T)))
    return np.concatenate([contexts_T4[:, :3], (age_T >= subsampling)[:, None]], axis=1)


def pdf_alignment(state_T: np.ndarray, old: HmmModel, hmm: HmmModel, subsampling: int) -> np.ndarray:
    """(T,) int32 pdf of every frame under a chain model: entry in a phone's first `subsampling` frames, then loop."""
    contexts = _chain_contexts(state_T, old, subsampling).tolist()
    return np.array([hmm.pdfs(left, phone, right)[kind] for left, phone, right, kind in contexts], dtype=np.int32)


def segments(state_T: np.ndarray, old: HmmModel) -> tuple[np.ndarray, np.ndarray]:
    """(N,) first frame and (N,) phone of every phone of a state alignment."""
    first_state = np.isin(state_T, old.first_state[:-1])
    begin_N = np.nonzero(first_state & (np.diff(state_T, prepend=-1) != 0))[0]
    return begin_N, old.phone_of_state()[state_T[begin_N]]


def phone_sequences(alignments: Iterable[np.ndarray], old: HmmModel) -> Iterator[tuple[int, ...]]:
    """The phones of state alignments, for the phone n-gram."""
    for state_T in alignments:
        yield tuple(segments(state_T, old)[1].tolist())


def drawn_phones(
    utterance: str, words: tuple[str, ...], lang: Lang, options: ChainOptions
) -> Iterator[tuple[int, ...]]:
    """The phones of `draws` readings of a transcript: pronunciations and silences by their probabilities."""
    random = np.random.default_rng([options.seed, zlib.crc32(utterance.encode())])
    for _ in range(options.draws):
        silent = (random.random(len(words) + 1) < lang.silence_probability) | (not words)
        names = [lang.silence] if silent[0] else []
        for word, followed in zip(words, silent[1:], strict=True):
            variants = lang.lexicon.variants[word]
            weights = np.array([variant.probability for variant in variants])
            names += variants[random.choice(len(variants), p=weights / weights.sum())].phones
            names += [lang.silence] if followed else []
        yield tuple(lang.phones[name] for name in names)
