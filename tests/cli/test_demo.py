"""The demo: names the head's units, and probes the trained target above the untrained one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from neuroprobe import LabelReport, ProbeReport
from neuroprobe._cli.demo import CHOSEN, HEAD, MODULES, N_SEEDS, count_true_names, on_outputs, run_demo, summarize
from neuroprobe.effects import EffectReport
from neuroprobe.world import ATTRIBUTES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[LabelReport, ProbeReport, Path, list[str]]:
    """The smallest demo there is, with fewer steps for its images: how good those are is tested where they are made."""
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("neuroprobe._cli.demo.STEPS", 8)
        labels, probes = run_demo(out, n_images=300, seed=5, say=said.append)
    return labels, probes, out, said


def test_at_least_nine_in_ten_head_units_get_their_true_name(demo: tuple) -> None:
    labels, _, _, said = demo
    table = labels.table
    head = table[table["layer"] == HEAD].sort_values("unit")
    right = sum(name == true for name, true in zip(head["concept"], ATTRIBUTES, strict=True))
    assert right >= 0.9 * len(ATTRIBUTES)
    assert right == count_true_names(labels)
    assert any(f"{right} got their true name" in line for line in said)


def test_every_unit_of_all_modules_and_the_head_is_there(demo: tuple) -> None:
    sizes = demo[0].table.groupby("layer", sort=False).size()
    assert list(sizes.index) == [*MODULES, HEAD]
    assert sizes["features.18"] == 1280
    assert sizes["features.0"] == 8
    assert sizes[HEAD] == 31


def test_probes_of_the_untrained_target_are_nearer_the_baseline_on_late_layers(demo: tuple) -> None:
    table = demo[1].table
    late = table[table["layer"].isin(MODULES[-5:])]
    gain = (late["test_accuracy"] - late["baseline"]).groupby(late["checkpoint"]).mean()
    assert abs(gain["untrained"]) < 0.1
    assert gain["trained"] > 0.15


def test_nine_concepts_on_all_nineteen_modules_with_the_three_probes(demo: tuple) -> None:
    table = demo[1].table
    assert table["concept"].nunique() == 9
    layers = table[table["scope"] == "layer"]
    assert len(layers) == 9 * 19 * 2 * 3 * N_SEEDS
    assert len(table) == len(layers) + 9 * 2 * (19 + 3) * N_SEEDS  # the best unit of every module, and all modules together
    assert set(zip(table["kind"], table["features"], strict=True)) == {
        ("linear", "pooled"), ("nonlinear", "pooled"), ("nonlinear", "spatial"),
    }  # fmt: skip
    assert (table["n_test"] == 27).all()
    assert (table["n_train"] == 63).all()


def test_what_it_writes_reads_back_and_is_named_in_what_it_says(demo: tuple) -> None:
    labels, probes, out, said = demo
    assert LabelReport.load(out).table.equals(LabelReport.load(out).table)
    assert LabelReport.load(out).table["concept"].tolist() == labels.table["concept"].tolist()
    assert ProbeReport.load(out).table["test_accuracy"].tolist() == probes.table["test_accuracy"].tolist()
    written = {f"{stem}.{suffix}" for stem in ("labels", "probes") for suffix in ("csv", "md", "png", "html", "json")}
    written |= {"probes_units.csv"}
    assert {path.name for path in out.iterdir()} == written | {"index.html", "data", "images"}
    assert all(any(name in line for line in said) for name in written)
    assert any("trained target, probes are +" in line for line in summarize(probes))


def test_the_heads_units_are_visualized_and_the_chosen_taken_away(demo: tuple) -> None:
    _, _, out, said = demo
    assert any(line.startswith(f"Visualized: {len(ATTRIBUTES)} units of {HEAD}") for line in said)
    assert sum(line.startswith("Taken away: ") for line in said) == len(CHOSEN)
    for name in CHOSEN:  # each hurts its own output most
        assert any(f"most changed: output {name} on images with {name}, -" in line for line in said)
    assert (out / "data" / "effects.js").is_file()


def test_effects_are_also_those_of_the_outputs(demo: tuple) -> None:
    names = ("layer", "units", "intervention", "concept", "output")
    numbers = ("effect", "low", "high", "random", "random_low", "random_high")
    rows = [(MODULES[-1], units, "set to the mean", concept, output, *range(6), 9) for units, concept, output in ROWS]
    report = EffectReport(pd.DataFrame(rows, columns=[*names, *numbers, "n_pairs"]), {})
    found = on_outputs([report]).table
    assert found["layer"].unique().tolist() == [HEAD]
    assert found["units"].tolist() == [str(ATTRIBUTES.index("red")), str(ATTRIBUTES.index("blue"))]
    assert found["intervention"].tolist() == [
        f"{n} units of features.18 named {name}: set to the mean" for n, name in ((3, "red"), (1, "star"))
    ]
    assert found["effect"].tolist() == report.table["effect"].tolist()


ROWS = [("3 17 25", "red", "red"), ("4", "star", "blue")]
