"""Flat start, triphones and alignment from end to end on toy speech, and on AN4 where it is."""

import filecmp
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asr_hf.cli.main import main
from asr_hf.data.archive import FeatureArchive, read_int_vectors, write_int_vectors, write_matrices
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm import alignment
from asr_hf.hmm.alignment import align
from asr_hf.hmm.flat_start import equal_alignment, train_mono
from asr_hf.hmm.gmm import Gmm, GmmOptions
from asr_hf.hmm.lang import Lang, LangOptions, make_lang
from asr_hf.hmm.model import HmmModel, monophone_model
from asr_hf.hmm.tree import TreeOptions
from asr_hf.hmm.triphone import train_tri
from asr_hf.hmm.viterbi_em import PassReport

QUICK = GmmOptions(gaussians=2, first_passes=6, passes=2)
TREE = TreeOptions(leaves=25, min_occupancy=15, min_gain=5)
MODEL_FILES = ("hmm.json", "gmm.safetensors", "pdf.ark", "state.ark", "features.json")


def change_feats(feats: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    archive = FeatureArchive(feats / "feats.scp")
    write_matrices(feats / "feats", [(name, change(name, np.array(archive[name]))) for name in archive])


def test_models_are_the_same_bit_for_bit_with_one_job_and_two(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "_MOST_UTTERANCES", 10)  # several chunks
    for jobs in (1, 2):
        train_mono(toy_feats, toy_lang.folder, tmp_path / f"mono{jobs}", QUICK, jobs)
        train_tri(toy_feats, toy_lang.folder, tmp_path / f"mono{jobs}", tmp_path / f"tri{jobs}", QUICK, TREE, jobs)
    for name in MODEL_FILES:
        assert filecmp.cmp(tmp_path / "mono1" / name, tmp_path / "mono2" / name, shallow=False), name
        assert filecmp.cmp(tmp_path / "tri1" / name, tmp_path / "tri2" / name, shallow=False), name


def test_training_raises_the_likelihood_and_context_raises_it_more(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path
) -> None:
    passes: list[PassReport] = []
    mono = train_mono(toy_feats, toy_lang.folder, tmp_path / "mono", QUICK, 1, passes.append)
    levels = [line.log_likelihood for line in passes]
    assert len(passes) == QUICK.first_passes + QUICK.passes
    assert [line.realigned for line in passes[:3]] == [False, True, True]
    assert np.diff(levels[1:6]).min() > -1e-3  # Viterbi EM with one Gaussian per pdf
    assert mono.log_likelihood > levels[0] + 1.0
    assert mono.left_out == []
    tri = train_tri(toy_feats, toy_lang.folder, tmp_path / "mono", tmp_path / "tri", QUICK, TREE)
    assert 15 < tri.num_pdfs <= 25
    assert tri.log_likelihood > mono.log_likelihood + 0.2
    assert "log-likelihood/frame" in str(passes[0])


def test_the_model_is_an_alignment_of_its_training_set(tmp_path: Path, toy_lang: Lang, toy_feats: Path) -> None:
    train_mono(toy_feats, toy_lang.folder, tmp_path / "mono", QUICK)
    hmm, gmm = HmmModel.load(tmp_path / "mono"), Gmm.load(tmp_path / "mono")
    report = align(toy_feats, toy_lang.folder, hmm, gmm.log_likelihoods, tmp_path / "ali")
    archive = FeatureArchive(toy_feats / "feats.scp")
    assert (report.utterances, report.left_out) == (48, [])
    assert report.frames == sum(archive.num_frames(name) for name in archive)
    own, again = (read_int_vectors(tmp_path / name / "pdf.scp") for name in ("mono", "ali"))
    states = read_int_vectors(tmp_path / "ali" / "state.scp")
    agreeing = sum(int((own[name] == again[name]).sum()) for name in archive)
    assert agreeing > 0.98 * report.frames  # the self-loops were updated after the model's own alignment
    for name in archive:
        assert len(again[name]) == archive.num_frames(name)
        assert np.array_equal(states[name], again[name])  # a monophone has one pdf for each state
    assert FeatureArchive(toy_feats / "feats.scp").dim == gmm.dim
    assert (tmp_path / "ali" / "features.json").is_file()


def test_too_short_utterances_are_named_and_left_out(tmp_path: Path, toy_lang: Lang, toy_feats: Path) -> None:
    change_feats(toy_feats, lambda name, feats: feats[:4] if name in ("u001", "u005") else feats)
    mono = train_mono(toy_feats, toy_lang.folder, tmp_path / "mono", QUICK)
    assert mono.left_out == ["u001", "u005"]
    assert "left out as too short (2): u001, u005" in str(mono)
    assert len(read_int_vectors(tmp_path / "mono" / "pdf.scp")) == 46
    tri = train_tri(toy_feats, toy_lang.folder, tmp_path / "mono", tmp_path / "tri", QUICK, TREE)
    assert tri.left_out == ["u001", "u005"]
    change_feats(toy_feats, lambda _, feats: feats[:2])
    with pytest.raises(InputError, match="no utterance could be aligned"):
        train_mono(toy_feats, toy_lang.folder, tmp_path / "none", QUICK)
    assert not (tmp_path / "none").exists()


def test_bad_training_input_is_named_and_leaves_the_earlier_model(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path
) -> None:
    model = tmp_path / "mono"
    train_mono(toy_feats, toy_lang.folder, model, QUICK)
    before = (model / "gmm.safetensors").read_bytes()
    text = (toy_feats / "text").read_text()
    (toy_feats / "text").write_text(text.replace("u003 DID", "u003 DAD"))
    with pytest.raises(InputError, match=r"u003 has the word DAD"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK)
    (toy_feats / "text").write_text(text.replace("u004 RED RED\n", ""))
    with pytest.raises(InputError, match="no transcript of utterance u004"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK)
    (toy_feats / "text").write_text(text)
    with pytest.raises(OptionError, match="--jobs"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK, jobs=0)
    change_feats(toy_feats, lambda name, feats: feats + (np.nan if name == "u007" else 0))
    with pytest.raises(InputError, match="u007"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK)
    change_feats(toy_feats, lambda _, feats: np.nan_to_num(feats) * [1, 0, 1, 1])
    with pytest.raises(InputError, match="dimension 1 is constant"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK)
    (toy_feats / "features.json").unlink()
    with pytest.raises(InputError, match=r"features\.json is missing"):
        train_mono(toy_feats, toy_lang.folder, model, QUICK)
    assert (model / "gmm.safetensors").read_bytes() == before


def test_alignments_that_do_not_fit_are_refused(tmp_path: Path, toy_lang: Lang, toy_feats: Path) -> None:
    train_mono(toy_feats, toy_lang.folder, tmp_path / "mono", QUICK)
    states = read_int_vectors(tmp_path / "mono" / "state.scp")
    for changed, says in (
        (np.append(states["u002"], 0), "u002 has .* frames, longer"),
        (states["u002"] + 15, "u002 has a state outside"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "mono", broken, dirs_exist_ok=True)
        write_int_vectors(broken / "state", sorted((states | {"u002": changed}).items()))
        with pytest.raises(InputError, match=says):
            train_tri(toy_feats, toy_lang.folder, broken, tmp_path / "tri", QUICK, TREE)
    HmmModel(4).save(tmp_path / "broken")
    with pytest.raises(InputError, match="imported"):
        train_tri(toy_feats, toy_lang.folder, tmp_path / "broken", tmp_path / "tri", QUICK, TREE)


def test_aligning_refuses_scores_that_are_not_the_models(tmp_path: Path, toy_lang: Lang, toy_feats: Path) -> None:
    hmm = monophone_model(toy_lang.phone_names, toy_lang.silence, 3, 3)
    with pytest.raises(InputError, match="scores 4 pdfs"):
        align(toy_feats, toy_lang.folder, hmm, lambda feats: feats, tmp_path / "ali")
    with pytest.raises(InputError, match=r"utterance u\d+: scores that are not finite"):
        align(toy_feats, toy_lang.folder, hmm, lambda feats: np.full((len(feats), 15), np.nan), tmp_path / "ali")
    with pytest.raises(InputError, match="different phones"):
        align(toy_feats, toy_lang.folder, replace(hmm, phones=("SIL", "a", "b", "c", "q")), lambda x: x, tmp_path / "a")
    assert not (tmp_path / "ali").exists()


def test_equal_alignment_shares_frames_and_drops_silence_when_short(toy_lang: Lang) -> None:
    hmm = monophone_model(toy_lang.phone_names, toy_lang.silence, 3, 3)
    full = equal_alignment(("RE",), toy_lang, hmm, 24)
    assert full is not None
    assert np.bincount(full.pdf_T, minlength=15).tolist() == [4, 4, 4, 0, 0, 0, 2, 2, 2, 0, 0, 0, 2, 2, 2]
    short = equal_alignment(("RE",), toy_lang, hmm, 7)
    assert short is not None
    assert set(short.state_T.tolist()) == {6, 7, 8, 12, 13, 14}
    assert equal_alignment(("RE",), toy_lang, hmm, 5) is None


def test_commands_from_lexicon_to_graph(
    tmp_path: Path, toy_feats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line: what it prints, one line a pass, and refusals with exit status 2."""
    monkeypatch.chdir(tmp_path)

    def asr_hf(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["asr-hf", *line.split()])
        main()
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    def refusal(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["asr-hf", *line.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    made = asr_hf("lang lang2 --lexicon lexicon.txt --text feats/text lang.order=2")
    assert "4 words, 5 pronunciations, 5 phones" in made
    lines = asr_hf("mono feats lang2 mono gmm.gaussians=2 gmm.first_passes=3 gmm.passes=2").splitlines()
    assert sum(line.startswith("pass") for line in lines) == 5
    lines = asr_hf("tri feats lang2 mono tri tree.leaves=20 tree.min_occupancy=20 gmm.passes=1").splitlines()
    assert sum(line.startswith("pass") for line in lines) == 4 + 2  # gmm=triphone: 4 first passes, 1, 2, 4 Gaussians
    assert "states" in asr_hf("graph lang2 tri graph graph.self_loop_scale=0.2")
    assert "48 utterances" in asr_hf("align feats lang2 tri ali")
    assert (tmp_path / "graph" / "HCLG.fst").is_file()
    assert "gausians" in refusal("mono feats lang2 mono gmm.gausians=2")
    assert "nowhere/hmm.json is missing" in refusal("graph lang2 nowhere graph")


@pytest.mark.an4
def test_an4_silence_is_quieter_than_vowels(tmp_path: Path, an4_root: Path) -> None:
    """A flat start on 130 real utterances finds where the speech is: its vowels are louder than its silence."""
    from asr_hf.data.extract import extract_features
    from asr_hf.data.features import FeatureOptions
    from asr_hf.data.kaldi_dir import Utterance, write_data_dir

    utterances = []
    for line in (an4_root / "etc" / "an4_test.transcription").read_text().splitlines():
        words, name = line.replace("<s>", "").replace("</s>", "").rsplit("(", 1)
        name = name.rstrip(")")
        (path,) = (an4_root / "wav").rglob(f"{name}.sph")
        speaker = name.split("-")[1]
        utterances.append(Utterance(f"{speaker}-{name}", speaker, tuple(words.split()), str(path), 0.0, None))
    write_data_dir(tmp_path / "data", utterances)
    options = FeatureOptions(kind="mfcc", num_mel_bins=23, deltas=2, transform="speaker-cmn")
    extract_features(tmp_path / "data", tmp_path / "feats", options, 1)
    make_lang(tmp_path / "lang", an4_root / "etc" / "an4.dic", tmp_path / "data" / "text", LangOptions())
    quick = GmmOptions(gaussians=2, first_passes=8, passes=2)
    report = train_mono(tmp_path / "feats", tmp_path / "lang", tmp_path / "mono", quick)
    assert report.left_out == []
    lang, hmm = Lang.load(tmp_path / "lang"), HmmModel.load(tmp_path / "mono")
    archive = FeatureArchive(tmp_path / "feats" / "feats.scp")
    states = read_int_vectors(tmp_path / "mono" / "state.scp")
    phones = np.concatenate([hmm.phone_of_state()[states[name]] for name in archive])
    loudness = np.concatenate([archive[name][:, 0] for name in archive])
    silence = loudness[phones == lang.phones["SIL"]]
    vowels = loudness[np.isin(phones, [lang.phones[phone] for phone in ("AA", "AY", "EH", "EY", "IY", "OW")])]
    assert len(silence) > 0.1 * len(loudness)
    assert vowels.mean() - silence.mean() > loudness.std()
