"""What several processes do in tests/test_hosts.py: each checks what it gets; not a test by itself."""

import sys
from typing import Any

from fairgrpo_jax import hosts, mesh


SPEC = sys.argv[sys.argv.index("--distributed") + 1]
COUNT = hosts.start(SPEC)
mesh.simulate("4x1", COUNT)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from fairgrpo_jax import batches, chunking, lengths, tracking  # noqa: E402


def fails(do, words):
    """Whether a call raises a ValueError with these words."""
    try:
        do()
    except ValueError as error:
        return words in str(error)
    return False


def refuse():
    raise ValueError(f"said by process {jax.process_index()}")


def prompts(rows) -> Any:
    return {"tokens": np.stack([rows, rows * 10], axis=1)}


def main():
    place, index = hosts.parse(SPEC), jax.process_index()
    assert place is not None and (hosts.count(), index, hosts.first()) == (COUNT, place.index, place.index == 0)
    devices, whole = mesh.make("4x1"), np.arange(24.0, dtype=np.float32).reshape(8, 3)
    assert [d.process_index for d in devices.devices.flat] == sorted(i % COUNT for i in range(4))
    assert fails(lambda: mesh.make("2x1"), "wanted all of them") and fails(lambda: mesh.make("1x4"), "divides")

    own = whole[hosts.rows(8)]
    placed = mesh.put({"x": own, "keys": jax.random.split(jax.random.key(0), 8)[hosts.rows(8)]}, devices)
    assert placed["x"].shape == (8, 3) and placed["keys"].shape == (8,)
    doubled, total = jax.jit(lambda x: (2 * x, x.sum()))(placed["x"])
    assert float(total) == whole.sum() and (mesh.fetch(doubled) == 2 * own).all()
    drawn = mesh.fetch(jax.jit(jax.vmap(jax.random.bits))(placed["keys"]))
    alone = jax.vmap(jax.random.bits)(jax.random.split(jax.random.key(0), 8))
    assert (drawn == np.asarray(alone)[hosts.rows(8)]).all()

    found = hosts.gathered({"x": own, "flag": own[:, 0] > 10, "nan": np.full(len(own), np.nan, np.float32)})
    assert (found["x"] == whole).all() and (found["flag"] == (whole[:, 0] > 10)).all() and np.isnan(found["nan"]).all()
    assert hosts.everyone({"i": index, "text": "é" * (index + 1)}) == [
        {"i": i, "text": "é" * (i + 1)} for i in range(COUNT)
    ]
    assert hosts.total(index + 0.5) == sum(i + 0.5 for i in range(COUNT))
    assert hosts.summed({"calls": 2, f"of {index}": 1.5}) == {"calls": 2 * COUNT} | {
        f"of {i}": 1.5 for i in range(COUNT)
    }
    assert hosts.any_of(index == COUNT - 1) and not hosts.any_of(False)
    assert hosts.on_first(lambda: f"only {index}") == "only 0"
    assert fails(lambda: hosts.on_first(refuse), "said by process 0")
    hosts.require_equal("options", "same")
    assert fails(lambda: hosts.require_equal("options", f"of {min(index, 1)}"), "process 1 of")
    assert chunking.memory() > 0

    # A batch of 8 prompts: each process has the arrays of its rows, and encodes again what it takes from others.
    asked: list[Any] = []

    def encode(records: Any) -> Any:
        asked.append(records)
        return prompts(np.array(records))

    held, ids = np.arange(8)[hosts.rows(8)], np.arange(8, dtype=np.int32)
    records: Any = list(range(8))
    batch = batches.PromptBatch(prompts(held), records, ids, -ids, held, encode)
    rows = np.array([7, 0, 3, 3, 4, 1, 6, 2])
    taken = batch.take(rows)
    mine = rows[hosts.rows(8)]
    array: Any = taken.prompt
    assert (array["tokens"] == prompts(mine)["tokens"]).all() and taken.records == rows.tolist()
    assert sorted(sum(asked, [])) == sorted(row for row in mine.tolist() if row not in held)
    twice = batch.join(taken)
    both = np.concatenate([np.arange(8), rows])
    back = twice.take(np.arange(16)[::-1][:8])
    array = back.prompt
    assert (array["tokens"] == prompts(both[::-1][:8][hosts.rows(8)])["tokens"]).all()

    # Groups of like size have as many prompts of one process as of another, in the order of the processes.
    sizes = np.array([[n, 0] for n in (9, 1, 5, 9, 2, 8, 16, 3)])
    groups = lengths.groups([batches.Size(8, 0), batches.Size(16, 0)], sizes, 8 // COUNT // 2)
    owners = [(rows // (8 // COUNT)).tolist() for rows, _ in groups]
    assert all(its == sorted(list(range(COUNT)) * (len(its) // COUNT)) for its in owners), owners
    assert sorted(np.concatenate([rows for rows, _ in groups]).tolist()) == list(range(8))

    with tracking.MetricsLog("/nonexistent/metrics.jsonl", write=False) as log:
        log.append("train", 1, {"loss": 1.0})
        log.sync()
        assert log.truncate_after(train=0) == 0
    print(f"all is well with process {index} of {COUNT}", file=sys.stderr)


if __name__ == "__main__":
    with hosts.alone():
        main()
