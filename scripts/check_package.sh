#!/usr/bin/env bash
# Build the wheel and the sdist, install the wheel where nothing else is, and run a part of the tests against it:
# once with the oldest versions of the dependencies that pyproject.toml admits, once with the newest.
#
#   scripts/check_package.sh [python ...]      (default: python3)
#
# torch stays at one version ($TORCH, 2.13.0): newer ones from PyPI bring several gigabytes of CUDA along, and older
# ones would have to be fetched for each Python. On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# makes pip take the build for the CPU.
# Not part of CI: it takes about ten minutes and three gigabytes of disk for each Python.
#
# Last run on Linux, Python 3.11, torch 2.13.0 (CPU). Not run with 3.12 and 3.13, for which no torch without CUDA was
# at hand: there the sources were only compiled.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${WORK:-$(mktemp -d)}
torch=${TORCH:-2.13.0}
versions=${VERSIONS:-minimum newest}
pythons=("${@:-python3}")
# What the tests need beside selkit itself.
tools=(pytest pytest-timeout hypothesis onnxscript pandas pillow)
# Fast tests of every room; those that need shap, a browser, npm or the demo's image are not among them.
tests=(tests/test_import.py tests/report tests/calibration tests/metrics tests/scores tests/task tests/embeddings
  tests/graph/test_program.py tests/inference/test_roi.py tests/inference/test_line.py
  tests/bundle/test_bundle_scores.py tests/explain/test_references.py tests/explain/test_networks.py)
mkdir -p "$work"

build() {
  "${pythons[0]}" -m venv "$work/build"
  "$work/build/bin/python" -m pip install --quiet build
  "$work/build/bin/python" -m build --quiet --outdir "$work/dist" "$root"
  mkdir -p "$work/source"
  tar -xzf "$work"/dist/selkit-*.tar.gz -C "$work/source" --strip-components 1
}

minimum() { # every "name>=version" of the dependencies and extras for users as "name==version"
  "$work/build/bin/python" - "$root/pyproject.toml" <<'PYTHON'
import re, sys, tomllib

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = [line for name, lines in project["optional-dependencies"].items() if name in ("faiss", "dask") for line in lines]
for line in project["dependencies"] + extras:
    name, version = re.fullmatch(r"([\w-]+)(?:\[[\w,]*\])?>=([\d.]+)", line).groups()
    if name != "torch":
        print(f"{name}=={version}")
PYTHON
}

check() { # check PYTHON minimum|newest
  local name="$2-$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
  local venv="$work/$name"
  "$1" -m venv "$venv"
  echo "torch==$torch" >"$work/$name.txt"
  if [ "$2" = minimum ]; then minimum >>"$work/$name.txt"; fi
  "$venv/bin/python" -m pip install --quiet --constraint "$work/$name.txt" torch
  "$venv/bin/python" -m pip install --quiet --constraint "$work/$name.txt" "$(echo "$work"/dist/selkit-*.whl)[faiss,dask]" "${tools[@]}"
  # away from the checkout, so that the installed package is the one that is imported
  cd "$work"
  "$venv/bin/python" -c 'import selkit; assert "site-packages" in selkit.__file__; print("selkit", selkit.__version__)'
  cd "$work/source"
  [ ! -d src ] || mv src src.away
  "$venv/bin/python" -m pip list --format=freeze >"$work/$name.installed.txt"
  OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q "${tests[@]}"
  echo "$name: passed"
}

build
for python in "${pythons[@]}"; do
  for version in $versions; do
    check "$python" "$version"
  done
done
