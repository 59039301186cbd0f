"""Cameras and what they look at: each camera has its own place, height, lens, light and colours, and a
background that stays the same over all of its images.

World: metres, y up, the ground is y = 0, the camera stands above the origin and looks along -z, so a person
turned by 0 faces it. Camera frame as in OpenCV: x right, y down, z forward; pixel centres at whole numbers.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from hap.synthetic.person import pick

FRAME = (480, 640)  # height, width of the full view, pixels


@dataclass(frozen=True)
class Camera:
    """`intrinsics` [3, 3] (pixels), `rotation` [3, 3] and `translation` [3] (world to camera, metres);
    `light` [3] (unit, towards the sun or lamp), `sun` and `ambient` (light per colour [3]); the look: `gain`
    [3], `gamma`, `blur` (sigma, pixels of the image), `noise` (sigma, 0 to 255), `quality` (JPEG); `margin`:
    mean free space around a person as a share of its height; `clutter`: probability of something in front of
    a person; `distance`: where people walk, metres; `scene`: (seed, index), which the background is drawn
    from."""

    intrinsics: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    light: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    gain: np.ndarray
    gamma: float
    blur: float
    noise: float
    quality: int
    margin: float
    clutter: float
    distance: tuple[float, float]
    scene: tuple[int, int]

    @property
    def lens(self) -> tuple[list[float], list[float]]:
        """Focal lengths and principal point, pixels."""
        return np.diag(self.intrinsics)[:2].tolist(), self.intrinsics[:2, 2].tolist()

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points [N, 3] -> pixels [N, 2] (x, y) and depths [N] (metres)."""
        image = points @ (self.intrinsics @ self.rotation).T + self.intrinsics @ self.translation
        return image[:, :2] / image[:, 2:], image[:, 2]


@lru_cache(maxsize=256)
def camera(seed: int, index: int) -> Camera:
    """Camera number `index` of the world `seed`."""
    rng = np.random.default_rng([seed, 13, index])
    height = rng.uniform(1.4, 4.2)
    middle = rng.uniform(6, 11)
    pitch = np.arctan2(height - 0.9, middle) + rng.normal(0, 0.01)
    sin, cos = np.sin(pitch), np.cos(pitch)
    rotation = np.array([[1, 0, 0], [0, -cos, sin], [0, -sin, -cos]])  # looks along -z and down
    focal = rng.uniform(180, 230) * middle / 1.7  # pixels: how tall an adult appears in the frame
    frame_height, frame_width = FRAME
    intrinsics = np.array([[focal, 0, frame_width / 2], [0, focal, frame_height / 2], [0, 0, 1]])
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.2)
    light = np.array(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    )
    warmth, sunny = rng.normal(0, 0.05), rng.uniform(0.25, 0.75)
    return Camera(
        intrinsics=intrinsics,
        rotation=rotation,
        translation=-rotation @ np.array([0, height, 0]),
        light=light,
        sun=sunny * np.array([1 + warmth, 1, 1 - warmth]),
        ambient=(1.05 - 0.62 * sunny) * np.array([1 - warmth / 2, 1, 1 + warmth / 2]),
        gain=np.clip(rng.normal(1, 0.04, 3), 0.9, 1.1) * rng.uniform(0.88, 1.12),
        gamma=float(np.exp(rng.normal(0, 0.10))),
        blur=float(rng.uniform(0.35, 0.95)),
        noise=float(rng.uniform(0.8, 3.5)),
        quality=int(rng.integers(72, 94)),
        margin=float(rng.uniform(0.02, 0.09)),
        clutter=float(rng.uniform(0.03, 0.22)),
        distance=(0.72 * middle, 1.35 * middle),
        scene=(seed, index),
    )


@lru_cache(maxsize=8)
def _bumps(cells: int) -> np.ndarray:
    """Smooth noise [512, 512], -1 to 1, with `cells` bumps along a side."""
    grid = np.random.default_rng(cells).uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(np.pad(grid, 1, mode="wrap"), (512, 512), interpolation=cv2.INTER_CUBIC)


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """`_bumps` [512, 512], somewhere else each time."""
    return np.roll(_bumps(cells), rng.integers(512, size=2).tolist(), (0, 1))


