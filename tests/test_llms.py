"""llms.txt and llms-full.txt say what the docs say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def llms():
    spec = importlib.util.spec_from_file_location("llms", ROOT / "docs" / "llms.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["llms"] = module
    spec.loader.exec_module(module)
    return module


def test_the_files_are_up_to_date(llms):
    assert llms.stale() == [], "run python docs/llms.py"


def test_a_stale_file_is_noticed(llms, monkeypatch, capsys):
    monkeypatch.setitem(llms.FILES, "llms.txt", lambda: llms.short() + "x")
    assert llms.stale() == ["llms.txt"]
    assert llms.main(["--check"]) == 1
    assert "run python docs/llms.py" in capsys.readouterr().err


def test_every_page_is_told_in_the_order_of_the_contents(llms):
    text = llms.full()
    places = [text.index(f"<!-- docs/{page}.md -->") for page in llms.pages() if page not in llms.GENERATED]
    assert places == sorted(places)
    assert all((ROOT / "docs" / f"{page}.md").exists() for page in llms.pages())
    on_disk = {
        str(p.relative_to(ROOT / "docs"))[:-3]
        for p in (ROOT / "docs").rglob("*.md")
        if "_build" not in p.parts
    }
    parts = {page for page in on_disk if page.startswith("api/")} | {"index", "operators-table"}
    assert on_disk - parts <= set(llms.pages())


def test_roles_includes_and_contents_become_plain_text(llms):
    text = llms.full()
    assert "{py:" not in text
    assert "{toctree}" not in text
    assert "{include}" not in text
    assert "| `Relu` |" in text


def test_every_room_tells_its_names(llms):
    text = llms.api()
    assert "- `EuclideanScore(" in text
    assert "- `write_report(path, report" in text
    assert ": np" not in text.partition("write_report")[2].partition("\n")[0]
