"""The colours of a dressed person: each visible point is painted by where it lies on the *template* body.

So hems, stripes and prints are sharp at any mesh resolution and follow the body through shape and pose.
Legend: P visible points; x, y, z [P]: their place on the template, metres.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from hap.synthetic.body import ARM, FOOT, HEAD, LEG, TORSO
from hap.synthetic.person import COLOURS, HAIR_COLOURS, Garment, Person

# What a face belongs to, after the body's own TORSO, HEAD, ARM, LEG, FOOT.
HAIR, HAT, SKIRT, BACKPACK, SHOULDER_BAG, HAND_BAG, BOX, SEAT, PHONE = range(5, 14)


def hem_line(person: Person) -> float:
    """Where the upper garment ends, height on the template: tucked in or over the hips."""
    if person.upper.kind in ("coat", "dress"):
        return 0.86
    if person.lower.kind == "skirt":
        return 1.0
    tucked = person.upper.kind == "shirt" and person.tint[0] > 0
    return 1.0 if tucked else 0.93 - 0.025 * person.tint[1]


def is_hair(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which points [P] of the head lie above the hair line."""
    front = z / np.maximum(np.hypot(x, z), 1e-6)
    return y > np.interp(front, [-1, -0.45, -0.12, 0.25, 0.62, 1], [1.50, 1.51, 1.572, 1.630, 1.655, 1.666])


@lru_cache(maxsize=1)
def _folds() -> np.ndarray:
    """Tileable relief of cloth [256, 256], about -1 to 1: two scales of noise, stretched along one
    diagonal."""
    noise = np.random.default_rng(5).standard_normal((256, 256)).astype(np.float32)
    relief = np.zeros_like(noise)
    for sigma_x, sigma_y, gain in ((3, 9, 0.6), (6, 14, 1.0)):
        padded = np.pad(noise, 64, mode="wrap")
        soft = cv2.GaussianBlur(padded, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)[64:-64, 64:-64]
        relief += gain * soft / soft.std()
    rows = np.arange(256)[:, None]
    relief = relief[rows, (np.arange(256)[None] + rows) % 256]
    return np.clip(relief / (2 * relief.std()), -1, 1)


_RGB = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


def _shade(name: str, tint: float) -> np.ndarray:
    """A colour [3] within its name, brighter or darker."""
    return _RGB[name] * np.float32(1 + 0.14 * tint)


def _pattern(garment: Garment, tint: float, across: np.ndarray, along: np.ndarray, out: np.ndarray) -> None:
    """Paints cloth into `out` [P, 3], at `across`, `along` [P] (metres on the template)."""
    first, second = _shade(garment.colour, tint), _shade(garment.second, tint)
    out[:] = first
    period = 0.05 + 0.02 * tint
    if garment.pattern == "stripes":
        out[along % (1.4 * period) < 0.6 * period] = second
    elif garment.pattern == "plaid":
        rows, columns = (v % (1.5 * period) < 0.6 * period for v in (along, across))
        out += (0.5 * rows + 0.5 * columns)[:, None].astype(np.float32) * (second - first)
    elif garment.pattern == "dots":
        u, v = (np.abs(w % period / period - 0.5) for w in (along, across))
        out[u * u + v * v < 0.06] = second
    elif garment.pattern == "splice":
        out[along > 1.24 + 0.06 * tint] = second


