"""Cards and sheets of people with their attributes: everything is there, legible, and in the colour of what it says."""

import cv2
import numpy as np
import pytest

from hap.cards import HEIGHT, TRACK, WRONG, YES, Answer, attribute_card, contact_sheet

GREEN = (0, 200, 0)
PERSON = np.full((100, 40, 3), GREEN, np.uint8)


def answers(count: int, **options) -> list[Answer]:
    return [Answer(f"attribute-{i}", 0.0, 0.0)._replace(**options) for i in range(count)]


def mask(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(-1)


def parts(picture: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height) of the areas of this colour that are larger than letters."""
    *_, stats, _ = cv2.connectedComponentsWithStats(mask(picture, colour).astype(np.uint8))
    return [tuple(box[:4].tolist()) for box in stats[1:] if box[3] >= 8]


@pytest.mark.parametrize("count", [1, 3, 26, 35, 51, 105])
@pytest.mark.parametrize("size", [(100, 40), (700, 300), (50, 400)])
def test_every_attribute_has_a_bar(count, size):
    card = attribute_card(np.full((*size, 3), GREEN, np.uint8), answers(count))
    bars = parts(card, TRACK)
    assert len(bars) == count
    person = parts(card, GREEN)
    assert len(person) == 1
    _, _, width, height = person[0]
    assert max(width, height) == HEIGHT
    assert width / height == pytest.approx(size[1] / size[0], abs=0.01)
    assert min(left for left, *_ in bars) > width
    assert (card[:, -4:] == 255).all()  # nothing reaches the edge
    assert (card[-1] == 255)[width:].all()


def test_bars_are_as_long_as_the_probability():
    chances = [0.25, 0.5, 1.0]
    card = attribute_card(PERSON, [Answer("x", p, 0.0) for p in chances])
    lengths = [width for _, _, width, _ in sorted(parts(card, YES), key=lambda box: box[1])]
    assert lengths == pytest.approx([64 * p for p in chances], abs=1)


def test_the_line_is_at_the_threshold():
    """And at the threshold is a no."""
    for threshold, said in ((0.25, 0.5), (0.75, 0.5), (0.5, 0.5)):
        card = attribute_card(PERSON, [Answer("x", said, threshold)])
        assert bool(parts(card, YES)) == (said > threshold)
        pieces = [box for colour in (TRACK, YES, (175, 175, 180)) for box in parts(card, colour)]
        left, right = min(b[0] for b in pieces), max(b[0] + b[2] for b in pieces)
        dark = mask(card, (30, 30, 35))[:30, left:right].sum(0)
        assert dark.argmax() == round(64 * threshold)
        assert dark.max() >= 14


def test_wrong_answers_are_orange_also_where_the_bar_is_empty():
    known = {1: (True, False), 0: (False, True), -1: (False, False)}
    for label, (no_is_wrong, yes_is_wrong) in known.items():
        for said, wrong in ((0.0, no_is_wrong), (0.97, yes_is_wrong)):
            others = answers(1, label=1, probability=0.6)
            card = attribute_card(PERSON, [Answer("x", said, 0.5, label), *others])
            assert mask(card, WRONG).any() == wrong
    unlabelled = attribute_card(PERSON, [Answer("x", 0.97)])
    assert not mask(unlabelled, WRONG).any()


def test_confident_is_what_is_shown_as_90():
    assert [Answer("x", p).confident for p in (0.894, 0.896, 0.9, 1.0)] == [False, True, True, True]
    assert not Answer("x", 0.92, 0.95).confident  # a no
    assert Answer("x", 0.896).percent == "90%"


@pytest.mark.parametrize(
    "name",
    [
        "红色外套",
        "Mütze",
        "Рюкзак",
        "👒",
        "two\nlines",
        "tab\there",
        "\udcff",
        "\x1b[31m",
        "",
        "$x^",
        "a" * 500,
    ],
)
def test_any_name_can_be_drawn(name):
    card = attribute_card(PERSON, [Answer(name, 0.97), *answers(2)])
    assert card.shape[1] < 700
    assert len(parts(card, YES)) >= 1
    sheet = contact_sheet([PERSON], [[name, Answer(name, 0.97)]])
    assert sheet.shape == contact_sheet([PERSON], [[]]).shape


def test_a_sheet_has_everybody_and_lines_stay_with_their_person():
    colours = [(10 * i + 5, 0, 250) for i in range(8)]
    people = [np.full((60 + 20 * i, 40, 3), colour, np.uint8) for i, colour in enumerate(colours)]
    sheet = contact_sheet(people, [[]] * 8, columns=3)
    boxes = [parts(sheet, colour) for colour in colours]
    assert all(len(box) == 1 for box in boxes)
    assert [len({box[0][axis] for box in boxes}) for axis in (0, 1)] == [3, 3]
    texts = [["m" * 200] * 30, [Answer("m" * 200, 0.97)] * 30, *([["short"]] * 6)]
    full = contact_sheet(people, texts, columns=3)
    assert full.shape == sheet.shape
    assert [parts(full, colour) for colour in colours] == boxes  # no text runs into a picture
    assert not (full == sheet).all()
    assert (full[:, -12:] == 255).all()


def test_a_sheet_of_few_people_is_small():
    assert contact_sheet([PERSON], [["x"]]).shape[1] < contact_sheet([PERSON] * 2, [["x"]] * 2).shape[1]


def test_wrong_answers_on_a_sheet_are_orange():
    def sheet(label: int) -> np.ndarray:
        return contact_sheet([PERSON], [[Answer("x", 0.97, 0.5, label)]])

    assert [mask(sheet(label), WRONG).any() for label in (1, 0, -1)] == [False, True, False]
