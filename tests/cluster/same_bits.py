"""Started by test_ranks.py under mpiexec: writes what must not depend on the number of ranks.

Usage: same_bits.py CORPUS OUT [dedicated]
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.cluster.options import ClusterOptions
from asr_hf.criteria.cross_entropy import CrossEntropyOptions
from asr_hf.data.plan import Sample
from asr_hf.models.dnn import DnnOptions
from asr_hf.optimizers.first_order import AdamOptions, SgdOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.solvers.cg import CgOptions
from asr_hf.training.corpus import CorpusOptions
from asr_hf.training.run import TrainingOptions, build, load_data, open_objective, work


def digest(vector: torch.Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def master(corpus_dir: Path, out: Path, dedicated: bool) -> None:
    options = {
        "corpus": CorpusOptions(str(corpus_dir / "train"), str(corpus_dir / "heldout"), str(corpus_dir / "ali")),
        "model": DnnOptions(hidden_layers=2, width=24, activation="sigmoid", context=2),
        "criterion": CrossEntropyOptions(),
        "cluster": ClusterOptions(dedicated_master=dedicated),
        "training": TrainingOptions(),
    }
    model, evaluator = build(options, load_data(options, check=True))
    objective, let_go = open_objective(options, evaluator)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    sample = Sample("train", "frames", 0.5, 100, seed=3, update=1, purpose="curvature")
    answer = objective.gradient(theta, sample)
    answers: dict[str, object] = {
        "loss": objective.loss(theta, sample).value.hex(),
        "gradient": digest(answer.vector),
        "value": answer.value.hex(),
        "frames": answer.frames,
    }
    with objective.linearize(theta, sample) as lin:
        answers["product"] = digest(lin.product(theta))
    minibatches = {"minibatch_frames": 200, "curvature_minibatch_frames": 100}
    hf = HfOptions(updates=5, curvature_share=0.3, cg=CgOptions(12), **minibatches).start(theta.clone(), 0)
    reports = []
    while not hf.state.finished:
        reports.append(hf.step(objective))
    answers["hf"] = digest(hf.best())
    for name, first_order in (("sgd", SgdOptions(epochs=2)), ("adam", AdamOptions(epochs=2))):
        first_order.minibatches_per_step, first_order.minibatch_frames = 3, 64
        optimizer = first_order.start(theta.clone(), 0)
        while not optimizer.state.finished:
            optimizer.step(objective)
        answers[name] = digest(optimizer.best())
    account = {
        "rank_frames": [report.rank_frames for report in reports],
        "vectors": [report.vectors for report in reports],
        "seconds": [report.seconds for report in reports],
    }
    out.write_text(json.dumps({"answers": answers, "account": account, "ranks": launched_ranks()}))
    let_go()


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] == ["dedicated"]
    if launched_ranks() > 1:
        run_on_ranks(lambda: master(*arguments), work)
    else:
        master(*arguments)
