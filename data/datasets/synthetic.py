"""The synthetic clinic: a small multi-domain set of patients, generated in seconds, for comparing fairness methods.

Four domains are drawn by formula (``derm``, ``cxr``, ``ct``, ``us``), two hold real measurements that scikit-learn
ships: ``diabetes`` (442 real patients with real age and sex, eight blood and body values shown as bars) and ``digits``
(real handwriting, no demographics, so its prompts are unlabelled and must be grouped implicitly).

Why some groups are harder: older patients are imaged with lower contrast and more noise, on another background tone,
with more clutter (hair, ribs, streaks). For those over 75 the appearance itself shifts: amelanotic, bright lesions in
``derm`` and old, dark bleeds in ``ct``. That gap is *reducible*: the classes remain separable for a model that learns
both appearances. In ``cxr`` those over 75 have a chronic change of another class, as strong as the finding: this gap is
mostly *irreducible*. Women's images have slightly less contrast, and a breast shadow in ``cxr``. Groups also differ in
size, and the hardest are the rarest. The classes are equally frequent in every group. Sex is not recorded in ``us``.

It can show whether a training run works end to end, how a method spends its gradient over domains and groups, and the
direction of an effect over many seeds. It cannot show anything about medicine: the effects are chosen, not measured,
the images are cartoons, and a gap found here says nothing about any hospital. The diabetes test cells have a few to a
few dozen patients, too few to compare gaps: report real and synthetic domains separately.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.datasets import _cartoons as cartoons
from fairgrpo_jax.data.datasets._cartoons import SIZE
from fairgrpo_jax.data.media import decode
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_patient


if TYPE_CHECKING:
    from PIL import Image


TEST_CELL = 60  # test records per demographic cell of a generated domain
TEST_SHARE = 0.4  # share of the patients of a real domain
WARMUP_SHARE = 0.35  # share of the training patients
AGES = ((26, 50), (51, 75), (76, 95))  # years; the three strata of the generated patients

Split = Literal["train", "warmup", "test"]
SPLITS = ("train", "warmup", "test")
ABOUT = About(
    name="synthetic",
    title="The clinic",
    where="fairgrpo_jax.data.datasets.synthetic",
    licence="as this software; the real measurements as scikit-learn",
    download="nothing: it is made when asked for",
    note="Its images are cartoons; a gap found here says nothing about any hospital.",
    shared=(("train", "warmup"),),  # the warm-up records are part of the training records
)


@dataclass(frozen=True)
class Domain:
    """The question of a domain, and its answers with their findings."""

    modality: str
    question: str
    findings: dict[str, str]  # answer -> finding
    train_size: int  # approximate for the real domains
    shares: tuple[float, ...] = ()  # of (26-50 F, 26-50 M, 51-75 F, ...), or of the three ages if sex is unknown


DOMAINS = {
    "derm": Domain(
        "dermoscopy",
        "What does this dermoscopy image show?",
        {"Nevus": "round", "Melanoma": "elongated", "Basal Cell Carcinoma": "ring", "Other": "lobed"},
        4000,
        (0.30, 0.26, 0.18, 0.16, 0.04, 0.06),
    ),
    "cxr": Domain(
        "X-ray",
        "What does this chest X-ray show?",
        {"Normal": "clear", "Nodule": "focal", "Pneumonia": "diffuse", "Effusion": "basal"},
        5000,
        (0.18, 0.26, 0.20, 0.28, 0.03, 0.05),
    ),
    "ct": Domain(
        "CT",
        "What does this head CT slice show?",
        {"No Hemorrhage": "none", "Intraparenchymal": "focal", "Subdural": "crescent"},
        1500,
        (0.16, 0.20, 0.22, 0.32, 0.06, 0.04),
    ),
    "us": Domain(
        "ultrasound",
        "What does this lung ultrasound show?",
        {"A-lines": "bands", "B-lines": "rays"},
        400,
        (0.62, 0.30, 0.08),
    ),
    "diabetes": Domain(
        "laboratory values",
        "Does this patient's diabetes progress fast?",
        {"Slow": "low", "Fast": "high"},
        265,
    ),
    "digits": Domain(
        "handwriting",
        "Which digit is this?",
        {str(digit): "loop" if digit in (0, 6, 8, 9) else "open" for digit in range(10)},
        540,
    ),
}


def load(
    split: Split,
    *,
    seed: int = 0,
    domains: Sequence[str] = tuple(DOMAINS),
    scale: float = 1.0,
    label_noise: float = 0.25,
    control: bool = False,
    test_cell: int = TEST_CELL,
    missing: float = 0.0,
    wordy: int = 1,
) -> RecordList:
    """The clinic's records, shuffled once; the same bytes for the same arguments in every process.

    (With the same NumPy and processor; others may round a pixel differently.)

    Args:
        split: ``"train"`` (about 11,700 records); ``"test"`` (about 1,800: 60 per cell of age and sex in the generated
            domains, about 40 % of the patients in the real ones); ``"warmup"``: the records of 35 % of the training
            patients, some with a wrong answer, so that the supervised stage leaves something to learn.
        seed: random seed of all draws.
        domains: a selection of ``derm cxr ct us diabetes digits``.
        scale: factor of the number of records, for quick trials.
        label_noise: share of the answers in ``"warmup"`` that are replaced by another class; findings stay correct. The
            other splits have no noise.
        control: whether to generate no group effects and equal group sizes; remaining gaps are then due to chance.
        test_cell: test records per cell of age and sex in the generated domains.
        missing: share of the training patients whose sex and age are not recorded, at random.
        wordy: most times that a ``"warmup"`` record says its finding; the number is drawn, from once on. A policy
            supervised so writes thoughts of many lengths, none better than another.

    Returns:
        A ``Source`` of records, each with one (32, 32, 3) image.

    Raises:
        ValueError: if a split or domain is unknown, or scale or noise is out of range.

    Example:
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> source = synthetic.load("test", domains=("ct",))
        >>> len(source), source[0].media[0].pixels.shape, source[0].choices
        (360, (32, 32, 3), ('No Hemorrhage', 'Intraparenchymal', 'Subdural'))
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the clinic has 'train', 'warmup' and 'test'")
    domains = (domains,) if isinstance(domains, str) else domains
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown or not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains {list(domains)}: unknown {unknown}; wanted some of {', '.join(DOMAINS)}, each once")
    if not 0 < scale <= 1 or not 0 <= label_noise <= 1 or seed < 0:
        raise ValueError(f"scale {scale}, label_noise {label_noise}, seed {seed}; wanted (0, 1], [0, 1] and >= 0")
    if test_cell < 1 or wordy < 1 or not 0 <= missing <= 1:
        raise ValueError(
            f"test_cell {test_cell}, wordy {wordy}, missing {missing}; wanted at least one record, at least once, and "
            "a share, 0 to 1"
        )
    pool = "test" if split == "test" else "train"
    records: list[Record] = []
    for name in domains:
        rows = _records(name, pool, seed, scale, control, test_cell)
        if pool == "train" and missing:
            hidden = by_patient([record.patient for record in rows], fraction=missing, seed=1)
            rows = [
                dataclasses.replace(record, sex=None, age=None) if hide else record
                for record, hide in zip(rows, hidden, strict=True)
            ]
        if split == "warmup":
            rows = _wordy(_noisy(rows, label_noise, _rng(seed, name, "warmup")), wordy, _rng(seed, name, "wordy"))
        records += rows
    return RecordList(tuple(records))


