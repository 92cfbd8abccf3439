"""Every notebook runs from top to bottom in a size that tests can bear, and has its outputs.

A notebook names the size of its run in one variable, `FLAGS`: config keys and values. Nothing else
is changed here.
"""

from __future__ import annotations

import json
import re
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
    "updates.policy.warm_start.num_updates": 2,
    "updates.policy.fit.num_updates": 2,
    "updates.prm.warm_start.num_updates": 2,
    "updates.prm.fit.num_updates": 2,
    "evaluation.num_problems": 8,
    "evaluation.samples.num_samples": 2,
}
# Not the "/" of 3/8, and not that of a URL.
ABSOLUTE_PATH = re.compile(r"(?<![\w<:/.])/\w+/\w|[A-Z]:\\\w")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def read_cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def printed(cell: dict) -> str:
    """Return what a cell wrote to stdout when its outputs were stored."""
    return "".join("".join(o["text"]) for o in cell["outputs"] if o.get("name") == "stdout")


def test_there_are_notebooks_and_their_names_tell_the_order():
    assert NOTEBOOKS and all(re.fullmatch(r"\d_\w+", path.stem) for path in NOTEBOOKS)


@each_notebook
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    """A cell that has printed something prints something again, and what ran had the small size."""
    for name in ("configs", "jaxtrain"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for cell in read_cells(path):
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
        if isinstance(names.get("FLAGS"), dict):
            names["FLAGS"] |= SMALL | {"sharding.data": 8}
        assert bool(capsys.readouterr().out) == bool(printed(cell))
    configs = [json.loads(found.read_text()) for found in tmp_path.glob("runs/*/config.json")]
    assert configs, "a notebook makes a run"
    assert {config["prompts"]["num_problems"] for config in configs} == {16}


@each_notebook
def test_a_notebook_names_its_size_once(path):
    sources = ["".join(cell["source"]) for cell in read_cells(path)]
    assert sum(len(re.findall("^FLAGS = ", source, re.MULTILINE)) for source in sources) == 1
    assert any("`FLAGS`" in "".join(cell["source"]) for cell in read_cells(path, "markdown"))


@each_notebook
def test_stored_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = read_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert sum(map(bool, map(printed, cells))) >= 2


@each_notebook
def test_stored_outputs_name_no_place_of_a_machine(path):
    outputs = [output for cell in read_cells(path) for output in cell["outputs"]]
    for output in outputs:  # a picture's letters are no text
        output.get("data", {}).pop("image/png", None)
    told = json.dumps(outputs, ensure_ascii=False)
    assert ABSOLUTE_PATH.findall(told) == []
    assert ABSOLUTE_PATH.findall(json.dumps(read(path)["metadata"])) == []


@pytest.mark.parametrize("text", ["in /home/me/run", '"/tmp/a.html"', "C:\\Users", "[/root/x]"])
def test_a_place_of_a_machine_is_seen(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text",
    ["3/8 a", "51 problems/s", "runs/a/b.html", "https://x.org/a/b", "</g>", "2 / 8"],
)
def test_what_is_no_place_of_a_machine_passes(text):
    assert not ABSOLUTE_PATH.search(text)
