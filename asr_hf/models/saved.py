"""Finished models on disk: `model.safetensors` (parameters, log prior) and `model.json` (model and options)."""

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
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.dnn import DnnOptions

MODELS: dict[str, Any] = {"dnn": DnnOptions}  # name in model.json -> options class
PRIOR = "log_prior"  # its name among the tensors


def model_name(options: object) -> str:
    """The name of a model's options class in `model.json`."""
    return next(name for name, kind in MODELS.items() if isinstance(options, kind))


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A trained model and the log prior (P,) of its pdfs (natural log)."""

    module: AcousticModel
    log_prior: np.ndarray

    @property
    def num_pdfs(self) -> int:
        return self.module.num_pdfs

    def log_posteriors(self, features_TD: np.ndarray) -> np.ndarray:
        """Log posteriors (T, P) float32 of one utterance's features (T, D); edge frames are repeated as context."""
        left, right = self.module.left_context, self.module.right_context
        index = np.clip(np.arange(-left, len(features_TD) + right), 0, len(features_TD) - 1)
        x = torch.from_numpy(np.ascontiguousarray(features_TD[index], dtype=np.float32))
        with torch.inference_mode():
            output = self.module(x[None])["output"][0]
            return torch.log_softmax(output, dim=-1).numpy()


def log_prior(pdf_counts: np.ndarray, floor: float) -> np.ndarray:
    """Log relative frequencies of the pdfs in the training alignments, each at least `floor` (natural log)."""
    share = pdf_counts / max(1, pdf_counts.sum())
    return np.log(np.maximum(share, floor)).astype(np.float32)


def save_model(directory: Path, module: AcousticModel, options: object, prior: np.ndarray) -> None:
    """Write a model beside and rename; `model.json` comes last, so a folder that has it is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in module.named_parameters()}
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
    """Read a finished model.

    Raises:
        InputError: the folder holds no finished model, or its files are damaged or disagree.
    """
    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise InputError(f"{directory} holds no finished model (no model.json)", "Let its training finish first.")
    try:
        description = json.loads((directory / "model.json").read_text())
        tensors = load_file(directory / "model.safetensors")
        prior = tensors.pop(PRIOR).numpy()
        options = MODELS[description["model"]](**description["options"])
        module = options.build(description["input_dim"], description["num_pdfs"], seed=0)
        module.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the model in {directory} cannot be read: {error}", "Train it again or copy it again."
        ) from None
    module.eval()
    return SavedModel(module, prior)
