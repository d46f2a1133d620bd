"""What one rank knows about itself: how it was started, what it loaded, where it may run and which data it sees."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import asr_hf
from asr_hf.data.archive import FeatureArchive
from asr_hf.data.fingerprint import read_fingerprint
from asr_hf.errors import InputError

# Launchers and the variables that hold size and rank; hydra starts its proxies by srun, so PMI comes before Slurm.
LAUNCHERS = (
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI", "PMI_SIZE", "PMI_RANK"),
    ("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
SAMPLED_UTTERANCES = 8  # whose features are read to tell two folders apart


@dataclass(frozen=True)
class Launcher:
    """Who started this process, among how many (`name` is empty and `size` 1 where nobody says so)."""

    name: str = ""
    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Facts:
    """What one rank knows about itself; plain values, so that they can be sent, written and judged anywhere."""

    rank: int  # as the MPI library sees it
    size: int
    launcher: Launcher
    host: str
    library: tuple[str, str]  # name and version of the MPI library that mpi4py loaded; ("", reason) if it loaded none
    mpiexec: tuple[str, str, str]  # path, name and version of the mpiexec on PATH; empty where there is none
    ulfm: bool
    versions: dict[str, str]  # Python, torch, mpi4py, asr_hf and a digest of its source
    threads: int  # that torch takes
    cores: tuple[int, ...]  # on which this process may run
    machine_cores: int
    gpus: tuple[str, ...]  # name and id of each that this process sees
    data: dict[str, str]  # folder of features -> its digest
    faults: dict[str, str]  # folder of features -> why it cannot be read


def launcher_of(environment: Mapping[str, str]) -> Launcher:
    """The launcher as the environment of a process tells."""
    for name, size, rank in LAUNCHERS:
        if environment.get(size, "").isdigit() and environment.get(rank, "").isdigit():
            return Launcher(name, int(environment[rank]), int(environment[size]))
    return Launcher()


def ulfm_active(environment: Mapping[str, str]) -> bool:
    """Whether `mpiexec --with-ft ulfm` of Open MPI started this process."""
    return environment.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "yes")


def maker_of(version: str) -> tuple[str, str]:
    """(name, version) of the MPI whose `mpiexec --version` prints this text; the name is empty if it is unknown."""
    number = re.search(r"\d+(\.\d+)+", version)
    for mark, name in (("Open MPI", "Open MPI"), ("OpenRTE", "Open MPI"), ("Intel", "Intel MPI"), ("HYDRA", "MPICH")):
        if mark in version:
            return name, number[0] if number else ""
    return "", version.strip().split("\n", 1)[0]


def find_mpiexec() -> tuple[str, str, str]:
    """(path, name, version) of the mpiexec on PATH, or three empty strings."""
    path = shutil.which("mpiexec")
    if path is None:
        return "", "", ""
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return path, "", str(error)
    return path, *maker_of(shown.stdout + shown.stderr)


def source_digest() -> str:
    """12 hex digits of the source of the package: equal where the same code runs, whatever its version says."""
    root = Path(asr_hf.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return whole.hexdigest()[:12]


def feats_digest(folder: str) -> str:
    """12 hex digits of a FEATS folder: fingerprint, utterances, their frames, and the values of a few.

    Raises:
        InputError: the folder or an archive of it is missing, cut short or damaged.
    """
    whole = hashlib.sha256(read_fingerprint(folder).digest.encode())
    archive = FeatureArchive(Path(folder) / "feats.scp")
    names = archive.keys()
    for name in names:
        whole.update(f"{name} {archive.num_frames(name)}\n".encode())
    for name in names[:: max(1, len(names) // SAMPLED_UTTERANCES)]:
        whole.update(archive[name].tobytes())
    return whole.hexdigest()[:12]


def look_at(folders: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({folder: digest}, {folder: fault}) as this process sees the folders."""
    digests, faults = {}, {}
    for folder in folders:
        try:
            digests[folder] = feats_digest(folder)
        except InputError as error:
            faults[folder] = str(error)
    return digests, faults


def visible_gpus() -> tuple[str, ...]:
    """Name and id of each GPU that this process sees."""
    import torch

    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(f"{device.name} {device.uuid}" for device in devices)


def facts_of_this_process(rank: int, size: int, library: tuple[str, str], mpi4py: str, folders: Sequence[str]) -> Facts:
    """Everything that this rank knows; only rank 0, where the launcher was called, looks for mpiexec."""
    import torch

    digests, faults = look_at(folders)
    return Facts(
        rank=rank,
        size=size,
        launcher=launcher_of(os.environ),
        host=socket.gethostname(),
        library=library,
        mpiexec=find_mpiexec() if rank == 0 else ("", "", ""),
        ulfm=ulfm_active(os.environ),
        versions={
            "Python": ".".join(map(str, sys.version_info[:3])),
            "torch": str(torch.__version__),
            "mpi4py": mpi4py,
            "asr_hf": asr_hf.__version__,
            "source of asr_hf": source_digest(),
        },
        threads=torch.get_num_threads(),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        machine_cores=os.cpu_count() or 1,
        gpus=visible_gpus(),
        data=digests,
        faults=faults,
    )
