"""The command: `python -m jaxtrain.view --workdir W [--problem K] [--iteration I] [--kind search]
[--to FILE | --text]`.

Shows one tree of a run, as a page that is one file, or here as text. It only reads what the run has
written, so the run may go on meanwhile.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import jax
import numpy as np
from rich.console import Console

from jaxtrain.commands import Parser, page_path
from jaxtrain.errors import UserError, require
from jaxtrain.files import write_atomic
from jaxtrain.phases import GROWN
from jaxtrain.report.tree import Judged, draw_tree, pick, render_tree
from jaxtrain.runs import open_run
from jaxtrain.search.work import born
from jaxtrain.structs import Tree
from jaxtrain.trees import Damaged, Place, TreeFiles
from jaxtrain.workdir import MAX_SHOWN


def run(arguments: Sequence[str], leaving: ExitStack) -> None:
    """Show one tree. Raises UserError where it is not there, and lists what is."""
    parser = Parser(__doc__, iteration="the iteration that grew it; the newest one by default")
    parser.add_argument("--kind", choices=GROWN, default="search", help="what grew the tree")
    parser.add_argument("--problem", type=int, help="its problem; by default one that tells much")
    parser.add_argument("--to", type=page_path, help="the page to write; W/tree.html by default")
    parser.add_argument("--text", action="store_true", help="show it here, and write no page")
    options = parser.parse_args(arguments)
    path, kind, to = options.workdir, options.kind, options.to
    ran = open_run(path)
    config, files = ran.config, ran.trees

    # The tree that is asked for.
    stored = {name: path.glob(f"trees/*/{p.name.lower()}-*.npz") for name, p in GROWN.items()}
    there = {name: sorted({int(x.parent.name) for x in found}) for name, found in stored.items()}
    i = max(there[kind], default=0) if options.iteration is None else options.iteration
    if i not in there[kind]:
        told = ", ".join(f"{name} {found}" for name, found in there.items())
        raise UserError(f"--workdir {path}: no {kind} trees of iteration {i}; there are {told}")
    tree, labels = load(files, kind, i, config.labels.kind)
    judged = {"search": (tree, labels)}
    if kind == "search" and i in there["greedy"]:
        judged["greedy"] = load(files, "greedy", i, config.labels.kind)
    b = pick(judged) if options.problem is None else find(tree, options.problem)

    # All of it, as a page or as text.
    task = ran.task
    problem = task.problems[int(tree.problem_id[b])]
    search = config.searches[kind]
    facts = f"iteration {i}", f"trees of {kind}", search.method
    when = born(search, config.trace.max_steps)
    told = tree, b, labels, task.tokenizer.decode, problem, when, facts
    if options.text:
        Console().print(draw_tree(*told))
        return
    write_atomic(to or path / "tree.html", render_tree(*told).encode())
    print(to or path / "tree.html")


def load(files: TreeFiles, kind: str, i: int, label_kind: str) -> Judged:
    """Read all trees of a kind and their labels. Raises UserError where they are not judged yet."""
    purpose, found = GROWN[kind].name.lower(), []
    try:
        while (tree := files.load(place := Place(i, len(found), purpose))) is not None:
            found.append((tree, files.load_labels(place, tree, label_kind)))
    except Damaged as damage:
        raise UserError(f"{damage}; view another --iteration") from damage
    if not found or found[-1][1] is None:
        raise UserError(f"{files.run}: {kind} trees of iteration {i} are not judged yet; wait")
    return jax.tree.map(lambda *x: np.concatenate(x), *found)


def find(tree: Tree, asked: int) -> int:
    """Return which tree is that of the problem asked for. Raises UserError."""
    known = tree.problem_id[tree.problem_id >= 0].tolist()
    told = f"no such tree; there are {len(known)}, such as {str(known[:MAX_SHOWN])[1:-1]}"
    require(asked in known, f"--problem {asked}", told)
    return tree.problem_id.tolist().index(asked)
