"""Rows of the conformance table for operators that move values, or make constants."""

from __future__ import annotations

import numpy as np
from graph_cases import NEWEST, case, f, i, s

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def resize(
    mode: str, where: str, near: str = "round_prefer_floor", *, first: int = 11, extra: str = "", **kw
):
    text = f'mode="{mode}", coordinate_transformation_mode="{where}", nearest_mode="{near}"{extra}'
    return case(
        f"Resize<{text}>(x, , {'c' if 'c' in kw['constants'] else ', c0'})", opsets=(first, NEWEST), **kw
    )


def scales(*values: float) -> dict[str, np.ndarray]:
    return {"c": np.array((1, 1, *values), dtype=np.float32)}


RESIZE = [
    *(
        resize(
            "nearest",
            where,
            near,
            constants=scales(*factors),
            first=19 if "symmetric" in where else 13,
            x=(1, 2, 5, 4),
        )
        for where in COORDINATES
        for near in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for factors in ((2.0, 3.0), (1.4, 0.7))
    ),
    *(
        resize(
            mode, where, constants=scales(*factors), first=19 if "symmetric" in where else 13, x=(1, 2, 5, 4)
        )
        for mode in ("linear", "cubic")
        for where in COORDINATES
        for factors in ((2.0, 2.0), (1.4, 0.7))
    ),
    case(
        'Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , , c)',
        {"c": i(1, 2, 7, 9)},
        opsets=(13, NEWEST),
        x=(1, 2, 5, 4),
    ),
    case(
        'Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(x, , , c)',
        {"c": i(1, 2, 1, 9)},
        opsets=(13, NEWEST),
        x=(1, 2, 5, 4),
    ),
    case(
        'Resize<mode="linear">(x, , c)',
        {"c": np.array([1, 1, 2], np.float32)},
        opsets=(13, NEWEST),
        x=(1, 2, 5),
        exact=False,
    ),
    case(
        'Resize<mode="linear">(x, , c)',
        {"c": np.array([1, 1, 2, 2, 1.5], np.float32)},
        opsets=(13, NEWEST),
        x=(1, 2, 3, 4, 4),
    ),
    case(
        'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, r, c)',
        {"r": f(0), "c": np.array([1, 1, 2, 2], np.float32)},
        opsets=(11, 12),
        x=(1, 2, 5, 4),
    ),
    case(
        'Resize<mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1>(x, , c)',
        scales(1.7, 0.6),
        opsets=(13, NEWEST),
        x=(1, 2, 6, 7),
    ),
    case('Resize<mode="linear", antialias=1>(x, , c)', scales(0.6, 0.5), opsets=(18, NEWEST), x=(1, 2, 8, 9)),
    case('Resize<mode="cubic", antialias=1>(x, , c)', scales(0.6, 0.5), opsets=(18, NEWEST), x=(1, 2, 8, 9)),
    case(
        'Resize<mode="linear", axes=[3, 2]>(x, , c)',
        {"c": np.array([2, 1.5], np.float32)},
        opsets=(18, NEWEST),
        x=(1, 2, 4, 5),
    ),
    case(
        'Resize<mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_larger">(x, , , c)',
        {"c": i(9, 7)},
        opsets=(18, NEWEST),
        x=(1, 2, 4, 5),
    ),
    case(
        'Resize<mode="nearest", axes=[2, 3], keep_aspect_ratio_policy="not_smaller">(x, , , c)',
        {"c": i(9, 7)},
        opsets=(18, NEWEST),
        x=(1, 2, 4, 5),
    ),
    case(
        'Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=5.0>'
        "(x, r, , c)",
        {"r": np.array([0, 0, 0.2, -0.3, 1, 1, 1.4, 0.9], np.float32), "c": i(1, 2, 5, 6)},
        opsets=(13, NEWEST),
        x=(1, 2, 4, 5),
    ),
    case(
        'Resize<mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn">(x, r, c)',
        {"r": f(0), **scales(1.5, 2.0)},
        opsets=(11, 12),
        x=(1, 2, 4, 5),
    ),
    case('Resize<mode="nearest">(x, c)', scales(2, 3), opsets=(10, 10), x=(1, 2, 4, 5)),
    case('Resize<mode="nearest">(x, c)', scales(0.6, 0.5), opsets=(10, 10), x=(1, 2, 8, 9)),
    case('Resize<mode="linear">(x, c)', scales(1.5, 2), opsets=(10, 10), x=(1, 2, 4, 5)),
    case('Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]>(x)', opsets=(7, 8), x=(1, 2, 4, 5)),
    case('Upsample<mode="linear", scales=[1.0, 1.0, 2.0, 2.0]>(x)', opsets=(7, 8), x=(1, 2, 4, 5)),
    case('Upsample<mode="nearest">(x, c)', scales(2, 1.5), opsets=(9, 9), x=(1, 2, 4, 5)),
]

