"""Options read back from the config.yaml of a run: also of one that an earlier version has begun."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from asr_hf.cli import config
from asr_hf.cli.config import compose, from_yaml, to_yaml
from asr_hf.errors import InputError
from asr_hf.models.dnn import DnnOptions
from asr_hf.optimizers.first_order import AdamOptions, SgdOptions
from asr_hf.optimizers.ng import NgOptions
from asr_hf.options import describe


def without(text: str, *names: str) -> str:
    return "".join(line for line in text.splitlines(True) if line.split(":")[0].strip() not in names)


@pytest.mark.parametrize(
    ("choice", "lacks", "kind"),
    [
        ("sgd", (), SgdOptions),
        ("adam", (), AdamOptions),
        ("sgd", ("clip", "constraint_steps"), SgdOptions),
        ("adam", ("clip", "constraint_steps"), AdamOptions),
        ("adam", ("beta1", "beta2", "epsilon"), SgdOptions),  # lists nothing of Adam's own: SGD lacks the least
    ],
)
def test_options_that_came_later_have_their_defaults(choice, lacks, kind, tmp_path: Path) -> None:
    saved = compose(("optimizer",), [f"optimizer={choice}", "optimizer.rate=0.25"])
    (tmp_path / "config.yaml").write_text(without(to_yaml(saved), *lacks))
    read = from_yaml(tmp_path / "config.yaml", ("optimizer",))["optimizer"]
    assert type(read) is kind
    assert read.rate == 0.25
    for name in lacks:
        assert getattr(read, name, None) == getattr(kind(), name, None)


def test_an_option_nested_in_another_may_come_later_too(tmp_path: Path) -> None:
    saved = compose(("optimizer",), ["optimizer=hf", "optimizer.damping.initial=7"])
    (tmp_path / "config.yaml").write_text(without(to_yaml(saved), "drop"))
    damping = from_yaml(tmp_path / "config.yaml", ("optimizer",))["optimizer"].damping
    assert damping.initial == 7
    assert damping.drop == type(damping)().drop


def test_what_stood_in_an_options_place_before_is_kept(tmp_path: Path) -> None:
    saved = compose(("model",), ["model=dnn", "model.norm=batch"])
    (tmp_path / "config.yaml").write_text(without(to_yaml(saved), "norm"))
    assert from_yaml(tmp_path / "config.yaml", ("model",))["model"].norm == DnnOptions.before["norm"]


@dataclass
class First:
    width: int = 1
    left: int = 1


@dataclass
class Second:
    width: int = 1
    right: int = 1


def test_equally_near_choices_are_refused(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "schema", {"a": First, "b": Second}.__getitem__)
    monkeypatch.setitem(config.SCHEMAS, "model", {"first": "a", "second": "b"})
    (tmp_path / "config.yaml").write_text("model: {width: 3, right: 2}\n")
    assert from_yaml(tmp_path / "config.yaml", ("model",))["model"] == Second(3, 2)
    (tmp_path / "config.yaml").write_text("model: {width: 3}\n")
    with pytest.raises(InputError, match="may be First or Second"):
        from_yaml(tmp_path / "config.yaml", ("model",))
    (tmp_path / "config.yaml").write_text("model: {height: 3}\n")
    with pytest.raises(InputError, match="of no model of this version"):
        from_yaml(tmp_path / "config.yaml", ("model",))


def test_help_shows_the_defaults_that_a_method_sets_inside_its_groups() -> None:
    shown = {name: default for name, default, _ in describe(NgOptions, "optimizer")}
    assert shown["optimizer.cg.max_iterations"] == str(NgOptions().cg.max_iterations) == "8"
    assert shown["optimizer.damping.drop"] == "0.5"
