"""Rewards from text: hand-made completions."""

from typing import Any

import pytest
from sklearn.metrics import f1_score

from fairgrpo_jax.rewards import accuracy


@pytest.mark.parametrize(
    "text, wanted",
    [
        (r"so \boxed{Nevus}", "Nevus"),
        (r"\boxed{A} no, \boxed{B}", "B"),
        (r"\boxed{ Nevus }", "Nevus"),
        (r"\boxed{\text{a}{b}} tail", r"\text{a}{b}"),
        (r"\boxed{A} and \boxed{B", "A"),  # the last box that closes
        (r"\boxed{outer \boxed{inner}}", "inner"),
        (r"\boxed{}", ""),
        (r"\boxed{A", None),
        ("A", None),
        ("[A]", None),
        ("", None),
        (r"<think>\boxed{A}</think> \boxed{B}", "B"),
        (r"<think>\boxed{A}</think> B", None),
        (r"\boxed{A}</think>", None),
        (r"<think>never ends \boxed{A}", None),
        (r"\boxed{A} <think>never ends", None),
        (r"</think>\boxed{A}<think>\boxed{B}", None),
        (r"\boxed{\text{Nevus}}", "Nevus"),
        (r"\boxed{ \textbf{\text{ Nevus }} }", "Nevus"),
        (r"\boxed{\mathrm{Nevus}}", "Nevus"),
        (r"\boxed{\text{A}, \text{B}}", r"\text{A}, \text{B}"),  # no one wrapper around all; exact takes them off
        (r"</think>\boxed{A}</think>\boxed{B}", "B"),
    ],
)
def test_extract(text, wanted):
    assert accuracy.extract(text) == wanted


@pytest.mark.parametrize(
    "text, answer, score",
    [
        (r"\boxed{Nevus}", "Nevus", 1),
        (r"\boxed{\text{Nevus}}", "Nevus", 1),
        (r"\boxed{\text{Edema}, \textbf{Fracture}}", "Fracture, Edema", 1),
        (r"\boxed{\text{Edema, Fracture}}", "Fracture, Edema", 1),
        (r"<think>\boxed{Nevus}", "Nevus", 0),
        (r"\boxed{nevus}", "Nevus", 0),
        (r"\boxed{Nevus }", " Nevus", 1),
        (r"\boxed{Edema, Fracture}", "Fracture, Edema", 1),
        (r"\boxed{Edema, Edema}", "Edema", 1),
        (r"\boxed{Edema}", "Edema, Fracture", 0),
        (r"\boxed{Edema, Fracture}", "Edema", 0),
        (r"\boxed{Edema,Fracture}", "Edema, Fracture", 0),
        ("Nevus", "Nevus", 0),
        ("None", "None", 0),
        (r"\boxed{}", "Nevus", 0),
    ],
)
def test_exact(text, answer, score):
    got = accuracy.exact([text], [answer])
    assert got.dtype == "float32" and got.tolist() == [score]


@pytest.mark.parametrize(
    "text, answer, score",
    [
        (r"\boxed{Nevus}", "Nevus", 1),
        (r"\boxed{Edema, Fracture}", "Fracture, Edema", 1),
        (r"\boxed{Edema}", "Edema, Fracture", 2 / 3),
        (r"\boxed{Edema, Fracture, Nodule}", "Edema", 1 / 2),
        (r"\boxed{Edema, Edema, Nodule}", "Edema, Fracture", 1 / 2),
        (r"\boxed{Nodule}", "Edema", 0),
        (r"\boxed{}", "Edema", 0),
        ("Edema", "Edema", 0),
    ],
)
def test_set_f1_is_that_of_scikit_learn(text, answer, score):
    """By hand, and as ``f1_score`` over the labels that either of them names."""
    got = accuracy.set_f1([text], [answer])
    assert got.dtype == "float32" and got.tolist() == pytest.approx([score])
    said, wanted = (set((labels or "").split(", ")) for labels in (accuracy.extract(text), answer))
    names = sorted((said | wanted) - {""})
    rows = [[name in labels for name in names] for labels in (wanted, said)]
    wanted_f1: Any = f1_score(*rows, zero_division=0)  # pyright: ignore[reportArgumentType]
    assert got[0] == pytest.approx(wanted_f1)


def test_exact_refuses_different_lengths():
    with pytest.raises(ValueError, match="2 texts and 1 answers"):
        accuracy.exact(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="2 texts and 1 answers"):
        accuracy.set_f1(["a", "b"], ["a"])
    assert accuracy.set_f1([r"\boxed{}"], [r"\text{}"]).tolist() == [0]  # no label on either side
