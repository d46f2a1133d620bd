"""Output folders appear as a whole: written beside their place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asr_hf.errors import InputError


@contextmanager
def written_folder(path: Path | str, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it takes the place of `path`, on any error it vanishes.

    Args:
        path: the folder to write or to replace.
        marker: a file that every folder of this kind holds; an existing non-empty folder without it is not ours.

    Raises:
        InputError: `path` holds something else, or the file system refuses to write (full, read-only, no such place).
    """
    target = Path(path)
    if target.exists() and not (target / marker).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and holds no {marker}", "Name another output folder or empty this one.")
    beside = target.parent / f".{target.name}.{os.getpid()}.writing"
    earlier = target.parent / f".{target.name}.{os.getpid()}.earlier"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        if target.exists():
            os.replace(target, earlier)
        os.replace(beside, target)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}", "Free space, or name a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)
