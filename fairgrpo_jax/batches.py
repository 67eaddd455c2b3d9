"""From records to what the device is given: prompts decoded, processed and packed, in an order that can be resumed."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import config as options, grouping, models
from fairgrpo_jax.data import demographics, media, mixture
from fairgrpo_jax.data.record import Record, RecordList, conversation, target


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """P prompts of one step: what the device needs, and the records that the rewards and the log need."""

    prompt: models.Prompt  # NumPy leaves with leading axis P
    records: list[Record]
    domains: np.ndarray  # (P,) int32
    groups: np.ndarray  # (P,) int32, -1 unlabelled

    def join(self, other: "PromptBatch") -> "PromptBatch":
        """The prompts of both, these first."""
        arrays = [(batch.prompt, batch.domains, batch.groups) for batch in (self, other)]
        prompt, domains, groups = jax.tree.map(lambda x, y: np.concatenate([x, y]), *arrays)
        return PromptBatch(prompt, [*self.records, *other.records], domains, groups)

    def take(self, rows: np.ndarray) -> "PromptBatch":
        """The prompts of some rows, in their order."""
        prompt, domains, groups = jax.tree.map(lambda x: x[rows], (self.prompt, self.domains, self.groups))
        return PromptBatch(prompt, [self.records[row] for row in rows], domains, groups)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Records to a packed batch. It depends on nothing but its records, so that threads may do it ahead of time."""

    settings: options.Data
    architecture: Any  # the family's static config
    processor: Any  # of the checkpoint, e.g. models.Processor
    domains: tuple[str, ...]  # names of the datasets; a domain's id is its place
    vocabulary: grouping.Vocabulary  # the joint demographic cells; a group's id is its place

    def __call__(self, records: Sequence[Record]) -> PromptBatch:
        """P records, their media decoded and their prompts packed.

        Raises:
            ValueError: for media that cannot be decoded, and a prompt that is too long, by the name of its record.
        """
        settings = self.settings
        say = functools.partial(conversation, instruction=settings.instruction, list_choices=settings.list_choices)
        messages, decoded = [say(record) for record in records], [media.decode_record(record) for record in records]
        if self.architecture.video_id is None:
            messages, decoded = zip(*map(_as_images, messages, records, decoded), strict=True)
        inputs = self.processor(
            list(messages),
            [d.images for d in decoded],
            [[clip.frames for clip in d.videos] for d in decoded],
            seconds_per_frame=[[clip.seconds_per_frame for clip in d.videos] for d in decoded],
            times=[[clip.times for clip in d.videos] for d in decoded],
        )
        try:
            prompt = models.pack(
                inputs, self.architecture, length=settings.prompt_length, num_patches=settings.num_patches
            )
        except ValueError as error:
            row = re.match(r"prompt (\d+)", str(error))
            name = records[int(row[1])].uid if row else f"one of {', '.join(r.uid for r in records)}"
            raise ValueError(f"record {name}: {error} (options data.prompt_length and data.num_patches)") from error
        attributes = [groups_of(record, settings) for record in records]
        return PromptBatch(
            prompt=prompt,
            records=list(records),
            domains=np.array([self.domains.index(record.dataset) for record in records], np.int32),
            groups=np.asarray(grouping.explicit_groups(attributes, self.vocabulary), np.int32),
        )

    def targets(self, records: Sequence[Record], *, length: int) -> tuple[PromptBatch, np.ndarray, np.ndarray]:
        """The batch and its reference completions: tokens (P, 1, T) int32 and mask, end token included.

        Raises:
            ValueError: as above, and for a completion of more than ``length`` tokens.
        """
        tokens = np.full((len(records), 1, length), self.architecture.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        end = self.processor.turn_end(self.architecture.eos_ids)
        for row, record in enumerate(records):
            ids = [*self.processor.tokenizer.encode(target(record), add_special_tokens=False), end]
            if len(ids) > length:
                raise ValueError(
                    f"got a reference completion of {len(ids)} tokens for record {record.uid}; "
                    f"wanted at most sampling.max_new_tokens={length}"
                )
            tokens[row, 0, : len(ids)], mask[row, 0, : len(ids)] = ids, True
        return self(records), tokens, mask


def groups_of(record: Record, settings: options.Data) -> dict[str, str | None]:
    """The demographic attributes that a record's group is made of."""
    return demographics.attributes(record, edges=settings.age_edges, names=settings.attributes)


def stream(
    records: Sequence[Record],
    encode: Callable[[Sequence[Record]], Any],
    *,
    size: int,
    seed: int,
    settings: options.Data,
    start: int = 0,
    balance: grouping.Vocabulary | None = None,
) -> Any:
    """An endless iterator over encoded batches that can be resumed: ``next`` and ``get_state``, as ``mixture.iterate``.

    Args:
        records: of one or several datasets, which are mixed by ``settings.temperature``.
        encode: an ``Encoder``, or a function like it.
        size: records of a batch.
        seed: of the order.
        settings: of the data.
        start: index of the first batch.
        balance: repeats the records of each of these groups to the size of the dataset's largest.
    """
    names = sorted({record.dataset for record in records})
    by_domain = [[record for record in records if record.dataset == name] for name in names]
    if balance is not None:
        by_domain = [_balanced(domain, balance, settings, seed) for domain in by_domain]
    sources = [RecordList(tuple(domain)) for domain in by_domain]
    dataset = mixture.mixture(sources, batch_size=size, seed=seed, temperature=settings.temperature)
    return mixture.iterate(dataset, start=start, encode=encode, threads=settings.workers)


def ahead(encode: Callable[[Any], Any], items: Iterable[Any], *, workers: int) -> Iterator[Any]:
    """``map(encode, items)`` in threads, at most ``workers`` + 1 results ahead of their use."""
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        pending = collections.deque(pool.submit(encode, item) for item in itertools.islice(rest, workers + 1))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(encode, item) for item in itertools.islice(rest, 1))
            yield result


def _balanced(
    records: list[Record], vocabulary: grouping.Vocabulary, settings: options.Data, seed: int
) -> list[Record]:
    """The records of a domain, each demographic group repeated to the size of the largest."""
    groups = grouping.explicit_groups([groups_of(record, settings) for record in records], vocabulary)
    return [records[row] for row in grouping.balanced_rows(groups, seed=seed)]


def _as_images(messages: list[dict], record: Record, decoded: media.Decoded) -> tuple[list[dict], media.Decoded]:
    """Every video as its frames, one image each, for families that know no video; MedGemma was trained so."""
    clips, images = iter(decoded.videos), iter(decoded.images)
    shown = [next(clips).frames if part.kind == "video" else [next(images)] for part in record.media]
    pictures = [picture for part in shown for picture in part]
    text = [part for part in messages[0]["content"] if part["type"] == "text"]
    content = [*({"type": "image"} for _ in pictures), *text]
    return [{**messages[0], "content": content}], media.Decoded(tuple(pictures), ())
