"""Features of a whole data directory, in parallel jobs: audio → static features → transform, deltas, splicing.

Work is cut into parts of about PART utterances (whole speakers in the second pass) whatever the number of jobs, so
that the files have the same bytes for any number of them. FEATS appears as a whole or not at all.
"""

import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from asr_hf.data import fingerprint
from asr_hf.data.archive import FeatureArchive, write_matrices
from asr_hf.data.audio import read_audio, sampling_rate
from asr_hf.data.features import FeatureOptions, append_deltas, check_rate, compute, splice
from asr_hf.data.folder import whole_folder
from asr_hf.data.kaldi_dir import Utterance, invert, read_data_dir, scan_data_dir, write_speakers, write_transcripts
from asr_hf.data.progress import track
from asr_hf.data.speed import at_speed
from asr_hf.data.table import read_table, write_table
from asr_hf.data.transform import estimate
from asr_hf.errors import InputError
from asr_hf.options import require

PART = 100  # utterances
Impossible = tuple[str, str]  # utterance, reason
Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Extraction:
    """What was written: utterances, speakers, frames, dimension, and the utterances left out with the reason."""

    utterances: int
    speakers: int
    frames: int
    dim: int
    skipped: list[Impossible]


@dataclass(frozen=True)
class _StaticTask:
    utterances: list[Utterance]
    prefix: Path
    options: FeatureOptions
    sample_rate: int


@dataclass(frozen=True)
class _FinishTask:
    static: FeatureArchive
    spk2utt: dict[str, list[str]]
    prefix: Path
    final_dir: Path
    options: FeatureOptions


def extract_features(
    data_dir: str | Path,
    feats_dir: str | Path,
    options: FeatureOptions,
    jobs: int = 1,
    from_feats: bool = False,
) -> Extraction:
    """Compute the features of a data directory into a FEATS folder: archives, scp, transcripts, speakers, fingerprint.

    At a speed other than 1 all ids written begin with it, so that the folder can be joined with that of speed 1.

    Args:
        jobs: processes.
        from_feats: take DATA/feats.scp of another program; only the per-speaker transform is applied.

    Raises:
        OptionError: another speed than 1 together with from_feats.
        InputError: faults of the directory, impossible utterances (all of them are listed), a full disk. What stood in
            feats_dir before is then intact.
    """
    if jobs < 1:
        raise InputError(f"{jobs} jobs are impossible", "Give --jobs 1 or more.")
    if from_feats:
        require(options.speed == 1, "features.speed", options.speed, "changes audio, and --from-feats reads none")
    with whole_folder(feats_dir, fingerprint.FILE) as work:
        scratch = work / "static"
        rate: int | None = None
        bad: list[Impossible] = []
        if from_feats:
            options = replace(options, deltas=0, splice_left=0, splice_right=0)
            utterances = _read_imported(data_dir)
            scp = Path(data_dir) / "feats.scp"
        else:
            utterances = at_speed(read_data_dir(data_dir, options.allow_pipes), options.speed)
            rate = _common_rate(utterances, options)
            scp, bad = _compute_static(utterances, scratch, options, rate, jobs)
        left = _leave_out(utterances, bad, options.skip_bad, str(data_dir))
        archive = FeatureArchive(scp).subset(utterance.id for utterance in left)
        if from_feats:
            bad = _not_finite(archive)
            left = _leave_out(left, bad, options.skip_bad, str(data_dir))
        utt2spk = {utterance.id: utterance.speaker for utterance in left}
        _finish(archive, invert(utt2spk), work, Path(feats_dir), options, jobs)
        _remove_folder(scratch)
        write_transcripts(work / "text", {utterance.id: utterance.words for utterance in left})
        write_speakers(work, utt2spk)
        written = FeatureArchive(work / "feats.scp")
        fingerprint.write_fingerprint(work, options, written.dim, rate, imported=from_feats)
        frames = sum(written.num_frames(utt) for utt in written)
        return Extraction(len(left), len(set(utt2spk.values())), frames, written.dim, bad)


def _compute_static(
    utterances: list[Utterance], scratch: Path, options: FeatureOptions, rate: int, jobs: int
) -> tuple[Path, list[Impossible]]:
    """First pass: the static features of every utterance, and which utterances are impossible."""
    parts = [utterances[start : start + PART] for start in range(0, len(utterances), PART)]
    tasks = [_StaticTask(part, scratch / str(number), options, rate) for number, part in enumerate(parts, start=1)]
    bad = [fault for faults in _run(_static_part, tasks, jobs, "features") for fault in faults]
    _merge([task.prefix for task in tasks], scratch / "static.scp")
    return scratch / "static.scp", bad


def _static_part(task: _StaticTask) -> list[Impossible]:
    bad: list[Impossible] = []

    def matrices() -> Iterator[tuple[str, np.ndarray]]:
        for utterance in task.utterances:
            try:
                yield utterance.id, _static(utterance, task)
            except InputError as error:
                bad.append((utterance.id, str(error)))

    write_matrices(task.prefix, matrices())
    return bad


