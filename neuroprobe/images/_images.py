"""Images: a probing set, from a folder, a list of files, a dataset or a stream.

Every image is handed out as an RGB PIL image, the right way up (EXIF orientation applied).
A source has indices (a folder, files, a dataset with a length) or is a stream, which can only be gone through, again and again.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

from PIL import Image

from neuroprobe._core import check_choice, fingerprint_texts
from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError, shown, suggest
from neuroprobe.images._decoding import Item, Readable
from neuroprobe.images._sources import FAST, FastItem, Files, ImageRow, ImageSource, ImageStream, OnError, Selected, opened, without_repeats

FingerprintMode: TypeAlias = Literal["content", "fast"]


def fingerprint_images(digests: Iterable[str]) -> str:
    """Fingerprint of images from theirs, in order; it begins with "fast:" if any of them is a fast one."""
    texts = list(digests)
    mode = FAST if any(text.startswith(FAST) for text in texts) else ""
    return mode + fingerprint_texts(texts)


class Images:
    """A probing set: RGB images with stable ids.

    Parameters
    ----------
    source : folder, list of paths, dataset, or stream
        - A folder (str or Path), searched recursively for image files; ids are relative paths.
        - A list of image files; ids are the paths as given.
        - A dataset with a length and items: torch's, Hugging Face's (the column of images; ids from a column
          "__key__" or "id"), or a list of images. Ids are the dataset's own ``ids``, or its indices.
        - A stream: Hugging Face's, a WebDataset, torch's IterableDataset, any iterable that can be read again, or
          a function that returns a fresh iterator. Ids come from the data: pairs (id, image), dicts with "__key__"
          or "id", paths; else the position.

        Items are PIL images, encoded bytes, paths, uint8 arrays [h, w, 3], tensors [3, h, w] (uint8, or float in
        [0, 1]), or tuples or dicts (key "image", "img", or a format such as "jpg") that begin with or hold one.
        They are given *without* a normalizing transform: each model brings its own.
    ids : sequence of str, optional
        One unique id per image, instead of the source's; not for a stream.
    on_error : {"raise", "skip"}, default "raise"
        What a pass over the images does with one that cannot be read: stop and name it, or leave it out and
        list it, with the reason, in the result. Ids stay aligned either way.
    fingerprint : {"content", "fast"}, default "content"
        What the fingerprint is made from: every image's content, or, for a folder or files, id, size and time of
        change, which needs no reading. A fast one begins with "fast:" and equals no other kind.

    Raises
    ------
    InputError
        No folder, no image in it, ids that do not fit, or a source that can be read only once.
    UnreadableImageError
        A file that does not begin like an image (unless ``on_error="skip"``); damage further in shows when
        the image is read.

    Examples
    --------
    >>> from neuroprobe.world import world_images
    >>> images = world_images(10)
    >>> len(images), images[0].size, images.ids[:2]
    (10, (64, 64), ('world-0-0', 'world-0-1'))
    """

    def __init__(
        self, source: Any, *, ids: Sequence[str] | None = None, on_error: OnError = "raise", fingerprint: FingerprintMode = "content"
    ) -> None:
        check_choice("on_error", on_error, get_args(OnError))
        check_choice("fingerprint", fingerprint, get_args(FingerprintMode))
        if isinstance(ids, str):
            raise InputError(f"Expected a list of ids, but got the single text {ids!r}.")
        adapter = opened(source, on_error)
        if isinstance(adapter, ImageStream) and ids is not None:
            raise InputError("Expected no `ids` for a stream, but got some. Let the stream give pairs (id, image).")
        if fingerprint == "fast" and not isinstance(adapter, Files):
            raise InputError("Expected a folder or files for fingerprint='fast' (it is made from their times), but got something else.")
        self._set(adapter, ids, on_error=on_error, fast=fingerprint == "fast")

    def _set(self, source: ImageSource | ImageStream, ids: Sequence[str] | None, *, on_error: OnError, fast: bool) -> None:
        self._stream = source if isinstance(source, ImageStream) else None
        self._source = None if isinstance(source, ImageStream) else source
        if self._source is not None:
            self._ids = _checked_ids(self._source.ids if ids is None else ids, len(self._source))
        self.on_error, self._fast = on_error, fast
        self._digests: dict[int, str] = {}

    @classmethod
    def _of(cls, source: ImageSource | ImageStream, *, on_error: OnError, fast: bool = False) -> Images:
        images = object.__new__(cls)
        images._set(source, None, on_error=on_error, fast=fast)
        return images

    @classmethod
    def concat(cls, *parts: Images, names: Sequence[str] | None = None) -> Images:
        """One probing set of several, one after the other.

        Parameters
        ----------
        *parts : Images
            All with one ``on_error``. With a stream among them, the whole is a stream.
        names : sequence of str, optional
            One for each part; by default "0", "1", ... An image's id is its part's name, "/", and its id there, always,
            so that no id depends on what is in another part.

        Raises
        ------
        InputError
            No parts, names that are not unique or do not fit, or parts that treat damaged images differently.

        Examples
        --------
        >>> from neuroprobe.world import world_images
        >>> Images.concat(world_images(2), world_images(1), names=["imagenet", "broden"]).ids
        ('imagenet/world-0-0', 'imagenet/world-0-1', 'broden/world-0-0')

        The fingerprint is that of the same images from one source.
        """
        for part in parts:
            check_images(part)
        if not parts or len({part.on_error for part in parts}) > 1:
            got = f"{[part.on_error for part in parts]}" if parts else "none"
            raise InputError(f"Expected at least one part, all with one `on_error`, but got {got}.")
        names = _checked_ids([str(i) for i in range(len(parts))] if names is None else names, len(parts), one="name per part", all_="names")
        stream = any(part.is_stream for part in parts)
        return cls._of(Chained(parts, names) if stream else Concatenated(parts, names), on_error=parts[0].on_error)

    @property
    def is_stream(self) -> bool:
        """Whether the images can only be gone through (`rows`), and have no indices."""
        return self._stream is not None

    @property
    def known_length(self) -> int | None:
        """How many images there are; None for a stream that does not say it. What a stream says is not checked."""
        return len(self.ids) if self._stream is None else self._stream.known_length

    @property
    def ids(self) -> tuple[str, ...]:
        """One unique id per image, in order; a stream has none beforehand."""
        self._indexed("ids")
        return self._ids

    def __len__(self) -> int:
        n = self.known_length
        if n is None:
            raise TypeError("This stream of images does not say its length; see `known_length`.")
        return n

    def __getitem__(self, index: int) -> Image.Image:
        """Image `index` as RGB; from the end if negative, as in any sequence."""
        self._indexed("images[index]")
        return self.load(range(len(self))[index])

    def __iter__(self) -> Iterator[Image.Image]:
        return (row.load()[0] for row in self.rows())

    def rows(self) -> Iterator[ImageRow]:
        """The images in order, not decoded yet; a fresh iteration each time, of any kind of source.

        A stream is iterated in one process (it may divide itself among workers, which is refused); its rows can be
        sent to others and loaded there. Where several processes share a pass, each goes through the whole stream and
        loads its own rows: do not split the stream by rank or node beforehand (a WebDataset takes
        ``nodesplitter=lambda shards: shards``).

        Raises
        ------
        InputError
            An id occurs twice, or there is no image at all.
        UnreadableImageError
            The stream itself broke off; a damaged image raises only when its row is loaded.
        """
        if self._stream is None:
            return (ImageRow(id_, self._readable(i)) for i, id_ in enumerate(self.ids))
        return without_repeats(self._stream.rows())

    def load(self, index: int) -> Image.Image:
        """Read and decode image `index` (0 to n - 1).

        Raises
        ------
        UnreadableImageError
            Whatever ``on_error`` says: skipping is up to the pass.
        InputError
            An index below 0 or beyond the last, which is never another image.
        """
        return self.load_with_digest(index)[0]

    def load_with_digest(self, index: int) -> tuple[Image.Image, str]:
        """The image and its fingerprint, of one reading; raises as `load`."""
        image, self._digests[index] = self._readable(index).load()
        return image, self._digests[index]

    def digest(self, index: int) -> str:
        """Fingerprint of image `index` alone; reads it if that has not happened yet, and decodes no files."""
        if index not in self._digests:
            self._digests[index] = self._readable(index).digest()
        return self._digests[index]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the images in order; those that cannot be read count by their id. A stream is gone through for it."""
        return fingerprint_images(_digest_or_id(id_, digest) for id_, digest in self.digests())

    def digests(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Every image's id, and what gives its fingerprint."""
        if self._stream is None:
            return ((id_, partial(self.digest, i)) for i, id_ in enumerate(self.ids))
        return ((row.id, row.digest) for row in self.rows())

    def _readable(self, index: int) -> Readable:
        source = self._indexed("load(index)")
        if not 0 <= operator.index(index) < len(self.ids):
            raise InputError(f"Expected an image's index from 0 to {len(self.ids) - 1}, but got {index}.")
        item = source.item(index)
        return FastItem(item, self.ids[index]) if self._fast and isinstance(item, Item) else item

    def _indexed(self, wanted: str) -> ImageSource:
        if self._source is None:
            raise InputError(
                f"Expected images with indices for `{wanted}`, but got a stream, which can only be gone through. "
                "Save its images to a folder, or make a list of them, and give that."
            )
        return self._source

    def subset(self, ids: Iterable[str]) -> Images:
        """The images with these ids, in the order given.

        Raises
        ------
        UnknownNameError
            An id that is not among the images.
        InputError
            No ids, or one twice; or a stream.
        """
        if isinstance(ids, str):
            raise InputError(f"Expected a list of ids, but got the single id {ids!r}. Write [{ids!r}].")
        source, position = self._indexed("subset"), {id_: i for i, id_ in enumerate(self.ids)}
        chosen = list(ids)
        for id_ in chosen:
            if id_ not in position:
                raise UnknownNameError(f"Expected ids of this probing set, but got {id_!r}. {suggest(str(id_), self.ids)}")
        if not chosen:
            raise InputError("Expected at least one id of this probing set, but got none.")
        part = Selected(source, [position[id_] for id_ in chosen], chosen)
        return Images._of(part, on_error=self.on_error, fast=self._fast)

    def __repr__(self) -> str:
        if self.is_stream:
            return f"Images(a stream of {'an unknown number of' if self.known_length is None else self.known_length} images)"
        return f"Images({len(self)} images, {self.ids[0]!r} ... {self.ids[-1]!r})"


class Concatenated:
    """The images of several parts, one after the other, with the part's name before each id."""

    def __init__(self, parts: Sequence[Images], names: Sequence[str]) -> None:
        self.parts = parts
        self.starts = [0, *itertools.accumulate(len(part) for part in parts)]
        self.ids = [f"{name}/{id_}" for name, part in zip(names, parts, strict=True) for id_ in part.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def item(self, index: int) -> Readable:
        """Image `index` of the whole, not read yet."""
        which = bisect.bisect_right(self.starts, index) - 1
        return self.parts[which]._readable(index - self.starts[which])


class Chained:
    """The rows of several parts, one after the other, with the part's name before each id."""

    def __init__(self, parts: Sequence[Images], names: Sequence[str]) -> None:
        self.parts, self.names = parts, names

    @property
    def known_length(self) -> int | None:
        lengths = [part.known_length for part in self.parts]
        return None if None in lengths else sum(n for n in lengths if n is not None)

    def rows(self) -> Iterator[ImageRow]:
        """Begin again with the first part."""
        for name, part in zip(self.names, self.parts, strict=True):
            yield from (ImageRow(f"{name}/{row.id}", row.readable) for row in part.rows())


def _digest_or_id(id_: str, digest: Callable[[], str]) -> str:
    try:
        return digest()
    except UnreadableImageError:
        return f"unreadable {id_}"


def _checked_ids(ids: Sequence[str], n: int, *, one: str = "id per image", all_: str = "image ids") -> tuple[str, ...]:
    ids = tuple(str(id_) for id_ in ids)  # a dataset may number its images
    if len(ids) != n:
        raise InputError(f"Expected one {one} ({n}), but got {len(ids)}.")
    check_unique(ids, all_)
    return ids


def check_unique(ids: Iterable[str], what: str = "image ids") -> None:
    """Raise `InputError` for one that occurs twice."""
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise InputError(f"Expected unique {what}, but {id_!r} occurs twice.")
        seen.add(id_)


def first_readable(images: Images) -> Images:
    """The first image that can be read alone, to try a model out with; all of them if there is none."""
    for i, id_ in enumerate(images.ids):
        try:
            images.load(i)
        except UnreadableImageError:
            if images.on_error == "raise":
                raise
        else:
            return images.subset([id_])
    return images  # a pass over them tells so


def check_images(images: Any) -> Images:
    """These images; `InputError` if they are none."""
    if not isinstance(images, Images):
        raise InputError(f"Expected the probing set as neuroprobe.Images, but got {shown(images)}.")
    return images
