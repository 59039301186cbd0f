"""Dresses the body: a `Person` becomes one skinned mesh, the body pushed out by cloth, plus hair, hat, skirt,
bags.

Legend: V vertices, F faces. All meshes are at rest and in the frame of the template body
(`hap.synthetic.body`)."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hap.body.raster import vertex_normals
from hap.synthetic.body import HEAD, JOINTS, LEG, NUM_BETAS, TORSO, Mesh, body_model, merge, tube
from hap.synthetic.paint import (
    BACKPACK,
    BOX,
    HAIR,
    HAND_BAG,
    HAT,
    PHONE,
    SEAT,
    SHOULDER_BAG,
    SKIRT,
    hem_line,
    is_hair,
)
from hap.synthetic.person import Person

# Things that hang by gravity, are held by both hands or stand on the ground have a transform of their own
# behind the 24 joints.
LEFT_HANG, RIGHT_HANG, HELD, SEATED = range(24, 28)
NUM_TRANSFORMS = 28


@dataclass(frozen=True)
class Clothing:
    """A mesh to wear (or the body in it): `template` [V, 3], its place on the average body, where paint is looked
    up, and the `normals` [V, 3] there; `faces` [F, 3] and their `part` uint8 [F]; `weights` [V, 28]; `shapedirs`
    [3 V, B]."""

    template: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    part: np.ndarray
    weights: np.ndarray
    shapedirs: np.ndarray


@dataclass(frozen=True)
class Outfit:
    """A dressed person at rest: `vertices` [V, 3] of `mesh`, the body's first; `bare`: those of the body without
    clothes; `joints` [24, 3]."""

    mesh: Clothing
    vertices: np.ndarray
    bare: np.ndarray
    joints: np.ndarray


def _smooth(value: np.ndarray, start: float, end: float) -> np.ndarray:
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _rigid(mesh: Mesh, transform: int) -> Mesh:
    """The mesh, bound to one transform."""
    weights = np.zeros((len(mesh.vertices), NUM_TRANSFORMS), np.float32)
    weights[:, transform] = 1
    return replace(mesh, weights=weights)


def _padded(weights: np.ndarray) -> np.ndarray:
    """Weights of the 24 joints -> of all transforms."""
    return np.pad(weights, ((0, 0), (0, NUM_TRANSFORMS - len(JOINTS))))


def _box(centre, size, transform: int, squareness: float) -> Mesh:
    """A rounded box, sizes (x, y, z)."""
    (x, y, z), (w, h, d) = centre, np.array(size) / 2
    profile = ((-1, 0.9), (-0.85, 1), (0, 1), (0.85, 1), (1, 0.9))
    rings = [(y + s * h, x, z, w * k, d * k, d * k) for s, k in profile]
    return _rigid(tube(rings, 1, 12, [(0, 0, 0)], squareness=squareness), transform)


_HEAD_JOINT = JOINTS.index("head")
_LONG_HAIR = [
    (1.728, 0, -0.012, 0.030, 0.020, 0.042), (1.712, 0, -0.012, 0.066, 0.030, 0.084),
    (1.670, 0, -0.012, 0.088, 0.022, 0.106), (1.620, 0, -0.012, 0.091, 0.012, 0.110),
    (1.560, 0, -0.014, 0.090, 0.004, 0.104), (1.500, 0, -0.020, 0.086, 0.000, 0.090),
    (1.440, 0, -0.030, 0.084, 0.000, 0.086), (1.380, 0, -0.040, 0.082, 0.000, 0.088),
    (1.320, 0, -0.048, 0.070, 0.000, 0.082), (1.280, 0, -0.052, 0.040, 0.000, 0.066),
]  # fmt: skip
_DOME = [(1.628, 0, 0.002, 0.093, 0.112, 0.122), (1.660, 0, 0.002, 0.094, 0.110, 0.121),
         (1.700, 0, 0.000, 0.084, 0.092, 0.106), (1.730, 0, -0.002, 0.060, 0.062, 0.074),
         (1.746, 0, -0.004, 0.028, 0.028, 0.036)]  # fmt: skip
_BEANIE = [(1.618, 0, 0.002, 0.095, 0.115, 0.122), *_DOME[1:], (1.758, 0, -0.004, 0.012, 0.012, 0.012)]
_CAP_BRIM = [(0.07, 0, 1.648, 0.076, 0.008, 0.006), (0.13, 0, 1.645, 0.072, 0.006, 0.006),
             (0.175, 0, 1.638, 0.052, 0.005, 0.005), (0.19, 0, 1.634, 0.02, 0.004, 0.004)]  # fmt: skip
_SUN_BRIM = [(1.652, 0, 0, 0.08, 0.09, 0.1), (1.645, 0, 0, 0.165, 0.18, 0.18),
             (1.655, 0, 0, 0.16, 0.18, 0.18), (1.668, 0, 0, 0.08, 0.09, 0.1)]  # fmt: skip
_PONYTAIL = [(1.655, 0, -0.105, 0.018, 0.03, 0.02), (1.62, 0, -0.13, 0.026, 0.026, 0.026),
             (1.55, 0, -0.135, 0.030, 0.024, 0.028), (1.46, 0, -0.125, 0.024, 0.02, 0.022),
             (1.39, 0, -0.118, 0.010, 0.010, 0.010)]  # fmt: skip
_BUN = [(1.665 + dy, 0, -0.118, r, r, r) for dy, r in
        ((-0.04, 0.012), (-0.025, 0.034), (0, 0.042), (0.025, 0.034), (0.04, 0.012))]  # fmt: skip


def _accessory(name: str) -> Mesh:
    """The mesh of one thing, with weights [V, 28]."""

    def on_head(rings, axis: int, segments: int) -> Mesh:
        return _rigid(tube(rings, axis, segments, [(_HEAD_JOINT, 0, 0)]), _HEAD_JOINT)

    left = name.endswith("left")
    side = 1 if left else -1
    match name.removesuffix(" left").removesuffix(" right"):
        case "long" | "bob":
            rings = _LONG_HAIR if name == "long" else [*_LONG_HAIR[:5], (1.515, 0, -0.016, 0.078, 0, 0.082)]
            mesh = tube(rings, 1, 14, [(9, 0, 0), (_HEAD_JOINT, 1.34, 1.50)])
            return replace(mesh, weights=_padded(mesh.weights))
        case "ponytail":
            return on_head(_PONYTAIL, 1, 8)
        case "bun":
            return on_head(_BUN, 1, 8)
        case "beanie":
            return on_head(_BEANIE, 1, 14)
        case "cap":
            return merge([on_head(_DOME, 1, 14), on_head(_CAP_BRIM, 2, 8)])
        case "sun hat":
            return merge([on_head(_DOME, 1, 14), on_head(_SUN_BRIM, 1, 16)])
        case "backpack":
            return _box((0, 1.20, -0.175), (0.29, 0.42, 0.17), JOINTS.index("spine3"), 0.55)
        case "shoulder bag":
            return _box((side * 0.225, 0.90, -0.03), (0.10, 0.22, 0.27), JOINTS.index("pelvis"), 0.5)
        case "hand bag":
            slot = LEFT_HANG if left else RIGHT_HANG
            handle = _box((0, -0.05, 0), (0.015, 0.12, 0.16), slot, 0.35)
            return merge([handle, _box((0, -0.24, 0), (0.10, 0.25, 0.30), slot, 0.5)])
        case "box":
            return _box((0, 0.05, 0), (0.34, 0.24, 0.26), HELD, 0.15)
        case "seat":
            return _box((0, -0.3, -0.06), (0.56, 0.6, 0.42), SEATED, 0.2)
        case "phone":
            hand = JOINTS.index("left_hand" if left else "right_hand")
            return _box((side * 0.80, 1.385, 0.035), (0.14, 0.012, 0.07), hand, 0.35)
    raise ValueError(name)


def _skirt(end: float, flare: float) -> Mesh:
    """From the waist to the height `end`; follows both thighs, and the shins below the knee."""
    heights = np.array([1.02, 0.97, 0.91, *np.linspace(0.84, end, 5)])
    drop = (0.97 - heights).clip(0) / 0.6
    wide = np.interp(heights, [0.9, 0.97, 1.02], [0.186, 0.178, 0.162]) + flare * drop
    deep = np.interp(heights, [0.9, 0.97, 1.02], [0.140, 0.128, 0.114]) + flare * drop
    mesh = tube(np.stack([heights, 0 * wide, 0 * wide - 0.006, wide, deep, deep], 1), 1, 18, [(0, 0, 0)])
    x, y = mesh.vertices[:, 0], mesh.vertices[:, 1]
    left = _smooth(x, -0.13, 0.13)
    legs = 0.9 * _smooth(-y, -0.95, -0.72)
    shins = legs * 0.7 * _smooth(-y, -0.56, -0.36)
    weights = np.zeros((len(x), NUM_TRANSFORMS), np.float32)
    weights[:, 0] = 1 - legs
    for hip, knee, share in ((1, 4, left), (2, 5, 1 - left)):
        weights[:, hip] = (legs - shins) * share
        weights[:, knee] = shins * share
    return replace(mesh, weights=weights)


_NEAR = {HAIR: (HEAD,), HAT: (HEAD,), SKIRT: (TORSO, LEG), BACKPACK: (TORSO,), SHOULDER_BAG: (TORSO,)}


@lru_cache(maxsize=128)
def _piece(part: int, name: str | tuple[float, float]) -> Clothing:
    """The thing `name` (for a skirt: its end and flare). What is worn on the body grows as the nearest point
    of the body does."""
    body = body_model()
    mesh = _accessory(name) if isinstance(name, str) else _skirt(*name)
    directions = np.zeros((len(mesh.vertices), 3, NUM_BETAS), np.float32)
    if part in _NEAR:
        candidates = np.flatnonzero(np.isin(body.kind, _NEAR[part]))
        distance = np.linalg.norm(mesh.vertices[:, None] - body.v_template[candidates], axis=2)
        directions = body.shapedirs[candidates[distance.argmin(1)]]
    elif part == PHONE:  # grows as the hand
        nearest = np.linalg.norm(body.v_template - mesh.vertices.mean(0), axis=1).argmin()
        directions[:] = body.shapedirs[nearest]
    return _clothing(mesh.vertices, mesh.faces, np.full(len(mesh.faces), part), mesh.weights, directions)


def _clothing(template, faces, part, weights, shapedirs) -> Clothing:
    normals = vertex_normals(template, faces)
    return Clothing(
        template, normals, faces, part.astype(np.uint8), weights, shapedirs.reshape(-1, NUM_BETAS)
    )


@lru_cache(maxsize=256)
def _wardrobe(things: tuple[tuple[int, str | tuple[float, float]], ...]) -> Clothing:
    """The body with things (part, name) on."""
    body = body_model()
    kind = body.kind[body.faces[:, 0]]
    pieces = [_clothing(body.v_template, body.faces, kind, _padded(body.weights), body.shapedirs)]
    pieces += [_piece(*thing) for thing in things]
    offsets = np.cumsum([0, *(len(p.template) for p in pieces[:-1])])
    return Clothing(
        template=np.concatenate([p.template for p in pieces]),
        normals=np.concatenate([p.normals for p in pieces]),
        faces=np.concatenate([p.faces + o for p, o in zip(pieces, offsets, strict=True)]),
        part=np.concatenate([p.part for p in pieces]),
        weights=np.concatenate([p.weights for p in pieces]),
        shapedirs=np.concatenate([p.shapedirs for p in pieces]),
    )


def skirt_hem(person: Person) -> float:
    """Where a skirt or dress ends, height on the template (the knee is at 0.48); rounded, so that few are made."""
    return round(person.lower.end, 1)


def _things(
    person: Person, seated: bool, holding: bool, phone: str | None
) -> tuple[tuple[int, str | tuple[float, float]], ...]:
    """What to draw besides the body: (part, name)."""
    things: list[tuple[int, str | tuple[float, float]]] = []
    if person.hair not in ("bald", "short"):
        things.append((HAIR, person.hair))
    if person.hat:
        things.append((HAT, person.hat))
    if person.upper.kind == "coat":
        things.append((SKIRT, (0.45, 0.05)))
    elif person.has_skirt:
        things.append((SKIRT, (skirt_hem(person), round(0.02 + 2 * person.lower.loose, 2))))
    if person.backpack:
        things.append((BACKPACK, "backpack"))
    main, other = ("left", "right") if person.left_handed else ("right", "left")
    if person.shoulder_bag:
        things.append((SHOULDER_BAG, f"shoulder bag {other}"))
    if person.hand_bag and not holding:  # in the hand that does not telephone
        things.append((HAND_BAG, f"hand bag {other if phone == main else main}"))
    if holding:
        things.append((BOX, "box"))
    if seated:
        things.append((SEAT, "seat"))
    if phone:
        things.append((PHONE, f"phone {phone}"))
    return tuple(things)


@lru_cache(maxsize=128)
def dress(person: Person, seated: bool, holding: bool, phone: str | None) -> Outfit:
    """The mesh of a person in clothes, with what the pose needs."""
    mesh = _wardrobe(_things(person, seated, holding, phone))
    vertices = mesh.template + (mesh.shapedirs @ np.array(person.betas, np.float32)).reshape(-1, 3)
    bare = vertices[: len(body_model().v_template)].copy()
    vertices[: len(bare)] += _cloth(person)[:, None] * _radial()
    return Outfit(mesh, vertices, bare, body_model().J_regressor @ bare)


@lru_cache(maxsize=1)
def _radial() -> np.ndarray:
    """Unit directions [V, 3] away from the axis of each tube."""
    radial = body_model().v_template - body_model().centres
    return radial / np.maximum(np.linalg.norm(radial, axis=1, keepdims=True), 1e-6)


def _cloth(person: Person) -> np.ndarray:
    """Distance [V] of the cloth (or hair, or shoe) from the skin, metres."""
    body = body_model()
    (x, y, z), upper, lower = body.v_template.T, person.upper, person.lower
    hang = 1 + 0.8 * np.exp(-(((y - 1.06) / 0.09) ** 2))  # cloth falls straight over the waist
    torso = np.where(y > hem_line(person), upper.loose * hang, 0.8 * lower.loose)
    torso = torso * np.clip((1.47 - y) / 0.08, 0.15, 1)
    arm = np.where(np.abs(x) < upper.end + 0.01, 0.65 * upper.loose, 0.0) * (np.abs(x) < 0.72)
    if not person.short_sleeves:
        arm = arm * np.interp(np.abs(x), [0.4, 0.62, 0.7], [1, 1.3, 0.8])
    width = np.interp(
        y, [0.1, 0.45, 0.75, 0.9], [2.0, 1.3, 0.8, 0.2]
    )  # legs are thin below, trousers are not
    leg = np.where(y > lower.end - 0.01, lower.loose * width, 0.0) * (not person.has_skirt)
    if person.shoes == "boots" and lower.kind not in ("trousers", "jeans"):
        leg = np.maximum(leg, np.where(y < 0.34, 0.012, 0))
    foot = np.full_like(y, 0.009 if person.shoes == "boots" else 0.006)
    volume = {"bald": 0.0, "short": 0.012}.get(person.hair, 0.008)
    head = np.where(
        is_hair(x, y, z) & ((y < 1.61) | (person.hat is None)), volume, 0.0
    )  # a hat presses it down
    return np.choose(body.kind, [torso, head, arm, leg, foot]).astype(np.float32)
