"""Curation by hand: a contact sheet to look at a concept's images, and a CSV file in which a person strikes out wrong ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from neuroprobe._core import Tile, check_choice, check_counts, fingerprint_bytes, picture_grid, printable, thumbnail, write_whole
from neuroprobe.concepts.sets import ConceptSet, ConceptSets
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import Images, check_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Side: TypeAlias = Literal["positives", "negatives"]

#: Columns of the file; those that are read back come first.
COLUMNS = ("concept", "side", "id", "keep", "rank", "likelihood")
_READ = COLUMNS[:4]
_KEEP = {"1": True, "1.0": True, "yes": True, "y": True, "true": True, "0": False, "0.0": False, "no": False, "n": False, "false": False}


def contact_sheet(
    concept_set: ConceptSet, images: Images, *, first: int = 100, step: int = 5, side: Side = "positives", columns: int = 5
) -> Figure:
    """Every `step`-th of the `first` images of a side, with id and likelihood beneath each: 20 pictures by default.

    Parameters
    ----------
    concept_set : ConceptSet
    images : Images
        The probing set that the ids are of; only the pictures shown are read.
    first : int, default 100
        As many of the side as there are, at most so many; positives of a ranking begin with the likeliest.
    step : int, default 5
    side : {"positives", "negatives"}, default "positives"
    columns : int, default 5
        Pictures in a row.

    Returns
    -------
    matplotlib.figure.Figure
        ``.savefig("striped.png")`` writes it; in a notebook it shows itself.

    Raises
    ------
    UnknownNameError
        An id that is not among the images.
    InputError
        Another side, or numbers below 1.
    """
    check_images(images)
    check_choice("side", side, get_args(Side))
    check_counts(first=first, step=step, columns=columns)
    all_ids: tuple[str, ...] = getattr(concept_set, side)
    shown = all_ids[:first][::step]
    which = f"every image of {len(all_ids[:first])}" if step == 1 else f"one in {step} of {len(all_ids[:first])}"
    part = images.subset(shown)
    tiles = [_tile(part, place, _caption(concept_set, id_)) for place, id_ in enumerate(shown)]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return picture_grid(rows, title=f"{concept_set.concept}, {side}: {which}", side=1.75, color="0.7")


def _tile(images: Images, place: int, caption: str) -> Tile:
    try:
        picture = thumbnail(images[place])
    except UnreadableImageError:
        return Tile(None, caption)
    return Tile(picture, caption, (0, 0, *picture.size))


def _caption(concept_set: ConceptSet, id_: str) -> str:
    row = concept_set.ids.index(id_)
    known = [f"rank {concept_set.ranks[row]}"] if concept_set.ranks else []
    known += [f"likelihood {_shown(concept_set.likelihoods[row])}"] if concept_set.likelihoods else []
    return "\n".join([printable(id_, 26), ", ".join(known)])


def _shown(likelihood: float) -> str:
    return f"{likelihood:.3f}" if 0.0005 <= likelihood < 0.9995 else ("> .999" if likelihood > 0.5 else "< .001")


def save_curation(concept_sets: ConceptSets, path: str | Path) -> Path:
    """Write a CSV file with a row per image, in which a person sets `keep` to 0 where the image is wrong.

    Columns: concept, side (positive or negative), id, keep (1), rank, likelihood. UTF-8 with a byte-order mark, which
    spreadsheets need. What a spreadsheet would take for a formula or a number stands behind an apostrophe, which
    `load_curation` takes off.

    Returns the path.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for set_ in concept_sets.values():
        for row, (id_, target) in enumerate(zip(set_.ids, set_.targets, strict=True)):
            facts = (set_.ranks[row] if set_.ranks else "", f"{set_.likelihoods[row]:.6g}" if set_.likelihoods else "")
            writer.writerow((_quoted(set_.concept), _side(target), _quoted(id_), 1, *facts))
    path = Path(path)
    write_whole(path, text.getvalue().encode("utf-8-sig", errors="surrogatepass"))
    return path


