"""A folder that appears as a whole: written beside under another name, renamed when it is complete."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asr_hf.errors import InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def whole_folder(path: str | Path, mark: str) -> Iterator[Path]:
    """Give an empty folder to write into; when the block ends well it takes the place of `path`, else it is removed.

    An earlier result at `path` stays untouched until then, also when the process is killed.

    Args:
        mark: a file that says that the folder at `path` is an earlier result of the same command and may be replaced.

    Raises:
        InputError: `path` holds something else, cannot be written, or the disk is full.
    """
    final = Path(os.path.realpath(path))
    earlier = final.with_name(f".{final.name}.earlier")
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        _recover(final, earlier)
        if final.exists() and not (final / mark).is_file() and (not final.is_dir() or any(final.iterdir())):
            raise InputError(f"{path} exists and holds no {mark}", "Name a new folder; this one is not overwritten.")
        partial.mkdir(parents=True)
        yield partial
        if final.exists():
            os.replace(final, earlier)
        os.replace(partial, final)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        if error.errno in NO_SPACE:
            what = f"no space left while writing {path} ({error.strerror})"
            raise InputError(what, "Free some space and run the command again; earlier results are intact.") from error
        if error.errno in NOT_ALLOWED:
            raise InputError(f"{path} cannot be written ({error.strerror})", "Name another folder.") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _recover(final: Path, earlier: Path) -> None:
    """Undo what a killed command left: the earlier result moved aside, and unfinished folders."""
    if earlier.exists() and not final.exists():
        os.replace(earlier, final)
    for left in (earlier, *final.parent.glob(f".{final.name}.partial-*")):
        shutil.rmtree(left, ignore_errors=True)
