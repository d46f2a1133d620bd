"""config.yaml of a run folder: the options of the run, which those of a command that goes on with it must equal."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asr_hf.errors import InputError, OptionError

CONFIG = "config.yaml"
FREE = (  # options that do not change results
    "cluster.",
    "optimizer.preconditioner.sharded",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
    "training.requeue_status",
)


def is_finished(run_dir: Path, config_yaml: str, options: dict[str, Any]) -> bool:
    """Whether the run is done already.

    An option that came later had its value in `before` of the options, or else its default.

    Raises:
        OptionError: the folder was begun with other options.
        InputError: its config.yaml cannot be read, or is missing beside what a run or another command made.
    """
    from omegaconf import OmegaConf

    saved = run_dir / CONFIG
    if not saved.exists():
        foreign = [name for name in ("checkpoints", "model.json", "hmm.json") if (run_dir / name).exists()]
        if foreign:
            raise InputError(
                f"{run_dir} holds {foreign[0]} but no {CONFIG}, so that its options are not known",
                "Name another run folder, or remove this one to train anew.",
            )
        return False
    later = {group: {**asdict(type(given)()), **getattr(given, "before", {})} for group, given in options.items()}
    before = _read(saved)
    now, assumed = (_compared(OmegaConf.create(each)) for each in (config_yaml, later))
    changed = list(before.keys() - now.keys())
    changed += [key for key, value in now.items() if before.get(key, assumed[key]) != value]
    if changed:
        raise OptionError(
            f"{run_dir} was begun with other options: {', '.join(sorted(changed))} differ",
            "Name another run folder, or remove this one to train anew.",
        )
    return (run_dir / "model.json").exists()


def save_config(run_dir: Path, config_yaml: str) -> None:
    """Write the resolved configuration into the run folder, at once."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / f"{CONFIG}.part").write_text(config_yaml)
        os.replace(run_dir / f"{CONFIG}.part", run_dir / CONFIG)
    except OSError as error:
        raise InputError(f"run folder {run_dir} cannot be written ({error})", "Make room or name another.") from None


def _read(path: Path) -> dict[str, Any]:
    """The options in a config.yaml, flat."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig) or not saved:
            raise ValueError("it holds no options")
        return _compared(saved)
    except (OSError, ValueError, TypeError, AssertionError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        reason = ", ".join(line.strip() for line in str(error).splitlines()[:2]) or "it is no mapping"
        raise InputError(
            f"{path} cannot be read ({reason})", "Name another run folder, or remove this one to train anew."
        ) from None


def _compared(config: Any) -> dict[str, Any]:
    """Every option of a configuration, flat, without those that do not change results."""
    from omegaconf import OmegaConf

    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(OmegaConf.to_container(config), "")
    return {key: value for key, value in flat.items() if not key.startswith(FREE)}
