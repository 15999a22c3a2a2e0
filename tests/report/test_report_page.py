"""The page as a reader without a browser sees it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from hostile_texts import INJECTIONS, hostile
from scipy.stats import false_discovery_control

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.report import Report, Sample, write_report
from selkit.report.page import checksum, render
from selkit.report.text import change_text, decimal, number, p_text, plain


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
        "guarantees": ["Accepts <nine> of ten."],
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
    assert re.search(r'data-score=""[^>]*>.*<dd data-cell="score">–</dd>', text, re.DOTALL)


def test_files_and_folders(tmp_path):
    report = Report("r")
    assert write_report(tmp_path, report) == tmp_path / "index.html"
    assert write_report(tmp_path / "new", report) == tmp_path / "new" / "index.html"
    assert write_report(str(tmp_path / "a" / "page.html"), report) == tmp_path / "a" / "page.html"
    assert (tmp_path / "a" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_only_a_report_is_written(tmp_path):
    with pytest.raises(InvalidTypeError, match=r"report must be a selkit\.report\.Report, got dict"):
        write_report(tmp_path, {"title": "r"})


def test_the_guarantee_stands_beside_the_decisions():
    texts = [text for text in Page(render(make_report())).texts if text]
    assert texts[texts.index("Under which guarantee") + 1] == "Accepts <nine> of ten."
    assert "Under which guarantee" not in render(make_report(guarantees=[]))


def cells(text: str, name: str) -> list[str]:
    return re.findall(rf'data-cell="{name}"[^>]*>([^<]*)<', text)


@pytest.mark.parametrize("method", ["bh", "by"])
def test_p_values_are_adjusted_as_scipy_does(method):
    p_values = [10.0**-i for i in range(6)]
    expected = false_discovery_control(p_values, method=method)
    text = render(make_report(adjust=method))
    assert cells(text, "adjusted") == [p_text(p) for p in expected] + ["–", "–"]
    texts = [part for part in Page(text).texts if part]
    assert texts[texts.index("after adjustment") + 1] == str((expected <= 0.05).sum())


def test_given_adjusted_p_values_are_kept():
    samples = [
        Sample(None, 0.1, True, p_value=0.01, adjusted_p_value=0.3),
        Sample(None, 0.2, True, p_value=0.02),
    ]
    assert cells(render(Report("r", samples)), "adjusted") == ["0.300", "–"]


def test_without_adjustment_there_is_no_column():
    assert "adjusted" not in cells(render(make_report(adjust="none")), "adjusted")
    assert "after adjustment" not in render(make_report(adjust="none"))


def test_what_conditioning_on_acceptance_changed_is_counted():
    pairs = [(0.04, 0.06), (0.5, 0.4), (0.01, 0.01), (0.2, None)]
    samples = [
        Sample(None, 0.1, True, name=f"s{i}", p_value=with_, p_value_without_acceptance=without)
        for i, (without, with_) in enumerate(pairs)
    ]
    text = render(Report("r", samples))
    rows = Page(text).rows
    assert ["p ≤ 0.05, acceptance forgotten", "2"] in rows
    assert ["p ≤ 0.05, conditioned on acceptance", "1"] in rows
    assert ["on different sides of 0.05", "1"] in rows
    assert ["change, on average", "0.04"] in rows
    assert ["change, at most", "0.1"] in rows
    assert cells(text, "change") == ["+0.020", "-0.100", "0", "–"]
    assert "What conditioning on acceptance changed" not in render(make_report())


def test_losses_give_a_curve_with_an_interval():
    draw = np.random.default_rng(0)
    samples = [
        Sample(None, score=s, selected=s < 0.5, loss=float(draw.random() < s)) for s in draw.random(80)
    ]
    report = Report("r", samples)
    curve = report.curve()
    order = np.argsort([s.score for s in samples], kind="stable")
    losses = np.array([samples[i].loss for i in order])
    for coverage, risk in zip(curve.coverage, curve.risk, strict=True):
        assert risk == pytest.approx(losses[: int(np.ceil(coverage * 80 - 1e-9))].mean())
    assert (curve.lower <= curve.risk).all()
    assert (curve.risk <= curve.upper).all()
    assert "The interval at 100% is from" in render(report)
    assert Report("r", [*samples, Sample(None, 0.1, True)]).curve() is None
    assert Report("r", [*samples, Sample(None, float("nan"), True, loss=0.0)]).curve() is None


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_becomes_markup(text):
    harmless = Page(render(hostile("x")))
    page = Page(render(hostile(text)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert [sorted(attrs) for _, attrs in page.elements] == [sorted(attrs) for _, attrs in harmless.elements]
    assert text in page.texts


def test_the_policy_names_the_only_style_and_script():
    text = render(make_report())
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert checksum(style) in policy
    assert checksum(script) in policy
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in Page(text).elements)


def test_numbers_that_are_not_finite_are_shown():
    image = np.eye(4)
    image[0, 1:3] = np.nan, np.inf
    sample = Sample(image, score=float("inf"), selected=False, attribution=np.full((4, 4), np.nan))
    text = render(Report("r", [sample], threshold=float("inf"), metrics={"full/a": np.nan, "b": np.inf}))
    assert 'data-score="Infinity"' in text
    assert ["a", "–", "–", "–"] in Page(text).rows
    texts = [part for part in Page(text).texts if part]
    assert texts[texts.index("image values that are NaN or inf") + 1] == "2 of 16"
    assert texts[texts.index("attribution values that are NaN or inf") + 1] == "16 of 16"


def test_samples_without_images():
    text = render(Report("r", [Sample(None, 0.5, True, name="row 7", p_value=0.25)]))
    assert "<img" not in text
    assert "Open row 7: selected, score 0.5, p = 0.250, no image" in text


def test_a_region_or_attribution_alone_can_be_drawn():
    text = render(Report("r", [Sample(None, 0.5, True, roi=np.eye(4), attribution=np.eye(4))]))
    assert 'class="blank"' in text
    assert 'class="attribution"' in text
    assert "attribution: lowers, raises the output" in text


def test_a_large_page_is_refused_and_says_why(tmp_path):
    images = np.random.default_rng(0).random((40, 128, 128))
    report = Report("r", [Sample(image, 0.5, True, roi=image > 0.5) for image in images])
    page = write_report(tmp_path, report, max_megabytes=0.5)
    assert page.stat().st_size <= 0.5e6
    text = page.read_text(encoding="utf-8")
    assert re.search(
        r"reduced to at most (16|32|64) pixels a side, so that the page stays below 0.5 MB", text
    )
    assert "Pictures are reduced" not in render(report)
    with pytest.raises(InvalidInputError, match=r"40 samples do not fit .* even with pictures of 16 pixels"):
        write_report(tmp_path, report, max_megabytes=0.05)
    wordy = [Sample(None, 0.5, True, details={"note": "x" * 10_000}) for _ in range(40)]
    with pytest.raises(InvalidInputError, match=r"more than max_megabytes=0.3, with 40 samples"):
        write_report(tmp_path, Report("r", wordy), max_megabytes=0.3)
    with pytest.raises(InvalidInputError, match="max_megabytes must be above 0"):
        write_report(tmp_path, report, max_megabytes=0)


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    page = write_report(tmp_path, Report("r", [Sample(None, 0.5, True, name="bad \udc80 name \x00")]))
    assert "bad ? name" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (float("nan"), ""), (float("inf"), "Infinity"), (-float("inf"), "-Infinity"), (0.1, "0.1")],
)
def test_numbers_for_scripts(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0"), (0.25, "+0.250"), (-0.25, "-0.250"), (1e-5, "+1e-05")]
)
def test_changes_in_text(value, text):
    assert change_text(value) == text


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
