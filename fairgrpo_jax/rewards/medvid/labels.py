"""NAP, which step comes next: one label of a list."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


# Labels by source. Of other sources they are those of the references.
LABELS: Mapping[str, tuple[str, ...]] = {
    "AVOS": ("cutting", "tying", "suturing"),
    "CholecT50": (
        "preparation",
        "carlot-triangle-dissection",  # as the owners write it
        "clipping-and-cutting",
        "gallbladder-dissection",
        "gallbladder-packaging",
        "cleaning-and-coagulation",
        "gallbladder-extraction",
    ),
    "CoPESD": (
        "adjust camera",
        "position flap with forceps and knife",
        "dissect flap tissue with knife",
        "position flap with forceps only",
        "retract flap edge with forceps only",
        "retract flap edge with forceps and knife",
        "lift flap with forceps",
        "stabilize flap with forceps",
    ),
}
RENAMED: Mapping[str, Mapping[str, str]] = {  # earlier names of labels, by source
    "CoPESD": {
        "manipulate flap with forceps and knife": "position flap with forceps and knife",
        "dissect flap with knife": "dissect flap tissue with knife",
        "manipulate flap with forceps": "position flap with forceps only",
        "retract flap with forceps": "retract flap edge with forceps only",
        "retract flap with forceps and knife": "retract flap edge with forceps and knife",
        "hold flap with forceps": "stabilize flap with forceps",
        "retracting mucosa flap with forceps and knife": "retract flap edge with forceps and knife",
    }
}

# From N texts and N references to their likeness.
Measure = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def label(text: str, source: str) -> str:
    """The label that a text is, by its present name; case counts.

    >>> label(" hold flap with forceps ", "CoPESD")
    'stabilize flap with forceps'
    """
    return RENAMED.get(source, {}).get(text.strip(), text.strip())


def score(text: str, wanted: str, source: str) -> float:
    """1 if the answer is the wanted label and nothing else, strictly; NaN if none is wanted.

    >>> score("tying", "tying", "AVOS"), score("It is tying.", "tying", "AVOS")
    (1.0, 0.0)
    """
    truth = label(wanted, source)
    return float(label(text, source) == truth) if truth else float("nan")


def scores(
    texts: Sequence[str],
    wanted: Sequence[str],
    source: str,
    *,
    measure: Measure,
    labels: Sequence[str] | None = None,
) -> np.ndarray:
    """What the board gives the answers of one source, (N,): 1 or 0, NaN where it skips them.

    An answer that is no label is the one that it resembles most, an empty one too: one of few labels is often right
    by chance, and of a single label always.

    Args:
        texts: N answers.
        wanted: N references.
        source: their dataset.
        measure: likeness of texts; the board's is the cosine of embeddings by all-MiniLM-L6-v2.
        labels: those to choose from; default: ``LABELS`` of the source, else those of ``wanted``. References that are
            none of them are skipped. The board has lists of its own for every procedure of NurViD, which are not here.

    >>> from fairgrpo_jax.rewards.similarity import words_f1
    >>> scores(["the suturing", "cutting"], ["suturing", "tying"], "AVOS", measure=words_f1).tolist()
    [1.0, 0.0]
    """
    truths = [label(text, source) for text in wanted]
    known = list(labels or LABELS.get(source) or sorted({truth for truth in truths if truth}))
    found = np.full(len(texts), np.nan)
    for row, (text, truth) in enumerate(zip(texts, truths, strict=True)):
        if truth not in known:
            continue
        said = label(text, source)
        if said not in known:
            said = known[int(np.argmax(np.nan_to_num(measure([said] * len(known), known))))]
        found[row] = float(said == truth)
    return found
