"""Answers of a policy to held-out records: what is drawn, how it is scored, how far ahead records are read."""

import collections
import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from fairgrpo_jax import (
    answers,
    batches,
    config as options,
    evaluate,
    grouping,
    mesh,
    policy,
    rewards,
    rollout,
    workers,
)
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.models import decoder


def ask(config, records, **further):
    """Rows of a random policy, greedy and drawn."""
    architecture, processor = policy.describe(config.model, config.data)
    groups = grouping.vocabulary(batches.groups_of(record, config.data) for record in records)
    domains = tuple(sorted({record.dataset for record in records}))
    devices = mesh.make("1x1")
    with jax.set_mesh(devices):
        params = policy.initial(config.model, architecture, jax.random.key(0), mesh=devices)
        pool = workers.Workers(batches.Encoder(config.data, architecture, processor, domains, groups))
        return answers.answer(
            answers.sampler(params, config.sampling),
            records,
            pool=pool,
            config=config,
            scorer=rewards.build(config.reward, config.sampling, records),
            devices=devices,
            key=jax.random.key(1),
            temperatures=(0.0, config.sampling.temperature),
            **further,
        )


CONFIG = options.Config(
    model=options.Model(hidden_size=16, num_layers=1, vision_depth=1),
    sampling=options.Sampling(max_new_tokens=4),
    evaluation=options.Evaluation(batch=4),
)


def test_what_is_drawn_for_a_record_depends_on_its_place_alone():
    """Not on the size of a batch; and no two batches share their noise."""
    records = synthetic.load("test", domains=("us",)).records[:7]
    same = [records[0]] * 7  # one question, so that only the noise differs
    for asked in (records, same):
        greedy, drawn = ask(CONFIG, asked)
        larger = dataclasses.replace(CONFIG, evaluation=options.Evaluation(batch=8))
        other, again = ask(larger, asked)
        assert [row["completion"] for row in drawn] == [row["completion"] for row in again]
        assert [row["uid"] for row in greedy] == [row["uid"] for row in other] == [record.uid for record in asked]
    said = [row["completion"] for row in drawn]
    assert said[:3] != said[4:7] and len(set(said)) > 4


def test_the_nucleus_of_training_is_that_of_the_drawn_answers(monkeypatch):
    seen = []
    monkeypatch.setattr(answers.rollout, "sample", lambda *args, **named: seen.append(named) or sample(*args, **named))
    config = dataclasses.replace(CONFIG, sampling=options.Sampling(max_new_tokens=4, temperature=0.7, top_p=1e-6))
    greedy, drawn = ask(config, synthetic.load("test", domains=("us",)).records[:4])
    assert [(named["temperature"], named["top_p"]) for named in seen] == [(0.0, 1.0), (0.7, 1e-6)]
    assert [row["completion"] for row in drawn] == [row["completion"] for row in greedy]  # one token is left


sample = rollout.sample


def test_the_probability_of_an_answer_is_that_of_its_first_token():
    """Log-probabilities -0.1, -0.2, ... by place: the token with the first letter of the answer in the box counts."""
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, plain_answers=False))
    tokenizer = policy.describe(config.model, config.data)[1].tokenizer
    texts = [[r"<think>Edema?</think> So \boxed{Edema}"], ["nothing"], [r"\boxed{Normal} and \boxed{Edema}"]]
    ids = [tokenizer(text)["input_ids"] for (text,) in texts]
    tokens, mask = np.zeros((3, 1, 99), np.int32), np.zeros((3, 1, 99), bool)
    for row, own in enumerate(ids):
        tokens[row, 0, : len(own)], mask[row, 0, : len(own)] = own, True
    logprobs = np.broadcast_to(-0.1 * np.arange(1, 100), (3, 1, 99))
    batch: Any = SimpleNamespace(tokens=tokens, mask=mask, logprobs=logprobs)
    records = synthetic.load("test", domains=("us",)).records[:3]
    found = answers._firsts(batch, texts, records, tokenizer, config.data)
    for row in (0, 2):
        place = round(-10 * float(np.log(found[row]))) - 1  # type: ignore[arg-type]
        before, through = (tokenizer.decode(ids[row][:end]) for end in (place, place + 1))
        assert len(before) <= texts[row][0].rfind("Edema") < len(through)
    assert found[1] is None


def test_the_probability_of_a_greedy_answer_by_hand(monkeypatch):
    """Of an answer that is the whole completion: the largest of the softmax after the prompt."""
    seen = []
    monkeypatch.setattr(answers.rollout, "sample", lambda *args, **named: seen.append(args) or sample(*args, **named))
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, plain_answers=True))
    greedy, drawn = ask(config, synthetic.load("test", domains=("us",)).records[:4], probabilities=True)
    params, prompt = seen[0][:2]
    architecture, _ = policy.describe(config.model, config.data)
    hidden, _ = decoder.prompt_pass(params, architecture, prompt)
    last = decoder.last_hidden(prompt, hidden)
    logits = np.asarray(decoder.head(params, architecture, last), np.float64)
    never = np.asarray(decoder.policy_logits(params, architecture, last, 1.0)) < -1e9  # tokens that stand for images
    assert never.any() and not never.all()
    logits[never] = -np.inf
    wanted = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    whole = [(row, value) for row, value in zip(greedy, wanted, strict=True) if row["completion"] == row["prediction"]]
    assert len(whole) > 1
    for row, value in whole:
        assert row.get("probability") == pytest.approx(value, rel=1e-4)
    assert any("probability" in row for row in drawn)


@pytest.mark.parametrize("name, wanted", [("exact", [0.0, 1.0, 0.0]), ("set_f1", [2 / 3, 1.0, 0.0])])
def test_answers_are_scored_as_the_run_pays_them(name, wanted):
    record = dataclasses.replace(synthetic.load("test", domains=("us",))[0], answer="Fracture, Edema")
    texts = [[r"\boxed{Edema}", r"\boxed{Edema, Fracture}", "Edema"]]
    given = rewards.Answers(texts, [record], np.array([[2, 3, 4]]), np.ones((1, 3), bool))
    scorer = rewards.build(options.Reward((name,)), options.Sampling(max_new_tokens=4), [record])
    np.testing.assert_allclose(scorer(given).rewards, [wanted], rtol=1e-6)


def test_a_subset_is_drawn_once_and_in_proportion():
    """40 records of the clinic's domains, to within one of each domain's share; the same at every step."""
    records = synthetic.load("test").records
    part = evaluate.chosen(records, 40, seed=3)
    assert len(part) == len({record.uid for record in part}) == 40
    assert [record.uid for record in part] == [record.uid for record in evaluate.chosen(records, 40, seed=3)]
    assert [record.uid for record in part] != [record.uid for record in evaluate.chosen(records, 40, seed=4)]
    places = {record.uid: place for place, record in enumerate(records)}
    assert [places[record.uid] for record in part] == sorted(places[record.uid] for record in part)
    whole, drawn = (collections.Counter(record.dataset for record in source) for source in (records, part))
    assert len(whole) > 3
    for name, count in whole.items():
        assert abs(drawn[name] - 40 * count / len(records)) < 1
    assert evaluate.chosen(records, None, 0) is records is evaluate.chosen(records, len(records), 0)
