"""Chain models, their decoding graph, and the CHAIN folder from end to end on toy speech."""

import filecmp
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import kaldifst
import numpy as np
import pytest

from asr_hf.cli.main import main, run
from asr_hf.data.archive import FeatureArchive, read_int_vectors, write_matrices
from asr_hf.errors import InputError, OptionError
from asr_hf.hmm.alignment import align
from asr_hf.hmm.chain import ChainOptions, chain_model, chain_stats, drawn_phones, phone_sequences, tied_model
from asr_hf.hmm.chain_folder import Chain
from asr_hf.hmm.flat_start import train_mono
from asr_hf.hmm.fst import FstArrays, read_fst
from asr_hf.hmm.gmm import GmmOptions
from asr_hf.hmm.graph import GraphOptions, make_graph
from asr_hf.hmm.lang import Lang
from asr_hf.hmm.make_chain import make_chain
from asr_hf.hmm.model import HmmModel, Split, monophone_model
from asr_hf.hmm.numerator import Composer
from asr_hf.hmm.tree import TreeOptions
from asr_hf.hmm.triphone import train_tri

QUICK = GmmOptions(gaussians=1, first_passes=2, passes=1)
TREE = TreeOptions(leaves=16, min_occupancy=10, min_gain=1)


@pytest.fixture
def mono_dir(tmp_path: Path, toy_lang: Lang, toy_feats: Path) -> Path:
    train_mono(toy_feats, toy_lang.folder, tmp_path / "mono", QUICK)
    return tmp_path / "mono"


def test_the_topology_is_saved_and_older_files_are_bakis(tmp_path: Path, chain_hmm: HmmModel) -> None:
    chain_hmm.save(tmp_path)
    again = HmmModel.load(tmp_path)
    assert (again.topology, again.trees, again.states) == ("chain", chain_hmm.trees, (2, 2, 2, 2))
    assert np.array_equal(again.units, chain_hmm.units)
    bakis = monophone_model(("SIL", "a"), "SIL", 3, 3)
    assert bakis.units.tolist() == [[pdf, pdf] for pdf in range(6)]
    bakis.save(tmp_path)
    facts = json.loads((tmp_path / "hmm.json").read_text())
    del facts["topology"]
    (tmp_path / "hmm.json").write_text(json.dumps(facts))
    assert HmmModel.load(tmp_path).topology == "bakis"
    for topology in ("ring", "chain"):  # a chain model has two pdfs a phone
        (tmp_path / "hmm.json").write_text(json.dumps(facts | {"topology": topology}))
        with pytest.raises(InputError, match=f"topology {topology}"):
            HmmModel.load(tmp_path)


def test_the_first_frames_of_a_phone_are_entry(toy_feats: Path, mono_dir: Path) -> None:
    archive, old = FeatureArchive(toy_feats / "feats.scp"), HmmModel.load(mono_dir)
    states = read_int_vectors(mono_dir / "state.scp")
    for subsampling in (1, 3):
        stats = chain_stats(archive, states, old, subsampling)
        expected: dict[tuple[int, ...], float] = {}
        for state_T in states.values():
            phones, age, padded = [], [], [1]
            for t, state in enumerate(state_T):
                phone = int(old.phone_of_state()[state])
                if state == old.first_state[phone - 1] and (t == 0 or state_T[t - 1] != state):
                    padded.append(phone)
                    age.append(0)
                else:
                    age.append(age[-1] + 1)
                phones.append(len(padded) - 1)
            padded.append(1)
            for place, n in zip(phones, age, strict=True):
                key = (padded[place - 1], padded[place], padded[place + 1], int(n >= subsampling))
                expected[key] = expected.get(key, 0) + 1
        assert {
            tuple(row): count for row, count in zip(stats.contexts.tolist(), stats.stats[:, 0], strict=True)
        } == expected
        total = np.concatenate([archive[name] for name in archive]).astype(np.float64).sum(0)
        np.testing.assert_allclose(stats.stats[:, 1 : 1 + archive.dim].sum(0), total)


