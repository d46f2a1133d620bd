"""One process' share of the work: losses, gradients and curvature products of the minibatches it was dealt.

A minibatch yields float32; sums over minibatches are float64. LocalObjective and the workers of a cluster stand on it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.func import functional_call

from asr_hf.criteria.criterion import Criterion, CriterionLinearisation, Outputs
from asr_hf.curvature.linearise import ModelLinearisation
from asr_hf.curvature.product import jt_m_j
from asr_hf.data.minibatch import Batch, TrainingSet
from asr_hf.data.plan import Minibatch, Sample
from asr_hf.models.acoustic import AcousticModel
from asr_hf.objective.layout import Layout


@dataclass
class Share:
    """What one process contributes to a sum.

    Attributes:
        values: float64 (minibatches of the plan,), the loss of each minibatch evaluated here, 0 elsewhere.
        frames: int64 (minibatches of the plan,), likewise.
        bad: indices of utterances whose loss was not finite.
        vector: float64 (N,), sum of the float32 vectors of the minibatches; None for a loss.
    """

    values: np.ndarray
    frames: np.ndarray
    bad: set[int] = field(default_factory=set)
    vector: torch.Tensor | None = None


@dataclass(frozen=True)
class _Linearised:
    jacobian: ModelLinearisation
    criterion: CriterionLinearisation


class Evaluator:
    """Model, criterion and data of one process.

    Args:
        model: the acoustic model; its own parameter values are not used, θ is.
        criterion: the training criterion.
        sets: "train" and "heldout".
        device: where to compute.
    """

    def __init__(
        self, model: AcousticModel, criterion: Criterion, sets: Mapping[str, TrainingSet], device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.criterion = criterion
        self.sets = dict(sets)
        self.device = device
        self.layout = Layout.of(model)
        self.frame_model = model.frame_model
        self._plan = functools.lru_cache(maxsize=8)(lambda sample: sample.plan(self.sets[sample.subset].lengths))

    def plan(self, sample: Sample) -> tuple[Minibatch, ...]:
        """The minibatches of a sample; a window of a plan, and other dropout masks, reuse the whole plan."""
        whole = self._plan(replace(sample, first=0, count=0, masks=0))
        return whole[sample.first : sample.first + sample.count if sample.count else len(whole)]

    def losses(self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Share:
        """Losses of the minibatches `which` of the sample's plan."""
        share, parameters = self._share(sample), self.layout.views(theta_N)
        with torch.no_grad():
            for index, batch in self._batches(sample, which, left_out):
                value_B = self.criterion.values(functional_call(self.model, parameters, (batch.x_BWD,)), batch)
                self._enter(share, index, batch, value_B)
        return share

    def gradient(self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Share:
        """Losses and the summed gradient of the minibatches `which`."""
        share = self._share(sample)
        share.vector = torch.zeros(self.layout.size, dtype=torch.float64, device=self.device)
        parameters = {name: t.detach().requires_grad_() for name, t in self.layout.views(theta_N).items()}
        for index, batch in self._batches(sample, which, left_out):
            outputs = functional_call(self.model, parameters, (batch.x_BWD,))
            at_outputs = self.criterion.linearize({name: y.detach() for name, y in outputs.items()}, batch)
            if self._enter(share, index, batch, at_outputs.value_B):
                names = list(at_outputs.gradient)
                pulled = torch.autograd.grad(
                    [outputs[n] for n in names], list(parameters.values()), [at_outputs.gradient[n] for n in names]
                )
                share.vector += self.layout.flatten(dict(zip(parameters, pulled, strict=True)))
        return share

    def linearize(
        self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]
    ) -> tuple[Share, "LocalLinearisation"]:
        """Linearise the minibatches `which`; the share holds their values and frames."""
        share, parameters = self._share(sample), self.layout.views(theta_N)
        linearised = []
        for index, batch in self._batches(sample, which, left_out):
            jacobian = ModelLinearisation(self._outputs_of(batch), parameters)
            at_outputs = self.criterion.linearize(jacobian.outputs, batch)
            if self._enter(share, index, batch, at_outputs.value_B):
                linearised.append(_Linearised(jacobian, at_outputs))
        return share, LocalLinearisation(self.layout, linearised, int(share.frames.sum()), self.device)

    def _outputs_of(self, batch: Batch) -> Callable[[dict[str, torch.Tensor]], Outputs]:
        """Parameters → outputs, at this batch's input."""
        return lambda parameters: functional_call(self.model, parameters, (batch.x_BWD,))

    def _share(self, sample: Sample) -> Share:
        count = len(self.plan(sample))
        return Share(np.zeros(count), np.zeros(count, dtype=np.int64))

    def _batches(self, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Iterator[tuple[int, Batch]]:
        """(index in the plan, batch) of the chosen minibatches; utterances left out are masked, their input zeroed."""
        plan, dataset = self.plan(sample), self.sets[sample.subset]
        absent = torch.tensor(sorted(left_out) if sample.subset == "train" else [], dtype=torch.int64)
        for index in which:
            batch = dataset.batch(plan[index], self.model.left_context, self.model.right_context)
            rows = torch.isin(batch.utterance_B, absent)
            batch.mask_BT[rows] = False
            batch.x_BWD[rows] = 0.0
            yield index, batch.to(self.device)

    @staticmethod
    def _enter(share: Share, index: int, batch: Batch, value_B: torch.Tensor) -> bool:
        """Enter a minibatch's loss and frames; False if some utterance of it is not finite."""
        share.values[index] = value_B.sum().item()
        share.frames[index] = int(batch.mask_BT.sum())
        finite_B = torch.isfinite(value_B)
        if bool(finite_B.all()):
            return True
        share.bad.update(batch.utterance_B[~finite_B].tolist())
        return False


class LocalLinearisation:
    """The linearised minibatches of one process at one θ, and the frames they cover."""

    def __init__(self, layout: Layout, linearised: list[_Linearised], frames: int, device: torch.device) -> None:
        self.frames = frames
        self._layout, self._linearised, self._device = layout, linearised, device

    def product(self, v_N: torch.Tensor, matrix: str) -> torch.Tensor:
        """Σ over minibatches of JᵀMJ·v, float64 (N,)."""
        total = torch.zeros(self._layout.size, dtype=torch.float64, device=self._device)
        tangent = self._layout.views(v_N)
        for item in self._linearised:
            total += self._layout.flatten(jt_m_j(item.jacobian, item.criterion.operators[matrix], tangent))
        return total
