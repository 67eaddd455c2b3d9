"""No rule that grades answers gives a wrong one more than the right one, and the manual says what the others give."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from fairgrpo_jax.rewards import accuracy, format, length, parsing
from fairgrpo_jax.rewards.audit import ATTACKS, EXAMPLES, REASONING, Row, audit, forms, markdown, negation
from fairgrpo_jax.rewards.parsing import WRAPPERS, parse, plain_answer
from fairgrpo_jax.rewards.similarity import words_f1


DOCS = Path(__file__).parent.parent / "docs" / "rewards.md"


def answers(records):
    return [record.answer for record in records]


def thoughts(texts):
    return np.array([len((parse(text).thought or "").split()) for text in texts])


def short_ecr(texts, records):
    """Full for as many words as the reasoning of the right answer has."""
    return length.ecr(thoughts(texts), reference=len(REASONING.split()))


def short_cwr(texts, records):
    correct = accuracy.answered(texts, records)
    return length.cwr(thoughts(texts), correct, reference=len(REASONING.split()))


# Rules, with the records they apply to.
GRADED = {
    "exact": (lambda texts, records: accuracy.exact(texts, answers(records)), EXAMPLES[:3]),
    "letter": (
        lambda texts, records: accuracy.letter(texts, answers(records), [record.choices for record in records]),
        EXAMPLES[:2],
    ),
    "yes_no": (lambda texts, records: accuracy.yes_no(texts, answers(records)), EXAMPLES[1:2]),
    "open_answer": (lambda texts, records: accuracy.open_answer(texts, answers(records)), EXAMPLES[3:]),
    "answered": (accuracy.answered, EXAMPLES),
    "cwr": (short_cwr, EXAMPLES),
}
PARTIAL = {
    "set_f1": (lambda texts, records: accuracy.set_f1(texts, answers(records)), EXAMPLES[2:3]),
    "token_f1": (lambda texts, records: accuracy.token_f1(texts, answers(records)), EXAMPLES[3:]),
}
LENIENT = {  # takes plain text as an answer, so that of what is broken some is right
    "words_f1": (
        lambda texts, records: words_f1([plain_answer(text) for text in texts], answers(records)),
        EXAMPLES[3:],
    ),
}
BLIND = {
    "think_answer": (lambda texts, records: format.think_answer(texts), EXAMPLES),
    "think_box": (lambda texts, records: format.think_box(texts), EXAMPLES),
    "one_box": (lambda texts, records: format.one_box(texts), EXAMPLES),
    "ecr": (short_ecr, EXAMPLES),
}
ALL = GRADED | PARTIAL | LENIENT | BLIND


@pytest.fixture(scope="module")
def audits():
    return {name: audit(rule, records) for name, (rule, records) in ALL.items()}


def test_the_table_of_the_manual(audits):
    assert markdown(audits) in DOCS.read_text()


def test_rules_that_grade_the_answer_give_a_wrong_one_nothing(audits):
    for name, rows in audits.items():
        assert [row.attack for row in rows] == list(ATTACKS)
        assert all(row.right == 1 and row.unscored == 0 and row.records == len(ALL[name][1]) for row in rows)
        assert name not in GRADED or all(row.wrong == 0 and row.reached == 0 for row in rows), name
        assert name not in PARTIAL or all(row.wrong < 1 and row.reached == 0 for row in rows), name
        assert name not in LENIENT or [row.attack for row in rows if row.reached] == ["broken tags"], name
        assert name not in BLIND or any(row.reached == row.records for row in rows), name


PIECES = ("<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "{", "}", ", ", " ", "\n", *WRAPPERS)
PIECES += ("A", "B", "C", "(", ")", ".", ":", "yes", "No", *(text for r in EXAMPLES for text in (r.answer, *r.choices)))
COMPLETIONS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20).map("".join)


@pytest.mark.parametrize("name", ALL)
@given(text=COMPLETIONS)
@example(text=forms("Left lower lobe")[0])
def test_no_completion_scores_above_a_correct_one(name, text):
    rule, records = ALL[name]
    got = rule([text] * len(records), records)
    right = np.max([rule([forms(record.answer)[k] for record in records], records) for k in (0, 1)], axis=0)
    assert got.dtype == np.float32 and got.shape == right.shape and np.all(right == 1)
    assert np.all((got >= 0) & (got <= right))
    if name in GRADED:  # whatever is full marks names the answer
        for record, value in zip(records, got, strict=True):
            said = parse(text).answer or ""
            named = accuracy.choice(said, record.choices) or said
            labels = [accuracy.words(parsing.unwrapped(label)) for label in named.split(", ")]
            wanted = [accuracy.words(label) for label in record.answer.split(", ")]
            assert value == 0 or set(labels) == set(wanted) or accuracy.words(named) == accuracy.words(record.answer)


def test_scores_by_hand():
    """A rule that likes a word, and one that could not score one of the records."""

    def likes(texts, records):
        found = np.array(["lobe" in (parse(text).answer or "") for text in texts], np.float32)
        return np.where([record is EXAMPLES[0] for record in records], np.nan, 0.5 * found)

    rows = audit(
        likes, EXAMPLES[:1] + EXAMPLES[3:], attacks={"mine": lambda right, wrong, choices: forms(f"x {right}")}
    )
    assert rows == (Row("mine", 0.5, 0.5, 2, 2, 2),)
    wrong = audit(likes, EXAMPLES[3:], attacks={"w": lambda right, wrong, choices: forms(wrong)})
    assert wrong == (
        Row("w", 0.5, 0.0, 1, 2, 0),
    )  # the wrong answer to the second record is the right one to the first
    assert "**0.50 of 0.00**" in markdown({"likes": wrong})


def test_attacks_hold_no_right_answer():
    def peeks(texts, records):
        said = [parse(text).answer for text in texts]
        assert all(text in forms(r.answer) or s != r.answer for text, s, r in zip(texts, said, records, strict=True))
        assert max(map(len, texts)) >= 100_000
        return np.ones(len(texts))

    assert all(row.reached == row.records == 5 for row in audit(peeks, EXAMPLES))


def test_negation_is_its_own_opposite():
    for answer in ("Yes", "No", "Pleural effusion"):
        assert negation(negation(answer)) == answer


@pytest.mark.parametrize(
    "rule, records, words",
    [
        (lambda texts, records: np.zeros(3), EXAMPLES, r"got scores \(3,\) for \d+ completions"),
        (lambda texts, records: np.full(len(texts), np.nan), EXAMPLES, "no score for any right answer"),
        (lambda texts, records: np.zeros(len(texts)), (), "got 0 records"),
        (lambda texts, records: np.zeros(len(texts)), (EXAMPLES[0]._replace(answer=" "),), "without an answer"),
    ],
)
def test_bad_input(rule, records, words):
    with pytest.raises(ValueError, match=words):
        audit(rule, records)
