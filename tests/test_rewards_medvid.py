"""Answers to MedVidBench, task by task, in both readings: every quirk of the board by hand, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fairgrpo_jax.rewards.medvid import boxes, events, labels, ratings, spans
from fairgrpo_jax.rewards.medvid.events import Event
from fairgrpo_jax.rewards.similarity import words_f1


# ---- TAG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, board, strict",
    [
        ("22.0-78.0, 89.0-94.0 seconds.", [(22, 78), (89, 94)], [(22, 78), (89, 94)]),
        ("66.0-66.0 seconds.", [(66, 66)], [(66, 66)]),
        ("78.0-22.0 seconds.", [(78, 22)], []),  # reversed
        ("In 2024-05 it is at 1 - 2 s", [(2024, 5), (1, 2)], []),  # any dash
        ("From 12.125s to 117 seconds", [(12.12, 117)], []),
        ("00:00:00 to 00:00:08", [(0, 0), (0, 8)], []),  # both forms
        ("1 to 2, not 3-4", [(3, 4)], []),  # the second form only without the first
        ("", [], []),
        ("never", [], []),
        ("1.0-2.0, 3.0-4.0", [(1, 2), (3, 4)], [(1, 2), (3, 4)]),
    ],
)
def test_spans(text, board, strict):
    assert spans.parse(text, leaderboard=True) == board and spans.parse(text) == strict


@pytest.mark.parametrize(
    "said, wanted, threshold, board, strict",
    [
        ([(0, 10)], [(0, 10)], 0.5, 1, 1),
        ([(0, 10)], [(0, 10), (20, 30)], 0.3, 1, 1 / 2),  # a missed span
        ([(0, 10), (20, 30)], [(0, 10)], 0.3, 1, 1 / 2),  # one too many
        ([(0, 4)], [(0, 10)], 0.5, 0, 0),  # below the threshold
        ([(0, 4)], [(0, 10)], 0.3, 0.4, 0.4),
        ([(0, 5)], [(0, 10)], 0.5, 0.5, 0.5),  # at the threshold
        ([(66, 66)], [(66, 66)], 0.3, 0, 1),  # a point
        ([(60, 70)], [(66, 66)], 0.0, 0, 0),
        ([(10, 0)], [(0, 10)], 0.0, 0, 0),
        ([], [(0, 10)], 0.0, 0, 0),
        ([(0, 10)], [], 0.0, 0, 0),
        # wanted spans choose in their order: the first takes the better one of both
        ([(0, 10), (0, 8)], [(0, 9), (0, 10)], 0.0, (0.9 + 0.8) / 2, (8 / 9 + 1) / 2),
    ],
)
def test_span_scores(said, wanted, threshold, board, strict):
    assert spans.score(said, wanted, threshold=threshold, leaderboard=True) == pytest.approx(board)
    assert spans.score(said, wanted, threshold=threshold) == pytest.approx(strict)


SPAN = st.tuples(st.integers(0, 99), st.integers(1, 50)).map(lambda x: (float(x[0]), float(x[0] + x[1])))
SPANS = st.lists(SPAN, min_size=1, max_size=4, unique=True)


@given(SPAN, SPAN, st.integers(0, 100))
def test_iou_of_spans(one, other, shift):
    value = spans.iou(one, other)
    assert value == spans.iou(other, one) and 0 <= value <= 1 and spans.iou(one, one) == 1
    first, second = [(a + shift, b + shift) for a, b in (one, other)]
    assert spans.iou(first, second) == pytest.approx(value)
    assert (
        events.iou(Event(one[0], one[1], ""), Event(other[0], other[1], "")) >= value
    )  # whose union leaves out the gap


@settings(max_examples=50)
@given(SPANS, SPANS, st.sampled_from([0.0, 0.3, 0.5]), st.integers(0, 100))
def test_scores_of_spans(said, wanted, threshold, shift):
    for leaderboard in (False, True):
        value = spans.score(said, wanted, threshold=threshold, leaderboard=leaderboard)
        assert 0 <= value <= 1
        first, second = [[(a + shift, b + shift) for a, b in part] for part in (said, wanted)]
        again = spans.score(first, second, threshold=threshold, leaderboard=leaderboard)
        assert again == pytest.approx(value)
    assert spans.score(wanted, wanted) == 1
    assert spans.score(said, wanted) == pytest.approx(spans.score(wanted, said))
    parts = [spans.score(wanted[:n], wanted, threshold=threshold) for n in range(len(wanted) + 1)]
    assert parts == sorted(parts)  # a longer correct answer never scores lower


# ---- STG -------------------------------------------------------------------------------------------------------------

A, B = (0.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0)  # of IoU 1/3


@pytest.mark.parametrize(
    "text, times, board, strict",
    [
        ("1.0 seconds: [0, 0, 4, 4] 5.0 seconds: [2, 0, 6, 4]", (), {"1.0": A, "5.0": B}, {"1.0": A, "5.0": B}),
        ("1 seconds: [0, 0, 4, 4]", (), {"1.0": A}, {"1.0": A}),
        ("1.0s: [0, 0, 4, 4] 2.0seconds: [0, 0, 4, 4]", (), {}, {}),  # no blank before the word
        ("1.0 seconds: [[0, 0, 4, 4]]", (), {"1.0": A}, {"1.0": A}),
        ("1.0 seconds: [0, 0, 4, 4] 2.0 seconds: [1, 2, 3]", (), {"1.0": A, "2.0": A}, {"1.0": A}),
        ("1.0 seconds: [1, x, 3, 4] 2.0 seconds: [0, 0, 4, 4]", (), {"2.0": A}, {"2.0": A}),
        ("1.0 seconds: [4, 4, 0, 0]", (), {"1.0": (4, 4, 0, 0)}, {}),
        ("[[0, 0, 4, 4]] then [[2, 0, 6, 4]]", ("1.0", "2"), {"1.0": A, "2": B}, {}),
        ("[[0.5, 0, 4, 4]]", ("1.0",), {}, {}),  # whole numbers only
        ("", ("1.0",), {}, {}),
    ],
)
def test_boxes(text, times, board, strict):
    assert boxes.parse(text, times=times, leaderboard=True) == board and boxes.parse(text, times=times) == strict


@pytest.mark.parametrize(
    "said, wanted, board, strict",
    [
        ({"1.0": A}, {"1.0": A}, 1, 1),
        ({"1.0": A}, {"1.0": A, "2.0": A}, 1, 1 / 2),  # carried on
        ({"2.0": A}, {"1.0": A, "2.0": A}, 1 / 2, 1 / 2),  # nothing to carry
        ({"1.0": A}, {"1": A}, 1, 1),  # whole seconds as times of the reference
        ({"1.25": A}, {"1.25": A}, 0, 1),  # "1.2" is looked up
        ({"2": A}, {"2": A}, 0, 1),  # from boxes without times
        ({"1.0": B, "9.0": A}, {"1.0": A}, 1 / 3, 1 / 3),  # times that nobody asked for
        ({"1.0": (4.0, 4.0, 0.0, 0.0)}, {"1.0": A}, 0, 0),
        ({}, {"1.0": A}, 0, 0),
        ({"1.0": A}, {"1.0": ()}, math.nan, 0),  # a broken box of the reference
        ({"1.0": A}, {}, math.nan, math.nan),
    ],
)
def test_box_scores(said, wanted, board, strict):
    assert boxes.score(said, wanted, leaderboard=True) == pytest.approx(board, nan_ok=True)
    assert boxes.score(said, wanted) == pytest.approx(strict, nan_ok=True)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("1.0 seconds: [0, 0, 4, 4] 2.0 seconds: [0, 0, 4, 4]", True),
        ("1.0 seconds: [0, 0, 4, 4], 2.0 seconds: [0, 0, 4, 4].", True),
        ("1.0 seconds: [0, 0, 4, 4]", False),  # a time is missing
        ("1.0 seconds: [0, 0, 4, 4] 2.0 seconds: [4, 4, 0, 0]", False),
        ("1.0 seconds: [0, 0, 4, 4] 2.0 seconds: [0, 0, 4, 4] and more", False),
        ("", False),
    ],
)
def test_complete_boxes(text, wanted):
    assert boxes.complete(text, {"1.0": A, "2.0": A}) == wanted


BOX = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(1, 50)] * 2).map(
    lambda x: (float(x[0]), float(x[1]), float(x[0] + x[2]), float(x[1] + x[3]))
)


@given(BOX, BOX, st.integers(0, 100))
def test_iou_of_boxes(one, other, shift):
    value = boxes.iou(one, other)
    assert value == boxes.iou(other, one) and 0 <= value <= 1 and boxes.iou(one, one) == 1
    first, second = (tuple(x + shift for x in box) for box in (one, other))
    assert boxes.iou(first, second) == pytest.approx(value)


@given(st.lists(BOX, min_size=1, max_size=5))
def test_more_right_boxes_never_score_lower(track):
    wanted = {f"{n}.0": box for n, box in enumerate(track)}
    parts = [boxes.score(dict(list(wanted.items())[:n]), wanted) for n in range(len(track) + 1)]
    assert parts == sorted(parts) and parts[-1] == 1


# ---- DVC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, board, strict",
    [
        (
            "1.0-2.0 seconds: cut: A cut.\n3.0-4.0 seconds: A knot.",
            [Event(1, 2, "cut: A cut."), Event(3, 4, "A knot.")],
            [Event(1, 2, "cut: A cut."), Event(3, 4, "A knot.")],
        ),
        ("1-2 second: x", [Event(1, 2, "x")], [Event(1, 2, "x")]),
        ("1.0 - 2.0 seconds: x", [], []),  # no blanks around the dash
        ("Here: 1-2 seconds: x\ny", [Event(1, 2, "x y")], []),  # the caption goes on
        ("1-2 seconds: x 3-4 seconds: y", [Event(1, 2, "x 3-4 seconds: y")], [Event(1, 2, "x 3-4 seconds: y")]),
        ("1-2 seconds: x\n1-2 seconds: y", [Event(1, 2, "x")], [Event(1, 2, "x")]),
        ("2-1 seconds: x", [Event(2, 1, "x")], []),
        ("Time Range: 1 - 2 seconds - It is cut.", [Event(1, 2, "It is cut")], []),  # the style of others
        ("", [], []),
    ],
)
def test_events(text, board, strict):
    assert events.parse(text, leaderboard=True) == board and events.parse(text) == strict


T = [Event(0, 10, "a"), Event(20, 30, "b")]


@pytest.mark.parametrize(
    "said, wanted, fps, board, strict",
    [
        (T, T, 1.0, 1, 1),
        (T[:1], T, 1.0, 2 / 3, 2 / 3),
        ([*T, Event(40, 50, "c")], T, 1.0, 0.8, 0.8),
        ([], T, 1.0, math.nan, 0),  # skipped
        (T, [], 1.0, math.nan, math.nan),
        ([Event(0, 5, "a")], [T[0]], 1.0, 1 / 3, 2 / 3),  # IoU 0.5 is not more than 0.5
        ([Event(0, 10, "a"), Event(4, 6, "b")], [T[0]], 1.0, 4 / 15, 2 / 3),  # cut into 0-4, 4-6 and 6-10
        ([Event(0.4, 10, "a")], [T[0]], 0.1, 1, 1),  # whole frames: 0 to 1
        ([Event(0.0, 0.9, "a")], [Event(0.0, 0.9, "a")], 1.0, 0, 1),  # no frame left
        # one event over two others: the board counts both, one to one counts one
        ([Event(0, 20, "a")], [Event(0, 10, "a"), Event(10, 20, "b")], 1.0, 1 / 3, 4 / 9),
    ],
)
def test_f1(said, wanted, fps, board, strict):
    assert events.f1(said, wanted, fps=fps, leaderboard=True) == pytest.approx(board, nan_ok=True, abs=1e-6)
    assert events.f1(said, wanted, fps=fps) == pytest.approx(strict, nan_ok=True)


def test_pieces_of_events_that_overlap():
    long, short = Event(0, 10, "long"), Event(8, 12, "short")
    assert events.flatten([short, long]) == [Event(0, 8, "long"), Event(8, 10, "long"), Event(10, 12, "short")]
    assert events.flatten([Event(0, 2, "a"), Event(4, 6, "b")]) == [Event(0, 2, "a"), Event(4, 6, "b")]
    assert events.flatten([Event(0, 2, "a"), Event(0, 2, "b")])[0].caption == "a"


def test_pairs_of_captions_are_of_events_that_are_not_cut():
    said = [Event(0, 10, "x"), Event(0, 5, "y"), Event(40, 50, "z")]
    assert events.pairs(said, T, 0.5) == [("x", "a"), ("y", "a")] and events.pairs(said, T, 0.7) == [("x", "a")]


@given(SPANS)
def test_more_right_events_never_score_lower(drawn):
    wanted = [Event(span[0], span[1], "x") for span in drawn]
    parts = [events.f1(wanted[:n], wanted) for n in range(len(wanted) + 1)]
    assert parts == sorted(parts) and parts[-1] == 1


# ---- NAP, SA, CVS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, said, wanted, board, strict",
    [
        ("AVOS", "tying", "tying", 1, 1),
        ("AVOS", " tying\n", "tying", 1, 1),
        ("AVOS", "Tying", "tying", 1, 0),  # the nearest
        ("AVOS", "They begin suturing now", "suturing", 1, 0),
        ("AVOS", "", "cutting", 1, 0),  # the first of those that resemble it equally
        ("AVOS", "tying", "washing", math.nan, 0),  # not in the list
        ("AVOS", "tying", "", math.nan, math.nan),
        ("CoPESD", "hold flap with forceps", "stabilize flap with forceps", 1, 1),  # an earlier name
        ("CholecT50", "clipping-and-cutting", "clipping-and-cutting", 1, 1),
        ("EgoSurgery", "something", "incision", 1, 0),  # the only label that occurs
    ],
)
def test_labels(source, said, wanted, board, strict):
    found = labels.scores([said], [wanted], source, measure=words_f1)
    np.testing.assert_array_equal(found, [board])
    np.testing.assert_array_equal(labels.score(said, wanted, source), strict)


FULL = ", ".join(f"{name}: {n + 1}/5" for n, name in enumerate(ratings.SKILLS[:5])) + ", Quality of final product: 3/5"


@pytest.mark.parametrize(
    "text, board, strict",
    [
        (FULL, 6, 6),
        (FULL.lower(), 6, 6),
        (FULL.replace(", ", "\n"), 1, 6),  # a list by lines loses the rest
        ("novice", None, None),
        ("", None, None),
        ("The scores are Respect for tissue: 2/5", {"The scores are Respect for tissue": 2}, None),
        ("Respect for tissue: 2/5, Respect for tissue: 3/5", {"Respect for tissue": 3}, {}),
        ("Level: Respect for tissue: 2/5", {"Respect for tissue": 2}, {}),
    ],
)
def test_skills(text, board, strict):
    for wanted, found in ((board, ratings.skills(text, leaderboard=True)), (strict, ratings.skills(text))):
        if isinstance(wanted, int):
            assert found is not None and len(found) == wanted
        elif text.startswith("The scores") and wanted is None:
            assert found == {"the scores are respect for tissue": 2}  # a name that nobody asks for
        else:
            assert found == wanted
    assert ratings.score(ratings.skills(FULL), ratings.skills(FULL) or {}) == 1


@pytest.mark.parametrize(
    "text, board, strict",
    [
        ("Two structures: 2, Cystic plate: 1, Hepatocystic triangle: 0", (2, 1, 0), (2, 1, 0)),
        ("two structures: 2, the cystic plate: 1", (2, 1), (2,)),
        ("Two structures: 2\nCystic plate: 1", (2,), (2, 1)),
        ("Two structures: 2, Two structures: 1", (1,), ()),
        ("Good", (), ()),
    ],
)
def test_cvs(text, board, strict):
    assert tuple(ratings.cvs(text, leaderboard=True).values()) == board
    assert tuple(ratings.cvs(text).values()) == strict


def test_numbers_without_an_end_are_wrong_and_stop_nothing():
    """More digits than Python turns into a number, and more than a float holds."""
    many = "2" * 5000
    for board in (False, True):
        assert set(ratings.cvs(f"Two structures: {many}", leaderboard=board).values()) == {-1}
        assert set((ratings.skills(f"Time and motion: {many}/5", leaderboard=board) or {}).values()) == {-1}
        said = events.parse(f"0-{many} seconds: a", leaderboard=board)
        wanted = events.parse("0-10 seconds: a")
        assert events.f1(said, wanted, leaderboard=board) == 0
        found = spans.parse(f"0-{many} seconds.", leaderboard=board)
        assert spans.score(found, [(0.0, 10.0)], leaderboard=board) < 1e-6
    assert spans.parse("1" * 100_000) == spans.parse("1" * 100_000, leaderboard=True) == []


def test_what_is_not_rated_is_left_out_on_the_board_and_wrong_strictly():
    wanted = {"two_structures": 2, "cystic_plate": 1, "hepatocystic_triangle": 0}
    one = {"two_structures": 2}
    assert [x for x in ratings.right(one, wanted, leaderboard=True).values() if not math.isnan(x)] == [1]
    assert ratings.score(one, wanted) == pytest.approx(1 / 3) and ratings.score(None, wanted) == 0
    assert math.isnan(ratings.score(one, {}))
    parts = [ratings.score(dict(list(wanted.items())[:n]), wanted) for n in range(4)]
    assert parts == sorted(parts) and parts[-1] == 1
