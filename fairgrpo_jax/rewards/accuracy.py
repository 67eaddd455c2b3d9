r"""Scores the answer of a completion against the reference answer of its record.

``exact`` and ``set_f1`` grade boxed labels; the others grade what ``parsing.parse`` finds, in a box or in answer tags.
All give NaN, not scored, where the reference is blank: there is nothing to compare with. A completion without an answer
scores 0.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fairgrpo_jax._labels import label_set, unwrapped
from fairgrpo_jax.rewards.answers import Graded
from fairgrpo_jax.rewards.parsing import parse


YES_NO = ("yes", "no")
LETTERS = string.ascii_uppercase
LONGEST = 1000  # characters without a blank

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")  # B (B) B) B. B:
_LETTERED = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:])\s*(\S.*)", re.DOTALL)  # the same, then a text
_SEPARATORS = re.escape('.,;:!?"“”„«»`()[]{}/\\。、，；：！？（）')
_WORD = re.compile(
    r"(?:(?<![\w.])\.)?\d+(?:[.,:/]\d+)*"  # 2, 1.5, .5, 1,000, 3/4
    r"|[\u3400-\u9fff]"  # a Chinese character
    r"|[^\W\d_\u3400-\u9fff]+"
    r"|(?<=\w)-(?!\w)|(?<!\w)-(?=\w)"  # HER2-, -3; a hyphen between words is a blank
    r"|(?<![\w-])-(?![\w-]| [\w(\[])"  # HER2 (-), +/-, HER2 -; a dash before further words is a blank
    rf"|[^\w\s\-{_SEPARATORS}]"  # + < % and all that may carry a meaning
)
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("'’", ""))
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def extract(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` after the reasoning, as ``parsing.parse`` finds it; else None.

    Args:
        text: one completion, without the tokens sampled after its end.

    Returns:
        The answer, possibly the empty string; None if no box is closed, whatever stands in answer tags.

    The authors of FairGRPO fall back to any text in square brackets if there is no box; here that is not an answer.

    >>> extract(r"<think>\boxed{Nevus}?</think> \boxed{Melanoma}")
    'Melanoma'
    >>> extract("Melanoma") is None
    True
    """
    found = parse(text)
    return found.answer if found.boxes else None


