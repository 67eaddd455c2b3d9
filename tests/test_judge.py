"""The judge over the wire, against a real server that fails in every way: nothing is lost, nothing is paid twice."""

import concurrent.futures
import email.utils
import json
import sys
import threading
import time

import numpy as np
import pytest

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.rewards import endpoint as client, judge_prompts as prompts
from fairgrpo_jax.rewards.judge import Judge
from tests.scripted_judge import Reply, Scripted


FIVE = "R2: 5\nR3: 4\nR8: 3\nR5: 2\nR4: 1"
ONLY_TYPED = '{"coherent": {"type": "noul", "noul": %s}}'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "BACK_OFF", 0.01)


def options(server, **changes):
    return Options(**{"url": server.url, "model": "there", "attempts": 3, **changes})


def thoughts(count, *, name="thought"):
    return [prompts.coherent(f"{name} number {i};", "What is seen?") for i in range(count)]


def ask(server, questions, **changes):
    """The scores of questions by a judge of their own, and what it counted."""
    with Judge(options(server, **changes)) as judge:
        return judge.submit(questions).result(timeout=60), judge.counts()


def test_scores_come_in_the_order_of_the_questions():
    script = lambda body, before: Reply(text="No" if " 3;" in body["messages"][0]["content"] else "Yes")
    with Scripted(script) as server:
        scores, counts = ask(server, thoughts(6))
    assert scores.dtype == np.float32 and scores[:, 0].tolist() == [1, 1, 1, 0, 1, 1]
    assert {key: counts[key] for key in ("asked", "scored", "calls", "retries", "cache_hits")} == {
        "asked": 6, "scored": 6, "calls": 6, "retries": 0, "cache_hits": 0,
    }  # fmt: skip
    assert (counts["tokens_in"], counts["tokens_out"]) == (60, 12)
    assert {arrival.path for arrival in server.arrived} == {"/v1/chat/completions"}


FAULTS = {  # a fault, the reason that is counted, and whether another attempt is made
    "rate": (Reply(429), "http_429", True),
    "rate, with seconds": (Reply(429, headers=(("retry-after", "0"),)), "http_429", True),
    "rate, with milliseconds": (Reply(429, headers=(("retry-after-ms", "30"),)), "http_429", True),
    "rate, with a date": (Reply(429, headers=(("retry-after", email.utils.formatdate(0)),)), "http_429", True),
    "rate, with nonsense": (Reply(429, headers=(("retry-after", "soon"),)), "http_429", True),
    "error": (Reply(500), "http_500", True),
    "overloaded": (Reply(503), "http_503", True),
    "request timeout": (Reply(408), "http_408", True),
    "conflict": (Reply(409), "http_409", True),
    "cut in mid-answer": (Reply(cut=True), "connection", True),
    "slower than the deadline": (Reply(seconds=2.5), "timeout", True),
    "not JSON": (Reply(body="<html>"), "malformed", True),
    "other JSON": (Reply(body="[1]"), "malformed", True),
    "no choices": (Reply(body='{"choices": []}'), "malformed", True),
    "text that is no text": (Reply(body='{"choices": [{"message": {"content": [1]}}]}'), "malformed", True),
    "a key twice": (Reply(body='{"choices": [{"message": {"content": "No", "content": "Yes"}}]}'), "malformed", True),
    "nothing at all": (Reply(body=""), "malformed", True),
    "deep": (Reply(body="[" * 100_000), "malformed", True),
    "empty": (Reply(text=""), "empty", True),
    "blank": (Reply(text=" \n"), "empty", True),
    "chatter": (Reply(text="Yes, of course"), "malformed", True),
    "out of tokens": (Reply(finish="length"), "cut", True),
    "wrong key": (Reply(401), "http_401", False),
    "forbidden": (Reply(403), "http_403", False),
    "not found": (Reply(404), "http_404", False),
    "bad request": (Reply(400), "http_400", False),
}


def patience(fault):
    return dict(attempt_seconds=1.0) if fault == "slower than the deadline" else {}


@pytest.mark.parametrize("fault", [name for name, (_, _, again) in FAULTS.items() if again])
def test_what_fails_once_is_asked_once_more(fault):
    script = lambda body, before: FAULTS[fault][0] if before == 0 else Reply()
    with Scripted(script) as server:
        scores, counts = ask(server, thoughts(3), **patience(fault))
    assert scores[:, 0].tolist() == [1, 1, 1]
    assert [server.times(f" {i};") for i in range(3)] == [2, 2, 2]
    assert (counts["calls"], counts["retries"], counts["scored"]) == (6, 3, 3)
    assert not [name for name in counts if name.startswith("failed/")]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_keeps_failing_is_nan_and_counted_by_reason(fault):
    reply, reason, again = FAULTS[fault]
    script = lambda body, before: reply if " 1;" in body["messages"][0]["content"] else Reply()
    with Scripted(script) as server:
        scores, counts = ask(server, thoughts(3), attempts=2, **patience(fault))
    np.testing.assert_array_equal(scores[:, 0], [1, np.nan, 1])
    assert server.times(" 1;") == (2 if again else 1)
    assert {name: n for name, n in counts.items() if name.startswith("failed/")} == {f"failed/{reason}": 1}
    assert counts["asked"] == 3 == counts["scored"] + 1


