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
from fairgrpo_jax.data.media import decode
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_patient


if TYPE_CHECKING:
    from PIL import Image


SIZE = 32  # pixels per side: 8 x 8 patches of 4 pixels
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

# One value per age stratum.
CONTRAST = np.array([1.0, 0.9, 0.7])
NOISE = np.array([0.18, 0.23, 0.32])
TONE = np.array([-0.2, 0.0, 0.25])
CLUTTER = np.array([0.0, 0.1, 0.3])
POLARITY = {"derm": np.array([-1, -1, 1]), "cxr": np.array([1, 1, 1]), "ct": np.array([1, 1, -1])}
SEX_CONTRAST = 0.92  # women, all generated domains
BREAST_SHADOW = 0.15  # women, cxr
FAINT, CHRONIC = 0.8, 0.4  # cxr over 75: gain of the finding, strength of the chronic change over it


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
    if test_cell < 1 or not 0 <= missing <= 1:
        raise ValueError(f"test_cell {test_cell}, missing {missing}; wanted at least one record and a share, 0 to 1")
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
        records += _noisy(rows, label_noise, _rng(seed, name, "warmup")) if split == "warmup" else rows
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
    return people, _paint(name, people.label, stratum, female, rng)


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
    return _People(names, names, label, sex, age, np.zeros(len(rows), int)), _rgb(grey)


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
    return people, _rgb(grey)


def _side(count: int, name: str, pool: str, seed: int, scale: float) -> np.ndarray:
    """Rows of a real domain on one side of the split by patient."""
    held_out = by_patient([f"{name}/{row}" for row in range(count)], fraction=TEST_SHARE, seed=seed)
    rows = np.flatnonzero(held_out == (pool == "test"))
    return rows[: max(1, round(len(rows) * scale))]


# ---- images ----------------------------------------------------------------------------------------------------------


_Y, _X = np.meshgrid(
    np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(-1, 1, SIZE, dtype=np.float32), indexing="ij"
)


