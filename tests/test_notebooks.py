"""Every notebook runs from top to bottom, in a size that tests can bear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "prompts.num_problems": 16,
    "prompts.num_first_problems": 16,
    "prompts.batch_size": 16,
    "model.num_layers": 1,
    "search.num_simulations": 3,
    "search.num_candidates": 2,
    "updates.policy.num_first_updates": 2,
    "updates.policy.num_updates": 2,
    "updates.prm.num_first_updates": 2,
    "updates.prm.num_updates": 2,
    "evaluation.num_problems": 8,
    "evaluation.num_samples": 2,
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    for name in ("configs", "jaxtrain"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None, "notebooks are kept without outputs"
        exec(compile("".join(cell["source"]), f"{path.name}", "exec"), names)
        if "FLAGS" in names:
            names["FLAGS"] |= SMALL | {"sharding.data": 8}
    assert "problem:" in capsys.readouterr().out