def load_curation(path: str | Path, concept_sets: ConceptSets) -> ConceptSets:
    """The sets without the images that a person struck out.

    Parameters
    ----------
    path : path
        A file that `save_curation` wrote for these sets, edited. Commas, semicolons or tabs between the columns, any
        order of the rows, and more columns are fine. `keep` is 1, yes, y, true or 0, no, n, false.
    concept_sets : ConceptSets
        What the file was written from.

    Returns
    -------
    ConceptSets
        Its metadata gain an entry "curation": for each file read its name, its fingerprint, and what was left out. A
        study's report keeps them.

    Raises
    ------
    InputError
        A file that cannot be read or is no UTF-8; a column, a row or a value of `keep` missing; an image that is not in
        the sets, or twice in the file; or a side with nothing left. The message names the line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig", errors="surrogatepass")
    except OSError as error:
        raise InputError(f"Expected a file that `save_curation` wrote, but {str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"Expected a CSV file in UTF-8, but {str(path)!r} is not: {error}. Save it as 'CSV UTF-8'.") from error
    kept = _read_rows(text, repr(str(path)), concept_sets)
    sets, left_out = {}, {}
    for concept, set_ in concept_sets.items():
        gone = [id_ for id_ in set_.ids if not kept[concept, id_]]
        sets[concept] = set_.without(gone)
        if gone:
            left_out[concept] = {side: [id_ for id_ in gone if id_ in getattr(set_, side)] for side in get_args(Side)}
    entry = {"file": path.name, "fingerprint": fingerprint_bytes(data), "left_out": left_out}
    return ConceptSets(sets, {**concept_sets.metadata, "curation": [*concept_sets.metadata.get("curation", []), entry]})


def _read_rows(text: str, file: str, concept_sets: ConceptSets) -> dict[tuple[str, str], bool]:
    """Whether each image of each concept is kept."""
    sides = {(c, id_): _side(target) for c, set_ in concept_sets.items() for id_, target in zip(set_.ids, set_.targets, strict=True)}
    kept: dict[tuple[str, str], bool] = {}
    for row, where in _rows(text, file):
        key = concept, id_ = row["concept"].removeprefix("'"), row["id"].removeprefix("'")
        keep = _KEEP.get(row["keep"].strip().lower())
        if key not in sides:
            raise InputError(_not_ours(where, concept, id_, concept_sets))
        if key in kept:
            raise InputError(f"Expected every image of a concept once, but {id_!r} of {concept!r} stands again in {where}.")
        if row["side"].strip().lower() != sides[key]:
            raise InputError(
                f"Expected {id_!r} to be a {sides[key]} of {concept!r}, as in the sets, but {where} has {row['side']!r}. "
                "Only `keep` is edited: 0 leaves the image out."
            )
        if keep is None:
            raise InputError(f"Expected `keep` to be 1 or 0 (or yes, no, true, false), but {where} has {row['keep']!r}.")
        kept[key] = keep
    missing = [key for key in sides if key not in kept]
    if missing:
        concept, id_ = missing[0]
        raise InputError(
            f"Expected a row for every image, but {file} has none for {id_!r} of {concept!r} ({len(missing)} are missing). "
            "Set `keep` to 0 instead of deleting the row."
        )
    return kept


def _rows(text: str, file: str) -> Iterator[tuple[dict[str, str], str]]:
    """Every row by the names of its columns, and where it stands."""
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in _READ if header.count(name) != 1]
        if missing:
            raise InputError(f"Expected the column {missing[0]!r} once in the first line of {file}, but it has {header}.")
        for cells in reader:
            where = f"line {reader.line_num} of {file}"
            if not any(cell.strip() for cell in cells):
                continue  # spreadsheets leave empty lines at the end
            if len(cells) < len(header):
                raise InputError(f"Expected {len(header)} columns, but {where} has {len(cells)}.")
            yield dict(zip(header, cells, strict=False)), where
    except csv.Error as error:
        raise InputError(f"Expected a CSV file, but line {reader.line_num} of {file} cannot be read: {error}.") from error


def _not_ours(where: str, concept: str, id_: str, concept_sets: ConceptSets) -> str:
    if concept not in concept_sets:
        return f"Expected concepts of the sets, but {where} has {concept!r}. Read the file with the sets it was written from."
    return (
        f"Expected images of {concept!r}, but {where} has {id_!r}. Read the file with the sets it was written from; if a spreadsheet "
        "changed the id (to a date, say), import that column as text."
    )


def _side(target: Any) -> str:
    return "positive" if target else "negative"


def _quoted(text: str) -> str:
    """With an apostrophe in front of what a spreadsheet would take for a formula or a number, or what begins with one."""
    return f"'{text}" if text[:1] in "=+-@\t\r\n'" or _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
