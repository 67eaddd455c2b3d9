"""Images of the synthetic clinic, by formula: a finding on a background, by class, age stratum and sex."""

import numpy as np


SIZE = 32  # pixels per side: 8 x 8 patches of 4 pixels

# One value per age stratum.
CONTRAST = np.array([1.0, 0.9, 0.7])
NOISE = np.array([0.18, 0.23, 0.32])
TONE = np.array([-0.2, 0.0, 0.25])
CLUTTER = np.array([0.0, 0.1, 0.3])
POLARITY = {"derm": np.array([-1, -1, 1]), "cxr": np.array([1, 1, 1]), "ct": np.array([1, 1, -1])}
SEX_CONTRAST = 0.92  # women, all generated domains
BREAST_SHADOW = 0.15  # women, cxr
FAINT, CHRONIC = 0.8, 0.4  # cxr over 75: gain of the finding, strength of the chronic change over it

_Y, _X = np.meshgrid(
    np.linspace(-1, 1, SIZE, dtype=np.float32), np.linspace(-1, 1, SIZE, dtype=np.float32), indexing="ij"
)


def paint(
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
    return rgb(np.clip(128 + 90 * image, 0, 255).astype(np.uint8))


def _skin(image: np.ndarray) -> np.ndarray:
    """From dark brown to pale skin."""
    dark, pale = np.array([70, 35, 25], np.float32), np.array([250, 205, 185], np.float32)
    share = np.clip(0.62 + 0.35 * image, 0, 1)[..., None]
    return (dark + share * (pale - dark)).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)
