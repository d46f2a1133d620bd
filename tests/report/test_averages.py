"""The table of averages, from a hand-made file."""

import json
from pathlib import Path

from asr_hf.cli.main import run


def model(loss: float, errors: tuple[int, int]) -> dict:
    speakers = {f"s{n}": [count, 50] for n, count in enumerate(errors)}
    return {"heldout": loss, "dev": loss + 1, "wer": {each: {"speakers": speakers} for each in ("dev", "test")}}


def test_members_are_averaged_and_words_pooled(tmp_path: Path, capsys) -> None:
    averages = {
        name: {
            "optimizer": {},
            "start": model(3.0, (9, 9)),
            "members": [model(2.0, (6, 4)), model(2.5, (2, 4))],
            "average": model(1.5 + n, (3, n)),
        }
        for n, name in enumerate(("one", "two"))
    }
    (tmp_path / "a.json").write_text(json.dumps({"averages": averages}))
    run(["bench", "table", str(tmp_path / "a.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "start", "3.0000", "4.0000", "18.00", "18.00"] in lines
    members = ["2.2500", "(2.0000–2.5000)", "3.2500", "(3.0000–3.5000)", *["8.00", "(6.00–10.00)"] * 2]
    assert ["one", "members", *members] in lines
    assert ["two", "average", "2.5000", "3.5000", "4.00", "4.00"] in lines
    # start 36, members 32 of 400 words (each pair counted twice where it is one), average 14
    pooled = {line[0]: line[1:] for line in lines if line and line[0] in ("start", "members", "average")}
    assert pooled["start"][:2] == ["18.00", "+14.50"]
    assert pooled["members"][:2] == ["8.00", "+4.50"]
    assert pooled["average"] == ["3.50", "-", "3.50", "-"]
