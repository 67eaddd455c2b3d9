"""Components of the reward that follow a rule: cases by hand, and each again for a single completion."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fairgrpo_jax.rewards import accuracy, format, length, parsing
from fairgrpo_jax.rewards.audit import Example
from tests.test_rewards_parsing import COMPLETIONS


def tagged(said):
    return f"<think>t</think><answer>{said}</answer>"


def score(function, said, *columns):
    """The score of one answer, the same in tags and in a box."""
    texts = [tagged(said), rf"\boxed{{{said}}}"]
    got = function(texts, *([column] * 2 for column in columns))
    assert got.dtype == np.float32 and got.shape == (2,) and got[0] == got[1]
    return float(got[0])


ORGANS = ("Heart", "Left lung", "Liver")


@pytest.mark.parametrize(
    "said, place",
    [
        *[(said, 1) for said in ("B", "b", "(B)", "(b)", "B.", "B)", "B:", "(B", " B ", r"\text{B}")],
        *[(said, 1) for said in ("B: Left lung", "B. left lung", "(B) LEFT  LUNG.", "B) Left lung", "B:Left lung")],
        *[(said, 1) for said in ("Left lung", "left\nlung", "Left lung.", "LEFT LUNG")],
        *[
            (said, None)
            for said in ("", "D", "E", "BC", "A, B", "A or B", "B B", "B Left lung", "B - Left lung", "*B*")
        ],
        *[(said, None) for said in ("B: Heart", "B: Left", "B: Left lung, C: Liver", "Left lung or liver", "lung")],
        *[(said, None) for said in ("the left lung", "Answer: B", "not B", "В", "Ｂ", "B\u200b", "β", "1", "K")],  # noqa: RUF001
    ],
)
def test_choice(said, place):
    assert accuracy.choice(parsing.unwrapped(said), ORGANS) == (None if place is None else ORGANS[place])
    for right, answer in enumerate(ORGANS):
        assert score(accuracy.letter, said, answer, ORGANS) == (place == right)


@pytest.mark.parametrize(
    "said, choices, wanted",
    [
        ("A", ("B", "A"), "B"),  # a letter is a letter
        ("B: A", ("B", "A"), "A"),
        ("X", ("X", "Y"), "X"),  # no choice has this letter
        ("A. fumigatus", ("C. albicans", "A. fumigatus"), "A. fumigatus"),
        ("B: x", ("B: x", "x"), "B: x"),  # word for word
        ("b: X", ("B: x", "x"), None),  # either
        ("type i", ("Type I", "Type i"), None),
        ("Type i", ("Type I", "Type i"), "Type i"),
        ("", ("", "a"), ""),
        ("Z", tuple(map(str, range(40))), None),
    ],
)
def test_choices_that_look_like_letters(said, choices, wanted):
    assert accuracy.choice(said, choices) == (choices[25] if said == "Z" else wanted)


@given(st.lists(st.text(max_size=4).map(str.strip), min_size=1, max_size=5, unique=True), st.data())
def test_a_right_letter_is_right_whatever_the_choices(choices, data):
    place = data.draw(st.integers(0, len(choices) - 1))
    letter = accuracy.LETTERS[place]
    for said in (letter, letter.lower(), f"({letter})", f"{letter}."):
        assert accuracy.choice(said, choices) == choices[place]


@pytest.mark.parametrize(
    "said, answer, wanted",
    [
        ("Yes", "yes", 1),
        ("no.", "No", 1),
        ("NO", "No", 1),
        ("(yes)", "Yes", 1),
        ("No", "Yes", 0),
        ("Yes, no", "Yes", 0),
        ("Yes yes", "Yes", 0),
        ("not yes", "Yes", 0),
        ("Y", "Yes", 0),
        ("", "Yes", 0),
    ],
)
def test_yes_no(said, answer, wanted):
    assert score(accuracy.yes_no, said, answer) == wanted


@pytest.mark.parametrize(
    "said, answer, wanted",
    [
        ("The left lung.", "left  Lung", 1),
        ("T2-weighted MRI", "T2 weighted, MRI", 1),
        ("x-ray", "X ray", 1),
        ("Crohn's disease", "Crohn’s disease", 1),
        ("1,000 ml", "1000 ml", 1),
        ("1,234.5 ml", "1234.5 ml", 1),
        (".5 cm", "0.5 cm", 1),
        ("5 cm", ".5 cm", 0),
        ("15", "1.5", 0),
        ("HER2+", "HER2-", 0),
        ("HER2+/-", "HER2+", 0),
        ("+/-", "+", 0),
        ("HER2", "HER2 (-)", 0),
        ("HER2-", "HER2 (−)", 1),  # noqa: RUF001
        ("HER2 -", "HER2", 0),
        ("ER -, PR +", "ER, PR +", 0),
        ("ER-, PR+", "ER (-), PR (+)", 1),
        ("Nevus - benign", "nevus benign", 1),
        ("- Edema\n- Fracture", "Edema, Fracture", 1),
        ("Mass — (left)", "mass left", 1),
        ("Edema -- Fracture", "Edema, Fracture", 1),
        ("-3", "3", 0),
        ("−3", "-3", 1),  # noqa: RUF001
        ("<5", ">5", 0),
        ("10²", "102", 0),
        ("5 %", "5%", 1),
        ("5", "5%", 0),
        ("hepatitis A", "hepatitis", 0),
        ("a hepatitis", "hepatitis", 1),
        ("influenza A virus", "influenza virus", 0),
        ("mass in a lung", "Mass in the lung", 1),
        ("A", "the", 0),
        ("a", "A", 1),
        ("lung left", "left lung", 0),
        ("lungs", "lung", 0),
        ("two", "2", 0),
        ("café", "cafe\u0301", 1),
        ("右肺", "右 肺。", 1),
        ("lung\u200b", "lung", 0),
        ("lunɡ", "lung", 0),  # noqa: RUF001
        ("?", "?", 1),
        ("?", "!", 0),
        ("", "lung", 0),
    ],
)
def test_open_answer(said, answer, wanted):
    assert score(accuracy.open_answer, said, answer) == wanted


@pytest.mark.parametrize(
    "said, answer, wanted",
    [
        ("left lung", "left lung", 1),
        ("lung, left", "left lung", 1),
        ("lung", "left lung", Fraction(2, 3)),
        ("lung lung", "left lung", Fraction(1, 2)),
        ("lung lung lung", "lung", Fraction(1, 2)),
        ("no left lung", "left lung", Fraction(4, 5)),
        ("右肺", "左肺", Fraction(1, 2)),
        ("liver", "left lung", 0),
        ("", "left lung", 0),
    ],
)
def test_token_f1(said, answer, wanted):
    assert score(accuracy.token_f1, said, answer) == np.float32(float(wanted))


@given(st.lists(st.sampled_from("abc"), min_size=1), st.lists(st.sampled_from("abc"), min_size=1))
def test_token_f1_counts_pairs_of_words(said, answer):
    """A word of the one is crossed out with an equal word of the other, one by one."""
    left, pairs = [word * 2 for word in answer], 0
    for word in said:
        if word * 2 in left:
            left.remove(word * 2)
            pairs += 1
    wanted = 2 * pairs / (len(said) + len(answer))
    got = score(accuracy.token_f1, " ".join(w * 2 for w in said), " ".join(w * 2 for w in answer))
    assert got == np.float32(wanted)


@pytest.mark.parametrize("piece", ["e\u0301\u0323", "\u0301\u0323", "1.", "a-", "A) ", "(", "yes "])
def test_words_of_a_flood_are_found_in_linear_time(piece):
    """Composing accents in one piece would take minutes."""
    flood = piece * (200_000 // len(piece))
    assert score(accuracy.open_answer, flood, "yes") == 0 == score(accuracy.letter, flood, "Liver", ORGANS)


def record(answer, *choices):
    return Example("", answer, choices)


@pytest.mark.parametrize(
    "said, asked, plain, lettered",
    [
        ("Liver", record("Liver", *ORGANS), 1, 1),
        ("liver", record("Liver", *ORGANS), 0, 1),  # labels are compared as they are
        ("C", record("Liver", *ORGANS), 0, 1),
        ("C: liver", record("Liver", *ORGANS), 0, 1),
        ("Liver, Heart", record("Heart, Liver", *ORGANS), 1, 1),  # several right ones
        ("A, C", record("Heart, Liver", *ORGANS), 0, 0),
        ("blue, red", record("red, blue", "red, blue", "blue, red"), 0, 0),  # a choice is one, not labels
        ("red, blue", record("red, blue", "red, blue", "blue, red"), 1, 1),
        ("A", record("red, blue", "red, blue", "blue, red"), 0, 1),
        ("yes.", record("Yes", "Yes", "No"), 1, 1),
        ("A", record("Yes", "Yes", "No"), 0, 1),
        ("yes.", record("Yes"), 1, 1),
        ("The liver.", record("liver"), 1, 1),
        ("B", record("liver"), 0, 0),
    ],
)
def test_answered_goes_by_the_record(said, asked, plain, lettered):
    assert score(accuracy.answered, said, asked) == plain
    assert score(lambda texts, rows: accuracy.answered(texts, rows, lettered=True), said, asked) == lettered


R1_V = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


@given(COMPLETIONS)
def test_forms(text):
    """R1-V's full match, with each tag once; and the same with a box."""
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert format.think_answer([text]) == (once and R1_V.fullmatch(text.strip()) is not None)
    said = accuracy.extract(text)
    begins = re.fullmatch(r"<think>(?:(?!</?think>).)*</think>\s*\\boxed\{.*\}", text.strip(), re.DOTALL)
    if format.think_box([text]):
        assert begins and said is not None and "answer>" not in text
    if format.one_box([text]):
        assert said is not None


