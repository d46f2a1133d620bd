"""Kaldi archives (ark and scp, written and decoded by kaldiio): matrices read through memory maps, vectors of integers.

An scp line is `utterance file:offset`. A file that lies beside the scp is taken from there even if the line names the
folder where it was written, so that folders of features and alignments may be moved.
"""

import copy
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kaldiio
import numpy as np

from asr_hf.data.table import Entry, read_table
from asr_hf.errors import InputError

HEADER = struct.Struct("<5sbibi")  # "\0BFM ", size of int, rows, size of int, columns: float32 follow
REMEDY = "Write the archive again; its file is damaged or was cut short."


def write_matrices(
    prefix: str | Path, items: Iterable[tuple[str, np.ndarray]], final_dir: str | Path | None = None
) -> int:
    """Write (utterance, (T, D) matrix) pairs as float32 to `prefix`.ark and `prefix`.scp, beside and renamed.

    Args:
        final_dir: the folder that the scp names, where the files will lie after their folder is renamed.

    Returns:
        the number of matrices.
    """
    return _write(prefix, ((utt, np.ascontiguousarray(matrix, np.float32)) for utt, matrix in items), final_dir)


def write_int_vectors(
    prefix: str | Path, items: Iterable[tuple[str, np.ndarray]], final_dir: str | Path | None = None
) -> int:
    """Write (utterance, vector of integers) pairs as int32, Kaldi's alignment format; otherwise as `write_matrices`."""
    return _write(prefix, ((utt, np.ascontiguousarray(vector, np.int32)) for utt, vector in items), final_dir)


def _write(prefix: str | Path, items: Iterable[tuple[str, np.ndarray]], final_dir: str | Path | None) -> int:
    ark, scp = Path(f"{prefix}.ark"), Path(f"{prefix}.scp")
    named = Path(os.path.abspath(final_dir if final_dir is not None else ark.parent)) / ark.name
    ark.parent.mkdir(parents=True, exist_ok=True)
    beside = [path.with_name(path.name + ".tmp") for path in (ark, scp)]
    written = 0
    try:
        with open(beside[0], "wb") as data, open(beside[1], "w", encoding="utf-8") as index:
            for utt, array in items:
                kaldiio.save_ark(data, {utt: array})
                index.write(f"{utt} {named}:{data.tell() - _stored_size(array)}\n")
                written += 1
        os.replace(beside[0], ark)
        os.replace(beside[1], scp)
    finally:
        for path in beside:
            path.unlink(missing_ok=True)
    return written


def _stored_size(array: np.ndarray) -> int:
    """Bytes of an array in an archive, after its key: float32 matrices have a header, every int32 a size byte."""
    return HEADER.size + array.nbytes if array.ndim == 2 else 2 + 5 * (1 + len(array))


def read_int_vectors(scp: str | Path) -> dict[str, np.ndarray]:
    """Utterance -> int32 vector (T,) of an scp file, sorted by utterance.

    Raises:
        InputError: a missing, truncated or damaged archive, or no integers; it names file and utterance.
    """
    vectors = {}
    for utt, entry in sorted(read_table(scp).items()):
        location = _location(Path(scp), utt, entry)
        vector = _decode(location, utt)
        if vector.ndim != 1 or vector.dtype.kind != "i":
            raise InputError(f"{location}, utterance '{utt}': not a vector of integers", "Name a file of alignments.")
        vectors[utt] = vector.astype(np.int32)
    return vectors


@dataclass(frozen=True)
class _Record:
    """Where a matrix lies; `columns` is 0 where it is no float32 matrix at an offset, and kaldiio must decode it."""

    location: str
    file: str = ""
    offset: int = 0
    rows: int = 0
    columns: int = 0