SHAPE = [
    case("Reshape(x, c)", {"c": i(0, -1)}, x=(2, 3, 4)),
    case("Reshape(x, c)", {"c": i(4, 6)}, x=(2, 3, 4)),
    case("Reshape(x, c)", {"c": i(-1)}, x=()),
    case("Flatten(x)", x=(2, 3, 4)),
    case("Flatten<axis=0>(x)", x=(2, 3, 4)),
    case("Flatten<axis=-2>(x)", opsets=(11, NEWEST), x=(2, 3, 4)),
    case("Flatten<axis=3>(x)", x=(2, 3, 4)),
    case("Transpose(x)", x=(2, 3, 4)),
    case("Transpose<perm=[1, 0, 2]>(x)", x=(2, 3, 4)),
    case("Squeeze(x)", x=(1, 3, 1)),
    case("Squeeze<axes=[2]>(x)", opsets=(7, 12), x=(1, 3, 1)),
    case("Squeeze(x, c)", {"c": i(-1)}, opsets=(13, NEWEST), x=(1, 3, 1)),
    case("Unsqueeze<axes=[0, 2]>(x)", opsets=(7, 12), x=(3, 4)),
    case("Unsqueeze(x, c)", {"c": i(-1, 0)}, opsets=(13, NEWEST), x=(3, 4)),
    case("Concat<axis=1>(x, y0)", x=(2, 3), y0=(2, 1)),
    case("Concat<axis=-1>(x, c, x)", {"c": f(2, 4)}, opsets=(11, NEWEST), x=(2, 3)),
    case("y, z = Split<axis=1>(x)", opsets=(7, 17), x=(2, 4)),
    case("y, z = Split<axis=1, split=[1, 3]>(x)", opsets=(7, 12), x=(2, 4)),
    case("y, z = Split<axis=1>(x, c)", {"c": i(1, 3)}, opsets=(13, NEWEST), x=(2, 4)),
    case("y, z, v = Split<axis=-1, num_outputs=3>(x)", opsets=(18, NEWEST), x=(2, 7)),
    case("Slice<starts=[1, -3], ends=[3, 100], axes=[0, 2]>(x)", opsets=(7, 9), x=(4, 3, 5)),
    case("Slice(x, a, b)", {"a": i(1, 0), "b": i(-1, 2)}, opsets=(10, NEWEST), x=(4, 3, 5)),
    case(
        "Slice(x, a, b, c, d)",
        {"a": i(-1, 1), "b": i(-100, 5), "c": i(0, 2), "d": i(-2, 2)},
        opsets=(10, NEWEST),
        x=(4, 3, 5),
    ),
    case(
        "Slice(x, a, b, c, d)", {"a": i(3), "b": i(0), "c": i(-1), "d": i(-1)}, opsets=(11, NEWEST), x=(2, 5)
    ),
    case("Gather(x, c)", {"c": i(1, 0, 1)}, x=(2, 3)),
    case(
        "Gather<axis=1>(x, c)",
        {"c": np.array([[0, -1], [2, 1]], dtype=np.int64)},
        opsets=(11, NEWEST),
        x=(2, 3, 4),
    ),
    case("Gather<axis=-1>(x, c)", {"c": np.array(-2, dtype=np.int64)}, opsets=(11, NEWEST), x=(2, 3)),
    case("Expand(x, c)", {"c": i(2, 3, 1)}, opsets=(8, NEWEST), x=(3, 4)),
    case("Expand(x, c)", {"c": i(4)}, opsets=(8, NEWEST), x=(2, 1)),
    case("Tile(x, c)", {"c": i(2, 3)}, x=(2, 2)),
    case("Where(c, x, y0)", {"c": f(3, 1) > 0}, opsets=(9, NEWEST), x=(3, 4), y0=(2, 1, 4)),
    case("Where(c, x, d)", {"c": f(3, 4) > 0, "d": s(7)}, opsets=(9, NEWEST), x=(3, 4)),
    case("DepthToSpace<blocksize=2>(x)", x=(1, 8, 3, 4)),
    case('DepthToSpace<blocksize=2, mode="CRD">(x)', opsets=(11, NEWEST), x=(1, 8, 3, 4)),
    case("SpaceToDepth<blocksize=2>(x)", x=(1, 3, 4, 6)),
    case("Trilu(x)", opsets=(14, NEWEST), x=(2, 4, 4)),
    case("Trilu<upper=0>(x, c)", {"c": np.array(1, dtype=np.int64)}, opsets=(14, NEWEST), x=(4, 5)),
    case("CumSum<exclusive=1>(x, c)", {"c": np.array(1, dtype=np.int64)}, opsets=(11, NEWEST), x=(2, 5)),
    case("CumSum<reverse=1>(x, c)", {"c": np.array(-1, dtype=np.int64)}, opsets=(11, NEWEST), x=(2, 5)),
    case("Identity(x)", x=(2, 3)),
    case("Dropout(x)", x=(2, 3)),
    case("Cast<to=1>(x)", x=(2, 3)),
    case("Cast<to=7>(x)", low=-9, high=9, x=(2, 3)),
    case("Cast<to=9>(x)", x=(2, 3)),
]

