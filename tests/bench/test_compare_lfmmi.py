"""A comparison by lattice-free MMI: two systems, tuned on a dev set whose supervision is a CHAIN, two seeds."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from asr_hf.cli.main import run
from asr_hf.data.archive import FeatureArchive, write_matrices
from asr_hf.errors import InputError
from asr_hf.hmm.supervision import Supervision

SYSTEMS = {
    "adam": {
        "options": ["optimizer=adam", "optimizer.epochs=2", "optimizer.minibatch_frames=400"],
        "trials": [["optimizer.rate=0.00001"], ["optimizer.rate=0.01"]],
    },
    "hf": {
        "options": ["optimizer=hf", "optimizer.updates=2", "optimizer.curvature_share=0.5"],
        "trials": [["optimizer.damping.initial=1000"], ["optimizer.damping.initial=0.1"]],
    },
}
MODEL = ["model=tdnn", "model.contexts=[[-1,0,1],[-3,0,3]]", "model.width=8", "model.subsampling=3"]


@pytest.fixture
def dev(tiny_corpus: Path, tmp_path: Path) -> Path:
    """FEATS of the held-out utterances under other names, and their CHAIN in it: a loss on dev is that on held-out."""
    root = tmp_path / "dev"
    shutil.copytree(tiny_corpus / "chain", root / "chain")
    shutil.copy(tiny_corpus / "heldout" / "features.json", root)
    archive, graphs = FeatureArchive(tiny_corpus / "heldout" / "feats.scp"), Supervision.load(tiny_corpus / "chain")
    write_matrices(root / "feats", [(f"dev-{name}", archive[name]) for name in archive])
    Supervision.of({f"dev-{name}": graphs[name] for name in archive}).save(root / "chain")
    return root


def test_systems_are_tuned_on_the_sequence_loss_of_dev(tiny_corpus: Path, dev: Path, tmp_path: Path) -> None:
    for name, system in SYSTEMS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **system}))
    files = [str(tmp_path / f"{name}.yaml") for name in SYSTEMS]
    folders = [f"corpus.{name}={tiny_corpus}/{name}" for name in ("train", "heldout")]
    lfmmi = [*folders, f"corpus.alignments={tiny_corpus}/chain", "criterion=lfmmi", "criterion.chunk=45", *MODEL]
    flags = ["--seeds", "3,4", "--dev", str(dev), "--dev-alignments"]
    with pytest.raises(InputError, match=r"ali is no CHAIN folder"):
        run(["compare", str(tmp_path / "out"), *files, *flags, f"{tiny_corpus}/ali", *lfmmi])
    assert not (tmp_path / "out").exists()
    run(["compare", str(tmp_path / "out"), *files, *flags, f"{dev}/chain", *lfmmi])
    found = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["systems"]
    for name, system in found.items():
        for tried in (*system["trials"], *system["runs"].values()):
            assert tried["failed"] is None
            heldout = tried.get("heldout") or min(row["heldout"] for row in tried["rows"])
            assert tried["dev"] == pytest.approx(heldout, rel=1e-5)
        assert system["winner"] == {"overrides": SYSTEMS[name]["trials"][1], "trials": 2}
        assert list(system["runs"]) == ["3", "4"]
        assert system["runs"]["3"]["dev"] == system["trials"][1]["dev"]  # the same run