@pytest.mark.parametrize(
    "text, reason",
    [
        (FIVE.replace("R4: 1", "R4: 0"), "range"),
        (FIVE.replace("R4: 1", "R4: 6"), "range"),
        (FIVE.replace("R2: 5", "R2: -1"), "range"),
        (FIVE + "\nR4: 1", "malformed"),
        (FIVE.replace("R3: 4", "R2: 5"), "malformed"),
        (FIVE.replace("\nR4: 1", ""), "malformed"),
    ],
)
def test_levels_out_of_range_twice_or_missing_are_never_a_score(text, reason):
    with Scripted(lambda body, before: Reply(text=text if before == 0 else FIVE)) as server:
        scores, _ = ask(server, [prompts.clinical("a", "b")])
        assert scores.tolist() == [[1, 0.75, 0.5, 0.25, 0]] and len(server.arrived) == 2
    with Scripted(lambda body, before: Reply(text=text)) as server:
        scores, counts = ask(server, [prompts.clinical("a", "b")])
        assert np.isnan(scores).all() and scores.shape == (1, 5)
        assert counts[f"failed/{reason}"] == 1 and counts["calls"] == 3


def test_typed_questions_are_answered_with_probabilities():
    script = lambda body, before: Reply(text=ONLY_TYPED % (0.25 if before else 1.5))
    with Scripted(script) as server:
        question = prompts.coherent("a", "b", mode="typed")
        scores, counts = ask(server, [question], mode="typed")
    assert scores.tolist() == [[0.25]] and (counts["calls"], counts["tokens_in"]) == (2, 20)
    assert [arrival.path for arrival in server.arrived] == ["/v1/systemone"] * 2


def test_retry_after_is_obeyed_by_all_calls():
    """Of two calls in flight one is told to wait a second; what would follow the other waits as well."""
    wait = Reply(429, headers=(("retry-after", "1"),))
    script = lambda body, before: wait if len(server.arrived) == 1 else Reply(seconds=0.2)
    with Scripted(script) as server:
        scores, counts = ask(server, thoughts(6), concurrency=2)
    first, _, *others = [arrival.time for arrival in server.arrived]
    assert not np.isnan(scores).any() and counts["calls"] == 7
    assert min(others) - first > 0.95


