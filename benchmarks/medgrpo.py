"""An open judge in the reward of captions, and NAP and CVS in the loop: ``python benchmarks/medgrpo.py``.

The policy is a small network, no language model: of the embedded films (``medvid_toy``), reduced to the mean colours of
4 x 4 fields in four pairs of frames, it sees enough to answer after seconds. It chooses among all answers that a film
can have. All that judges these answers is the library's: the components of the reward, as texts, against the
records; a judge on our own devices, and one behind an endpoint; percentiles, composition and advantages. In a seed
every way starts from the same supervised weights and sees the same films and random keys:

    words     TAG, VS and RC are reinforced, captions by the F1 of their words: the way with which others compare
    noise     captions by half of that and half a judge of random weights, new in every seed (``judge.path``)
    knowing   captions by half of that and half a judge behind an endpoint, which is a rule and knows the order of words
    labels    as words, and NAP and CVS are reinforced too

A judge worth its name lies between noise and knowing: the one shows what a judge costs that says nothing, the other
what one could bring that is never wrong. Words alone cannot tell "A cut, a tie." from "A tie, a cut.".

With ``--register DIR`` seeds, options and comparisons are written down before the first run, and a later change is
refused.
"""

import argparse
import csv
import http.server
import io
import itertools
import json
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairgrpo_jax import advantages, config as options, files, normalization, rewards
from fairgrpo_jax.config import Component, Judge
from fairgrpo_jax.data import media
from fairgrpo_jax.data.datasets import medvid_toy
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.models.tiny import judge as tiny_judge
from fairgrpo_jax.rewards import builtin, judge_prompts, local_judge
from fairgrpo_jax.study import compare, registration


TASKS = ("tal", "video_summary", "region_caption", "next_action", "cvs_assessment")
CAPTIONS = ("video_summary", "region_caption")
LOOP = TASKS[:3]
ROOMS = tuple(medvid_toy.ROOMS)
WAYS = ("words", "noise", "knowing", "labels")
RAW = {"tal": "tag", "next_action": "nap", "cvs_assessment": "cvs"}  # the component of a task
HIDDEN, PROMPTS, ROLLOUTS = 64, 64, 8
FIGURES = {
    "captions": "captions right",
    "summaries": "VS right",
    "regions": "RC right",
    "words": "words of captions",
    "tag": "TAG",
    "nap": "NAP",
    "cvs": "CVS",
    "labels": "NAP and CVS",
    "others": "TAG, VS and RC",
}
# What is tested: a figure of one way is higher than that of another, less a margin.
PRIMARIES = (
    "captions: knowing > words",
    "captions: words > noise",
    "labels: labels > words",
    "others: labels > words - 0.02",
)
TEST = "paired over seeds, two-sided exact sign-flip, Holm over the primaries, level 0.05"


class Films(NamedTuple):
    """Films: what is seen of each, the room, and of each task the index of the right answer among the candidates."""

    seen: jax.Array  # (N, 192)
    room: jax.Array  # (N,) int32
    right: jax.Array  # (N, tasks) int32


class Tables(NamedTuple):
    """Scores of every candidate (last axis) against every right answer, (tasks, A, A); 0 where there is none."""

    raw: np.ndarray  # words of captions, and the strict figures of the other tasks
    judged: np.ndarray  # of captions; 0 without a judge


def level(candidate: str, reference: str) -> int:
    """From 1 to 5: by the words that both have in the same order, 5 only if all are the same.

    >>> level("A cut, a tie.", "A cut, a tie."), level("A tie, a cut.", "A cut, a tie.")
    (5, 3)
    """
    a, b = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    longest = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            longest[i + 1, j + 1] = longest[i, j] + 1 if left == right else max(longest[i, j + 1], longest[i + 1, j])
    return 1 + int(4 * 2 * longest[-1, -1] / max(len(a) + len(b), 1))


