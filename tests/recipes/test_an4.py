"""AN4: the official split, dev and heldout cut by speaker, four folds; a damaged corpus is named."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from asr_hf.data.kaldi_dir import Utterance, read_data_dir
from asr_hf.errors import InputError

SUBSETS = ("train", "heldout", "dev", "test")
needs_an4 = pytest.mark.an4


def read_sets(data: Path) -> dict[str, list[Utterance]]:
    return {subset: read_data_dir(data / subset) for subset in SUBSETS}


def speakers(utterances: list[Utterance]) -> set[str]:
    return {u.speaker for u in utterances}


@pytest.fixture(scope="module")
def official(an4: ModuleType, an4_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Utterance]]:
    out = tmp_path_factory.mktemp("an4-official")
    an4.prepare(an4_root, out)
    return read_sets(out)


@pytest.fixture(scope="module")
def folds(
    an4: ModuleType, an4_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, list[Utterance]]]:
    outs = [tmp_path_factory.mktemp(f"an4-fold{fold}") for fold in (1, 2, 3, 4)]
    for fold, out in enumerate(outs, start=1):
        an4.prepare(an4_root, out, fold)
    return [read_sets(out) for out in outs]


def assert_disjoint_speakers(sets: dict[str, list[Utterance]]) -> None:
    everyone = [speaker for utterances in sets.values() for speaker in speakers(utterances)]
    assert len(everyone) == len(set(everyone)) == 84


@needs_an4
def test_official_split(official: dict[str, list[Utterance]], an4_root: Path) -> None:
    counts = {subset: len(utterances) for subset, utterances in official.items()}
    assert counts["test"] == 130
    assert sum(counts.values()) == 1078
    assert 8 <= len(speakers(official["dev"])) <= 10
    assert 0.04 < counts["heldout"] / 948 < 0.06
    assert_disjoint_speakers(official)
    # against the corpus' own lists, read another way: the sorted transcripts of the official test set
    lines = (an4_root / "etc" / "an4_test.transcription").read_text().splitlines()
    assert sum(len(u.words) for u in official["test"]) == 773
    assert sorted(" ".join(u.words) for u in official["test"]) == sorted(line.split(" (")[0] for line in lines)
    assert speakers(official["test"]) == {path.name for path in (an4_root / "wav" / "an4test_clstk").iterdir()}


@needs_an4
def test_both_sexes_everywhere(official: dict[str, list[Utterance]]) -> None:
    for utterances in official.values():
        assert {speaker[0] for speaker in speakers(utterances)} == {"f", "m"}


@needs_an4
def test_audio_is_read_as_it_is(official: dict[str, list[Utterance]]) -> None:
    for utterances in official.values():
        for utterance in (utterances[0], utterances[-1]):
            assert utterance.recording.endswith(f"{utterance.speaker}-b.sph")
            info = soundfile.info(utterance.recording)
            assert (info.samplerate, info.format) == (16000, "NIST")


@needs_an4
def test_folds_cover_everything_once(folds: list[dict[str, list[Utterance]]]) -> None:
    tested = [u.id for sets in folds for u in sets["test"]]
    assert len(tested) == len(set(tested)) == 1078
    for sets in folds:
        assert sum(len(utterances) for utterances in sets.values()) == 1078
        assert len(speakers(sets["test"])) == 21
        assert_disjoint_speakers(sets)


@needs_an4
def test_lexicon_has_variants_without_their_number(an4: ModuleType, an4_root: Path) -> None:
    lexicon = an4.read_lexicon(an4_root)
    assert len(lexicon) == 130
    assert [phones for word, phones in lexicon if word == "A"] == ["AH", "EY"]
    assert not any("(" in word for word, _ in lexicon)


@needs_an4
@pytest.mark.parametrize("damage", ["no-list", "short-list", "swapped", "no-audio", "no-word"])
def test_a_changed_corpus_is_named(an4: ModuleType, an4_root: Path, tmp_path: Path, damage: str) -> None:
    corpus = tmp_path / "an4"
    shutil.copytree(an4_root / "etc", corpus / "etc")
    (corpus / "wav").symlink_to(an4_root / "wav")
    transcripts = corpus / "etc" / "an4_train.transcription"
    transcripts.chmod(0o644)
    lines = transcripts.read_text().splitlines(keepends=True)
    match damage:
        case "no-list":
            transcripts.unlink()
            message = "an4_train.transcription cannot be read"
        case "short-list":
            transcripts.write_text("".join(lines[:-1]))
            message = "948 files and 947 transcripts"
        case "swapped":
            transcripts.write_text("".join([lines[1], lines[0], *lines[2:]]))
            message = "an4_train.transcription:1: not the transcript of an251-fash-b"
        case "no-audio":
            (corpus / "wav").unlink()
            (corpus / "wav").mkdir()
            message = r"an251-fash-b.sph of an4_train.fileids:1 is missing"
        case "no-word":
            transcripts.write_text("".join([lines[0].replace("YES", "JA"), *lines[1:]]))
            message = "'JA' of fash-an251-b is not in an4.dic"
    with pytest.raises(InputError, match=message):
        an4.prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_corpus_is_named(an4: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither the folder an4"):
        an4.prepare(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="--fold 5"):
        an4.prepare(tmp_path, tmp_path / "out", fold=5)


def test_damaged_tarball_is_named_and_leaves_nothing(an4: ModuleType, tmp_path: Path) -> None:
    tarball = tmp_path / "an4_sphere.tar.gz"
    tarball.write_bytes(b"\x1f\x8b\x08\x00 cut short")
    with pytest.raises(InputError, match=r"an4_sphere.tar.gz cannot be unpacked"):
        an4.prepare(tarball, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
