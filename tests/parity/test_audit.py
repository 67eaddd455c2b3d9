"""What another audit reads in our predictions, and where its names mean something else."""

import json

import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax.audit import command


pytestmark = pytest.mark.parity


def test_fairmedfm_reads_predictions_and_agrees(tmp_path):
    cli = pytest.importorskip("fairmedfm.cli", reason="pip install .[parity]")
    rng = np.random.default_rng(0)
    n = 300
    truth = rng.choice(["yes", "no"], n)
    score = np.clip(np.where(truth == "yes", 0.6, 0.4) + rng.normal(0, 0.2, n), 0, 1).round(3)
    rows = {"label": truth, "prediction": np.where(score >= 0.5, "yes", "no"), "score": score}
    rows |= {"sex": rng.choice(["F", "M"], n), "age": rng.integers(20, 90, n)}
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    out = tmp_path / "out"
    command.main([str(tmp_path / "mine.csv"), "--score", "score", "--positive", "yes", "--out", str(out)])
    given = [str(out / "predictions.csv"), "--sensitive", "sex", "age", "--label", "label", "--score", "score"]
    cli.main(["score", *given, "--pos-label", "yes", "--output", str(tmp_path / "theirs.json")])
    theirs = json.loads((tmp_path / "theirs.json").read_text())["attributes"]
    ours = json.loads((out / "metrics.json").read_text())["models"]["mine"]
    for attribute in ("sex", "age"):
        for name, figures in theirs[attribute]["groups"].items():
            (row,) = [r for r in ours["calibration"] if (r["attribute"], r["name"]) == (attribute, name)]
            assert row["n"] == figures["n"] and row["auroc"][0] == pytest.approx(figures["auc"])
            (row,) = [r for r in ours["groups"] if (r["attribute"], r["name"]) == (attribute, name)]
            # Their rates are at the threshold with the best F1 in "@best_f1", and at one half without it, as ours here.
            assert row["figures"]["true_positive_rate"]["value"] == pytest.approx(figures["tpr"])
            assert 1 - row["figures"]["false_positive_rate"]["value"] == pytest.approx(figures["tnr"])
