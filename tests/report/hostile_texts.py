"""Texts that try to become markup, and a report that says one of them wherever a user may."""

from __future__ import annotations

import numpy as np

from selkit.report import Report, Sample

INJECTIONS = [
    "<script>window.hit = 1</script>",
    "</noscript><script>window.hit = 1</script>",
    "</title><img src=x onerror=window.hit=1>",
    '"><svg onload=window.hit=1>',
    "' onmouseover='window.hit=1",
    "{{ 7 * 7 }}",
    "</script><script>window.hit = 1</script>",
    "&lt;img src=x onerror=window.hit=1&gt;",
    "javascript:window.hit=1",
]


def hostile(text: str) -> Report:
    """A report that says the same text wherever a user may."""
    samples = [
        Sample(
            np.eye(4) if i else None,
            score=0.1 * i,
            selected=True,
            name=text,
            group=f"{text}{i}",
            p_value=0.5,
            details={text: text},
        )
        for i in range(2)
    ]
    return Report(
        text,
        samples,
        threshold=0.5,
        summary=[text],
        guarantees=[text],
        facts={text: text},
        metrics={f"full/{text}": 1.0, text: 2.0},
        risk_coverage=([0.5, 1.0], [0.1, 0.2]),
        risk_name=text,
        scores={text: [0.1, 0.2]},
    )