PADDING = [
    case("Pad<pads=[1, 0, 2, 3]>(x)", opsets=(7, 10), x=(4, 5)),
    case("Pad<pads=[1, 0, 2, 3], value=2.5>(x)", opsets=(7, 10), x=(4, 5)),
    case('Pad<pads=[1, 0, 2, 3], mode="reflect">(x)', opsets=(7, 10), x=(4, 5)),
    case("Pad(x, p, c)", {"p": i(1, 0, 0, 2), "c": s(-1.5)}, opsets=(11, NEWEST), x=(4, 5)),
    case("Pad(x, p)", {"p": i(-1, 0, 2, -2)}, opsets=(11, NEWEST), x=(4, 5)),
    case('Pad<mode="edge">(x, p)', {"p": i(1, 0, 2, 2)}, opsets=(11, NEWEST), x=(4, 5)),
    case('Pad<mode="reflect">(x, p)', {"p": i(3, 0, 2, 2)}, opsets=(11, NEWEST), x=(4, 5)),
    case('Pad<mode="wrap">(x, p)', {"p": i(3, 1, 2, 2)}, opsets=(19, NEWEST), x=(4, 5)),
    case("Pad(x, p, , a)", {"p": i(1, 2), "a": i(-1)}, opsets=(18, NEWEST), x=(4, 5)),
]

JUMPS = [
    *(
        case(f"{name}(x, c)", {"c": f(3, 1)}, opsets=(first, NEWEST), x=(2, 3, 4))
        for name, first in (
            ("Greater", 7),
            ("Less", 7),
            ("GreaterOrEqual", 12),
            ("LessOrEqual", 12),
            ("Equal", 11),
        )
    ),
    *(
        case(f"{name}(x)", opsets=(first, NEWEST), low=-5, high=5, x=(2, 9))
        for name, first in (("Sign", 9), ("Floor", 7), ("Ceil", 7), ("Round", 11))
    ),
    case("Mod<fmod=1>(x, c)", {"c": s(0.7)}, opsets=(10, NEWEST), x=(2, 9)),
    case("ArgMax<axis=1, keepdims=0>(x)", x=(2, 5)),
    case("ArgMax<axis=-1, select_last_index=1>(x)", opsets=(12, NEWEST), x=(2, 5)),
    case("ArgMin<axis=1>(x)", x=(2, 5)),
]

CONSTANTS = [
    case("Shape(x)", x=(2, 3, 4)),
    case("Shape<start=-2, end=3>(x)", opsets=(15, NEWEST), x=(2, 3, 4)),
    case("Size(x)", x=(2, 3, 4)),
    case("EyeLike<k=1>(x)", opsets=(9, NEWEST), x=(3, 4)),
    case("EyeLike<dtype=7>(x)", opsets=(9, NEWEST), x=(3, 4)),
    case("Constant<value_float=1.5>()", opsets=(12, NEWEST)),
    case("Constant<value_ints=[1, 2]>()", opsets=(12, NEWEST)),
    case("ConstantOfShape(c)", {"c": i(2, 3)}, opsets=(9, NEWEST)),
    case("Range(a, b, c)", {"a": s(1), "b": s(7), "c": s(1.5)}, opsets=(11, NEWEST)),
    case(
        "Range(a, b, c)",
        {"a": np.array(9, np.int64), "b": np.array(0, np.int64), "c": np.array(-2, np.int64)},
        opsets=(11, NEWEST),
    ),
    case("NonZero(c)", {"c": np.array([[1, 0], [1, 1]], np.float32)}, opsets=(9, NEWEST)),
    case("Not(c)", {"c": f(2, 3) > 0}),
    *(case(f"{name}(c, d)", {"c": f(2, 3) > 0, "d": f(3) > 0}) for name in ("And", "Or", "Xor")),
    case("Mod(c, d)", {"c": i(-7, 7, 5), "d": i(3, -3, 2)}, opsets=(10, NEWEST)),
    case("Div(c, d)", {"c": i(-7, 7, 5), "d": i(3, 2, 2)}),
]

CASES = RESIZE + SHAPE + PADDING + JUMPS + CONSTANTS
