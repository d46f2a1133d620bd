"""Viterbi EM of a GMM-HMM: align, accumulate, update, and let the mixtures grow.

Each pass collects statistics over chunks of utterances that workers deal with in any order; they are float64 and
summed in the order of the chunks, so that the model does not depend on the number of jobs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import Fingerprint
from asr_hf.data.folder import whole_folder
from asr_hf.errors import InputError
from asr_hf.hmm.alignment import Alignment, align_batch, require_some, write_alignments
from asr_hf.hmm.gmm import Gmm, GmmOptions, GmmStats, growth_stages
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.training_graph import TrainingGraph, training_graph
from asr_hf.hmm.workers import Workers

_SELF_LOOP_RANGE = (0.05, 0.99)


@dataclass(frozen=True)
class Moments:
    """Frames, Σx and Σx² (D,), float64."""

    count: float
    first_D: Tensor
    second_D: Tensor


@dataclass(frozen=True)
class PassTask:
    """One pass over one chunk: with the given alignments, or with new ones where `alignments` is None."""

    chunk: int
    gmm: Gmm
    self_loop_P: np.ndarray
    alignments: dict[str, Alignment] | None


@dataclass(frozen=True)
class PassResult:
    alignments: dict[str, Alignment]
    stats: GmmStats
    visits_P: np.ndarray  # how often each pdf's state was entered
    frames_P: np.ndarray


@dataclass
class Speech:
    """Features and transcripts of a training set, in chunks; lives in every worker."""

    archive: FeatureArchive
    lang: Lang
    hmm: HmmModel
    transcripts: dict[str, tuple[str, ...]]
    chunks: list[list[str]]
    _graphs: dict[int, list[TrainingGraph]] = field(default_factory=dict)

    def graphs(self, chunk: int) -> list[TrainingGraph]:
        if chunk not in self._graphs:
            words = (self.transcripts[utterance] for utterance in self.chunks[chunk])
            self._graphs[chunk] = [training_graph(transcript, self.lang, self.hmm) for transcript in words]
        return self._graphs[chunk]

    def moments(self, chunk: int) -> Moments:
        frames = torch.from_numpy(np.concatenate([self.archive[name] for name in self.chunks[chunk]])).double()
        return Moments(len(frames), frames.sum(0), frames.square().sum(0))

    def em_pass(self, task: PassTask) -> PassResult:
        alignments = task.alignments if task.alignments is not None else self._align(task)
        names = [name for name in self.chunks[task.chunk] if name in alignments]
        pdfs = np.concatenate([np.zeros(0, np.int32), *(alignments[name].pdf_T for name in names)])
        feats = np.concatenate([np.zeros((0, self.archive.dim), np.float32), *(self.archive[name] for name in names)])
        stats = task.gmm.accumulate(torch.from_numpy(feats), torch.from_numpy(pdfs).long())
        visits, frames = np.zeros((2, self.hmm.num_pdfs))
        for name in names:
            entered = np.diff(alignments[name].state_T, prepend=-1) != 0
            visits += np.bincount(alignments[name].pdf_T[entered], minlength=len(visits))
            frames += np.bincount(alignments[name].pdf_T, minlength=len(frames))
        return PassResult(alignments, stats, visits, frames)

    def _align(self, task: PassTask) -> dict[str, Alignment]:
        graphs = self.graphs(task.chunk)
        emissions = []
        for name, graph in zip(self.chunks[task.chunk], graphs, strict=True):
            pdfs, column = np.unique(graph.pdf, return_inverse=True)
            emissions.append(task.gmm.log_likelihoods(self.archive[name], pdfs)[:, column])
        found = align_batch(graphs, emissions, replace(self.hmm, self_loop=task.self_loop_P))
        return {name: ali for name, ali in zip(self.chunks[task.chunk], found, strict=True) if ali is not None}


@dataclass(frozen=True)
class PassReport:
    """One EM pass: log-likelihood per frame (natural log) before its update, Gaussians, seconds."""

    number: int
    log_likelihood: float
    gaussians: int
    realigned: bool
    seconds: float

    def __str__(self) -> str:
        how = "realigned" if self.realigned else ""
        return (
            f"pass {self.number:3d}  log-likelihood/frame {self.log_likelihood:9.4f}  gaussians {self.gaussians:6d}  "
            f"{self.seconds:5.1f} s  {how}"
        ).rstrip()


@dataclass(frozen=True)
class TrainingReport:
    """What a GMM training did: pdfs, Gaussians, final log-likelihood per frame, utterances left out as too short."""

    num_pdfs: int
    gaussians: int
    log_likelihood: float
    left_out: list[str]

    def __str__(self) -> str:
        missed = f"; left out as too short ({len(self.left_out)}): {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{self.num_pdfs} pdfs, {self.gaussians} gaussians, log-likelihood/frame {self.log_likelihood:.4f}{missed}"
        )


@dataclass
class ViterbiTraining:
    """The state of a training: the GMM, the HMM's self-loops and the alignments of every chunk."""

    workers: Workers
    options: GmmOptions
    variance_floor_D: Tensor
    hmm: HmmModel
    gmm: Gmm
    alignments: list[dict[str, Alignment]]

    def one_pass(self, realign: bool) -> GmmStats:
        """Statistics of one pass under the current model; new alignments and self-loops stay here."""
        tasks = [
            PassTask(chunk, self.gmm, self.hmm.self_loop, None if realign else alignments)
            for chunk, alignments in enumerate(self.alignments)
        ]
        results: list[PassResult] = self.workers.map("em_pass", tasks)
        total = GmmStats.zeros(self.gmm.num_pdfs, self.gmm.max_gaussians, self.gmm.dim)
        for result in results:
            total.add(result.stats)
        self.alignments = [result.alignments for result in results]
        visits = sum(result.visits_P for result in results)
        frames = sum(result.frames_P for result in results)
        stay = np.where(frames > 0, 1.0 - visits / np.maximum(frames, 1.0), self.hmm.self_loop)
        self.hmm = replace(self.hmm, self_loop=np.clip(stay, *_SELF_LOOP_RANGE))
        return total

    def run(self, report: Callable[[PassReport], None]) -> None:
        """Passes with one Gaussian per pdf, realigned each but the first; then doublings up to the wanted number."""
        options, number = self.options, 0
        for stage in growth_stages(options.gaussians):
            for step in range(options.first_passes if stage == 1 else options.passes):
                started = time.perf_counter()
                realign = number > 0 and (stage == 1 or step % options.realign_every == 0)
                stats = self.one_pass(realign)
                number += 1
                level = stats.log_likelihood / max(stats.frames, 1)
                report(PassReport(number, level, self.gmm.num_gaussians, realign, time.perf_counter() - started))
                self.gmm = self.gmm.updated(stats, self.variance_floor_D, options.min_occupancy)
            if stage < options.gaussians:
                wanted = min(2 * stage, options.gaussians)
                self.gmm = self.gmm.grown(wanted, stats.occupancy_PK, options)

    def finish(self, fingerprint: Fingerprint, model_dir: Path | str, names: list[str]) -> TrainingReport:
        """Align once more with the final model and write MODEL, which is an ALI of its training set."""
        stats = self.one_pass(realign=True)
        alignments = {name: ali for chunk in self.alignments for name, ali in chunk.items()}
        left_out = sorted(set(names) - alignments.keys())
        require_some(alignments, left_out)
        with whole_folder(model_dir, "hmm.json") as folder:
            self.gmm.save(folder)
            self.hmm.save(folder)
            write_alignments(folder, alignments, model_dir)
            fingerprint.save(folder)
        level = stats.log_likelihood / stats.frames
        return TrainingReport(self.hmm.num_pdfs, self.gmm.num_gaussians, level, left_out)


def sum_moments(parts: list[Moments]) -> Moments:
    return Moments(
        sum(part.count for part in parts),
        torch.stack([part.first_D for part in parts]).sum(0),
        torch.stack([part.second_D for part in parts]).sum(0),
    )


def global_variance(moments: Moments) -> Tensor:
    """(D,) variance of all frames.

    Raises:
        InputError: a feature dimension that never changes.
    """
    variance = moments.second_D / moments.count - (moments.first_D / moments.count).square()
    if bool((variance <= 0).any()):
        dimension = int((variance <= 0).nonzero()[0])
        raise InputError(f"feature dimension {dimension} is constant in all frames", "Leave it out of the features.")
    return variance
