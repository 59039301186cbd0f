"""What is true of a drawing, in the words of PA-100K, RAP and PETA. Names are spelled as in the published files and
stand in the order of their columns.

Nobody is labelled with what cannot be told from a drawing: the names in UNTOLD are 0 in every image.
"""

from dataclasses import dataclass

import numpy as np

from hap.synthetic.clothes import skirt_hem
from hap.synthetic.person import ATTRIBUTES, Garment, Person
from hap.synthetic.pose import Pose
from hap.synthetic.render import Rendering

# PA-100K's 26.
PA100K = (
    "Female", "AgeOver60", "Age18-60", "AgeLess18", "Front", "Side", "Back", "Hat", "Glasses", "HandBag",
    "ShoulderBag", "Backpack", "HoldObjectsInFront", "ShortSleeve", "LongSleeve", "UpperStride", "UpperLogo",
    "UpperPlaid", "UpperSplice", "LowerStripe", "LowerPattern", "LongCoat", "Trousers", "Shorts", "Skirt&Dress",
    "boots",
)  # fmt: skip

# RAP's 92: 51 that are evaluated, 12 of viewpoint and occlusion, 29 of colour.
RAP = (
    "Female", "AgeLess16", "Age17-30", "Age31-45", "BodyFat", "BodyNormal", "BodyThin", "Customer", "Clerk",
    "hs-BaldHead", "hs-LongHair", "hs-BlackHair", "hs-Hat", "hs-Glasses", "hs-Muffler", "ub-Shirt", "ub-Sweater",
    "ub-Vest", "ub-TShirt", "ub-Cotton", "ub-Jacket", "ub-SuitUp", "ub-Tight", "ub-ShortSleeve",
    "lb-LongTrousers", "lb-Skirt", "lb-ShortSkirt", "lb-Dress", "lb-Jeans", "lb-TightTrousers", "shoes-Leather",
    "shoes-Sport", "shoes-Boots", "shoes-Cloth", "shoes-Casual", "attach-Backpack", "attach-SingleShoulderBag",
    "attach-HandBag", "attach-Box", "attach-PlasticBag", "attach-PaperBag", "attach-HandTrunk", "attach-Other",
    "action-Calling", "action-Talking", "action-Gathering", "action-Holding", "action-Pusing", "action-Pulling",
    "action-CarrybyArm", "action-CarrybyHand",
    "faceFront", "faceBack", "faceLeft", "faceRight", "occlusionLeft", "occlusionRight", "occlusionUp",
    "occlusionDown", "occlusion-Environment", "occlusion-Attachment", "occlusion-Person", "occlusion-Other",
    "up-Black", "up-White", "up-Gray", "up-Red", "up-Green", "up-Blue", "up-Yellow", "up-Brown", "up-Purple",
    "up-Pink", "up-Orange", "up-Mixture", "low-Black", "low-White", "low-Gray", "low-Red", "low-Green", "low-Blue",
    "low-Yellow", "low-Mixture", "shoes-Black", "shoes-White", "shoes-Gray", "shoes-Red", "shoes-Green",
    "shoes-Blue", "shoes-Yellow", "shoes-Brown", "shoes-Mixture",
)  # fmt: skip