def answer(question: str) -> str:
    """The five lines that ``judge_prompts.clinical`` asks for."""
    texts = {}
    for name in ("reference", "candidate"):
        found = re.search(rf"^(\S+) {name} begins\n(.*?)\n\1 {name} ends$", question, re.DOTALL | re.MULTILINE)
        texts[name] = found[2] if found else ""
    return "\n".join(f"{code}: {level(**texts)}" for code in ("R2", "R3", "R8", "R5", "R4"))


@contextmanager
def served() -> Iterator[str]:
    """The address of a server on this machine that grades by ``level``, in OpenAI's form."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            message = {"role": "assistant", "content": answer(body["messages"][-1]["content"])}
            self._send({
                "id": "x",
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            })  # fmt: skip

        def do_GET(self):
            self._send({"object": "list", "data": [{"id": "rule", "object": "model"}]})

        def _send(self, told: dict[str, Any]) -> None:
            data = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def candidates() -> dict[str, list[str]]:
    """All answers that a film can have, by task."""
    steps = [found for found in itertools.product(("cut", "tie", ""), repeat=4) if any(found)]
    joined = [", a ".join(step for step, _ in itertools.groupby(found) if step) for found in steps]
    spans = []
    for found in itertools.product((False, True), repeat=4):
        runs = [[place for place, _ in run] for on, run in itertools.groupby(enumerate(found), lambda x: x[1]) if on]
        spans.append(", ".join(f"{2.0 * run[0]}-{2.0 * run[-1] + 2}" for run in runs) + " seconds.")
    marks = itertools.product(range(3), repeat=3)
    return {
        "tal": spans[1:],
        "video_summary": sorted({f"A {found}." for found in joined}),
        "region_caption": ["A hook at the left.", "A hook at the right."],
        "next_action": ["cutting", "tying", "suturing"],
        "cvs_assessment": [
            ", ".join(f"{name}: {mark}" for name, mark in zip(medvid_toy.NAMES, found, strict=True)) for found in marks
        ],
    }


ANSWERS = candidates()
MOST = max(map(len, ANSWERS.values()))


def films(split: Any, count: int, folder: pathlib.Path) -> tuple[Films, list[Record]]:
    """The films of a split, written as mp4 and decoded, and the records of all tasks."""
    records = [*medvid_toy.load(split, clips=count, tasks=TASKS, folder=folder)]
    by_film = [records[len(TASKS) * film : len(TASKS) * (film + 1)] for film in range(count)]
    seen = []
    for own in by_film:
        frames = media.decode_clip(next(r for r in own if r.extra["task"] == "tal").media[0]).frames
        pixels = np.stack([np.asarray(frame, np.float32) for frame in frames]) / 255
        seen.append(pixels.reshape(4, 2, 4, medvid_toy.CELL, 4, medvid_toy.CELL, 3).mean((1, 3, 5)).ravel())
    find = {record.uid: ANSWERS[record.extra["task"]].index(record.answer) for record in records}
    right = [[find[r.uid] for task in TASKS for r in own if r.extra["task"] == task] for own in by_film]
    room = [ROOMS.index(own[0].extra["source"]) for own in by_film]
    x = np.stack(seen)
    return Films(jnp.asarray((x - 0.3) / 0.2), jnp.array(room), jnp.array(right)), records


def tables(records: Sequence[Record], judge: Any = None) -> Tables:
    """What the library's components give every candidate for every right answer that occurs."""
    raw, judged = np.zeros((2, len(TASKS), MOST, MOST), np.float32)
    tools = builtin.Tools(options.Reward(), judge=judge)
    for place, task in enumerate(TASKS):
        of_answer = {record.answer: record for record in records if record.extra["task"] == task}
        its, texts = [*of_answer.values()], ANSWERS[task]
        rows = [texts.index(record.answer) for record in its]
        shape = (len(its), len(texts))
        answers = rewards.Answers([texts] * len(its), its, np.ones(shape, int), np.ones(shape, bool))
        component = rewards.BUILTIN[RAW.get(task, "similarity")](tools)
        raw[place, rows, : len(texts)] = np.asarray(component(answers))
        if judge is not None and task in CAPTIONS:
            found: Any = rewards.BUILTIN["judge"](tools)(answers)
            judged[place, rows, : len(texts)] = found.result().scores
    return Tables(raw, judged)