def _paint(
    name: str, label: np.ndarray, stratum: np.ndarray, female: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """uint8 (rows, 32, 32, 3): background, finding, clutter and noise of each row, by its class and group."""
    finding, background = {"derm": (_derm, _plain), "cxr": (_cxr, _chest), "ct": (_ct, _skull), "us": (_us, _plain)}[
        name
    ]
    contrast = CONTRAST[stratum] * np.where(female, SEX_CONTRAST, 1)
    noise = _column(NOISE[stratum]) * _grain(rng, len(label))
    if name == "us":
        echo = 0.15 + 0.85 * _column(contrast) * finding(label, rng)
        return _grey(echo * (1 + 2 * noise) * 1.6 - 0.8 + _column(TONE[stratum]))
    signal = _column(contrast * POLARITY[name][stratum]) * finding(label, rng)
    if name == "cxr":
        old = stratum == 2
        shift = rng.integers(0, np.where(label == 0, 3, 2))
        chronic = 1 + (label + shift) % 3  # an abnormal class, never that of the patient
        signal = _column(np.where(old, FAINT, 1)) * signal + _column(CHRONIC * old) * finding(chronic, rng)
        signal = signal + _column(BREAST_SHADOW * female) * _breasts()
    clutter = _column(CLUTTER[stratum]) * _lines(rng, len(label))
    image = _column(TONE[stratum]) + background(rng, len(label)) + signal + clutter + noise
    return _skin(image) if name == "derm" else _grey(image)


def _derm(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lesions with one kind of outline: an ellipse of varying aspect, with lobes of varying depth, hollow or not."""
    n = len(label)
    aspect, lobes, hollow = np.array([1, 1.6, 1, 1])[label], np.array([0, 0, 0, 0.35])[label], label == 2
    x, y = _moved(rng, n, 0.25)
    angle = np.arctan2(y, x)
    distance = np.hypot(x / _column(aspect), y * _column(aspect))
    petals = _column(rng.integers(3, 5, n))
    edge = _column(rng.uniform(0.42, 0.58, n)) * (1 + _column(lobes) * np.cos(petals * angle))
    return _inside(edge - distance) * (1 - _column(hollow) * _inside(0.6 * edge - distance))


def _cxr(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing, a nodule in one lung, patches over one lung, or fluid at the base of one lung."""
    n = len(label)
    side = _column(rng.choice((-1, 1), n))
    field = _lung(side)
    spot = _blob(side * 0.45 + _column(rng.uniform(-0.12, 0.12, n)), _column(rng.uniform(-0.45, 0.35, n)), 0.15)
    patches = 0.9 * field * _inside(_texture(rng, n), 0.3)
    level = _column(rng.uniform(0.1, 0.35, n)) - 0.25 * np.abs(_X - side * 0.45)
    fluid = field * _inside(_Y - level)
    return np.choose(label[:, None, None], [np.zeros_like(spot), spot, patches, fluid])


def _ct(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing, a bleed inside the brain, or a crescent along the inside of the skull."""
    n = len(label)
    angle, depth = _column(rng.uniform(0, 2 * np.pi, n)), _column(rng.uniform(0.12, 0.4, n))
    cx, cy = 0.75 * depth * np.cos(angle), depth * np.sin(angle)
    bleed = _blob(cx, cy, 0.17)
    brain = 0.92 - np.hypot((_X + 0.3 * np.cos(angle)) / 0.75, _Y + 0.3 * np.sin(angle))  # pushed to the other side
    crescent = _head(0.92) * (1 - _inside(brain, 0.05))
    return np.choose(label[:, None, None], [np.zeros_like(bleed), bleed, crescent])


def _us(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A bright pleural line with its echoes below: parallel bands, or rays running down."""
    n = len(label)
    y = _Y - _column(rng.uniform(-0.75, -0.55, n)) - _column(rng.uniform(-0.15, 0.15, n)) * _X
    pleura = np.exp(-((y / 0.08) ** 2))
    spacing = _column(rng.uniform(0.32, 0.45, n))
    phase = np.abs((y + spacing / 2) % spacing - spacing / 2)
    bands = 0.6 * (y > spacing / 2) * np.exp(-((phase / 0.07) ** 2)) * np.exp(-0.5 * y)
    rays = np.zeros_like(pleura)
    for _ in range(2):
        foot, tilt = _column(rng.uniform(-0.7, 0.7, n)), _column(rng.uniform(-0.2, 0.2, n))
        rays = np.maximum(rays, 0.6 * (y > 0) * np.exp(-(((_X - foot - tilt * y) / 0.11) ** 2)))
    return np.maximum(pleura, np.where(_column(label) == 0, bands, rays))


def _plain(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.zeros((n, 1, 1), np.float32)


def _chest(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two dark lung fields, ribs across."""
    ribs = 0.08 * np.cos(9 * (_Y + 0.25 * _X**2) + _column(rng.uniform(0, 2 * np.pi, n)))
    return 0.1 - 0.6 * (_lung(-1) + _lung(1)) * (1 + ribs)


def _skull(rng: np.random.Generator, n: int) -> np.ndarray:
    """A grey brain in a bright ring, on black."""
    brain = _head(1.0) - _head(0.92)
    return (1.0 * brain + 0.75 * _head(0.92) - 0.9 + 0.08 * _texture(rng, n) * _head(0.92)).astype(np.float32)


def _lung(side: np.ndarray | int) -> np.ndarray:
    return _inside(1 - np.hypot((_X - 0.45 * side) / 0.36, (_Y + 0.05) / 0.75), 0.08)


def _head(radius: float) -> np.ndarray:
    return _inside(radius - np.hypot(_X / 0.75, _Y), 0.05)


def _breasts() -> np.ndarray:
    return _blob(-0.5, 0.5, 0.35) + _blob(0.5, 0.5, 0.35)


def _lines(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three thin dark lines across the image at random places: hairs, tubes, streaks."""
    lines = np.zeros((n, SIZE, SIZE), np.float32)
    for _ in range(3):
        angle, offset = _column(rng.uniform(0, np.pi, n)), _column(rng.uniform(-0.7, 0.7, n))
        lines -= np.exp(-(((_X * np.cos(angle) + _Y * np.sin(angle) - offset) / 0.06) ** 2))
    return lines


def _moved(rng: np.random.Generator, n: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates shifted and rotated at random, one frame per row."""
    x, y = (axis - _column(rng.uniform(-reach, reach, n)) for axis in (_X, _Y))
    angle = _column(rng.uniform(0, 2 * np.pi, n))
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _grain(rng: np.random.Generator, n: int) -> np.ndarray:
    """Unit noise with grains of 2 x 2 pixels."""
    return rng.standard_normal((n, SIZE // 2, SIZE // 2), np.float32).repeat(2, axis=1).repeat(2, axis=2)


def _texture(rng: np.random.Generator, n: int) -> np.ndarray:
    """Soft random patches about a quarter of the image wide, in [-1, 1]."""
    x, y = _moved(rng, n, 1.0)
    return np.sin(8 * x + 2 * np.sin(5 * y)) * np.cos(7 * y)


def _blob(x: np.ndarray | float, y: np.ndarray | float, width: float) -> np.ndarray:
    return np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / (2 * width**2))


def _inside(distance: np.ndarray, softness: float = 0.06) -> np.ndarray:
    """1 where the signed distance to an edge is positive, 0 outside, with a soft transition."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


def _column(values: np.ndarray) -> np.ndarray:
    """(rows,) as float32 (rows, 1, 1)."""
    return np.asarray(values, np.float32)[:, None, None]


def _grey(image: np.ndarray) -> np.ndarray:
    return _rgb(np.clip(128 + 90 * image, 0, 255).astype(np.uint8))


def _skin(image: np.ndarray) -> np.ndarray:
    """From dark brown to pale skin."""
    dark, pale = np.array([70, 35, 25], np.float32), np.array([250, 205, 185], np.float32)
    share = np.clip(0.62 + 0.35 * image, 0, 1)[..., None]
    return (dark + share * (pale - dark)).astype(np.uint8)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


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
