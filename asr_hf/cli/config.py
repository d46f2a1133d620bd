"""Hydra composes the YAML of `conf/` over the option dataclasses; unknown keys and impossible values are refused here.

`conf/config.yaml` names the default choice of every group. A YAML file of a group holds values only; its dataclass,
with defaults and help, stands beside the class that it configures and is registered in SCHEMAS.
"""

import dataclasses
import importlib
import logging
import re
from pathlib import Path
from typing import Any

from asr_hf.errors import InputError, OptionError
from asr_hf.options import describe

# group -> {schema name used in the defaults list of the group's YAML files: dataclass}
SCHEMAS: dict[str, dict[str, str]] = {
    "features": {"feature_options": "asr_hf.data.features:FeatureOptions"},
    "lang": {"lang_options": "asr_hf.hmm.lang:LangOptions"},
    "gmm": {"gmm_options": "asr_hf.hmm.gmm:GmmOptions"},
    "tree": {"tree_options": "asr_hf.hmm.tree:TreeOptions"},
    "chain": {"chain_options": "asr_hf.hmm.chain:ChainOptions"},
    "graph": {"graph_options": "asr_hf.hmm.graph:GraphOptions"},
    "corpus": {"corpus_options": "asr_hf.training.corpus:CorpusOptions"},
    "model": {
        "dnn_options": "asr_hf.models.dnn:DnnOptions",
        "tdnn_options": "asr_hf.models.tdnn:TdnnOptions",
        "tdnnf_options": "asr_hf.models.tdnnf:TdnnfOptions",
        "rnn_options": "asr_hf.models.rnn:RnnOptions",
        "lstm_options": "asr_hf.models.lstm:LstmOptions",
    },
    "curvature": {"curvature_options": "asr_hf.curvature.options:CurvatureOptions"},
    "criterion": {
        "cross_entropy_options": "asr_hf.criteria.cross_entropy:CrossEntropyOptions",
        "lfmmi_options": "asr_hf.criteria.lfmmi:LfmmiOptions",
    },
    "optimizer": {
        "hf_options": "asr_hf.optimizers.hf:HfOptions",
        "ng_options": "asr_hf.optimizers.ng:NgOptions",
        "nghf_options": "asr_hf.optimizers.nghf:NghfOptions",
        "kfac_options": "asr_hf.optimizers.kfac:KfacOptions",
        "sgd_options": "asr_hf.optimizers.first_order:SgdOptions",
        "adam_options": "asr_hf.optimizers.first_order:AdamOptions",
        "nlcg_options": "asr_hf.optimizers.nlcg:NlcgOptions",
    },
    "cluster": {"cluster_options": "asr_hf.cluster.options:ClusterOptions"},
    "training": {"training_options": "asr_hf.training.run:TrainingOptions"},
    "decoding": {"decoding_options": "asr_hf.decoding.search:DecodingOptions"},
}


def schema(reference: str) -> type:
    """The option dataclass behind 'module:Class'."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def conf_dir() -> Path:
    """The folder of the bundled YAML files: `asr_hf/conf` of an installed wheel, else `conf` of the checkout."""
    installed = Path(__file__).parent.parent / "conf"
    checkout = Path(__file__).parent.parent.parent / "conf"
    for folder in (installed, checkout):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"no conf/config.yaml in {installed.parent} or {checkout.parent}", "Reinstall asr-hf.")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def options_help(groups: tuple[str, ...]) -> str:
    """The options of a command's groups, one a line, with default and sentence."""
    lines = []
    for group in groups:
        named = choices(group)
        lines.append(f"\n{group}=CHOICE   (one of: {', '.join(named)})")
        for reference in SCHEMAS[group].values():
            options = schema(reference)
            if len(SCHEMAS[group]) > 1:
                lines.append(f" {options.__name__}: {(options.__doc__ or '').splitlines()[0]}")
            rows = describe(options, group)
            width = max((len(f"{key}={default}") for key, default, _ in rows), default=0)
            lines += [f"  {f'{key}={default}':{width}}  {sentence}" for key, default, sentence in rows]
    if groups:
        lines.insert(0, "options, given as Hydra overrides (defaults of the dataclass; a YAML choice may set others):")
    return "\n".join(lines)


