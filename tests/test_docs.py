"""The docs: every page is in the site's nav, every link leads somewhere, and the site builds."""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.tasks import Problem, TasksConfig, make_task

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "RESULTS.md", "benchmarks/README.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|src=\"([^\"]+)\"")

EXAMPLES = [path for path in (ROOT / "jaxtrain").rglob("*.py") if ">>> " in path.read_text("utf-8")]

each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """Return a page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].translate({ord(c): "x" for c in "[]()"}), text)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead_links(path: Path) -> list[str]:
    """Return the links of a page to files and headings that are not there."""
    dead = []
    for target in ("".join(found) for found in LINK.findall(prose(path))):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            dead.append(target)
    return dead


@each_text
def test_every_link_leads_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_is_seen(tmp_path):
    (tmp_path / "a.md").write_text("# A `b`, c's\n[x](a.md#a-b-cs) [y](b.md) [z](#c) `[q](q.md)`\n")
    assert dead_links(tmp_path / "a.md") == ["b.md", "#c"]


def test_the_nav_lists_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
    listed = re.findall(r"^ +- .*: (\S+\.md)$", nav, re.MULTILINE)
    hooks = (ROOT / "docs/hooks.py").read_text("utf-8")
    made = set(listed) & set(re.findall(r"\"(\w+\.md)\"", hooks))
    assert sorted(listed) == sorted({path.name for path in PAGES} | made)


def test_the_site_builds_without_a_warning(tmp_path):
    """The page of config keys is made on the way, so it holds a key of every section."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (pip install -e '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    keys = (tmp_path / "site/keys/index.html").read_text("utf-8")
    assert "search.num_simulations" in keys and "updates.lora.rank" in keys


def test_the_task_in_the_docs_is_one(tmp_path):
    code = (ROOT / "docs/own-parts.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "my_task.py").write_text(code)
    task = make_task(TasksConfig(name=f"{tmp_path}/my_task.py:make"))
    told = {x.prompt: x.response for x in task.demonstrations}
    shown = task.demonstrations[0]
    gold = str(sum(map(int, shown.prompt.split("+"))))
    assert task.verify(Problem(0, shown.prompt, gold), shown.response) is True
    assert task.verify(task.train[0], "1\n2") is False
    assert len(code.strip().splitlines()) <= 25
    assert not told.keys() & {p.prompt for p in (*task.train, *task.dev, *task.test)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_docstrings_print_what_they_show(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
