"""From features to hypotheses: one process opens features, graph and model once; several share the utterances.

What is found for an utterance depends on that utterance alone, never on the number of processes.
"""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch

from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import read_fingerprint, require_same
from asr_hf.data.progress import track
from asr_hf.decoding.acoustic import load_acoustic_model
from asr_hf.decoding.graph import read_graph
from asr_hf.decoding.search import Decoder, DecodingOptions, Hypothesis
from asr_hf.errors import InputError
from asr_hf.options import require


@dataclass(frozen=True)
class Task:
    """What is decoded with what: the folders FEATS, GRAPH and MODEL.

    `keep` holds the log-likelihoods of every utterance in memory, for decoding it again with other options.
    """

    feats_dir: str
    graph_dir: str
    model_dir: str
    keep: bool = False


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, so that sums have the same order (and bits) on every machine setting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Recognizer:
    """Decodes utterances of a task in this process.

    Raises:
        InputError: the features were made otherwise than those of the model's training, or the graph is of another
            model.
    """

    def __init__(self, task: Task) -> None:
        made = read_fingerprint(task.feats_dir)
        require_same(read_fingerprint(task.model_dir), made, task.model_dir, task.feats_dir)
        self.task = task
        self.frame_shift = made.options["frame_shift"] / 1000  # seconds
        self.model = load_acoustic_model(task.model_dir)
        self.graph = read_graph(task.graph_dir)
        if self.graph.num_pdfs != self.model.num_pdfs:
            raise InputError(
                f"{task.graph_dir} has {self.graph.num_pdfs} pdfs, the model {task.model_dir} {self.model.num_pdfs}",
                "Make the graph of this model with asr-hf graph.",
            )
        self.features = FeatureArchive(Path(task.feats_dir) / "feats.scp")
        self._kept: dict[str, np.ndarray] = {}

    def log_likelihoods(self, utterance: str) -> np.ndarray:
        """Acoustic log-likelihoods (T, P) of an utterance, float32."""
        if utterance in self._kept:
            return self._kept[utterance]
        with one_thread():
            loglikes_TP = self.model.log_likelihoods(self.features[utterance])
        if self.task.keep:
            self._kept[utterance] = loglikes_TP
        return loglikes_TP

    def recognize(self, utterance: str, options: DecodingOptions) -> tuple[Hypothesis, float]:
        """The hypothesis of an utterance and the seconds it took."""
        begin = time.perf_counter()
        hypothesis = Decoder(self.graph, options).decode(self.log_likelihoods(utterance), utterance)
        return hypothesis, time.perf_counter() - begin


@lru_cache(maxsize=1)
def _open(task: Task) -> Recognizer:
    """The recognizer of a worker process."""
    return Recognizer(task)


def _recognize(task: Task, utterance: str, options: DecodingOptions) -> tuple[Hypothesis, float]:
    return _open(task).recognize(utterance, options)


class Workers:
    """Decodes all utterances of a task, each always in the same one of `jobs` processes.

    With one job everything happens in this process. A context manager: leaving it ends the processes.
    """

    def __init__(self, task: Task, jobs: int = 1) -> None:
        require(jobs >= 1, "--jobs", jobs, "must be at least 1")
        self.task = task
        self.recognizer = Recognizer(task)  # refuses bad input before any process starts
        frames = {utterance: self.recognizer.features.num_frames(utterance) for utterance in self.utterances}
        self.audio_seconds = sum(frames.values()) * self.recognizer.frame_shift
        longest_first = sorted(self.utterances, key=lambda utterance: (-frames[utterance], utterance))
        self._dealt = {utterance: place % jobs for place, utterance in enumerate(longest_first)}
        self._processes: list[ProcessPoolExecutor] = []
        self._jobs = jobs
        self._stack = ExitStack()

    @property
    def utterances(self) -> list[str]:
        return sorted(self.recognizer.features.keys())

    def __enter__(self) -> Self:
        if self._jobs > 1:
            context = multiprocessing.get_context("spawn")
            for _ in range(self._jobs):
                process = ProcessPoolExecutor(1, mp_context=context)
                self._processes.append(process)
                self._stack.callback(process.shutdown, cancel_futures=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def recognize(self, options: DecodingOptions, title: str = "decoding") -> dict[str, tuple[Hypothesis, float]]:
        """Hypothesis and seconds of every utterance, in the order of their ids."""
        if not self._processes:
            shown = track(self._dealt, len(self._dealt), title)
            return dict(sorted((utterance, self.recognizer.recognize(utterance, options)) for utterance in shown))
        futures = {
            self._processes[process].submit(_recognize, self.task, utterance, options): utterance
            for utterance, process in self._dealt.items()
        }
        done = track(as_completed(futures), len(futures), title)
        return dict(sorted((futures[future], future.result()) for future in done))
