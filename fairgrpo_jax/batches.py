"""Turns records into batches for the device: decodes, processes and packs prompts in a resumable order."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax import config as options, grouping, hosts, models
from fairgrpo_jax.data import demographics, media, mixture
from fairgrpo_jax.data.record import Record, RecordList, conversation, target


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """P prompts of one step: arrays for the device, and the records that rewards and log need."""

    prompt: models.Prompt  # NumPy leaves with leading axis P; of several processes, those of the ``held`` rows alone
    records: list[Record]
    domains: np.ndarray  # (P,) int32
    groups: np.ndarray  # (P,) int32, -1 unlabelled
    held: np.ndarray  # the rows whose prompts this process has
    encode: Callable[[list[Record]], models.Prompt] | None = None  # prompts that another process has, once more

    @property
    def cells(self) -> list[tuple[int, int]]:
        """The domain and the group of each prompt."""
        return list(zip(self.domains.tolist(), self.groups.tolist(), strict=True))

    def join(self, other: "PromptBatch") -> "PromptBatch":
        """Concatenates the prompts of both, these first."""
        return PromptBatch.joined([self, other])

    @staticmethod
    def joined(parts: Sequence["PromptBatch"]) -> "PromptBatch":
        """Copies the prompts of all parts into one batch."""
        before = np.cumsum([0, *(len(part.records) for part in parts)])
        arrays = [
            (part.prompt, part.domains, part.groups, part.held + start)
            for part, start in zip(parts, before, strict=False)
        ]
        prompt, domains, groups, held = jax.tree.map(lambda *x: np.concatenate(x), *arrays)
        records = [record for part in parts for record in part.records]
        return PromptBatch(prompt, records, domains, groups, held, parts[0].encode)

    def take(self, rows: np.ndarray) -> "PromptBatch":
        """Selects the prompts of ``rows``, in that order; encodes those that come from another process."""
        own = hosts.rows(len(rows))
        wanted, places = rows[own], {row: place for place, row in enumerate(self.held.tolist())}
        missing = [row for row in wanted.tolist() if row not in places]
        prompt = self.prompt
        if missing:
            assert self.encode is not None
            further = self.encode([self.records[row] for row in missing])
            prompt = jax.tree.map(lambda *x: np.concatenate(x), prompt, further)
            places |= {row: len(self.held) + place for place, row in enumerate(missing)}
        prompt = jax.tree.map(lambda x: x[[places[row] for row in wanted.tolist()]], prompt)
        records, held = [self.records[row] for row in rows], np.arange(len(rows))[own]
        return PromptBatch(prompt, records, self.domains[rows], self.groups[rows], held, self.encode)

    @property
    def sizes(self) -> np.ndarray:
        """(P, 2) the sizes of all prompts; an exchange between processes."""
        return hosts.gathered(models.sizes(self.prompt))


class Size(NamedTuple):
    """The size of a prompt."""

    tokens: int
    patches: int


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns records into a packed batch; the result depends only on them, so workers may run it ahead of time."""

    settings: options.Data
    architecture: Any  # the family's static config
    processor: Any  # the checkpoint's, e.g. models.Processor
    domains: tuple[str, ...]  # names of the datasets; a domain's id is its index
    vocabulary: grouping.Vocabulary  # the joint demographic cells; a group's id is its index
    dtype: str = "float32"  # of the patches
    ladder: tuple[Size, ...] = ()  # sizes to which prompts are padded, the largest last; none: the options' limits

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes to which prompts are padded, the largest last; a batch is packed at that."""
        return self.ladder or (Size(self.settings.prompt_length, self.settings.num_patches),)

    def tokens(self, text: str) -> int:
        """Number of tokens of a text by itself."""
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, records: Sequence[Record]) -> PromptBatch:
        """Decodes the media of P records and packs their prompts.

        Raises:
            ValueError: if media cannot be decoded or a prompt is too long, with the name of the record.
        """
        inputs = self.processor(**self.arguments(records, [media.decode_record(record) for record in records]))
        try:
            prompt = models.pack(
                inputs,
                self.architecture,
                length=self.sizes[-1].tokens,
                num_patches=self.sizes[-1].patches,
                dtype=jnp.dtype(self.dtype),
            )
        except ValueError as error:
            row = re.match(r"prompt (\d+)", str(error))
            name = records[int(row[1])].uid if row else f"one of {', '.join(r.uid for r in records)}"
            raise ValueError(f"record {name}: {error} (options data.prompt_length and data.num_patches)") from error
        return PromptBatch(prompt, list(records), *self.labels(records), np.arange(len(records)))

    def labels(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """The domains and the groups (P,) of records."""
        attributes = [groups_of(record, self.settings) for record in records]
        domains = np.array([self.domains.index(record.dataset) for record in records], np.int32)
        return domains, np.asarray(grouping.explicit_groups(attributes, self.vocabulary), np.int32)

    def target(self, record: Record) -> list[int]:
        """The tokens of a record's reference completion, end token included."""
        end = self.processor.turn_end(self.architecture.eos_ids)
        text = target(record, plain=self.settings.plain_answers)
        return [*self.processor.tokenizer.encode(text, add_special_tokens=False), end]

    def targets(self, records: Sequence[Record], *, length: int) -> tuple[PromptBatch, np.ndarray, np.ndarray]:
        """Returns the batch and its reference completions: tokens (P, 1, T) int32, end token included, and their mask.

        Raises:
            ValueError: as above, or if a completion has more than ``length`` tokens.
        """
        tokens = np.full((len(records), 1, length), self.architecture.pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, record in enumerate(records):
            ids = self.target(record)
            if len(ids) > length:
                raise ValueError(
                    f"got a reference completion of {len(ids)} tokens for record {record.uid}; "
                    f"wanted at most sampling.max_new_tokens={length}"
                )
            tokens[row, 0, : len(ids)], mask[row, 0, : len(ids)] = ids, True
        return self(records), tokens, mask

    def arguments(self, records: Sequence[Record], decoded: Sequence[media.Decoded]) -> dict[str, Any]:
        """What the processor takes for records and their media."""
        settings = self.settings
        how = {"list_choices": settings.list_choices or settings.letters, "letters": settings.letters}
        say = functools.partial(conversation, instruction=settings.instruction, **how)
        messages = [say(record) for record in records]
        if self.architecture.video_id is None:
            messages, decoded = zip(*map(_as_images, messages, decoded), strict=True)
        return {
            "messages": list(messages),
            "images": [d.images for d in decoded],
            "videos": [[clip.frames for clip in d.videos] for d in decoded],
            "seconds_per_frame": [[clip.seconds_per_frame for clip in d.videos] for d in decoded],
            "times": [[clip.times for clip in d.videos] for d in decoded],
        }


def groups_of(record: Record, settings: options.Data) -> dict[str, str | None]:
    """The demographic attributes that define a record's group."""
    return demographics.attributes(record, edges=settings.age_edges, names=settings.attributes)


def mixed(
    records: Sequence[Record],
    *,
    size: int,
    seed: int,
    settings: options.Data,
    start: int = 0,
    balance: grouping.Vocabulary | None = None,
) -> Iterator[list[Record]]:
    """Returns an endless iterator over batches of records, in the order of ``mixture.mixture``.

    Args:
        records: records of one or several datasets, which are mixed by ``settings.temperature``.
        size: number of records per batch.
        seed: random seed of the order.
        settings: options of the data.
        start: index of the first batch.
        balance: the groups whose records are repeated up to the size of the dataset's largest group.
    """
    names = sorted({record.dataset for record in records})
    by_domain = [[record for record in records if record.dataset == name] for name in names]
    if balance is not None:
        by_domain = [_balanced(domain, balance, settings, seed) for domain in by_domain]
    sources = [RecordList(tuple(domain)) for domain in by_domain]
    dataset = mixture.mixture(sources, batch_size=size, seed=seed, temperature=settings.temperature)
    return mixture.iterate(dataset, start=start)


def _balanced(
    records: list[Record], vocabulary: grouping.Vocabulary, settings: options.Data, seed: int
) -> list[Record]:
    """The records of a domain, with each demographic group repeated up to the size of the largest."""
    groups = grouping.explicit_groups([groups_of(record, settings) for record in records], vocabulary)
    return [records[row] for row in grouping.balanced_rows(groups, seed=seed)]


def _as_images(messages: list[dict], decoded: media.Decoded) -> tuple[list[dict], media.Decoded]:
    """Replaces every video by its frames as images, for families without video input; MedGemma was trained this way."""
    clips, images = iter(decoded.videos), iter(decoded.images)
    pictures, shown = [], []
    for message in messages:
        content = []
        for part in message["content"]:
            if part["type"] == "text":
                content.append(part)
                continue
            frames = next(clips).frames if part["type"] == "video" else [next(images)]
            pictures.extend(frames)
            content.extend({"type": "image"} for _ in frames)
        shown.append({**message, "content": content})
    return shown, media.Decoded(tuple(pictures), ())
