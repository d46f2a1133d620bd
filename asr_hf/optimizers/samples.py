"""The samples that optimisers ask for, as the model allows: frames, pieces of utterances, or whole utterances."""

from asr_hf.data.plan import Sample
from asr_hf.objective.objective import Objective


def whole_set(
    objective: Objective, subset: str, minibatch_frames: int, seed: int = 0, masks: int = 0, update: int = 0
) -> Sample:
    """Every frame of a subset.

    Args:
        masks: the update whose dropout masks apply, 0: none; `seed` is of no other account here.
        update: of account for subsampled models alone, see `shift`.
    """
    purpose = "heldout" if subset == "heldout" else "gradient"
    whole, chunk, shifted = not objective.frame_model, pieces(objective), shift(objective, update)
    return Sample(
        subset, "all", 1.0, minibatch_frames, whole, seed, purpose=purpose, chunk=chunk, masks=masks, shift=shifted
    )


def pieces(objective: Objective) -> int:
    """Frames of the pieces that utterances are cut into, a multiple of the subsampling; 0: they are not cut."""
    s = objective.subsampling  # a piece starts where a whole utterance has an output frame
    return 0 if objective.windowed else -(-objective.chunk // s) * s


def shift(objective: Objective, update: int) -> int:
    """Frames that a subsampled model leaves out at the start of each utterance: update by update another of its copies.

    Source: Povey et al. (2016), "Purely sequence-trained neural networks for ASR based on lattice-free MMI".
    """
    return update % objective.subsampling


def drawn(
    objective: Objective,
    purpose: str,
    share: float,
    minibatch_frames: int,
    seed: int,
    update: int,
    piece_frames: int,
    masks: int = 0,
) -> Sample:
    """A share of the training frames, drawn anew for every update.

    Frame models draw single frames, models that may be cut anywhere pieces of `piece_frames` frames, and recurrent
    models the pieces that they train on: pieces of many utterances estimate a matrix better than few whole ones.
    """
    if objective.frame_model:
        return Sample("train", "frames", share, minibatch_frames, False, seed, update, purpose, masks=masks)
    s = objective.subsampling
    chunk = -(-piece_frames // s) * s if objective.windowed else pieces(objective)
    shifted = shift(objective, update)
    return Sample(
        "train", "chunks", share, minibatch_frames, True, seed, update, purpose, chunk=chunk, masks=masks, shift=shifted
    )


def utterances(
    objective: Objective, purpose: str, share: float, minibatch_frames: int, seed: int, update: int, masks: int = 0
) -> Sample:
    """Whole utterances, drawn anew for every update; models that are trained on chunks see them in chunks.

    With `minibatch_frames` 1 each is a minibatch of its own.
    """
    chunk, shifted = pieces(objective), shift(objective, update)
    return Sample(
        *("train", "utterances", share, minibatch_frames, True, seed, update, purpose),
        chunk=chunk,
        masks=masks,
        shift=shifted,
    )


def whole_utterances(
    objective: Objective, minibatch_frames: int, seed: int = 0, masks: int = 0, update: int = 0
) -> Sample:
    """Every frame of the training set, minibatches cut between utterances."""
    chunk, shifted = pieces(objective), shift(objective, update)
    return Sample(
        "train", "all", 1.0, minibatch_frames, True, seed, purpose="curvature", chunk=chunk, masks=masks, shift=shifted
    )
