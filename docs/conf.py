"""Sphinx configuration; also writes the table of supported operators from the registry."""

from __future__ import annotations

import pydoc
import sys
from pathlib import Path
from typing import Any

from sphinx.util.nodes import make_refnode

import selkit

sys.path.insert(0, str(Path(__file__).parent))
import operators_table

project = "selkit"
author = "The selkit developers"
copyright = f"2026, {author}"
release = version = selkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
nitpicky = True  # a reference of ours that leads nowhere is an error
nitpick_ignore_regex = [("py:.*", r"(?!selkit\.).*")]  # other projects' inventories would need the network
exclude_patterns = ["_build", "operators-table.md"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository from included documents

autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # the signature and the text say it
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes are documented twice otherwise: in the class and as members

html_theme = "furo"
html_title = f"selkit {release}"


operators_table.write()


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Where a name of ours is documented under another address; what exists but is internal stays text."""
    found = (
        pydoc.locate(node.get("reftarget", "")) if node.get("reftarget", "").startswith("selkit.") else None
    )
    if found is None:
        return None
    name = getattr(found, "__qualname__", node["reftarget"].rpartition(".")[2])
    rooms = sorted(f"selkit.{page.stem}" for page in Path(__file__).with_name("api").glob("*.md"))
    known = env.get_domain("py").objects
    for address in (f"{room}.{name}" for room in rooms):
        if address in known:
            entry = known[address]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, address)
    return content


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
