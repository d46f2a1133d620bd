"""What is refused before a search walks over a graph."""

import json

import kaldifst
import pytest

from asr_hf.decoding.graph import Graph, read_graph
from asr_hf.errors import InputError


def test_a_good_graph_is_read(task):
    graph = read_graph(task.graph)
    assert (graph.num_pdfs, graph.words[3], graph.fst.num_states) == (3, "three", 10)


@pytest.mark.parametrize("name", ["HCLG.fst", "words.txt", "graph.json"])
def test_a_missing_or_damaged_file_is_named(task, name):
    path = task.graph / name
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(InputError, match=name):
        read_graph(task.graph)
    path.unlink()
    with pytest.raises(InputError, match=name):
        read_graph(task.graph)


def test_an_empty_graph_is_refused(task):
    kaldifst.StdVectorFst().write(str(task.graph / "HCLG.fst"))
    with pytest.raises(InputError, match="empty"):
        read_graph(task.graph)


def test_labels_outside_their_tables_are_refused(task, make_fst):
    (task.graph / "graph.json").write_text(json.dumps({"num_pdfs": 2}))
    with pytest.raises(InputError, match="input label 3 but only 2 pdfs"):
        read_graph(task.graph)
    with pytest.raises(InputError, match="output label 5"):
        Graph(make_fst([(0, 0, 1, 5, 0.0)], {0: 0.0}), {1: "a"}, 1)