# ---- the policy ------------------------------------------------------------------------------------------------------

OPEN = np.array([[place < len(ANSWERS[task]) for place in range(MOST)] for task in TASKS])  # which candidates there are


def begin(key: jax.Array) -> dict[str, jax.Array]:
    """Random weights of the network."""
    keys, inputs = jax.random.split(key, 3), 4 * 16 * 3 + len(TASKS)
    return {
        "a": jax.random.normal(keys[0], (inputs, HIDDEN)) / inputs**0.5,
        "b": jax.random.normal(keys[1], (HIDDEN, HIDDEN)) / HIDDEN**0.5,
        "c": jax.random.normal(keys[2], (len(TASKS), HIDDEN, MOST)) / HIDDEN**0.5,
    }


def log_chances(params: dict[str, jax.Array], seen: jax.Array, task: jax.Array) -> jax.Array:
    """(P, A): of every candidate to a question about each film."""
    inputs = jnp.c_[seen, jax.nn.one_hot(task, len(TASKS))]
    hidden = jnp.tanh(jnp.tanh(inputs @ params["a"]) @ params["b"])
    logits = jnp.einsum("ph,pha->pa", hidden, params["c"][task])
    return jax.nn.log_softmax(jnp.where(jnp.array(OPEN)[task], logits, -1e9))


def asked(key: jax.Array, known: Films, tasks: Sequence[str], count: int) -> tuple[jax.Array, jax.Array]:
    """``count`` films and a task for each."""
    film_key, task_key = jax.random.split(key)
    film = jax.random.randint(film_key, (count,), 0, len(known.room))
    places = jnp.array([TASKS.index(task) for task in tasks])
    task = places[jax.random.randint(task_key, (count,), 0, len(places))]
    return film, task


def supervised(params: Any, key: jax.Array, known: Films, steps: int) -> Any:
    """The policy after ``steps`` of learning the right answers of all tasks."""
    optimizer = optax.adam(1e-3)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        film, task = asked(key, known, TASKS, 2 * PROMPTS)

        def loss(params: Any) -> jax.Array:
            chances = log_chances(params, known.seen[film], task)
            return -jnp.take_along_axis(chances, known.right[film, task][:, None], axis=1).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params


def scored(made: Tables, right: jax.Array, task: jax.Array, chosen: jax.Array) -> jax.Array:
    """(P, G, 4): what the components give chosen candidates, in the order of :func:`parts`."""
    raw, judged = (jnp.asarray(table)[task[:, None], right[:, None], chosen] for table in made)
    return jnp.stack([raw, raw, judged, raw], axis=-1)


def parts(way: str) -> list[Component]:
    """The components of a way; those of the other four tasks are as in the presets."""
    share = 0.5 if way in ("noise", "knowing") else 1.0
    return [
        Component("tag", normalised=True),
        Component("similarity", weight=share, normalised=True),
        Component("judge", weight=0.5, normalised=True),
        Component("labels"),
    ]


def applies(way: str) -> np.ndarray:
    """(tasks, 4): which components a task has."""
    caption = np.array([task in CAPTIONS for task in TASKS])
    tag = np.array([task == "tal" for task in TASKS])
    return np.stack([tag, caption, caption & (way in ("noise", "knowing")), ~tag & ~caption], axis=1)


