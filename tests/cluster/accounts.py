"""Started by test_protocol.py under mpiexec: squared gradients, and the account of what was asked.

Usage: accounts.py CORPUS OUT [dedicated]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.cluster.options import ClusterOptions
from asr_hf.criteria.cross_entropy import CrossEntropyOptions
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.data.plan import Sample
from asr_hf.models.lstm import LstmOptions
from asr_hf.objective.objective import Matrix
from asr_hf.training.corpus import CorpusOptions
from asr_hf.training.run import TrainingOptions, build, load_data, open_objective, prepare


def master(corpus: Path, out: Path, dedicated: bool) -> None:
    options = {
        "corpus": CorpusOptions(str(corpus / "train"), str(corpus / "heldout"), str(corpus / "ali")),
        "model": LstmOptions(layers=2, cells=6, norm="batch", chunk=20, chunk_left=3),
        "criterion": CrossEntropyOptions(),
        "curvature": CurvatureOptions(),
        "cluster": ClusterOptions(dedicated_master=dedicated),
        "training": TrainingOptions(),
        "optimizer": None,
    }
    model, evaluator = build(options, load_data(options, check=True))
    objective = open_objective(options, evaluator)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    chunks = Sample("train", "chunks", 0.4, 100, True, seed=1, chunk=20)
    utterances = Sample("train", "utterances", 0.3, 1, True, seed=2)
    objective.gradient(theta, chunks)
    by_minibatch = objective.gradient(theta, chunks, squares=True).squares
    by_utterance = objective.squared_gradients(theta, utterances).squares
    factors = objective.kronecker_factors(theta, chunks, reduce=True)
    objective.loss(theta + 0.1, Sample("heldout", whole_utterances=True))
    theta.mul_(1.01)
    with objective.linearize(theta, chunks) as lin:
        lin.product(theta)
        lin.product(theta, Matrix(groups=objective.layout.partition(2)))
    account = objective.account
    answers = {
        "squares": [digest(by_minibatch), digest(by_utterance)],
        "equivalents": {phase: value.hex() for phase, value in account.equivalents.items()},
        "factors": digest(factors.vector),
        "vectors": account.vectors - factors.vector.numel() / len(theta),
    }
    out.write_text(json.dumps(answers))


def digest(vector: torch.Tensor | None) -> str:
    assert vector is not None
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["dedicated"]
    if launched_ranks() > 1:
        run_on_ranks(lambda: master(*arguments), prepare)
    else:
        master(*arguments)
