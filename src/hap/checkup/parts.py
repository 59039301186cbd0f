"""What a data set is to `hap doctor`: files and folders, with what each is good for."""

from dataclasses import dataclass

IMAGES = (
    *(".bmp", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True)
class Part:
    """A file or folder of a data set.

    Attributes:
        paths: below its folder, where it may be, the usual place first; `*` stands for anything in the last name, which
            is then compared without regard to case.
        count: officially so many files, of a folder; 0 where nobody has said how many.
        counts: other numbers of other places: (path, count).
        suffixes: of these files.
        without: what cannot be done without it; "" where nothing can.
        option: what the command needs where it is not there.
        mistaken: files that are taken for it, and why they are not.
    """

    paths: tuple[str, ...]
    count: int | None = None
    counts: tuple[tuple[str, int], ...] = ()
    suffixes: tuple[str, ...] = IMAGES
    without: str = ""
    option: str = ""
    mistaken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set in its published layout.

    Attributes:
        name: what `hap doctor NAME=FOLDER` calls it.
        title: what its authors call it.
        folders: below the folder of all data, how its own may be called, the default of `conf/data` first.
        marks: paths that no other data set has: a folder with one of them is this one, whatever it is called.
        parts: what it is made of.
        url: where it is to be had.
        licence: as far as its page says.
        command: what to type next; {root} is its folder, {above} the one that it is in.
        versions: (path, text): the first that is there says which one this is.
        listing: (files, field): an annotation that lists images as objects with that field.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    marks: tuple[str, ...]
    parts: tuple[Part, ...]
    url: str
    licence: str
    command: str
    versions: tuple[tuple[str, str], ...] = ()
    listing: tuple[tuple[str, ...], str] | None = None
