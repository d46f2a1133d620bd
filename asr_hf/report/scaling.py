"""What `asr-hf bench scaling` measured and extrapolated: tables for the terminal, and a picture of time to a loss."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from asr_hf.report.picture import side_by_side
from asr_hf.report.plot import Series, line_plot
from asr_hf.report.tables import aligned

Row = Mapping[str, Any]


def scaling_text(named: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of files, by name: what was measured over each link, and the extrapolation of the first."""
    first, parts = next(iter(named.values())), []
    for name, measured in named.items():
        parts += [f"== {name}"] * (len(named) > 1) + [_constants(measured), _rows(measured["rows"])]
    parts.append(_extrapolation(first["extrapolation"]))
    parts += [_time_to_loss(name, found) for name, found in first.get("time_to_loss", {}).items()]
    return "\n\n".join(parts)


def _constants(measured: Mapping[str, Any]) -> str:
    lines = []
    for ranks, found in measured["constants"].items():
        rates = ", ".join(f"{kind} {1e6 * rate:.1f}" for kind, rate in found["seconds_per_frame"].items())
        text = f"ranks: {ranks}; µs a frame: {rates}; master's algebra {1e3 * found['algebra']:.1f} ms a product"
        if ranks in measured["links"]:
            link = measured["links"][ranks]
            text += f"; link {1e6 * link['latency']:.1f} µs, {link['bandwidth'] / 1e6:.0f} MB/s"
        lines.append(text)
    return "constants, measured apart\n" + "\n".join(lines)


def _rows(rows: Sequence[Row]) -> str:
    where = ("compute", "communication", "idle")
    lines = [("what", "ranks", "frames", "seconds", "speedup", *where, "imbalance", "predicted", "measured/predicted")]
    for row in rows:
        times = (f"{row[name]:.3f}" for name in where)
        numbers = (str(row["ranks"]), f"{row['frames']:,}", f"{row['seconds']:.3f}", f"{row['speedup']:.2f}", *times)
        ratio = row["seconds"] / row["predicted"]
        lines.append((row["what"], *numbers, f"{row['imbalance']:.3f}", f"{row['predicted']:.3f}", f"{ratio:.2f}"))
    return "seconds: of the median repeat; compute, communication and idle are the mean of a rank\n" + aligned(lines, 1)


def _extrapolation(found: Mapping[str, Any]) -> str:
    rows = found["efficiency"]
    columns = list(dict.fromkeys((row["fabric"], row["what"]) for row in rows))
    efficiency = {(row["fabric"], row["what"], row["ranks"]): row["efficiency"] for row in rows}
    lines = [("ranks", *(f"{what}, {fabric}" for fabric, what in columns))]
    for ranks in dict.fromkeys(row["ranks"] for row in rows):
        lines.append((f"{ranks:,}", *(f"{efficiency[*column, ranks]:.1%}" for column in columns)))
    dealt = [("sample", "ranks", "minibatches", "imbalance")]
    for row in found["imbalance"]:
        dealt.append((row["sample"], str(row["ranks"]), f"{row['minibatches']:,}", f"{row['imbalance']:.3f}"))
    return "\n".join(
        [
            f"EXTRAPOLATION by the cost model: efficiency T(1)/(R T(R)) of {found['assumptions']}",
            aligned(lines, 1),
            "",
            "imbalance of minibatches dealt to simulated ranks, lengths of utterances as in Switchboard",
            aligned(dealt, 1),
        ]
    )


def _time_to_loss(comparison: str, found: Mapping[str, Any]) -> str:
    reached = [name for name, times in next(iter(found["systems"].values())).items() if times is not None]
    others = [name for name in next(iter(found["systems"].values())) if name not in reached]
    title = f"EXTRAPOLATION: seconds to a held-out loss of {found['loss']:.4f} in the comparison {comparison}"
    text = [f"{title}; not reached with every seed by {', '.join(others)}" if others else title]
    shown = range(0, len(found["ranks"]), 2)
    for fabric, systems in found["systems"].items():
        lines = [(fabric, *(f"{found['ranks'][place]:,}" for place in shown))]
        lines += [(name, *(f"{systems[name][place]:.3g}" for place in shown)) for name in reached]
        text += [aligned(lines, 1), ""]
    when: dict[tuple[str, str], dict[int | None, list[str]]] = {}
    for row in found["overtakes"]:
        if row["system"] not in reached or row["rival"] not in reached:
            continue
        when.setdefault((row["fabric"], row["rival"]), {}).setdefault(row["ranks"], []).append(row["system"])
    for (fabric, rival), systems_by_ranks in when.items():
        said = [
            f"{', '.join(names)} {'never' if ranks is None else f'from {ranks:,} ranks on'}"
            for ranks, names in sorted(systems_by_ranks.items(), key=lambda item: item[0] or math.inf)
        ]
        text.append(f"{fabric}: faster than {rival} are {'; '.join(said)}")
    return "\n".join(text)


def time_to_loss_picture(found: Mapping[str, Any]) -> str:
    """Seconds to the loss by ranks, a plot a fabric, of the systems that reach it: one SVG file that stands alone."""
    names = [name for name, times in next(iter(found["systems"].values())).items() if times is not None]
    drawn = []
    for fabric, systems in found["systems"].items():
        series = [Series(name, found["ranks"], systems[name]) for name in names]
        label = f"seconds to {found['loss']:.3f} nats, {fabric}"
        drawn.append(line_plot(series, "ranks (extrapolated)", label, log=True, log_x=True))
    return side_by_side(names, drawn)
