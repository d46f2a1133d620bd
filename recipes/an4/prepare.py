"""CMU AN4 as Kaldi data directories: train, heldout, dev and test, by the official split or one of four folds.

    AN4_ROOT=…/an4_sphere.tar.gz python recipes/an4/prepare.py exp/an4/data
    AN4_ROOT=…/an4 python recipes/an4/prepare.py exp/an4-fold1/data --fold 1

The SPHERE files are read where they are; a tarball is unpacked once into `<out_dir>/corpus`. Every set has speakers of
its own. The official test set is left alone: dev and heldout are cut from the 74 training speakers. A fold takes every
fourth of all 84 speakers as its test set and cuts dev and heldout from the rest in the same way.
"""

import argparse
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

from asr_hf.data.kaldi_dir import Utterance, write_data_dir
from asr_hf.data.table import write_table
from asr_hf.errors import InputError

OFFICIAL = {"train": 948, "test": 130}  # utterances
FOLDS = 4
WHERE = "The corpus and its official address: recipes/an4/README.md."

Split = dict[str, list[Utterance]]


def locate(root: Path, out: Path) -> Path:
    """The corpus folder, with etc/ and wav/, from that folder, the one above it, or the tarball (unpacked into `out`).

    Raises:
        InputError: there is no corpus, or the tarball is damaged.
    """
    if root.is_file():
        unpacked = out / "corpus"
        if not unpacked.is_dir():
            unpack(root, unpacked)
        root = unpacked
    for corpus in (root, root / "an4"):
        if (corpus / "etc").is_dir() and (corpus / "wav").is_dir():
            return corpus
    raise InputError(f"AN4_ROOT={root} is neither the folder an4 (with etc/ and wav/) nor its tarball", WHERE)


def unpack(tarball: Path, folder: Path) -> None:
    """Unpack a tarball beside and rename, so that the folder is whole or not there."""
    beside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with tarfile.open(tarball) as archive:
            archive.extractall(beside, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(
            f"{tarball} cannot be unpacked ({error})", "Fetch it again, and see that the disk has room."
        ) from None
    os.replace(beside, folder)


def read_lines(path: Path) -> list[str]:
    """The lines of a file of etc/ that are not empty."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", WHERE) from None


def read_part(corpus: Path, part: str) -> list[Utterance]:
    """The utterances of the official training or test set, ids with the speaker first (`fash-an251-b`).

    Raises:
        InputError: a list or an audio file is missing, the lists disagree, or the set has not its official size.
    """
    fileids = read_lines(corpus / "etc" / f"an4_{part}.fileids")
    transcripts = read_lines(corpus / "etc" / f"an4_{part}.transcription")
    if not len(fileids) == len(transcripts) == OFFICIAL[part]:
        found = f"{len(fileids)} files and {len(transcripts)} transcripts"
        raise InputError(f"{corpus}/etc/an4_{part}.*: {found} instead of {OFFICIAL[part]}", WHERE)
    utterances = []
    for number, (fileid, line) in enumerate(zip(fileids, transcripts, strict=True), start=1):
        _, speaker, name = fileid.split("/")
        match = re.fullmatch(r"(?:<s> )?(.*?)(?: </s>)? \((.+)\)", line)
        if match is None or match[2] != name:
            raise InputError(f"{corpus}/etc/an4_{part}.transcription:{number}: not the transcript of {name}", WHERE)
        sphere = corpus / "wav" / f"{fileid}.sph"
        if not sphere.is_file():
            raise InputError(f"{sphere} of an4_{part}.fileids:{number} is missing", WHERE)
        utterance = f"{speaker}-{name.replace(f'-{speaker}', '')}"
        utterances.append(Utterance(utterance, speaker, tuple(match[1].split()), str(sphere)))
    return utterances


def read_lexicon(corpus: Path) -> list[tuple[str, str]]:
    """(word, phones) of every pronunciation of etc/an4.dic, `WORD(2)` as another pronunciation of WORD."""
    pronunciations = (line.split(maxsplit=1) for line in read_lines(corpus / "etc" / "an4.dic"))
    return sorted({(re.sub(r"\(\d+\)$", "", word), " ".join(phones.split())) for word, phones in pronunciations})


def cut(utterances: list[Utterance]) -> Split:
    """Cut train, heldout and dev by speaker.

    Speakers are taken in the order of their names, so women before men: every 8th from the 5th on is dev, every 18th
    from the 2nd on (four at most) heldout.
    """
    speakers = sorted({u.speaker for u in utterances})
    subset = dict.fromkeys(speakers, "train") | dict.fromkeys(speakers[1::18][:4], "heldout")
    subset |= dict.fromkeys(speakers[4::8], "dev")
    return {name: [u for u in utterances if subset[u.speaker] == name] for name in ("train", "heldout", "dev")}


def split_official(corpus: Path) -> Split:
    """The official test set, and train, heldout and dev cut from the official training set."""
    return {**cut(read_part(corpus, "train")), "test": read_part(corpus, "test")}


def split_fold(corpus: Path, fold: int) -> Split:
    """Fold 1 to 4 over all utterances: every fourth speaker is test, the rest is cut into train, heldout and dev."""
    utterances = read_part(corpus, "train") + read_part(corpus, "test")
    test = set(sorted({u.speaker for u in utterances})[fold - 1 :: FOLDS])
    return {
        **cut([u for u in utterances if u.speaker not in test]),
        "test": [u for u in utterances if u.speaker in test],
    }


def prepare(root: Path | str, out_dir: Path | str, fold: int | None = None) -> dict[str, int]:
    """Write train/, heldout/, dev/, test/ and lexicon.txt of AN4 into `out_dir`.

    Args:
        root: the corpus: the folder `an4`, the folder above it, or the tarball.
        out_dir: the folder to make or to write again.
        fold: None for the official split, 1 to 4 for a fold.

    Returns:
        Number of utterances of each set.

    Raises:
        InputError: the corpus is not there or not as it was published.
    """
    if fold is not None and not 1 <= fold <= FOLDS:
        raise InputError(f"--fold {fold} is not 1 to {FOLDS}", "Leave it out for the official split.")
    out = Path(out_dir).resolve()
    corpus = locate(Path(root).resolve(), out)
    lexicon = read_lexicon(corpus)
    split = split_official(corpus) if fold is None else split_fold(corpus, fold)
    known = {word for word, _ in lexicon}
    for utterance in (u for utterances in split.values() for u in utterances):
        missing = [word for word in utterance.words if word not in known]
        if missing:
            raise InputError(f"{corpus}/etc: '{missing[0]}' of {utterance.id} is not in an4.dic", WHERE)
    for subset, utterances in split.items():
        write_data_dir(out / subset, utterances)
    write_table(out / "lexicon.txt", lexicon)
    return {subset: len(utterances) for subset, utterances in split.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s OUT_DIR [--fold K]"
    )
    parser.add_argument("out_dir", help="the folder to make, e.g. exp/an4/data")
    parser.add_argument("--fold", type=int, default=None, help="1 to 4; without it the official split")
    args = parser.parse_args()
    try:
        root = os.environ.get("AN4_ROOT")
        if not root:
            raise InputError("AN4_ROOT is not set", f"Set it to the folder an4 or to an4_sphere.tar.gz. {WHERE}")
        counts = prepare(root, args.out_dir, args.fold)
    except InputError as error:
        print(f"recipes/an4/prepare.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(", ".join(f"{subset} {count} utterances" for subset, count in counts.items()))


if __name__ == "__main__":
    main()
