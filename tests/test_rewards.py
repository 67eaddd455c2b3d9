"""Rewards from text: hand-made completions."""

import doctest

import pytest

from fairgrpo_jax.rewards import accuracy


def test_examples_in_docstrings():
    assert doctest.testmod(accuracy).failed == 0


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
        (r"<think>never ends \boxed{A}", "A"),
        (r"</think>\boxed{A}</think>\boxed{B}", "B"),
    ],
)
def test_extract(text, wanted):
    assert accuracy.extract(text) == wanted


@pytest.mark.parametrize(
    "text, answer, score",
    [
        (r"\boxed{Nevus}", "Nevus", 1),
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


def test_exact_refuses_different_lengths():
    with pytest.raises(ValueError, match="2 texts and 1 answers"):
        accuracy.exact(["a", "b"], ["a"])
