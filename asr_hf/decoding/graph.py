"""The decoding graph of a GRAPH folder, read and checked before any search walks over it."""

import json
from dataclasses import dataclass
from pathlib import Path

import kaldifst

from asr_hf.errors import InputError

REMEDY = "Make the graph again with asr-hf graph."


@dataclass(frozen=True)
class Graph:
    """A decoding graph: input labels pdf + 1 (0 is epsilon), output labels numbers of `words` (0 is epsilon)."""

    fst: kaldifst.StdVectorFst
    words: dict[int, str]
    num_pdfs: int
    name: str = "the graph"

    def __post_init__(self) -> None:
        """Refuse what a search would read out of bounds or cannot print (InputError)."""
        if self.fst.num_states == 0 or self.fst.start < 0:
            raise InputError(f"{self.name} is empty: no word sequence has a path", REMEDY)
        arcs = [
            (arc.ilabel, arc.olabel)
            for state in range(self.fst.num_states)
            for arc in kaldifst.ArcIterator(self.fst, state)
        ]
        highest = max((ilabel for ilabel, _ in arcs), default=0)
        if highest > self.num_pdfs:
            raise InputError(f"{self.name} has input label {highest} but only {self.num_pdfs} pdfs", REMEDY)
        unknown = {olabel for _, olabel in arcs} - {0} - self.words.keys()
        if unknown:
            raise InputError(f"{self.name} has output label {min(unknown)}, which words.txt does not name", REMEDY)


def read_words(path: Path) -> dict[int, str]:
    """Read a words.txt of lines `word number` into {number: word} (InputError names file and line)."""
    words = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split()
        if len(columns) != 2 or not columns[1].isdigit():
            raise InputError(f"{path}:{number}: '{line}' is not 'word number'", REMEDY)
        words[int(columns[1])] = columns[0]
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
    fst = kaldifst.StdVectorFst.read(str(folder / "HCLG.fst"))
    if fst is None:
        raise InputError(f"{folder / 'HCLG.fst'} is damaged or not an OpenFst vector FST", REMEDY)
    return Graph(fst, read_words(folder / "words.txt"), num_pdfs, str(folder / "HCLG.fst"))
