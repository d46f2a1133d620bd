"""Lattice-free MMI: the share of the transcript's paths in all paths of a phone n-gram.

Per piece of an utterance, with outputs y (T, P), and γ_den, γ_num the posteriors of pdfs over the denominator's and the
numerator's paths:
    loss   log Z_den(y) − log Z_num(y) ≥ 0, whose gradient is δ = γ_den − γ_num
    M      "gauss_newton": H_den, the covariance of the denominator's paths; log Z_den is convex in y, −log Z_num is
           concave and left out
and where asked for ½c‖y‖² (M: c·I), and w times the cross-entropy of a second output's softmax p against γ_num, which
counts as constant (M: w(diag(p) − ppᵀ)). The other M are
    "frame_gauss_newton"   diag(γ_t) − γ_tγ_tᵀ, γ = γ_den: H_den without what frames share (Kingsbury et al. 2012)
    "utterance_fisher"     δδᵀ, the empirical Fisher matrix (Haider and Woodland 2018); "frame_fisher" δ_tδ_tᵀ
    "path_fisher"          the mean of δδᵀ, δ = γ_den − the pdfs of a path drawn from the denominator; expects H_den
    "label_fisher"         the mean of δδᵀ, δ = γ_den − γ_num of the labels of such a path, both without the leak: the
                           Fisher matrix of label sequences, H_den − E[H_num] by the law of total covariance
Source: Povey et al. (2016), Purely sequence-trained neural networks for ASR based on lattice-free MMI.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

import torch

from asr_hf.criteria.criterion import CriterionLinearisation, OutputOperator, Outputs
from asr_hf.criteria.cross_entropy import drawn_score
from asr_hf.criteria.denominator import Denominator, DenominatorPaths
from asr_hf.criteria.log_paths import Numerators
from asr_hf.criteria.matrices import (
    DenseScore,
    Operator,
    Score,
    frame_fisher,
    mean_of_rows,
    softmax_covariance,
    utterance_fisher,
)
from asr_hf.criteria.path_samples import sample_paths
from asr_hf.data.minibatch import Batch
from asr_hf.hmm.chain_folder import Chain
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.path_labels import numerator_of_path
from asr_hf.options import option, require

OUTPUT, BRANCH = "output", "cross_entropy"


@dataclass
class LfmmiOptions:
    """Lattice-free MMI against the denominator and numerators of a CHAIN folder."""

    sequence: ClassVar[bool] = True

    leak: float = option(0.1, "leaky HMM: weight of moving to the initial distribution after each frame")
    output_l2: float = option(0.0, "c of the penalty ½c‖y‖² per frame on the outputs")
    branch: float = option(0.0, "weight of the cross-entropy of a second output against the numerator's posteriors")
    chunk: int = option(150, "frames of the pieces of utterances (0: whole ones); a model's own chunk is taken first")
    draws: int = option(4, "paths drawn per piece for optimizer.matrix=path_fisher and label_fisher")

    def __post_init__(self) -> None:
        require(0 <= self.leak < 1, "criterion.leak", self.leak, "must lie in [0, 1)")
        for name in ("output_l2", "branch", "chunk"):
            require(getattr(self, name) >= 0, f"criterion.{name}", getattr(self, name), "must not be negative")
        require(self.draws >= 1, "criterion.draws", self.draws, "must be at least 1")

    def build(self, alignments: Path) -> "Lfmmi":
        chain = Chain.load(alignments)
        return Lfmmi(self, Denominator(chain.denominator, chain.hmm.num_pdfs, self.leak))


class Lfmmi:
    """Lattice-free MMI of the output "output" (B, T, P), and the cross-entropy of "cross_entropy" beside it."""

    matrices = (
        *("gauss_newton", "frame_gauss_newton", "utterance_fisher", "frame_fisher"),
        *("path_fisher", "label_fisher"),
    )
    sequence = True

    def __init__(self, options: LfmmiOptions, denominator: Denominator) -> None:
        self.options, self.denominator = options, denominator
        self.chunk, self.branched = options.chunk, options.branch > 0

    @cached_property
    def _composer(self) -> Composer:
        return Composer(self.denominator.graph)

    def values(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """Loss of each row (B,), float64 (nats); +∞ where the numerator has no path, NaN where outputs are none."""
        y_BTP, frames_B = outputs[OUTPUT], batch.mask_BT.sum(dim=1)
        numerator = Numerators(batch.supervision, frames_B, y_BTP.device)
        value_B = self.denominator.log_totals(y_BTP, frames_B)
        if not self.branched:
            return self._with_terms(value_B - numerator.log_totals(y_BTP), None, outputs, batch)
        of_numerator = numerator.paths(y_BTP)
        return self._with_terms(value_B - of_numerator.log_total_B, of_numerator.posteriors_BTP, outputs, batch)

    def linearize(self, outputs: Outputs, batch: Batch) -> CriterionLinearisation:
        """Value, gradient and the M of `matrices`; padded frames have gradient and curvature 0."""
        y_BTP, frames_B = outputs[OUTPUT], batch.mask_BT.sum(dim=1)
        numerator = Numerators(batch.supervision, frames_B, y_BTP.device).paths(y_BTP)
        denominator = self.denominator.paths(y_BTP, frames_B)
        delta_BTP = denominator.posteriors_BTP - numerator.posteriors_BTP
        mask_BT1 = batch.mask_BT[..., None]
        gradient = {OUTPUT: torch.add(delta_BTP, torch.where(mask_BT1, y_BTP, 0.0), alpha=self.options.output_l2)}
        if self.branched:
            p_BTP = torch.where(mask_BT1, torch.softmax(outputs[BRANCH], dim=-1), 0.0)
            gradient[BRANCH] = self.options.branch * (p_BTP - numerator.posteriors_BTP)
            of_branch = softmax_covariance(p_BTP)
        value_B = denominator.log_total_B - numerator.log_total_B

        def with_terms(name: str) -> OutputOperator:
            def operator(tangent: Outputs) -> Outputs:
                v_BTP = tangent[OUTPUT]
                product = {OUTPUT: of_paths[name]()(v_BTP)}
                if self.options.output_l2:
                    product[OUTPUT] += self.options.output_l2 * torch.where(mask_BT1, v_BTP, 0.0)
                if self.branched:
                    product[BRANCH] = self.options.branch * of_branch(tangent[BRANCH])
                return product

            return operator

        score = DenseScore(delta_BTP)
        of_paths: dict[str, Callable[[], Operator]] = {
            "gauss_newton": lambda: denominator.covariance,
            "frame_gauss_newton": lambda: softmax_covariance(denominator.posteriors_BTP),
            "utterance_fisher": lambda: utterance_fisher(score, batch.utterance_B),
            "frame_fisher": lambda: frame_fisher(score),
            "path_fisher": cache(lambda: self._path_fisher(denominator, batch)),
            "label_fisher": cache(lambda: self._label_fisher(y_BTP, batch, frames_B)),
        }
        held = delta_BTP.nbytes + y_BTP.nbytes + (p_BTP.nbytes if self.branched else 0)
        return CriterionLinearisation(
            value_B=self._with_terms(value_B, numerator.posteriors_BTP, outputs, batch),
            frames_B=frames_B,
            gradient=gradient,
            operators={name: with_terms(name) for name in self.matrices},
            bytes_held=denominator.bytes_held + held,
        )

    def sampled_score(self, outputs: Outputs, batch: Batch, generator: torch.Generator) -> Outputs:
        """δ = γ_den − the pdfs of a path drawn from the denominator, with what gives the other terms their M."""
        y_BTP = outputs[OUTPUT]
        denominator = self.denominator.paths(y_BTP, batch.mask_BT.sum(dim=1))
        pdf_BT = sample_paths(denominator, 1, generator).pdf_BKT[:, 0]
        real_BT = batch.mask_BT.to(y_BTP.dtype)
        score = {OUTPUT: Score(denominator.posteriors_BTP, pdf_BT.clamp_min(0), pdf_BT >= 0).times(real_BT)}
        if self.options.output_l2:
            noise_BTP = torch.empty_like(y_BTP).normal_(generator=generator) * real_BT[..., None]
            score[OUTPUT].add_(noise_BTP, alpha=self.options.output_l2**0.5)
        if self.branched:
            p_BTP = torch.softmax(outputs[BRANCH], dim=-1)
            score[BRANCH] = self.options.branch**0.5 * drawn_score(p_BTP, batch.mask_BT, generator)
        return score

    def _with_terms(
        self, value_B: torch.Tensor, gamma_num_BTP: torch.Tensor | None, outputs: Outputs, batch: Batch
    ) -> torch.Tensor:
        """The losses of paths with the penalty on the outputs and the cross-entropy of the branch."""
        mask_BT1 = batch.mask_BT[..., None]
        if self.options.output_l2:
            squares_BTP = torch.where(mask_BT1, outputs[OUTPUT].square(), 0.0)
            value_B = value_B + 0.5 * self.options.output_l2 * squares_BTP.double().sum(dim=(1, 2))
        if gamma_num_BTP is not None and self.branched:
            log_p_BTP = torch.log_softmax(outputs[BRANCH], dim=-1)
            entropy_BTP = torch.where(mask_BT1, gamma_num_BTP * log_p_BTP, 0.0)
            value_B = value_B - self.options.branch * entropy_BTP.double().sum(dim=(1, 2))
        return value_B.masked_fill(batch.mask_BT.sum(dim=1) == 0, 0.0)

    def _path_fisher(self, denominator: DenominatorPaths, batch: Batch) -> Operator:
        drawn = sample_paths(denominator, self.options.draws, _generator(batch))
        gamma_BTP = denominator.posteriors_BTP
        targets = drawn.pdf_BKT.unbind(dim=1)
        return mean_of_rows([Score(gamma_BTP, pdf_BT.clamp_min(0), pdf_BT >= 0) for pdf_BT in targets])

    def _label_fisher(self, y_BTP: torch.Tensor, batch: Batch, frames_B: torch.Tensor) -> Operator:
        plain = self.denominator
        everything = Denominator(plain.graph, plain.num_pdfs, 0.0).paths(y_BTP, frames_B)
        drawn = sample_paths(everything, self.options.draws, _generator(batch))
        scores = []
        state_KBT, enters_KBT = drawn.state_BKT.transpose(0, 1).cpu(), drawn.enters_BKT.transpose(0, 1).cpu()
        for state_BT, enters_BT in zip(state_KBT, enters_KBT, strict=True):
            labels = [
                numerator_of_path(self._composer, state_T[state_T >= 0].numpy(), enters_T[state_T >= 0].numpy())
                for state_T, enters_T in zip(state_BT, enters_BT, strict=True)
            ]
            numerator = Numerators(labels, frames_B, y_BTP.device).paths(y_BTP)
            scores.append(DenseScore(everything.posteriors_BTP - numerator.posteriors_BTP))
        return mean_of_rows(scores)


def _generator(batch: Batch) -> torch.Generator:
    """Random numbers that are a function of the rows of a minibatch alone."""
    rows = torch.cat([batch.utterance_B.cpu(), batch.mask_BT.sum(dim=1).cpu()])
    return torch.Generator(batch.mask_BT.device).manual_seed(zlib.crc32(rows.numpy().tobytes()))