_Painter = Callable[[Person, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
# How much the cloth of each part folds.
_SOFT = np.array([1, 0, 1, 1, 0, 0.7, 0, 0.8, 0.5, 0, 0, 0, 0, 0], np.float32)


def paint(person: Person, part: np.ndarray, template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours [P, 3] (RGB, 0 to 255) of points by part [P] (in rising order) and template position [3, P],
    and the relief of their cloth [P] (-1 to 1, 0 where nothing folds)."""
    colour = np.empty((len(part), 3), np.float32)
    plain = {
        HAIR: HAIR_COLOURS[person.hair_colour], HAT: COLOURS[person.hat_colour], BOX: (168, 126, 82),
        SEAT: (122, 106, 92), PHONE: (24, 24, 28), BACKPACK: COLOURS[person.backpack or "black"],
        SHOULDER_BAG: COLOURS[person.shoulder_bag or "black"], HAND_BAG: COLOURS[person.hand_bag or "black"],
    }  # fmt: skip
    painters: dict[int, _Painter] = {
        TORSO: _torso,
        HEAD: _head,
        ARM: _arm,
        LEG: _leg,
        FOOT: _foot,
        SKIRT: _skirt_cloth,
    }
    ends = np.cumsum(np.bincount(part, minlength=len(_SOFT)))
    for kind, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            continue
        if kind in painters:
            x, y, z = template[:, start:end]
            painters[kind](person, x, y, z, colour[start:end])
        else:
            colour[start:end] = plain[kind]
    x, y, z = template * np.float32(256 / 0.7)  # the relief repeats every 0.7 m, up the body every 1.2 m
    u, v = (x + 0.6 * z).astype(np.int32) & 255, (0.6 * y).astype(np.int32) & 255
    first, last = ends[ARM - 1], ends[ARM]
    u[first:last], v[first:last] = v[first:last], u[first:last].copy()  # sleeves fold across the arm
    return colour, _folds()[v, u] * _SOFT[part]


# The painters of the parts: person, place x, y, z [P] on the template, colours `out` [P, 3] to fill.


def _torso(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    upper, front, wide = person.upper, z > 0, np.abs(x)
    _pattern(upper, person.tint[0], x, y, out)
    hem = hem_line(person)
    below = np.flatnonzero(y < hem)
    lower = np.empty((len(below), 3), np.float32)
    _pattern(person.lower, person.tint[1], x[below], y[below], lower)
    out[below] = lower
    out[np.abs(y - hem) < 0.006] *= 0.6
    if upper.pattern == "logo":
        rise = np.abs(y - 1.255)
        shape = (wide + 1.5 * rise < 0.075) | (np.abs(y - 1.225) < 0.008)
        out[front & shape & (wide < 0.075) & (rise < 0.05)] = _shade(upper.second, person.tint[0])
    if person.inner:
        out[front & (wide < 0.035 + 0.045 * (1.45 - y)) & (y > hem)] = _shade(person.inner, 0.0)
    elif upper.kind in ("jacket", "coat", "shirt"):  # zip or buttons
        out[front & (wide < 0.005) & (y > hem)] *= 0.65
    neckline = 1.452 if upper.kind in ("jacket", "coat", "sweater") else 1.437
    dip = {"dress": 0.09, "t-shirt": 0.035}.get(upper.kind, 0.025)
    out[front & (y > neckline - dip * (1 - wide / 0.075).clip(0, 1))] = person.skin
    _straps(person, x, y, z, out)


def _straps(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    """Straps of backpack and shoulder bag over torso and shoulders."""
    if person.backpack:
        strap = (np.abs(np.abs(x) - 0.105) < 0.019) & ((z > -0.02) | (y > 1.38)) & (y > 1.10)
        out[strap] = 0.8 * _shade(person.backpack, person.tint[2])
    if person.shoulder_bag:
        side = -1 if person.left_handed else 1
        t = (y - 0.99) / 0.45  # from the hip of the bag's side to the other shoulder
        strap = (np.abs(side * x - (0.16 - 0.27 * t)) < 0.016) & (t > 0)
        out[strap] = 0.8 * _shade(person.shoulder_bag, person.tint[2])


def _arm(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    upper, reach = person.upper, np.abs(x)
    if upper.pattern == "splice":
        out[:] = _shade(upper.second, person.tint[0])
    else:
        _pattern(upper, person.tint[0], y + 0.7 * z, 1.47 - np.maximum(reach - 0.15, 0), out)
    out[np.abs(reach - upper.end + 0.008) < 0.006] *= 0.75
    out[reach > upper.end] = person.skin
    out[(reach > 0.80) & (np.abs((z + 0.045) % 0.022 - 0.011) > 0.008)] *= 0.85  # between the fingers
    _straps(person, x, y, z, out)


def _leg(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    lower, wide = person.lower, np.abs(x)
    if person.has_skirt:
        out[:] = (44, 40, 44) if person.tint[1] > 0.4 else person.skin  # tights or bare
    else:
        _pattern(lower, person.tint[1], wide - 0.09 + 0.7 * z, y, out)
        if lower.pattern == "side stripe":
            out[(np.abs(z + 0.006) < 0.014) & (wide > 0.092)] = _shade(lower.second, person.tint[1])
        if lower.kind == "jeans":  # worn at the thigh
            out *= (1 + 0.18 * np.exp(-(((y - 0.66) / 0.12) ** 2)) * (z > 0))[:, None].astype(np.float32)
        out[np.abs(y - lower.end - 0.008) < 0.006] *= 0.75
        out[y < lower.end] = person.skin
    if person.shoes == "boots":
        out[y < min(0.32, max(lower.end, 0.2))] = _shade(person.shoes_colour, 0.3)
    elif person.shoes == "sneakers":
        out[(y < 0.13) & (y < lower.end)] = (225, 225, 222)  # socks


def _foot(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    out[:] = _shade(person.shoes_colour, 0.3)
    if person.shoes == "sneakers":
        out[y < 0.016] = (222, 222, 218)
        out[(z > 0.02) & (z < 0.08) & (y > 0.05) & (z % 0.02 < 0.008)] = (200, 200, 200)
    else:
        out[y < 0.010] *= 0.6


def _skirt_cloth(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    """The skirt of a skirt, a dress or a coat."""
    if person.upper.kind == "coat":
        _pattern(person.upper, person.tint[0], x, y, out)
        gap = 0.035 + 0.045 * (1.45 - y) if person.inner else 0.006
        out[(z > 0) & (np.abs(x) < gap)] = 0.8 * _shade(person.lower.colour, person.tint[1])
        return
    around = np.arctan2(x, z)
    dress = person.upper.kind == "dress"
    garment, tint = (person.upper, person.tint[0]) if dress else (person.lower, person.tint[1])
    _pattern(garment, tint, 0.17 * around, y, out)
    out *= (1 + 0.10 * np.cos(14 * around) * ((0.95 - y) / 0.3).clip(0, 1))[:, None]  # pleats


def _head(person: Person, x: np.ndarray, y: np.ndarray, z: np.ndarray, out: np.ndarray) -> None:
    skin, hair, side = (
        np.array(person.skin, np.float32),
        np.array(HAIR_COLOURS[person.hair_colour], np.float32),
        np.abs(x),
    )
    out[:] = skin
    at = np.flatnonzero((z > 0.03) & (y > 1.50) & (y < 1.66))
    out[at] = _face(person, side[at], y[at], skin, hair)
    if person.hair != "bald":
        out[is_hair(x, y, z)] = hair
    if person.glasses:
        lens = ((side - 0.034) / 0.026) ** 2 + ((y - 1.604) / 0.019) ** 2
        frame = (z > 0.03) & (lens < 1.35) & ((lens > 0.75) | (person.glasses == "sunglasses"))
        bridge = (z > 0.03) & (side < 0.012) & (np.abs(y - 1.610) < 0.004)
        temple = (np.abs(y - 1.610) < 0.005) & (side > 0.05) & (z > -0.01)
        out[frame | bridge | temple] = (26, 26, 30)


def _face(person: Person, side: np.ndarray, y: np.ndarray, skin: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """Colours [P, 3] of points of the face at |x| = `side` and height `y`."""
    out = np.repeat(skin[None], len(y), 0)
    socket = np.exp(-(((side - 0.034) / 0.022) ** 2) - ((y - 1.609) / 0.016) ** 2)
    out *= 1 - 0.10 * socket[:, None]
    cheek = np.exp(-(((side - 0.045) / 0.02) ** 2) - ((y - 1.572) / 0.018) ** 2)
    out *= 1 - cheek[:, None] * np.array([0.0, 0.07, 0.06], np.float32)
    if person.beard:
        out[(y < 1.562) & ~((np.abs(y - 1.547) < 0.008) & (side < 0.02))] = 0.55 * hair + 0.35 * skin
    out[(np.abs(y - 1.547) < 0.0045) & (side < 0.026)] = skin * np.array([0.78, 0.52, 0.52], np.float32)
    eye = ((side - 0.034) / 0.0155) ** 2 + ((y - 1.606) / 0.0085) ** 2 < 1
    out[eye] = (205, 200, 196)
    out[eye & (np.abs(side - 0.034) < 0.008)] = (40, 30, 26)
    brow = (np.abs(side - 0.036) < 0.020) & (np.abs(y - 1.629 + 0.1 * (side - 0.036)) < 0.0045)
    out[brow] = 0.7 * hair + 0.2 * skin
    out[(side < 0.012) & (np.abs(y - 1.566) < 0.003)] *= 0.72  # under the nose
    if person.age == "elderly":  # wrinkles
        out[(np.abs(y - 1.648) < 0.003) | ((np.abs(side - 0.04) < 0.003) & (np.abs(y - 1.56) < 0.015))] *= (
            0.82
        )
    return out
