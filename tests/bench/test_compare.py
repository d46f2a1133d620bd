"""A small comparison of SGD and Hessian-free: what compare.json holds against the logs of the runs."""

import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from asr_hf.bench.compare_runs import Ended, Runner, Task, curve, kept
from asr_hf.cli.config import compose, from_yaml, to_yaml
from asr_hf.cli.main import run
from asr_hf.cli.train import GROUPS
from asr_hf.data.archive import FeatureArchive, read_int_vectors
from asr_hf.data.features import FeatureOptions
from asr_hf.data.fingerprint import write_fingerprint
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.model import HmmModel
from asr_hf.hmm.workers import Workers
from asr_hf.models.saved import load_model
from asr_hf.training.monitor import read_log
from asr_hf.training.run import build, load_data

SYSTEMS = {
    "sgd": {
        "options": ["optimizer=sgd", "optimizer.epochs=9", "optimizer.newbob_stop=0"],
        "trials": [["optimizer.rate=0.0001"], ["optimizer.rate=0.05"]],
    },
    "hf": {
        "options": ["optimizer=hf", "optimizer.curvature_share=0.3", "optimizer.cg.max_iterations=4"],
        "trials": [["optimizer.damping.initial=100"], ["optimizer.damping.initial=0.5"]],
    },
}


def write_system(folder: Path, name: str, /, **changed: object) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **SYSTEMS[name], **changed}))
    return str(path)


def common(corpus: Path) -> list[str]:
    folders = [f"corpus.{name}={corpus}/{name}" for name in ("train", "heldout")]
    return [*folders, f"corpus.alignments={corpus}/ali", "model.hidden_layers=1", "model.width=6", "model.context=0"]


