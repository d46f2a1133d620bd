"""The benchmark of averages: what the average of replicas is worth beside its members and the model they began from.

An average is a folder of `asr-hf average --replicas`. All its models are judged alike: by their loss on the held-out
set and on dev, and by their word errors where a graph is named, with scales tuned on dev for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asr_hf.bench.compare_runs import model_loss
from asr_hf.bench.compare_words import Decoding, word_errors
from asr_hf.bench.curvature import library_versions, machine_facts
from asr_hf.errors import InputError
from asr_hf.training.average import replica_folders
from asr_hf.training.run import Options

Say = Callable[[str], None]


@dataclass(frozen=True)
class AverageSettings:
    """What models are judged on.

    Attributes:
        dev: FEATS and ALI or CHAIN that no model was trained on.
        decoding: None: no word errors.
        jobs: processes of decoding.
    """

    dev: tuple[str, str]
    decoding: Decoding | None = None
    jobs: int = 1


def bench_averages(
    averages: Mapping[str, tuple[Path, Options]], settings: AverageSettings, command: str, say: Say = print
) -> dict[str, Any]:
    """Judge every average, its members and their start, and return what the JSON file holds.

    Args:
        averages: by name, the folder of an average and the options of its replicas.
        settings: what they are judged on.
        command: the command line, as it is to be written into the file.
        say: told what is being done.

    Returns:
        command, versions, machine, settings, and `averages`: by name the options of the replicas' `optimizer`,
        `start` (null: random weights), `members` and `average`; a model has heldout and dev, losses per frame (nats),
        and where it was decoded `wer` (see compare_words.word_errors).

    Raises:
        InputError: a folder that is no finished average of replicas; models that do not fit the sets.
    """
    found = {name: _judged(name, *average, settings, say) for name, average in averages.items()}
    return {
        "command": command,
        "versions": library_versions(),
        "machine": machine_facts("cpu"),
        "settings": {"decoding": None if settings.decoding is None else asdict(settings.decoding.options)},
        "averages": found,
    }


def _judged(name: str, folder: Path, options: Options, settings: AverageSettings, say: Say) -> dict[str, Any]:
    members, start = replica_folders(folder), options["training"].init
    for model in (folder, *members):
        if not (model / "model.json").is_file():
            raise InputError(f"{model} holds no model", "Finish it with the asr-hf average command that began it.")

    def judged(what: str, model: Path) -> dict[str, Any]:
        losses = {
            "heldout": model_loss(model, options),
            "dev": model_loss(model, options, settings.dev),
        }
        words = {} if settings.decoding is None else {"wer": word_errors(model, settings.decoding, settings.jobs)}
        errors = f", {words['wer']['test']['errors']} word errors on test" if words else ""
        say(f"{name}, {what}: held-out {losses['heldout']:.4f}, dev {losses['dev']:.4f}{errors}")
        return losses | words

    return {
        "optimizer": asdict(options["optimizer"]),
        "start": judged("start", Path(start)) if start else None,
        "members": [judged(member.name, member) for member in members],
        "average": judged("average", folder),
    }
