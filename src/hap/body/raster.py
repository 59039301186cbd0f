"""A triangle rasteriser in numpy: spans of all triangles on all rows at once, resolved by a depth buffer.

Legend: V vertices, F faces, T front faces, S spans (one triangle on one row), P pixels.
"""

import numpy as np


def rasterise(
    xy: np.ndarray, depth: np.ndarray, faces: np.ndarray, nearness: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws a mesh into the depth buffer.

    `xy` [V, 2] pixels (centres at whole numbers), `depth` [V] metres (> 0), `faces` [F, 3] counter-clockwise
    from outside, `nearness` float32 [H, W]: 1 / depth of what is there (0: nothing), updated in place.
    Returns, for every pixel where the mesh is nearest: flat pixel index [P], face [P], and the barycentric
    weights [P] of the face's second and third corner."""
    height, width = nearness.shape
    corners = np.concatenate([xy, 1 / depth[:, None]], 1, dtype=np.float32).T
    x, y, near = corners[:, faces.T]  # [3, F] each
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    front = np.flatnonzero(area < -1e-6)  # y points down, so what faces the camera turns clockwise
    x, y, near, area = x[:, front], y[:, front], near[:, front], area[front]
    # The weights of corners 1 and 2, and the nearness, are linear in (x - x0, y - y0).
    ux, uy, vx, vy = (x[1] - x[0]) / area, (y[1] - y[0]) / area, (x[2] - x[0]) / area, (y[2] - y[0]) / area
    near_x = vy * (near[1] - near[0]) - uy * (near[2] - near[0])
    near_y = ux * (near[2] - near[0]) - vx * (near[1] - near[0])

    triangle, row, start, columns = _spans(x, y, height, width)
    first_near = near[0] - near_x * x[0] - near_y * y[0]
    first_near = first_near.take(triangle) + near_y.take(triangle) * row + near_x.take(triangle) * start
    span = np.repeat(np.arange(len(row)), columns)
    step = _count_up(columns)
    span_near = first_near.take(span) + near_x.take(triangle).take(span) * step.astype(np.float32)
    pixel = (row * width + start).astype(np.int32).take(span) + step
    # One number that orders by nearness and carries the triangle; positive floats order as their bits do.
    key = (span_near.view(np.int32).astype(np.int64) << 32) | (triangle.take(span) + 1)
    buffer = nearness.ravel().view(np.int32).astype(np.int64) << 32
    np.maximum.at(buffer, pixel, key)

    words = buffer.view(np.int32).reshape(-1, 2)  # little-endian: triangle, nearness
    pixels = np.flatnonzero(words[:, 0])
    triangle = words[pixels, 0] - 1
    nearness.ravel()[pixels] = words[pixels, 1].view(np.float32)
    rows = pixels // width
    dx = (pixels - rows * width).astype(np.float32) - x[0].take(triangle)
    dy = rows.astype(np.float32) - y[0].take(triangle)
    one = vy.take(triangle) * dx - vx.take(triangle) * dy
    two = ux.take(triangle) * dy - uy.take(triangle) * dx
    return pixels, front.take(triangle), one, two


def _spans(x: np.ndarray, y: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Corners [3, T] of triangles -> triangle, row, first column and number of columns of every span [S]."""

    def order(a: int, b: int) -> None:
        swap = y[a] > y[b]
        x[a], x[b] = np.where(swap, x[b], x[a]), np.where(swap, x[a], x[b])
        y[a], y[b] = np.where(swap, y[b], y[a]), np.where(swap, y[a], y[b])

    x, y = x.copy(), y.copy()
    order(0, 1)
    order(1, 2)
    order(0, 1)  # top, middle, bottom corner
    first = np.maximum(np.ceil(y[0]), 0)
    rows = np.maximum(np.minimum(np.floor(y[2]), height - 1) - first + 1, 0).astype(np.int32)
    triangle = np.repeat(np.arange(len(rows)), rows)
    row = _count_up(rows).astype(np.float32) + first.take(triangle)  # [S], whole numbers

    tiny = np.float32(1e-6)
    long = (x[2] - x[0]) / np.maximum(y[2] - y[0], tiny)
    short = np.stack(
        [(x[1] - x[0]) / np.maximum(y[1] - y[0], tiny), (x[2] - x[1]) / np.maximum(y[2] - y[1], tiny)]
    )
    short_at_0 = x[:2] - short * y[:2]  # [2, T]: where the upper and the lower edge cross row 0
    half = (row >= y[1].take(triangle)).astype(np.int32)  # below the middle corner
    one = x[0].take(triangle) + long.take(triangle) * (row - y[0].take(triangle))
    two = short_at_0[half, triangle] + short[half, triangle] * row
    start = np.maximum(np.ceil(np.minimum(one, two)), 0)
    columns = np.maximum(np.minimum(np.floor(np.maximum(one, two)), width - 1) - start + 1, 0).astype(
        np.int32
    )
    return triangle, row, start, columns


def _count_up(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts, dtype=np.int32)
    return np.arange(ends[-1] if len(ends) else 0, dtype=np.int32) - np.repeat(ends - counts, counts)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3]: the area-weighted mean of the faces around each vertex."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normals = np.zeros_like(vertices)
    np.add.at(normals, faces, np.cross(b - a, c - a)[:, None])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
