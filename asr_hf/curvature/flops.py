"""What a linear program costs: the floating-point operations of its matrix products, counted without computing them.

Element-by-element operations are not counted. Operations of our own bring their formula (`models.rnn_operator`).
"""

from collections.abc import Iterable, Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from asr_hf.curvature.program import LinearProgram
from asr_hf.curvature.trace import Trace


@register_flop_formula(torch.ops.aten.addmm_)
def _(_: torch.Size, a_MK: torch.Size, b_KN: torch.Size, **rest: object) -> int:
    """plus + a·b in place, which torch does not count by itself."""
    return 2 * a_MK[0] * a_MK[1] * b_KN[1]


def flops(program: LinearProgram, trace: Trace, shapes: Mapping[str, torch.Size]) -> int:
    """Floating-point operations of one J·v and one Jᵀ·u.

    Args:
        program: of the trace.
        trace: where the constants' shapes stand.
        shapes: of the parameters, by name.
    """
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        constants = [torch.empty_strided(c.size(), c.stride(), dtype=c.dtype, device=c.device) for c in trace.constants]
        program.forward(*constants, *_empty((shapes[name] for name in program.parameters), trace))
        program.transposed(constants, _empty(trace.shapes, trace))
    return counter.get_total_flops()


def _empty(shapes: Iterable[tuple[int, ...]], trace: Trace) -> list[torch.Tensor]:
    return [torch.empty(shape, device=trace.constants[0].device) for shape in shapes]