def _grid(
    shade: np.ndarray, rng: np.random.Generator, step: tuple[int, int], spread: float, shift: bool
) -> None:
    """Tiles, pavers or bricks of `step` pixels (height, width): each a little different, the joints darker; in
    place. `shift`: every second row by half a brick."""
    size = len(shade)
    rows, columns = (np.arange(size) // s for s in step)
    cells = rng.uniform(1 - spread, 1 + spread, (rows[-1] + 1, columns[-1] + 2)).astype(np.float32)
    column = (np.arange(size) + (shift * step[1] // 2) * (rows[:, None] % 2)) // step[1]
    shade *= cells[rows[:, None], column]
    shade[np.arange(size) % step[0] < 2] *= 0.72
    shade[:, 1:][column[:, 1:] > column[:, :-1]] *= 0.72


def _coloured(shade: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Shade [512, 512] (around 1) x colour [3] (0 to 255) -> uint8 [512, 512, 3]."""
    return np.stack([cv2.convertScaleAbs(shade, alpha=float(c)) for c in colour], 2)


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A texture, uint8 [512, 512, 3], of 4 m x 4 m."""
    kind = pick(rng, ("asphalt", "pavers", "slabs", "grass", "floor", "brick"))
    base = {"asphalt": (104, 104, 108), "pavers": (150, 142, 132), "slabs": (164, 160, 152),
            "grass": (92, 118, 62), "floor": (188, 184, 178), "brick": (146, 108, 92)}[kind]  # fmt: skip
    colour = np.array(base) * rng.uniform(0.8, 1.15) + rng.normal(0, 6, 3)
    shade = 1 + 0.10 * _noise(rng, 5) + 0.05 * _noise(rng, 60)
    if kind == "grass":
        shade += 0.22 * _noise(rng, 128) + 0.12 * _noise(rng, 20)
    elif kind == "asphalt":
        shade += 0.09 * _noise(rng, 256)
    else:
        step = {"pavers": (32, 64), "slabs": (128, 128), "floor": (102, 102), "brick": (16, 32)}[kind]
        _grid(shade, rng, step, 0.04 if kind == "floor" else 0.09, kind in ("pavers", "brick"))
    texture = _coloured(shade, colour)
    if kind == "asphalt" and rng.random() < 0.5:  # a painted line
        texture[:, 40:56] = 205
    return texture


_WALLS = ((178, 168, 150), (150, 152, 156), (196, 186, 168), (140, 110, 96), (120, 126, 132))
_SIGNS = ((160, 40, 40), (40, 70, 130), (40, 110, 70), (200, 170, 60))


def _wall(rng: np.random.Generator) -> np.ndarray:
    """A texture, uint8 [512, 512, 3], of 4 m x 4 m; row 0 is the foot of the wall."""
    kind = pick(rng, ("facade", "brick", "shop", "tiles", "hedge", "concrete"))
    colour = np.array(pick(rng, _WALLS)) + rng.normal(0, 8, 3)
    shade = 1 + 0.06 * _noise(rng, 6)
    if kind == "hedge":
        colour = np.array((66, 92, 48)) * rng.uniform(0.8, 1.2)
        shade *= 1 + 0.35 * _noise(rng, 40) + 0.3 * _noise(rng, 12)
    if kind in ("brick", "tiles"):
        _grid(shade, rng, (14, 40) if kind == "brick" else (40, 40), 0.08, kind == "brick")
    shade[:24] *= 0.8
    texture = _coloured(shade, colour)
    if kind in ("facade", "shop"):
        low, high, wide, step = (100, 330, 96, 164) if kind == "facade" else (40, 400, 214, 246)
        glass = _coloured(1 + 0.25 * _noise(rng, 4), rng.uniform(40, 100) * np.array([0.9, 1, 1.12]))
        for left in range(20, 512 - wide, step):
            texture[low - 8 : high + 8, left - 8 : left + wide + 8] = 0.75 * colour
            texture[low:high, left : left + wide] = glass[low:high, left : left + wide]
            texture[low:high, left + wide // 2 - 3 : left + wide // 2 + 3] = 0.8 * colour
        if kind == "shop":
            texture[410:470] = pick(rng, _SIGNS)
    return texture


def _warp(texture: np.ndarray, plane: np.ndarray, view: Camera, top: int, bottom: int) -> np.ndarray:
    """Repeats a 4 m texture over the world plane `plane` [3, 3] (columns: its two directions and its origin),
    seen in the rows from `top` to `bottom` of the frame."""
    corner = view.rotation @ plane
    corner[:, 2] += view.translation
    rows = np.array([[1, 0, 0], [0, 1, -top], [0, 0, 1.0]])
    to_image = rows @ view.intrinsics @ corner @ np.diag([4 / 512, 4 / 512, 1])
    return cv2.warpPerspective(texture, to_image, (FRAME[1], bottom - top), borderMode=cv2.BORDER_WRAP)


@lru_cache(maxsize=96)
def _background(scene: tuple[int, int]) -> np.ndarray:
    view = camera(*scene)
    rng = np.random.default_rng([*scene, 17])
    far = view.distance[1] + rng.uniform(3, 14)
    edges = view.project(np.array([[0, 0, -far], [0, rng.uniform(2.5, 12), -far]]))[0][:, 1]
    foot, top = edges.clip(0, FRAME[0] - 1).astype(int).tolist()
    frame = np.empty((*FRAME, 3), np.uint8)
    frame[:top] = (196, 208, 222)
    if foot > top:
        wall = np.array([[1, 0, 0], [0, 1, 0], [0, 0, -far]])
        frame[top:foot] = _warp(_wall(rng), wall, view, top, foot)
    frame[foot:] = _warp(_ground(rng), np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0.0]]), view, foot, FRAME[0])
    if rng.random() < 0.45:  # a second wall, along the view
        side = pick(rng, (-1, 1)) * rng.uniform(2.2, 5)
        corners = np.array([[side, 0, -far], [side, 9, -far], [side, 9, -2.5], [side, 0, -2.5]])
        mask = np.zeros(FRAME, np.uint8)
        cv2.fillConvexPoly(mask, view.project(corners)[0].clip(-4000, 4000).astype(np.int32), 1)
        wall = _warp(_wall(rng), np.array([[0, 0, side], [0, 1, 0], [1, 0, 0.0]]), view, 0, FRAME[0])
        cv2.copyTo(wall, mask, frame)
    for depth in sorted(rng.uniform(view.distance[1] * 0.9, far, rng.integers(1, 6)), reverse=True):
        _prop(frame, view, rng, depth)
    light = view.ambient + 0.6 * view.sun
    curve = np.clip(np.arange(256)[:, None] * light, 0, 255).astype(np.uint8)
    return cv2.LUT(cv2.GaussianBlur(frame, (0, 0), 0.7), curve[None])


def background(view: Camera) -> np.ndarray:
    """The camera's empty view, uint8 RGB [480, 640, 3]. Do not write to it."""
    return _background(view.scene)


_CARS = ((170, 170, 174), (40, 42, 48), (150, 40, 40), (46, 70, 120), (215, 215, 215))


def _prop(frame: np.ndarray, view: Camera, rng: np.random.Generator, depth: float) -> None:
    """Something standing on the ground at `depth` metres: a tree, a car, a lamp post, a planter, a bench."""
    x = rng.uniform(-0.45, 0.45) * depth * FRAME[1] / view.intrinsics[0, 0]
    (foot,), (distance,) = view.project(np.array([[x, 0, -depth]]))
    scale = view.intrinsics[0, 0] / distance  # pixels per metre

    def fill(corners, colour) -> None:
        points = foot + scale * np.array(corners) * [1, -1]
        cv2.fillPoly(frame, [(16 * points).astype(np.int32)], tuple(float(c) for c in colour), cv2.LINE_AA, 4)

    def ellipse(cx, cy, rx, ry, colour) -> None:
        turn = np.linspace(0, 2 * np.pi, 16)
        fill(np.stack([cx + rx * np.cos(turn), cy + ry * np.sin(turn)], 1), colour)

    kind = pick(rng, ("tree", "car", "lamp", "planter", "bench"))
    if kind == "tree":
        fill([(-0.12, 0), (0.12, 0), (0.08, 2.4), (-0.08, 2.4)], (84, 66, 50))
        for _ in range(26):
            green = np.array([70, 100, 48]) * rng.uniform(0.6, 1.25)
            ellipse(
                rng.normal(0, 0.7), rng.normal(3.0, 0.6), rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.5), green
            )
    elif kind == "car":
        paint = np.array(pick(rng, _CARS))
        ellipse(0, 0.05, 2.3, 0.12, (50, 50, 54))
        fill([(-2.1, 0.3), (2.1, 0.3), (2.15, 0.8), (1.3, 0.92), (-2.1, 0.95)], paint)
        fill([(-1.6, 0.9), (1.2, 0.9), (0.6, 1.42), (-1.1, 1.45)], 0.9 * paint)
        fill([(-1.4, 0.95), (1.0, 0.95), (0.5, 1.35), (-1.0, 1.38)], (52, 60, 70))
        for wheel in (-1.3, 1.3):
            ellipse(wheel, 0.32, 0.33, 0.33, (32, 32, 34))
            ellipse(wheel, 0.32, 0.17, 0.17, (140, 140, 144))
    elif kind == "lamp":
        fill([(-0.06, 0), (0.06, 0), (0.04, 6), (-0.04, 6)], (70, 74, 78))
    elif kind == "planter":
        fill([(-0.7, 0), (0.7, 0), (0.75, 0.6), (-0.75, 0.6)], (132, 124, 114))
        for _ in range(12):
            green = np.array([64, 104, 52]) * rng.uniform(0.7, 1.3)
            ellipse(rng.uniform(-0.6, 0.6), rng.uniform(0.7, 1.1), 0.25, 0.2, green)
    else:
        fill([(-0.9, 0.42), (0.9, 0.42), (0.9, 0.5), (-0.9, 0.5)], (118, 84, 56))
        fill([(-0.9, 0.62), (0.9, 0.62), (0.9, 0.85), (-0.9, 0.85)], (118, 84, 56))
        for leg in (-0.8, 0.75):
            fill([(leg, 0), (leg + 0.06, 0), (leg + 0.06, 0.85), (leg, 0.85)], (52, 52, 56))