def test_retry_after_in_all_its_forms(monkeypatch):
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    for headers, seconds in [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": email.utils.formatdate(now + 40, usegmt=True)}, 40),
        ({"retry-after": email.utils.formatdate(now - 40, usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ]:
        assert client._retry_after(headers) == seconds, headers


def test_a_rest_beyond_the_deadline_is_not_waited_for():
    with Scripted(lambda body, before: Reply(429, headers=(("retry-after", "3600"),))) as server:
        scores, counts = ask(server, thoughts(3), concurrency=1, total_seconds=30.0, attempt_seconds=5.0)
    assert np.isnan(scores).all() and len(server.arrived) == 1
    assert counts["failed/http_429"] == 1 and counts["failed/deadline"] == 2


def test_what_comes_after_the_deadline_is_nan_but_not_lost():
    """One call at a time: the second begins before the deadline and ends after it."""
    late = threading.Event()
    script = lambda body, before: Reply(seconds=1.0) if len(server.arrived) == 1 else Reply(seconds=0 * late.wait(30))
    with Scripted(script) as server:
        with Judge(options(server, total_seconds=2.0, attempt_seconds=2.0, concurrency=1)) as judge:
            first = judge.submit(thoughts(2)).result(timeout=60)
            assert np.nansum(first) == 1 and np.isnan(first).sum() == 1 == judge.counts()["failed/deadline"]
            again = judge.submit(thoughts(2))  # joins the call that is still in flight
            late.set()
            assert again.result(timeout=60)[:, 0].tolist() == [1, 1] and len(server.arrived) == 2


def test_one_question_is_one_call_however_often_it_is_asked(tmp_path):
    cache = tmp_path / "cache" / "judge.sqlite"
    with Scripted(lambda body, before: Reply(seconds=0.1)) as server:
        with Judge(options(server, cache=cache)) as judge:
            futures = [judge.submit([*thoughts(5), *thoughts(5)]) for _ in range(3)]
            assert all((future.result(timeout=60) == 1).all() for future in futures)
            assert len(server.arrived) == 5
            assert (judge.counts()["calls"], judge.counts()["cache_hits"]) == (5, 25)
        scores, counts = ask(server, thoughts(6), cache=cache)  # another process, another day
        assert (scores == 1).all() and (counts["calls"], counts["cache_hits"]) == (1, 5)
        for changes in (dict(temperature=0.5), dict(model="other"), dict(max_tokens=9)):
            assert ask(server, thoughts(1), cache=cache, **changes)[1]["calls"] == 1  # may be answered differently


def test_a_failure_is_not_kept(tmp_path):
    with Scripted(lambda body, before: Reply(text="?") if before == 0 else Reply()) as server:
        for expected in (np.nan, 1):
            scores, _ = ask(server, thoughts(1), cache=tmp_path / "judge.sqlite", attempts=1)
            np.testing.assert_array_equal(scores, [[expected]])


def test_all_that_is_billed_is_counted_even_if_it_cannot_be_read(tmp_path):
    with Scripted(lambda body, before: Reply(text="?")) as server:
        for runs in (1, 2):
            with Judge(options(server, cache=tmp_path / "judge.sqlite", price_in=5.0, price_out=20.0)) as judge:
                judge.submit(thoughts(1)).result(timeout=60)
                counts = judge.counts()
                assert (counts["calls"], counts["tokens_in"], counts["tokens_out"]) == (3, 30, 6)
                assert counts["cost"] == pytest.approx((30 * 5 + 6 * 20) / 1e6)
                assert judge.billed() == (3 * runs, 30 * runs, 6 * runs)
    with Scripted(lambda body, before: Reply(body='{"choices": [{"message": {"content": "Yes"}}]}')) as server:
        scores, counts = ask(server, thoughts(1))
        assert scores.tolist() == [[1]] and counts["unmetered"] == 1


def test_no_more_calls_in_flight_than_allowed():
    with Scripted(lambda body, before: Reply(seconds=0.05)) as server:
        ask(server, thoughts(12), concurrency=3)
    assert server.most == 3 and len(server.arrived) == 12


def test_calls_begin_as_the_limits_of_a_minute_allow():
    for changes, apart in [(dict(requests_per_minute=600.0), 0.1), (dict(tokens_per_minute=7_200.0), 0.1)]:
        with Scripted(lambda body, before: Reply()) as server:  # each answer has 12 tokens, whatever was guessed
            begun = time.monotonic()
            ask(server, thoughts(5), concurrency=1, **changes)
        assert server.arrived[-1].time - begun >= 4 * apart, changes


def test_a_turn_that_comes_too_late_is_not_waited_for():
    with Scripted(lambda body, before: Reply()) as server:
        slow = dict(requests_per_minute=1.0, total_seconds=5.0, attempt_seconds=5.0)
        scores, counts = ask(server, thoughts(3), **slow)
    assert np.isnan(scores).sum() == 2 == counts["failed/deadline"] and len(server.arrived) == 1


def test_closing_ends_what_is_in_flight():
    held = threading.Event()
    with Scripted(lambda body, before: Reply() if held.wait(30) else Reply()) as server:
        judge = Judge(options(server))
        future = judge.submit(thoughts(3))
        server.wait_for(3)
        judge.close()
        judge.close()
        held.set()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=60)
    with pytest.raises(RuntimeError):
        judge.submit(thoughts(1))


def test_nothing_to_ask_and_questions_that_do_not_fit():
    with Scripted(lambda body, before: Reply()) as server, Judge(options(server)) as judge:
        assert judge.submit([]).result(timeout=60).shape == (0, 0)
        with pytest.raises(ValueError, match=r"got questions with \[1, 5\] dimensions; wanted the same"):
            judge.submit([*thoughts(1), prompts.clinical("a", "b")])


def test_an_unexpected_error_is_raised_and_not_a_score(monkeypatch):
    with Scripted(lambda body, before: Reply()) as server, Judge(options(server)) as judge:
        monkeypatch.setattr(client.Cache, "store", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judge.submit(thoughts(1)).result(timeout=60)


# Before a run begins.


@pytest.mark.parametrize(
    "reply, words",
    [
        (Reply(404), r"got judge.model='there' at http.*\(http_404"),
        (Reply(401), r"refuses the key \(http_401; key: none of judge.key_variable\); wanted a valid key"),
        (Reply(400, text="no such field"), "http_400 .*no such field"),
        (Reply(500), "http_500"),
        (Reply(body="<html>"), "malformed"),
    ],
)
def test_a_judge_that_cannot_be_used_is_refused_at_once(reply, words):
    with Scripted(lambda body, before: reply) as server, Judge(options(server, model="there")) as judge:
        if reply.status == 404:
            words = "http_404"
        with pytest.raises(ValueError, match=words) as error:
            judge.check()
        assert "\n" not in str(error.value)


def test_a_model_that_is_not_there_is_refused_with_those_that_are():
    with Scripted(lambda body, before: Reply(404)) as server, Judge(options(server, model="absent")) as judge:
        with pytest.raises(ValueError, match="got judge.model='absent' .* wanted one of its models: there"):
            judge.check()


def test_an_endpoint_that_is_not_there_is_refused():
    with Scripted(lambda body, before: Reply()) as server:
        gone = options(server)
    with Judge(gone) as judge, pytest.raises(ValueError, match="where nobody answers .*wanted an endpoint"):
        judge.check()


@pytest.mark.parametrize("reply", [Reply(), Reply(text="I am"), Reply(429), Reply(finish="length"), Reply(text="")])
def test_a_judge_that_answers_is_there(reply):
    with Scripted(lambda body, before: reply) as server, Judge(options(server)) as judge:
        judge.check()
        assert len(server.arrived) == 1


def test_the_key_is_read_from_the_environment_and_no_other_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of-somebody-else")
    for name in ("ORG_ID", "PROJECT_ID", "ADMIN_KEY"):
        monkeypatch.setenv(f"OPENAI_{name}", "of-somebody-else")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gate: of-somebody-else\nauthorization: Bearer of-somebody-else")
    monkeypatch.setenv("CLINIC_KEY", " ours\n")
    with Scripted(lambda body, before: Reply()) as server:
        ask(server, thoughts(1))
        ask(server, thoughts(1), key_variable="CLINIC_KEY")
    assert [arrival.headers["authorization"] for arrival in server.arrived] == ["Bearer none", "Bearer ours"]
    assert "somebody" not in str([arrival.headers for arrival in server.arrived])
    monkeypatch.setenv("CLINIC_KEY", "")
    with pytest.raises(ValueError, match="got judge.key_variable=CLINIC_KEY, which is not set or empty; wanted"):
        Judge(options(server, key_variable="CLINIC_KEY"))
    for key in ("sk-secret\nsk-two", "sk-secret two", "\u201csk-secret\u201d"):
        monkeypatch.setenv("CLINIC_KEY", key)
        with pytest.raises(ValueError, match="CLINIC_KEY with blanks, several lines or letters that no key") as told:
            Judge(options(server, key_variable="CLINIC_KEY"))
        assert "secret" not in str(told.value)


@pytest.mark.parametrize("count", ["1e999", f"{2**70}", "-1", "null"])
def test_a_count_of_tokens_that_is_none_costs_no_score(count):
    said = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    body = json.dumps(said).replace('"usage": {', f'"usage": {{"prompt_tokens": {count}, ')
    with Scripted(lambda asked, before: Reply(body=body)) as server:
        scores, counts = ask(server, thoughts(1))
    assert scores.tolist() == [[1.0]] and counts["unmetered"] == 1


def test_no_model_and_no_library(monkeypatch):
    with pytest.raises(ValueError, match="got judge.model=''; wanted the name"):
        Judge(Options())
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'fairgrpo_jax\[judge\]'"):
        Judge(Options(model="m"))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(url="localhost:8000"), "judge.url='localhost:8000'; wanted an address such as"),
        (dict(url="http://user:secret@host/v1"), "judge.url with a password or a query"),
        (dict(key_variable="sk-secret"), "judge.key_variable that is no name"),
        (dict(temperature=-1.0), "judge.temperature=-1.0; wanted a number >= 0"),
        (dict(max_tokens=0), "judge.max_tokens=0; wanted at least 1"),
        (dict(concurrency=0), "judge.concurrency=0"),
        (dict(attempts=0), "judge.attempts=0"),
        (dict(requests_per_minute=0.0), "judge.requests_per_minute=0.0; wanted a positive number"),
        (dict(tokens_per_minute=float("nan")), "judge.tokens_per_minute=nan; wanted finite"),
        (dict(attempt_seconds=700.0), "judge.attempt_seconds=700.0, judge.total_seconds=600.0; wanted 0 <"),
        (dict(price_out=-1.0), "judge.price_out=-1.0; wanted a price >= 0"),
    ],
)
def test_options_are_checked(changes, words):
    with pytest.raises(ValueError, match=f"got {words}") as error:
        Options(**changes)
    assert "secret" not in str(error.value)
