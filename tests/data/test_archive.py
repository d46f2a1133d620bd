"""Archives against kaldiio and hand-packed bytes: mapped without copies, foreign formats, damage named by utterance."""

import pickle
import shutil
import struct
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from asr_hf.data.archive import FeatureArchive, read_int_vectors, write_int_vectors, write_matrices
from asr_hf.errors import InputError

Matrices = dict[str, np.ndarray]


@pytest.fixture
def matrices() -> Matrices:
    random = np.random.default_rng(5)
    return {f"utt{number}": random.standard_normal((4 + number, 3)).astype(np.float32) for number in range(5)}


def packed(matrix: np.ndarray) -> bytes:
    """Kaldi's binary float matrix, from its format description."""
    rows, columns = matrix.shape
    return b"\0BFM \4" + struct.pack("<i", rows) + b"\4" + struct.pack("<i", columns) + matrix.astype("<f4").tobytes()


def test_written_bytes_are_those_of_the_format(tmp_path: Path, matrices: Matrices) -> None:
    assert write_matrices(tmp_path / "feats", matrices.items()) == 5
    expected = b"".join(utt.encode() + b" " + packed(matrix) for utt, matrix in matrices.items())
    assert (tmp_path / "feats.ark").read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feats.ark", "feats.scp"]


