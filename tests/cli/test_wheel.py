"""The wheel holds conf/, and an installation without the checkout finds it."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import asr_hf
from asr_hf.cli.config import compose, conf_dir
assert asr_hf.__file__.startswith(sys.argv[1]), asr_hf.__file__
assert str(conf_dir()).startswith(sys.argv[1]), conf_dir()
print(compose(("optimizer",), ["optimizer=adam"])["optimizer"].beta1)
"""


def test_an_installed_wheel_composes_its_configuration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("asr_hf-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"asr_hf/conf/{path.relative_to(ROOT / 'conf')}" in names
    assert not any(name.startswith(("tests/", "recipes/")) for name in names)
    probe = [sys.executable, "-I", "-c", PROBE, str(installed)]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.9"