@pytest.fixture(scope="module")
def compared(tiny_corpus: Path, dev: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """OUT of a comparison of `hf` and `sgd`, and the command."""
    folder = tmp_path_factory.mktemp("cmp")
    files = [write_system(folder, name) for name in ("sgd", "hf")]
    flags = ["--seeds", "3,4", "--budget", "3", "--trial-budget", "2", "--dev", str(dev)]
    flags += ["--dev-alignments", f"{dev}/ali"]
    command = ["compare", str(folder / "out"), *files, *flags, *common(tiny_corpus)]
    run(command)
    return folder / "out", command


def measured(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text(encoding="utf-8"))


def test_rows_add_up_against_the_logs(compared) -> None:
    out, _ = compared
    for name, system in measured(out)["systems"].items():
        assert list(system["runs"]) == ["3", "4"]
        for seed, found in system["runs"].items():
            log = read_log(out / name / f"seed-{seed}" / "log.jsonl")
            assert [row["update"] for row in found["rows"]] == [row["update"] for row in log]
            seconds, gradients = (math.fsum(r[what]["gradient"] for r in log) for what in ("seconds", "equivalents"))
            for n, row in enumerate(found["rows"], 1):
                work = math.fsum(value for r in log[:n] for value in r["equivalents"].values())
                apart = [r["seconds"][phase] for r in log[:n] for phase in ("statistics", "preconditioner")]
                assert row["timed"] == pytest.approx(math.fsum(apart) / (seconds / gradients), abs=1e-5)
                assert row["cost"] == pytest.approx(work + math.fsum(apart) / (seconds / gradients), abs=1e-5)
                assert row["vectors"] == sum(r["vectors"] for r in log[:n])
                assert row["seconds"] == pytest.approx(math.fsum(r["seconds"]["total"] for r in log[:n]), abs=1e-5)
                assert (row["heldout"], row["damping"]) == (log[n - 1]["heldout"], log[n - 1]["damping"])
            costs = [row["cost"] - row["timed"] for row in found["rows"]]
            assert costs[-1] >= 3 - 1e-5
            assert all(cost < 3 for cost in costs[:-1])


def test_the_winner_has_the_lowest_loss_on_dev(compared, dev: Path) -> None:
    out, _ = compared
    archive, pdfs = FeatureArchive(dev / "feats.scp"), read_int_vectors(dev / "ali/pdf.scp")
    for name, system in measured(out)["systems"].items():
        for k, trial in enumerate(system["trials"]):
            assert trial["overrides"] == SYSTEMS[name]["trials"][k]
            model = load_model(out / name / f"trial-{k}").module.double()
            nats, frames = 0.0, 0
            for utterance in archive:  # one frame a window: no context
                output = model(torch.from_numpy(archive[utterance].copy()).double()[:, None])["output"].squeeze()
                target = torch.from_numpy(pdfs[utterance].copy()).long()
                nats += float(torch.nn.functional.cross_entropy(output, target, reduction="sum").detach())
                frames += len(target)
            assert trial["dev"] == pytest.approx(nats / frames, rel=1e-5)
            config = yaml.safe_load((out / name / f"trial-{k}" / "config.yaml").read_text())
            assert (config["training"]["seed"], config["training"]["budget"]) == (3, 2)
        best = min(system["trials"], key=lambda trial: trial["dev"])
        assert system["winner"] == {"overrides": best["overrides"], "trials": 2}
        assert best is system["trials"][1]  # the other learns next to nothing


def test_systems_start_from_the_same_parameters(tiny_corpus: Path) -> None:
    weights = []
    for system in SYSTEMS.values():
        options = compose(GROUPS, [*common(tiny_corpus), *system["options"], "training.seed=3"])
        weights.append(build(options, load_data(options, check=False))[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_repeat_does_nothing_and_draws_the_same(compared, capsys) -> None:
    out, command = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    text = (out / "compare.json").read_text(encoding="utf-8")
    run(command)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert (out / "compare.json").read_text(encoding="utf-8") == text
    printed = capsys.readouterr().out
    run(["bench", "table", str(out / "compare.json")])
    table = capsys.readouterr().out.strip()
    assert table in printed
    assert "sgd: tuned with 2 trials" in table
    assert (out / "compare.html").read_text(encoding="utf-8").count("<svg") == 6


def test_what_is_written_names_no_place(compared, tiny_corpus: Path, dev: Path) -> None:
    out, _ = compared
    text = (out / "compare.json").read_text(encoding="utf-8")
    assert not any(str(place) in text for place in (out, tiny_corpus, dev, out.parent))
    content = measured(out)
    assert content["command"].startswith("asr-hf compare OUT sgd.yaml hf.yaml --seeds 3,4 --budget 3 --trial-budget 2")
    assert "corpus.train=train" in content["command"]
    assert content["settings"]["reference"] == "sgd"
    assert {"versions", "machine"} < set(content)


def test_two_processes_and_winners_of_before_give_the_same_bits(compared, tiny_corpus: Path, tmp_path: Path) -> None:
    out, command = compared
    run([*command[:1], str(tmp_path / "again"), *command[2:], "--jobs", "2", "--tuned", str(out / "compare.json")])
    first, again = measured(out)["systems"], measured(tmp_path / "again")["systems"]
    for name in first:
        assert again[name]["trials"] == []
        assert again[name]["winner"] == first[name]["winner"]
        for seed in ("3", "4"):
            model, other = (load_model(folder / name / f"seed-{seed}").module for folder in (out, tmp_path / "again"))
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert measured(tmp_path / "again")["settings"]["tuned"] == "compare.json"


def edits(ref: list[str], hyp: list[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(hyp) + 1))
    for i, word in enumerate(ref, 1):
        above, row = row, [i]
        for j, other in enumerate(hyp, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def test_word_errors_are_those_of_the_hypotheses(
    tiny_corpus: Path, dev: Path, graph: Path, tmp_path: Path, capsys
) -> None:
    files = [write_system(tmp_path, name, trials=SYSTEMS[name]["trials"][1:]) for name in ("sgd", "hf")]
    decoding = ["--graph", str(graph), "--decode-dev", str(dev), "--decode-test", str(dev), "--wer-seeds", "1"]
    flags = ["--seeds", "0,1", "--budget", "2", *decoding]
    command = ["compare", str(tmp_path / "out"), *files, *flags, *common(tiny_corpus), "decoding.beam=20"]
    run(command)
    said = capsys.readouterr().out
    text = dict(line.split(maxsplit=1) for line in (dev / "text").read_text().splitlines())
    speaker_of = dict(line.split() for line in (dev / "utt2spk").read_text().splitlines())
    for name, system in measured(tmp_path / "out")["systems"].items():
        folder = tmp_path / "out" / name / "seed-1" / "decode"
        assert "wer" not in system["runs"]["0"]
        found = system["runs"]["1"]["wer"]
        assert found["acoustic_scale"] == json.loads((folder / "tuned.json").read_text())["acoustic_scale"]
        assert json.loads((folder / "test" / "decode.json").read_text())["options"]["beam"] == 20
        for which in ("dev", "test"):
            counts = {speaker: [0, 0] for speaker in speaker_of.values()}
            for line in (folder / which / "hyp.txt").read_text().splitlines():
                utterance, *hyp = line.split()
                ref = text[utterance].split()
                counts[speaker_of[utterance]][0] += edits(ref, hyp)
                counts[speaker_of[utterance]][1] += len(ref)
            assert found[which]["speakers"] == counts
            assert found[which]["errors"] == sum(errors for errors, _ in counts.values())
        assert f"{100 * found['test']['errors'] / found['test']['words']:.2f}" in said
    hypotheses = folder / "test" / "hyp.txt"
    hypotheses.unlink()
    run(command)
    assert not hypotheses.exists()  # what was decoded is kept
    assert capsys.readouterr().out.endswith(said[said.index("\nseeds 0, 1") :])


def test_a_run_that_diverges_is_a_result(tiny_corpus: Path, tmp_path: Path, capsys) -> None:
    wild = [["optimizer.rate=1e30", "optimizer.clip=1e30"], ["optimizer.rate=0.05"]]
    wilder = [wild[0], ["optimizer.rate=9e29", "optimizer.clip=1e30"]]
    files = [write_system(tmp_path, "sgd", trials=wild), write_system(tmp_path, "hf")]
    lost = tmp_path / "lost.yaml"
    lost.write_text(yaml.safe_dump({**SYSTEMS["sgd"], "name": "lost", "trials": wilder}))
    flags = ["--seeds", "0", "--budget", "1.5"]
    run(["compare", str(tmp_path / "out"), *files, str(lost), *flags, *common(tiny_corpus)])
    systems = measured(tmp_path / "out")["systems"]
    assert "not finite" in systems["sgd"]["trials"][0]["failed"]
    assert systems["sgd"]["trials"][1]["failed"] is None
    assert systems["sgd"]["winner"]["overrides"] == ["optimizer.rate=0.05"]
    assert systems["lost"]["winner"] is None
    assert systems["lost"]["runs"] == {}
    said = capsys.readouterr().out
    assert "sgd: 1 of 2 trials failed" in said
    assert "lost: no trial is left to choose from" in said


def test_curves_of_a_log_by_hand() -> None:
    def row(update, gradient, products, seconds, timed):
        return {
            "update": update, "heldout": 2.0, "cg_iterations": 5, "damping": 1.0, "accepted": True, "vectors": 7,
            "equivalents": {"gradient": gradient, "products": products}, "gradient_equivalents": gradient + products,
            "seconds": {"gradient": seconds, "statistics": timed, "preconditioner": 1.0, "total": 10.0},
        }  # fmt: skip

    rows = curve([row(1, 1.0, 0.5, 3.0, 1.0), row(2, 1.0, 0.25, 5.0, 0.0)])  # a gradient takes 4 s
    assert [each["timed"] for each in rows] == [0.5, 0.75]
    assert [each["cost"] for each in rows] == [2.0, 3.5]
    assert [each["vectors"] for each in rows] == [7, 14]
    assert [each["seconds"] for each in rows] == [10.0, 20.0]
    assert curve([]) == []
    assert str(Ended(rows, 1.5)) == "held-out 2.0000, dev 1.5000, cost 3.5, 20 s"


def test_a_bug_ends_it_and_a_refusal_names_the_folder(tiny_corpus: Path, tmp_path: Path, monkeypatch) -> None:
    file, budget = write_system(tmp_path, "sgd"), ["--seeds", "0", "--budget", "1"]
    command = ["compare", str(tmp_path / "out"), file, *budget, *common(tiny_corpus)]
    monkeypatch.setattr("asr_hf.bench.compare_runs.model_loss", lambda *task: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run([*command, "--dev", f"{tiny_corpus}/heldout", "--dev-alignments", f"{tiny_corpus}/ali"])
    with pytest.raises(OptionError, match=r"sgd/trial-0 was begun with other options: model\.width"):
        run([*command, "model.width=7"])
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_killed_process_is_an_error() -> None:
    with Workers(2, Killed) as workers, pytest.raises(InputError, match="worker process died"):
        workers.map("run", [1, 2])


class Killed(Runner):
    def run(self, task: Task) -> Ended:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_what_a_run_folder_keeps_is_of_the_same_request(tmp_path: Path) -> None:
    counter = itertools.count()
    path = tmp_path / "kept.json"
    assert [kept(path, request, lambda: next(counter)) for request in ("a", "a", "b", "a")] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ({"colour": "red"}, [], r"sgd\.yaml: unknown key colour"),
        ({"trials": []}, [], r"sgd\.yaml lists no trials"),
        ({"trials": [["optimizer.rate=1"]]}, [], "sgd has 1"),
        ({"trials": ["optimizer.rate=1"] * 2}, [], "not lists of overrides"),
        ({"name": "../up"}, [], "no name for a folder"),
        ({"name": "hf"}, [], "both name system 'hf'"),
        ({"trials": [["optimizer.rate=1"], ["optimizer.momentun=1"]]}, [], "momentun"),
        ({"options": ["optimizer=sgd", "training.seed=1"]}, [], r"training\.seed"),
        ({"options": ["optimizer=sgd", "model.width=9"]}, [], "has options of model"),
        ({}, ["training.budget=3"], r"training\.budget"),
        ({}, ["--seeds", "1,1"], "twice"),
        ({}, ["--budget", "-1"], "--budget"),
        ({}, ["--jobs", "0"], "--jobs"),
        ({}, ["--wer-seeds", "9"], "--wer-seeds"),
        ({}, ["--reference", "adam"], "--reference adam"),
        ({}, ["--dev", "."], "--dev-alignments is missing"),
        ({}, ["--graph", "."], "--decode-dev is missing"),
        ({}, ["--graph", "nowhere", "--decode-dev", ".", "--decode-test", "."], "nowhere: no such folder"),
        ({}, ["--tuned", "none.json"], r"none\.json"),
        ({}, ["corpus.train=nowhere"], r"corpus\.train=nowhere"),
        ({}, ["decoding.beem=3"], "beem"),
    ],
)
def test_bad_input_is_named_before_any_run(content, flags, said, tiny_corpus: Path, tmp_path: Path) -> None:
    # the usual number of trials is that of two systems
    files = [write_system(tmp_path, "sgd", **content), write_system(tmp_path, "hf")]
    third = tmp_path / "third.yaml"
    third.write_text(yaml.safe_dump({**SYSTEMS["hf"], "name": "third"}))
    with pytest.raises(InputError, match=said):
        run(["compare", str(tmp_path / "out"), *files, str(third), *common(tiny_corpus), *flags])
    assert not (tmp_path / "out").exists()


def test_sets_that_do_not_fit_are_named_before_any_run(
    tiny_corpus: Path, dev: Path, graph: Path, tmp_path: Path
) -> None:
    other_kind, other_pdfs, other_graph = (tmp_path / name for name in ("mfcc", "ali", "graph"))
    other_kind.mkdir()
    other_pdfs.mkdir()
    write_fingerprint(other_kind, FeatureOptions(dither=1.0), dim=8, sample_rate=8000)
    HmmModel(num_pdfs=13).save(other_pdfs)
    shutil.copytree(graph, other_graph)
    (other_graph / "graph.json").write_text(json.dumps({"num_pdfs": 13}))
    words = ["--decode-dev", str(dev), "--decode-test"]
    for flags, said in (
        (["--dev", str(other_kind), "--dev-alignments", str(dev / "ali")], "mfcc differ: dither"),
        (["--dev", str(dev), "--dev-alignments", str(other_pdfs)], "ali has 13 pdfs"),
        (["--graph", str(graph), *words, str(other_kind)], "mfcc differ: dither"),
        (["--graph", str(other_graph), *words, str(dev)], "graph has 13 pdfs"),
    ):
        with pytest.raises(InputError, match=said):
            run(["compare", str(tmp_path / "out"), write_system(tmp_path, "sgd"), *common(tiny_corpus), *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "name: 3", ""])
def test_a_file_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        run(["compare", str(tmp_path / "out"), str(tmp_path / "bad.yaml")])
    with pytest.raises(InputError, match=r"gone\.yaml"):
        run(["compare", str(tmp_path / "out"), str(tmp_path / "gone.yaml")])


def test_runs_are_written_as_train_writes_them(compared) -> None:
    out, _ = compared
    folder = out / "hf" / "seed-3"
    written = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.jsonl", "model.json", "output.txt", "dev.json"} <= written
    options = from_yaml(folder / "config.yaml", GROUPS)
    assert to_yaml(options) == (folder / "config.yaml").read_text()
