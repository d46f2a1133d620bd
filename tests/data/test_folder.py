"""Folders that appear as a whole."""

import errno
import os
from pathlib import Path

import pytest

from asr_hf.data.folder import whole_folder
from asr_hf.errors import InputError


def write(path: Path, content: str) -> None:
    with whole_folder(path, "mark") as work:
        assert not any(work.iterdir())
        (work / "mark").write_text(content)
        assert work.parent == path.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_result_appears_and_replaces_the_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", "first")
    assert (tmp_path / "deep" / "out" / "mark").read_text() == "first"
    write(tmp_path / "deep" / "out", "second")
    assert (tmp_path / "deep" / "out" / "mark").read_text() == "second"
    assert names(tmp_path / "deep") == ["out"]


def test_an_empty_folder_is_filled_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with whole_folder(tmp_path / "out", "mark") as work:
        (work / "mark").write_text("first")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "mark").read_text() == "first"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_the_earlier_result(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "out", "first")

    def fail() -> None:
        with whole_folder(tmp_path / "out", "mark") as work:
            (work / "half").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["mark"]


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all of it")
    with pytest.raises(InputError, match="exists and holds no mark"):
        write(tmp_path / "out", "first")
    with pytest.raises(InputError, match="exists and holds no mark"):
        write(tmp_path / "out" / "thesis.tex", "first")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "all of it"


def test_what_a_killed_command_left_is_put_right(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    os.replace(tmp_path / "out", tmp_path / ".out.earlier")  # killed between the two renames
    (tmp_path / ".out.partial-1").mkdir()
    with pytest.raises(ValueError, match="again"), whole_folder(tmp_path / "out", "mark"):
        raise ValueError("again")
    assert (tmp_path / "out" / "mark").read_text() == "first"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "cannot be written")],
)
def test_a_full_disk_is_named_with_the_remedy(tmp_path: Path, code: int, said: str) -> None:
    write(tmp_path / "out", "first")
    with pytest.raises(InputError, match=said), whole_folder(tmp_path / "out", "mark"):
        raise OSError(code, os.strerror(code))
    assert (tmp_path / "out" / "mark").read_text() == "first"


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "out", "first")
