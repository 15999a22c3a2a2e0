"""report: results of select and test, joined by index, on one page."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from selkit.cli.tables import read_rows, write_rows
from selkit.errors import FileFormatError


@pytest.fixture
def results(tmp_path):
    """What select and test would have written about five images."""
    decisions = [{"index": k, "name": "", "score": k / 4, "selected": k < 3, "error": None} for k in range(5)]
    decisions[4] |= {"score": None, "error": "it has NaN or infinity"}
    tests = [
        {
            "index": k,
            "name": "",
            "p_value": 0.01 * (k + 1),
            "naive_p_value": 0.001,
            "rejected": k == 0,
            "error": None,
        }
        for k in range(4)
    ]
    write_rows(tmp_path / "d.csv", tuple(decisions[0]), decisions)
    write_rows(tmp_path / "t.jsonl", tuple(tests[0]), tests)
    regions = np.zeros((5, 6, 6), np.uint8)
    regions[:4, 2:4, 2:4] = 1
    np.save(tmp_path / "r.npy", regions)
    images = np.random.default_rng(0).normal(size=(5, 1, 6, 6))
    images[4, 0, 0, 0] = np.nan
    np.save(tmp_path / "i.npy", images)
    return tmp_path


def test_a_page_with_a_gallery(selkit, results):
    page = results / "page.html"
    ended = selkit("report", results / "d.csv", results / "t.jsonl", "--images", results / "i.npy",
                   "--regions", results / "r.npy", "-o", page, "--title", "A <title>", "--json")  # fmt: skip
    assert (ended.code, ended.json["samples"], ended.json["shown"]) == (0, 5, 5)
    text = page.read_text(encoding="utf-8")
    assert "A &lt;title&gt;" in text
    for part in ("sample 0", "sample 4", "60.0", "it has NaN or infinity", "p = 0.010"):
        assert part in text


def test_a_page_without_images(selkit, results):
    page = results / "page.html"
    ended = selkit("report", results / "d.csv", "-o", page, "--json")
    assert (ended.code, ended.json["shown"]) == (0, 5)
    assert "60.0" in page.read_text(encoding="utf-8")


def test_a_score_adds_its_promise(selkit, results, data):
    score = results / "s.safetensors"
    selkit("fit", data["train"], "--calibration", data["calibration"], "--score", "euclidean",
           "--coverage", "0.9", "-o", score)  # fmt: skip
    assert selkit("report", results / "d.csv", "--score", score, "-o", results / "page.html").code == 0
    text = (results / "page.html").read_text(encoding="utf-8")
    assert "EuclideanScore, fitted on 60 references: accepts a new sample with probability" in text
    assert "calibration" in text


def test_the_gallery_has_a_limit(selkit, results):
    ended = selkit(
        "report", results / "d.csv", "--images", results / "i.npy", "-o", results / "p.html", "--limit", "2"
    )
    assert "the gallery has the first 2 of 5 samples; --limit shows more" in ended.err
    text = (results / "p.html").read_text(encoding="utf-8")
    assert "sample 1" in text
    assert "sample 2" not in text
    assert "60.0%" in text  # of all


def test_kinds_of_samples(selkit, results):
    (results / "kinds.txt").write_text("dog\ndog\ncat\ncat\nhen\n")
    selkit("report", results / "d.csv", "-o", results / "p.html", "--groups", results / "kinds.txt")
    text = (results / "p.html").read_text(encoding="utf-8")
    assert all(f">{kind}<" in text for kind in ("dog", "cat", "hen"))
    ended = selkit("report", results / "d.csv", "-o", results / "p.html", "--groups", results / "d.csv")
    assert ended.code == 0
    (results / "kinds.txt").write_text("dog\n")
    ended = selkit("report", results / "d.csv", "-o", results / "p.html", "--groups", results / "kinds.txt")
    assert "kinds.txt has 1 lines, but the results go to 4" in ended.complaint


def test_folders_are_kinds(selkit, tmp_path):
    rows = [
        {"index": k, "name": name, "score": 1.0, "selected": True}
        for k, name in enumerate(("a/1.png", "b/1.png"))
    ]
    write_rows(tmp_path / "d.csv", tuple(rows[0]), rows)
    selkit("report", tmp_path / "d.csv", "-o", tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert ">a<" in text
    assert ">b<" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["d.csv", "d.csv"], "another result has score of sample 0 already"),
        (["no.csv"], "no.csv: No such file or directory"),
        (["i.npy"], "results end with one of .csv, .json, .jsonl"),
        (["bad.json"], "is not readable as json"),
        (["list.json"], "has no rows with an index"),
        (["empty.json"], "there are no rows"),
        (["negative.json"], "index -1 is no position"),
        (["d.csv", "other.json"], "sample 0 is b.png, but a.png in another result"),
        (["d.csv", "--images", "few.npy"], "few.npy has 2 entries, but the results go to 4"),
        (["d.csv", "--images", "i.npy", "--regions", "few.npy"], "few.npy has 2 entries"),
    ],
)
def test_wrong_input_is_one_line(selkit, results, monkeypatch, arguments, text):
    monkeypatch.chdir(results)
    np.save("few.npy", np.zeros((2, 6, 6)))
    contents = {
        "list": [1],
        "empty": [],
        "negative": [{"index": -1}],
        "other": [{"index": 0, "name": "b.png"}],
    }
    for name, content in contents.items():
        (results / f"{name}.json").write_text(json.dumps(content))
    (results / "bad.json").write_text("{")
    if "other.json" in arguments:
        (results / "d.csv").write_text("index,name\n0,a.png\n")
    ended = selkit("report", *arguments, "-o", "page.html")
    assert (ended.code, ended.out) == (1, "")
    assert text in ended.complaint
    assert not (results / "page.html").exists()


def test_the_page_must_be_html(selkit, results):
    ended = selkit("report", results / "d.csv", "-o", results / "page.pdf")
    assert "the name must end with one of .html, .htm" in ended.complaint


ROWS = [
    {
        "index": 0,
        "name": 'a "quoted", name\nin two lines',
        "score": 0.1 + 0.2,
        "selected": True,
        "error": None,
    },
    {"index": 1, "name": "007", "score": float("nan"), "selected": False, "error": "1.5"},
]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_rows_come_back_as_they_were(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    write_rows(path, tuple(ROWS[0]), ROWS)
    assert read_rows(path) == [ROWS[0], {**ROWS[1], "score": None}]
    write_rows(path, tuple(ROWS[0]), [])
    assert read_rows(path) == []


def test_csv_is_what_python_reads(tmp_path):
    write_rows(tmp_path / "rows.csv", tuple(ROWS[0]), ROWS)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == ROWS[0]["name"]
    assert float(rows[0]["score"]) == 0.1 + 0.2


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("before")

    def rows():
        yield ROWS[0]
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_rows(path, tuple(ROWS[0]), rows())
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_rows_with_too_few_cells(tmp_path):
    (tmp_path / "rows.csv").write_text("index,score\n0\n")
    with pytest.raises(FileFormatError, match="a row has too few cells"):
        read_rows(tmp_path / "rows.csv")