def test_written_archives_are_read_by_kaldiio(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    for utt, matrix in kaldiio.load_scp(str(tmp_path / "feats.scp")).items():
        np.testing.assert_array_equal(matrix, matrices[utt])


def test_matrices_are_read_only_views_of_the_memory_map(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    archive = FeatureArchive(tmp_path / "feats.scp", check_finite=True)
    assert archive.keys() == list(archive) == sorted(matrices)
    assert (len(archive), archive.dim) == (5, 3)
    for utt, matrix in matrices.items():
        view = archive[utt]
        np.testing.assert_array_equal(view, matrix)
        assert view.dtype == np.float32
        assert archive.num_frames(utt) == len(matrix)
        assert isinstance(view.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1
    with open(tmp_path / "feats.ark", "r+b") as ark:  # the view shows what the file holds: nothing was copied
        ark.seek(len("utt0 ") + 15)
        ark.write(struct.pack("<f", 42.0))
    assert archive["utt0"][0, 0] == 42.0


def test_archives_travel_to_other_processes_and_folders(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "here" / "feats", matrices.items())
    part = pickle.loads(pickle.dumps(FeatureArchive(tmp_path / "here" / "feats.scp").subset(["utt3", "utt1"])))
    assert part.keys() == ["utt1", "utt3"]
    np.testing.assert_array_equal(part["utt3"], matrices["utt3"])
    with pytest.raises(InputError, match="no features of utterance 'utt0'"):
        part["utt0"]
    shutil.move(tmp_path / "here", tmp_path / "there")
    np.testing.assert_array_equal(FeatureArchive(tmp_path / "there" / "feats.scp")["utt2"], matrices["utt2"])


def write_foreign(folder: Path, matrices: Matrices, form: str) -> Path:
    scp = folder / "feats.scp"
    ark = str(folder / "raw.ark")
    if form == "text":
        kaldiio.save_ark(ark, matrices, text=True)
        content, offset, lines = Path(ark).read_bytes(), 0, []
        for utt in matrices:
            offset = content.index(utt.encode() + b" ", offset) + len(utt) + 1
            lines.append(f"{utt} {ark}:{offset}\n")
        scp.write_text("".join(lines))
    elif form == "single":
        for utt, matrix in matrices.items():
            kaldiio.save_mat(str(folder / f"{utt}.mat"), matrix)
        scp.write_text("".join(f"{utt} {folder}/{utt}.mat\n" for utt in matrices))
    elif form == "float64":
        kaldiio.save_ark(ark, {utt: matrix.astype(np.float64) for utt, matrix in matrices.items()}, scp=str(scp))
    else:
        kaldiio.save_ark(ark, matrices, scp=str(scp), compression_method=int(form))
    return scp


@pytest.mark.parametrize(("form", "error"), [("text", 1e-6), ("single", 0), ("float64", 0), ("2", 0.02), ("3", 1e-3)])
def test_foreign_matrices_are_decoded(tmp_path: Path, matrices: Matrices, form: str, error: float) -> None:
    archive = FeatureArchive(write_foreign(tmp_path, matrices, form))
    assert archive.dim == 3
    for utt, matrix in matrices.items():
        assert archive[utt].dtype == np.float32
        assert not archive[utt].flags.writeable
        assert archive.num_frames(utt) == len(matrix)
        np.testing.assert_allclose(archive[utt], matrix, atol=error)


def test_row_ranges_are_kept(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    location = (tmp_path / "feats.scp").read_text().splitlines()[4].split()[1]
    (tmp_path / "part.scp").write_text(f"part {location}[2:5]\n")
    np.testing.assert_array_equal(FeatureArchive(tmp_path / "part.scp")["part"], matrices["utt4"][2:6])


def test_a_truncated_ark_names_file_and_utterance(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    content = (tmp_path / "feats.ark").read_bytes()
    for cut, utt in ((1, "utt4"), (len(packed(matrices["utt4"])) - 3, "utt4"), (len(content) - 10, "utt0")):
        (tmp_path / "feats.ark").write_bytes(content[:-cut])
        with pytest.raises(InputError, match=rf"feats\.ark:\d+, utterance '{utt}': .*(end|ends) at byte"):
            FeatureArchive(tmp_path / "feats.scp")
    (tmp_path / "feats.ark").write_bytes(b"")
    with pytest.raises(InputError, match=r"feats\.ark cannot be read"):
        FeatureArchive(tmp_path / "feats.scp")


@pytest.mark.parametrize("form", ["text", "single", "float64", "2", "3"])
def test_truncated_foreign_matrices_are_named_too(tmp_path: Path, matrices: Matrices, form: str) -> None:
    scp = write_foreign(tmp_path, matrices, form)
    last = tmp_path / ("utt4.mat" if form == "single" else "raw.ark")
    last.write_bytes(last.read_bytes()[:-6])
    with pytest.raises(InputError, match=r"utterance 'utt4': cannot be decoded"):
        FeatureArchive(scp, check_finite=True)


def test_damaged_headers_are_named(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    content = (tmp_path / "feats.ark").read_bytes()
    start = content.index(b"utt1 ") + 5
    for position, byte, said in ((0, b"Z", "cannot be decoded"), (3, b"X", "cannot be decoded"), (5, b"\7", "damaged")):
        damaged = content[: start + position] + byte + content[start + position + 1 :]
        (tmp_path / "feats.ark").write_bytes(damaged)
        with pytest.raises(InputError, match=rf"utterance 'utt1': .*{said}"):
            FeatureArchive(tmp_path / "feats.scp", check_finite=True)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    kaldiio.save_ark(
        str(tmp_path / "a.ark"), {"utt": np.ones((2, 2))}, scp=str(tmp_path / "a.scp"), write_function="pickle"
    )
    with pytest.raises(InputError, match="no Kaldi matrix"):
        FeatureArchive(tmp_path / "a.scp")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_named(tmp_path: Path, matrices: Matrices, value: float) -> None:
    matrices["utt2"][3, 1] = value
    write_matrices(tmp_path / "feats", matrices.items())
    FeatureArchive(tmp_path / "feats.scp")
    with pytest.raises(InputError, match=r"feats\.ark:\d+, utterance 'utt2': NaN or infinity in frame 3"):
        FeatureArchive(tmp_path / "feats.scp", check_finite=True)


def test_different_dimensions_empty_matrices_and_missing_files(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "a", (matrices | {"utt3": np.ones((2, 4))}).items())
    with pytest.raises(InputError, match="utterance 'utt3': 4 dimensions, others have 3"):
        FeatureArchive(tmp_path / "a.scp")
    write_matrices(tmp_path / "a", (matrices | {"utt3": np.ones((0, 3))}).items())
    with pytest.raises(InputError, match=r"utterance 'utt3': .*empty"):
        FeatureArchive(tmp_path / "a.scp")
    (tmp_path / "a.ark").unlink()
    with pytest.raises(InputError, match=r"a\.scp:1: utterance 'utt0': archive .*a\.ark does not exist"):
        FeatureArchive(tmp_path / "a.scp")
    (tmp_path / "a.scp").write_text("utt0 cat x.ark |\n")
    with pytest.raises(InputError, match=r"a\.scp:1: utterance 'utt0' names no file"):
        FeatureArchive(tmp_path / "a.scp")
    (tmp_path / "a.scp").write_text("")
    with pytest.raises(InputError, match="holds no line"):
        FeatureArchive(tmp_path / "a.scp")


def test_a_writer_that_fails_leaves_the_earlier_archive(tmp_path: Path, matrices: Matrices) -> None:
    write_matrices(tmp_path / "feats", matrices.items())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken():
        yield "utt0", np.zeros((2, 2))
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_matrices(tmp_path / "feats", broken())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_integers_go_both_ways_and_as_kaldi_writes_them(tmp_path: Path) -> None:
    vectors = {"a": np.array([0, 3, 3, 70000]), "b": np.zeros(0, int), "c": np.arange(5, dtype=np.int64)}
    write_int_vectors(tmp_path / "pdf", vectors.items(), final_dir="/elsewhere")
    expected = b"a \0B\4" + struct.pack("<i", 4) + b"".join(b"\4" + struct.pack("<i", pdf) for pdf in vectors["a"])
    assert (tmp_path / "pdf.ark").read_bytes().startswith(expected)
    assert (tmp_path / "pdf.scp").read_text().startswith("a /elsewhere/pdf.ark:2\n")
    read = read_int_vectors(tmp_path / "pdf.scp")
    assert list(read) == ["a", "b", "c"]
    for utt, vector in vectors.items():
        np.testing.assert_array_equal(read[utt], vector)
        assert read[utt].dtype == np.int32


def test_damaged_integers_are_named(tmp_path: Path) -> None:
    write_int_vectors(tmp_path / "pdf", {"a": np.arange(9), "b": np.arange(9)}.items())
    content = (tmp_path / "pdf.ark").read_bytes()
    (tmp_path / "pdf.ark").write_bytes(content[:-7])
    with pytest.raises(InputError, match=r"pdf\.ark:\d+, utterance 'b': cannot be decoded"):
        read_int_vectors(tmp_path / "pdf.scp")
    write_matrices(tmp_path / "pdf", {"a": np.ones((2, 2))}.items())
    with pytest.raises(InputError, match="utterance 'a': not a vector of integers"):
        read_int_vectors(tmp_path / "pdf.scp")
