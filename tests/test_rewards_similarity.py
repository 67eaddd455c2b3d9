"""Similarity of answers to references: by an encoder, by words, and as a component."""

import math
import types

import numpy as np
import pytest
from hypothesis import given, strategies as st

from fairgrpo_jax import rewards
from fairgrpo_jax.rewards import similarity
from tests import tiny_sentence
from tests.test_rewards_parsing import COMPLETIONS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return similarity.Similarity(tiny_sentence.write(tmp_path_factory.mktemp("encoders") / "tiny"))


def answers(texts, references):
    records = [types.SimpleNamespace(answer=answer) for answer in references]
    shape = (len(texts), len(texts[0]))
    return rewards.Answers(texts, records, np.ones(shape, int), np.ones(shape, bool))  # pyright: ignore


def by_hand(text, reference):
    weights = tiny_sentence.tensors()
    a, b = (tiny_sentence.embedding(tiny_sentence.ids_of(one), weights) for one in (text, reference))
    return float(a @ b)


def test_cosines_by_hand(encoder):
    pairs = [("the lesion is a nevus", "melanoma"), ("no effusion", "pleural effusion"), ("nevus", "nevus")]
    got = encoder.cosine(*map(list, zip(*pairs, strict=True)))
    assert got.dtype == np.float32 and got[2] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(got, [by_hand(*pair) for pair in pairs], atol=2e-6)


@pytest.mark.parametrize("measure", ["encoder", "words"])
def test_blank_texts_are_0_and_blank_references_are_not_scored(measure, encoder):
    measure = encoder.cosine if measure == "encoder" else similarity.words_f1
    got = measure(["", " \n", "nevus", "", "nevus"], ["nevus", "nevus", " ", "", "nevus"])
    np.testing.assert_allclose(got, [0, 0, math.nan, math.nan, 1], atol=1e-6)
    assert measure([], []).shape == (0,) and measure([""], ["nevus"]).tolist() == [0]
    with pytest.raises(ValueError, match="got 1 texts and 2 references"):
        measure(["nevus"], ["nevus", "melanoma"])


def test_a_reference_is_embedded_once(encoder, monkeypatch):
    asked = []
    encode = type(encoder._encoder).encode
    monkeypatch.setattr(
        type(encoder._encoder), "encode", lambda self, texts: (asked.extend(texts), encode(self, texts))[1]
    )
    encoder._references.clear()
    first = encoder.cosine(["a nevus", "a nevus", "melanoma"], ["nevus", "melanoma", "nevus"])
    again = encoder.cosine(["a nevus", "left"], ["nevus", "nevus"])
    assert asked == ["a nevus", "melanoma", "nevus", "melanoma", "a nevus", "left"]
    np.testing.assert_allclose(again[0], first[0], atol=1e-6)
    monkeypatch.setattr(similarity, "KEPT", 2)
    encoder.cosine(["left"] * 3, ["effusion", "pleural", "lesion"])
    assert [*encoder._references] == ["pleural", "lesion"]


def test_words_by_hand():
    got = similarity.words_f1(
        ["no pleural effusion", "effusion effusion", "Nevus.", "melanoma"],
        ["pleural effusion", "pleural effusion", "a nevus", "nevus"],
    )
    np.testing.assert_allclose(got, [4 / 5, 2 / 4, 1, 0], rtol=1e-6)


def test_a_component_scores_boxes_tags_and_plain_answers(encoder):
    texts = [
        r"<think>nevus</think> \boxed{melanoma}",
        "<think>nevus</think><answer>melanoma</answer>",
        "<think>nevus</think> melanoma",
        "melanoma",
        "<think>melanoma",
        r"<think>melanoma</think>\boxed{}",
        "",
    ]
    for measure in (encoder.cosine, similarity.words_f1):
        got = similarity.similar(measure)(answers([texts, texts[::-1]], ["melanoma", " "]))
        assert got.dtype == np.float32 and got.shape == (2, 7) and np.isnan(got[1]).all()
        np.testing.assert_allclose(got[0], [1, 1, 1, 1, 0, 0, 0], atol=1e-6)


def test_to_say_nothing_pays_no_more_than_the_opposite():
    opposite = lambda texts, references: np.full(len(texts), -0.5, np.float32)
    assert similarity.similar(opposite)(answers([["nevus"]], ["melanoma"])).tolist() == [[0]]


@given(texts=st.lists(COMPLETIONS, min_size=1, max_size=4))
def test_no_completion_is_more_like_the_reference_than_itself(encoder, texts):
    for measure in (encoder.cosine, similarity.words_f1):
        got = similarity.similar(measure)(answers([texts], ["the lesion is a nevus"]))
        assert ((got >= 0) & (got <= 1)).all()


def test_the_measure_is_named(tmp_path, capsys):
    assert similarity.measure(None) is similarity.words_f1
    assert similarity.measure(tiny_sentence.write(tmp_path / "mini"))(["nevus"], ["nevus"]) == pytest.approx([1])
    assert capsys.readouterr().out.splitlines() == [
        "similarity: F1 of words; reward.similarity may name the folder of a sentence encoder instead",
        "similarity: cosine of embeddings by mini (40 tokens)",
    ]
