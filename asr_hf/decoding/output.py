"""Result files that appear as a whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from asr_hf.errors import InputError


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file beside its place and rename it there; makes the folder.

    Raises:
        InputError: the file system refuses (full, read-only, …); an earlier file stays as it was.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}", "Free space there or name another folder."
        ) from None


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as JSON, as write_text does; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