def _register(groups: tuple[str, ...]) -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for group in groups:
        for name, reference in SCHEMAS[group].items():
            store.store(group=group, name=name, node=schema(reference))


def _refuse_foreign(overrides: list[str], groups: tuple[str, ...]) -> None:
    for override in overrides:
        group = re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0]
        if group not in (*groups, "experiment"):
            raise OptionError(
                f"option '{override}' is not one of this command",
                f"Its groups are {', '.join(groups) or 'none'}; --help lists every option.",
            )


_NOISE = ("full_key:", "object_type=", "reference_type=", "To append to your config", "Available options")


def _reason(error: BaseException) -> str:
    """What Hydra or OmegaConf say is wrong, on one line: the override or file first, then the innermost reason."""
    sentences = _sentences(error)[: 2 if "raised while" in str(error) else 1]
    while error.__cause__ is not None:
        error = error.__cause__
    sentences += [sentence for sentence in _sentences(error)[:1] if sentence not in sentences]
    return ": ".join(sentence.rstrip(":.") for sentence in sentences)


def _sentences(error: BaseException) -> list[str]:
    lines = (line.strip() for line in str(error).splitlines())
    return [line for line in lines if line and not line.startswith(_NOISE)]


def compose(groups: tuple[str, ...], overrides: list[str], config_dir: str | None = None) -> dict[str, Any]:
    """Compose the configuration and return {group: options instance} for the groups of a command.

    Args:
        groups: the groups that the command takes.
        overrides: Hydra overrides from the command line.
        config_dir: a folder of the user's own YAML files, searched first.

    Raises:
        OptionError: an unknown key, a value of the wrong type or an impossible one; it names the option.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _refuse_foreign(overrides, groups)
    _register(groups)
    others = [f"~{group}" for group in SCHEMAS if group not in groups]
    logging.getLogger("hydra").setLevel(logging.ERROR)
    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise InputError(f"--config-dir {config_dir} is no folder", "Name a folder with YAML files.")
        search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("config", overrides=[*others, *overrides, *search])
        return {group: OmegaConf.to_object(composed[group]) for group in groups}
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__cause__
        raise OptionError(f"options: {_reason(error)}", "--help lists every option of this command.") from None


def to_yaml(options: dict[str, Any]) -> str:
    """The resolved configuration as YAML text, as it is saved with a run."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create({group: OmegaConf.structured(value) for group, value in options.items()}))


def from_yaml(path: Path, groups: tuple[str, ...]) -> dict[str, Any]:
    """The options that `to_yaml` saved with a run, {group: options instance}.

    The file does not name the choice of a group. It is the one that has every option which the file lists, and of
    several the one with the fewest others; those came later, and have their value in `before` of the options, or else
    their default. Two that are equally near are refused.

    Raises:
        InputError: the file is missing, or does not hold these groups with the options of this version.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        saved: Any = OmegaConf.load(path)
        return {group: OmegaConf.to_object(_as_schema(group, saved[group])) for group in groups}
    except (OSError, YAMLError, OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
        reason = ", ".join(line.strip() for line in str(error).splitlines()[:2])
        raise InputError(
            f"{path} does not hold the options of a run ({reason})", "Name a folder that this asr-hf has trained."
        ) from None


def _as_schema(group: str, node: Any) -> Any:
    from omegaconf import OmegaConf

    fields = {kind: {field.name for field in dataclasses.fields(kind)} for kind in map(schema, SCHEMAS[group].values())}
    nearest = sorted((len(names), kind.__name__, kind) for kind, names in fields.items() if set(node) <= names)
    if not nearest:
        raise ValueError(f"the options {', '.join(node)} are of no {group} of this version")
    if len(nearest) > 1 and nearest[0][0] == nearest[1][0]:
        raise ValueError(f"the options {', '.join(node)} may be {nearest[0][1]} or {nearest[1][1]}")
    kind = nearest[0][2]
    return OmegaConf.merge(OmegaConf.structured(kind), getattr(kind, "before", {}), node)
