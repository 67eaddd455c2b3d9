"""What several processes cost beside the devices' work, at a paper's step: 512 prompts with 10 completions each.

    python benchmarks/hosts.py

For 1, 2 and 4 processes on this machine: the median seconds, and the bytes a process receives, of a step's exchange of
tokens and log-probabilities of ``--tokens`` tokens a completion, of texts, of scores and of small flags. On one machine
the network is its loopback; the bytes are the same anywhere.
"""

import argparse
import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parent.parent
REPEATS = 5


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--components", type=int, default=4, help="of the reward")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--distributed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.distributed:
        return measure(arguments)
    print(f"{arguments.prompts} prompts x {arguments.rollouts} completions of {arguments.tokens} tokens")
    print("| processes | tokens, log-probabilities, masks | texts | scores | flags | all | MiB received a process |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.processes:
        found = together(count, sys.argv[1:])
        times = [f"{1e3 * found[name]:.1f} ms" for name in ("rollouts", "texts", "scores", "flags", "all")]
        print(f"| {count} | {' | '.join(times)} | {found['received'] / (1 << 20):.0f} |", flush=True)
    return None


def together(count: int, argv: list[str]) -> dict[str, float]:
    """The figures of the first of ``count`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        spec = f"127.0.0.1:{probe.getsockname()[1]},{count}"
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, *argv, "--distributed"]
    running = [
        subprocess.Popen(
            [*command, f"{spec},{index}"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for index in range(count)
    ]
    said = [process.communicate()[0].decode() for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a process ended with {[process.returncode for process in running]}")
    return json.loads(said[0].splitlines()[-1])


def measure(arguments: argparse.Namespace) -> None:
    """Exchanges what one step does, several times, and prints the medians."""
    from fairgrpo_jax import hosts, mesh

    count = hosts.start(arguments.distributed)
    mesh.simulate(f"{count}x1", count)
    import jax
    import numpy as np

    P, G, T, K = arguments.prompts, arguments.rollouts, arguments.tokens, arguments.components
    devices, own = mesh.make(f"{count}x1"), P // count
    rng = np.random.default_rng(jax.process_index())
    ids = rng.integers(0, 150_000, (own, G, T), dtype=np.int32)
    drawn = mesh.put((ids, ids > 9, ids.astype(np.float32)), devices)
    texts = [["".join(chr(97 + i) for i in rng.integers(0, 26, 4 * T)) for _ in range(G)] for _ in range(own)]
    scores = rng.random((own, G, K), np.float32)
    what = {
        "rollouts": lambda: hosts.gathered(mesh.fetch(drawn)),
        "texts": lambda: hosts.everyone(texts),
        "scores": lambda: hosts.gathered({"raw": scores, "values": scores, "rewards": scores[..., 0]}),
        "flags": lambda: (hosts.any_of(False), hosts.total(1.0)),
    }
    spent: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(REPEATS + 1):
        for name, do in what.items():
            hosts.everyone(None)  # all begin together
            began = time.perf_counter()
            do()
            spent[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    bytes_ = sum(x.nbytes for x in jax.tree.leaves(hosts.gathered(mesh.fetch(drawn)))) + scores.nbytes * 3 * count
    received = (bytes_ + count * len(pickle.dumps(texts))) * (count - 1) / count
    print(json.dumps(medians | {"all": sum(medians.values()), "received": received}))


if __name__ == "__main__":
    main()
