"""The ways to a product JᵀMJ·v that are measured, and the gradient that is their unit.

Every method has two steps: `linearize` makes what it keeps for all products of a CG solve, `product` does one product.

Symbols: θ parameters, z = f(θ) logits, pdfs in dimension 1, p = softmax(z), J = ∂z/∂θ, M = diag(p) − ppᵀ per frame.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.func import functional_call

from asr_hf.bench.ours import AsrHf
from asr_hf.bench.plain import MODULES, Named, Plain, plain
from asr_hf.bench.sizes import Problem, Size, cut
from asr_hf.curvature.precision import Precision
from asr_hf.errors import InputError

PRECISIONS = ("fp32", "medium", "bf16")
# method -> the precisions that it is measured in
METHODS: dict[str, tuple[str, ...]] = {
    "asr_hf": PRECISIONS,
    "torch_jvp_vjp": ("fp32",),
    "double_backward": ("fp32",),
    "curvlinops": PRECISIONS,
    "backpack": ("fp32",),
}
GRADIENT = "torch"  # the unit's name where rows name a method


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        size: of which model.
        method: of METHODS, or GRADIENT.
        module: the plain module that it runs on, or the name of the model for asr_hf.
        precision: of PRECISIONS.
        blocks: parts that the parameters are cut into; a product is then one of each part's with itself.
    """

    size: Size
    method: str
    module: str
    precision: str = "fp32"
    blocks: int = 1


class Method(Protocol):
    """A case made ready: model, data and direction are in memory, nothing is computed yet."""

    def linearize(self) -> Any:
        """What is kept for all products at one θ and one minibatch (None: nothing)."""
        ...

    def product(self, kept: Any) -> Named:
        """G·v by canonical name, or the gradient."""
        ...


