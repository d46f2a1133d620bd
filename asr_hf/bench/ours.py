"""asr_hf's own models and products, at the sizes of the benchmark."""

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call

from asr_hf.bench.plain import Named, ParameterMap, Rule
from asr_hf.bench.sizes import DnnSize, LstmSize, Problem, Size, TdnnSize, cut
from asr_hf.criteria.criterion import OutputOperator
from asr_hf.criteria.cross_entropy import CrossEntropy
from asr_hf.curvature.linearise import Linearizer, ModelLinearisation
from asr_hf.curvature.precision import Precision
from asr_hf.curvature.product import jt_m_j
from asr_hf.data.minibatch import Batch
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.dnn import DnnOptions
from asr_hf.models.lstm import LstmOptions
from asr_hf.models.tdnn import TdnnOptions


class AsrHf:
    """The curvature engine on a model of asr_hf: `methods.Method` for a precision and a number of blocks.

    Args:
        size: which model, how large.
        problem: θ, v and data.
        precision: fp32, medium or bf16.
        blocks: parts of the parameters; a product is then each part's own, of one linearisation.
    """

    def __init__(self, size: Size, problem: Problem, precision: str, blocks: int = 1) -> None:
        self.model, self.parameters = MODELS[size.model](size)
        self.model.to(problem.x_BWD.device)
        with torch.no_grad():
            for name, value in self.parameters.own(problem.weights).items():
                self.model.get_parameter(name).copy_(value)
        self.precision = Precision(precision)
        self.criterion = CrossEntropy()
        mask_BT = torch.ones_like(problem.target_BT, dtype=torch.bool)
        utterance_B = torch.arange(len(mask_BT), device=mask_BT.device)
        self.batch = Batch(problem.x_BWD, problem.target_BT, mask_BT, utterance_B)
        own = self.parameters.own(problem.direction)
        own_of = {rule.canonical: name for name, rule in self.parameters.rules.items()}
        self.tangents = [
            {own_of[name]: own[own_of[name]] for name in names} for names in cut(size.parameter_shapes(), blocks)
        ]
        self.linearizer = Linearizer(self._outputs)

    def _outputs(self, parameters: Named, inputs: Any) -> Named:
        return functional_call(self.model, parameters, inputs)

    def linearize(self) -> tuple[ModelLinearisation, OutputOperator]:
        point = self.linearizer.at(dict(self.model.named_parameters()), self.precision)
        jacobian = point.linearize((self.batch.x_BWD, self.batch.mask_BT))
        matrix = self.criterion.linearize(jacobian.outputs, self.batch).operators["gauss_newton"]
        jacobian.forget_outputs()
        return jacobian, matrix

    def product(self, kept: tuple[ModelLinearisation, OutputOperator]) -> Named:
        jacobian, matrix = kept
        found: Named = {}
        for tangent in self.tangents:
            found |= jt_m_j(jacobian, matrix, tangent, tuple(tangent))
        return self.parameters.canonical(found)


def _dnn(size: DnnSize) -> tuple[AcousticModel, ParameterMap]:
    options = DnnOptions(size.layers, size.width, "relu", size.context, norm="none")
    model = options.build(size.input_dim, size.pdfs, seed=0)
    return model, ParameterMap({name: Rule(name) for name in size.parameter_shapes()})


def _tdnn(size: TdnnSize) -> tuple[AcousticModel, ParameterMap]:
    options = TdnnOptions([[-1, 0, 1]] * size.layers, size.width, "relu", norm="none")
    model = options.build(size.input_dim, size.pdfs, seed=0)
    return model, ParameterMap({name: Rule(name) for name in size.parameter_shapes()})


def _lstm(size: LstmSize) -> tuple[AcousticModel, ParameterMap]:
    model = LstmOptions(size.layers, size.width, norm="none").build(size.input_dim, size.pdfs, seed=0)
    rules = {"output.weight": Rule("output.weight"), "output.bias": Rule("output.bias")}
    for layer in range(1, size.layers + 1):
        for own, part in (("input.weight", "input"), ("input.bias", "bias"), ("recurrent", "recurrent")):
            rules[f"lstm{layer}.forwards.{own}"] = Rule(f"layer{layer}.{part}")
    return model, ParameterMap(rules)


MODELS: dict[str, Callable[..., tuple[AcousticModel, ParameterMap]]] = {"dnn": _dnn, "tdnn": _tdnn, "lstm": _lstm}