def sides(node: Split | int) -> set[str]:
    return {node.side} | sides(node.yes) | sides(node.no) if isinstance(node, Split) else set()


def test_trees_ask_about_the_neighbours_of_the_context(toy_feats: Path, mono_dir: Path) -> None:
    archive, old = FeatureArchive(toy_feats / "feats.scp"), HmmModel.load(mono_dir)
    states = read_int_vectors(mono_dir / "state.scp")
    for context, expected in (("biphone", {"left"}), ("triphone", {"left", "right"})):
        hmm = tied_model(archive, states, old, ChainOptions(context=context), TREE)
        assert (hmm.topology, hmm.num_pdfs) == ("chain", 16)
        assert {side for trees in hmm.trees for tree in trees for side in sides(tree)} == expected
        assert all(isinstance(tree, int) for tree in hmm.trees[0])  # silence
        assert set(hmm.self_loop) == {0.5}


def test_chain_models_are_refused_where_frames_are_aligned(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path, mono_dir: Path
) -> None:
    hmm = chain_model(toy_lang.phone_names, toy_lang.silence, "mono")
    with pytest.raises(InputError, match="chain model"):
        align(toy_feats, toy_lang.folder, hmm, lambda x: x, tmp_path / "ali")
    hmm.save(mono_dir)
    with pytest.raises(InputError, match="chain model"):
        train_tri(toy_feats, toy_lang.folder, mono_dir, tmp_path / "tri", QUICK, TREE)
    with pytest.raises(InputError, match="chain model"):
        make_chain(toy_feats, toy_lang.folder, mono_dir, tmp_path / "chain", ChainOptions(), TREE)


@pytest.mark.parametrize("context", ["mono", "biphone"])
def test_the_decoding_graph_reads_entry_and_loop_pdfs(
    context: str, tmp_path: Path, toy_lang: Lang, write_text: Callable[..., None]
) -> None:
    """Costs of readings of one and two words, with durations, against lexicon, n-gram and a half for every frame."""
    (tmp_path / "model").mkdir()
    hmm = chain_model(toy_lang.phone_names, toy_lang.silence, context)
    hmm.save(tmp_path / "model")
    make_graph(toy_lang.folder, tmp_path / "model", tmp_path / "graph", GraphOptions(1.0, 1.0))
    graph = read_fst(tmp_path / "graph" / "HCLG.fst")
    kaldifst.arcsort(graph, sort_type="ilabel")
    grammar = read_fst(toy_lang.folder / "G.fst")
    random = np.random.default_rng(0)
    s = toy_lang.silence_probability
    for words, phones, lexical in (
        (("DID",), "did", 1.0), (("RE",), "re", 1.0), (("READ",), "rid", 1.0), (("READ",), "red", 0.5),
        (("RE", "DID"), "redid", 1.0), (("DID", "RED"), "didred", 1.0), (("DID", "DID"), "diddid", 1.0),
    ):  # fmt: skip
        for silent in (False, True):
            names = ["SIL"] * silent + list(phones)
            numbers = [0, *(toy_lang.phones[name] for name in names), 0]
            durations = random.integers(1, 4, size=len(names))
            frames = [
                pdf
                for k, n in enumerate(durations)
                for entry, loop in [hmm.pdfs(*numbers[k : k + 3])]
                for pdf in [entry] + [loop] * (n - 1)
            ]
            lm = cheapest(kaldifst.compose(grammar_word_line(words, toy_lang), grammar))
            cost = lm - math.log(lexical) - math.log(s if silent else 1 - s) - len(words) * math.log(1 - s)
            cost += len(frames) * math.log(2)  # leaving and staying have probability ½
            spoken = kaldifst.compose(kaldifst.make_linear_acceptor([pdf + 1 for pdf in frames]), graph)
            kaldifst.arcsort(spoken, sort_type="olabel")
            found = kaldifst.compose(spoken, kaldifst.make_linear_acceptor([toy_lang.words[word] for word in words]))
            assert cheapest(found) == pytest.approx(cost, abs=0.02), (words, silent)
            if len(frames) > len(names) and durations[0] > 1:  # an entry pdf does not stay
                frames[1] = frames[0]
                wrong = kaldifst.compose(kaldifst.make_linear_acceptor([pdf + 1 for pdf in frames]), graph)
                kaldifst.arcsort(wrong, sort_type="olabel")
                line = kaldifst.make_linear_acceptor([toy_lang.words[word] for word in words])
                assert cheapest(kaldifst.compose(wrong, line)) == math.inf


