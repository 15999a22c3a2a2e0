"""si4onnx on the cases of roi.py; run by it with the python of the peers' environment."""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import onnx
import torch

warnings.simplefilter("ignore")


def main() -> None:
    """Read a job from the first argument, print one JSON line for each image."""
    import si4onnx
    from si4onnx.hypothesis import BackMeanDiff
    from si4onnx.operators import Abs, InputDiff

    job = json.loads(sys.argv[1])
    steps = [InputDiff(), Abs()] if job["reconstruction"] else []
    test = si4onnx.load(onnx.load(job["model"]), BackMeanDiff(threshold=job["threshold"], post_process=steps))
    for image in np.load(job["images"]):
        begin = time.perf_counter()
        try:
            result = test.inference(torch.tensor(image), var=1.0)
        except Exception as error:  # noqa: BLE001 - whatever the peer raises is reported in its row
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        row = {"p": result.p_value, "seconds": time.perf_counter() - begin, "count": result.search_count}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
