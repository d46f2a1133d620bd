"""Gaussian mixtures with diagonal covariances, one mixture per pdf, and their expectation-maximisation.

Shape suffixes: N or T frames, D feature dim, P pdfs, K Gaussians per pdf (absent ones have weight 0).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from asr_hf.errors import InputError
from asr_hf.options import option, require

_LOG_2PI = float(np.log(2 * np.pi))


@dataclass
class GmmOptions:
    """Training of a GMM by Viterbi EM with mixture growth."""

    gaussians: int = option(8, "Gaussians per pdf at the end")
    states: int = option(3, "HMM states of a phone, at least 2")
    silence_states: int = option(3, "HMM states of the silence phone, at least 2")
    first_passes: int = option(10, "EM passes with one Gaussian per pdf")
    passes: int = option(4, "EM passes after each doubling of the Gaussians")
    realign_every: int = option(2, "passes from one realignment to the next")
    variance_floor: float = option(0.01, "lowest variance, as a fraction of the variance of all frames")
    min_occupancy: float = option(10.0, "a Gaussian with fewer frames is dropped; one is split only above twice this")
    split_distance: float = option(0.2, "standard deviations between a split Gaussian's mean and each half's")

    def __post_init__(self) -> None:
        for name in ("gaussians", "first_passes", "passes", "realign_every"):
            require(getattr(self, name) >= 1, f"gmm.{name}", getattr(self, name), "must be at least 1")
        for name in ("states", "silence_states"):
            require(getattr(self, name) >= 2, f"gmm.{name}", getattr(self, name), "must be at least 2")
        for name in ("variance_floor", "min_occupancy", "split_distance"):
            require(0 < getattr(self, name) < float("inf"), f"gmm.{name}", getattr(self, name), "must be positive")


@dataclass
class GmmStats:
    """Sufficient statistics, float64: occupancies (P, K), Σγx and Σγx² (P, K, D), log-likelihood and frames."""

    occupancy_PK: Tensor
    first_PKD: Tensor
    second_PKD: Tensor
    log_likelihood: float = 0.0
    frames: int = 0

    @classmethod
    def zeros(cls, pdfs: int, gaussians: int, dim: int) -> "GmmStats":
        first = torch.zeros(pdfs, gaussians, dim, dtype=torch.float64)
        return cls(first.sum(-1), first, first.clone())

    def add(self, other: "GmmStats") -> None:
        self.occupancy_PK += other.occupancy_PK
        self.first_PKD += other.first_PKD
        self.second_PKD += other.second_PKD
        self.log_likelihood += other.log_likelihood
        self.frames += other.frames


class Gmm:
    """A Gaussian mixture for every pdf: log weights (P, K), means and variances (P, K, D), float64."""

    acoustic_scale: ClassVar[float] = 0.1  # of decoding, unless it is told another one

    def __init__(self, log_weights_PK: Tensor, means_PKD: Tensor, variances_PKD: Tensor) -> None:
        self.log_weights_PK, self.means_PKD, self.variances_PKD = log_weights_PK, means_PKD, variances_PKD
        self.num_pdfs, self.max_gaussians, self.dim = means_PKD.shape
        # log w + log N(x; μ, σ²) = constant + linear·x + square·x²
        self.linear_PKD = means_PKD / variances_PKD
        self.square_PKD = -0.5 / variances_PKD
        norm = self.dim * _LOG_2PI + variances_PKD.log().sum(-1) + (means_PKD * self.linear_PKD).sum(-1)
        self.constant_PK = log_weights_PK - 0.5 * norm

    @property
    def num_gaussians(self) -> int:
        return int(torch.isfinite(self.log_weights_PK).sum())

    def log_likelihoods(self, feats_TD: np.ndarray, pdfs: np.ndarray | None = None) -> np.ndarray:
        """Natural-log likelihoods (T, P) float32 of frames under every pdf, or under the given pdfs (T, len(pdfs)).

        Raises:
            InputError: the feature dimension is not that of the model.
        """
        if feats_TD.shape[1] != self.dim:
            raise InputError(
                f"the GMM has {self.dim} feature dimensions, the features {feats_TD.shape[1]}",
                "Compute the features with the options of features.json in the model folder.",
            )
        chosen = slice(None) if pdfs is None else torch.from_numpy(np.asarray(pdfs, dtype=np.int64))
        weights = torch.cat([self.linear_PKD[chosen], self.square_PKD[chosen]], dim=-1).flatten(0, 1)
        constants = self.constant_PK[chosen]
        x = torch.from_numpy(np.array(feats_TD, dtype=np.float32))
        scores = torch.cat([x, x.square()], dim=1) @ weights.T.float() + constants.flatten().float()
        return torch.logsumexp(scores.view(len(x), *constants.shape), dim=-1).numpy()

    def accumulate(self, feats_ND: Tensor, pdfs_N: Tensor) -> GmmStats:
        """E-step: the statistics of frames aligned to pdfs (one pdf a frame), in float64."""
        stats = GmmStats.zeros(self.num_pdfs, self.max_gaussians, self.dim)
        sorted_pdfs, order = torch.sort(pdfs_N, stable=True)
        present, counts = torch.unique_consecutive(sorted_pdfs, return_counts=True)
        frames = feats_ND.double()[order].split(counts.tolist())
        for pdf, x in zip(present.tolist(), frames, strict=True):
            squares = x.square()
            scores = self.constant_PK[pdf] + x @ self.linear_PKD[pdf].T + squares @ self.square_PKD[pdf].T
            total = torch.logsumexp(scores, dim=1, keepdim=True)
            posterior = (scores - total).exp()
            stats.occupancy_PK[pdf] = posterior.sum(0)
            stats.first_PKD[pdf] = posterior.T @ x
            stats.second_PKD[pdf] = posterior.T @ squares
            stats.log_likelihood += float(total.sum())
        stats.frames = len(pdfs_N)
        return stats

    def updated(self, stats: GmmStats, variance_floor_D: Tensor, min_occupancy: float) -> "Gmm":
        """M-step: the mixtures of maximum likelihood under variance floors.

        Gaussians with fewer frames than `min_occupancy` are dropped, but for the last of a pdf. A pdf without frames
        stays as it is.
        """
        occupancy = stats.occupancy_PK
        best = torch.nn.functional.one_hot(occupancy.argmax(1), self.max_gaussians).bool()
        alive = torch.isfinite(self.log_weights_PK) & ((occupancy >= min_occupancy) | best) & (occupancy > 0)
        count = torch.where(alive, occupancy, 0.0)
        weights = count / count.sum(1, keepdim=True)
        safe = torch.where(alive, occupancy, 1.0)[..., None]
        means = stats.first_PKD / safe
        variances = torch.maximum(stats.second_PKD / safe - means.square(), variance_floor_D)
        trained = alive.any(1, keepdim=True)
        keep = ~alive[..., None]
        return Gmm(
            torch.where(trained, weights.log(), self.log_weights_PK),
            torch.where(keep, self.means_PKD, means),
            torch.where(keep, self.variances_PKD, variances),
        )

    def grown(self, gaussians: int, occupancy_PK: Tensor, options: GmmOptions) -> "Gmm":
        """Split the heaviest Gaussians of each pdf along their standard deviations until it has `gaussians`.

        A Gaussian with fewer than twice `options.min_occupancy` frames is not split.
        """
        means = self.means_PKD.new_zeros(self.num_pdfs, gaussians, self.dim)
        variances = torch.ones_like(means)
        log_weights = means.new_full((self.num_pdfs, gaussians), -torch.inf)
        for pdf in range(self.num_pdfs):
            alive = torch.isfinite(self.log_weights_PK[pdf]).nonzero()[:, 0].tolist()
            mixture = [(float(occupancy_PK[pdf, k]), self.log_weights_PK[pdf, k], self.means_PKD[pdf, k],
                        self.variances_PKD[pdf, k]) for k in alive]  # fmt: skip
            while len(mixture) < gaussians:
                heaviest = max(range(len(mixture)), key=lambda place: mixture[place][0])
                frames, log_weight, mean, variance = mixture[heaviest]
                if frames < 2 * options.min_occupancy:
                    break
                half = (frames / 2, log_weight - np.log(2.0))
                step = options.split_distance * variance.sqrt()
                mixture[heaviest] = (*half, mean + step, variance)
                mixture.append((*half, mean - step, variance))
            for place, (_, log_weight, mean, variance) in enumerate(mixture):
                log_weights[pdf, place], means[pdf, place], variances[pdf, place] = log_weight, mean, variance
        return Gmm(log_weights, means, variances)

    def save(self, folder: Path | str) -> None:
        """Write gmm.safetensors."""
        tensors = {"log_weights": self.log_weights_PK, "means": self.means_PKD, "variances": self.variances_PKD}
        data = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()})
        (Path(folder) / "gmm.safetensors").write_bytes(data)

    @classmethod
    def load(cls, folder: Path | str) -> "Gmm":
        """Read gmm.safetensors of a MODEL folder (InputError when it is missing or damaged)."""
        path = Path(folder) / "gmm.safetensors"
        if not path.is_file():
            raise InputError(
                f"{path} is missing: {folder} holds no GMM", "Name a folder that asr-hf mono or tri wrote."
            )
        try:
            tensors = load_file(path)
            return cls(tensors["log_weights"], tensors["means"], tensors["variances"])
        except Exception as error:  # safetensors raises its own error type on damage
            raise InputError(f"{path} is damaged ({error})", "Train the model again.") from None


def single_gaussians(counts_P: Tensor, first_PD: Tensor, second_PD: Tensor, variance_floor_D: Tensor) -> Gmm:
    """One Gaussian for every pdf from its counts, Σx and Σx²; a pdf without frames gets those of all frames."""
    empty = (counts_P == 0)[:, None]
    counts = torch.where(empty, counts_P.sum(), counts_P[:, None])
    means = torch.where(empty, first_PD.sum(0), first_PD) / counts
    variances = torch.where(empty, second_PD.sum(0), second_PD) / counts - means.square()
    variances = torch.maximum(variances, variance_floor_D)
    return Gmm(torch.zeros(len(counts_P), 1, dtype=torch.float64), means[:, None], variances[:, None])


def growth_stages(gaussians: int) -> Iterable[int]:
    """1, 2, 4, … and at last `gaussians`."""
    stage = 1
    while stage < gaussians:
        yield stage
        stage *= 2
    yield gaussians