def grammar_word_line(words: tuple[str, ...], lang: Lang) -> kaldifst.StdVectorFst:
    """An acceptor of words with any number of back-off symbols between them."""
    arcs = [(k, k + 1, lang.words[word], lang.words[word], 0.0) for k, word in enumerate(words)]
    arcs += [(k, k, lang.words["#0"], lang.words["#0"], 0.0) for k in range(len(words) + 1)]
    line = FstArrays.from_lists(arcs, {len(words): 0.0}).to_fst()
    kaldifst.arcsort(line, sort_type="olabel")
    return line


def cheapest(fst: kaldifst.StdVectorFst) -> float:
    path = kaldifst.shortest_path(fst)
    if path.num_states == 0:
        return math.inf
    arrays = FstArrays.from_fst(path)
    return float(arrays.cost.sum() + arrays.final[np.isfinite(arrays.final)].sum())


def test_drawn_phones_are_readings_in_their_proportions(toy_lang: Lang) -> None:
    options = ChainOptions(tied=False, draws=4000, seed=3)
    drawn = list(drawn_phones("u", ("READ", "DID"), toy_lang, options))
    numbers = {number: name for name, number in toy_lang.phones.items()}
    spelled = ["".join("-" if numbers[p] == "SIL" else numbers[p] for p in phones) for phones in drawn]
    assert {text.replace("-", "") for text in spelled} == {"reddid", "riddid"}
    assert np.mean(["e" in text for text in spelled]) == pytest.approx(1 / 3, abs=0.03)  # 0.5 against 1
    for at in (str.startswith, str.endswith):
        assert np.mean([at(text, "-") for text in spelled]) == pytest.approx(0.3, abs=0.03)
    assert drawn == list(drawn_phones("u", ("READ", "DID"), toy_lang, options))
    assert drawn != list(drawn_phones("v", ("READ", "DID"), toy_lang, options))
    assert set(drawn_phones("u", (), toy_lang, options)) == {(1,)}


