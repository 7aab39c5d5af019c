"""The package as a whole: what importing it costs, its public names, and the documentation's code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import neuroprobe

ROOT = Path(__file__).parent.parent

PUBLIC = [
    "ActivationRecorder",
    "ActivationSummary",
    "Activations",
    "ClipEncoder",
    "ConceptGroup",
    "ConceptScores",
    "ConceptSet",
    "ConceptSets",
    "ConceptSource",
    "Direction",
    "EffectReport",
    "GivenLabels",
    "ImageTextEncoder",
    "Images",
    "LabelReport",
    "LinearProbe",
    "MeanDifferenceProbe",
    "NonlinearProbe",
    "OpenClipEncoder",
    "ProbeReport",
    "ProbingStudy",
    "RegressionProbe",
    "Report",
    "Site",
    "SparseProbe",
    "TransformersEncoder",
    "Visualization",
    "Vocabulary",
    "ablate",
    "all_layers",
    "attribute_units",
    "block_layers",
    "causal_effect",
    "check_metrics",
    "check_on_images",
    "classes_from_labels",
    "compare_reports",
    "compare_weights",
    "contact_sheet",
    "dissect",
    "dissect_formulas",
    "dissect_pairs",
    "dissect_without",
    "evaluate_labels",
    "explain_class",
    "explain_units",
    "labels_along",
    "layer_facets",
    "list_layers",
    "load_curation",
    "plot_examples",
    "plot_facets",
    "plot_regions",
    "quantile_examples",
    "receptive_field",
    "record_checkpoints",
    "save_curation",
    "score_units",
    "search_units",
    "steer",
    "top_images",
    "units_named",
    "visualize",
]


ROOMS = [
    "concepts",
    "effects",
    "evaluation",
    "exceptions",
    "images",
    "labeling",
    "models",
    "pipeline",
    "probing",
    "recording",
    "reports",
    "statistics",
    "visualization",
    "world",
]


#: One interpreter that imports step by step, and says what each step left.
IMPORTS = """
import json, logging, sys, numpy, torch, torchvision
facts = {}
before = torch.get_rng_state(), list(logging.root.handlers), list(sys.path)
def loaded(*names):
    return [name for name in names if name in sys.modules]
import neuroprobe
facts["neuroprobe"] = loaded("clip", "sklearn", "pandas", "matplotlib", "neuroprobe.models")
import neuroprobe.world
neuroprobe.world.CLIP_PATH
facts["world"] = loaded("clip", "sklearn", "pandas", "matplotlib")
from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, Images
facts["record and score"] = loaded("pandas", "clip")
from neuroprobe.pipeline import dissect_model
facts["unchanged"] = [torch.equal(before[0], torch.get_rng_state()), before[1] == logging.root.handlers, before[2] == sys.path]
facts["stand-in"] = loaded("pkg_resources")
print(json.dumps(facts))
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_importing_loads_little_and_changes_nothing_global() -> None:
    facts = json.loads(run(IMPORTS))
    assert facts == {"neuroprobe": [], "world": [], "record and score": [], "unchanged": [True, True, True], "stand-in": []}


@pytest.mark.slow
def test_importing_it_costs_little_beyond_torch() -> None:
    code = (
        "import torch, torchvision, time, gc; gc.freeze(); t = time.perf_counter();"  # a collection of torch's objects is torch's
        "import neuroprobe; neuroprobe.ActivationRecorder, neuroprobe.ConceptScores; print(time.perf_counter() - t); gc.unfreeze()"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.3


def test_public_names_are_there_and_listed() -> None:
    assert set(neuroprobe.__all__) == {*PUBLIC, *ROOMS, "__version__"}
    for name in PUBLIC:
        assert getattr(neuroprobe, name).__module__.startswith("neuroprobe.")
    assert set(PUBLIC) <= set(dir(neuroprobe))
    with pytest.raises(AttributeError, match="Proobe"):
        neuroprobe.Proobe  # noqa: B018


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's code leaves, run as it stands."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    return names


def test_the_start_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_page("start.md", tmp_path, monkeypatch)
    assert names["labels"].label("classifier", 10) == "red"
    means = names["probes"].table.groupby("layer")["test_accuracy"].mean()
    assert means["features.18"] > means["features.2"]
    assert (tmp_path / "report" / "labels.csv").is_file()


#: The pages with code, but for those that have a test file of their own (errors, how-tos, recipes).
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "start.md"])
def test_a_pages_code_runs_as_it_stands(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, tmp_path, monkeypatch)


def test_the_pages_with_code_are_found() -> None:
    assert {"start.md", "naming.md", "judging.md", "concept_sets.md"} <= set(PAGES)


def test_the_readmes_own_lines_run_with_a_model_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    from neuroprobe.world import CLIP_PATH, target_transform, world_images

    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        world_images(12)[i].save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    block = block.replace('"ViT-B/16"', repr(str(CLIP_PATH)))  # the one thing that would be downloaded
    exec(block, {"my_model": torchvision.models.resnet18().eval(), "my_transform": target_transform()})
    assert len(neuroprobe.LabelReport.load(tmp_path / "report")) == 256 + 512


def test_the_readme_holds_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, ending in (("demo", ".venv/bin/neuroprobe demo"), ("test", ".venv/bin/python -m pytest")):
        (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.+?)\n```", readme)
        assert command.startswith("python3 -m venv .venv && ")
        assert command.endswith(ending)
