"""A device with too little memory: minibatches are halved, for all ranks, and the update begins again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asr_hf.cli.config import compose, to_yaml
from asr_hf.cli.train import GROUPS
from asr_hf.errors import InputError
from asr_hf.models.saved import load_model
from asr_hf.objective.evaluator import Evaluator
from asr_hf.training.run import train

SMALL = ["model.hidden_layers=1", "model.width=12", "model.context=1"]
HF = [*SMALL, "optimizer=hf", "optimizer.updates=3", "optimizer.curvature_share=0.3", "optimizer.cg.max_iterations=6"]


def parameters(folder: Path, corpus: Path, *settings: str) -> torch.Tensor:
    data = [f"corpus.train={corpus}/train", f"corpus.heldout={corpus}/heldout", f"corpus.alignments={corpus}/ali"]
    options = compose(GROUPS, [*data, *settings])
    train(folder, options, to_yaml(options))
    return torch.cat([value.flatten() for value in load_model(folder).module.state_dict().values()])


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """small_device(method, frames, calls): from so many calls on, minibatches of more frames than that do not fit."""

    def make(method: str, frames: int, calls: int = 0) -> None:
        original, seen = getattr(Evaluator, method), [0]

        def limited(self, theta, sample, *rest, **more):
            seen[0] += 1
            if sample.minibatch_frames > frames and seen[0] > calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return original(self, theta, sample, *rest, **more)

        monkeypatch.setattr(Evaluator, method, limited)

    return make


def test_the_run_is_that_of_smaller_minibatches(tiny_corpus, tmp_path, small_device, capsys) -> None:
    sizes = "optimizer.minibatch_frames={}", "optimizer.curvature_minibatch_frames={}"
    alone = parameters(tmp_path / "alone", tiny_corpus, *HF, *(size.format(100) for size in sizes))
    small_device("gradient", 100)
    found = parameters(tmp_path / "run", tiny_corpus, *HF, *(size.format(400) for size in sizes))
    assert torch.equal(found, alone)
    said = capsys.readouterr().out
    assert "CUDA out of memory; minibatches have 2^-1 of the frames from now on" in said
    assert "2^-2" in said
    assert "2^-3" not in said


def test_it_stays_so_over_a_resumption(tiny_corpus, tmp_path, small_device, capsys) -> None:
    small_device("linearize", 100, calls=2)  # from the third update on
    settings = [*HF, "optimizer.curvature_minibatch_frames=200", "optimizer.minibatch_frames=200"]
    whole = parameters(tmp_path / "run", tiny_corpus, *settings)
    assert capsys.readouterr().out.count("2^-1") == 1
    run = tmp_path / "run"
    for name in ("model.json", "model.safetensors"):
        (run / name).unlink()
    again = parameters(run, tiny_corpus, *settings)
    assert torch.equal(again, whole)
    assert "2^-1" not in capsys.readouterr().out


def test_steps_of_first_order_methods_keep_their_frames(tiny_corpus, tmp_path, small_device, capsys) -> None:
    settings = [*SMALL, "optimizer=sgd", "optimizer.epochs=2", "optimizer.minibatch_frames=128"]
    usual = parameters(tmp_path / "usual", tiny_corpus, *settings)
    small_device("gradient", 64, calls=30)  # within the second epoch
    found = parameters(tmp_path / "run", tiny_corpus, *settings)
    assert "2^-1" in capsys.readouterr().out
    torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-5)


def test_a_model_that_never_fits_is_refused(tiny_corpus, tmp_path, small_device) -> None:
    small_device("gradient", 0)
    with pytest.raises(InputError, match=r"out of memory, though minibatches have 2\^-6 of their frames"):
        parameters(tmp_path / "run", tiny_corpus, *HF)