class FeatureArchive:
    """The matrices of an scp file: float32 ones as read-only views of memory maps, without copies.

    What other tools write (compressed, text, float64, single files, row ranges) is decoded at each access. An archive
    may be sent to another process: it opens its maps anew.

    Args:
        scp: the file, usually FEATS/feats.scp.
        check_finite: read every matrix once and refuse NaN and infinities.

    Raises:
        InputError: a missing, truncated or damaged archive, different dimensions; it names file and utterance.
    """

    def __init__(self, scp: str | Path, check_finite: bool = False) -> None:
        self.scp = Path(scp)
        self._maps: dict[str, np.memmap] = {}
        self._records: dict[str, _Record] = {}
        for utt, entry in sorted(read_table(scp).items()):
            self._records[utt] = self._read_header(_location(self.scp, utt, entry), utt)
        if not self._records:
            raise InputError(f"{scp} holds no line", "Compute the features again.")
        first = next(iter(self._records))
        self.dim: int = self._records[first].columns or self._decode(first).shape[1]
        for utt, record in self._records.items():
            self._check_dim(utt, record.columns or self.dim)
        if check_finite:
            for utt in self:
                self.check_finite(utt)

    def keys(self) -> list[str]:
        """The utterances, sorted."""
        return list(self._records)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, utt: str) -> bool:
        return utt in self._records

    def __getitem__(self, utt: str) -> np.ndarray:
        """The matrix (T, D) float32, read-only, of one utterance; raises InputError where there is none."""
        record = self._record(utt)
        if not record.columns:
            return self._decode(utt)
        start = record.offset + HEADER.size
        return np.ndarray((record.rows, record.columns), "<f4", self._map(record.file), start)

    def num_frames(self, utt: str) -> int:
        """T of one utterance, from the header alone where the matrix is mapped."""
        record = self._record(utt)
        return record.rows if record.columns else len(self._decode(utt))

    def subset(self, utterances: Iterable[str]) -> "FeatureArchive":
        """The same archive, seen through fewer utterances."""
        part = copy.copy(self)
        part._records = {utt: self._record(utt) for utt in sorted(utterances)}
        return part

    def check_finite(self, utt: str) -> None:
        """Refuse NaN and infinities in one matrix (InputError)."""
        matrix = self[utt]
        if not np.isfinite(matrix).all():
            frame = int(np.nonzero(~np.isfinite(matrix).all(axis=1))[0][0])
            where = f"{self._records[utt].location}, utterance '{utt}'"
            raise InputError(f"{where}: NaN or infinity in frame {frame}", "Compute the features again.")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_maps": {}}

    def _record(self, utt: str) -> _Record:
        try:
            return self._records[utt]
        except KeyError:
            raise InputError(f"{self.scp}: no features of utterance '{utt}'", "Compute features of all data.") from None

    def _map(self, file: str) -> np.memmap:
        if file not in self._maps:
            try:
                self._maps[file] = np.memmap(file, mode="r")
            except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                raise InputError(f"archive {file} cannot be read ({error})", REMEDY) from None
        return self._maps[file]

    def _read_header(self, location: str, utt: str) -> _Record:
        """Where the float32 matrix of a line lies, or a record to decode; refuses one that ends beyond the file."""
        match = re.fullmatch(r"(.+):(\d+)", location)
        if match is None:
            return _Record(location)
        file, offset = match[1], int(match[2])
        data = self._map(file)
        if offset + HEADER.size > len(data):
            raise InputError(f"{location}, utterance '{utt}': the file ends at byte {len(data)}", REMEDY)
        marker, rows_size, rows, columns_size, columns = HEADER.unpack(data[offset : offset + HEADER.size].tobytes())
        if marker != b"\0BFM ":
            return _Record(location)
        if (rows_size, columns_size) != (4, 4) or rows <= 0 or columns <= 0:
            raise InputError(f"{location}, utterance '{utt}': the header is damaged or the matrix empty", REMEDY)
        end = offset + HEADER.size + 4 * rows * columns
        if end > len(data):
            message = f"{rows}x{columns} numbers would end at byte {end}, the file at {len(data)}"
            raise InputError(f"{location}, utterance '{utt}': {message}", REMEDY)
        return _Record(location, file, offset, rows, columns)

    def _decode(self, utt: str) -> np.ndarray:
        location = self._records[utt].location
        matrix = _decode(location, utt)
        if matrix.ndim != 2 or not len(matrix):
            raise InputError(f"{location}, utterance '{utt}': not a matrix of features", "Name a file of features.")
        if hasattr(self, "dim"):
            self._check_dim(utt, matrix.shape[1])
        matrix = matrix.astype(np.float32)
        matrix.flags.writeable = False
        return matrix

    def _check_dim(self, utt: str, columns: int) -> None:
        if columns != self.dim:
            where = f"{self._records[utt].location}, utterance '{utt}'"
            raise InputError(f"{where}: {columns} dimensions, others have {self.dim}", "Give features of one kind.")


def _location(scp: Path, utt: str, entry: Entry) -> str:
    """The file and offset of an scp line; a file beside the scp comes first."""
    place = f"{scp}:{entry.line}: utterance '{utt}'"
    if not entry.value or entry.value.endswith("|"):
        raise InputError(f"{place} names no file", "A line is: utterance file:offset; commands are not run.")
    file, rest = re.fullmatch(r"(.+?)((?::\d+)?(?:\[.*\])?)", entry.value).groups()  # type: ignore[union-attr]
    beside = scp.parent / Path(file).name
    if beside.is_file():
        return f"{beside}{rest}"
    if not Path(file).is_file():
        raise InputError(f"{place}: archive {file} does not exist", "Put it beside the scp or write it again.")
    return entry.value


def _decode(location: str, utt: str) -> np.ndarray:
    """One matrix or vector by kaldiio; only Kaldi's own formats (kaldiio would also unpickle)."""
    match = re.fullmatch(r"(.+?)(?::(\d+))?(\[.*\])?", location)
    assert match is not None
    try:
        with open(match[1], "rb") as file:
            file.seek(int(match[2] or 0))
            start = file.read(5)
        if not (start.startswith(b"\0B") or re.match(rb"\s*[\[\d\-]", start)):
            raise ValueError("no Kaldi matrix or vector begins here")
        return np.asarray(kaldiio.load_mat(location))
    except (OSError, ValueError, AssertionError, RuntimeError, IndexError, struct.error, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{location}, utterance '{utt}': cannot be decoded ({reason})", REMEDY) from error
