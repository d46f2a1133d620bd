"""The decoding graph HCLG: from pdfs to words.

H (HMMs), C (phones in context), L (lexicon) and G (n-gram) are composed, determinised and minimised with disambiguation
symbols in place; these are then taken off and self-loops put on (Mohri, Pereira & Riley 2008; Povey et al. 2011, "The
Kaldi speech recognition toolkit", section 5). Costs are −log probabilities.

Input labels are unit + 1 (`HmmModel.units`) until self-loops are put on; then they are pdf + 1: an arc reads its unit's
entry pdf, the self-loop behind it the unit's loop pdf.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import kaldifst
import numpy as np

from asr_hf.data.folder import whole_folder
from asr_hf.errors import InputError
from asr_hf.hmm.alignment import require_same_phones
from asr_hf.hmm.fst import FstArrays, read_fst, write_fst
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.options import option, require


@dataclass
class GraphOptions:
    """Scales of the decoding graph."""

    self_loop_scale: float = option(0.1, "factor on the log probability of staying in an HMM state")
    transition_scale: float = option(0.1, "factor on the log probability of leaving an HMM state")
    word_penalty: float = option(0.0, "cost of every output word (natural log); decoding can add its own, tuned on dev")

    def __post_init__(self) -> None:
        for name in ("self_loop_scale", "transition_scale"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"graph.{name}", value, "must be 0 or more")
        require(abs(self.word_penalty) < float("inf"), "graph.word_penalty", self.word_penalty, "must be finite")


@dataclass(frozen=True)
class GraphReport:
    """Size of a decoding graph."""

    states: int
    arcs: int

    def __str__(self) -> str:
        return f"{self.states} states, {self.arcs} arcs"


def make_graph(
    lang_dir: Path | str, model_dir: Path | str, graph_dir: Path | str, options: GraphOptions
) -> GraphReport:
    """Compose HCLG of a model and a lexicon with its n-gram, and write GRAPH.

    Raises:
        InputError: the model and LANG have different phones, or no word sequence has a path.
    """
    lang, hmm = Lang.load(lang_dir), HmmModel.load(model_dir)
    require_same_phones(hmm, lang)
    hclg = compose_graph(lang, hmm, options)
    if len(hclg.src) == 0:
        raise InputError(f"the graph of {lang_dir} is empty: no word sequence has a path", "Check lexicon and lm.arpa.")
    with whole_folder(graph_dir, "graph.json") as folder:
        write_fst(hclg.to_fst(), folder / "HCLG.fst")
        shutil.copyfile(lang.folder / "words.txt", folder / "words.txt")
        report = GraphReport(len(hclg.final), len(hclg.src))
        facts = {"num_pdfs": hmm.num_pdfs, **asdict(options), **asdict(report)}
        (folder / "graph.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return report


def compose_graph(lang: Lang, hmm: HmmModel, options: GraphOptions) -> FstArrays:
    """HCLG with self-loops and word penalty; without arcs if no word sequence has a path."""
    lexicon, grammar = read_fst(lang.folder / "L_disambig.fst"), read_fst(lang.folder / "G.fst")
    kaldifst.arcsort(lexicon, sort_type="olabel")
    lg = _optimised(kaldifst.compose(lexicon, grammar))
    kaldifst.arcsort(lg, sort_type="ilabel")
    width = 3 if hmm.context else 1
    clg, windows = kaldifst.compose_context(lang.disambiguation, width, width // 2, lg)
    hmms, physical = _hmm_transducer(windows, hmm)
    arrays = FstArrays.from_fst(clg)
    arrays.ilabel = physical[arrays.ilabel]
    kaldifst.arcsort(hmms, sort_type="olabel")
    clg = arrays.to_fst()
    kaldifst.arcsort(clg, sort_type="ilabel")
    hclg = kaldifst.compose(hmms, clg)
    kaldifst.determinize_star(hclg)
    arrays = FstArrays.from_fst(hclg)
    arrays.ilabel = np.where(arrays.ilabel > len(hmm.units), 0, arrays.ilabel)  # disambiguation has done its work
    hclg = arrays.to_fst()
    kaldifst.minimize_encoded(hclg)
    graph = with_self_loops(FstArrays.from_fst(hclg), hmm, options)
    graph.cost = graph.cost + np.float32(options.word_penalty) * (graph.olabel != 0)
    return graph


def _optimised(fst: kaldifst.StdVectorFst) -> kaldifst.StdVectorFst:
    """Determinised and minimised, in place."""
    kaldifst.determinize_star(fst)
    kaldifst.minimize_encoded(fst)
    return fst


def _hmm_transducer(windows: list[list[int]], hmm: HmmModel) -> tuple[kaldifst.StdVectorFst, np.ndarray]:
    """H without self-loops, from unit + 1 to HMMs, and for each window of phones the number of its HMM.

    Windows with the same units are one HMM. A disambiguation symbol ([−n], or [0] where the context begins) passes
    through H under an input label above all units.
    """
    arcs: list[tuple[int, int, int, int, float]] = []
    number: dict[tuple[int, ...], int] = {}
    physical = np.zeros(len(windows), dtype=np.int32)
    free, free_symbol = 1, len(hmm.units) + 1
    for position, window in enumerate(windows):
        if not window:
            continue
        if len(window) == 1 and window[0] <= 0:
            key: tuple[int, ...] = (-1 - position,)
            units: tuple[int, ...] = ()
        else:
            key = units = hmm.units_of(*window) if len(window) == 3 else hmm.units_of(0, window[0], 0)
        seen = key in number
        physical[position] = known = number.setdefault(key, len(number) + 1)
        if seen:
            continue
        if not units:
            arcs.append((0, 0, free_symbol, known, 0.0))
            free_symbol += 1
            continue
        states = [0, *range(free, free + len(units) - 1), 0]
        free += len(units) - 1
        labels = [known] + [0] * (len(units) - 1)
        arcs.extend(
            (a, b, unit + 1, label, 0.0)
            for a, b, unit, label in zip(states[:-1], states[1:], units, labels, strict=True)
        )
    return FstArrays.from_lists(arcs, {0: 0.0}).to_fst(), physical


def with_self_loops(graph: FstArrays, hmm: HmmModel, options: GraphOptions) -> FstArrays:
    """Let every unit last several frames where it was read, charge staying and leaving, and put pdfs in its place.

    A state reached by arcs of one unit alone gets that unit's loop. Any other keeps its arcs behind an epsilon arc from
    a new state for each unit that reaches it, so that no loop is met on another way.
    """
    entry_U, loop_U = hmm.units.T
    entry_label, loop_label = (np.concatenate([[0], pdf_U + 1]) for pdf_U in (entry_U, loop_U))
    stay_U, leave_U = (log_P[entry_U] for log_P in hmm.log_stay_and_leave())
    labels = len(hmm.units) + 1
    reached = np.append(graph.dst.astype(np.int64) * labels + graph.ilabel, graph.start * labels)
    pairs, pair_of_arc = np.unique(reached, return_inverse=True)
    state, label = pairs // labels, pairs % labels
    alone = np.bincount(state, minlength=len(graph.final))[state] == 1
    moved = (label > 0) & ~alone
    place = np.where(moved, len(graph.final) + np.cumsum(moved) - 1, state)
    looped = label > 0
    none = np.zeros(int(moved.sum()))
    leave_cost = np.concatenate([[0.0], -options.transition_scale * leave_U])
    stay_cost = -options.self_loop_scale * stay_U[label[looped] - 1]
    return FstArrays(
        src=np.concatenate([graph.src, place[moved], place[looped]]).astype(np.int32),
        dst=np.concatenate([place[pair_of_arc[:-1]], state[moved], place[looped]]).astype(np.int32),
        ilabel=np.concatenate([entry_label[graph.ilabel], none, loop_label[label[looped]]]).astype(np.int32),
        olabel=np.concatenate([graph.olabel, none, np.zeros(int(looped.sum()))]).astype(np.int32),
        cost=np.concatenate([graph.cost + leave_cost[graph.ilabel], none, stay_cost]).astype(np.float32),
        final=np.concatenate([graph.final, np.full(len(none), np.inf)]).astype(np.float32),
        start=graph.start,
    )
