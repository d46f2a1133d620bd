"""Features of whole directories: the same for any number of jobs, bad utterances listed, earlier results intact."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile

from asr_hf.cli import main as cli
from asr_hf.data.archive import FeatureArchive, write_matrices
from asr_hf.data.extract import PART, extract_features
from asr_hf.data.features import FeatureOptions, append_deltas, compute, splice
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.data.kaldi_dir import Utterance, read_data_dir, read_text, read_utt2spk, write_data_dir
from asr_hf.errors import InputError

Edit = Callable[[Path, Callable[[list[str]], list[str]]], None]
FIRST = "spk0-utt000"
MFCC = FeatureOptions(kind="mfcc", num_mel_bins=23, deltas=2, transform="speaker-cmn")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; the folder's own name does not count."""
    return {
        path.name: path.read_bytes().replace(str(folder).encode(), b"FOLDER")
        for path in folder.iterdir()
        if path.is_file()
    }


def audio_of(corpus: Path, utt: str = FIRST) -> Path:
    return corpus.parent / f"{corpus.name}-audio" / f"{utt}.wav"


def command(*words: str | Path, limit_kb: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `asr-hf` in a process of its own, files limited to `limit_kb` (its stand-in for a full disk)."""
    line = [sys.executable, "-m", "asr_hf.cli.main", *map(str, words)]
    if limit_kb is not None:
        line = ["bash", "-c", f'ulimit -f {limit_kb}; exec "$@"', "bash", *line]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def test_features_are_normalised_over_all_frames_of_a_speaker(corpus: Path, tmp_path: Path) -> None:
    done = extract_features(corpus, tmp_path / "feats", MFCC)
    archive = FeatureArchive(tmp_path / "feats" / "feats.scp", check_finite=True)
    utterances = read_data_dir(corpus)
    assert archive.keys() == [utterance.id for utterance in utterances]
    static = {}
    for utterance in utterances:
        samples, rate = soundfile.read(utterance.recording, dtype="int16")
        static[utterance.id] = compute(samples.astype(np.float32), MFCC, rate)
    for utterance in utterances:
        of_speaker = [static[other.id] for other in utterances if other.speaker == utterance.speaker]
        mean = np.concatenate(of_speaker).astype(np.float64).mean(axis=0)
        expected = append_deltas((static[utterance.id] - mean).astype(np.float32), 2)
        np.testing.assert_allclose(archive[utterance.id], expected, atol=1e-4)
    frames = sum(map(len, static.values()))
    assert (done.utterances, done.speakers, done.frames, done.dim, done.skipped) == (6, 3, frames, 39, [])


def test_the_folder_holds_what_the_architecture_says(corpus: Path, tmp_path: Path) -> None:
    options = FeatureOptions(splice_left=1, splice_right=2)
    extract_features(corpus, tmp_path / "feats", options)
    assert sorted(contents(tmp_path / "feats")) == [
        "feats.1.ark", "feats.scp", "features.json", "spk2utt", "text", "utt2spk",
    ]  # fmt: skip
    assert read_text(tmp_path / "feats") == read_text(corpus)
    assert read_utt2spk(tmp_path / "feats") == read_utt2spk(corpus)
    fingerprint = read_fingerprint(tmp_path / "feats")
    assert (fingerprint.dim, fingerprint.sample_rate) == (160, 16000)
    extract_features(corpus, tmp_path / "plain", FeatureOptions())
    plain, spliced = (FeatureArchive(tmp_path / name / "feats.scp")[FIRST] for name in ("plain", "feats"))
    np.testing.assert_array_equal(spliced, splice(plain, 1, 2))
    by_kaldiio = kaldiio.load_scp(str(tmp_path / "feats" / "feats.scp"))
    np.testing.assert_array_equal(by_kaldiio[FIRST], spliced)


def test_same_bytes_for_any_number_of_jobs(make_corpus, tmp_path: Path) -> None:
    corpus = make_corpus(speakers=7, each=40, rate=8000, seconds=0.06)  # 280 utterances: several parts
    options = FeatureOptions(num_mel_bins=23, dither=1.0)
    extract_features(corpus, tmp_path / "one", options)
    assert len(list((tmp_path / "one").glob("feats.*.ark"))) == 3 > 280 // PART
    extract_features(corpus, tmp_path / "more", options, jobs=3)
    assert contents(tmp_path / "more") == contents(tmp_path / "one")


@pytest.mark.parametrize("form", ["flac", "wav"])
def test_segments_and_forms_give_the_features_of_the_samples(make_corpus, tmp_path: Path, form: str) -> None:
    corpus = make_corpus(speakers=1, each=1, form=form)
    recording = read_data_dir(corpus)[0].recording
    parts = [Utterance("a", "s", ("x",), recording, 0.1, 0.3), Utterance("b", "s", ("x",), recording, 0.25, None)]
    write_data_dir(tmp_path / "parts", parts)
    extract_features(tmp_path / "parts", tmp_path / "feats", FeatureOptions(transform="none"))
    archive = FeatureArchive(tmp_path / "feats" / "feats.scp")
    samples, rate = soundfile.read(recording, dtype="int16")
    for utt, first, last in (("a", 1600, 4800), ("b", 4000, None)):
        np.testing.assert_array_equal(
            archive[utt], compute(samples[first:last].astype(np.float32), FeatureOptions(), rate)
        )


@pytest.mark.an4
def test_sphere_files_are_read_as_they_are(an4_root: Path, tmp_path: Path) -> None:
    files = sorted((an4_root / "wav").rglob("*.sph"))[:2]
    write_data_dir(tmp_path / "data", [Utterance(file.stem, "s", ("x",), str(file)) for file in files])
    extract_features(tmp_path / "data", tmp_path / "feats", FeatureOptions(transform="none"))
    archive = FeatureArchive(tmp_path / "feats" / "feats.scp")
    for file in files:
        content = file.read_bytes()  # 1024 bytes of header, then 16-bit samples in the order it states
        order = "<i2" if b"sample_byte_format -s2 01" in content[:1024] else ">i2"
        samples = np.frombuffer(content[1024:], order).astype(np.float32)
        np.testing.assert_array_equal(archive[file.stem], compute(samples, FeatureOptions(), 16000))


def test_pipes_give_the_features_of_the_file(corpus: Path, tmp_path: Path, edit: Edit) -> None:
    extract_features(corpus, tmp_path / "files", FeatureOptions())
    edit(corpus / "wav.scp", lambda lines: [f"{line.split()[0]} cat {line.split()[1]} |" for line in lines])
    with pytest.raises(InputError, match=r"wav\.scp:1: .*pipe"):
        extract_features(corpus, tmp_path / "pipes", FeatureOptions())
    extract_features(corpus, tmp_path / "pipes", FeatureOptions(allow_pipes=True))
    assert contents(tmp_path / "pipes") == contents(tmp_path / "files")


def spoil(corpus: Path) -> dict[str, str]:
    """Make five of six utterances impossible, each in its own way; returns what must be said of each."""
    soundfile.write(audio_of(corpus), np.zeros(8000), 16000)
    soundfile.write(audio_of(corpus, "spk0-utt001"), np.full(300, 0.1), 16000)
    audio_of(corpus, "spk1-utt000").write_bytes(b"no audio")
    soundfile.write(audio_of(corpus, "spk1-utt001"), np.full(8000, 0.1), 8000)
    audio_of(corpus, "spk2-utt000").unlink()
    return {
        FIRST: "every sample is zero",
        "spk0-utt001": "18.8 ms of audio hold no window of 25 ms",
        "spk1-utt000": "cannot be read",
        "spk1-utt001": "sampled at 8000 Hz, not 16000",
        "spk2-utt000": "does not exist",
    }


def test_impossible_utterances_are_all_listed(corpus: Path, tmp_path: Path) -> None:
    extract_features(corpus, tmp_path / "feats", FeatureOptions())
    before = contents(tmp_path / "feats")
    reasons = spoil(corpus)
    with pytest.raises(InputError, match=r"5 of 6 utterances are impossible.*") as caught:
        extract_features(corpus, tmp_path / "feats", FeatureOptions(sample_rate=16000))
    for utt, reason in reasons.items():
        assert re.search(rf"utterance '{utt}': .*{reason}", caught.value.what), caught.value.what
    assert "features.skip_bad=true" in caught.value.remedy
    assert contents(tmp_path / "feats") == before


def test_impossible_utterances_are_left_out_when_asked(corpus: Path, tmp_path: Path) -> None:
    reasons = spoil(corpus)
    options = FeatureOptions(sample_rate=16000, skip_bad=True)
    done = extract_features(corpus, tmp_path / "feats", options)
    assert [utt for utt, _ in done.skipped] == sorted(reasons)
    assert FeatureArchive(tmp_path / "feats" / "feats.scp").keys() == ["spk2-utt001"]
    assert list(read_text(tmp_path / "feats")) == list(read_utt2spk(tmp_path / "feats")) == ["spk2-utt001"]
    assert (tmp_path / "feats" / "spk2utt").read_text() == "spk2 spk2-utt001\n"
    audio_of(corpus, "spk2-utt001").unlink()
    with pytest.raises(InputError, match="6 of 6 utterances are impossible"):
        extract_features(corpus, tmp_path / "feats", options)


def test_samples_that_are_not_finite_are_impossible(corpus: Path, tmp_path: Path) -> None:
    samples = np.full(8000, 0.1, np.float32)
    samples[4000] = np.nan
    soundfile.write(audio_of(corpus), samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=rf"utterance '{FIRST}': its features are not finite"):
        extract_features(corpus, tmp_path / "feats", FeatureOptions())


def test_segments_beyond_the_audio_are_impossible(corpus: Path, tmp_path: Path) -> None:
    recording = read_data_dir(corpus)[0].recording
    parts = [Utterance("a", "s", ("x",), recording, 0.1, 0.3), Utterance("b", "s", ("x",), recording, 0.2, 7.0)]
    write_data_dir(tmp_path / "parts", parts)
    with pytest.raises(InputError, match=r"utterance 'b': segment 0\.2 … 7 s is beyond the 0\.50 s"):
        extract_features(tmp_path / "parts", tmp_path / "feats", FeatureOptions())


def test_features_of_another_program_are_adopted(corpus: Path, tmp_path: Path) -> None:
    raw = {utt: np.random.default_rng(6).normal(5, 3, (20 + len(utt), 7)) for utt in read_text(corpus)}
    kaldiio.save_ark(str(tmp_path / "raw.ark"), raw, scp=str(corpus / "feats.scp"), compression_method=None)
    options = FeatureOptions(deltas=2, splice_left=3)  # not for features that are there already
    done = extract_features(corpus, tmp_path / "feats", options, from_feats=True)
    archive = FeatureArchive(tmp_path / "feats" / "feats.scp")
    together = np.concatenate([archive[utt] for utt in ("spk1-utt000", "spk1-utt001")])
    assert (done.dim, archive.dim) == (7, 7)
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(together.std(axis=0), 1, atol=1e-5)
    assert read_fingerprint(tmp_path / "feats").options == {
        "kind": "imported", "transform": "speaker-cmvn", "frame_shift": 10.0,
    }  # fmt: skip


def test_adopted_features_must_be_finite_and_complete(corpus: Path, tmp_path: Path) -> None:
    raw = {utt: np.ones((9, 2)) for utt in read_text(corpus)}
    raw[FIRST][3, 0] = np.nan
    write_matrices(corpus / "feats", raw.items())
    with pytest.raises(InputError, match=rf"utterance '{FIRST}': .*NaN or infinity in frame 3"):
        extract_features(corpus, tmp_path / "feats", FeatureOptions(), from_feats=True)
    del raw[FIRST]
    write_matrices(corpus / "feats", raw.items())
    with pytest.raises(InputError, match=rf"text:1: utterance '{FIRST}' is not in feats\.scp"):
        extract_features(corpus, tmp_path / "feats", FeatureOptions(), from_feats=True)


def test_a_data_directory_is_never_replaced_by_features(corpus: Path) -> None:
    before = contents(corpus)
    with pytest.raises(InputError, match=r"holds no features\.json"):
        extract_features(corpus, corpus, FeatureOptions())
    assert contents(corpus) == before


def test_a_full_disk_leaves_the_earlier_result(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    extract_features(corpus, tmp_path / "feats", FeatureOptions())
    before = contents(tmp_path / "feats")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kaldiio, "save_ark", full)
    with pytest.raises(InputError, match=r"no space left while writing .*feats"):
        extract_features(corpus, tmp_path / "feats", MFCC)
    assert contents(tmp_path / "feats") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data-audio", "feats"]


def test_a_write_that_the_system_refuses_ends_with_status_2(make_corpus, tmp_path: Path) -> None:
    corpus = make_corpus(speakers=3, each=50, rate=8000, seconds=0.1)  # two parts, so that two jobs do the writing
    extract_features(corpus, tmp_path / "feats", MFCC)
    before = contents(tmp_path / "feats")
    ended = command("features", corpus, tmp_path / "feats", "--jobs", "2", "features.num_mel_bins=23", limit_kb=32)
    assert ended.returncode == 2, ended.stderr
    assert "no space left while writing" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert contents(tmp_path / "feats") == before


def jobs_of(session: int) -> list[str]:
    """The commands of the Python processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session and fields[0] != "Z" and "python" in line:
            found.append(line)
    return found


def test_a_killed_run_leaves_the_earlier_result_and_no_jobs(make_corpus, tmp_path: Path, edit: Edit) -> None:
    corpus = make_corpus(speakers=3, each=PART // 2, seconds=0.05)
    extract_features(corpus, tmp_path / "feats", FeatureOptions())
    before = contents(tmp_path / "feats")
    last, whole = "spk2-utt049", (corpus / "wav.scp").read_text()
    edit(corpus / "wav.scp", lambda lines: [*lines[:-1], f"{last} sleep 60 |"])
    words = ["features", str(corpus), str(tmp_path / "feats"), "--jobs", "2", "features.allow_pipes=true"]
    running = subprocess.Popen([sys.executable, "-m", "asr_hf.cli.main", *words], start_new_session=True)
    for _ in range(600):
        if list(tmp_path.glob(".feats.partial-*/static/2.ark.tmp")):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the run never began to write")
    running.kill()
    running.wait()
    assert contents(tmp_path / "feats") == before
    try:
        for _ in range(100):
            if not jobs_of(running.pid):
                break
            time.sleep(0.1)
        assert jobs_of(running.pid) == []
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # the command of wav.scp
    assert list(tmp_path.glob(".feats.partial-*"))
    (corpus / "wav.scp").write_text(whole)
    extract_features(corpus, tmp_path / "feats", FeatureOptions())
    assert contents(tmp_path / "feats") == before
    assert not list(tmp_path.glob(".feats.*"))


def test_the_command_says_what_it_wrote_and_what_it_left_out(corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    soundfile.write(audio_of(corpus), np.zeros(8000), 16000)
    words = ["features", str(corpus), str(tmp_path / "feats"), "features=mfcc"]
    monkeypatch.setattr(sys, "argv", ["asr-hf", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"utterance '{FIRST}': every sample is zero" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["asr-hf", *words, "features.skip_bad=true"])
    cli.main()
    printed = capsys.readouterr()
    assert re.search(r"5 utterances, 3 speakers, \d+ frames .*, 39 dimensions, 1 left out", printed.out)
    assert f"left out utterance '{FIRST}'" in printed.err
    with pytest.raises(InputError, match="0 jobs are impossible"):
        cli.run([*words, "--jobs", "0"])
