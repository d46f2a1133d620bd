"""Acoustic log-likelihoods of a MODEL folder, whether a GMM or a neural network stands in it.

Shape suffixes: T frames, D feature dim, P pdfs.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from asr_hf.errors import InputError
from asr_hf.hmm.gmm import Gmm
from asr_hf.hmm.model import HmmModel
from asr_hf.models.saved import SavedModel, load_model


class AcousticModel(Protocol):
    """Scores frames under every pdf; decoding takes `acoustic_scale` unless it is told another one."""

    @property
    def num_pdfs(self) -> int: ...

    @property
    def acoustic_scale(self) -> float: ...

    def log_likelihoods(self, feats_TD: np.ndarray) -> np.ndarray:
        """Natural-log likelihoods (T, P), float32, up to a constant per frame; chain models have fewer frames."""
        ...


class HybridScorer:
    """log p(pdf | x) − log p(pdf): the network's posterior over the prior of its training alignments.

    Bourlard & Morgan 1994: by Bayes' rule this is log p(x | pdf) up to log p(x), which is the same for all pdfs. A
    network that a sequence criterion trained scores paths by itself: its prior is uniform.

    Args:
        model: the network.
        own_frames: score every s-th frame, as the model has them, rather than all: what chain HMMs read.
    """

    def __init__(self, model: SavedModel, own_frames: bool) -> None:
        self.model = model
        self.num_pdfs = model.num_pdfs
        self.acoustic_scale = 1.0 if own_frames else 0.1
        self._posteriors = model.own_frames if own_frames else model.log_posteriors

    def log_likelihoods(self, feats_TD: np.ndarray) -> np.ndarray:
        return (self._posteriors(feats_TD) - self.model.log_prior).astype(np.float32)


def load_acoustic_model(model_dir: Path | str) -> AcousticModel:
    """The acoustic model of MODEL: a network if model.safetensors is there, else a GMM.

    Raises:
        InputError: the folder holds neither.
    """
    folder = Path(model_dir)
    if (folder / "model.safetensors").is_file():
        return HybridScorer(load_model(folder), HmmModel.load(folder).topology == "chain")
    if (folder / "gmm.safetensors").is_file():
        return Gmm.load(folder)
    raise InputError(
        f"{folder} holds no acoustic model (neither model.safetensors nor gmm.safetensors)",
        "Name the folder that asr-hf mono, tri or a finished asr-hf train wrote.",
    )
