"""Facts about a dataset as published by its owner, and the same figures counted from records."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.record import Record


@dataclass(frozen=True)
class About:
    """The source of a dataset, and its contents according to its owner.

    Attributes:
        name: name in ``data.load``.
        title: the owner's name for it.
        where: URL to get it from.
        licence: its terms of use.
        download: the files to download, and their places in the folder.
        note: what users should know before use.
        published: the owner's figures over all splits, by the names of ``counts``.
        shared: pairs of splits that share patients or media in the owner's split, which is kept as it is.
    """

    name: str
    title: str
    where: str
    licence: str
    download: str
    note: str = ""
    published: Mapping[str, int] = field(default_factory=dict)
    shared: tuple[tuple[str, str], ...] = ()

    def require(self, root: str | Path, *names: str | tuple[str, ...]) -> tuple[Path, ...]:
        """Returns the files or folders of ``root`` with these names; for a tuple of names, the first that exists.

        Raises:
            ValueError: naming all that are missing.

        Example:
            ``train, validation = ABOUT.require(root, "train.json", ("validate.json", "validation.json"))``
        """
        root, found, absent = Path(root), [], []
        for name in names:
            choices = (name,) if isinstance(name, str) else name
            there = [root / choice for choice in choices if (root / choice).exists()]
            found.extend(there[:1])
            absent.extend([] if there else [" or ".join(choices)])
        if absent:
            raise ValueError(
                f"{self.title} in {root}: missing {', '.join(absent)}; get the dataset from {self.where} "
                f"({self.download})"
            )
        return tuple(found)


def counts(records: Iterable[Record]) -> Counter[str]:
    """Counts records by the names that ``About.published`` uses.

    ``records/<split>``, ``patients/<split>``, ``media``, ``answer/<label>`` (of questions with choices; each label
    counts), ``sex/F``, ``sex/M``, ``sex/unknown``, ``age/<bin>`` and ``age/unknown`` (bins of
    ``demographics.age_name``, over records).

    Example:
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> from fairgrpo_jax.data.about import counts
        >>> found = counts(synthetic.load("test", domains=("us",)))
        >>> found["records/test"], found["answer/A-lines"], found["sex/unknown"], found["age/26–50"]
        (180, 90, 180, 60)
    """
    found: Counter[str] = Counter()
    patients: set[tuple[str, str]] = set()
    for record in records:
        found[f"records/{record.split}"] += 1
        found["media"] += len(record.media)
        found[f"sex/{record.sex or 'unknown'}"] += 1
        found[f"age/{demographics.age_name(record.age) or 'unknown'}"] += 1
        patients.add((record.split, f"{record.dataset}/{record.patient}"))
        for label in labels(record):
            found[f"answer/{label}"] += 1
    found.update(f"patients/{split}" for split, _ in patients)
    return found


def labels(record: Record) -> tuple[str, ...]:
    """The labels of a closed question's answer; empty for an open question.

    Example:
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> from fairgrpo_jax.data.about import labels
        >>> labels(synthetic.load("test", domains=("us",))[0])
        ('B-lines',)
    """
    if not record.choices:
        return ()
    return (record.answer,) if record.answer in record.choices else tuple(record.answer.split(", "))