def test_forms_of_what_the_prompts_ask_for():
    texts = [tagged("B"), r"<think>t</think>\boxed{B}", r"\boxed{B}", r"\boxed{A} \boxed{B}", "", "B"]
    texts += [f"{tagged('A')}{tagged('B')}", tagged(r"\boxed{B}"), "<think></think><answer></answer>"]
    assert format.think_answer(texts).tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert format.think_box(texts).tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert format.one_box(texts).tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 0]
    for function in (format.think_answer, format.think_box, format.one_box):
        assert function(texts).dtype == np.float32 and function([]).shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([0.0, 0.25, 1.0]))), st.integers(1, 3000))
def test_lengths_one_by_one(rows, reference):
    n, correct = [n for n, _ in rows], [value for _, value in rows]
    shares = [min(Fraction(n, reference), 1) for n, _ in rows]
    got = length.ecr(n, reference=reference, scale=0.5)
    assert got.dtype == np.float32 and got.tolist() == pytest.approx([float(share) / 2 for share in shares])
    got = length.cwr(n, correct, reference=reference, scale=2.0)
    wanted = [float(2 * share * Fraction(value)) for share, value in zip(shares, correct, strict=True)]
    assert got.dtype == np.float32 and got.tolist() == pytest.approx(wanted)


