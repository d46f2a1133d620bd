"""The console command: help, unknown commands, options of other commands, configuration folders of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from asr_hf.cli.config import SCHEMAS, compose, conf_dir, options_help, schema, to_yaml
from asr_hf.cli.main import COMMANDS, load, run, split_overrides
from asr_hf.errors import InputError, OptionError
from asr_hf.options import describe


def test_help_names_every_command_and_each_has_its_own(capsys) -> None:
    run(["--help"])
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command}" in out
        module = load(command)
        assert module.__doc__
        assert "asr-hf " + command in module.__doc__
        with pytest.raises(SystemExit) as end:
            run([command, "--help"])
        assert end.value.code == 0


def test_every_option_has_a_sentence_and_every_schema_a_yaml() -> None:
    for group, named in SCHEMAS.items():
        assert list((conf_dir() / group).glob("*.yaml"))
        for reference in named.values():
            for name, _, sentence in describe(schema(reference), group):
                assert len(sentence) > 5, name
    assert "optimizer.damping.initial" in options_help(("optimizer",))


def test_errors_end_with_status_2_and_one_line() -> None:
    command = Path(sys.executable).parent / "asr-hf"
    for words, said in ((["fly"], "unknown command 'fly'"), (["train", "r", "optimizer.fly=1"], "fly")):
        done = subprocess.run([command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_overrides_are_told_from_paths_and_flags() -> None:
    words, overrides = split_overrides(
        ["a/b", "--jobs=2", "optimizer=adam", "optimizer.cg.k=1", "A=b c", "--", "x=y", "/tmp/a=b"]
    )
    assert words == ["a/b", "--jobs=2", "A=b c", "x=y", "/tmp/a=b"]
    assert overrides == ["optimizer=adam", "optimizer.cg.k=1"]


def test_options_of_other_commands_are_refused() -> None:
    with pytest.raises(OptionError, match=r"decoding\.beam"):
        compose(("features",), ["decoding.beam=3"])


def test_own_yaml_files_are_found_and_the_saved_configuration_composes_the_same(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults:\n  - dnn_options\n  - _self_\nwidth: 99\n")
    options = compose(("model",), ["model=mine"], str(tmp_path))
    assert options["model"].width == 99
    assert "width: 99" in to_yaml(options)
    with pytest.raises(InputError, match="--config-dir"):
        compose(("model",), [], str(tmp_path / "nowhere"))
    (tmp_path / "model" / "bad.yaml").write_text("defaults:\n  - dnn_options\n  - _self_\nwitdh: 9\n")
    with pytest.raises(OptionError, match="witdh"):
        compose(("model",), ["model=bad"], str(tmp_path))