@functools.lru_cache(maxsize=32)
def _records(name: str, pool: str, seed: int, scale: float, control: bool, test_cell: int) -> tuple[Record, ...]:
    """All records of one domain on one side of the split."""
    rng = _rng(seed, name, pool)
    draw = {"diabetes": _diabetes, "digits": _digits}.get(name)
    people, pixels = draw(pool, seed, scale) if draw else _drawn(name, pool, scale, control, test_cell, rng)
    pixels.flags.writeable = False  # records share it
    domain, records = DOMAINS[name], []
    answers = tuple(domain.findings)
    for row in rng.permutation(len(pixels)):
        answer, sex, age = answers[people.label[row]], str(people.sex[row]), float(people.age[row])
        record = Record(
            uid=f"{name}/{people.uid[row]}",
            dataset=name,
            modality=domain.modality,
            media=(Media("image", pixels=pixels[row]),),
            question=domain.question,
            answer=answer,
            choices=answers,
            patient=people.patient[row],
            sex="F" if sex == "F" else "M" if sex == "M" else None,
            age=None if np.isnan(age) else age,
            extra={},
            split=pool,
            finding=domain.findings[answer],
        )
        records.append(record)
    return tuple(records)


def _noisy(rows: Sequence[Record], noise: float, rng: np.random.Generator) -> list[Record]:
    """The warm-up part of the training records, with a share of its answers replaced by another class."""
    chosen = by_patient([record.patient for record in rows], fraction=WARMUP_SHARE, seed=0)
    rows = [dataclasses.replace(record, split="warmup") for record, keep in zip(rows, chosen, strict=True) if keep]
    for i in rng.permutation(len(rows))[: round(noise * len(rows))]:
        others = [answer for answer in rows[i].choices if answer != rows[i].answer]
        rows[i] = dataclasses.replace(rows[i], answer=others[rng.integers(len(others))])
    return rows


def _wordy(rows: Sequence[Record], most: int, rng: np.random.Generator) -> list[Record]:
    """The records with their findings repeated, each once to ``most`` times."""
    return [
        dataclasses.replace(row, finding=" ".join([row.finding] * times))
        for row, times in zip(rows, rng.integers(1, most, size=len(rows), endpoint=True), strict=True)
    ]


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


# ---- people ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _People:
    """Columns of one pool, one row per record; ``stratum`` indexes ``AGES``; unknown sex is "", unknown age NaN."""

    uid: list[str]
    patient: list[str]
    label: np.ndarray
    sex: np.ndarray
    age: np.ndarray
    stratum: np.ndarray