def percentiles(params: Any, key: jax.Array, known: Films, made: Tables) -> jax.Array:
    """(3, rooms, tasks, 4): quartiles of the scores of the supervised policy's sampled answers to training films."""
    found = []
    for place in range(len(TASKS)):
        task = jnp.full(len(known.room), place)
        chances = log_chances(params, known.seen, task)
        chosen = jax.random.categorical(jax.random.fold_in(key, place), chances)[:, None]
        scores = scored(made, known.right[:, place], task, chosen)[:, 0]
        of_room = [jnp.where((known.room == room)[:, None], scores, jnp.nan) for room in range(len(ROOMS))]
        levels = jnp.array(normalization.QUARTILES)
        found.append(jnp.stack([jnp.nanquantile(own, levels, axis=0) for own in of_room], axis=1))
    return jnp.stack(found, axis=2)


def reinforced(params: Any, key: jax.Array, known: Films, made: Tables, way: str, steps: int, rate: float) -> Any:
    """The policy after ``steps`` of GRPO, each with new answers."""
    optimizer, fixed = optax.adam(rate), percentiles(params, jax.random.fold_in(key, 1), known, made)
    tasks, its, where = TASKS if way == "labels" else LOOP, parts(way), jnp.array(applies(way))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        ask_key, answer_key = jax.random.split(key)
        film, task = asked(ask_key, known, tasks, PROMPTS)
        before = log_chances(params, known.seen[film], task)
        chosen = jax.random.categorical(answer_key, before[:, None], shape=(PROMPTS, ROLLOUTS))
        scores = scored(made, known.right[film, task], task, chosen)
        wide = [level[known.room[film], task] for level in fixed]
        values = advantages.grpo(rewards.compose(scores, its, wide, applies=where[task]))

        def loss(params: Any) -> jax.Array:
            chances = log_chances(params, known.seen[film], task)
            return -jnp.mean(values * jnp.take_along_axis(chances, chosen, axis=1))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[0][0]


def held_out(params: Any, known: Films, raw: np.ndarray) -> dict[str, Any]:
    """``FIGURES`` of sampled answers to held-out films: exact expectations."""
    right, score = {}, {}
    for place, task in enumerate(TASKS):
        chances = jnp.exp(log_chances(params, known.seen, jnp.full(len(known.room), place)))
        wanted = known.right[:, place]
        right[task] = jnp.take_along_axis(chances, wanted[:, None], axis=1).mean()
        score[task] = (chances * jnp.asarray(raw)[place, wanted]).sum(1).mean()
    summary, region = (right[task] for task in CAPTIONS)
    tag, nap, cvs = (score[task] for task in RAW)
    return {
        "captions": (summary + region) / 2,
        "summaries": summary,
        "regions": region,
        "words": sum(score[task] for task in CAPTIONS) / 2,
        "tag": tag,
        "nap": nap,
        "cvs": cvs,
        "labels": (nap + cvs) / 2,
        "others": (tag + summary + region) / 3,
    }


# ---- all of it -------------------------------------------------------------------------------------------------------


def judges(seeds: Sequence[int], records: Sequence[Record], folder: pathlib.Path) -> dict[str, Any]:
    """The tables of each way, those of noise one for each seed."""
    plain = tables(records)
    found: dict[str, Any] = {"words": plain, "labels": plain}
    with served() as url, rewards.Judge(Judge(url=url, model="rule")) as judge:
        found["knowing"] = tables(records, judge)
        print(f"knowing: {judge.counts()}", flush=True)
    words = sorted({*tiny_judge.WORDS, *judge_prompts.words()})
    noise = []
    for seed in seeds:
        place = tiny_judge.write(folder / f"judge-{seed}", words=words, num_layers=1, seed=seed)
        with local_judge.LocalJudge(Judge(path=place, mode="typed")) as judge:
            noise.append(tables(records, judge))
        print(f"noise: the judge of seed {seed}", flush=True)
    found["noise"] = Tables(plain.raw, np.stack([own.judged for own in noise]))
    return found


