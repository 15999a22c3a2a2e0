"""Every Python block of the README and the docs runs, in order, and prints what the text below it says."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<kind>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTS = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in path.parts
]


def blocks(text: str) -> list[tuple[str, str | None]]:
    """Each block of Python, with the block of output that follows it, if one does."""
    found = list(FENCE.finditer(text))
    pairs = []
    for number, fence in enumerate(found):
        if fence["kind"] == "python":
            after = found[number + 1] if number + 1 < len(found) else None
            follows = (
                after is not None
                and after["kind"] == "text"
                and not text[fence.end() : after.start()].strip()
            )
            pairs.append((fence["body"], after["body"] if after is not None and follows else None))
    return pairs


def run(text: str, namespace: dict[str, object]) -> int:
    """Run the blocks of a document in one namespace; returns how many there were."""
    pairs = blocks(text)
    for code, expected in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "<document>", "exec"), namespace)  # noqa: S102 - our own documents
        if expected is not None:
            got = printed.getvalue()
            assert doctest.OutputChecker().check_output(expected, got, FLAGS), f"{code}\nprinted\n{got}"
    return len(pairs)


def test_the_runner_compares_output_and_shares_names():
    text = "```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n2\n```\n"
    assert run(text, {}) == 2
    with pytest.raises(AssertionError, match="printed"):
        run(text.replace("```text\n2", "```text\n3"), {})
    with pytest.raises(NameError):
        run("```python\nmissing\n```\n", {})


@pytest.fixture(scope="module")
def readers_own(tmp_path_factory) -> dict[str, object]:
    """What the README expects a reader to have: a trained model, its ONNX file, loaders and a trainer."""
    from nuclei import DataLoader, TensorDataset, export_unet, make_patches, quiet_trainer, train_unet

    folder = tmp_path_factory.mktemp("reader")
    patches = make_patches(stride=32, foreign=2)
    model = train_unet(patches.train, epochs=2, channels=2)
    export_unet(model, folder / "model.onnx")
    few = TensorDataset(*(part[:4] for part in patches.test.tensors))
    return {
        "model": model,
        "train": DataLoader(patches.train, batch_size=64),
        "calibration": DataLoader(patches.calibration, batch_size=64),
        "test": DataLoader(few, batch_size=4),
        "trainer": quiet_trainer(),
        "folder": folder,
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(path, request, monkeypatch, tmp_path):
    text = path.read_text(encoding="utf-8")
    if not blocks(text):
        return
    own = dict(request.getfixturevalue("readers_own"))
    monkeypatch.chdir(own.pop("folder"))
    assert run(text, own) > 0


LINKING = [*DOCUMENTS, *(ROOT / name for name in ("llms.txt", "CONTRIBUTING.md", "benchmarks/README.md"))]


def test_every_benchmark_is_listed_and_run():
    folder = ROOT / "benchmarks"
    scripts = {path.stem for path in folder.glob("*.py") if "argparse" in path.read_text(encoding="utf-8")}
    listed = set(
        re.findall(r"^\| `(\w+)\.py`", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    run = re.search(r'^all="(.*)"$', (folder / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == scripts == set(run[1].split())


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (path.parent / target).exists(), target
