"""The scale of a reward's components: percentiles of the policy after the supervised stage, fixed from then on.

    percentiles.json in the run folder: p25, p50 and p75 of each dataset, task and component

Its answers are sampled as in training, one to each of up to ``reward.window`` training records of every dataset and
task: held-out records enter no reward. Source: MedGRPO (arXiv 2512.06581) takes percentiles from the supervised model's
predictions and keeps them; of which records and how many is not published, and ours.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairgrpo_jax import answers, files, hosts, rewards, runs
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.normalization import PercentileTable
from fairgrpo_jax.rewards.answers import scale, task


NAME = "percentiles.json"


def anchor(run: runs.Run, params: Any) -> None:
    """Fixes the percentiles of the run's scorer, where ``reward.scale`` is supervised.

    They are read from the run folder, or from that of ``warmup.run``; else they are taken from the policy's answers and
    written. Evaluations then pay on that scale too.

    Args:
        run: whose ``scorer`` is replaced.
        params: the policy after the supervised stage.

    Raises:
        ValueError: if a dataset and task has no training record, or none of its answers is scored.
    """
    if run.config.reward.scale != "supervised":
        return
    if not run.scorer.scaled:
        raise ValueError(
            "got reward.scale=supervised and no normalised component; wanted NAME,normalised among "
            f"reward.components={' '.join(run.config.reward.components)}"
        )
    own, earlier = run.folder / NAME, run.config.warmup.run
    known = next((path for path in (own, earlier and earlier / NAME) if path and path.exists()), None)
    found = rewards.read_table(known) if known else _table(run, params)
    run.scorer = run.scorer.anchored(found)
    if known != own and hosts.first():
        files.write(own, found.to_json())


def chosen(records: Sequence[Record], keys: Sequence[tuple[str, str]], count: int, seed: int) -> list[Record]:
    """Up to ``count`` records of each dataset and task, drawn once by the seed."""
    found: list[Record] = []
    for key in keys:
        its = [record for record in records if (scale(record), task(record)) == key]
        word = int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:4], "big")
        places = np.random.default_rng([seed, word]).permutation(len(its))[:count]
        found += [its[int(place)] for place in np.sort(places)]
    return found


def _table(run: runs.Run, params: Any) -> PercentileTable:
    config, scorer = run.config, run.scorer
    keys = sorted({key[:2] for key in scorer.scaled})
    records = chosen(run.sources["train"].records, keys, config.reward.window, config.seed)
    print(
        f"scale of the reward: answers to {len(records)} training records of {len(keys)} datasets and tasks", flush=True
    )
    (rows,) = answers.answer(
        answers.sampler(params, config.sampling),
        records,
        pool=run.pool,
        config=config,
        scorer=scorer,
        devices=run.mesh,
        key=run.key("scale", 0),
        temperatures=(config.sampling.temperature,),
        phases=run.phases,
    )
    names = [part.name for part in scorer.components]
    raw = [
        np.array([row["components"].get(name, np.nan) for name in names])
        if "components" in row
        else np.array([row["reward"] / scorer.weights[0]])
        for row in rows
    ]
    found = scorer.scores_by_key(list(zip(raw, records, strict=True)))
    if empty := [key for key, scores in found.items() if not scores]:
        told = "; ".join(", ".join(key) for key in empty)
        raise ValueError(
            f"got no score of the supervised policy for {told}; wanted training records of each, or a table that has "
            "them: --reward.percentiles, or --reward.scale running"
        )
    return PercentileTable.fit({key: np.array(scores) for key, scores in found.items()})
