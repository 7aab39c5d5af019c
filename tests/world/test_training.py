"""The scripts that made the world's models: a short run must learn, and write files of the real format."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from neuroprobe import ClipEncoder
from neuroprobe.models import load_checkpoint
from neuroprobe.world import build_target, train_clip, train_target
from neuroprobe.world._training import target_accuracies, zero_shot_accuracies


@pytest.fixture(autouse=True)
def _restored_threads() -> None:
    torch.manual_seed(0)


@pytest.mark.slow
def test_a_short_run_of_train_clip_learns_colors(tmp_path: Path) -> None:
    state = train_clip.train(steps=500, n_images=4000, seed=3, processes=1, batch_size=64)
    train_clip.save_deflated(state, tmp_path / "clip.pt")
    assert (tmp_path / "clip.pt").stat().st_size < 1.2e6
    accuracies = zero_shot_accuracies(ClipEncoder(tmp_path / "clip.pt", device="cpu"), n_images=600, seed=104, combinations="all")
    assert accuracies["color"] > 3 / 8  # three times chance


@pytest.mark.slow
def test_a_short_run_of_train_target_learns_and_saves_its_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_target, "CHECKPOINTS", (0, 300))
    arguments = ["train_target", "--out", str(tmp_path), "--images", "6000", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    train_target.main()
    figures = {
        step: target_accuracies(load_checkpoint(build_target(), tmp_path / f"step_{step:05d}.pt"), n_images=400, seed=105)
        for step in (0, 300)
    }
    assert figures[0]["balanced_accuracy"] < 0.53
    assert figures[300]["balanced_accuracy"] > figures[0]["balanced_accuracy"] + 0.05
    assert set(json.loads((tmp_path / "record.json").read_text())["sha256"]) == {"step_00000.pt", "step_00300.pt"}
