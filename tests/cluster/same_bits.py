"""Started by test_ranks.py under mpiexec: writes what must not depend on the number of ranks.

Usage: same_bits.py CORPUS OUT MODEL,MODEL… [dedicated]
SAME_BITS_UPDATES: how many each optimiser does (2), and half as many epochs.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from asr_hf.cluster.launch import launched_ranks, run_on_ranks
from asr_hf.cluster.options import ClusterOptions
from asr_hf.criteria.cross_entropy import CrossEntropyOptions
from asr_hf.criteria.lfmmi import LfmmiOptions
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.curvature.precision import Precision
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.tdnn import TdnnOptions
from asr_hf.models.tdnnf import TdnnfOptions
from asr_hf.objective.objective import Matrix
from asr_hf.optimizers.first_order import AdamOptions, SgdOptions
from asr_hf.optimizers.growth import GrowthOptions
from asr_hf.optimizers.hf import HfOptions
from asr_hf.optimizers.kfac import KfacOptions
from asr_hf.optimizers.ng import NgOptions
from asr_hf.optimizers.nghf import NghfOptions
from asr_hf.optimizers.nlcg import NlcgOptions
from asr_hf.optimizers.nlcg_search import SearchOptions
from asr_hf.optimizers.preconditioning import PreconditionerOptions
from asr_hf.optimizers.samples import drawn
from asr_hf.solvers.cg import CgOptions
from asr_hf.training.corpus import CorpusOptions
from asr_hf.training.run import TrainingOptions, build, load_data, open_objective, prepare

# Few updates and iterations: a second update starts from what the first left, and there is nothing new in a third.
UPDATES = int(os.environ.get("SAME_BITS_UPDATES", "2"))
SMALL = {"updates": UPDATES, "stop_rejections": UPDATES, "curvature_share": 0.2}
SMALL |= {"minibatch_frames": 200, "curvature_minibatch_frames": 100}
FEW = {**SMALL, "cg": CgOptions(5, progress_tolerance=0.0)}
HF = HfOptions(**FEW)
RELATIVES = {
    "sainath": HfOptions(
        **SMALL,
        gradient_share=0.3,
        cg=CgOptions(5, 0.0, beta="flexible"),
        preconditioner=PreconditionerOptions(["jacobi", "lbfgs"], pairs=4),
        growth=GrowthOptions("geometric"),
    ),
    "variance": HfOptions(**FEW, gradient_share=0.4, growth=GrowthOptions("variance", theta=0.3)),
    "blocks": HfOptions(**FEW, blocks=3, preconditioner=PreconditionerOptions(["lbfgs"], pairs=4)),
    "sharded": HfOptions(
        **FEW, blocks=2, preconditioner=PreconditionerOptions(["jacobi", "lbfgs"], 4, storage="bf16", sharded=True)
    ),
    "kfac": KfacOptions(**SMALL),
    "hf_kfac": HfOptions(**FEW, blocks=2, preconditioner=PreconditionerOptions(["kfac"])),
    "zhang": HfOptions(**FEW, blocks=2, accept="always", step=0.5),
    "ng": NgOptions(**FEW),
    "nghf_start": NghfOptions(**FEW, preconditioner=PreconditionerOptions(["uses"])),
    "nghf_rhs": NghfOptions(**FEW, reading="rhs"),
}
FIRST_ORDER = {
    "sgd": SgdOptions(epochs=UPDATES // 2, minibatches_per_step=3, minibatch_frames=64),
    "adam": AdamOptions(epochs=UPDATES // 2, minibatches_per_step=3, minibatch_frames=64),
    "nlcg": NlcgOptions(
        epochs=UPDATES // 2,
        minibatches_per_step=3,
        minibatch_frames=64,
        beta="polak_ribiere",
        search=SearchOptions(interval=2),
    ),
}
METHODS = {"dnn": (*RELATIVES, *FIRST_ORDER), "lfmmi": ("sainath", "kfac", "nghf_start", "adam", "nlcg")}


def digest(vector: torch.Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


MODELS = {
    "dnn": DnnOptions(hidden_layers=2, width=24, activation="sigmoid", context=2, norm="none"),
    "lstm": LstmOptions(
        layers=2, cells=9, projection=5, bidirectional=True, chunk=20, chunk_left=3, chunk_right=2, dropout=0.2
    ),
    "lfmmi": TdnnOptions(contexts=[[-1, 0, 1], [-3, 0, 3]], width=16, subsampling=3),
    "tdnnf": TdnnfOptions(strides=[1, 3], width=16, bottleneck=4, norm="batch", subsampling=3),
}


def master(corpus_dir: Path, out: Path, names: list[str], dedicated: bool) -> None:
    answers, reports = {}, []
    for name in names:
        model = MODELS[name]
        options = {
            "corpus": CorpusOptions(str(corpus_dir / "train"), str(corpus_dir / "heldout"), str(corpus_dir / "ali")),
            "model": model,
            "criterion": CrossEntropyOptions(),
            "curvature": CurvatureOptions(budget_gib=2e-4, states=["lstm1"] if name == "lstm" else []),
            "cluster": ClusterOptions(dedicated_master=dedicated),
            "training": TrainingOptions(),
        }
        if name == "lfmmi":
            options["criterion"] = LfmmiOptions(output_l2=1e-3, branch=0.2, chunk=30)
            options["corpus"].alignments = str(corpus_dir / "chain")
        options["optimizer"] = replace(HF, structural=0.5) if name == "lstm" else HF
        answers[name], of_model = run(options, () if dedicated else METHODS.get(name, ()), name == "dnn")
        reports += of_model
    account = {
        "rank_frames": [report.rank_frames for report in reports],
        "vectors": [report.vectors for report in reports],
        "recomputed": [report.recomputed for report in reports],
        "notes": [report.note for report in reports],
    }
    out.write_text(json.dumps({"answers": answers, "account": account, "ranks": launched_ranks()}))


def run(options: dict, methods: Sequence[str], reduced: bool) -> tuple[dict, list]:
    """Losses, gradients, products (`reduced`: of less precision too), HF updates and other methods of one model."""
    model, evaluator = build(options, load_data(options, check=True))
    objective = open_objective(options, evaluator)
    theta = evaluator.layout.flatten(dict(model.named_parameters())).detach().clone()
    sample = drawn(objective, "curvature", 0.3, 100, 3, 1, 10, masks=1)
    answer = objective.gradient(theta, sample)
    answers: dict[str, object] = {
        "loss": objective.loss(theta, sample).value.hex(),
        "gradient": digest(answer.vector),
        "value": answer.value.hex(),
        "frames": answer.frames,
    }
    structural = 0.1 if options["curvature"].states else 0.0
    blocks = Matrix(structural=structural, groups=objective.layout.partition(2))
    with objective.linearize(theta, sample) as lin:
        for matrix in [*map(Matrix, evaluator.criterion.matrices), blocks]:
            answers[str(matrix)] = digest(lin.product(theta, matrix))
    for precision in (Precision.MEDIUM, Precision.BF16) if reduced else ():
        with objective.linearize(theta, sample, precision) as lin:
            answers[precision.value] = digest(lin.product(theta))
    hf = options["optimizer"].start(theta.clone(), 0)
    reports = []
    while not hf.state.finished:
        reports.append(hf.step(objective))
    assert hf.state.update == UPDATES
    answers["hf"] = [digest(vector) for vector in hf.best()]
    for name in methods:
        optimizer = {**RELATIVES, **FIRST_ORDER}[name].start(theta.clone(), 0)
        while not optimizer.state.finished:
            report = optimizer.step(objective)
            if name != "sharded":  # one process sends no pairs
                reports.append(report)
        assert name in FIRST_ORDER or optimizer.state.update == UPDATES
        answers[name] = [digest(vector) for vector in optimizer.best()]
    return answers, reports


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:] == ["dedicated"]
    if launched_ranks() > 1:
        run_on_ranks(lambda: master(*arguments), prepare)
    else:
        master(*arguments)
