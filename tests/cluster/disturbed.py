"""Started under mpiexec: `asr-hf …` with ranks that are killed or stopped at chosen places.

Usage: disturbed.py '[{"rank": 2, "phase": "product", "nth": 3, "signal": "KILL"}, …]' train RUN …
A rank (its number at the beginning) gets the signal when it is in a phase for the nth time. In `checkpoint` and
`between` the master, who alone is in these, sends it, so that they happen at the master's nth time.
"""

import functools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from asr_hf.cli.main import main
from asr_hf.cluster.ranks import Ranks, all_ranks
from asr_hf.objective.evaluator import Evaluator
from asr_hf.objective.linearisation import LocalLinearisation
from asr_hf.training import run as training

MASTERS = ("checkpoint", "between")
PHASES = ("broadcast", "gradient", "linearisation", "product", "evaluation", "reduction", "recovery", *MASTERS)


def disturb(events: list[dict[str, Any]]) -> None:
    """Make the events happen."""
    seen: Counter[str] = Counter()

    def arrived(phase: str) -> None:
        seen[phase] += 1
        me = all_ranks().watchdog.me.rank
        for event in events:
            if event["phase"] != phase or event["nth"] != seen[phase]:
                continue
            if event["rank"] == me or (phase in MASTERS and me == 0):
                print(f"disturbed: {json.dumps(event)}", file=sys.stderr, flush=True)
                os.kill(all_ranks().peers[event["rank"]].process, getattr(signal, f"SIG{event['signal']}"))

    def around(owner: Any, name: str, phase: str, before: bool = False) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def disturbed(*args: Any, **kwargs: Any) -> Any:
            if before:
                arrived(phase)
                return original(*args, **kwargs)
            result = original(*args, **kwargs)
            arrived(phase)
            return result

        setattr(owner, name, disturbed)

    around(Evaluator, "gradient", "gradient")  # computed, and not yet summed
    around(Evaluator, "linearize", "linearisation")
    around(Evaluator, "losses", "evaluation")
    around(LocalLinearisation, "product", "product")
    around(Ranks, "recover", "recovery", before=True)
    around(Ranks, "sum_to_master", "reduction", before=True)
    around(training, "write_checkpoint", "checkpoint", before=True)
    around(training.Monitor, "row", "between", before=True)

    broadcast = Ranks.broadcast

    def in_broadcast(self: Ranks, array: Any) -> None:
        if array.nbytes > 1000:  # θ or a vector: all have met, and somebody is missing in the broadcast itself
            meet = self.meet
            self.meet = lambda: (meet(), arrived("broadcast"), None)[2]  # type: ignore[method-assign]
            try:
                broadcast(self, array)
            finally:
                del self.meet
        else:
            broadcast(self, array)

    Ranks.broadcast = in_broadcast  # type: ignore[method-assign]


if __name__ == "__main__":
    disturb(json.loads(sys.argv[1]))
    sys.argv[1:] = sys.argv[2:]
    main()
