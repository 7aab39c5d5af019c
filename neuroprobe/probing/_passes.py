"""Which passes over the images a study makes: as few as fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One pass: these layers, on the images of these concepts."""

    layers: tuple[str, ...]
    concepts: tuple[str, ...]


def plan_passes(
    layers: Mapping[str, int], concepts: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], *, memory: int
) -> list[Pass]:
    """One pass for everything if it fits; else one for some of the concepts; else one for some of the layers, too.

    Parameters
    ----------
    layers : mapping from layer to int
        Bytes that an image takes there.
    concepts : mapping from concept to sequence of str
        The ids of its images.
    wanted : mapping from concept to sequence of str
        The layers where something is to be fitted for it.
    memory : int
        Bytes that a pass may hold. One layer on one concept's images is recorded at once, even where it needs more.

    Returns
    -------
    list of Pass
    """
    largest = max((len(ids) for concept, ids in concepts.items() if wanted.get(concept)), default=0)
    passes = []
    for part in _layer_parts({layer: size * largest for layer, size in layers.items() if any(layer in w for w in wanted.values())}, memory):
        held: set[str] = set()
        group: list[str] = []
        for concept, ids in concepts.items():
            if not set(part) & set(wanted.get(concept, ())):
                continue
            if group and len(held | set(ids)) * sum(layers[layer] for layer in part) > memory:
                passes.append(Pass(part, tuple(group)))
                held, group = set(), []
            held |= set(ids)
            group.append(concept)
        if group:
            passes.append(Pass(part, tuple(group)))
    return passes


def _layer_parts(sizes: Mapping[str, int], memory: int) -> list[tuple[str, ...]]:
    parts: list[list[str]] = []
    room = 0
    for layer, size in sizes.items():
        if not parts or size > room:
            parts.append([])
            room = memory
        parts[-1].append(layer)
        room -= size
    return [tuple(part) for part in parts]
