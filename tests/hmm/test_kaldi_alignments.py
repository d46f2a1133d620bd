import gzip
import io
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from asr_hf.data.archive import read_int_vectors, write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import read_fingerprint, write_fingerprint
from asr_hf.errors import InputError
from asr_hf.hmm.kaldi_alignments import import_kaldi_alignments, read_transition_model
from asr_hf.hmm.model import HmmModel

# phone 1: two emitting states, the first with a skip; phone 2: one
TOPOLOGY = """\
<TransitionModel>
<Topology>
<TopologyEntry>
<ForPhones>
1
</ForPhones>
<State> 0 <PdfClass> 0 <Transition> 0 0.5 <Transition> 1 0.4 <Transition> 2 0.1 </State>
<State> 1 <PdfClass> 1 <Transition> 1 0.5 <Transition> 2 0.5 </State>
<State> 2 </State>
</TopologyEntry>
<TopologyEntry>
<ForPhones> 2 </ForPhones>
<State> 0 {pdf_class} <Transition> 0 0.75 <Transition> 1 0.25 </State>
<State> 1 </State>
</TopologyEntry>
</Topology>
"""
TRIPLES = (
    TOPOLOGY.format(pdf_class="<PdfClass> 0")
    + "<Triples> 4\n1 0 2\n1 0 3\n1 1 0\n2 0 1\n</Triples>\n"
    + "<LogProbs>\n [ 0 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 ]\n</LogProbs>\n</TransitionModel>\n<DIMENSION> 39 …\n"
)
TUPLES = (
    TOPOLOGY.format(pdf_class="<ForwardPdfClass> 0 <SelfLoopPdfClass> 1")
    + "<Tuples> 3\n1 0 2 2\n1 1 0 0\n2 0 1 3\n</Tuples>\n"
    + "<LogProbs>\n [ 0 -1 -1 -1 -1 -1 -1 -1 ]\n</LogProbs>\n</TransitionModel>\n"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "final.txt"
    path.write_text(TRIPLES, encoding="utf-8")
    return path


def write_ark(path: Path, vectors: dict[str, list[int]]) -> Path:
    arrays = {utterance: np.array(vector, dtype=np.int32) for utterance, vector in vectors.items()}
    if path.suffix == ".gz":
        data = io.BytesIO()
        kaldiio.save_ark(data, arrays)
        path.write_bytes(gzip.compress(data.getvalue()))
    else:
        kaldiio.save_ark(str(path), arrays)
    return path


def test_transition_ids_count_the_transitions_of_each_triple(model: Path) -> None:
    read = read_transition_model(model)
    # ids 1-3: triple 0 (self, next, skip), 4-6: triple 1, 7-8: triple 2, 9-10: triple 3
    assert read.pdf_of.tolist() == [-1, 2, 2, 2, 3, 3, 3, 0, 0, 1, 1]
    assert read.tuple_of.tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert read.num_pdfs == 4


def test_self_loops_of_tuples_have_their_own_pdf(model: Path) -> None:
    model.write_text(TUPLES)
    read = read_transition_model(model)
    assert read.pdf_of.tolist() == [-1, 2, 2, 2, 0, 0, 3, 1]
    assert read.table.tolist() == [[1, 0, 2, 2], [1, 1, 0, 0], [2, 0, 1, 3]]


@pytest.mark.parametrize("suffix", ["ark", "gz"])
def test_transition_ids_become_pdfs(tmp_path: Path, model: Path, suffix: str) -> None:
    ids = {"u2": [1, 1, 2, 7, 8], "u1": [9, 9, 10, 4]}
    report = import_kaldi_alignments([write_ark(tmp_path / f"ali.1.{suffix}", ids)], model, tmp_path / "ali")
    assert (report.utterances, report.frames) == (2, 9)
    found = read_int_vectors(tmp_path / "ali" / "pdf.scp")
    assert {utterance: vector.tolist() for utterance, vector in found.items()} == {
        "u1": [1, 1, 1, 3],
        "u2": [2, 2, 2, 0, 0],
    }
    assert HmmModel.load(tmp_path / "ali").num_pdfs == 4


def test_pdfs_of_several_arks_are_kept(tmp_path: Path, model: Path) -> None:
    arks = [write_ark(tmp_path / "a.ark", {"u1": [0, 3, 1]}), write_ark(tmp_path / "b.ark", {"u2": [2, 2]})]
    import_kaldi_alignments(arks, model, tmp_path / "ali")
    assert read_int_vectors(tmp_path / "ali" / "pdf.scp")["u1"].tolist() == [0, 3, 1]
    again = import_kaldi_alignments([tmp_path / "ali" / "pdf.scp"], model, tmp_path / "again")
    assert again.utterances == 2


def test_numbers_that_could_be_either_need_a_word(tmp_path: Path, model: Path) -> None:
    ark = write_ark(tmp_path / "a.ark", {"u1": [1, 2, 3]})
    with pytest.raises(InputError, match="--labels"):
        import_kaldi_alignments([ark], model, tmp_path / "ali")
    import_kaldi_alignments([ark], model, tmp_path / "ali", labels="pdf")
    assert read_int_vectors(tmp_path / "ali" / "pdf.scp")["u1"].tolist() == [1, 2, 3]
    import_kaldi_alignments([ark], model, tmp_path / "ali", labels="transition")
    assert read_int_vectors(tmp_path / "ali" / "pdf.scp")["u1"].tolist() == [2, 2, 2]


def test_alignment_longer_than_features_is_named(tmp_path: Path, model: Path) -> None:
    feats = tmp_path / "feats"
    write_matrices(feats / "feats", [("u1", np.zeros((3, 2))), ("u2", np.zeros((2, 2)))])
    write_fingerprint(feats, FeatureOptions(), 2, 8000)
    ark = write_ark(tmp_path / "a.ark", {"u1": [0, 3, 1], "u2": [2, 2, 0]})
    with pytest.raises(InputError, match=r"utterance u2 has 3 frames, longer than its features with 2"):
        import_kaldi_alignments([ark], model, tmp_path / "ali", feats)
    assert not (tmp_path / "ali").exists()
    fitting = write_ark(tmp_path / "b.ark", {"u1": [0, 3, 1]})
    assert import_kaldi_alignments([fitting], model, tmp_path / "ali", feats).left_out == ["u2"]
    assert read_fingerprint(tmp_path / "ali") == read_fingerprint(feats)


def test_bad_alignments_are_named(tmp_path: Path, model: Path) -> None:
    good = write_ark(tmp_path / "a.ark", {"u1": [0, 1]})
    with pytest.raises(InputError, match=r"utterance u1 is there twice"):
        import_kaldi_alignments([good, good], model, tmp_path / "ali")
    beyond = write_ark(tmp_path / "b.ark", {"u1": [0, 1], "u7": [0, 4]})
    with pytest.raises(InputError, match="u7"):
        import_kaldi_alignments([beyond], model, tmp_path / "ali", labels="pdf")
    cut = tmp_path / "c.ark"
    cut.write_bytes(good.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"c\.ark"):
        import_kaldi_alignments([cut], model, tmp_path / "ali")
    with pytest.raises(InputError, match=r"no\.ark"):
        import_kaldi_alignments([tmp_path / "no.ark"], model, tmp_path / "ali")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<Triples> 4", "<Triples> 5", r":22: .*announces 5 rows"),
        ("2 0 1\n", "3 0 1\n", "phone 3"),
        ("1 0 2\n", "1 x 2\n", r":18: .*'x'"),
        ("-1 ]", "-1 -1 ]", "11 transition-ids by <LogProbs> but 10"),
        ("<Topology>", "<Trees>", "<Topology>"),
        ("<State> 1 <PdfClass> 1", "<State> 2 <PdfClass> 1", "not numbered"),
        ("<TransitionModel>", "\0B<TransitionModel>", "binary"),
    ],
)
def test_damaged_models_are_refused_with_their_line(model: Path, old: str, new: str, says: str) -> None:
    model.write_text(TRIPLES.replace(old, new, 1))
    with pytest.raises(InputError, match=says) as caught:
        read_transition_model(model)
    assert str(model) in str(caught.value)
