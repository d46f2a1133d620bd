"""One process' share of the work: losses, gradients and curvature products of the minibatches it was dealt.

A minibatch yields float32; sums over minibatches are float64. LocalObjective and the workers of a cluster stand on it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from asr_hf.criteria.criterion import Criterion, Outputs
from asr_hf.curvature.guard import RepeatabilityGuard, deterministic_algorithms
from asr_hf.curvature.kronecker import LinearMap, Uses, kronecker_sums, linear_maps
from asr_hf.curvature.linearise import Linearizer
from asr_hf.curvature.options import CurvatureOptions
from asr_hf.curvature.precision import Precision
from asr_hf.data.minibatch import Batch, TrainingSet
from asr_hf.data.plan import Minibatch, Sample
from asr_hf.models.acoustic import AcousticModel
from asr_hf.models.dropout import keep_factors
from asr_hf.models.norm import frame_mask, frozen_norms, moments
from asr_hf.objective.layout import Layout
from asr_hf.objective.linearisation import LocalLinearisation, Part


@dataclass
class Share:
    """What one process contributes to a sum.

    Attributes:
        values: float64 (minibatches of the plan,), the loss of each minibatch evaluated here, 0 elsewhere.
        frames: int64 (minibatches of the plan,), likewise.
        bad: indices of utterances whose loss was not finite.
        vector: float64 (N,), sum of the float32 vectors of the minibatches; None for a loss.
        squares: float64 (N,), sum of their squares, element by element; None unless asked for.
    """

    values: np.ndarray
    frames: np.ndarray
    bad: set[int] = field(default_factory=set)
    vector: torch.Tensor | None = None
    squares: torch.Tensor | None = None


def _in_full_float32(method: Callable[..., Share]) -> Callable[..., Share]:
    """The method, its matrices multiplied in full float32 by the fastest library."""

    @functools.wraps(method)
    def wrapped(self: "Evaluator", *arguments: Any, **options: Any) -> Share:
        with Precision.FP32.matmul(self.device):
            return method(self, *arguments, **options)

    return wrapped


class Evaluator:
    """Model, criterion and data of one process.

    Args:
        model: the acoustic model; its own parameter values are not used, θ is. Its buffers are.
        criterion: the training criterion.
        sets: "train" and "heldout".
        device: where to compute.
        curvature: how curvature products are computed.
    """

    def __init__(
        self,
        model: AcousticModel,
        criterion: Criterion,
        sets: Mapping[str, TrainingSet],
        device: torch.device,
        curvature: CurvatureOptions | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.criterion = criterion
        self.sets = dict(sets)
        self.device = device
        self.curvature = curvature or CurvatureOptions()
        self.layout = Layout.of(model)
        self.buffers = Layout.of_buffers(model)
        self.normalisations = len(frozen_norms(model))
        self.frame_model = model.frame_model and not criterion.sequence
        self._linearizer = Linearizer(self._with_states)
        self._deterministic = device.type == "cuda" and self.curvature.deterministic
        self._guard = RepeatabilityGuard(exact=device.type == "cpu" or self._deterministic)
        self.share_of_flops = functools.lru_cache(maxsize=8)(self._share_of_flops)
        self._plan = functools.lru_cache(maxsize=8)(lambda sample: sample.plan(self.sets[sample.subset].lengths))

    def plan(self, sample: Sample) -> tuple[Minibatch, ...]:
        """The minibatches of a sample; a window of a plan reuses the whole plan."""
        sample = replace(sample, masks=0)
        if sample.first == 0 and sample.count == 0:
            return self._plan(sample)
        whole = self._plan(replace(sample, first=0, count=0))
        return whole[sample.first : sample.first + sample.count if sample.count else len(whole)]

    @_in_full_float32
    def losses(self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Share:
        """Losses of the minibatches `which` of the sample's plan."""
        share, parameters = self._share(sample), self.layout.views(theta_N)
        with torch.no_grad():
            for index, batch in self._batches(sample, which, left_out):
                value_B = self.criterion.values(self._outputs(parameters, self._inputs(sample, batch)), batch)
                self._enter(share, index, batch, value_B)
        return share

    @_in_full_float32
    def gradient(
        self,
        theta_N: torch.Tensor,
        sample: Sample,
        which: Sequence[int],
        left_out: frozenset[int],
        batch_statistics: bool = False,
        squares: bool = False,
    ) -> Share:
        """Losses and the summed gradient of the minibatches `which`.

        Args:
            batch_statistics: batch normalisation uses (and differentiates) the statistics of the minibatch, as
                first-order methods do, instead of the stored ones.
            squares: sum the squares of the minibatches' gradients too.
        """
        share = self._share(sample)
        share.vector = torch.zeros(self.layout.size, dtype=torch.float64, device=self.device)
        share.squares = torch.zeros_like(share.vector) if squares else None
        sums = self.layout.views(share.vector)
        sums_of_squares = self.layout.views(share.squares) if share.squares is not None else {}
        parameters = {name: t.detach().requires_grad_() for name, t in self.layout.views(theta_N).items()}
        for index, batch in self._batches(sample, which, left_out):
            with self._statistics_of_minibatch(batch_statistics):
                outputs = self._outputs(parameters, self._inputs(sample, batch))
            at_outputs = self.criterion.linearize({name: y.detach() for name, y in outputs.items()}, batch)
            if self._enter(share, index, batch, at_outputs.value_B):
                for name, gradient in _pulled_back(at_outputs.gradient, outputs, parameters):
                    sums[name] += gradient
                    if squares:
                        sums_of_squares[name] += gradient.double().square_()
        return share

    def linearize(
        self,
        theta_N: torch.Tensor,
        sample: Sample,
        which: Sequence[int],
        left_out: frozenset[int],
        precision: Precision = Precision.FP32,
    ) -> tuple[Share, LocalLinearisation]:
        """Linearise the minibatches `which`; the share holds their values and frames.

        What exceeds the byte budget is not kept: every product linearises it anew, with the same bits.
        """
        share, budget = self._share(sample), self.curvature.budget_bytes
        point = self._linearizer.at(self.layout.views(theta_N), precision)

        def linearised(batch: Batch) -> Part:
            with deterministic_algorithms(self._deterministic):
                jacobian = point.linearize(self._inputs(sample, batch))
            masks = {name: self._state_mask(batch, name, jacobian.outputs[name]) for name in self.curvature.states}
            at_outputs = replace(self.criterion.linearize(jacobian.outputs, batch), gradient={})
            jacobian.forget_outputs()
            return Part(jacobian, at_outputs, masks)

        def anew(index: int) -> Part:
            return linearised(next(self._batches(sample, [index], left_out))[1])

        kept: dict[int, Part] = {}  # index in the plan -> minibatch
        order: list[int] = []
        needed = largest = 0  # bytes of all that are kept; of the largest that is not
        for index, batch in self._batches(sample, which, left_out):
            part = linearised(batch)
            if not self._enter(share, index, batch, part.criterion.value_B):
                continue
            order.append(index)
            kept[index] = part
            needed += part.bytes_held
            del part  # what is dropped must be gone before the next is made
            while kept and needed + 2 * largest > budget:  # room to make the largest anew, and to work on it
                dropped = kept.popitem()[1].bytes_held
                needed -= dropped
                largest = max(largest, dropped)
        parts = [functools.partial(_part, kept.get(index), index, anew) for index in order]
        frames = int(share.frames.sum())
        return share, LocalLinearisation(
            self.layout, parts, len(kept), frames, self.device, self._guard, self._deterministic
        )

    def _share_of_flops(self, groups: tuple[tuple[str, ...], ...], sample: Sample) -> float:
        """What a product with the diagonal blocks `groups` costs, as a share of a whole product (no groups: 1).

        Counted on the first row of the sample's first minibatch, so that every rank can, whatever it was dealt.
        """
        if not groups:
            return 1.0
        utterance, first, frames = self.plan(sample)[0].pieces[0].tolist()
        row = Minibatch(np.array([[utterance, first, 1 if self.frame_model else frames]], dtype=np.int32))
        model = self.model
        batch = self.sets[sample.subset].batch(row, model.left_context, model.right_context, model.subsampling)
        parameters, inputs = dict(model.named_parameters()), self._inputs(sample, batch.to(self.device))
        cost = functools.partial(self._linearizer.flops, parameters, inputs)
        return sum(map(cost, self.layout.parameters_of(groups))) / cost(tuple(parameters))

    @functools.cached_property
    def maps(self) -> tuple[LinearMap, ...]:
        """The weights that have Kronecker factors."""
        return linear_maps(self.model)

    @functools.cached_property
    def factors(self) -> Layout:
        """Of the sums of Kronecker factors, then of squares of the parameters that have none."""
        covered = {name for each in self.maps for name in (each.weight, each.bias)}
        shapes = {name: shape for each in self.maps for name, shape in each.shapes.items()}
        others = {slot.name: slot.shape for slot in self.layout.slots if slot.name not in covered}
        return Layout.of_shapes({**shapes, **others})

    @_in_full_float32
    def kronecker_factors(
        self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int], reduce: bool
    ) -> Share:
        """Sums of Kronecker factors (`factors`, float64) for labels that are drawn minibatch by minibatch."""
        share = self._share(sample)
        share.vector = torch.zeros(self.factors.size, dtype=torch.float64, device=self.device)
        sums = self.factors.views(share.vector)
        parameters = {name: t.detach().requires_grad_() for name, t in self.layout.views(theta_N).items()}
        others = {name: parameter for name, parameter in parameters.items() if name in sums}
        for index, batch in self._batches(sample, which, left_out):
            with Uses(parameters) as uses:
                outputs = self._outputs(parameters, self._inputs(sample, batch))
            fixed = {name: y.detach() for name, y in outputs.items()}
            if self._enter(share, index, batch, self.criterion.values(fixed, batch)):
                score = self.criterion.sampled_score(fixed, batch, self._generator(sample, index))
                for name, value in kronecker_sums(uses.found, others, outputs, score, reduce):
                    sums[name] += value
        return share

    def _generator(self, sample: Sample, index: int) -> torch.Generator:
        """Random numbers that are a function of the sample and the minibatch's place in the plan alone."""
        numbers = np.random.SeedSequence([sample.seed, sample.update, sample.masks, sample.first + index])
        return torch.Generator(self.device).manual_seed(int(numbers.generate_state(1, np.uint64)[0]))

    @_in_full_float32
    def batch_moments(
        self, theta_N: torch.Tensor, sample: Sample, which: Sequence[int], left_out: frozenset[int]
    ) -> Share:
        """Sums over frames of 1, x and x² for the input x of every batch normalisation.

        Each minibatch is normalised by its own statistics meanwhile, so that the sums depend on θ and the sample alone.
        The vector holds, for each normalisation in the model's order, the count, Σx and Σx² (units,), float64.
        """
        norms, share = list(frozen_norms(self.model).values()), self._share(sample)
        size = sum(1 + 2 * norm.mean.numel() for norm in norms)
        share.vector = torch.zeros(size, dtype=torch.float64, device=self.device)
        seen: dict[int, torch.Tensor] = {}  # of one minibatch, by the number of the norm

        def record(number: int, x: torch.Tensor, mask: torch.Tensor | None) -> None:
            seen[number] = torch.cat([part.reshape(-1).to(self.device) for part in moments(x, mask)])

        for number, norm in enumerate(norms):
            norm.record = functools.partial(record, number)
        try:
            parameters = self.layout.views(theta_N)
            with torch.no_grad(), self._statistics_of_minibatch():
                for index, batch in self._batches(sample, which, left_out):
                    outputs = self._outputs(parameters, self._inputs(sample, batch))
                    self._enter(share, index, batch, self.criterion.values(outputs, batch))
                    share.vector += torch.cat([seen[number] for number in range(len(norms))])
        finally:
            for norm in norms:
                norm.record = None
        return share

    def buffers_from(self, moments: torch.Tensor) -> torch.Tensor:
        """The buffers (flat) that hold the means and variances of summed `batch_moments`."""
        named, offset = {n: b.clone() for n, b in self.model.named_buffers()}, 0
        for name, norm in frozen_norms(self.model).items():
            units = norm.mean.numel()
            count, x, xx = moments[offset : offset + 1 + 2 * units].split([1, units, units])
            offset += 1 + 2 * units
            mean = x / count
            named[f"{name}.mean"] = mean.float()
            named[f"{name}.var"] = (xx / count - mean**2).clamp_min(0.0).float()
        return self.buffers.flatten(named)

    def set_buffers(self, buffers: torch.Tensor) -> None:
        """Store a flat vector of buffers in the model."""
        named = dict(self.model.named_buffers())
        for name, value in self.buffers.views(buffers).items():
            named[name].copy_(value)

    @contextlib.contextmanager
    def _statistics_of_minibatch(self, wanted: bool = True) -> Iterator[None]:
        """Within the block batch normalisations use the statistics of the minibatch instead of the stored ones."""
        self.model.train(wanted)
        try:
            yield
        finally:
            self.model.eval()

    def _with_states(self, parameters: dict[str, torch.Tensor], inputs: Any) -> Outputs:
        return self._outputs(parameters, inputs, self.curvature.states)

    def _outputs(self, parameters: dict[str, torch.Tensor], inputs: Any, states: Sequence[str] = ()) -> Outputs:
        buffers, x_BWD, mask_BT, keep = inputs
        return functional_call(self.model, ({**parameters, **buffers},), (x_BWD, mask_BT, keep, tuple(states)))

    def _inputs(self, sample: Sample, batch: Batch) -> Any:
        """What the model's outputs depend on besides θ: buffers, input, mask, dropout factors."""
        keep = None
        if sample.masks and sample.subset == "train" and self.model.dropouts:
            factors = keep_factors(self.model.dropouts, sample.seed, sample.masks, batch.utterance_B.cpu())
            keep = {name: factor.to(self.device) for name, factor in factors.items()}
        return dict(self.model.named_buffers()), batch.x_BWD, batch.mask_BT, keep

    def _state_mask(self, batch: Batch, name: str, state_BTH: torch.Tensor) -> torch.Tensor:
        """Where the frames of a hidden state are real (B, ·, 1)."""
        return frame_mask(batch.mask_BT, state_BTH.shape[1], self.model.rate_of(name))[..., None]

    def _share(self, sample: Sample) -> Share:
        count = len(self.plan(sample))
        return Share(np.zeros(count), np.zeros(count, dtype=np.int64))

    def _batches(self, sample: Sample, which: Sequence[int], left_out: frozenset[int]) -> Iterator[tuple[int, Batch]]:
        """(index in the plan, batch) of the chosen minibatches; utterances left out are masked, their input zeroed."""
        plan, dataset, model = self.plan(sample), self.sets[sample.subset], self.model
        absent = torch.tensor(sorted(left_out) if sample.subset == "train" else [], dtype=torch.int64)
        for index in which:
            batch = dataset.batch(plan[index], model.left_context, model.right_context, model.subsampling)
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


def _pulled_back(
    cotangent: Outputs, outputs: Outputs, parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, Jᵀ·cotangent) of every parameter, none of them held longer than the caller does."""
    ends = [outputs[name] for name in cotangent]
    found = torch.autograd.grad(ends, list(parameters.values()), list(cotangent.values()), materialize_grads=True)
    return zip(parameters, found, strict=True)


def _part(kept: Part | None, index: int, anew: Callable[[int], Part]) -> Part:
    return kept if kept is not None else anew(index)
