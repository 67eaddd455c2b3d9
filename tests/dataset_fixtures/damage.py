"""Damage to owners' files, drawn by Hypothesis: what a broken download or a careless editor makes of them."""

import json

from hypothesis import strategies as st


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", "nan", "\x00", '"', "-1", "A,B"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.lists(WORDS, max_size=2)
VALUES |= st.dictionaries(WORDS, WORDS, max_size=2)


@st.composite
def rows(draw, count):
    """One damaged row of ``count``: (its index, a function from the owner's rows to the text of the file)."""
    index, kind = draw(st.integers(0, count - 1)), draw(st.sampled_from(["drop", "set", "replace", "repeat", "cut"]))
    place, value = draw(st.integers(0, 99)), draw(VALUES)
    share = draw(st.floats(0, 0.999))

    def apply(whole):
        whole = [dict(row) for row in whole]
        keys = sorted(whole[index])
        if kind == "drop":
            del whole[index][keys[place % len(keys)]]
        elif kind == "set":
            whole[index][keys[place % len(keys)]] = value
        elif kind == "replace":
            whole[index] = value
        elif kind == "repeat":
            whole.insert(place % len(whole), whole[index])
        text = json.dumps(whole)
        return text[: int(len(text) * share)] if kind == "cut" else text

    return index, apply


@st.composite
def table(draw, fields):
    """One damaged row of a list of lists of fields (its index and the rows), the header spared."""
    whole = [list(row) for row in fields]
    index, kind = draw(st.integers(0, len(whole) - 1)), draw(st.sampled_from(["drop", "double", "set", "repeat"]))
    place, word = draw(st.integers(0, len(whole[0]) - 1)), draw(WORDS)
    if kind == "drop":
        del whole[index][place]
    elif kind == "double":
        whole[index].insert(place, whole[index][place])
    elif kind == "set":
        whole[index][place] = word
    else:
        whole.insert(place % len(whole), whole[index])
    return index, whole
