"""Who a synthetic person is: build, age, skin, hair, clothes, shoes and bags; the attributes and the caption
that are true of the drawing. Nothing here draws: `hap.synthetic.clothes` and `hap.synthetic.render` do.

An identity is a function of (seed, index) alone, so it persists over images, cameras and processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# The 26 attributes of PA-100K, in the order in which results are reported.
ATTRIBUTES = (
    "Hat", "Glasses", "ShortSleeve", "LongSleeve", "UpperStride", "UpperLogo", "UpperPlaid", "UpperSplice",
    "LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress", "boots", "HandBag",
    "ShoulderBag", "Backpack", "HoldObjectsInFront", "AgeOver60", "Age18-60", "AgeLess18", "Female", "Front",
    "Side", "Back",
)  # fmt: skip

COLOURS = {  # name: RGB
    "black": (30, 30, 34), "white": (226, 226, 224), "grey": (128, 130, 134), "dark grey": (70, 72, 78),
    "red": (176, 36, 42), "dark red": (108, 26, 38), "blue": (46, 82, 160), "navy": (32, 40, 78),
    "light blue": (140, 176, 208), "green": (48, 120, 72), "olive": (92, 94, 56), "yellow": (218, 188, 70),
    "orange": (216, 118, 46), "brown": (104, 72, 48), "beige": (202, 182, 152), "pink": (222, 150, 168),
    "purple": (104, 68, 132),
}  # fmt: skip
HAIR_COLOURS = {
    "black": (32, 28, 28), "dark brown": (60, 42, 32), "brown": (98, 68, 44), "blond": (184, 150, 96),
    "red": (134, 68, 40), "grey": (150, 148, 146), "white": (212, 210, 204),
}  # fmt: skip
SKIN = ((232, 190, 162), (220, 172, 140), (200, 150, 116), (170, 120, 88), (134, 92, 66), (96, 66, 50))

_UPPER = {  # kind: share, cloth off the skin (m), probability of short sleeves
    "t-shirt": (0.34, 0.014, 1.0), "shirt": (0.18, 0.015, 0.4), "sweater": (0.16, 0.022, 0.0),
    "jacket": (0.20, 0.028, 0.0), "coat": (0.06, 0.028, 0.0), "dress": (0.06, 0.008, 0.6),
}  # fmt: skip
_LOWER = {
    "trousers": (0.07, 0.10),
    "jeans": (0.07, 0.11),
    "shorts": (0.44, 0.62),
    "skirt": (0.28, 0.66),
}  # end
_SNEAKERS = ("black", "white", "grey", "red", "blue")
_JEANS = ("blue", "navy", "black", "grey", "light blue")
_SOBER = ("black", "white", "grey", "dark grey", "navy", "beige", "brown")


@dataclass(frozen=True)
class Garment:
    """`kind` (a key of _UPPER or _LOWER), colour names, `pattern` (plain, stripes, plaid, dots, logo, splice,
    side stripe), `end`: where the sleeve (|x|) or the leg or hem (y) ends on the template body, metres;
    `loose`: how far the cloth is off the skin, metres."""

    kind: str
    colour: str
    second: str
    pattern: str
    end: float
    loose: float


@dataclass(frozen=True)
class Person:
    """One identity. Colours are names, `tint` (-1 to 1; upper, lower, bags) shades them within the name. None
    stands for "has none"."""

    betas: tuple[float, ...]
    age: str  # child, adult, elderly
    female: bool
    skin: tuple[int, int, int]
    hair: str  # bald, short, bob, long, ponytail, bun
    hair_colour: str
    beard: bool
    hat: str | None  # cap, beanie, sun hat
    hat_colour: str
    glasses: str | None  # glasses, sunglasses
    upper: Garment
    inner: str | None  # colour under an open jacket or coat
    lower: Garment
    shoes: str  # sneakers, shoes, boots
    shoes_colour: str
    backpack: str | None  # colours
    shoulder_bag: str | None
    hand_bag: str | None
    left_handed: bool  # the hand bag hangs on the left, the shoulder bag on the right
    tint: tuple[float, float, float]

    @property
    def short_sleeves(self) -> bool:
        return self.upper.end < 0.5

    @property
    def has_skirt(self) -> bool:
        return self.lower.kind == "skirt" or self.upper.kind == "dress"

    def attributes(self, view: str, holding: bool) -> np.ndarray:
        """bool [26] in the order of ATTRIBUTES. `view`: Front, Side or Back; `holding`: a box in the hands,
        which then hold no bag. Glasses and prints cannot be seen from behind and are not claimed there."""
        behind = view == "Back"
        upper, lower = self.upper, self.lower
        facts: dict[str, object] = {
            "Hat": self.hat, "Glasses": self.glasses and not behind,
            "ShortSleeve": self.short_sleeves, "LongSleeve": not self.short_sleeves,
            "UpperStride": upper.pattern == "stripes", "UpperLogo": upper.pattern == "logo" and not behind,
            "UpperPlaid": upper.pattern == "plaid", "UpperSplice": upper.pattern == "splice",
            "LowerStripe": lower.pattern == "side stripe", "LowerPattern": lower.pattern in ("plaid", "dots"),
            "LongCoat": upper.kind == "coat", "Skirt&Dress": self.has_skirt,
            "Trousers": lower.kind in ("trousers", "jeans") and not self.has_skirt,
            "Shorts": lower.kind == "shorts", "boots": self.shoes == "boots",
            "HandBag": self.hand_bag and not holding, "ShoulderBag": self.shoulder_bag,
            "Backpack": self.backpack, "HoldObjectsInFront": holding, "AgeOver60": self.age == "elderly",
            "Age18-60": self.age == "adult", "AgeLess18": self.age == "child", "Female": self.female,
            "Front": view == "Front", "Side": view == "Side", "Back": behind,
        }  # fmt: skip
        return np.array([bool(facts[name]) for name in ATTRIBUTES])


def pick(
    rng: np.random.Generator, options: Sequence[T] | Mapping[T, object], shares: Sequence[float] | None = None
) -> T:
    """One of the options, by their shares (which need not sum to 1). `rng.choice` takes 20 times as long."""
    options = tuple(options)
    if shares is None:
        return options[int(rng.random() * len(options))]
    level = rng.random() * sum(shares)
    for option, share in zip(options, shares, strict=True):
        level -= share
        if level < 0:
            return option
    return options[-1]


@lru_cache(maxsize=256)
def identity(seed: int, index: int, *, alike: int = 1) -> Person:
    """Person number `index` of the population `seed`. Each `alike` in a row share sex, age group and clothes,
    and differ in build, skin, hair, shoes, hat and bags."""
    body = np.random.default_rng([seed, 11, index])
    wardrobe = np.random.default_rng([seed, 12, index // alike])
    female, age = (
        bool(wardrobe.random() < 0.48),
        pick(wardrobe, ("child", "adult", "elderly"), (0.08, 0.82, 0.10)),
    )
    return _person(body, female, age, *_clothes(wardrobe, female, age))


def _person(
    rng: np.random.Generator, female: bool, age: str, upper: Garment, inner: str | None, lower: Garment
) -> Person:
    hair, hair_colour = _hair(rng, female, age)
    bag_colours = [
        pick(rng, ("black", "dark grey", "brown", "navy", "beige", "red", "olive")) for _ in range(3)
    ]
    backpack = bag_colours[0] if rng.random() < (0.08 if age == "elderly" else 0.24) else None
    shoulder_bag = bag_colours[1] if backpack is None and rng.random() < (0.30 if female else 0.16) else None
    hand_bag = bag_colours[2] if rng.random() < (0.24 if female else 0.10) else None
    shoes = pick(rng, ("sneakers", "shoes", "boots"), (0.62, 0.28, 0.10))
    hat = pick(rng, ("cap", "beanie", "sun hat"), (0.6, 0.25, 0.15 * female)) if rng.random() < 0.14 else None
    return Person(
        betas=_betas(rng, female, age),
        age=age,
        female=female,
        skin=pick(rng, SKIN, (0.22, 0.26, 0.22, 0.14, 0.09, 0.07)),
        hair=hair,
        hair_colour=hair_colour,
        beard=not female and age != "child" and rng.random() < 0.22,
        hat=hat,
        hat_colour=pick(rng, COLOURS),
        glasses=pick(rng, ("glasses", "sunglasses"), (0.75, 0.25)) if rng.random() < 0.2 else None,
        upper=upper,
        inner=inner,
        lower=lower,
        shoes=shoes,
        shoes_colour=pick(rng, _SNEAKERS if shoes == "sneakers" else ("black", "brown")),
        backpack=backpack,
        shoulder_bag=shoulder_bag,
        hand_bag=hand_bag,
        left_handed=rng.random() < 0.5,
        tint=tuple(rng.uniform(-1, 1, 3).tolist()),
    )


def _betas(rng: np.random.Generator, female: bool, age: str) -> tuple[float, ...]:
    """Coefficients as `hap.synthetic.body` names them; a child is small, with a large head."""
    b = rng.normal(0, 0.8, 10).clip(-2, 2)
    b += [-0.75, 0, 0, -0.9, 0.8, 0, 0, 0, 0, -0.7] if female else [0.55, 0, 0, 0.6, -0.5, 0, 0, 0, 0, 0.3]
    b[6] = abs(b[6]) + 0.7 if female and age != "child" else -0.3
    if age == "child":
        b[0], b[7] = rng.uniform(-7.0, -2.5), 3.0 + 0.4 * b[7]
        b[1], b[3], b[9] = b[1] - 0.5, -0.8, -0.8
    elif age == "elderly":
        b[0], b[5] = b[0] - 0.6, b[5] + 0.9
    return tuple(b.tolist())


def _hair(rng: np.random.Generator, female: bool, age: str) -> tuple[str, str]:
    if female:
        style = pick(rng, ("short", "bob", "long", "ponytail", "bun"), (0.10, 0.25, 0.34, 0.22, 0.09))
    else:
        bald = {"child": 0.0, "adult": 0.07, "elderly": 0.3}[age]
        style = pick(rng, ("bald", "short", "bob"), (bald, 0.97 - bald, 0.03))
    if age == "elderly":
        return style, pick(rng, ("grey", "white"), (0.6, 0.4))
    return style, pick(rng, ("black", "dark brown", "brown", "blond", "red"), (0.42, 0.24, 0.18, 0.11, 0.05))


def _clothes(rng: np.random.Generator, female: bool, age: str) -> tuple[Garment, str | None, Garment]:
    """Upper garment, the colour under it if it is open, lower garment."""
    kind = pick(rng, _UPPER, [share * (female or name != "dress") for name, (share, _, _) in _UPPER.items()])
    _, loose, short = _UPPER[kind]
    sleeve = rng.uniform(0.30, 0.40) if rng.random() < short else rng.uniform(0.685, 0.715)
    pattern = "plain"
    if kind in ("t-shirt", "shirt", "sweater"):
        pattern = pick(rng, ("plain", "stripes", "plaid", "logo", "splice"), (0.52, 0.15, 0.10, 0.15, 0.08))
    elif kind in ("dress", "jacket"):
        pattern = pick(rng, ("plain", "stripes" if kind == "dress" else "splice"), (0.8, 0.2))
    colour = pick(
        rng, ("black", "dark grey", "navy", "beige", "brown", "grey") if kind == "coat" else COLOURS
    )
    upper = Garment(kind, colour, _contrast(rng, colour), pattern, sleeve, loose * rng.uniform(0.7, 1.4))
    inner = _contrast(rng, colour) if kind in ("jacket", "coat") and rng.random() < 0.55 else None

    warm = kind in ("coat", "jacket", "sweater") or age == "elderly"
    whole = kind in ("coat", "dress")  # its hem is drawn where a skirt would be
    shares = (0.44, 0.30, 0.02 if warm else 0.18, 0.12 * (female and not whole))
    kind = pick(rng, _LOWER, shares) if kind != "dress" else "trousers"
    patterns = ("plain", "side stripe", "plaid", "dots")
    usual = {
        "trousers": (84, 8, 4, 4),
        "jeans": (1, 0, 0, 0),
        "shorts": (70, 10, 12, 8),
        "skirt": (70, 0, 15, 15),
    }
    pattern = pick(rng, patterns, usual[kind]) if upper.kind != "dress" else "plain"
    colour = pick(rng, _JEANS if kind == "jeans" else _SOBER if rng.random() < 0.75 else COLOURS)
    loose = rng.uniform(0.003, 0.012) if female else rng.uniform(0.008, 0.020)
    return (
        upper,
        inner,
        Garment(kind, colour, _contrast(rng, colour), pattern, rng.uniform(*_LOWER[kind]), loose),
    )


_FAR = {  # the colours far enough from one to be seen as another
    name: tuple(n for n in COLOURS if np.abs(np.subtract(rgb, COLOURS[n])).sum() > 150)
    for name, rgb in COLOURS.items()
}


def _contrast(rng: np.random.Generator, colour: str) -> str:
    return pick(rng, _FAR[colour])