def measure(chosen: argparse.Namespace) -> dict[tuple[str, int], dict[str, float]]:
    """Figures by way and seed; those of the supervised policy under an empty name."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        train, seen = films("train", chosen.films, folder)
        test, further = films("test", chosen.films, folder)
        print(f"{2 * chosen.films} films", flush=True)
        made = judges(chosen.seeds, [*seen, *further], folder)
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(jnp.array(chosen.seeds))
    start = jax.jit(jax.vmap(lambda key: supervised(begin(key[0]), key[1], train, chosen.warmup)))(keys)
    judge_figures = jax.jit(jax.vmap(lambda params: held_out(params, test, made["words"].raw)))
    found: dict[tuple[str, int], dict[str, float]] = {}

    def note(way: str, params: Any) -> None:
        values = jax.device_get(judge_figures(params))
        for place, seed in enumerate(chosen.seeds):
            found[way, seed] = {name: float(values[name][place]) for name in FIGURES}

    note("", start)
    for way in WAYS:
        axes = Tables(None, 0 if way == "noise" else None)  # pyright: ignore[reportArgumentType]
        run = lambda params, key, own, way=way: reinforced(params, key[2], train, own, way, chosen.steps, chosen.rate)
        note(way, jax.jit(jax.vmap(run, in_axes=(0, 0, axes)))(start, keys, made[way]))
        print(way, flush=True)
    return found


def table(found: dict[tuple[str, int], dict[str, float]], seeds: Sequence[int]) -> str:
    """Means ± deviations over seeds, the tests, and all paired differences from the first way."""
    column = lambda way, figure: np.array([found[way, seed][figure] for seed in seeds])
    shown = lambda values: f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
    lines = [f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    for way in ("", *WAYS):
        cells = [shown(column(way, figure)) for figure in FIGURES]
        lines.append(f"| {way or 'after the supervised stage'} | {' | '.join(cells)} |")
    primaries = [registration.primary(text, WAYS, [*FIGURES]) for text in PRIMARIES]
    pairs = [compare.paired(*(column(way, p.figure) for way in (p.better, p.than)), margin=p.margin) for p in primaries]
    lines += ["", "| comparison | difference [95 %] | seeds | p | adjusted | holds |", "|---" * 6 + "|"]
    for primary, pair, p in zip(primaries, pairs, compare.holm([pair.p for pair in pairs]), strict=True):
        holds = "yes" if p < 0.05 and pair.mean > 0 else "no"
        lines.append(
            f"| {primary.text} | {_interval(pair)} | {pair.better} of {pair.n} | {pair.p:.4f} | {p:.4f} | {holds} |"
        )
    lines += ["", f"| from {WAYS[0]} | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    for way in ("", *WAYS[1:]):
        cells = [_interval(compare.paired(column(way, figure), column(WAYS[0], figure))) for figure in FIGURES]
        lines.append(f"| {way or 'after the supervised stage'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(pair: compare.Paired) -> str:
    return f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"


def main() -> None:
    """Runs all ways, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(601, 609)])
    parser.add_argument("--films", type=int, default=512, help="of training, and as many held out (default 512)")
    parser.add_argument("--warmup", type=int, default=300, help="supervised steps (default 300)")
    parser.add_argument("--steps", type=int, default=600, help="steps of reinforcement (default 600)")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of the reinforcement (default 3e-4)")
    parser.add_argument("--register", type=pathlib.Path, help="writes seeds, options and comparisons down there first")
    parser.add_argument("--csv", type=pathlib.Path, help="writes the figures of every seed here")
    chosen = parser.parse_args()
    if chosen.register:
        names = ("seeds", "films", "warmup", "steps", "rate")
        plan = {name: getattr(chosen, name) for name in names} | {"primaries": [*PRIMARIES], "test": TEST}
        print(registration.register(chosen.register, plan), flush=True)
    found = measure(chosen)
    if chosen.csv:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["way", "seed", *FIGURES])
        writer.writerows([*key, *(f"{value:.6f}" for value in values.values())] for key, values in found.items())
        files.write(chosen.csv, out.getvalue())
    print(table(found, chosen.seeds))


if __name__ == "__main__":
    main()
