"""The clinic is what its description says: shares, patients, real measurements, gaps, and the same bytes every time."""

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from fairgrpo_jax.data import demographics, media, splits
from fairgrpo_jax.data.datasets import synthetic
from fairgrpo_jax.data.record import conversation, target


DRAWN = ("derm", "cxr", "ct", "us")
SPLITS = ("train", "warmup", "test")


@pytest.fixture(scope="module")
def clinic():
    return {split: synthetic.load(split) for split in SPLITS}


def of(source, domain):
    return [record for record in source.records if record.dataset == domain]


def fingerprint(records):
    digest = hashlib.sha256()
    for r in records:
        facts = (r.uid, r.dataset, r.question, r.answer, r.choices, r.patient, r.sex, r.age, r.split, r.finding)
        digest.update(repr(facts).encode() + r.media[0].pixels.tobytes())
    return digest.hexdigest()


def test_the_same_bytes_in_another_process():
    code = (
        "import test_data_synthetic as t; from fairgrpo_jax.data.datasets import synthetic;"
        "print(*(t.fingerprint(synthetic.load(s, seed=5, scale=0.05)) for s in t.SPLITS))"
    )
    here = Path(__file__).resolve().parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}", "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [fingerprint(synthetic.load(split, seed=5, scale=0.05)) for split in SPLITS]


def test_the_same_bytes_in_another_call_and_others_for_another_seed():
    first = fingerprint(synthetic.load("test", scale=0.1))
    synthetic._records.cache_clear()
    assert fingerprint(synthetic.load("test", scale=0.1)) == first
    assert fingerprint(synthetic.load("test", scale=0.1, seed=1)) != first


def test_a_domain_alone_is_the_same_as_among_others(clinic):
    assert fingerprint(synthetic.load("warmup", domains=("ct",))) == fingerprint(of(clinic["warmup"], "ct"))


def test_sizes(clinic):
    train, test = (Counter(r.dataset for r in clinic[split]) for split in ("train", "test"))
    assert [train[name] for name in DRAWN] == [4000, 5000, 1500, 400]
    assert [test[name] for name in DRAWN] == [360, 360, 360, 180]
    assert train["diabetes"] + test["diabetes"] == 442 and train["digits"] + test["digits"] == 900
    for name, total in (("diabetes", 442), ("digits", 900)):
        assert test[name] / total == pytest.approx(0.4, abs=4 * np.sqrt(0.24 / total))
    assert len(clinic["test"]) <= 1800
    assert len({r.uid for split in ("train", "test") for r in clinic[split]}) == len(clinic["train"]) + len(
        clinic["test"]
    )


def cells(records):
    return Counter((demographics.age_name(r.age), r.sex) for r in records)


@pytest.mark.parametrize(
    "domain,shares",
    [
        ("derm", (0.30, 0.26, 0.18, 0.16, 0.04, 0.06)),
        ("cxr", (0.18, 0.26, 0.20, 0.28, 0.03, 0.05)),
        ("ct", (0.16, 0.20, 0.22, 0.32, 0.06, 0.04)),
    ],
)
def test_group_shares(clinic, domain, shares):
    order = [(age, sex) for age in ("26–50", "51–75", ">75") for sex in ("F", "M")]
    train = cells(of(clinic["train"], domain))
    assert [train[cell] / train.total() for cell in order] == pytest.approx(shares)
    assert cells(of(clinic["test"], domain)) == dict.fromkeys(order, 60)


def test_ultrasound_has_ages_but_no_sex(clinic):
    assert cells(of(clinic["train"], "us")) == {("26–50", None): 248, ("51–75", None): 120, (">75", None): 32}