@pytest.mark.parametrize("flags", ["aligned", "flat start"])
def test_the_command_writes_what_training_needs(
    flags: str, tmp_path: Path, toy_lang: Lang, toy_feats: Path, mono_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = FeatureArchive(toy_feats / "feats.scp")
    short = archive.keys()[0]
    write_matrices(toy_feats / "more", [(short, np.zeros((2, 4), np.float32))])  # too short for its words
    more = (toy_feats / "more.scp").read_text()
    if flags == "flat start":
        rest = (toy_feats / "feats.scp").read_text().splitlines(keepends=True)[1:]
        (toy_feats / "feats.scp").write_text(more + "".join(rest))
        words = ["--flat-start"]
    else:
        words = ["--ali", str(mono_dir), "tree.leaves=14", "tree.min_occupancy=10", "tree.min_gain=0"]
    for name in ("one", "two"):
        run(["chain", str(toy_feats), str(toy_lang.folder), str(tmp_path / name), *words])
    said = capsys.readouterr().out
    for name in ("hmm.json", "features.json", "den.safetensors", "supervision.safetensors", "chain.json"):
        assert filecmp.cmp(tmp_path / "one" / name, tmp_path / "two" / name, shallow=False), name
    chain = Chain.load(tmp_path / "one")
    assert (chain.subsampling, chain.flat_start) == (3, flags == "flat start")
    facts = json.loads((tmp_path / "one" / "chain.json").read_text())
    assert facts["num_pdfs"] == chain.hmm.num_pdfs == (2 * (4 * 5 + 1) if chain.flat_start else 14)
    left_out = facts["left_out"].get("too short", [])
    assert left_out == sorted(set(archive) - set(chain.supervision))
    if chain.flat_start:
        assert short in left_out
        assert f"left out, too short ({len(left_out)}): {short}" in said
    again = words[:2] if flags != "flat start" else words
    run(
        [
            "chain",
            str(toy_feats),
            str(toy_lang.folder),
            str(tmp_path / "more"),
            *again,
            "--model",
            str(tmp_path / "one"),
        ]
    )
    for name in ("hmm.json", "den.safetensors", "supervision.safetensors", "chain.json"):
        assert filecmp.cmp(tmp_path / "one" / name, tmp_path / "more" / name, shallow=False), name
    other = ["--flat-start"] if flags != "flat start" else ["--ali", str(mono_dir)]
    with pytest.raises(OptionError, match="as it was made"):
        run(
            [
                "chain",
                str(toy_feats),
                str(toy_lang.folder),
                str(tmp_path / "x"),
                *other,
                "--model",
                str(tmp_path / "one"),
            ]
        )
    pdfs = read_int_vectors(tmp_path / "more" / "pdf.scp") if flags != "flat start" else {}
    assert set(pdfs) == (set(chain.supervision) if pdfs else set())
    composer = Composer(chain.denominator)
    for name in chain.supervision:
        labels = chain.supervision[name]
        if pdfs:  # each frame reads its phone's entry pdf for the first three frames, then its loop pdf
            begin_K = labels.window_K2[:, 0] + 5 * (labels.window_K2[:, 0] > 0)
            place_T = np.searchsorted(begin_K, np.arange(labels.frames), side="right") - 1
            age_T = np.arange(labels.frames) - begin_K[place_T]
            sure_T = (begin_K[place_T] > 0) & (place_T > 1)  # windows of the first phones are cut at the edge
            expected = labels.unit_K2[place_T, (age_T >= 3).astype(int)]
            np.testing.assert_array_equal(pdfs[name][sure_T], expected[sure_T])
        assert labels.frames == archive.num_frames(name)
        numerator = composer.numerator(labels, 0, labels.frames, 3)
        assert numerator.final_S.any(), name


def test_what_the_denominator_does_not_allow_is_left_out(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path, mono_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of utterances that had no part in the n-gram those with a phone sequence that it has not seen."""
    states, old = read_int_vectors(mono_dir / "state.scp"), HmmModel.load(mono_dir)
    seen = dict(zip(states, phone_sequences(states.values(), old), strict=True))
    lines = (toy_feats / "feats.scp").read_text().splitlines(keepends=True)
    (toy_feats / "all.scp").write_text("".join(lines))
    (toy_feats / "feats.scp").write_text("".join(lines[::4]))
    ali = ["--ali", str(mono_dir)]
    run(["chain", str(toy_feats), str(toy_lang.folder), str(tmp_path / "part"), *ali, "chain.context=mono"])
    (toy_feats / "all.scp").rename(toy_feats / "feats.scp")
    run(["chain", str(toy_feats), str(toy_lang.folder), str(tmp_path / "all"), *ali, "--model", str(tmp_path / "part")])
    left_out = json.loads((tmp_path / "all" / "chain.json").read_text())["left_out"]["not in the denominator"]
    assert f"left out, not in the denominator ({len(left_out)}): {left_out[0]}" in capsys.readouterr().out
    chain = Chain.load(tmp_path / "all")
    expected = []
    for name, phones in sorted(seen.items()):
        places = set(range(chain.denominator.states))  # before the first frame a path may be anywhere
        for phone in phones:
            entry, _ = chain.hmm.pdfs(0, phone, 0)
            arcs = zip(chain.denominator.src_A.tolist(), chain.denominator.dst_A.tolist(), strict=True)
            places = {dst for src, dst in arcs if src in places and chain.denominator.entry_S[dst] == entry}
        expected += [name] * (not places)
    assert 0 < len(left_out) < len(seen) / 2
    assert left_out == expected
    assert set(chain.supervision) == set(seen) - set(left_out)


def test_a_model_of_other_phones_and_the_same_folder_are_refused(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path, mono_dir: Path
) -> None:
    ali, chain = ["--ali", str(mono_dir)], tmp_path / "chain"
    run(["chain", str(toy_feats), str(toy_lang.folder), str(chain), *ali, "chain.context=mono"])
    before = (chain / "chain.json").read_text()
    for out, model, said in (
        (chain, chain, "--model itself"),
        (tmp_path / "x", tmp_path / "other", "different phones"),
    ):
        if model != chain:
            shutil.copytree(chain, model)
            phones = ("SIL", *reversed(toy_lang.phone_names[1:]))
            chain_model(phones, "SIL", "mono").save(model)
        with pytest.raises((InputError, OptionError), match=said):
            run(["chain", str(toy_feats), str(toy_lang.folder), str(out), *ali, "--model", str(model)])
    assert (chain / "chain.json").read_text() == before
    assert not (tmp_path / "x").exists()


def test_alignments_give_the_phones_of_their_transcripts(toy_lang: Lang, toy_feats: Path, mono_dir: Path) -> None:
    states = read_int_vectors(mono_dir / "state.scp")
    texts = dict(line.split(" ", 1) for line in (toy_feats / "text").read_text().splitlines() if " " in line)
    old = HmmModel.load(mono_dir)
    for name, phones in zip(states, phone_sequences(states.values(), old), strict=True):
        spoken = "".join(old.phones[p - 1] for p in phones if p != 1)
        words = texts.get(name, "").split()
        spellings = [["".join(v.phones) for v in toy_lang.lexicon.variants[word]] for word in words]
        readings = {""}
        for variants in spellings:
            readings = {reading + variant for reading in readings for variant in variants}
        assert spoken in readings


def test_impossible_options_and_missing_files_are_refused(
    tmp_path: Path, toy_lang: Lang, toy_feats: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        ({"context": "quinphone"}, r"chain\.context"), ({"context": "triphone", "tied": False}, r"chain\.tied"),
        ({"subsampling": 0}, r"chain\.subsampling"), ({"tolerance": -1}, r"chain\.tolerance"),
        ({"draws": 0}, r"chain\.draws"), ({"seed": -1}, r"chain\.seed"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=said):
            ChainOptions(**options)
    with pytest.raises(OptionError, match=r"chain\.tied=true"):
        make_chain(toy_feats, toy_lang.folder, None, tmp_path / "chain", ChainOptions(), TREE)
    with pytest.raises(InputError, match=r"hmm\.json is missing"):
        Chain.load(tmp_path / "nowhere")
    chain = tmp_path / "chain"
    make_chain(toy_feats, toy_lang.folder, None, chain, ChainOptions(tied=False), TREE)
    (chain / "chain.json").write_text("{}")
    with pytest.raises(InputError, match=r"chain\.json is damaged"):
        Chain.load(chain)
    (chain / "chain.json").unlink()
    with pytest.raises(InputError, match=r"chain\.json is missing"):
        Chain.load(chain)
    monkeypatch.setattr("sys.argv", ["asr-hf", "chain", str(toy_feats), str(toy_lang.folder), str(chain)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "--ali --flat-start is required" in capsys.readouterr().err
