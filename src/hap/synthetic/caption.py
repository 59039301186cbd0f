"""English descriptions of the synthetic people, in the manner of CUHK-PEDES: one or two sentences about what
the image shows, worded differently each time."""

import numpy as np

from hap.synthetic.person import Garment, Person, pick

_DOING = {
    "walking": ("is walking", "walks along"), "standing": ("is standing", "stands still"),
    "texting": ("is looking at a phone", "holds a phone in front of the chest"),
    "phoning": ("is talking on the phone", "holds a phone to one ear"), "running": ("is running",),
    "arms raised": ("has an arm stretched out or raised", "is gesturing with the arms"),
    "sitting": ("is sitting", "is seated"), "crouching": ("is crouching", "squats"),
    "bending": ("is bending forward", "bends down"),
    "carrying": ("is carrying a box", "holds a box in both hands"),
}  # fmt: skip
_VIEW = {"Front": ("facing the camera", "seen from the front"), "Side": ("seen from the side", "in profile"),
         "Back": ("seen from behind", "facing away from the camera")}  # fmt: skip


def describe(person: Person, activity: str, view: str, rng: np.random.Generator) -> str:
    """A caption. `activity`: of the pose; `view`: Front, Side or Back. What cannot be seen from behind is
    left out."""
    behind = view == "Back"
    noun, pronoun = _noun(person, rng), "She" if person.female else "He"
    clothes = [_upper(person, behind), *_lower(person), f"{person.shoes_colour} {person.shoes}"]
    if person.hat:
        clothes.append(_a(f"{person.hat_colour} {person.hat}"))
    if person.glasses and not behind:
        clothes.append(person.glasses)
    doing = f"{pick(rng, _DOING[activity])}, {pick(rng, _VIEW[view])}"
    hair, bags = _hair(person), _bags(person, activity == "carrying")
    wears = pick(rng, ("wears", "is wearing", "is dressed in"))
    manner = rng.integers(3)
    if manner == 0:
        first = f"{_a(noun)} {hair} {wears} {_and(clothes)}."
        second = f"{pronoun} {doing}{f', and carries {_and(bags)}' if bags else ''}."
    elif manner == 1:
        first = f"{_a(noun)} {hair} {doing}."
        second = f"{pronoun} {wears} {_and(clothes)}{f', and has {_and(bags)}' if bags else ''}."
    else:
        first = f"the {noun} {wears} {_and(clothes)}{f' and carries {_and(bags)}' if bags else ''}."
        second = f"{pronoun} has {hair.removeprefix('with ')} and {doing}."
    return f"{first[0].upper()}{first[1:]} {second}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _and(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _noun(person: Person, rng: np.random.Generator) -> str:
    if person.age == "child":
        return "girl" if person.female else "boy"
    noun = pick(rng, ("woman", "lady") if person.female else ("man", "gentleman"))
    return f"{pick(rng, ('elderly', 'old'))} {noun}" if person.age == "elderly" else noun


def _hair(person: Person) -> str:
    if person.hair == "bald":
        return "with a bald head"
    if person.hair in ("ponytail", "bun"):
        return f"with {person.hair_colour} hair in a {person.hair}"
    length = {"short": "short", "bob": "chin-length", "long": "long"}[person.hair]
    return f"with {length} {person.hair_colour} hair"


def _cloth(garment: Garment, name: str, hidden: bool = False) -> str:
    """Colour and pattern before the name; `hidden`: the front is not seen."""
    both = f"{garment.colour} and {garment.second}"
    return {
        "stripes": f"{both} striped {name}",
        "plaid": f"{both} checked {name}",
        "dots": f"{garment.colour} {name} with {garment.second} dots",
        "splice": f"two-tone {both} {name}",
        "side stripe": f"{garment.colour} {name} with {garment.second} side stripes",
        "logo": f"{garment.colour} {name}" + ("" if hidden else f" with {_a(garment.second)} print"),
    }.get(garment.pattern, f"{garment.colour} {name}")


def _upper(person: Person, behind: bool) -> str:
    upper = person.upper
    sleeves = "short-sleeved" if person.short_sleeves else "long-sleeved"
    name = {"t-shirt": f"{sleeves} t-shirt", "shirt": f"{sleeves} shirt", "dress": f"{sleeves} dress",
            "coat": "long coat"}.get(upper.kind, upper.kind)  # fmt: skip
    words = _a(_cloth(upper, name, behind))
    return f"{words} open over {_a(person.inner)} top" if person.inner and not behind else words


def _lower(person: Person) -> list[str]:
    lower = person.lower
    if person.upper.kind == "dress":
        return []
    if lower.kind == "skirt":
        return [_a(_cloth(lower, f"{'short' if lower.end > 0.48 else 'long'} skirt"))]
    return [_cloth(lower, lower.kind)]


def _bags(person: Person, holding: bool) -> list[str]:
    bags = {"backpack": person.backpack, "shoulder bag": person.shoulder_bag, "hand bag": person.hand_bag}
    if holding:
        bags["hand bag"] = None
    return [_a(f"{colour} {name}") for name, colour in bags.items() if colour]
