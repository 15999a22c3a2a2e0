"""Write llms.txt and llms-full.txt, the docs as plain text for language models, from the docs themselves.

``python docs/llms.py`` writes both, ``python docs/llms.py --check`` only says whether they are up to date.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
import operators_table  # noqa: E402 - beside this file

ROOT = DOCS.parent
TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
ROLE = re.compile(r"\{py:\w+\}`~?([^`]+)`")
INCLUDE = re.compile(r"```\{include\} (\S+)\n```")
GENERATED = {"api/index", "changelog", "contributing"}  # told in another way, or not for users


def pages(index: Path = DOCS / "index.md") -> list[str]:
    """Every page of the table of contents, in its order, without its ending."""
    found = []
    for tree in TOCTREE.findall(index.read_text(encoding="utf-8")):
        lines = [line.strip() for line in tree.splitlines()]
        found += [line for line in lines if line and not line.startswith(":")]
    return found


def text_of(page: str) -> str:
    """A page as plain Markdown: what it includes in its place, roles as code."""
    path = DOCS / f"{page}.md"
    operators_table.write()
    text = path.read_text(encoding="utf-8")
    text = INCLUDE.sub(lambda match: (path.parent / match[1]).read_text(encoding="utf-8").rstrip(), text)
    return ROLE.sub(r"`\1`", TOCTREE.sub("", text)).strip()


def title_of(text: str) -> str:
    """The first heading."""
    return next(line for line in text.splitlines() if line.startswith("# ")).removeprefix("# ").strip()


def summary_of(text: str) -> str:
    """The first sentence of the first paragraph."""
    body = re.sub(r"^```.*?^```$", "", text.partition("\n")[2], flags=re.MULTILINE | re.DOTALL)
    paragraph = next(part for part in body.split("\n\n") if part.strip() and part.strip()[0] not in "#|<:")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))  # links lead from the page
    return re.split(r"(?<=[.?!:])\s", plain)[0].rstrip(":")


def api() -> str:
    """Every public name of every room: its signature and the first paragraph of its docstring."""
    lines = []
    rooms = [p.stem for p in sorted((DOCS / "api").glob("*.md")) if p.stem not in ("index", "progress")]
    for room in rooms:
        module = importlib.import_module(f"selkit.{room}")
        lines += [f"### selkit.{room}", "", _first(module), ""]
        names = getattr(module, "__all__", None) or [
            n for n in vars(module) if inspect.isclass(vars(module)[n])
        ]
        for name in sorted(names):
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                lines += [f"- `{name}{_signature(found)}`: {_first(found)}"]
        lines.append("")
    return "\n".join(lines).rstrip()


def _first(found: object) -> str:
    """The first paragraph of a docstring, in one line."""
    text = ROLE.sub(r"`\1`", (inspect.getdoc(found) or "").partition("\n\n")[0].replace("``", "`"))
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))


def _signature(found: object) -> str:
    """Names of the arguments and their defaults; types are in the docs."""
    try:
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    except ValueError:
        return "(...)"
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters]))


def short() -> str:
    """The text of llms.txt: what there is at a glance, and where the docs say more."""
    glance = text_of("glance").partition("\n")[2].strip()
    lines = [
        f"- [{title_of(text_of(p))}](docs/{p}.md): {summary_of(text_of(p))}" for p in _told() if p != "glance"
    ]
    links = "\n".join([*lines, "- [Changelog](CHANGELOG.md)", "- [All of it in one file](llms-full.txt)"])
    return f"# selkit\n\n> {SUMMARY}\n\n{glance}\n\n## Docs\n\n{links}\n"


def full() -> str:
    """The text of llms-full.txt: every page of the docs, and every public name."""
    parts = [f"# selkit\n\n> {SUMMARY}"]
    parts += [f"<!-- docs/{page}.md -->\n\n{text_of(page)}" for page in ("index", *_told())]
    parts.append(f"# Every public name\n\n{api()}")
    return "\n\n---\n\n".join(parts) + "\n"


def _told() -> list[str]:
    return [page for page in pages() if page not in GENERATED]


SUMMARY = (
    "Selective prediction (abstain), exact selective inference (test the region that a network points at) "
    "and Shapley values inside the ONNX graph (explain), for PyTorch, Lightning and ONNX models. "
    "Python 3.11 or newer."
)
FILES = {"llms.txt": short, "llms-full.txt": full}


def stale() -> list[str]:
    """Names of the files that do not say what the docs say."""
    return [
        name
        for name, make in FILES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != make()
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or check them."""
    if arguments == ["--check"]:
        old = stale()
        if old:
            print(f"{', '.join(old)} do not say what the docs say: run python docs/llms.py", file=sys.stderr)
        return len(old)
    for name, make in FILES.items():
        (ROOT / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
