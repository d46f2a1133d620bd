"""Finished models on disk: `model.safetensors` (parameters, buffers, log prior) and `model.json` (model and options).

Shapes: T frames, D feature dimension, P pdfs, s = subsampling.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asr_hf.errors import InputError
from asr_hf.models.acoustic import BRANCH, OUTPUT, AcousticModel
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions

# name in model.json -> options class
MODELS: dict[str, Any] = {
    "dnn": DnnOptions,
    "tdnn": TdnnOptions,
    "tdnnf": TdnnfOptions,
    "rnn": RnnOptions,
    "lstm": LstmOptions,
}
PRIOR = "log_prior"  # its name among the tensors


def model_name(options: object) -> str:
    """The name of a model's options class in `model.json`."""
    return next(name for name, kind in MODELS.items() if isinstance(options, kind))


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A trained model, the log prior (P,) of its pdfs (natural log), and the options of the model where it was read."""

    module: AcousticModel
    log_prior: np.ndarray
    options: Any = None

    @property
    def num_pdfs(self) -> int:
        return self.module.num_pdfs

    def log_posteriors(self, features_TD: np.ndarray) -> np.ndarray:
        """Log posteriors (T, P) float32 of every frame of an utterance (T, D); edge frames are repeated as context.

        A model with one output frame every s input frames is run on s inputs, each a frame later than the one before.
        """
        frames, subsampling = len(features_TD), self.module.subsampling
        posteriors_TP = np.empty((frames, self.num_pdfs), dtype=np.float32)
        for first in range(min(subsampling, frames)):
            posteriors_TP[first::subsampling] = self.own_frames(features_TD, first)
        return posteriors_TP

    def own_frames(self, features_TD: np.ndarray, first: int = 0) -> np.ndarray:
        """Log posteriors (·, P) float32 of the frames first, first + s, first + 2s, … of an utterance (T, D)."""
        with torch.inference_mode():
            output_TP = self.module(self._window(features_TD, first)[None])[OUTPUT][0]
            return torch.log_softmax(output_TP, dim=-1).numpy()

    def _window(self, features_TD: np.ndarray, first: int) -> torch.Tensor:
        """Input (W, D) of the output frames at first, first + s, first + 2s, … of an utterance."""
        last = range(first, len(features_TD), self.module.subsampling)[-1]
        index = np.arange(first - self.module.left_context, last + 1 + self.module.right_context)
        inside = np.clip(index, 0, len(features_TD) - 1)
        return torch.from_numpy(np.ascontiguousarray(features_TD[inside], dtype=np.float32))


def log_prior(pdf_counts: np.ndarray, floor: float) -> np.ndarray:
    """Log relative frequencies of the pdfs in the training alignments, each at least `floor` (natural log)."""
    share = pdf_counts / max(1, pdf_counts.sum())
    return np.log(np.maximum(share, floor)).astype(np.float32)


def save_model(directory: Path, module: AcousticModel, options: object, prior: np.ndarray) -> None:
    """Write a model beside and rename; `model.json` comes last, so a folder that has it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    tensors[PRIOR] = torch.from_numpy(prior)
    description = {
        "model": model_name(options),
        "options": dataclasses.asdict(options),  # type: ignore[call-overload]
        "input_dim": module.input_dim,
        "num_pdfs": module.num_pdfs,
    }
    beside = directory / "model.safetensors.part"
    save_file(tensors, beside)
    os.replace(beside, directory / "model.safetensors")
    beside = directory / "model.json.part"
    beside.write_text(json.dumps(description, indent=1) + "\n")
    os.replace(beside, directory / "model.json")


def load_model(directory: Path | str) -> SavedModel:
    """Read a finished model, ready to be evaluated.

    An option that `model.json` does not name, because it came later, has its value in `before` of the model's options,
    or else its default.

    Raises:
        InputError: the folder holds no finished model, or one that this version cannot build, or its files are damaged
            or disagree.
    """
    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise InputError(f"{directory} holds no finished model (no model.json)", "Let its training finish first.")
    try:
        description = json.loads((directory / "model.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        prior = tensors.pop(PRIOR).numpy()
        if description["model"] not in MODELS:
            raise ValueError(f"a model '{description['model']}' is not known, only {', '.join(MODELS)}")
        kind = MODELS[description["model"]]
        options = kind(**{**getattr(kind, "before", {}), **description["options"]})
        module = options.build(description["input_dim"], description["num_pdfs"], seed=0)
        if f"{BRANCH}.weight" in tensors:
            module.add_branch(seed=0)
        module.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the model in {directory} cannot be read: {error}",
            "Train it again or copy it again; a model of a later version of asr-hf needs that version.",
        ) from None
    module.eval()
    return SavedModel(module, prior, options)
