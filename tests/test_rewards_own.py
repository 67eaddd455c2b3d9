"""Functions of the user in the signatures of TRL and verl, and what is said when one fails."""

import numpy as np
import pytest

from fairgrpo_jax.rewards import own
from tests.test_rewards_composition import answers, record


RECORDS = [record("a", race="b", answer="Yes"), record("b", race="w", answer="No")]
GIVEN = answers(RECORDS, [["Yes", ""], ["No", "Yes"]])


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("trl", [[1, np.nan], [1, 0]]),
        ("trl_async", [[1, 0], [1, 0]]),
        ("Callable", [[1, 1], [1, 1]]),
        ("verl", [[1, 0], [1, 0]]),
        ("verl_float", [[1, 1], [1, 1]]),
    ],
)
def test_a_function_in_either_form(name, wanted):
    got = own.load(f"tests.own_rewards:{name}")(GIVEN)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)


def test_a_function_of_chats():
    np.testing.assert_array_equal(own.load("tests.own_rewards:chat", messages=True)(GIVEN), [[3, 0], [2, 3]])


@pytest.mark.parametrize(
    "name, message",
    [
        ("too_few", "got 1 rewards of tests.own_rewards:too_few for 4 completions; wanted one for each"),
        ("words", "got 'good' of tests.own_rewards:words for record a/ of a; wanted a number, or None"),
        ("endless", "got inf of tests.own_rewards:endless for record a/ of a; wanted a finite number"),
        ("beyond", "got 1e\\+39 of tests.own_rewards:beyond for record a/ of a; wanted a finite number"),
        ("raises_for_b", r"got KeyError \('no such thing'\) of tests.own_rewards:raises_for_b for record b/ of b"),
        ("raises_for_many", r"got RuntimeError \(too many\) of .* for 4 completions together.* and for none alone"),
        ("verl_without_score", "got a dict without score of tests.own_rewards:verl_without_score for record a/ of a"),
    ],
)
def test_a_function_that_fails_is_named_with_its_record(name, message):
    with pytest.raises(ValueError, match=message):
        own.load(f"tests.own_rewards:{name}")(GIVEN)


@pytest.mark.parametrize(
    "name, message",
    [
        ("tests.own_rewards:nothing", "got reward function tests.own_rewards:nothing .*has no attribute 'nothing'"),
        ("tests.own_rewards:", "got reward function tests.own_rewards: "),
        ("tests.nowhere:trl", "No module named 'tests.nowhere'"),
        ("tests.own_rewards:neither", r"got tests.own_rewards:neither\(text\); wanted a reward function with"),
    ],
)
def test_what_is_no_reward_function_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        own.load(name)
