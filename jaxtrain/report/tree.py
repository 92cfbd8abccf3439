"""One tree of a search, to be looked into: a page of its own, a part of the report, or text.

The page needs a script, the only one there is. The tree stands beside it as JSON, which nobody
runs. Steps are hostile text: the script shows them as text alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.text import Text
from rich.tree import Tree as TextTree

from jaxtrain import trees
from jaxtrain.report import PAGES, TreeData
from jaxtrain.report.values import is_number, visible
from jaxtrain.structs import Kind, Labels, Tree, Verdict
from jaxtrain.tasks.base import Problem

Judged = tuple[Tree, Labels]  # of a batch
DecodeFn = Callable[[Sequence[int]], str]  # tokens of a step -> its text


def read_tree(
    tree: Tree,
    b: int,
    labels: Labels | None,
    decode_fn: DecodeFn,
    problem: Problem,
    born: np.ndarray | None = None,
    facts: Sequence[str] = (),
) -> TreeData:
    """Turn tree `b` of a batch into plain data.

    born `[R]` int: in which expansion every row was drawn (`search.work.born`), for the replay;
    facts: what else is told above the tree.
    """
    tree, labels = jax.tree.map(lambda x: x[b], (tree, labels))
    there = np.flatnonzero(tree.kind != Kind.EMPTY)
    place = {int(row): k for k, row in enumerate(there)} | {-1: -1}
    path = trees.row_paths(tree.parent[None], np.array([0]), tree.chosen[None])[0].tolist()

    def read_node(row: int) -> dict[str, Any]:
        numbers = {name: float(getattr(tree, name)[row]) for name in ("value", "score", "log_prob")}
        if labels is not None and labels.is_labelled[row]:
            numbers["label"] = float(labels.target[row])
        text = decode_fn(tree.tokens[row, : tree.length[row]].tolist())
        verdict = Verdict.NONE if labels is None else Verdict(int(labels.verdict[row]))
        return {
            "row": row,
            "parent": place[int(tree.parent[row])],
            "born": None if born is None else int(born[row]),
            "kind": Kind(int(tree.kind[row])).name.lower(),
            "text": visible(text.rstrip("\n")),
            "tokens": int(tree.length[row]),
            "visits": int(tree.visits[row]),
            "label": None,
            **{name: x if is_number(x) else None for name, x in numbers.items()},
            "verdict": verdict.name.lower() if verdict else None,
            "end": "finished" if tree.is_finished[row] else "cut" if tree.is_ended[row] else "open",
            "is_best": row in path,
            "is_answer": row == int(tree.chosen),
        }

    # What a reader wants to know of the whole.
    counted = [f"{len(there):,} steps", f"{tree.num_simulations:,} simulations"]
    counted += [f"{tree.policy_tokens + tree.prm_tokens:,} tokens of both networks"]
    noted = [] if tree.is_ok else ["set aside: a logit or a score was not finite"]
    return {
        "problem": problem.prompt.rstrip(),
        "gold": problem.gold,
        "facts": [f"problem {problem.id}", *facts, *counted, *noted],
        "nodes": [read_node(int(row)) for row in there],
    }


def render_tree(*what: Any, **more: Any) -> str:
    """Return the page of a tree; the arguments are those of `read_tree`."""
    return PAGES.get_template("tree.html").render(tree=read_tree(*what, **more))


def draw_tree(*what: Any, **more: Any) -> TextTree:
    """Return a tree for the terminal, its best path in bold; the arguments are `read_tree`'s."""
    data = read_tree(*what, **more)
    gold = f" (gold answer {data['gold']})" if data["gold"] else ""
    root = TextTree(Text(visible(data["problem"] + gold), "bold"))
    drawn: list[TextTree] = []
    for node in data["nodes"]:
        branch = drawn[node["parent"]] if node["parent"] >= 0 else root
        drawn.append(branch.add(_line(node)))
    return root


def pick(judged: Mapping[str, Judged]) -> int:
    """Choose of the trees of "search" the one that tells most: of the first problem that search
    solved and "greedy" did not, if it is there; else of the first that search solved, or the first.
    """
    is_right = {}
    for name, (tree, labels) in judged.items():
        verdict = labels.verdict[np.arange(len(tree.chosen)), tree.chosen]
        is_right[name] = (tree.chosen >= 0) & (verdict == Verdict.CORRECT)
    # a run under way has more greedy traces than trees
    solved = is_right["search"]
    is_alone = solved > is_right.get("greedy", np.zeros_like(solved))[: len(solved)]
    return int(np.argmax(solved + 1 * is_alone))


def _line(node: dict[str, Any]) -> Text:
    """Tell a node in a line of the terminal. Text of a model is no markup."""
    value, verdict, kind = node["value"], node["verdict"], node["kind"]
    numbers = {"PRM": node["score"], "label": node["label"]}
    told = [f"{name} {x:.3f}" for name, x in numbers.items() if x is not None]
    told += [f"visits {node['visits']}"] + [kind] * (kind != "candidate")
    colour = {"correct": "green", "wrong": "red"}.get(verdict, "yellow")
    style = "bold" if node["is_best"] else "dim" if kind in ("duplicate", "false") else ""
    line = Text("" if value is None else f"{value:.3f} ", style)
    line.append(node["text"])
    line.append(f"  {verdict}" if verdict else "", colour)
    line.append("  <- the answer" if node["is_answer"] else "")
    return line.append(f"  {', '.join(told)}", "dim")
