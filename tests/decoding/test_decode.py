"""Decoding a folder: the same bytes for any number of jobs, every utterance present, bad input named."""

import json

import numpy as np
import pytest

from asr_hf.cli.main import run
from asr_hf.data.archive import write_matrices
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.data.kaldi_dir import read_transcripts
from asr_hf.decoding.acoustic import load_acoustic_model
from asr_hf.decoding.decode import decode_directory
from asr_hf.decoding.search import DecodingOptions
from asr_hf.errors import InputError
from asr_hf.hmm.chain import chain_model
from asr_hf.hmm.model import HmmModel
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.saved import save_model
from asr_hf.models.tdnn import TdnnOptions

OPTIONS = DecodingOptions(acoustic_scale=1.0)


def decode(task, out="out", options=OPTIONS, jobs=1):
    return decode_directory(task.feats, task.graph, task.model, task.out.parent / out, options, jobs)


def test_words_are_recognised_and_every_utterance_has_a_line(task):
    summary = decode(task)
    assert read_transcripts(task.out / "hyp.txt").keys() == task.transcripts.keys()
    hyps = read_transcripts(task.out / "hyp.txt")
    right = sum(hyps[utterance] == words for utterance, words in task.transcripts.items())
    assert right >= 10  # of 12
    assert (summary.utterances, summary.no_path, summary.unfinished) == (12, (), ())
    facts = json.loads((task.out / "decode.json").read_text())
    assert facts["options"]["acoustic_scale"] == 1.0
    assert facts["real_time_factor"] == summary.real_time_factor > 0


def test_jobs_do_not_change_a_byte(task):
    decode(task, "one")
    decode(task, "two", jobs=2)
    one, two = (task.out.parent / name / "hyp.txt" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size > 100


def test_an_utterance_whose_path_does_not_end_is_named(task):
    task.matrices["s0-u00"] = task.matrices["s0-u00"][:1]  # shorter than any word
    write_matrices(task.feats / "feats", sorted(task.matrices.items()))
    summary = decode(task)
    assert summary.unfinished == ("s0-u00",)
    assert "s0-u00" in str(summary)


def test_the_hypothesis_of_a_lost_path_is_its_id_alone(task, make_fst):
    make_fst([(0, 1, 1, 1, 0.0), (1, 2, 1, 0, 0.0), (2, 3, 1, 0, 0.0)], {3: 0.0}).write(str(task.graph / "HCLG.fst"))
    summary = decode(task)  # the graph now accepts three frames, no utterance has so few
    assert len(summary.no_path) == 12
    assert (task.out / "hyp.txt").read_text().splitlines() == sorted(task.transcripts)
    assert "12 without a surviving path" in str(summary)


@pytest.mark.parametrize("jobs", [1, 2])
def test_nan_features_are_named_and_earlier_results_stay(task, jobs):
    decode(task)
    before = (task.out / "hyp.txt").read_bytes()
    task.matrices["s1-u04"][2, 1] = np.nan
    write_matrices(task.feats / "feats", sorted(task.matrices.items()))
    with pytest.raises(InputError, match="s1-u04"):
        decode(task, jobs=jobs)
    assert (task.out / "hyp.txt").read_bytes() == before


def test_features_made_otherwise_are_refused(task):
    write_fingerprint(task.feats, FeatureOptions(num_mel_bins=4, deltas=1), 3, 8000)
    with pytest.raises(InputError, match="deltas"):
        decode(task)
    assert not task.out.exists()


def test_the_graph_of_another_model_is_refused(task):
    (task.graph / "graph.json").write_text(json.dumps({"num_pdfs": 4}))
    with pytest.raises(InputError, match=r"graph has 4 pdfs, the model .* 3"):
        decode(task)


def test_a_folder_without_a_model_is_refused(task):
    (task.model / "gmm.safetensors").unlink()
    with pytest.raises(InputError, match="holds no acoustic model"):
        decode(task)


def test_an_unwritable_folder_is_named(task):
    task.out.write_text("a file stands where the folder should")
    with pytest.raises(InputError, match="cannot write"):
        decode(task)
    assert task.out.read_text().startswith("a file")


def test_a_gmm_scores_by_its_density(task):
    x = task.matrices["s0-u00"]
    want = -0.5 * ((x[:, None] - 2 * np.eye(3)) ** 2).sum(-1) - 1.5 * np.log(2 * np.pi)
    assert np.allclose(load_acoustic_model(task.model).log_likelihoods(x), want, atol=1e-4)


def test_a_network_scores_by_posterior_over_prior_and_decodes(task):
    options = DnnOptions(hidden_layers=1, width=8, context=2)
    prior = np.log(np.array([0.7, 0.2, 0.1], dtype=np.float32))
    save_model(task.model, options.build(3, 3, seed=0), options, prior)
    HmmModel(num_pdfs=3).save(task.model)
    x = task.matrices["s0-u00"]
    scores = load_acoustic_model(task.model).log_likelihoods(x)
    assert np.allclose((np.exp(scores) * [0.7, 0.2, 0.1]).sum(1), 1.0, atol=1e-5)  # p(x|pdf) p(pdf) / p(x) sums to 1
    assert scores.dtype == np.float32
    assert decode(task).utterances == 12


def test_a_chain_model_scores_the_frames_it_has(task):
    options = TdnnOptions(contexts=[[-1, 0, 1]], width=8, subsampling=3)
    save_model(task.model, options.build(3, 4, seed=0), options, np.zeros(4, dtype=np.float32))
    x = task.matrices["s0-u00"]
    HmmModel(num_pdfs=4).save(task.model)
    every = load_acoustic_model(task.model).log_likelihoods(x)
    chain_model(("SIL", "a"), "SIL", "mono").save(task.model)
    own = load_acoustic_model(task.model).log_likelihoods(x)
    assert len(own) == -(-len(x) // 3)
    np.testing.assert_array_equal(own, every[::3])


def test_the_acoustic_scale_is_the_models_unless_told(task):
    def scale(*settings):
        run(["decode", *map(str, (task.feats, task.graph, task.model, task.out)), *settings])
        return json.loads((task.out / "decode.json").read_text())["options"]["acoustic_scale"]

    assert scale() == 0.1
    assert scale("decoding.acoustic_scale=0.5") == 0.5
    options = DnnOptions(hidden_layers=1, width=8, context=2)
    save_model(task.model, options.build(3, 3, seed=0), options, np.zeros(3, dtype=np.float32))
    HmmModel(num_pdfs=3, topology="chain").save(task.model)
    assert scale() == 1.0


def test_the_command_takes_the_tuned_scales(task, capsys):
    tuned = task.out.parent / "tuned.json"
    tuned.write_text(json.dumps({"acoustic_scale": 1.0, "word_penalty": 0.25}))
    line = ["decode", *map(str, (task.feats, task.graph, task.model, task.out)), "--tuned", str(tuned)]
    run([*line, "decoding.beam=20"])
    assert "12 utterances" in capsys.readouterr().out
    options = json.loads((task.out / "decode.json").read_text())["options"]
    assert (options["acoustic_scale"], options["word_penalty"], options["beam"]) == (1.0, 0.25, 20.0)
    with pytest.raises(InputError, match="both set a scale"):
        run([*line, "decoding.acoustic_scale=0.1"])
    tuned.write_text("{}")
    with pytest.raises(InputError, match=r"no tuned\.json"):
        run(line)