def test_classes_are_equally_frequent_in_every_group(clinic):
    for domain in DRAWN:
        counts = Counter((demographics.age_name(r.age), r.sex, r.answer) for r in of(clinic["test"], domain))
        assert set(counts.values()) == {60 // len(synthetic.DOMAINS[domain].findings)}


def test_patients(clinic):
    splits.check_leakage(clinic["train"], clinic["test"])
    splits.check_leakage(clinic["warmup"], clinic["test"])
    visits = defaultdict(set)
    for record in (*clinic["train"], *clinic["test"]):
        visits[record.dataset, record.patient].add((record.sex, record.age))
    assert all(len(facts) == 1 for facts in visits.values())
    per_patient = Counter(Counter(r.patient for r in of(clinic["train"], "derm")).values())
    assert set(per_patient) == {1, 2, 3}
    assert per_patient[1] / per_patient.total() == pytest.approx(0.6, abs=0.05)


def test_warmup_is_a_part_of_train_with_wrong_answers_and_right_findings(clinic):
    train = {r.uid: r for r in clinic["train"]}
    wrong = 0
    for record in clinic["warmup"]:
        clean = train[record.uid]
        assert record.split == "warmup" and record.answer in record.choices
        assert (record.finding, record.patient, record.choices) == (clean.finding, clean.patient, clean.choices)
        assert record.media[0].pixels is clean.media[0].pixels
        wrong += record.answer != clean.answer
    assert wrong / len(clinic["warmup"]) == pytest.approx(0.25, abs=0.002)
    assert len(clinic["warmup"]) / len(train) == pytest.approx(0.35, abs=0.03)
    assert {r.split for r in clinic["train"]} == {"train"}
    clean = synthetic.load("warmup", label_noise=0.0)
    assert [r.uid for r in clean] == [r.uid for r in clinic["warmup"]]
    assert all(record.answer == train[record.uid].answer for record in clean)


def test_wording_is_what_the_tokenizer_knows(clinic):
    expected = {
        "derm": {"Nevus": "round", "Melanoma": "elongated", "Basal Cell Carcinoma": "ring", "Other": "lobed"},
        "cxr": {"Normal": "clear", "Nodule": "focal", "Pneumonia": "diffuse", "Effusion": "basal"},
        "ct": {"No Hemorrhage": "none", "Intraparenchymal": "focal", "Subdural": "crescent"},
        "us": {"A-lines": "bands", "B-lines": "rays"},
        "diabetes": {"Slow": "low", "Fast": "high"},
        "digits": {digit: "loop" if digit in "0689" else "open" for digit in "0123456789"},
    }
    questions = {
        "derm": "What does this dermoscopy image show?",
        "cxr": "What does this chest X-ray show?",
        "ct": "What does this head CT slice show?",
        "us": "What does this lung ultrasound show?",
        "diabetes": "Does this patient's diabetes progress fast?",
        "digits": "Which digit is this?",
    }
    for record in (*clinic["train"], *clinic["test"]):
        assert record.question == questions[record.dataset]
        assert record.choices == tuple(expected[record.dataset])
        assert target(record) == f"<think>{expected[record.dataset][record.answer]}</think>\\boxed{{{record.answer}}}"
    assert {(r.dataset, r.answer) for r in clinic["test"]} == {
        (d, a) for d, answers in expected.items() for a in answers
    }


def test_prompts_tell_no_demographics(clinic):
    for domain in synthetic.DOMAINS:
        prompts = {str(conversation(r)) for r in of(clinic["train"], domain)}
        (prompt,) = prompts  # whoever the patient is
        assert not re.search(r"\b(age|aged|old|young|years?|sex|male|female|man|woman)\b", prompt, re.IGNORECASE)


def test_images_are_small_rgb_and_shared_read_only(clinic):
    for record in clinic["test"]:
        pixels = record.media[0].pixels
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8 and not pixels.flags.writeable
        assert pixels.std() > 3
    grey = media.decode(of(clinic["test"], "cxr")[0].media[0])
    assert (grey[..., :1] == grey).all()


def test_diabetes_patients_are_the_real_ones(clinic):
    """Age, sex, outcome and the height of each bar against scikit-learn's table."""
    table: Any = load_diabetes(scaled=False)
    for record in (*of(clinic["train"], "diabetes"), *of(clinic["test"], "diabetes")):
        row = int(record.patient)
        assert record.age == table.data[row, 0]
        assert record.sex == {1: "F", 2: "M"}[table.data[row, 1]]
        assert record.answer == ("Fast" if table.target[row] > 140.5 else "Slow")  # the median of the 442
        bars = record.media[0].pixels[..., 0] > 128
        heights = bars.sum(axis=0).reshape(8, 4)
        assert (heights == heights[:, :1]).all() and (np.diff(bars.astype(int), axis=0) >= 0).all()  # from the bottom
        values, low, high = table.data[row, 2:], table.data[:, 2:].min(0), table.data[:, 2:].max(0)
        assert np.abs(heights[:, 0] - 32 * (values - low) / (high - low)).max() <= 1


def test_digits_are_the_real_ones(clinic):
    table: Any = load_digits()
    for record in of(clinic["test"], "digits"):
        row = int(record.patient)
        assert record.answer == str(table.target[row]) and (record.sex, record.age) == (None, None)
        small = media.decode(record.media[0]).reshape(8, 4, 8, 4, 3)
        np.testing.assert_array_equal(small.min(axis=(1, 3, 4)), small.max(axis=(1, 3, 4)))
        np.testing.assert_array_equal(small[:, 0, :, 0, 0], np.minimum(table.images[row] * 16, 255))


def accuracy_by_age(domain, **options):
    """Test accuracy of a support vector machine that saw up to 1500 records: overall, and by age bin."""

    def arrays(split):
        records = synthetic.load(split, domains=(domain,), **options).records
        pixels = np.stack([media.decode(r.media[0])[::2, ::2, 0].ravel() / 255 for r in records])
        return (
            pixels,
            np.array([r.answer for r in records]),
            np.array([str(demographics.age_name(r.age)) for r in records]),
        )

    (x, y, _), (x_test, y_test, ages) = arrays("train"), arrays("test")
    x, y = x[:1500], y[:1500]
    right = make_pipeline(PCA(50, random_state=0), SVC(C=3)).fit(x, y).predict(x_test) == y_test
    return right.mean(), {age: right[ages == age].mean() for age in np.unique(ages)}


@pytest.mark.parametrize("domain,chance", [("derm", 1 / 4), ("cxr", 1 / 4), ("ct", 1 / 3), ("us", 1 / 2)])
def test_classes_can_be_learned_and_the_oldest_are_harder(domain, chance):
    overall, by_age = accuracy_by_age(domain)
    assert overall > chance + 0.3
    assert by_age["26–50"] > by_age[">75"] + 0.05
    assert by_age["26–50"] > 0.8


@pytest.mark.parametrize("domain,chance", [("diabetes", 1 / 2), ("digits", 1 / 10)])
def test_real_domains_can_be_learned(domain, chance):
    assert accuracy_by_age(domain)[0] > chance + 0.08


def test_control_has_no_gaps_and_equal_groups():
    _, by_age = accuracy_by_age("derm", control=True)
    assert max(by_age.values()) - min(by_age.values()) < 0.1
    assert max(cells(synthetic.load("train", domains=("ct",), control=True)).values()) == 250


def test_demographics_are_missing_for_a_share_of_the_training_patients_only():
    whole, hidden = (synthetic.load("train", domains=("ct",), missing=share).records for share in (0.0, 0.3))
    unknown = [record.age is None and record.sex is None for record in hidden]
    assert 0.25 < np.mean(unknown) < 0.35
    for before, after in zip(whole, hidden, strict=True):
        assert (before.uid, before.answer, before.patient) == (after.uid, after.answer, after.patient)
        assert after.age in (None, before.age) and after.sex in (None, before.sex)
    by_patient = {}
    for record, lost in zip(hidden, unknown, strict=True):
        by_patient.setdefault(record.patient, set()).add(lost)
    assert all(len(found) == 1 for found in by_patient.values())
    assert all(record.age for record in synthetic.load("test", domains=("ct",), missing=0.3))


def test_thoughts_of_the_warm_up_are_of_many_lengths_if_asked():
    plain, wordy = (synthetic.load("warmup", domains=("ct",), wordy=most).records for most in (1, 4))
    times = []
    for before, after in zip(plain, wordy, strict=True):
        said = after.finding.split()
        assert {*said} == {before.finding} and dataclasses.replace(after, finding=before.finding) == before
        times.append(len(said))
    assert {*times} == {1, 2, 3, 4} and abs(np.mean(times) - 2.5) < 0.2
    assert {r.finding for r in synthetic.load("train", domains=("ct",), wordy=4)} == {r.finding for r in plain}


def test_size_of_the_test_cells():
    assert set(cells(synthetic.load("test", domains=("us", "ct"), test_cell=7)).values()) == {7}
    assert set(cells(synthetic.load("test", domains=("ct",))).values()) == {60}


def test_contact_sheet_shows_the_class_and_age_it_says():
    sheet = np.array(synthetic.contact_sheet(("ct", "digits"), zoom=1))
    assert sheet.shape == (4 * 34, 10 * 34, 3)
    tile = sheet[2 * 34 + 1 : 3 * 34 - 1, 34 + 1 : 2 * 34 - 1]  # third row, second column
    owners = [r for r in synthetic.load("test", domains=("ct",)) if (r.media[0].pixels == tile).all()]
    assert [(demographics.age_name(r.age), r.answer) for r in owners] == [(">75", "Intraparenchymal")]


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"split": "valid"}, "'valid'; the clinic has 'train', 'warmup' and 'test'"),
        ({"split": "test", "domains": ("ct", "mri")}, r"unknown \['mri'\]"),
        ({"split": "test", "domains": ()}, "wanted some of derm"),
        ({"split": "test", "domains": ("ct", "ct")}, "each once"),
        ({"split": "test", "scale": 0.0}, "scale 0.0"),
        ({"split": "warmup", "label_noise": 1.5}, "label_noise 1.5"),
        ({"split": "test", "seed": -1}, "seed -1"),
        ({"split": "test", "test_cell": 0}, "test_cell 0"),
        ({"split": "train", "missing": 1.5}, "missing 1.5"),
        ({"split": "warmup", "wordy": 0}, "wordy 0"),
    ],
)
def test_what_the_clinic_does_not_have(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.load(**arguments)