def _invent(name: str, pool: str, counts: Sequence[int], rng: np.random.Generator) -> _People:
    """Generates patients with one to three records each, by cell; classes alternate within a cell."""
    classes, sexes = len(DOMAINS[name].findings), ("F", "M") if len(counts) == 6 else ("",)
    columns: list[tuple[np.ndarray, ...]] = []
    first = 0
    for cell, count in enumerate(counts):
        stratum, sex = cell // len(sexes), sexes[cell % len(sexes)]
        visits = rng.choice((1, 2, 3), size=count, p=(0.6, 0.3, 0.1))
        patient = np.repeat(np.arange(count), visits)[:count]
        age = rng.uniform(*AGES[stratum], size=count)[patient]
        label = rng.permutation(np.arange(count) % classes)
        columns.append((first + patient, label, np.full(count, sex), age, np.full(count, stratum)))
        first += count
    patient, label, sex, age, stratum = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    uid = [f"{pool}-{row:04d}" for row in range(len(patient))]
    return _People(uid, [f"{pool}-{p:04d}" for p in patient], label, sex, age, stratum)


def _drawn(
    name: str, pool: str, scale: float, control: bool, test_cell: int, rng: np.random.Generator
) -> tuple[_People, np.ndarray]:
    """Patients and images of a generated domain."""
    shares = np.array(DOMAINS[name].shares)
    shares = np.full_like(shares, 1 / len(shares)) if control else shares
    size = np.full(len(shares), test_cell) if pool == "test" else shares * DOMAINS[name].train_size
    people = _invent(name, pool, [max(1, round(n)) for n in size * scale], rng)
    stratum = np.zeros_like(people.stratum) if control else people.stratum
    female = (people.sex == "F") & (not control)
    return people, cartoons.paint(name, people.label, stratum, female, rng)


def _diabetes(pool: str, seed: int, scale: float) -> tuple[_People, np.ndarray]:
    """Real patients (Efron et al. 2004), with eight values as bars, from the lowest of all patients to the highest.

    The files code sex as 1 and 2 without saying which is which. Patients of code 2 have the lower HDL (``s3``, 44.6
    against 54.4) and the higher blood pressure (98.2 against 91.5), so 2 is read as male.
    """
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes(scaled=False)
    rows = _side(len(bunch.data), "diabetes", pool, seed, scale)  # one row is one patient
    values = np.delete(bunch.data, [0, 1], axis=1)
    low, high = values.min(axis=0), values.max(axis=0)
    height = np.repeat((values[rows] - low) / (high - low) * SIZE, SIZE // values.shape[1], axis=1)
    bars = np.arange(SIZE)[::-1][None, :, None] < height[:, None, :]
    grey = np.where(bars, 220, 30).astype(np.uint8)
    age, sex = bunch.data[rows, 0], np.where(bunch.data[rows, 1] == 2, "M", "F")
    label = (bunch.target[rows] > np.median(bunch.target)).astype(int)
    names = [f"{row:03d}" for row in rows]
    return _People(names, names, label, sex, age, np.zeros(len(rows), int)), cartoons.rgb(grey)


def _digits(pool: str, seed: int, scale: float) -> tuple[_People, np.ndarray]:
    """Real handwriting, 8 x 8 pixels enlarged; the writers are unknown, so each digit counts as a separate patient."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    used = round(DOMAINS["digits"].train_size / (1 - TEST_SHARE))
    rows = _side(used, "digits", pool, seed, scale)
    grey = np.clip(bunch.images[rows] * 16, 0, 255).astype(np.uint8)
    grey = grey.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    names, unknown = [f"{row:04d}" for row in rows], np.full(len(rows), np.nan)
    people = _People(names, names, bunch.target[rows], np.full(len(rows), ""), unknown, np.zeros(len(rows), int))
    return people, cartoons.rgb(grey)


def _side(count: int, name: str, pool: str, seed: int, scale: float) -> np.ndarray:
    """Rows of a real domain on one side of the split by patient."""
    held_out = by_patient([f"{name}/{row}" for row in range(count)], fraction=TEST_SHARE, seed=seed)
    rows = np.flatnonzero(held_out == (pool == "test"))
    return rows[: max(1, round(len(rows) * scale))]


def contact_sheet(domains: Sequence[str] = tuple(DOMAINS), *, seed: int = 0, zoom: int = 2) -> "Image.Image":
    """Test images side by side, one per class (columns) and age stratum (rows; one row if ages are not generated).

    Example:
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> synthetic.contact_sheet(("ct", "us")).size
        (198, 396)
    """
    from PIL import Image

    step, rows = SIZE * zoom + 2, []
    for domain in domains:
        records = load("test", seed=seed, domains=(domain,)).records
        for low, high in AGES if DOMAINS[domain].shares else ((-np.inf, np.inf),):
            fits = [r for r in records if r.age is None or low <= r.age <= high]
            rows.append([next(r for r in fits if r.answer == answer) for answer in DOMAINS[domain].findings])
    sheet = Image.new("RGB", (step * max(map(len, rows)), step * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, record in enumerate(row):
            image = Image.fromarray(decode(record.media[0])).resize(
                (SIZE * zoom, SIZE * zoom), Image.Resampling.NEAREST
            )
            sheet.paste(image, (x * step + 1, y * step + 1))
    return sheet
