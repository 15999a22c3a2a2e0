"""The page as a reader without a browser sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from selkit.errors import InvalidTypeError
from selkit.report import Report, Sample, write_report
from selkit.report.page import decimal, number, p_text, render


def make_report(**kwargs) -> Report:
    generator = np.random.default_rng(0)
    samples = [
        Sample(
            generator.normal(size=(6, 6)),
            score=0.1 * i,
            selected=i < 6,
            name=f"sample <{i}>",
            group="cells" if i % 2 else "stones",
            roi=np.eye(6),
            target=np.eye(6),
            p_value=10.0**-i if i < 6 else None,
            naive_p_value=0.0 if i < 6 else None,
            details={"note": 'a "quoted" <note>'},
        )
        for i in range(8)
    ]
    given = {
        "samples": samples,
        "threshold": 0.55,
        "summary": ["What <was> done."],
        "facts": {"noise": 0.25},
        "metrics": {"full/Dice": 0.5, "selected/Dice": 0.75, "rejected/Dice": float("nan"), "AURC": 0.125},
        "risk_coverage": (np.arange(1, 9) / 8, np.linspace(0, 0.7, 8)),
        "scores": {"calibration": [0.1, 0.2]},
    }
    return Report("A run & more", **{**given, **kwargs})


class Page(HTMLParser):
    """Elements with their attributes, and the text of table rows and tiles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        self.texts.append(data.strip())
        if self._cell:
            self.rows[-1][-1] += data.strip()


def test_rows_say_what_was_decided():
    rows = Page(render(make_report())).rows
    assert ["stones", "4", "3", "75.0 %", ""] in rows
    assert ["cells", "4", "3", "75.0 %", ""] in rows
    assert ["Dice", "0.500", "0.750", "–"] in rows
    assert ["samples", "8", "6", "2"] in rows
    assert ["50 %", "0.3"] in rows


def test_given_counts_are_shown_instead_of_those_of_the_samples():
    rows = Page(
        render(make_report(metrics={"full/Dice": 0.5, "full/count": 100.0, "selected/count": 7.0}))
    ).rows
    assert ["count", "100", "7", "–"] in rows
    assert not any(row[:1] == ["samples"] for row in rows)


def test_tiles_count_small_p_values():
    texts = [text for text in Page(render(make_report())).texts if text]
    assert texts[texts.index("regions with p ≤ 0.05") + 1 :][:2] == ["4", "of 6 tested; naive: 6"]
    assert texts[texts.index("noise") + 1] == "0.25"
    assert texts[texts.index("AURC") + 1] == "0.125"


def test_every_image_says_in_words_what_it_shows():
    page = Page(render(make_report()))
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert [image["alt"] for image in images[:1]] == [
        "sample <0>: selected, score 0, p = 1.000, region of 6 pixels"
    ]
    assert all(image["alt"] for image in images)
    plots = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("role") == "img"]
    assert len(plots) == 2
    assert all(attrs["aria-label"] for attrs in plots)
    hidden = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("role") != "img"]
    assert all(attrs.get("aria-hidden") == "true" for attrs in hidden)


def test_scores_called_like_a_kind_of_sample_are_drawn_beside_it():
    text = render(make_report(scores={"cells": [0.3, 0.4, 0.5]}))
    assert re.search(r'aria-label="Density[^"]*cells \(median 0.4\), stones [^"]*, cells \(samples\)', text)


def test_text_is_escaped():
    text = render(make_report())
    assert "<title>A run &amp; more</title>" in text
    assert "What &lt;was&gt; done." in text
    assert "<0>" not in text
    assert "<note>" not in text


def test_nothing_is_fetched():
    text = render(make_report())
    addresses = [
        value
        for _, attrs in Page(text).elements
        for name, value in attrs.items()
        if name in ("src", "href", "action", "srcset", "poster")
    ]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_labels_point_somewhere():
    elements = Page(render(make_report())).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in elements:
        assert attrs.get("aria-labelledby", ids[0]) in ids


@pytest.mark.parametrize(
    "report",
    [Report("empty"), make_report(samples=[]), make_report(metrics={}, risk_coverage=None, threshold=None)],
)
def test_what_is_left_out_is_not_drawn(report):
    text = render(report)
    assert ("What was decided" in text) == bool(report.samples or report.facts or report.metrics)
    assert ('id="cards"' in text) == bool(report.samples)


def test_samples_without_regions_and_tests_need_no_controls_for_them():
    text = render(Report("r", [Sample(np.eye(3), float("nan"), False)]))
    assert 'name="roi"' not in text
    assert 'name="p"' not in text
    assert "sample 0" in text
    assert "<dd>–</dd>" in text


def test_files_and_folders(tmp_path):
    report = Report("r")
    assert write_report(tmp_path, report) == tmp_path / "index.html"
    assert write_report(tmp_path / "new", report) == tmp_path / "new" / "index.html"
    assert write_report(str(tmp_path / "a" / "page.html"), report) == tmp_path / "a" / "page.html"
    assert (tmp_path / "a" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_only_a_report_is_written(tmp_path):
    with pytest.raises(InvalidTypeError, match=r"report must be a selkit\.report\.Report, got dict"):
        write_report(tmp_path, {"title": "r"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "< 1e-300"),
        (1e-12, "1.0e-12"),
        (0.00099, "9.9e-04"),
        (0.25, "0.250"),
        (1.0, "1.000"),
        (None, "–"),
    ],
)
def test_p_values_in_text(value, text):
    assert p_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.123456, "0.1235"), (float("nan"), "–"), (float("inf"), "inf"), ("a", "a")],
)
def test_numbers_in_text(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3"), (0.16, "0.160"), (1e-5, "1e-05"), (123456.5, "1.235e+05"), (float("nan"), "–")],
)
def test_numbers_in_columns(value, text):
    assert decimal(value) == text


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    style = (files("selkit.report") / "templates" / "style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ground in ("page", "panel"):
        for name in ("text", "soft", "accent", "good", "bad"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for line in ("s0", "s1", "s2", "s3", "s4", "s5"):
            assert contrast(colours[line], colours[ground]) >= 3, (line, ground)
