"""The fingerprint of features: what decides their values is in it, what does not is not, and differences are listed."""

import dataclasses
import json
from pathlib import Path

import pytest

from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import fingerprint_of, read_fingerprint, require_same, write_fingerprint
from asr_hf.errors import InputError


def test_written_fingerprints_are_read_back(tmp_path: Path) -> None:
    written = write_fingerprint(tmp_path, FeatureOptions(), 40, 16000)
    assert read_fingerprint(tmp_path) == written
    require_same(written, read_fingerprint(tmp_path))
    assert json.loads((tmp_path / "features.json").read_text())["fingerprint"] == written.digest
    (tmp_path / "model").mkdir()
    written.save(tmp_path / "model")
    assert (tmp_path / "model" / "features.json").read_bytes() == (tmp_path / "features.json").read_bytes()


def test_differences_are_listed_with_both_values() -> None:
    model = fingerprint_of(FeatureOptions(), 40, 16000)
    data = fingerprint_of(FeatureOptions(num_mel_bins=23, transform="speaker-cmn"), 23, 8000)
    with pytest.raises(InputError) as caught:
        require_same(model, data, "exp/dnn", "feats/test")
    assert "features of exp/dnn and of feats/test differ" in caught.value.what
    for part in (
        "num_mel_bins 40 against 23",
        "transform speaker-cmvn against speaker-cmn",
        "dim 40 against 23",
        "sample_rate 16000 against 8000",
    ):
        assert part in caught.value.what
    assert "low_freq" not in caught.value.what


def test_every_option_counts_but_those_that_change_no_value() -> None:
    base = FeatureOptions(kind="mfcc", num_mel_bins=23)
    other = {
        "kind": "fbank", "num_mel_bins": 30, "num_ceps": 12, "low_freq": 60.0, "high_freq": 3000.0, "window": "hamming",
        "frame_length": 20.0, "frame_shift": 8.0, "dither": 1.0, "use_energy": True, "energy_floor": 1.0,
        "raw_energy": False, "cepstral_lifter": 0.0, "deltas": 1, "transform": "none",
        "splice_left": 1, "splice_right": 1,
    }  # fmt: skip
    silent = {"sample_rate": 16000, "speed": 0.9, "allow_pipes": True, "skip_bad": True}
    assert set(other) | set(silent) == {field.name for field in dataclasses.fields(FeatureOptions)}
    reference = fingerprint_of(base, 13, 16000)
    for name, value in other.items():
        assert fingerprint_of(dataclasses.replace(base, **{name: value}), 13, 16000).digest != reference.digest, name
    for name, value in silent.items():
        assert fingerprint_of(dataclasses.replace(base, **{name: value}), 13, 16000) == reference, name


def test_options_of_mfcc_do_not_count_for_fbank() -> None:
    assert fingerprint_of(FeatureOptions(num_ceps=20), 40, 8000) == fingerprint_of(FeatureOptions(), 40, 8000)


def test_imported_features_are_a_kind_of_their_own() -> None:
    imported = fingerprint_of(FeatureOptions(), 40, None, imported=True)
    assert imported.options["kind"] == "imported"
    with pytest.raises(InputError, match="kind fbank against imported"):
        require_same(fingerprint_of(FeatureOptions(), 40, 16000), imported)


def test_a_missing_fingerprint_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"features\.json is missing.*asr-hf features"):
        read_fingerprint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"options": {}, "dim": 3}', "\xff"])
def test_a_damaged_fingerprint_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "features.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"features\.json cannot be read"):
        read_fingerprint(tmp_path)


def test_an_edited_fingerprint_is_refused(tmp_path: Path) -> None:
    write_fingerprint(tmp_path, FeatureOptions(), 40, 16000)
    path = tmp_path / "features.json"
    path.write_text(path.read_text().replace('"num_mel_bins": 40', '"num_mel_bins": 41'))
    with pytest.raises(InputError, match="was edited"):
        read_fingerprint(tmp_path)
