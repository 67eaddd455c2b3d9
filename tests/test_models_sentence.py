"""The sentence encoder against the same in NumPy, one text at a time; its folder, whole and broken."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors.numpy import save_file

from fairgrpo_jax.models import bert, sentence
from tests import tiny_sentence


TEXTS = (
    "There is no pleural effusion",
    "the lesion is a nevus of the left",
    "melanoma",
    "",
    "nodule nodule",
    "the " * 37 + "nevus",
    "the " * 60,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sentence.write(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder):
    return sentence.load(folder)


def test_embeddings_equal_the_formula(encoder):
    got = encoder.encode(TEXTS)
    weights = tiny_sentence.tensors()
    wanted = [tiny_sentence.embedding(tiny_sentence.ids_of(text.lower()), weights) for text in TEXTS]
    assert got.dtype == np.float32 and encoder.name == "tiny"
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=20), place=st.integers(0, 19))
def test_padding_and_neighbours_change_nothing(encoder, lengths, place):
    """Of a text among others, shorter or longer, the embedding is the one that it has alone."""
    rng = np.random.default_rng(sum(lengths))
    texts = [" ".join(rng.choice(tiny_sentence.WORDS[4:], n)) for n in lengths]
    i = place % len(texts)
    np.testing.assert_allclose(encoder.encode(texts)[i], encoder.encode(texts[i : i + 1])[0], atol=2e-6)


def test_few_programs_are_compiled(encoder):
    program: Any = sentence._pooled
    program.clear_cache()
    for count, words in ((1, 1), (5, 20), (8, 9), (9, 3), (64, 30), (130, 2), (3, 100), (70, 100)):
        encoder.encode(["the " * words + str(i) for i in range(count)])
    assert program._cache_size() <= len(sentence.ROWS) * 2  # lengths 32 and 40


def test_nothing_in_nothing_out(encoder):
    assert encoder.encode([]).shape == (0, 32)


def test_the_first_token_as_pooling(tmp_path, folder):
    first = sentence.load(tiny_sentence.write(tmp_path / "first", mode="pooling_mode_cls_token"))
    got = first.encode(["melanoma", "nevus"])
    assert first.pooling == "cls" and not np.allclose(got, sentence.load(folder).encode(["melanoma", "nevus"]))
    tokens = jnp.array([tiny_sentence.ids_of("melanoma")])
    hidden = bert.encode(first.params, first.config, tokens, jnp.ones((1, 3), bool))
    np.testing.assert_allclose(got[0], hidden[0, 0] / np.linalg.norm(hidden[0, 0]), atol=1e-6)


def test_lower_case_where_the_settings_want_it(tmp_path):
    folder = tiny_sentence.write(tmp_path / "lower")
    words = tiny_sentence.tokenizer()
    words.normalizer = None
    words.save(str(folder / "tokenizer.json"))
    apart = sentence.load(folder).encode(["NEVUS", "nevus"])
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    same = sentence.load(folder).encode(["NEVUS", "nevus"])
    assert not np.allclose(*apart) and np.array_equal(*same)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def other(**changes):
    return lambda folder: change(folder / "config.json", **changes)


def modules(*kinds, path=""):
    steps = [{"type": f"x.{kind}", "path": path or ("1_Pooling" if kind == "Pooling" else "")} for kind in kinds]
    return write("modules.json", json.dumps(steps))


def weights(**changes):
    def save(folder):
        whole = {**tiny_sentence.tensors(), **changes}
        save_file({name: array for name, array in whole.items() if array is not None}, folder / "model.safetensors")

    return save


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop("modules.json"), "wanted the folder of a sentence encoder"),
        (write("modules.json", "{"), "no list of modules"),
        (write("modules.json", '[{"type": "x"}]'), "no list of modules"),
        (modules("Transformer", "Pooling", "Dense"), "got .*Transformer, Pooling, Dense; wanted"),
        (modules("Pooling"), "wanted Transformer, Pooling"),
        (modules("Transformer", "Pooling", path="0_Transformer"), "wanted it in the folder itself"),
        (write("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}'), "got pooling by pooling_mode_max_tokens"),
        (write("1_Pooling/config.json", "{}"), "got pooling by nothing"),
        (other(model_type="roberta"), "model_type='roberta'; wanted bert"),
        (other(position_embedding_type="relative_key"), "position_embedding_type.*relative_key"),
        (other(hidden_act="relu"), "activation='relu'; wanted one of"),
        (other(num_attention_heads=5), "wanted a multiple of num_heads=5"),
        (other(num_hidden_layers=1), "16 faults:\n.*unexpected encoder.layer.1"),
        (other(vocab_size=10), "16 tokens; wanted at most vocab_size=10"),
        (drop("tokenizer.json"), "without tokenizer.json"),
        (write("tokenizer.json", "{}"), "tokenizer.json, which cannot be read"),
        (drop("model.safetensors"), "without model.safetensors; wanted it: pickles"),
        (write("model.safetensors", "pickle"), "no whole safetensors file"),
        (weights(**{"embeddings.LayerNorm.bias": None}), r"missing embeddings.LayerNorm.bias \(32,\)"),
        (weights(extra=np.zeros(2, np.float32)), r"unexpected extra \(2,\)"),
        (weights(**{"embeddings.LayerNorm.bias": np.zeros(31, np.float32)}), r"is \(31,\), wanted \(32,\)"),
    ],
)
def test_broken_folders_are_refused(tmp_path, damage, message):
    folder = tiny_sentence.write(tmp_path / "broken")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        sentence.load(folder)


def test_no_folder():
    with pytest.raises(ValueError, match="not a folder"):
        sentence.load("nowhere")


def test_weights_of_the_whole_pre_training_are_read(tmp_path, folder):
    whole = {f"bert.{name}": array for name, array in tiny_sentence.tensors().items()}
    heads = {"bert.pooler.dense.bias": np.zeros(3, np.float32), "cls.predictions.bias": np.zeros(3, np.float32)}
    again = tiny_sentence.write(tmp_path / "whole")
    save_file(whole | heads, again / "model.safetensors")
    assert np.array_equal(sentence.load(again).encode(TEXTS), sentence.load(folder).encode(TEXTS))
