"""The fingerprint of features, `features.json`: what they were made with; beside them and in every model of them."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_hf.data.features import FeatureOptions
from asr_hf.errors import InputError

FILE = "features.json"
# The rate is recorded as it was found, the speed in the ids: networks learn from all speeds together.
NOT_IN_VALUES = ("sample_rate", "speed", "allow_pipes", "skip_bad")
MFCC_ONLY = ("num_ceps", "cepstral_lifter")
KEPT_OF_IMPORTED = ("transform", "frame_shift")  # of features that another program computed nothing else is known


@dataclass(frozen=True)
class Fingerprint:
    """What decides the values of features: the options, the dimension D, the sampling rate in Hz (None: imported)."""

    options: dict[str, Any]
    dim: int
    sample_rate: int | None

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: equal for equal features."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write features.json into a FEATS or MODEL folder, beside and renamed."""
        path = Path(folder) / FILE
        beside = path.with_name(FILE + ".tmp")
        content = dataclasses.asdict(self) | {"fingerprint": self.digest}
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)

    def values(self) -> dict[str, Any]:
        return {**self.options, "dim": self.dim, "sample_rate": self.sample_rate}


def fingerprint_of(options: FeatureOptions, dim: int, sample_rate: int | None, imported: bool = False) -> Fingerprint:
    """The fingerprint of features computed with these options, or imported and only transformed with them."""
    kept = dataclasses.asdict(options)
    dropped = NOT_IN_VALUES if options.kind == "mfcc" else NOT_IN_VALUES + MFCC_ONLY
    kept = {name: value for name, value in kept.items() if name not in dropped}
    if imported:
        kept = {"kind": "imported"} | {name: kept[name] for name in KEPT_OF_IMPORTED}
    return Fingerprint(kept, dim, sample_rate)


def write_fingerprint(
    folder: str | Path, options: FeatureOptions, dim: int, sample_rate: int | None, imported: bool = False
) -> Fingerprint:
    """Write `features.json` into a folder and return it."""
    fingerprint = fingerprint_of(options, dim, sample_rate, imported)
    fingerprint.save(folder)
    return fingerprint


def read_fingerprint(folder: str | Path) -> Fingerprint:
    """Read `features.json` of a FEATS or MODEL folder; raises InputError where it is missing, damaged or edited."""
    path = Path(folder) / FILE
    remedy = "Compute the features with `asr-hf features`; --from-feats adopts those of Kaldi."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = Fingerprint(content["options"], content["dim"], content["sample_rate"])
    except FileNotFoundError:
        raise InputError(f"{path} is missing: nobody knows how these features were made", remedy) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error!r})", remedy) from error
    if content.get("fingerprint") != fingerprint.digest:
        raise InputError(f"{path} was edited: its fingerprint is not that of its options", remedy)
    return fingerprint


def require_same(
    model: Fingerprint, data: Fingerprint, model_name: str = "the model", data_name: str = "the data"
) -> None:
    """Refuse features made otherwise than those that a model was trained on.

    Raises:
        InputError: lists every option that differs, with both values.
    """
    ours, theirs = model.values(), data.values()
    names = [name for name in {**ours, **theirs} if ours.get(name, "unset") != theirs.get(name, "unset")]
    if names:
        listed = ", ".join(f"{name} {ours.get(name, 'unset')} against {theirs.get(name, 'unset')}" for name in names)
        raise InputError(
            f"the features of {model_name} and of {data_name} differ: {listed}",
            "Compute the features of the data with the options of the model.",
        )
