"""A tree to be looked into: its data, its page in a browser, and its lines for the terminal."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from forest import Row, grow_at_random, plant
from rich.console import Console

from jaxtrain.labels import LabelsConfig, label
from jaxtrain.report import tree as viewer
from jaxtrain.search import SearchConfig
from jaxtrain.search.work import born, work_of
from jaxtrain.structs import Kind, Verdict
from jaxtrain.tasks.base import Problem

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><script>1</script>\u202e\x1b[2J"
PROBLEM = Problem(7, "reach 7 from 1 2 4\n", "7")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def decode(ids):
    """Seven is what a hostile model says."""
    return HOSTILE + "\n" if ids == [7] else "+".join(map(str, ids)) + "\n"


def planted():
    """A tree with an empty row, a duplicate and a rollout that ends in the answer, row 5.

    prompt: 0 (1+2), 1 (1+2 again), 2 (3, wrong); below 0: 3 (4), 5 (rollout, right); row 4 is empty
    """
    rows = [
        Row(-1, (1, 2), score=0.25),
        Row(-1, (1, 2), kind=Kind.DUPLICATE),
        Row(-1, (3,), Verdict.WRONG, score=0.75),
        Row(0, (4,), score=float("nan")),
        Row(-1, kind=Kind.EMPTY),
        Row(3, (7,), Verdict.CORRECT, Kind.ROLLOUT, 1.0),
    ]
    tree, verdict = plant([rows])
    tree = replace(tree, chosen=np.array([5]), visits=np.arange(6)[None])
    return tree, label(tree, verdict, LabelsConfig(kind="mc_return"))


def column(told, name):
    return [node[name] for node in told["nodes"]]


def test_data_are_the_rows_of_the_tree():
    tree, labels = planted()
    told = viewer.read_tree(tree, 0, labels, decode, PROBLEM, np.array([0, 0, 0, 1, 1, 1]))
    assert column(told, "row") == [0, 1, 2, 3, 5]
    assert column(told, "parent") == [-1, -1, -1, 0, 3]
    assert column(told, "kind") == ["candidate", "duplicate", "candidate", "candidate", "rollout"]
    assert column(told, "text")[:4] == ["1+2", "1+2", "3", "4"]
    assert column(told, "visits") == [0, 1, 2, 3, 5]
    assert column(told, "tokens") == [2, 2, 1, 1, 1]
    assert column(told, "score") == [0.25, 0.5, 0.75, None, 1.0]
    assert column(told, "label") == [1.0, None, 0.0, 1.0, 1.0]
    assert column(told, "verdict") == [None, None, "wrong", None, "correct"]
    assert column(told, "born") == [0, 0, 0, 1, 1]


def test_best_path_leads_to_the_answer():
    told = viewer.read_tree(*planted()[:1], 0, None, decode, PROBLEM)
    assert column(told, "is_best") == [True, False, False, True, True]
    assert column(told, "is_answer") == [False] * 4 + [True]
    assert "not judged</span>" in page_of(planted()[0], None)
    unanswered = replace(planted()[0], chosen=np.array([-1]))
    assert not any(column(viewer.read_tree(unanswered, 0, None, decode, PROBLEM), "is_best"))
    assert "none</span>" in page_of(unanswered, None)


@pytest.mark.parametrize("method", ["mcts_star", "puct", "sample", "beam", "best_first"])
def test_every_row_is_born_in_an_expansion_or_turn(method):
    """In the order of the rows of its region: a parent is never younger than its child."""
    config, max_steps = SearchConfig(method=method, num_simulations=5, num_candidates=3), 4
    told = born(config, max_steps)
    assert len(told) == work_of(config, max_steps).num_rows
    assert told[0] == 0 and told.min() == 0
    if method in ("mcts_star", "puct"):
        assert told[:6].tolist() == [0, 0, 0, 1, 1, 1] and told.max() == 4


def test_that_tree_is_picked_that_tells_most():
    """Search is right on the second and third problem, greedy decoding on the second."""
    wrong, right = Row(-1, (1,), Verdict.WRONG), Row(-1, (1,), Verdict.CORRECT)

    def judged(*rows):
        tree, verdict = plant([[row] for row in rows])
        tree = replace(tree, chosen=np.zeros(len(rows), int))
        return tree, label(tree, verdict, LabelsConfig())

    search, greedy = judged(wrong, right, right), judged(wrong, right, wrong)
    assert viewer.pick({"search": search, "greedy": greedy}) == 2
    assert viewer.pick({"search": search, "greedy": search}) == viewer.pick({"search": search}) == 1
    assert viewer.pick({"search": judged(wrong, wrong)}) == 0
    # of a run that is under way, whose greedy traces are all there
    assert viewer.pick({"search": judged(wrong, right), "greedy": greedy}) == 1


def page_of(tree, labels, born=None):
    told = Problem(7, HOSTILE, HOSTILE), born, (HOSTILE,)
    return viewer.render_tree(tree, 0, labels, decode, *told)


class Scripts(HTMLParser):
    """Takes a page apart as a browser does: its tags, its policy, what its scripts hold."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.is_inside = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.is_inside = tag == "script"
        self.scripts += [""] * self.is_inside

    def handle_endtag(self, tag):
        self.is_inside = False

    def handle_data(self, data):
        if self.is_inside:
            self.scripts[-1] += data


