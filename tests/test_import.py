"""The package's front door: light to open, complete, and the same for type checkers and at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import selkit

HEAVY = ("lightning", "pytorch_lightning", "pyod", "matplotlib", "onnxruntime", "sklearn", "pandas", "jinja2")


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has loaded after some code."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_selkit_is_light():
    alone, torch = modules_after("import selkit"), modules_after("import torch")
    assert not {name.partition(".")[0] for name in alone} & set(HEAVY)
    assert len(alone - torch) < 10


def test_the_check_of_modules_sees_a_heavy_one():
    assert "sklearn" in modules_after("import sklearn")


@pytest.mark.parametrize(
    "room", ["scores", "metrics", "calibration", "embeddings", "inference", "graph", "report"]
)
def test_no_room_loads_what_only_some_of_its_users_need(room):
    loaded = {name.partition(".")[0] for name in modules_after(f"import selkit.{room}")}
    loaded -= {"matplotlib"} if room == "metrics" else set()  # torchmetrics imports it where it finds it
    assert not loaded & {"pyod", "matplotlib", "pandas", "faiss", "dask", "shap"}


@pytest.mark.parametrize("name", selkit.__all__)
def test_every_public_name_resolves(name):
    assert name in dir(selkit)
    assert getattr(selkit, name) is getattr(selkit, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'selkit' has no attribute 'nothing'"):
        _ = selkit.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(selkit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = dict(selkit._HOMES) | dict.fromkeys(selkit._MODULES, "selkit")
    assert seen == lazy
    assert set(selkit.__all__) == set(lazy) | {"__version__"}


def test_the_version_is_that_of_the_distribution():
    assert selkit.__version__ == version("selkit")