class _OnModule:
    """What the methods on a plain module share."""

    def __init__(self, made: Plain, problem: Problem, dtype: torch.dtype) -> None:
        self.module, self.parameters = made.module.to(dtype), made.parameters
        self.x, self.target = made.x.to(dtype), made.target
        own = {name: tensor.to(dtype) for name, tensor in made.parameters.own(problem.direction).items()}
        self.trainable = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.v = [own[name] for name in self.trainable]

    def loss(self, z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(z, self.target, reduction="sum")

    def named(self, values: Sequence[torch.Tensor]) -> Named:
        found = dict(zip(self.trainable, (value.detach() for value in values), strict=True))
        return self.parameters.canonical(found)

    def linearize(self) -> Any:
        return None


class Gradient(_OnModule):
    """Forward, cross-entropy, backward."""

    def product(self, kept: None) -> Named:
        return self.named(torch.autograd.grad(self.loss(self.module(self.x)), list(self.trainable.values())))


class TorchJvpVjp(_OnModule):
    """torch.func.jvp, then torch.func.vjp, both from scratch for every product."""

    def product(self, kept: None) -> Named:
        theta = {name: p.detach() for name, p in self.trainable.items()}

        def logits(parameters: Named) -> torch.Tensor:
            return functional_call(self.module, parameters, (self.x,))

        with torch.no_grad():
            z, jv = torch.func.jvp(logits, (theta,), (dict(zip(theta, self.v, strict=True)),))  # type: ignore[misc]
            mjv = _softmax_hessian(torch.softmax(z, dim=1), jv)
            (product,) = torch.func.vjp(logits, theta)[1](mjv)
        return self.named([product[name] for name in theta])


class DoubleBackward(_OnModule):
    """J·v as the derivative of Jᵀ·w in w, the graphs of z and Jᵀ·w being kept; then Jᵀ by backward."""

    def linearize(self) -> Any:
        z = self.module(self.x)
        w = torch.zeros_like(z, requires_grad=True)
        jt_w = torch.autograd.grad(z, list(self.trainable.values()), w, create_graph=True)
        return z, torch.softmax(z.detach(), dim=1), w, jt_w

    def product(self, kept: Any) -> Named:
        z, p, w, jt_w = kept
        (jv,) = torch.autograd.grad(jt_w, w, self.v, retain_graph=True)
        mjv = _softmax_hessian(p, jv)
        return self.named(torch.autograd.grad(z, list(self.trainable.values()), mjv, retain_graph=True))


class Curvlinops(_OnModule):
    """GGNLinearOperator of curvlinops-for-pytorch; it keeps nothing between products."""

    def __init__(self, made: Plain, problem: Problem, dtype: torch.dtype) -> None:
        super().__init__(made, problem, dtype)
        self.operator = _library("curvlinops", "curvlinops-for-pytorch").GGNLinearOperator(
            self.module,
            torch.nn.CrossEntropyLoss(reduction="sum"),
            list(self.trainable.values()),
            [(self.x, self.target)],
            check_deterministic=False,
            num_data=len(self.target),
        )

    def product(self, kept: None) -> Named:
        return self.named(self.operator @ self.v)


class Backpack(_OnModule):
    """ggn_vector_product of BackPACK, which takes the forward pass's graph as it stands."""

    def __init__(self, made: Plain, problem: Problem, dtype: torch.dtype) -> None:
        super().__init__(made, problem, dtype)
        self.ggnvp = _library("backpack.hessianfree.ggnvp", "backpack-for-pytorch").ggn_vector_product_from_plist

    def linearize(self) -> Any:
        z = self.module(self.x)
        return self.loss(z), z

    def product(self, kept: Any) -> Named:
        loss, z = kept
        return self.named(self.ggnvp(loss, z, list(self.trainable.values()), self.v))


RIVALS: dict[str, type[_OnModule]] = {
    "torch_jvp_vjp": TorchJvpVjp,
    "double_backward": DoubleBackward,
    "curvlinops": Curvlinops,
    "backpack": Backpack,
    GRADIENT: Gradient,
}


def modules_for(size: Size, method: str) -> tuple[str, ...]:
    """What a method can be tried on: each of the plain modules; asr_hf has its own model."""
    return (size.model,) if method == "asr_hf" else tuple(MODULES[size.model])


def prepare(case: Case, problem: Problem) -> Method:
    """Put a case's model, data and direction into memory.

    Raises:
        InputError: the method's library is not installed.
    """
    if case.method == "asr_hf":
        return AsrHf(case.size, problem, case.precision, case.blocks)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    return RIVALS[case.method](plain(case.size, case.module, problem), problem, dtype)  # type: ignore[return-value]


def matmul_precision(precision: str, device: str) -> contextlib.AbstractContextManager[None]:
    """Within it torch multiplies float32 matrices as asr_hf does in that precision: fp32 by the faster library."""
    return Precision(precision).matmul(torch.device(device))


def exact_gradient(size: Size, problem: Problem) -> Named:
    """The gradient in float64, on the first of the plain modules."""
    return Gradient(plain(size, next(iter(MODULES[size.model])), problem), problem, torch.float64).product(None)


def exact_product(size: Size, problem: Problem, blocks: int) -> Named:
    """G·v in float64 by torch.func on the first of the plain modules; each block's own part for several blocks."""
    found: Named = {}
    for names in cut(size.parameter_shapes(), blocks):
        direction = {name: v if name in names else torch.zeros_like(v) for name, v in problem.direction.items()}
        part = dataclasses.replace(problem, direction=direction)
        made = plain(size, next(iter(MODULES[size.model])), part)
        product = TorchJvpVjp(made, part, torch.float64).product(None)
        found |= {name: product[name] for name in names}
    return found


def _softmax_hessian(p: torch.Tensor, jv: torch.Tensor) -> torch.Tensor:
    """M·Jv with M = diag(p) − ppᵀ per frame."""
    pv = p * jv
    return pv - p * pv.sum(dim=1, keepdim=True)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{package} is not installed ({error})", f"pip install {package}, or asr-hf with the extra [bench]."
        ) from None
