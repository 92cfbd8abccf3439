"""How well does a PRM rank within a problem, by the number of problems that it has learnt from?

    python -m benchmarks.curve --workdir RUN --shares .125 .25 .5 1 [--updates 2000] [--seeds 1]

RUN is a finished run of any task. A PRM begins as the newest policy and is fitted, for as many
updates at every share, to the stored trees of a share of the problems that its newest rounds
searched; a larger share holds a smaller one. Labels, rounds, caps, objective, batches and rate are
the run's; rows are not packed, none is held out, and references are not learnt. It is judged by the
trees of the newest evaluation, whose problems nobody learnt: AUROC within a problem over finished
leaves, and over first steps, which are right where a correct answer was found below. A table is
printed, and the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.labels import (
    NEWEST,
    Bench,
    Fit,
    Texts,
    count,
    drawn_texts,
    is_first,
    open_bench,
    tell,
    within,
)
from jaxtrain.errors import UserError
from jaxtrain.evaluation.prm import judged_leaves
from jaxtrain.progress import Progress
from jaxtrain.structs import Labels, Tree, Verdict


def judged_by(bench: Bench) -> dict[str, Texts]:
    """Read the trees of the newest evaluation, of its search or else of its samples."""
    folder, i = bench.files.run, bench.iteration
    paths = [sorted(folder.glob(f"trees/{i}/{name}-*.npz")) for name in ("solve", "sample")]
    if not any(paths):
        raise UserError(f"{folder}: its newest evaluation grew no trees; let it search or sample")
    shards = []
    for path in paths[0] or paths[1]:
        labels = folder / "labels" / str(i) / f"{path.stem}.{bench.config.labels.kind}.npz"
        shards.append((Tree(**np.load(path)), Labels(**np.load(labels))))

    # all of them as one batch, without its padding
    tree, told = jax.tree.map(lambda *x: np.concatenate(x), *shards)
    is_problem = tree.problem_id >= 0
    tree, told = jax.tree.map(lambda x: x[is_problem], (tree, told))
    prompts = bench.encode([bench.task.problems[int(k)] for k in tree.problem_id])
    first, is_correct = is_first(tree) & told.is_labelled, told.verdict == Verdict.CORRECT
    return {
        "leaves": drawn_texts(prompts, tree, judged_leaves(tree, told), is_correct),
        "first steps": drawn_texts(prompts, tree, first, told.is_correct),
    }


def fit_of(bench: Bench) -> Fit:
    """Take the settings of the run."""
    c = bench.config
    return Fit(
        kind=c.labels.kind,
        start=NEWEST,
        num_rounds=min(c.datasets.paths_rounds, len(bench.rounds)),
        max_paths=c.datasets.max_paths_per_problem,
        shared_steps=c.datasets.shared_steps,
        is_balanced=c.datasets.balance_outcomes,
        batch_size=c.updates.prm.batch_size,
        rate=c.updates.prm.fit.learning_rate,
        weight_decay=c.updates.prm.weight_decay,
        objective=c.updates.prm.objective,
    )


def share_of_all(text: str) -> float:
    """Read a flag's share."""
    told = argparse.ArgumentTypeError(f"{text}: must be above 0, and 1 at most")
    try:
        share = float(text)
    except ValueError:
        raise told from None
    if not 0 < share <= 1:
        raise told
    return share


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--shares", type=share_of_all, nargs="+", default=[0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--updates", type=count, default=2000)
    parser.add_argument("--seeds", type=count, default=1)
    options = parser.parse_args()
    rows = []
    with Progress(0, sys.stderr) as progress:
        try:
            bench = open_bench(options.workdir, progress)
            shown = judged_by(bench)
        except UserError as error:
            sys.exit(str(error))
        # the problems of the rounds in use, in an order of chance
        fit = fit_of(bench)
        newest = sorted(bench.rounds)[-fit.num_rounds :]
        searched = [tree.problem_id for i in newest for _, tree, _ in bench.rounds[i]]
        ids = np.random.default_rng(0).permutation(np.unique(np.concatenate(searched)))

        print(f"| share | problems | {' | '.join(shown)} |\n" + "| --- " * 4 + "|")
        for share in options.shares:
            learnt = ids[: max(1, round(share * len(ids)))]
            found = []
            for seed in range(options.seeds):
                prm = bench.fit(fit, options.updates, seed, learnt)
                pairs = [(bench.score(prm, x), x) for x in shown.values()]
                found.append([within(score, x.is_right, x.problem_id) for score, x in pairs])
            tell(f"{share} | {len(learnt)}", found)
            row = {"share": share, "problems": len(learnt)}
            row |= {name: list(x) for name, x in zip(shown, zip(*found, strict=True), strict=True)}
            rows.append(row)
    print(json.dumps({"fit": str(fit), "updates": options.updates, "curve": rows}))


if __name__ == "__main__":
    main()