def test_the_only_script_is_the_one_whose_hash_the_policy_has():
    page = Scripts(page_of(*planted()))
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for name, value in page.attributes if name == "content" and "src" in value)
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    )
    assert json.loads(data)[-1]["text"] == viewer.visible(HOSTILE)
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "onerror"} & {name for name, _ in page.attributes}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval", script)


def in_chromium(page, folder):
    """Let Chromium open a page. Returns the document as it stands then."""
    if CHROMIUM is None:
        pytest.skip("needs chromium, of Debian's package of that name")
    (folder / "tree.html").write_text(page, "utf-8")
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom")
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, (folder / "tree.html").as_uri()], capture_output=True, timeout=600, check=True
    )
    return Scripts(done.stdout.decode())


def test_a_browser_draws_a_thousand_nodes_and_runs_nothing_of_theirs(tmp_path):
    rows = [*grow_at_random(np.random.default_rng(0), 1200), Row(-1, (7,))]
    tree, verdict = plant([rows])
    tree = replace(tree, chosen=np.flatnonzero(tree.is_finished[0])[:1])
    labels = label(tree, verdict, LabelsConfig())
    document = in_chromium(page_of(tree, labels, born=np.arange(1201) // 8), tmp_path)
    num_nodes = int((tree.kind != Kind.EMPTY).sum())
    assert num_nodes > 1000
    assert document.attributes.count(("role", "treeitem")) == num_nodes
    assert not {"img"} & set(document.tags) and len(document.scripts) == 2
    assert document.attributes.count(("aria-selected", "true")) == 1


def test_a_tree_is_walked_searched_and_replayed(tmp_path):
    """The page with a few clicks and keys at the end of its script, and the hash of that."""
    tree, labels = planted()
    page = page_of(tree, labels, born=np.array([0, 0, 0, 1, 1, 1]))
    acts = """{
    const press = (at, key) => at.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    const list = document.querySelector(".tree"), input = document.querySelector("input");
    const row = () => document.querySelector("[aria-selected=true] > .row");
    const told = () => [".text", ".mark"].map((name) => row().querySelector(name).textContent);
    const items = [...list.querySelectorAll("li")];
    const see = () => items.map((item) => item.checkVisibility() ? 1 : 0).join("");
    const log = [told()];
    document.querySelector("[data-do=back]").click(); log.push(see());
    document.querySelector("[data-do=on]").click(); log.push(see());
    press(list, "Home"); log.push(told());
    press(list, "Enter"); log.push(see());
    press(list, "ArrowDown"); log.push(told());
    press(document, "/"); log.push(document.activeElement.tagName);
    input.value = "wrong"; input.dispatchEvent(new Event("input"));
    press(input, "Enter"); log.push(told(), list.querySelectorAll(".found").length);
    press(list, "b"); log.push(told(), see());
    document.body.dataset.log = JSON.stringify(log);
    }"""
    script = viewer.PAGES.get_template("tree.js").render()
    longer = script.replace("})();", acts + "})();")
    hashes = [
        base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in (script, longer)
    ]
    document = in_chromium(page.replace(script, longer).replace(hashes[0], hashes[1]), tmp_path)
    log = json.loads(dict(document.attributes)["data-log"])
    answer = [viewer.visible(HOSTILE), "rolloutcorrectanswer"]
    assert log == [
        *(answer, "10011", "11111"),
        # in the order of the page: 1+2, 4, the answer, 1+2 again, 3
        *(["1+2", ""], "10011", ["1+2", "duplicate"], "INPUT"),
        *(["3", "wrong"], 1, answer, "11111"),
    ]


def test_a_terminal_shows_the_tree_and_obeys_nothing_in_it():
    tree, labels = planted()
    drawn = viewer.draw_tree(tree, 0, labels, decode, Problem(7, "[bold]reach 7\n", "7"))
    console = Console(width=200, force_terminal=True, color_system="standard", record=True)
    with console.capture() as told:
        console.print(drawn)
    assert "\x1b[2J" not in told.get() and "\u202e" not in told.get()
    console.print(drawn)
    first, *lines = console.export_text().splitlines()[-6:]
    assert first == "[bold]reach 7 (gold answer 7)"
    assert lines[0] == "├── 0.250 1+2  PRM 0.250, label 1.000, visits 0"
    assert lines[1] == "│   └── 4  label 1.000, visits 3"
    assert "correct  <- the answer  PRM 1.000, label 1.000, visits 5, rollout" in lines[2]
    assert lines[4] == "└── 0.750 3  wrong  PRM 0.750, label 0.000, visits 2"
