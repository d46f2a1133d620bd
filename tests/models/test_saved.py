"""Models on disk and their posteriors: buffers travel, old and foreign files, every frame of every kind of model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from asr_hf.data.minibatch import TrainingSet
from asr_hf.data.plan import Sample
from asr_hf.errors import InputError
from asr_hf.models import saved
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.rnn import RnnOptions
from asr_hf.models.saved import SavedModel, load_model, log_prior, save_model
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions

D, P = 3, 5


@dataclass
class PulseOptions:
    """A model with one output frame every `subsampling` frames and frozen statistics in buffers."""

    frame_model: ClassVar[bool] = False
    before: ClassVar[dict[str, int]] = {"right": 0}

    left: int = 2
    right: int = 1
    subsampling: int = 1
    recurrent: bool = False

    def build(self, input_dim: int, num_pdfs: int, seed: int) -> "Pulse":
        return Pulse(self, input_dim, num_pdfs, seed)


class Pulse(AcousticModel):
    """output_j = W·(window of output j, normalised), summed with all outputs before where recurrent."""

    def __init__(self, options: PulseOptions, input_dim: int, num_pdfs: int, seed: int) -> None:
        super().__init__(input_dim, num_pdfs, options.left, options.right, options.subsampling)
        self.width, self.recurrent = options.left + 1 + options.right, options.recurrent
        self.output = nn.Linear(self.width * input_dim, num_pdfs)
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("seen", torch.tensor(0))
        with torch.no_grad():
            self.output.weight.normal_(generator=torch.Generator().manual_seed(seed))

    def forward(
        self,
        x_BWD: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        keep: Mapping[str, torch.Tensor] | None = None,
        states: Sequence[str] = (),
    ) -> dict[str, torch.Tensor]:
        assert not self.training
        windows = (x_BWD - self.mean).unfold(1, self.width, self.subsampling).transpose(2, 3).flatten(2)
        output = self.output(windows)
        return {"output": output.cumsum(1) if self.recurrent else output}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(saved.MODELS, "pulse", PulseOptions)


def write(folder: Path, options: Any) -> AcousticModel:
    module = options.build(D, P, seed=3)
    save_model(folder, module, options, log_prior(np.arange(P), 1e-5))
    return module


def features(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).normal(size=(frames, D)).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("subsampling", [1, 2, 3])
@pytest.mark.parametrize("recurrent", [False, True])
def test_posteriors_come_at_the_full_frame_rate(frames: int, subsampling: int, recurrent: bool) -> None:
    module = PulseOptions(subsampling=subsampling, recurrent=recurrent).build(D, P, seed=1).eval()
    x = features(frames)
    logits = np.empty((frames, P))
    weight, bias = (t.detach().double().numpy() for t in (module.output.weight, module.output.bias))
    for t in range(frames):
        window = x[np.clip(np.arange(t - 2, t + 2), 0, frames - 1)].astype(np.float64)
        before = logits[t - subsampling] if recurrent and t >= subsampling else 0.0
        logits[t] = weight @ window.reshape(-1) + bias + before
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = SavedModel(module, np.zeros(P)).log_posteriors(x)
    assert found.shape == (frames, P)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=2e-5)


def test_buffers_travel_and_a_loaded_model_is_in_eval_mode(tmp_path: Path) -> None:
    options = PulseOptions(subsampling=3)
    module = options.build(D, P, seed=3)
    with torch.no_grad():
        module.get_buffer("mean").copy_(torch.tensor([1.0, -2.0, 0.5]))
        module.get_buffer("seen").fill_(7)
    save_model(tmp_path, module, options, log_prior(np.arange(P), 1e-5))
    loaded = load_model(tmp_path)
    assert not loaded.module.training
    assert loaded.module.get_buffer("mean").tolist() == [1.0, -2.0, 0.5]
    assert int(loaded.module.get_buffer("seen")) == 7
    assert np.array_equal(
        loaded.log_posteriors(features(8)), SavedModel(module.eval(), np.zeros(P)).log_posteriors(features(8))
    )


def test_an_option_that_came_later_has_what_was_in_its_place_or_its_default(tmp_path: Path) -> None:
    write(tmp_path, PulseOptions(subsampling=1, right=0))
    description = json.loads((tmp_path / "model.json").read_text())
    del description["options"]["subsampling"], description["options"]["right"]
    (tmp_path / "model.json").write_text(json.dumps(description))
    module = load_model(tmp_path).module
    assert (module.subsampling, module.right_context) == (1, 0)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("model", "oracle", "a model 'oracle' is not known, only dnn"),
        ("options", {"left": 2, "colour": "red"}, "colour"),
        ("options", {"left": 4}, "size mismatch"),
    ],
)
def test_models_that_cannot_be_built_are_refused_by_name(tmp_path: Path, entry, value, message) -> None:
    write(tmp_path / "m", PulseOptions())
    description = json.loads((tmp_path / "m" / "model.json").read_text())
    description[entry] = value
    (tmp_path / "m" / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=rf"(?s)model in .*m cannot be read: .*{message}"):
        load_model(tmp_path / "m")


def test_a_model_without_its_buffers_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write(tmp_path, PulseOptions())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["mean"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r'Missing key\(s\) in state_dict: "mean"'):
        load_model(tmp_path)


def test_a_frame_model_answers_for_each_frame_as_if_it_stood_alone(tmp_path: Path) -> None:
    write(tmp_path, DnnOptions(hidden_layers=1, width=4, context=2))
    model, x = load_model(tmp_path), features(6)
    whole = model.log_posteriors(x)
    for t in range(6):
        window = torch.from_numpy(x[np.clip(np.arange(t - 2, t + 3), 0, 5)])[None]
        alone = torch.log_softmax(model.module(window)["output"][0, 0], dim=-1)
        assert np.allclose(whole[t], alone.detach().numpy(), atol=1e-6)


NETWORKS = {
    "dnn": DnnOptions(hidden_layers=1, width=6, context=2),
    "rnn": RnnOptions(layers=1, width=6),
    "brnn": RnnOptions(layers=1, width=6, bidirectional=True),
    "lstm": LstmOptions(layers=2, cells=5, projection=4, delay=3, chunk=10, chunk_left=4),
    "blstm": LstmOptions(layers=1, cells=5, bidirectional=True),
    "lstm-3": LstmOptions(layers=1, cells=5, delay=2, subsampling=3),
    "tdnn": TdnnOptions(contexts=[[-1, 0, 2], [-3, 0]], width=6),
    "tdnn-3": TdnnOptions(contexts=[[-1, 0, 2], [-3, 0]], width=6, subsampling=3),
    "tdnn-batch": TdnnOptions(contexts=[[-1, 0, 2]], width=6, norm="batch"),
    "tdnnf": TdnnfOptions(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_decodes_what_it_was_trained_on(tmp_path: Path, name: str) -> None:
    """Posteriors of a saved model are the outputs of whole utterances in a padded training batch."""
    options, lengths = NETWORKS[name], (11, 5, 1)
    module = write(tmp_path, options)
    utterances, targets = [features(n) for n in lengths], [np.zeros(n, dtype=np.int32) for n in lengths]
    data = TrainingSet(["a", "b", "c"], utterances, targets, window=False)
    (minibatch,) = Sample("train", whole_utterances=True).plan(data.lengths)
    batch = data.batch(minibatch, module.left_context, module.right_context, module.subsampling)
    outputs = module.eval()(batch.x_BWD, batch.mask_BT)["output"].detach()
    model = load_model(tmp_path)
    for row, length in enumerate(lengths):
        found = model.log_posteriors(utterances[row])
        assert found.shape == (length, P)
        assert np.allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
        trained = torch.log_softmax(outputs[row][batch.mask_BT[row]], dim=-1).numpy()
        assert np.allclose(found[:: module.subsampling], trained, atol=1e-5)


def test_a_subsampled_tdnn_decodes_as_one_at_the_full_rate() -> None:
    full, third = (NETWORKS[name].build(D, P, seed=3).eval() for name in ("tdnn", "tdnn-3"))
    for frames in (1, 2, 3, 10, 30):
        found = SavedModel(third, np.zeros(P)).log_posteriors(features(frames))
        assert np.allclose(found, SavedModel(full, np.zeros(P)).log_posteriors(features(frames)), atol=1e-5)