def test_overlong_one_by_one():
    n = [0, 1, 1999, 2000, 2001, 2250, 2999, 3000, 3001, 10_000]
    got = length.overlong(n, max_length=3000, buffer=1000)
    wanted = [float(max(-1, min(0, Fraction(2000 - n, 1000)))) for n in n]
    assert got.dtype == np.float32 and got.tolist() == pytest.approx(wanted)
    assert length.overlong([], max_length=3000, buffer=1000).shape == (0,)


def test_what_cannot_be_compared_is_not_scored():
    texts = [tagged("B"), "", r"\boxed{B}"]
    for blank in ("", " \n"):
        for function in (accuracy.exact, accuracy.set_f1, accuracy.yes_no, accuracy.open_answer, accuracy.token_f1):
            assert np.isnan(function(texts, [blank] * 3)).all()
        assert np.isnan(accuracy.letter(texts, [blank] * 3, [ORGANS] * 3)).all()
        assert np.isnan(accuracy.answered(texts, [record(blank, *ORGANS)] * 3)).all()
    mixed = accuracy.answered([tagged("yes")] * 3, [record("yes"), record(""), record("no")])
    assert np.array_equal(mixed, [1, np.nan, 0], equal_nan=True)
    paid = length.cwr([512, 512, 512], mixed)
    assert np.array_equal(paid, [1, np.nan, 0], equal_nan=True)


@pytest.mark.parametrize(
    "function, arguments, words",
    [
        (accuracy.letter, (["a", "b"], ["A"], [ORGANS] * 2), "2 texts and 1 answers"),
        (accuracy.letter, (["a"], ["A"], [ORGANS] * 2), "1 texts and 2 lists of choices"),
        (accuracy.letter, (["a", "b"], ["Liver", "Spleen"], [ORGANS] * 2), "'Spleen' in row 1; wanted one of.*Heart"),
        (accuracy.letter, (["a"], ["Liver"], [()]), "'Liver' in row 0"),
        (accuracy.yes_no, (["a"], []), "1 texts and 0 answers"),
        (accuracy.yes_no, (["a", "b"], ["yes", "maybe"]), "'maybe' in row 1; wanted yes or no"),
        (accuracy.open_answer, (["a"], ["b", "c"]), "1 texts and 2 answers"),
        (accuracy.token_f1, ([], ["b"]), "0 texts and 1 answers"),
        (accuracy.answered, (["a"], []), "1 texts and 0 records"),
        (length.ecr, ([0.5],), "float64"),
        (length.ecr, ([[1]],), r"\(1, 1\)"),
        (length.ecr, (3,), r"lengths \(\)"),
        (length.ecr, ([1, -2],), "from -2"),
        (length.ecr, (np.zeros((0, 2), np.int32),), r"\(0, 2\)"),
        (length.cwr, ([1, 2], [1.0]), r"\(2,\) and correct \(1,\)"),
        (length.cwr, ([1, 2], [1.0, 1.5]), "from 1.0 to 1.5"),
    ],
)
def test_bad_input(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)


def test_bad_options():
    for reference, scale in ((0, 1.0), (1, -1.0), (1, float("nan")), (1, float("inf"))):
        with pytest.raises(ValueError, match="wanted reference >= 1 and scale finite"):
            length.ecr([1], reference=reference, scale=scale)
    with pytest.raises(ValueError, match="1 <= buffer <= max_length"):
        length.overlong([1], max_length=10, buffer=11)
