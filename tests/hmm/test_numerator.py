"""Label graphs and numerators against a list of all paths of the denominator, each held against the labels alone."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asr_hf.errors import InputError
from asr_hf.hmm.chain import chain_model
from asr_hf.hmm.chain_graph import ChainGraph, Numerator
from asr_hf.hmm.denominator import denominator_graph
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.lexicon import Lexicon, Pronunciation
from asr_hf.hmm.model import HmmModel, monophone_model
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.phone_lm import PhoneLmOptions, estimate_phone_lm
from asr_hf.hmm.supervision import LabelGraph, Supervision, from_alignment, from_transcript

Moves = tuple[tuple[int, bool], ...]  # of every frame: the state, and whether it was entered (or stayed in)
Path_ = tuple[int, Moves, float]  # state before the first frame, moves, weight
OLD = monophone_model(("SIL", "a", "b", "c"), "SIL", 2, 2)


@pytest.fixture
def denominator(phone_sentences: list[tuple[int, ...]], chain_hmm: HmmModel) -> ChainGraph:
    return denominator_graph(estimate_phone_lm(phone_sentences, PhoneLmOptions(extra_states=0)), chain_hmm)


def all_paths(
    graph: ChainGraph, frames: int, may_be_in: Callable[[int, int], bool] = lambda state, frame: True
) -> Iterator[Path_]:
    out: list[list[tuple[int, float]]] = [[] for _ in range(graph.states)]
    for src, dst, weight in zip(graph.src_A, graph.dst_A, graph.weight_A, strict=True):
        out[src].append((int(dst), float(weight)))

    def extend(state: int, moves: Moves, weight: float, first: int) -> Iterator[Path_]:
        if len(moves) == frames:
            yield first, moves, weight
            return
        steps = [((dst, True), weight * w) for dst, w in out[state]]
        if graph.stay_S[state]:
            steps.append(((state, False), weight * float(graph.stay_S[state])))
        for move, total in steps:
            if may_be_in(move[0], len(moves)):
                yield from extend(move[0], (*moves, move), total, first)

    for state in np.nonzero(graph.initial_S)[0].tolist():
        yield from extend(state, (), float(graph.initial_S[state]), state)


def read(graph: ChainGraph, paths: Iterator[Path_] | list[Path_]) -> dict[tuple[tuple[int, bool], ...], list[float]]:
    """Sorted weights of the paths by the pdfs that they read and where they enter a state."""
    found = defaultdict(list)
    for _, moves, weight in paths:
        key = tuple((int((graph.entry_S if enters else graph.loop_S)[s]), enters) for s, enters in moves)
        found[key].append(weight)
    return {key: sorted(weights) for key, weights in found.items()}


def numerator_paths(numerator: Numerator, frames: int) -> list[Path_]:
    within = lambda s, t: numerator.first_S[s] <= t <= numerator.last_S[s]  # noqa: E731
    return [path for path in all_paths(numerator.graph, frames, within) if numerator.final_S[path[1][-1][0]]]


def agree(found: dict, expected: dict) -> None:  # type: ignore[type-arg]
    assert set(found) == set(expected)
    for key, weights in expected.items():
        assert found[key] == pytest.approx(weights, rel=1e-12), key


class Piece:
    """What a piece of a label graph allows, place by place."""

    def __init__(self, labels: LabelGraph, graph: ChainGraph, first: int, frames: int, subsampling: int) -> None:
        self.labels, self.graph = labels, graph
        self.inputs = list(range(first, first + frames, subsampling))
        self.begins = first - subsampling < 0
        self.ends = self.inputs[-1] + subsampling >= labels.frames
        self.before = first - subsampling
        self.next: dict[int, list[int]] = defaultdict(list)
        for source, target in labels.edge_E2.tolist():
            self.next[source].append(target)

    def open(self, places: set[int], frame: int) -> bool:
        window = self.labels.window_K2[sorted(places)]
        return bool(window[:, 0].min() <= frame < window[:, 1].max())

    def unit(self, state: int) -> tuple[int, int]:
        return int(self.graph.entry_S[state]), int(self.graph.loop_S[state])

    def with_unit(self, places: list[int], state: int) -> set[int]:
        return {place for place in places if tuple(self.labels.unit_K2[place]) == self.unit(state)}

    def allows(self, path: Path_) -> bool:
        """Whether a path fits the labels, where places that cannot be told apart share their windows."""
        initial, moves, _ = path
        if self.begins:
            if not moves[0][1]:
                return False
            following = np.nonzero(self.labels.starts_K)[0].tolist()
            places: set[int] = set()
        else:
            everywhere = [k for k in range(self.labels.places) if self.open({k}, self.before)]
            places = self.with_unit(everywhere, initial) if self.graph.stay_S[initial] else set()
            if not places:
                return False
            following = [target for place in places for target in self.next[place]]
        for (state, enters), frame in zip(moves, self.inputs, strict=True):
            if enters:
                places = self.with_unit(following, state)
                following = [target for place in places for target in self.next[place]]
            if not places or not self.open(places, frame):
                return False
        return not self.ends or bool(self.labels.ends_K[sorted(places)].any())

    def allows_strictly(self, path: Path_) -> bool:
        """Whether places within their own windows spell the path."""
        initial, moves, _ = path

        def spell(place: int, rest: list[tuple[tuple[int, bool], int]]) -> bool:
            if not rest:
                return not self.ends or bool(self.labels.ends_K[place])
            (state, enters), frame = rest[0]
            onward = self.next[place] if enters else [place]
            return any(self.open({k}, frame) and self.with_unit([k], state) and spell(k, rest[1:]) for k in onward)

        rest = list(zip(moves, self.inputs, strict=True))
        if self.begins:
            self.next[-1] = np.nonzero(self.labels.starts_K)[0].tolist()
            return moves[0][1] and spell(-1, rest)
        starts = [k for k in range(self.labels.places) if self.open({k}, self.before) and self.with_unit([k], initial)]
        return bool(self.graph.stay_S[initial]) and any(spell(k, rest) for k in starts)


def check(labels: LabelGraph, graph: ChainGraph, paths: list[Path_], first: int, frames: int, s: int) -> int:
    """Compare the numerator of a piece with the list; returns how many paths it has."""
    piece = Piece(labels, graph, first, frames, s)
    allowed = [path for path in paths if piece.allows(path)]
    assert all(piece.allows(path) for path in paths if piece.allows_strictly(path))
    if piece.begins:  # what came before is summed
        summed: dict[Moves, float] = defaultdict(float)
        for _, moves, weight in allowed:
            summed[moves] += weight
        allowed = [(-1, moves, weight) for moves, weight in summed.items()]
    numerator = Composer(graph).numerator(labels, first, frames, s)
    assert numerator.graph.initial_S.sum() <= 1 + 1e-12
    found = numerator_paths(numerator, len(piece.inputs))
    agree(read(numerator.graph, found), read(graph, allowed))
    trimmed(numerator, found, len(piece.inputs))
    return len(found)


def trimmed(numerator: Numerator, paths: list[Path_], frames: int) -> None:
    """Every state is on some path, at its first and its last frame, and so is every transition."""
    at: dict[int, set[int]] = defaultdict(set)
    taken = set()
    for initial, moves, _ in paths:
        at[initial].add(-1)
        for t, (state, enters) in enumerate(moves):
            at[state].add(t)
            if enters:
                taken.add((moves[t - 1][0] if t else initial, state))
    assert set(at) == set(range(numerator.graph.states))
    assert taken == set(zip(numerator.graph.src_A.tolist(), numerator.graph.dst_A.tolist(), strict=True))
    for state, times in at.items():
        after = times - {-1}
        assert (min(after), max(after)) == (numerator.first_S[state], numerator.last_S[state]) if after else True
        assert after or numerator.last_S[state] < numerator.first_S[state]


def aligned(phones: tuple[int, ...], lengths: tuple[int, ...]) -> np.ndarray:
    """A state alignment of phones of these many frames, of which half are of each state."""
    states = [2 * (p - 1) + (2 * t >= n) for p, n in zip(phones, lengths, strict=True) for t in range(n)]
    return np.array(states)


def test_numerators_of_alignments_have_just_the_paths_that_fit(
    denominator: ChainGraph, chain_hmm: HmmModel, phone_sentences: list[tuple[int, ...]]
) -> None:
    random = np.random.default_rng(1)
    paths = {frames: list(all_paths(denominator, frames)) for frames in (1, 2, 3)}
    total = whole = 0
    for phones in phone_sentences[:12]:
        lengths = tuple(int(n) for n in random.integers(2, 5, size=len(phones)))
        frames, tolerance = sum(lengths), int(random.integers(0, 4))
        labels = from_alignment(aligned(phones, lengths), OLD, chain_hmm, tolerance)
        for s in (1, 3):
            if frames <= 3 * s:
                whole += check(labels, denominator, paths[-(-frames // s)], 0, frames, s)
            for first in {0, 1, int(random.integers(frames)), max(frames - 2 * s, 0)}:
                piece = min(frames - first, int(random.integers(1, 3 * s + 1)))
                total += check(labels, denominator, paths[-(-piece // s)], first, piece, s)
    assert whole > 5
    assert total > 300


def test_windows_are_those_of_the_alignment_and_the_tolerance(chain_hmm: HmmModel) -> None:
    labels = from_alignment(aligned((1, 3, 3, 2), (4, 2, 3, 5)), OLD, chain_hmm, 3)
    assert labels.window_K2.tolist() == [[0, 7], [1, 9], [3, 12], [6, 14]]
    assert labels.edge_E2.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert (labels.frames, labels.starts_K.tolist()) == (14, [True, False, False, False])
    assert labels.ends_K.tolist() == [False, False, False, True]
    contexts = [(0, 1, 3), (1, 3, 3), (3, 3, 2), (3, 2, 0)]
    assert labels.unit_K2.tolist() == [list(chain_hmm.pdfs(*context)) for context in contexts]


def test_a_numerator_is_never_more_than_the_denominator(
    denominator: ChainGraph, chain_hmm: HmmModel, phone_sentences: list[tuple[int, ...]]
) -> None:
    """For any outputs: sums of the weights times the outputs' exponentials."""
    random = np.random.default_rng(3)
    composer = Composer(denominator)
    for phones in phone_sentences:
        labels = from_alignment(aligned(phones, (4,) * len(phones)), OLD, chain_hmm, 5)
        for first, frames in ((0, labels.frames), (labels.frames // 2, labels.frames - labels.frames // 2)):
            numerator = composer.numerator(labels, first, frames, 3)
            x = np.exp(random.normal(scale=4.0, size=(-(-frames // 3), chain_hmm.num_pdfs)))
            everything = Numerator(denominator, np.zeros(denominator.states), np.full(denominator.states, len(x)),
                                   np.ones(denominator.states, bool))  # fmt: skip
            assert 0 < total_weight(numerator, x) <= total_weight(everything, x) * (1 + 1e-12)


def total_weight(numerator: Numerator, x_TP: np.ndarray) -> float:
    graph, now = numerator.graph, numerator.graph.initial_S.copy()
    for t, x_P in enumerate(x_TP):
        then = x_P[graph.loop_S] * graph.stay_S * now
        np.add.at(then, graph.dst_A, x_P[graph.entry_S][graph.dst_A] * graph.weight_A * now[graph.src_A])
        now = then * ((numerator.first_S <= t) & (t <= numerator.last_S))
    return float(now[numerator.final_S].sum())


LANG = Lang(
    Path(),
    {},
    {"<eps>": 0, "SIL": 1, "a": 2, "b": 3, "c": 4},
    Lexicon(
        tuple(
            Pronunciation(word, p, tuple(phones))
            for word, p, phones in (("A", 1.0, "a"), ("A", 0.5, "aa"), ("B", 1.0, "b"), ("B", 0.2, "ab"))
        )
    ),
    "SIL",
    0.4,
    "",
)


def readings(words: tuple[str, ...]) -> Iterator[tuple[int, ...]]:
    """Phone numbers of every way to read a transcript."""
    for variants in itertools.product(*(LANG.lexicon.variants[word] for word in words)):
        for silent in itertools.product((False, True), repeat=len(words) + 1):
            names = ["SIL"] * silent[0]
            for variant, followed in zip(variants, silent[1:], strict=True):
                names += [*variant.phones, *["SIL"] * followed]
            if names:
                yield tuple(LANG.phones[name] for name in names)


@pytest.mark.parametrize("words", [("A",), ("A", "A"), ("A", "B"), ()], ids=str)
def test_a_transcript_allows_each_path_of_its_readings_once(words: tuple[str, ...], chain_hmm: HmmModel) -> None:
    """Repeated phones and variants spell the same phones in several ways."""
    data = [phones for text in (("A", "A"), ("A", "B"), ("A",), ("B", "A")) for phones in readings(text)]
    graph = denominator_graph(estimate_phone_lm([*data, (1,)], PhoneLmOptions(extra_states=3)), chain_hmm)
    spelled = set()
    for phones in readings(words):
        padded = (0, *phones, 0)
        spelled.add(tuple(chain_hmm.pdfs(*padded[k : k + 3]) for k in range(len(phones))))
    summed: dict[Moves, float] = defaultdict(float)
    for _, moves, weight in all_paths(graph, 3):
        entered = tuple((int(graph.entry_S[s]), int(graph.loop_S[s])) for s, enters in moves if enters)
        if moves[0][1] and entered in spelled:
            summed[moves] += weight
    labels = from_transcript(words, LANG, chain_hmm, 9)
    assert labels is not None
    assert labels.fits(3) == (len(summed) > 0)
    numerator = Composer(graph).numerator(labels, 0, 9, 3)
    expected = [(-1, moves, weight) for moves, weight in summed.items()]
    found = numerator_paths(numerator, 3)
    agree(read(numerator.graph, found), read(graph, expected))
    trimmed(numerator, found, 3)
    assert len(found) > 2


def test_what_the_denominator_does_not_hold_has_no_paths(chain_hmm: HmmModel) -> None:
    graph = denominator_graph(estimate_phone_lm([(1, 2, 3), (2, 2), (4, 3)], PhoneLmOptions()), chain_hmm)
    for phones in ((1, 4, 2), (4, 4), (3, 2, 1)):
        labels = from_alignment(aligned(phones, (6,) * len(phones)), OLD, chain_hmm, 2)
        numerator = Composer(graph).numerator(labels, 0, labels.frames, 3)
        assert (numerator.graph.states, len(numerator.graph.src_A), len(numerator.final_S)) == (0, 0, 0)


def test_pieces_outside_the_utterance_are_refused(denominator: ChainGraph, chain_hmm: HmmModel) -> None:
    labels = from_alignment(aligned((1, 2), (4, 4)), OLD, chain_hmm, 2)
    for first, frames in ((0, 9), (-1, 3), (4, 0), (8, 1)):
        with pytest.raises(ValueError, match="of 8"):
            Composer(denominator).numerator(labels, first, frames, 3)


def test_an_utterance_fits_if_its_places_can_share_the_output_frames() -> None:
    """In each of its copies, which begin 0 … s − 1 frames late: one of them alone may have a frame too few."""
    random = np.random.default_rng(6)
    outcomes, some = [], 0
    for _ in range(300):
        places, frames, s = (int(n) for n in (random.integers(1, 5), random.integers(3, 15), random.integers(1, 4)))
        begin_K = np.sort(random.integers(-5, frames, size=places)).clip(0)
        end_K = np.minimum(begin_K + random.integers(4, 12, size=places), frames)
        edge_E2 = np.array([(a, b) for a in range(places) for b in range(a + 1, places) if b == a + 1 or a % 2])
        labels = LabelGraph(
            frames, np.zeros((places, 2), int), np.stack([begin_K, end_K], axis=1), np.arange(places) < 2,
            np.arange(places) == places - 1, edge_E2.reshape(-1, 2).astype(int),
        )  # fmt: skip
        edges = {(a, a) for a in range(places)} | {(a, b) for a, b in labels.edge_E2.tolist()}
        copies = []
        for shift in range(s):
            now = {place for place in (0, 1) if place < places and begin_K[place] <= shift < end_K[place]}
            for frame in range(shift + s, frames, s):
                now = {b for a, b in edges if a in now and begin_K[b] <= frame < end_K[b]}
            copies.append(places - 1 in now)
        outcomes.append(all(copies))
        some += any(copies) and not all(copies)
        assert labels.fits(s) == outcomes[-1]
    assert 60 < sum(outcomes) < 225
    assert some > 10


def test_a_transcript_without_phones_has_no_label_graph() -> None:
    hmm = chain_model(LANG.phone_names, "SIL", "mono")
    assert from_transcript((), replace(LANG, silence_probability=0.0), hmm, 9) is None


def test_saved_supervision_is_read_back_and_a_damaged_one_refused(chain_hmm: HmmModel, tmp_path: Path) -> None:
    graphs: dict[str, LabelGraph] = {"ü-2": from_alignment(aligned((1, 2, 3), (4, 4, 2)), OLD, chain_hmm, 2)}
    for name, words in (("u-1", ("A", "B")), ("u-3", ("A",))):
        labels = from_transcript(words, LANG, chain_hmm, 30)
        assert labels is not None
        graphs[name] = labels
    Supervision.of(graphs).save(tmp_path)
    again = Supervision.load(tmp_path)
    assert list(again) == sorted(graphs)
    assert len(again) == 3
    assert "u-2" not in again
    for name, labels in graphs.items():
        assert again[name].frames == labels.frames
        for field in ("unit_K2", "window_K2", "starts_K", "ends_K", "edge_E2"):
            assert np.array_equal(getattr(again[name], field), getattr(labels, field))
    path = tmp_path / "supervision.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="is damaged"):
        Supervision.load(tmp_path)
    with pytest.raises(InputError, match="is missing"):
        Supervision.load(tmp_path / "nowhere")
    supervision = Supervision.of(graphs)
    supervision._arrays["places_U"] = supervision._arrays["places_U"] + 1
    supervision.save(tmp_path)
    with pytest.raises(InputError, match="different lengths"):
        Supervision.load(tmp_path)
    supervision = Supervision.of(graphs)
    supervision._arrays["edge_E2"][-1, 1] += 1
    supervision.save(tmp_path)
    with pytest.raises(InputError, match="places that there are not"):
        Supervision.load(tmp_path)


def test_a_full_biphone_has_two_pdfs_for_every_left_neighbour() -> None:
    hmm = chain_model(("SIL", "a", "b", "c", "d"), "SIL", "biphone")
    assert hmm.num_pdfs == 2 * (4 * 5 + 1)
    found = [hmm.pdfs(left, phone, 3) for phone in range(1, 6) for left in range(1, 6 if phone > 1 else 2)]
    assert sorted(pdf for pair in found for pdf in pair) == list(range(hmm.num_pdfs))
    assert hmm.pdfs(0, 3, 2) == hmm.pdfs(1, 3, 5)
    assert hmm.pdfs(2, 1, 3) == hmm.pdfs(4, 1, 1)
    assert hmm.units.tolist() == sorted(list(pair) for pair in set(found))
