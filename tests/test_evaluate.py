"""The command that audits predictions: what it reads, what it refuses, what it writes."""

import base64
import csv
import dataclasses
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame
from PIL import Image
from sklearn.metrics import accuracy_score

from fairgrpo_jax import config as options, evaluate, metrics, sources
from fairgrpo_jax.audit import command, reading, runs
from fairgrpo_jax.data import media
from tests import report_page, run_folder


QUICK = ["--resamples", "100", "--permutations", "100", "--adjust", "bh"]


def written(path, rows, sep=",", encoding="utf-8"):
    pd.DataFrame(rows).to_csv(path, index=False, sep=sep, encoding=encoding)
    return path


def invented(n=240, seed=0):
    """Answers of a model that fails older patients, two records a patient."""
    rng = np.random.default_rng(seed)
    who = np.arange(n) // 2
    age = rng.integers(30, 95, n // 2)[who]
    truth = rng.choice(["yes", "no"], n)
    right = rng.random(n) < np.where(age > 75, 0.5, 0.9)
    return {
        "Study ID": [f"s{i}" for i in range(n)],
        "Patient_ID": [f"patient-{i}" for i in who],
        "Gender": rng.choice(["F", "male", ""], n // 2, p=[0.5, 0.4, 0.1])[who],
        "age": age,
        "y_true": truth,
        "y_pred": np.where(right, truth, np.where(truth == "yes", "no", "")),
        "prob": rng.random(n).round(3),
    }


def audited(capsys, *arguments):
    command.main([*map(str, arguments), *QUICK])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        command.main([*map(str, arguments), *QUICK])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    return told


def test_a_table_to_a_report(tmp_path, capsys):
    path = written(tmp_path / "mine.csv", invented())
    out = tmp_path / "out"
    told = audited(capsys, path, "--score", "prob", "--positive", "yes", "--out", out, "--checklist", "tripod")
    assert "y_pred as prediction, y_true as label, Patient_ID as patient" in told and "Gender as sex, age" in told
    assert "mine, exactly right, by age: Worst: >75" in told and "sex is unknown for" in told
    names = ["checklist.md", "groups.csv", "metrics.json", "model-card.md", "predictions.csv", "report.html"]
    assert sorted(file.name for file in out.iterdir()) == names
    page = report_page.Page(out / "report.html")
    assert not [address for address in page.addresses if not address.startswith(("#", "data:"))]
    assert "script" not in page.tags and page.tags.count("h1") == 1
    forests = [rows for known, rows in page.tables if known.get("class") == "forest"]
    assert [known["data-group"] for known, _ in forests[0][1:]] == ["all", "F", "M", "unknown"]
    for word in ("In short", "Who is in the data", "Gaps and tests", "Calibration by group", "TRIPOD+AI", "Method"):
        assert word.lower() in page.text.lower()
    for file in out.iterdir():  # neither patients nor records are named
        assert "patient-1" not in file.read_text() and "s17" not in file.read_text(), file
    numbers = json.loads((out / "metrics.json").read_text())
    rows = list(csv.DictReader((out / "groups.csv").read_text().splitlines()))
    women = next(row for row in rows if row["group"] == "F" and row["figure"] == "top1")
    table = pd.read_csv(path)
    wanted = accuracy_score(table.y_true[table.Gender == "F"], table.y_pred[table.Gender == "F"].fillna(""))
    assert float(women["value"]) == pytest.approx(wanted) and float(women["low"]) < wanted < float(women["high"])
    assert numbers["models"]["mine"]["published"]["fairness/mine/sex/female/top1"] == pytest.approx(wanted)
    assert len(numbers["made"]["sha256"]) == 1 and numbers["settings"]["positive"] == "yes"
    assert "| mine | sex | F |" in (out / "model-card.md").read_text()


def test_predictions_are_what_fairlearn_reads(tmp_path, capsys):
    audited(capsys, written(tmp_path / "mine.csv", invented()), "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    groups = pd.read_csv(tmp_path / "out" / "groups.csv")
    for attribute in ("sex", "age"):
        frame = MetricFrame(
            metrics=accuracy_score, y_true=table.label, y_pred=table.prediction, sensitive_features=table[attribute]
        )
        ours = groups[(groups.attribute == attribute) & (groups.figure == "top1")].set_index("group")["value"]
        assert dict(frame.by_group) == pytest.approx(dict(ours))


def test_ids_leave_when_they_are_asked_for(tmp_path, capsys):
    audited(capsys, written(tmp_path / "mine.csv", invented()), "--id", "study id", "--with-ids")
    rows = list(csv.DictReader((tmp_path / "mine-audit" / "predictions.csv").read_text().splitlines()))
    assert rows[5]["id"] == "s5" and rows[5]["patient"] == "patient-2"


def test_markup_in_answers_stays_text(tmp_path, capsys):
    rows = invented()
    rows["y_pred"] = rows["y_pred"].astype(object)
    rows["y_pred"][:3] = ["<script>alert(1)</script>", "</style><b>", "=1+1"]
    audited(capsys, written(tmp_path / "mine.csv", rows), "--out", tmp_path / "out", "--title", "<i>&")
    source = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in source and source.count("</style>") == 1 and "<i>&" not in source
    assert "<script>alert(1)</script>" in report_page.Page(tmp_path / "out" / "report.html").text
    assert "\n=1" not in (card := (tmp_path / "out" / "predictions.csv").read_text()) and "'=1+1" in card
    assert "<script>" not in (tmp_path / "out" / "model-card.md").read_text()


@pytest.mark.parametrize(
    "form", ["csv", "bom", "semicolons", "utf-16 is refused", "tsv", "jsonl", "parquet", "metadata"]
)
def test_all_forms_give_the_same_records(tmp_path, form, capsys):
    rows = pd.DataFrame(invented(60))
    wanted = reading.read(written(tmp_path / "wanted.csv", rows), reading.Columns(score="prob"), name="mine")
    path, columns = tmp_path / "mine.csv", reading.Columns(score="prob")
    if form == "semicolons":
        rows["prob"] = [f"{value:.3f}".replace(".", ",") for value in rows["prob"]]
        written(path, rows, sep=";", encoding="utf-8-sig")
    elif form == "metadata":
        people = rows[["Patient_ID", "Gender", "age"]].drop_duplicates()
        columns = reading.Columns(score="prob", metadata=written(tmp_path / "people.csv", people), on="patient id")
        written(path, rows.drop(columns=["Gender", "age"]))
    elif form == "jsonl":
        rows.to_json(path := tmp_path / "mine.jsonl", orient="records", lines=True)
    elif form == "parquet":
        rows.to_parquet(path := tmp_path / "mine.parquet")
    elif form == "tsv":
        written(path := tmp_path / "mine.tsv", rows, sep="\t")
    elif form == "utf-16 is refused":
        written(path, rows, encoding="utf-16")
        assert "not UTF-8" in refused(capsys, path)
        return
    else:
        written(path, rows, encoding="utf-8-sig" if form == "bom" else "utf-8")
    found = reading.read(path, columns, name="mine")
    for name in ("predictions", "labels", "patients", "scores"):
        assert getattr(found, name) == getattr(wanted, name)
    assert dict(found.attributes) == dict(wanted.attributes) and found.attributes["sex"][0] in ("F", "M", None)


@pytest.mark.parametrize(
    "change, arguments, wanted",
    [
        ({"y_pred": None}, [], "has no column prediction or predicted or pred or y_pred"),
        ({}, ["--label", "truth"], "has no column truth for the label; it has Study ID, Patient_ID"),
        ({}, ["--attributes", "race"], "has no column for the attribute race"),
        ({"y_true": ["yes"] * 59 + [""]}, [], "line 61: y_true is empty"),
        ({"age": ["62"] * 58 + ["old", "140"]}, [], "line 60: age: age is 'old'; wanted years from 0 to 130"),
        ({"Gender": ["1", "2"] * 30}, [], "line 2: Gender: sex is '1', a code"),
        ({"prob": ["0,5"] * 60}, ["--score", "prob"], "line 2: prob is '0,5'; wanted a probability from 0 to 1; write"),
        ({"prob": [7] * 60}, ["--score", "prob"], "line 2: prob is 7; wanted a probability"),
        ({"Study ID": ["a"] * 60}, ["--id", "Study ID"], "line 3: Study ID a is also on line 2"),
        ({"Y true": ["yes"] * 60}, ["--label", "YTRUE"], "has the columns y_true, Y true; wanted one"),
        ({}, ["--positive", "ja"], "got positive='ja'; wanted one of the labels, such as no, yes"),
        ({}, ["--reference", "sex=X"], "got the reference group sex=X; wanted one of F, M"),
        ({}, ["--codes", "race.1=A"], "got the code 'race.1=A'; wanted ATTRIBUTE.CODE=MEANING"),
        ({}, ["--metadata", "mine.csv"], "wanted the column by which both are joined"),
        ({}, ["--figure", "true_positive_rate"], "got --figure true_positive_rate without --positive"),
        ({}, ["--least", "1"], "at least 2 patients"),
        ({}, ["--age-edges", "50", "40"], "wanted increasing ages"),
        ({}, ["--age-edges", "nan"], "wanted increasing ages"),
        ({}, ["--age-edges", "25", "inf"], "wanted increasing ages"),
        ({}, ["--age-edges", "-5"], "wanted increasing ages"),
        ({"age": ["20-29", "30-39", "50"] * 20}, [], "25, 50, 75 of the age groups cut 20-29; wanted edges from 29"),
        ({"dataset": ["a"] * 59 + [""]}, [], "line 61: dataset is empty"),
        ({}, ["--seed", "-1"], "got seed=-1"),
        ({}, ["--on", "id"], "got --on id without --metadata"),
        ({}, ["--step", "3"], "mine.csv; wanted run folders: a table of pr"),
        ({}, ["--out", "mine.csv"], "got --out mine.csv, which is a file"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_line_and_column(tmp_path, monkeypatch, capsys, change, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    rows = {name: column for name, column in (invented(60) | change).items() if column is not None}
    told = refused(capsys, written(tmp_path / "mine.csv", rows), *arguments)
    assert wanted in told and not (tmp_path / "mine-audit").exists()


def test_files_that_are_not_there_or_empty(tmp_path, capsys):
    assert "does not exist; wanted a table of predictions or a run folder" in refused(capsys, tmp_path / "no.csv")
    (tmp_path / "empty.csv").write_text("prediction,label\n")
    assert "has no rows" in refused(capsys, tmp_path / "empty.csv")
    assert "has no evals/" in refused(capsys, tmp_path)
    (tmp_path / "ragged.csv").write_text("prediction,label\na,b\na\n")
    assert "line 3: 1 fields, the header has 2" in refused(capsys, tmp_path / "ragged.csv")


def test_what_was_made_of_the_columns_is_said(tmp_path):
    rows = {
        "prediction": ["Yes", "yes", "None", "1.0", ""], "label": ["yes", "yes", "no", "no", "no"],
        "age": ["60-69", "≥90", "30", "053Y", ""], "sex": ["1", "2", "9", "1", ""],
    }  # fmt: skip
    path = written(tmp_path / "mine.csv", rows)
    found = reading.read(path, reading.Columns(codes=["sex.1=M", "sex.2=F", "sex.9="]))
    assert found.attributes["sex"] == ["M", "F", None, "M", None]
    assert found.attributes["age"] == [64.5, 90.0, 30.0, 53.0, None]
    notes = " ".join(found.notes)
    for said in (
        "every record counts as its own patient",
        "'None', which is no label",
        "'Yes', and the label is 'yes'",
    ):
        assert said in notes
    assert "3 predictions are the label of no record" in notes and "1 of 5 records have no answer" in notes
    same = reading.read(
        path, reading.Columns(codes=["sex.1=M", "sex.2=F", "sex.9="], ignore_case=True, no_answer=["none"])
    )
    assert same.predictions == ["yes", "yes", None, "1.0", None]
    numbers = written(tmp_path / "n.csv", {"prediction": ["1.0", "0"], "label": [1, 0], "age": ["old", "young"]})
    found = reading.read(numbers)
    assert found.predictions == found.labels == ["1", "0"] and found.attributes["age"] == ["old", "young"]


def test_numbers_keep_all_of_their_digits(tmp_path, capsys):
    """Seven digits and more, as answers and, after pandas has made floats of them, as names of patients."""
    label = [1234560 + i % 3 for i in range(120)]
    path = written(tmp_path / "n.csv", {"label": label, "prediction": [1234560] * 120})
    assert "exactly right 0.333" in audited(capsys, path)
    rows = {"label": ["yes"] * 60, "prediction": ["yes"] * 60, "patient": [1234560.0 + i // 2 for i in range(60)]}
    pd.DataFrame(rows).to_parquet(tmp_path / "f.parquet")
    assert reading.read(tmp_path / "f.parquet").patients == [f"{1234560 + i // 2}" for i in range(60)]
    spelled = {"label": ["01", "1.50", "-0", "1e3"], "prediction": ["1.0", "1.5", "0", "1000"]}
    found = reading.read(written(tmp_path / "s.csv", spelled))
    assert found.predictions == found.labels == ["1", "1.5", "0", "1000"]


def test_several_questions_of_an_image_are_no_mistake(tmp_path, capsys):
    rows = {"image_id": [f"i{i // 3}" for i in range(60)], "label": ["yes"] * 60, "prediction": ["yes"] * 60}
    path = written(tmp_path / "vqa.csv", rows)
    assert "image_id repeats" in audited(capsys, path) and reading.read(path).ids is None
    assert "line 3: image_id i0 is also on line 2" in refused(capsys, path, "--id", "image_id")


def test_models_of_other_patients_are_not_compared(tmp_path, capsys):
    one, other = invented(60), invented(60)
    other["Gender"] = ["male" if sex == "F" else sex for sex in other["Gender"]]
    paths = [written(tmp_path / f"{name}.csv", rows) for name, rows in (("one", one), ("other", other))]
    assert "values of sex differ between" in refused(capsys, *paths, "--id", "Study ID")
    written(paths[1], invented(60) | {"Patient_ID": [f"p{i // 2}" for i in range(60)]})  # named otherwise
    audited(capsys, *paths, "--id", "Study ID")
    for grouped in (3, 1):
        written(paths[1], invented(60) | {"Patient_ID": [f"p{i // grouped}" for i in range(60)]})
        assert "group the records by other patients" in refused(capsys, *paths, "--id", "Study ID")


def test_a_run_and_its_steps(tmp_path, capsys):
    folder = run_folder.write(tmp_path / "run", patients=40)
    told = audited(capsys, folder, "--out", tmp_path / "last")
    assert "answers of step 200, of the evaluations at 0, 50, 100, 150, 200" in told
    audited(capsys, folder, "--step", "0", "--out", tmp_path / "first")
    rows = [json.loads(line) for line in (folder / "evals" / "000000.jsonl").read_text().splitlines()]
    people = [{"sex": row["sex"], "age": row["age"]} for row in rows]
    columns = [[row[name] for row in rows] for name in ("prediction", "answer", "dataset")]
    wanted = metrics.fairness_report([x or None for x in columns[0]], columns[1], people, columns[2])
    found = json.loads((tmp_path / "first" / "metrics.json").read_text())["models"]["run"]["published"]
    assert found == pytest.approx(wanted, abs=1e-9)
    assert "has evaluations of the steps 0, 50, 100, 150, 200; wanted 7" in refused(capsys, folder, "--step", "7")
    (folder / "evals" / "000200.jsonl").write_text('{"uid": "a"}\n')
    with pytest.raises(ValueError, match="line 1: has no dataset, patient, answer, prediction"):
        runs.read(folder)


def test_two_runs_and_two_tables_are_compared(tmp_path, capsys):
    for seed, gain in ((0, 0.0), (1, 0.3)):
        run_folder.write(tmp_path / f"run{seed}", patients=40, seed=seed, gain=gain, evaluations=1)
    audited(capsys, tmp_path / "run0", tmp_path / "run1", "--out", tmp_path / "out")
    page = report_page.Page(tmp_path / "out" / "report.html")
    assert "run1 minus run0: cxr" in page.text and page.table("compared")
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["compared"]
    whole = next(row for row in rows if (row["dataset"], row["group"], row["figure"]) == ("derm", "all", "top1"))
    groups = pd.read_csv(tmp_path / "out" / "groups.csv")
    own = groups[(groups.dataset == "derm") & (groups.group == "all") & (groups.figure == "top1")].set_index("model")
    assert whole["difference"] == pytest.approx(own["value"]["run1"] - own["value"]["run0"])

    one, other = pd.DataFrame(invented(60)), pd.DataFrame(invented(60)).sample(frac=1, random_state=0)[:50]
    paths = [written(tmp_path / f"{name}.csv", rows) for name, rows in (("one", one), ("other", other))]
    assert "one.csv has no ids; wanted a column" in refused(capsys, *paths)
    told = audited(capsys, *paths, "--id", "Study ID", "--out", tmp_path / "tables")
    assert "10 of 60 records of one were not answered by all models" in told
    compared = json.loads((tmp_path / "tables" / "metrics.json").read_text())["compared"]
    assert {row["difference"] for row in compared} <= {0, None}  # the same answers, in another order
    other["y_true"] = "no"
    written(paths[1], other)
    assert "labels differ between" in refused(capsys, *paths, "--id", "Study ID")
    assert "got an input twice" in refused(capsys, paths[0], paths[0])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and "predictions.csv --prediction answer --label truth" in told
    assert "--checklist {tripod}" in told and "sex.1=M" in told


def test_images_leave_when_they_are_asked_for(tmp_path, capsys):
    """An evaluation of the embedded clinic by a model that always says the same."""
    config = options.Config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name="synthetic"))
    records = sources.load(config)["test"].records[:60]
    rows = [
        {"uid": r.uid, "dataset": r.dataset, "patient": r.patient, "sex": r.sex, "age": r.age, "answer": r.answer}
        | {"prediction": records[0].answer, "completion": f"<b>it is</b> \\boxed{{{records[0].answer}}}"}
        for r in records
    ]
    run = tmp_path / "run"
    (run / "evals").mkdir(parents=True)
    (run / "evals" / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.json").write_text(json.dumps(options.to_dict(config)))
    evaluate.main([str(run), "--out", str(tmp_path / "plain"), *QUICK])
    plain = report_page.Page(tmp_path / "plain" / "report.html")
    assert "img" not in plain.tags and "It holds no images of patients" in plain.text
    evaluate.main([str(run), "--images", "--out", str(tmp_path / "shown"), *QUICK])
    shown = report_page.Page(tmp_path / "shown" / "report.html")
    urls = {address for address in shown.addresses if address.startswith("data:image/png")}
    told = int(re.findall(r"images of (\d+) records", shown.text)[0])
    assert told >= len(urls) > 3 and "It holds no ids of patients" in shown.text and records[9].uid not in shown.source
    pixels = {np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))).tobytes() for url in urls}
    assert pixels <= {media.decode_record(record).images[0].tobytes() for record in records if record.media}
    table = written(tmp_path / "mine.csv", invented(60))
    assert "a table of predictions has no images" in refused(capsys, table, "--images")
