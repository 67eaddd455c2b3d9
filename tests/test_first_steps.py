"""What is said about first steps without a reward, or with nothing else."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from fairgrpo_jax import batches, config as options, first_steps, rewards, rollout, train
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.models.tiny.tokenizer import tiny_tokenizer
from fairgrpo_jax.rewards import Scores
from tests import tiny_batch


ASKING = options.Config(data=options.Data(instruction=r"Answer in \boxed{}."))
ANSWERED = options.Config(
    reward=options.Reward(("answered", "think_answer=0.5")), fairness=options.Fairness(history="ring")
)
TAGGED = dataclasses.replace(ANSWERED, data=options.Data(instruction="Answer between <answer> and </answer>."))
BOTH = options.Config(data=TAGGED.data)


def given(*texts, answer="Nevus", finished=True):
    """One prompt with these completions, and their rewards by the run's own function."""
    record = Record("own/7", "own", "", (), "What is it?", answer, (), "p", None, None, {}, "train")
    shape = (1, len(texts))
    found = rewards.Answers([list(texts)], [record], np.ones(shape, int), np.full(shape, finished))
    return found, rewards.exact(found)


def told(*texts, config=ASKING, rows=(), finished=True):
    """The lines after five steps of the same completions, and at no other step."""
    first = first_steps.FirstSteps(config, rows)
    for step in range(1, first_steps.STEPS + 3):
        if first.wants(step):
            first.see(*given(*texts, finished=finished), ["What is it?\nassistant: "])
        if lines := first.told(step):
            assert step == first_steps.STEPS
            return lines
    return []


@pytest.mark.parametrize(
    "text, finished, config, named",
    [
        ("It is a nevus.", True, ASKING, r"100% ended without \\boxed.*does not do what the prompt asks for"),
        ("It is a nevus.", True, options.Config(), r"no prompt asks for \\boxed{...}: --data.instruction .*\\boxed"),
        ("It is a nevus.", True, TAGGED, "100% ended without <answer>...</answer>.*does not do what the prompt asks"),
        ("It is a nevus.", True, ANSWERED, r"no prompt asks for <answer>...</answer> or \\boxed{...}: --data"),
        ("<answer>B</answer>", True, TAGGED, "100% give another answer.*found as the answer: 'B'"),
        ("<answer>Nevus</answer>", True, BOTH, "prompts ask for <answer>...</answer>, the reward reads boxes: --rew"),
        ("<answer>Nevus</answer>", True, ASKING, "100% answer in tags instead of a box.*exact reads boxes alone: --"),
        ("<think><answer>Nevus</answer>", False, TAGGED, "100% answer only inside <think>"),
        ("It is", False, ASKING, "100% were cut off before an answer.*sampling.max_new_tokens=12 is too short"),
        (r"\boxed{nevus.}", True, ASKING, "another spelling.*letter by letter.*found as the answer: 'nevus.'"),
        (r"\boxed{Melanoma}", True, ASKING, "100% give another answer.*`data check`.*found as the answer: 'Melanoma'"),
        (r"<think>\boxed{Nevus}", False, ASKING, "answer only inside <think>.*found as the answer: nothing"),
    ],
)
def test_no_reward_is_said_with_its_likeliest_reason_and_an_example(text, finished, config, named):
    lines = "\n".join(told(text, text, config=config, finished=finished))
    assert lines.startswith("none of the completions of the first 5 steps has a reward") and "of the 10:" in lines
    pytest.raises(ValueError, raise_it, lines.replace("\n", " ")).match(named)
    assert "for example own/7: the prompt ends with 'What is it?" in lines and f"said: {text!r}" in lines
    assert "looked for: 'Nevus'" in lines


def raise_it(text):
    raise ValueError(text)


def test_shares_of_several_reasons_add_up():
    lines = told("no", "no", r"\boxed{nevus}", r"\boxed{Edema}")
    assert r"of the 20: 50% ended without \boxed{...}, 25% give" in lines[1] and "said: 'no'" in lines[4]


def test_all_rewards_full_is_said_too():
    lines = told(r"\boxed{Nevus}", r"\boxed{Nevus}")
    assert lines[0].startswith("all completions of the first 5 steps have the full reward")
    assert lines[-1] == "looked for: 'Nevus'; found as the answer: 'Nevus'"


def test_nothing_is_said_where_rewards_differ():
    assert told(r"\boxed{Nevus}", "no") == []


def test_a_run_that_goes_on_knows_its_log():
    row = lambda step, mean: {"kind": "train", "step": step, "reward/mean": mean}
    assert told("no", rows=[row(1, 0.0), row(2, 0.0)]) and not told("no", rows=[row(1, 0.0), row(2, 0.25)])
    assert not told(r"\boxed{Nevus}", rows=[row(1, 0.5)])
    note = {"kind": "note", "step": 5, "changes": told("no")}
    assert not told("no", rows=[row(1, 0.0), note]), "it is said once"


def test_long_texts_are_shown_by_their_end():
    lines = told("word " * 200)
    assert "said: '..." in lines[-2] and len(lines[-2]) < first_steps.SHOWN + 20


def test_the_steps_of_a_run_are_taken_as_they_are():
    """Two batches of a step as the loop has them; the example shows the prompt's own words, without its padding."""
    records = tiny_batch.records(2)
    prompt = tiny_batch.prompt(records)
    prompt = prompt.replace(tokens=np.asarray(prompt.tokens), valid=np.asarray(prompt.valid))
    batch = batches.PromptBatch(prompt, records, np.zeros(2, np.int32), np.zeros(2, np.int32), np.arange(2))
    mask = np.ones((2, 2, 3), bool)
    arrays: Any = (np.zeros(mask.shape, np.int32), mask, np.zeros(mask.shape), np.full(2, 3))
    drawn = rollout.RolloutBatch(*arrays)
    part = train.Sampled(batch, drawn, [["no"] * 2] * 2, Scores.of(np.zeros((2, 2))), np.ones((2, 2), bool), mask)
    first = first_steps.FirstSteps(ASKING)
    lines = [first.after(step, [part, part], tiny_tokenizer()) for step in range(1, 8)]
    assert [bool(each) for each in lines] == [step == first_steps.STEPS for step in range(1, 8)]
    assert "of the 40:" in lines[4][1] and r"<|im_start|>assistant\n'" in lines[4][3]
