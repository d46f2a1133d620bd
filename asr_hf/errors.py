"""Errors that a user can mend: they end the command with exit status 2 and no traceback."""


class InputError(Exception):
    """Bad input: says which thing (utterance, file, line, option) is wrong and what to do about it.

    Args:
        what: the fault in one sentence, naming the utterance, file and line, or option.
        remedy: what the user can do, in one sentence.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what.rstrip('.')}. {remedy}".strip() if remedy else what)
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class OptionError(InputError):
    """An option that is unknown or has an impossible value."""


class Diverged(InputError):
    """A run whose loss or gradients are no longer finite: an end of that run, a result of a comparison."""