_PETA_COLOURS = (
    "Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow",
)  # fmt: skip
_PETA_COLOURED = ("upperBody", "lowerBody", "hair", "footwear")
# PETA's 105: 35 that are evaluated, 44 of colour, 26 more.
PETA = (
    "personalLess30", "personalLess45", "personalLess60", "personalLarger60", "carryingBackpack", "carryingOther",
    "lowerBodyCasual", "upperBodyCasual", "lowerBodyFormal", "upperBodyFormal", "accessoryHat", "upperBodyJacket",
    "lowerBodyJeans", "footwearLeatherShoes", "upperBodyLogo", "hairLong", "personalMale", "carryingMessengerBag",
    "accessoryMuffler", "accessoryNothing", "carryingNothing", "upperBodyPlaid", "carryingPlasticBags",
    "footwearSandals", "footwearShoes", "lowerBodyShorts", "upperBodyShortSleeve", "lowerBodyShortSkirt",
    "footwearSneaker", "upperBodyThinStripes", "accessorySunglasses", "lowerBodyTrousers", "upperBodyTshirt",
    "upperBodyOther", "upperBodyVNeck",
    *(f"{part}{colour}" for part in _PETA_COLOURED for colour in _PETA_COLOURS),
    "accessoryHeadphone", "personalLess15", "carryingBabyBuggy", "hairBald", "footwearBoots", "lowerBodyCapri",
    "carryingShoppingTro", "carryingUmbrella", "personalFemale", "carryingFolder", "accessoryHairBand",
    "lowerBodyHotPants", "accessoryKerchief", "lowerBodyLongSkirt", "upperBodyLongSleeve", "lowerBodyPlaid",
    "lowerBodyThinStripes", "carryingLuggageCase", "upperBodyNoSleeve", "hairShort", "footwearStocking",
    "upperBodySuit", "carryingSuitcase", "lowerBodySuits", "upperBodySweater", "upperBodyThickStripes",
)  # fmt: skip

UNTOLD = frozenset((
    # RAP
    "Customer", "Clerk", "hs-Muffler", "ub-Vest", "ub-SuitUp", "ub-Tight", "lb-TightTrousers", "shoes-Cloth",
    "shoes-Casual", "attach-PlasticBag", "attach-PaperBag", "attach-HandTrunk", "attach-Other", "action-Talking",
    "action-Gathering", "action-Pusing", "action-Pulling", "action-CarrybyArm", "occlusionLeft", "occlusionRight",
    "occlusionUp", "occlusionDown", "occlusion-Environment", "occlusion-Attachment", "occlusion-Person",
    "occlusion-Other",
    # PETA
    "personalLess45", "personalLess60", "accessoryMuffler", "carryingPlasticBags", "footwearSandals",
    "footwearShoes", "accessoryHeadphone", "carryingBabyBuggy", "lowerBodyCapri", "carryingShoppingTro",
    "carryingUmbrella", "carryingFolder", "accessoryHairBand", "lowerBodyHotPants", "accessoryKerchief",
    "lowerBodyThinStripes", "carryingLuggageCase", "upperBodyNoSleeve", "upperBodySuit", "carryingSuitcase",
    "lowerBodySuits", "upperBodyThickStripes", "upperBodyVNeck",
))  # fmt: skip

