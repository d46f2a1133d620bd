"""Options are dataclass fields: a default, a sentence of help, and the check of their values in `__post_init__`."""

import dataclasses
from typing import Any

from asr_hf.errors import OptionError

LARGEST_FACTOR = 1e30  # of a rate, damping or decay: float32 holds it, with room for what it is multiplied by


def option(default: Any, help: str) -> Any:
    """A dataclass field with its sentence of help (a list or dict default is copied for each instance)."""
    metadata = {"help": help}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Refuse an impossible option value: `require(self.width > 0, "model.width", self.width, "must be positive")`.

    Raises:
        OptionError: names the option, its value and the rule, when the rule does not hold.
    """
    if not holds:
        raise OptionError(f"option {name}={value!r} {rule}", f"Set {name} to a value that fits.")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value outside a list of choices (OptionError)."""
    require(value in choices, name, value, f"must be one of {', '.join(choices)}")


def describe(options: Any, group: str) -> list[tuple[str, str, str]]:
    """(name, default, sentence) of every option of a dataclass and of the dataclasses inside it, for `--help`."""
    rows: list[tuple[str, str, str]] = []
    for field in dataclasses.fields(options):
        if not isinstance(options, type):
            default = getattr(options, field.name)  # what the outer dataclass sets inside it
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = "(required)"
        name = f"{group}.{field.name}"
        if dataclasses.is_dataclass(default):
            rows += describe(default, name)
        else:
            shown = f"{default:.4g}" if isinstance(default, float) else str(default)
            rows.append((name, shown, field.metadata.get("help", "")))
    return rows
