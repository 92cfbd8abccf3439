"""Print traces and trees of a run as Markdown, chosen by their order alone.

    python -m benchmarks.look --workdir runs/arms/smollm2_gsm/search_0 --iteration 2 > look.md

Traces: of the greedy answers to held-out problems the first that are correct and the first that are
not. Trees: the first of the iteration's searches that holds a correct answer, and the first that
holds wrong ones and no correct one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.compare import read_trees
from jaxtrain import trees
from jaxtrain.runs import open_run
from jaxtrain.structs import Kind, Tree, Verdict
from jaxtrain.tasks import Task


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--iteration", type=int, required=True)
    parser.add_argument("--traces", type=int, default=5, help="of each kind")
    options = parser.parse_args()
    task = open_run(options.workdir).task
    print(f"# Iteration {options.iteration} of {options.workdir}")
    tree, judged = read_trees(options.workdir, options.iteration, task, "greedy")
    is_solved = (judged.verdict == Verdict.CORRECT).any(axis=1)
    for title, found in (
        ("correct", np.flatnonzero(is_solved)),
        ("not correct", np.flatnonzero(~is_solved)),
    ):
        print(
            f"\n## Greedy answers: {len(found)} of {len(is_solved)} are {title}, the first of them"
        )
        for b in found[: options.traces]:
            print("\n".join(trace(tree, judged.verdict, int(b), task)))
    tree, judged = read_trees(options.workdir, options.iteration, task)
    is_solved, is_wrong = (
        (judged.verdict == kind).any(axis=1) for kind in (Verdict.CORRECT, Verdict.WRONG)
    )
    for title, is_wanted in (
        ("The first tree with a correct answer", is_solved),
        ("The first tree with wrong answers and no correct one", is_wrong & ~is_solved),
    ):
        for b in np.flatnonzero(is_wanted)[:1]:
            print(f"\n## {title}\n")
            print("\n".join(whole_tree(tree, judged.verdict, int(b), task)))


def head(tree: Tree, b: int, task: Task) -> str:
    problem = task.problems[int(tree.problem_id[b])]
    return f"**{problem.prompt.strip()}** (gold: {problem.gold})\n"


def step(tree: Tree, b: int, row: int, task: Task) -> str:
    return (
        task.tokenizer.decode(tree.tokens[b, row, : tree.length[b, row]].tolist())
        .strip()
        .replace("\n", " / ")
    )


def trace(tree: Tree, verdict: np.ndarray, b: int, task: Task) -> Iterator[str]:
    """Yield the lines of one answer."""
    last = max(np.flatnonzero(tree.kind[b] != Kind.EMPTY), default=-1)
    yield f"\n{head(tree, b, task)}"
    for row in trees.row_paths(tree.parent, np.array([b]), np.array([last]))[0]:
        yield f"    {step(tree, b, row, task)}"
    judgement = Verdict(int(verdict[b, last]))
    yield "\nno answer" if judgement == Verdict.NONE else f"\n{judgement.name.lower()}"


def whole_tree(tree: Tree, verdict: np.ndarray, b: int, task: Task) -> Iterator[str]:
    """Yield the lines of a tree, children below their parent: score, value, visits, step."""
    yield head(tree, b, task)
    yield (
        "Score of the PRM, value after back-up, visits, step; `~` is a step of a rollout, "
        "`=` a duplicate.\n"
    )

    def below(parent: int, depth: int) -> Iterator[str]:
        for row in np.flatnonzero((tree.parent[b] == parent) & (tree.kind[b] != Kind.EMPTY)):
            kind = Kind(int(tree.kind[b, row]))
            mark = {Kind.ROLLOUT: "~ ", Kind.DUPLICATE: "= "}.get(kind, "")
            judgement = Verdict(int(verdict[b, row]))
            told = f"  [{judgement.name}]" if judgement in (Verdict.CORRECT, Verdict.WRONG) else ""
            numbers = f"{tree.score[b, row]:.2f} {tree.value[b, row]:.2f} {tree.visits[b, row]}"
            yield f"    {'  ' * depth}{numbers}  {mark}{step(tree, b, int(row), task)}{told}"
            yield from below(int(row), depth + 1)

    yield from below(-1, 0)


if __name__ == "__main__":
    main()