def _static(utterance: Utterance, task: _StaticTask) -> np.ndarray:
    """Static features (T, D) of one utterance; raises InputError where it is impossible."""
    samples, rate = read_audio(utterance)
    if rate != task.sample_rate:
        raise InputError(f"sampled at {rate} Hz, not {task.sample_rate}", "Resample it: one rate in a directory.")
    if not samples.any():
        raise InputError("every sample is zero" if len(samples) else "no samples", "Leave it out.")
    static = compute(samples, task.options, rate, seed=zlib.crc32(utterance.id.encode()))
    if not np.isfinite(static).all():
        raise InputError("its features are not finite", "Its samples may be NaN or infinite.")
    return static


def _finish(
    static: FeatureArchive,
    spk2utt: dict[str, list[str]],
    work: Path,
    final_dir: Path,
    options: FeatureOptions,
    jobs: int,
) -> None:
    """Second pass: transform, deltas and splicing, speaker by speaker, into feats.N.ark and feats.scp."""
    tasks = []
    for number, group in enumerate(_group_speakers(spk2utt), start=1):
        utterances = [utt for utts in group.values() for utt in utts]
        tasks.append(_FinishTask(static.subset(utterances), group, work / f"feats.{number}", final_dir, options))
    for _ in _run(_finish_part, tasks, jobs, options.transform):
        pass
    _merge([task.prefix for task in tasks], work / "feats.scp")


def _finish_part(task: _FinishTask) -> None:
    options = task.options

    def matrices() -> Iterator[tuple[str, np.ndarray]]:
        for utterances in task.spk2utt.values():
            transform = estimate(options.transform, (task.static[utt] for utt in utterances))
            for utt in utterances:
                with_deltas = append_deltas(transform(task.static[utt]), options.deltas)
                yield utt, splice(with_deltas, options.splice_left, options.splice_right)

    write_matrices(task.prefix, matrices(), task.final_dir)


def _group_speakers(spk2utt: dict[str, list[str]]) -> list[dict[str, list[str]]]:
    """Cut the speakers into groups of at least PART utterances (the last may have fewer)."""
    groups: list[dict[str, list[str]]] = [{}]
    for speaker, utts in spk2utt.items():
        if sum(map(len, groups[-1].values())) >= PART:
            groups.append({})
        groups[-1][speaker] = utts
    return groups


def _run(work: Callable[[Task], Answer], tasks: list[Task], jobs: int, what: str) -> Iterator[Answer]:
    """Answers of all tasks, in order, each computed by one thread."""
    if jobs == 1 or len(tasks) == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from track(map(work, tasks), len(tasks), what)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("forkserver")  # fork alone may deadlock in a process with threads
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(min(jobs, len(tasks)), context, _begin_job) as pool:
            yield from track(pool.map(work, tasks), len(tasks), what)
    except BrokenProcessPool as error:
        raise InputError("a job was killed, perhaps for want of memory", "Try again with fewer --jobs.") from error


def _begin_job() -> None:
    """In a new job: one thread, and an end when the parent is killed, which could not stop its jobs itself."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _merge(prefixes: list[Path], scp: Path) -> None:
    """One sorted scp of the parts' scps, which are removed."""
    rows: list[tuple[str, str]] = []
    for prefix in prefixes:
        part = Path(f"{prefix}.scp")
        rows += [(utt, entry.value) for utt, entry in read_table(part).items()]
        part.unlink()
    write_table(scp, rows)


def _common_rate(utterances: list[Utterance], options: FeatureOptions) -> int:
    """The sampling rate asked for, or that of the first recording that can be read."""
    rate = options.sample_rate
    for utterance in utterances:
        if rate is not None:
            break
        try:
            rate = sampling_rate(utterance.recording)
        except InputError:
            continue  # listed with all other impossible utterances
    if rate is None:
        raise InputError("no recording can be read", "`asr-hf validate` says why.")
    check_rate(options, rate)
    return rate


def _read_imported(data_dir: str | Path) -> list[Utterance]:
    scan = scan_data_dir(data_dir, source="feats.scp")
    if scan.faults:
        raise scan.faults[0].error()
    return scan.utterances


def _not_finite(archive: FeatureArchive) -> list[Impossible]:
    bad: list[Impossible] = []
    for utt in archive:
        try:
            archive.check_finite(utt)
        except InputError as error:
            bad.append((utt, str(error)))
    return bad


def _leave_out(utterances: list[Utterance], bad: Iterable[Impossible], skip: bool, data_dir: str) -> list[Utterance]:
    """The utterances that are possible; raises InputError listing the others unless they are to be skipped."""
    reasons = dict(bad)
    left = [utterance for utterance in utterances if utterance.id not in reasons]
    if not reasons or (skip and left):
        return left
    listed = "\n  ".join(f"utterance '{utt}': {reason}" for utt, reason in sorted(reasons.items()))
    raise InputError(
        f"{data_dir}: {len(reasons)} of {len(utterances)} utterances are impossible:\n  {listed}\n",
        "Mend or remove them, or leave them out with features.skip_bad=true.",
    )


def _remove_folder(folder: Path) -> None:
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
