"""Writes the table of docs/evaluation.md: ``python docs/diabetes.py diabetes.csv``.

The 442 patients of scikit-learn's diabetes data, with their own age and sex. A logistic regression on eight
measurements says who is worse off than the median a year later, each fifth of the patients by a model of the other four
fifths. The file codes sex as 1 and 2 and does not say which is which; by their HDL, 2 are men (see
data/datasets/synthetic.py).
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


HEAD = ("patient", "age", "sex", "outcome", "predicted", "probability")


def rows() -> list[list[Any]]:
    """One row a patient, with the columns of ``HEAD``."""
    bunch: Any = load_diabetes(scaled=False)
    outcome = bunch.target > np.median(bunch.target)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    folds = KFold(5, shuffle=True, random_state=0)
    chance = cross_val_predict(model, bunch.data[:, 2:], outcome, cv=folds, method="predict_proba")[:, 1]
    words = {True: "worse", False: "better"}
    return [
        [f"d{row}", int(age), int(sex), words[bool(outcome[row])], words[bool(chance[row] > 0.5)], f"{chance[row]:.4f}"]
        for row, (age, sex) in enumerate(bunch.data[:, :2])
    ]


def main(path: Path) -> None:
    """Writes the table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD, *rows()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