def exact(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    r"""1.0 where the set of boxed labels equals the set of reference labels, else 0.0.

    Labels are separated by a comma and a space, stripped of white space, and compared as sets (order and repetition do
    not matter), case-sensitively as in the authors' code. A completion without a box scores 0.

    Args:
        texts: N completions.
        answers: N reference answers, one label or several joined by ``", "``.

    Returns:
        (N,) float32 of 0 and 1, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ.

    Source: FairGRPO (arXiv 2510.19893) states a binary reward. The authors' code gives half the F1 of the two sets;
    for single labels that is the same up to a factor, which the advantages cancel.

    >>> exact([r"\boxed{Edema, Fracture}", "Edema"], ["Fracture, Edema", "Edema"]).tolist()
    [1.0, 0.0]
    """
    return _scores(same_labels, texts, answers, find=extract)


def same_labels(said: str, answer: str) -> bool:
    """Whether an answer has the labels of the reference, in any order; the comparison of ``exact``."""
    return label_set(said) == label_set(answer)


def same_answer(said: str, record: Graded) -> bool:
    """Whether an answer is that of the record: one choice is compared whole, even with a comma in it; else labels."""
    whole = record.answer in record.choices and ", " in record.answer
    return unwrapped(said) == unwrapped(record.answer) if whole else same_labels(said, record.answer)


def set_f1(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    r"""F1 of the set of boxed labels against the set of reference labels: 2 |A and B| / (|A| + |B|).

    For questions with several right labels; with single labels it equals :func:`exact`.

    Args:
        texts: N completions.
        answers: N reference answers, one label or several joined by ``", "``.

    Returns:
        (N,) float32 in [0, 1], 0 without a box, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ.

    Source: the code of FairGRPO's authors, which takes half of it; the factor cancels in advantages and temperatures.
    Their code also splits at "and" and "&"; here labels are separated by a comma and a space.

    >>> set_f1([r"\boxed{Edema}", r"\boxed{Edema, Fracture}"], ["Fracture, Edema"] * 2).round(3).tolist()
    [0.6669999957084656, 1.0]
    """
    return _scores(_labels_f1, texts, answers, find=extract)


def letter(texts: Sequence[str], answers: Sequence[str], choices: Sequence[Sequence[str]]) -> np.ndarray:
    """1.0 where the answer names the right one of the choices, by its letter or its text (``choice``), else 0.0.

    Args:
        texts: N completions.
        answers: N reference answers: the text of the right choice.
        choices: for each completion the texts of its choices, in the order of the letters in its prompt.

    Returns:
        (N,) float32 of 0 and 1, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ, or a reference is not one of its choices.

    Source: arXiv 2505.13973 compares the content of the answer tags with the right letter. PMC-VQA's authors take the
    choice that is nearest to the text by ``difflib``, which gives every text a choice; that is not done here. Letters
    are positions in ``choices``; PMC-VQA's own (``record.extra["letter"]``) differ where the file has an empty or
    repeated choice.

    >>> said = ["<answer>B</answer>", "<answer>B: Lung</answer>", "<answer>lung.</answer>", "<answer>A or B</answer>"]
    >>> letter(said, ["Lung"] * 4, [("Heart", "Lung")] * 4).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    _check_answers(texts, answers)
    _check(len(choices) == len(texts), f"{len(texts)} texts and {len(choices)} lists of choices", "one list")
    for i, (answer, options) in enumerate(zip(answers, choices, strict=True)):
        if answer.strip() and answer not in options:
            raise ValueError(
                f"got answer {answer!r} in row {i}; wanted one of its choices, {', '.join(options) or '-'}"
            )
    return _scores(_is_choice, texts, answers, choices)


def choice(said: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer names; None if it names none, or several.

    An answer is read as the letter of a choice (``B``, ``(B)``, ``B)``, ``B.``, ``B:``, also in lower case), as such a
    letter with the text of the same choice (``B: Lung``, ``(B) Lung``), or as the text of a choice; case, repeated
    white space and a full stop at the end do not matter in texts. A lone letter is always a letter, even if the text of
    another choice is that letter. A letter with another text is nothing.

    Args:
        said: the answer, without tags or box.
        choices: the texts of the choices, without their letters, in the order of the letters.

    >>> choice("(b)", ("Heart", "Lung")), choice("LUNG", ("Heart", "Lung")), choice("A: Lung", ("Heart", "Lung"))
    ('Lung', 'Lung', None)
    """
    said = said.strip()
    if (lone := _LETTER.fullmatch(said)) and (place := LETTERS.index(lone[1].upper())) < len(choices):
        return choices[place]
    if said in choices:
        return said
    plain = [_plain(text) for text in choices]
    named = {place for place, text in enumerate(plain) if text == _plain(said)}
    if pair := _LETTERED.fullmatch(said):
        place = LETTERS.index(pair[1].upper())
        named |= {place} if place < len(choices) and plain[place] == _plain(pair[2]) else set()
    return choices[named.pop()] if len(named) == 1 else None


def yes_no(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """1.0 where the answer is the word of the reference, yes or no, and no other word, else 0.0.

    Case and punctuation do not matter. "Yes, there is an effusion" scores 0: what follows may take the word back.

    Args:
        texts: N completions.
        answers: N reference answers, yes or no in any case.

    Returns:
        (N,) float32 of 0 and 1, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ, or a reference is neither yes nor no.

    Source: the closed questions of VQA-RAD and SLAKE.

    >>> yes_no(["<answer>yes.</answer>", "<answer>Yes and no</answer>", "yes"], ["Yes"] * 3).tolist()
    [1.0, 0.0, 0.0]
    """
    for i, answer in enumerate(answers):
        if answer.strip() and not _is_yes_no(answer):
            raise ValueError(f"got answer {answer!r} in row {i}; wanted yes or no")
    return open_answer(texts, answers)


def open_answer(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """1.0 where the words of the answer are those of the reference, in the same order (``words``), else 0.0.

    Args:
        texts: N completions.
        answers: N reference answers.

    Returns:
        (N,) float32 of 0 and 1, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ.

    Source: the VQA challenge (Antol et al. 2015) and SQuAD compare after such a normalisation. Unlike there, signs that
    carry a meaning stay ("HER2+" is not "HER2-"), the letter in "hepatitis A" is no article, and "two" is not "2".

    >>> open_answer(["<answer>The left lung.</answer>", "<answer>right lung</answer>"], ["Left  lung"] * 2).tolist()
    [1.0, 0.0]
    """
    return _scores(_same_words, texts, answers)


def token_f1(texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """F1 of the bag of words of the answer against that of the reference: 2 |A and B| / (|A| + |B|), with repetition.

    For open answers of a few words. The order does not matter and one word more costs little, "no" included: prefer
    ``open_answer`` wherever it gives enough signal.

    Args:
        texts: N completions.
        answers: N reference answers.

    Returns:
        (N,) float32 in [0, 1], NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ.

    Source: SQuAD (Rajpurkar et al. 2016), with ``words`` for its normalisation; a Chinese character is a word.

    >>> token_f1(["<answer>left lung</answer>", "<answer>no mass</answer>"], ["lung", "mass"]).round(3).tolist()
    [0.6669999957084656, 0.6669999957084656]
    """
    return _scores(_words_f1, texts, answers)


def answered(texts: Sequence[str], records: Sequence[Graded], *, lettered: bool = False) -> np.ndarray:
    """1.0 where the answer is right by the rule for its kind of record, else 0.0.

    * With choices that the prompt letters, and one right: by letter or text, as ``letter``.
    * With other choices: as sets of labels, as ``exact`` but in answer tags too; several right labels are always a set.
    * Without choices, and with yes and no as the only ones: by its words, as ``open_answer`` and ``yes_no``.

    Args:
        texts: N completions.
        records: their N records, with ``answer`` and ``choices``.
        lettered: whether the prompts list the choices with letters.

    Returns:
        (N,) float32 of 0 and 1, NaN where the reference is blank.

    Raises:
        ValueError: if the lengths differ.

    >>> from fairgrpo_jax.rewards.audit import EXAMPLES
    >>> answered([f"<answer>{record.answer}</answer>" for record in EXAMPLES], EXAMPLES).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    _check(len(records) == len(texts), f"{len(texts)} texts and {len(records)} records", "one record")
    rules = [_rule(record, lettered) for record in records]
    return _scores(_by_rule, texts, [record.answer for record in records], rules)


def words(text: str) -> tuple[str, ...]:
    """The words by which open answers are compared.

    Case, white space, punctuation, apostrophes and hyphens between words do not matter. Articles are dropped, except as
    the last word, and an upper-case A except as the first: "hepatitis A". Numbers keep their points; signs such as +
    and <, and a minus (a hyphen that touches one word alone, or that no further words follow), stay as words of their
    own. Letters that only look alike differ.

    >>> words("The X-ray shows Crohn's disease; 1.5 cm, HER2+.")
    ('x', 'ray', 'shows', 'crohns', 'disease', '1.5', 'cm', 'her', '2', '+')
    >>> words("ER -, PR +"), words("Nevus - benign")
    (('er', '-', 'pr', '+'), ('nevus', 'benign'))
    """
    found: list[str] = _WORD.findall(" ".join(map(_composed, text.split())).translate(_DASHES))
    if not found:
        return (text.strip(),)
    kept = [word for place, word in enumerate(found[:-1]) if not _is_article(word, place)]
    return tuple(_number(word.casefold()) for word in (*kept, found[-1]))


def _rule(record: Graded, lettered: bool) -> Callable[[str, str], bool]:
    """How the answer to a record is compared with its reference."""
    one_of_them = record.answer in record.choices
    if lettered and one_of_them:
        return lambda said, answer: _is_choice(said, answer, record.choices)
    if record.choices and {text.casefold() for text in record.choices} != set(YES_NO):
        return lambda said, _: same_answer(said, record)
    return _same_words


def _scores(
    value: Callable[..., float],
    texts: Sequence[str],
    answers: Sequence[str],
    *columns: Sequence[object],
    find: Callable[[str], str | None] = lambda text: parse(text).answer,
) -> np.ndarray:
    """What ``value`` gives for what is said, the reference and the columns; NaN for a blank reference, 0 if unsaid."""
    _check_answers(texts, answers)
    said = map(find, texts)
    found = [
        float("nan") if not answer.strip() else 0.0 if words is None else value(words, answer, *more)
        for words, answer, *more in zip(said, answers, *columns, strict=True)
    ]
    return np.asarray(found, np.float32)


def _check_answers(texts: Sequence[str], answers: Sequence[str]) -> None:
    _check(len(texts) == len(answers), f"{len(texts)} texts and {len(answers)} answers", "one answer")


def _check(same: bool, got: str, wanted: str) -> None:
    if not same:
        raise ValueError(f"got {got}; wanted {wanted} for each text")


def _is_choice(said: str, answer: str, choices: Sequence[str]) -> bool:
    return choice(said, choices) == answer


def _by_rule(said: str, answer: str, rule: Callable[[str, str], bool]) -> bool:
    return rule(said, answer)


def _same_words(said: str, answer: str) -> bool:
    return words(said) == words(answer)


def _labels_f1(said: str, answer: str) -> float:
    return _f1(label_set(said), label_set(answer))


def _words_f1(said: str, answer: str) -> float:
    return _f1(words(said), words(answer))


def _f1(said: Iterable[str | None], wanted: Iterable[str | None]) -> float:
    """2 |A and B| / (|A| + |B|) of two bags."""
    a, b = Counter(said), Counter(wanted)
    return 2 * (a & b).total() / max(a.total() + b.total(), 1)


def _is_yes_no(answer: str) -> bool:
    return len(found := words(answer)) == 1 and found[0] in YES_NO


def _plain(text: str) -> str:
    """Without case, repeated white space and full stops at the end."""
    return " ".join(text.split()).casefold().rstrip(". ")


def _composed(part: str) -> str:
    """Accents joined with their letters; composing takes time quadratic in the length, so only of what may be words."""
    return unicodedata.normalize("NFC", part) if len(part) <= LONGEST else part


def _is_article(word: str, place: int) -> bool:
    return word.casefold() in ("the", "an") or word == "a" or (word == "A" and place == 0)


def _number(word: str) -> str:
    """A number as it is compared: 1,000 is 1000 and .5 is 0.5; any other word as it is."""
    word = word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
    return f"0{word}" if word.startswith(".") else word
