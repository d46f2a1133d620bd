"""The decoding graph of a GRAPH folder, read and checked before any search walks over it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import kaldifst

from asr_hf.data.table import read_table
from asr_hf.errors import InputError
from asr_hf.hmm.fst import FstArrays, add_word_penalty, read_fst

REMEDY = "Make the graph again with asr-hf graph."


@dataclass(frozen=True)
class Graph:
    """A decoding graph: input labels pdf + 1 (0 is epsilon), output labels numbers of `words` (0 is epsilon)."""

    fst: kaldifst.StdVectorFst
    words: dict[int, str]
    num_pdfs: int
    name: str = "the graph"
    _penalised: dict[float, kaldifst.StdVectorFst] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what a search would read out of bounds or cannot print (InputError)."""
        if self.fst.num_states == 0 or self.fst.start < 0:
            raise InputError(f"{self.name} is empty: no word sequence has a path", REMEDY)
        arcs = FstArrays.from_fst(self.fst)
        highest = arcs.ilabel.max(initial=0)
        if highest > self.num_pdfs:
            raise InputError(f"{self.name} has input label {highest} but only {self.num_pdfs} pdfs", REMEDY)
        unknown = set(arcs.olabel.tolist()) - {0} - self.words.keys()
        if unknown:
            raise InputError(f"{self.name} has output label {min(unknown)}, which words.txt does not name", REMEDY)

    def penalised(self, word_penalty: float) -> kaldifst.StdVectorFst:
        """The graph with a cost for every output word; made once for each penalty."""
        if word_penalty not in self._penalised:
            self._penalised[word_penalty] = add_word_penalty(self.fst, word_penalty)
        return self._penalised[word_penalty]


def read_words(path: Path) -> dict[int, str]:
    """Read a words.txt of lines `word number` into {number: word} (InputError names file and line)."""
    words = {}
    for word, entry in read_table(path).items():
        if not entry.value.isdecimal():
            raise InputError(f"{path}:{entry.line}: '{word} {entry.value}' is not 'word number'", REMEDY)
        words[int(entry.value)] = word
    return words


def read_graph(graph_dir: Path | str) -> Graph:
    """Read GRAPH: HCLG.fst, words.txt and graph.json.

    Raises:
        InputError: a file is missing or unreadable, the graph is empty, or a label lies outside its table.
    """
    folder = Path(graph_dir)
    for name in ("HCLG.fst", "words.txt", "graph.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no decoding graph: it has no {name}", REMEDY)
    try:
        num_pdfs = int(json.loads((folder / "graph.json").read_text())["num_pdfs"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'graph.json'} does not give num_pdfs", REMEDY) from None
    fst = read_fst(folder / "HCLG.fst")
    return Graph(fst, read_words(folder / "words.txt"), num_pdfs, str(folder / "HCLG.fst"))