# Colours of `hap.synthetic.person` in the words of both data sets (RAP spells Gray).
_COLOUR = {
    "black": "Black", "white": "White", "grey": "Grey", "dark grey": "Grey", "red": "Red", "dark red": "Red",
    "blue": "Blue", "navy": "Blue", "light blue": "Blue", "green": "Green", "olive": "Green", "yellow": "Yellow",
    "orange": "Orange", "brown": "Brown", "beige": "Brown", "pink": "Pink", "purple": "Purple",
}  # fmt: skip
_HAIR_COLOUR = {
    "black": "Black", "dark brown": "Black", "brown": "Brown", "blond": "Yellow", "red": "Red", "grey": "Grey",
    "white": "White",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One image: who is drawn, how, and what came of it."""

    person: Person
    pose: Pose
    drawn: Rendering

    @property
    def view(self) -> str:
        """Front, Side or Back."""
        return next(v for v in ("Front", "Side", "Back") if self.drawn.attributes[ATTRIBUTES.index(v)])

    @property
    def facing(self) -> tuple[float, float]:
        """Where the chest points: cosine to the camera (1 faces it), sine to the right of the image."""
        left, right = self.drawn.joints3d[16], self.drawn.joints3d[17]
        across = (left - right)[[0, 2]] / np.hypot(*(left - right)[[0, 2]])
        view = self.drawn.camera
        sight = (-view.rotation.T @ view.translation - self.drawn.joints3d[0])[[0, 2]]
        sight = sight / np.hypot(*sight)  # from the person to the camera, on the ground
        ahead = np.array([-across[1], across[0]])  # left x up
        return float(ahead @ sight), float(ahead[0] * sight[1] - ahead[1] * sight[0])

    @property
    def long_hair(self) -> bool:
        """Down to the shoulders; a ponytail hides behind the head of those who face the camera."""
        return self.person.hair == "long" or (self.person.hair == "ponytail" and self.view != "Front")

    @property
    def short_skirt(self) -> bool:
        """The hem of a skirt is above the knee."""
        return self.person.lower.kind == "skirt" and skirt_hem(self.person) >= 0.5

    @property
    def worn_below(self) -> Garment:
        """What the legs are seen to be covered with: the dress, or the coat that is longer than the shorts."""
        upper, lower = self.person.upper, self.person.lower
        hidden = upper.kind == "dress" or (upper.kind == "coat" and lower.kind == "shorts")
        return upper if hidden else lower


def pa100k(shown: Shown) -> dict[str, bool]:
    """The attributes of PA100K. A print is claimed where the chest can be seen, shorts and what is on them where no
    coat covers them."""
    facts = dict(zip(ATTRIBUTES, shown.drawn.attributes.tolist(), strict=True))
    facts["UpperLogo"] &= shown.facing[0] > 0.35 and not shown.pose.holding
    for name in ("Shorts", "LowerStripe", "LowerPattern"):
        facts[name] &= shown.worn_below is shown.person.lower
    return facts


def _colours(garment: Garment) -> set[str]:
    """Those that the cloth has, a print left out."""
    two = garment.pattern in ("stripes", "plaid", "dots", "splice")
    return {_COLOUR[garment.colour]} | ({_COLOUR[garment.second]} if two else set())


def rap(shown: Shown) -> dict[str, bool]:
    """The attributes of RAP. Adults are 17 to 30, the elderly 31 to 45, the oldest there is; whoever wears two
    colours is a mixture; dark brown hair is black."""
    person, pose, view = shown.person, shown.pose, shown.view
    upper, shoes = person.upper, person.shoes
    weight, (_, rightwards) = person.betas[1], shown.facing
    trousers = not person.has_skirt
    hand_bag = person.hand_bag is not None and not pose.holding
    facts = {
        "Female": person.female, "AgeLess16": person.age == "child", "Age17-30": person.age == "adult",
        "Age31-45": person.age == "elderly", "BodyFat": weight > 0.9, "BodyNormal": -0.9 <= weight <= 0.9,
        "BodyThin": weight < -0.9, "hs-BaldHead": person.hair == "bald" and not person.hat,
        "hs-LongHair": shown.long_hair,
        "hs-BlackHair": person.hair != "bald" and _HAIR_COLOUR[person.hair_colour] == "Black",
        "hs-Hat": person.hat is not None, "hs-Glasses": person.glasses is not None and view != "Back",
        "ub-Shirt": upper.kind == "shirt", "ub-Sweater": upper.kind == "sweater",
        "ub-TShirt": upper.kind == "t-shirt", "ub-Cotton": upper.kind == "coat", "ub-Jacket": upper.kind == "jacket",
        "ub-ShortSleeve": person.short_sleeves,
        "lb-LongTrousers": trousers and person.lower.kind == "trousers",
        "lb-Skirt": person.lower.kind == "skirt" and not shown.short_skirt, "lb-ShortSkirt": shown.short_skirt,
        "lb-Dress": upper.kind == "dress", "lb-Jeans": trousers and person.lower.kind == "jeans",
        "shoes-Leather": shoes == "shoes", "shoes-Sport": shoes == "sneakers", "shoes-Boots": shoes == "boots",
        "attach-Backpack": person.backpack is not None, "attach-SingleShoulderBag": person.shoulder_bag is not None,
        "attach-HandBag": hand_bag, "attach-Box": pose.holding, "action-Calling": pose.activity == "phoning",
        "action-Holding": pose.holding, "action-CarrybyHand": hand_bag,
        "faceFront": view == "Front", "faceBack": view == "Back",
        "faceLeft": view == "Side" and rightwards < 0, "faceRight": view == "Side" and rightwards >= 0,
    }  # fmt: skip
    worn = {"up": _colours(upper), "low": _colours(shown.worn_below), "shoes": {_COLOUR[person.shoes_colour]}}
    for name in RAP[63:]:
        part, colour = name.split("-")
        colours = {"Gray" if c == "Grey" else c for c in worn[part]}
        facts[name] = colours == {colour} or (colour == "Mixture" and len(colours) > 1)
    return facts


def peta(shown: Shown) -> dict[str, bool]:
    """The attributes of PETA. Adults are below 30, the elderly above 60, children below 15. Formal are coats, plain
    shirts with long sleeves, and plain trousers that are no jeans; all else is casual. Everything striped or
    patterned has both of its colours; dark brown hair is black, blond hair yellow."""
    person, pose, view = shown.person, shown.pose, shown.view
    upper, lower, shoes = person.upper, person.lower, person.shoes
    trousers = not person.has_skirt
    formal = upper.kind == "coat" or (
        upper.kind == "shirt" and upper.pattern == "plain" and not person.short_sleeves
    )
    formal_below = trousers and lower.kind == "trousers" and lower.pattern == "plain"
    sunglasses = person.glasses == "sunglasses" and view != "Back"
    other = pose.holding or person.hand_bag is not None
    facts = {
        "personalLess15": person.age == "child", "personalLess30": person.age == "adult",
        "personalLarger60": person.age == "elderly", "personalMale": not person.female,
        "personalFemale": person.female, "carryingBackpack": person.backpack is not None, "carryingOther": other,
        "carryingMessengerBag": person.shoulder_bag is not None,
        "carryingNothing": not (other or person.backpack or person.shoulder_bag),
        "accessoryHat": person.hat is not None, "accessorySunglasses": sunglasses,
        "accessoryNothing": not (person.hat or sunglasses), "hairLong": shown.long_hair,
        "hairShort": person.hair == "short", "hairBald": person.hair == "bald" and not person.hat,
        "upperBodyCasual": not formal, "upperBodyFormal": formal, "upperBodyJacket": upper.kind == "jacket",
        "upperBodyTshirt": upper.kind == "t-shirt", "upperBodySweater": upper.kind == "sweater",
        "upperBodyOther": upper.kind in ("shirt", "coat", "dress"),
        "upperBodyLogo": pa100k(shown)["UpperLogo"], "upperBodyPlaid": upper.pattern == "plaid",
        "upperBodyThinStripes": upper.pattern == "stripes", "upperBodyShortSleeve": person.short_sleeves,
        "upperBodyLongSleeve": not person.short_sleeves,
        "lowerBodyCasual": not formal_below, "lowerBodyFormal": formal_below,
        "lowerBodyJeans": trousers and lower.kind == "jeans",
        "lowerBodyTrousers": trousers and lower.kind == "trousers",
        "lowerBodyShorts": pa100k(shown)["Shorts"], "lowerBodyShortSkirt": shown.short_skirt,
        "lowerBodyLongSkirt": person.has_skirt and not shown.short_skirt,
        "lowerBodyPlaid": shown.worn_below.pattern == "plaid", "footwearLeatherShoes": shoes == "shoes",
        "footwearSneaker": shoes == "sneakers", "footwearBoots": shoes == "boots",
        "footwearStocking": lower.kind == "skirt" and person.tint[1] > 0.4,
    }  # fmt: skip
    worn = {
        "upperBody": _colours(upper),
        "lowerBody": _colours(shown.worn_below),
        "hair": {_HAIR_COLOUR[person.hair_colour]} if person.hair != "bald" else set(),
        "footwear": {_COLOUR[person.shoes_colour]},
    }
    return facts | {f"{p}{c}": c in worn[p] for p in _PETA_COLOURED for c in _PETA_COLOURS}
