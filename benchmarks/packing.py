"""Do packed rows pay? The rows of a finished run, a text a row and packed, and updates of both.

    python -m benchmarks.packing --workdir RUN [--widths 256 512] [--batch-size 64] [--rounds 5]

RUN is a finished run; its stored trees and labels are read, and nothing is written. Of either
network, for every width of a packed row (`datasets.packed_tokens`): texts and rows, the share of
tokens that need not be read, and the time of an update a text. A batch holds about as many texts
packed as apart, rows of like length stand together in both, and the networks are random ones of the
run's shape. Apart and packed are measured in alternation; the best round and the median one count.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain import datasets
from jaxtrain.build import build
from jaxtrain.errors import UserError
from jaxtrain.progress import Progress
from jaxtrain.prompts import encode, make_encode
from jaxtrain.runs import open_run
from jaxtrain.structs import Examples, Shard
from jaxtrain.updates import OBJECTIVES


def read_rounds(path: Path) -> tuple[Any, Any, dict[int, list[Shard]]]:
    """Read a run: its config, its task, and what it grew, by iteration. Raises UserError."""
    run = open_run(path)
    config, task = run.config, run.task
    encode_fn = make_encode(config.prompts, task.tokenizer, task.demonstrations)
    files, rounds = run.trees, {}
    for place in files.training():
        tree = files.load(place)
        told = tree and files.load_labels(place, tree, config.labels.kind)
        if tree is None or told is None:
            raise UserError(f"{files.path(place)}: is not judged; let the run finish")
        problems = [task.problems[int(i)] for i in tree.problem_id]
        limit = config.prompts.max_prompt_tokens
        (prompts, *_), _ = encode(problems, encode_fn, limit, len(problems))
        rounds.setdefault(place.iteration, []).append(Shard(prompts, tree, told))
    return config, task, rounds


def batches_of(examples: Examples, batch_size: int, num_updates: int) -> list[Any]:
    """Draw batches, and put them where they are computed."""
    rng = np.random.default_rng(0)
    drawn = datasets.batches(examples, num_updates, batch_size, rng, group_by_length=True)
    return [jax.device_put(batch) for batch in drawn]


def seconds(update: Any, learner: Any, batches: list[Any]) -> tuple[float, Any]:
    """Run an update for every batch: (seconds, the learner)."""
    begin = time.perf_counter()
    for batch in batches:
        learner, told = update(learner, batch, np.float32(1e-4))
    jax.block_until_ready(told)
    return time.perf_counter() - begin, learner


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch-size", type=int, default=64, help="texts of a batch, about")
    parser.add_argument("--updates", type=int, default=20, help="of a round, apart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objective", default="nll", help="the policy's: nll or weighted")
    parser.add_argument("--shared-steps", default="once", choices=["once", "every"])
    parser.add_argument("--dtype", help="that networks compute in; as in the run by default")
    options = parser.parse_args()

    # The same rows as in the run, a text each.
    try:
        config, task, rounds = read_rounds(options.workdir)
    except UserError as error:
        sys.exit(str(error))
    dtype = options.dtype or config.model.dtype
    config = replace(config, model=replace(config.model, dtype=dtype))
    rows_fn = datasets.ROWS[OBJECTIVES["policy"][options.objective].rows]
    learnt = replace(config.datasets, shared_steps=options.shared_steps)
    found = datasets.collect(rounds, learnt, config.max_length, config.seed, rows_fn)
    fns = build(config, task, Progress(0))
    policy = fns.init_policy(np.zeros(2, np.uint32))
    learners = {"policy": policy, "prm": fns.init_prm(policy.params)}

    print("network  width  texts  rows  tokens saved  ms a text, apart            packed  ratio")
    for name, apart in zip(learners, found[:2], strict=True):
        # what rows of one text hold is imitated by the policy, whatever its objective
        fn = fns.imitate if name == "policy" else fns.update_prm
        update, learner = partial(fn, fns.init_base()), learners[name]
        num_texts = datasets.num_rows(apart)
        for width in options.widths:
            packed = datasets.pack(apart, width)
            num_rows, size = datasets.num_rows(packed), options.batch_size
            small = max(1, round(size * num_rows / num_texts))
            both = [
                batches_of(apart, size, options.updates),
                batches_of(packed, small, options.updates),
            ]
            times: list[list[float]] = [[], []]
            for turn in range(options.rounds + 1):
                for kind, batches in enumerate(both):
                    spent, learner = seconds(update, learner, batches)
                    texts = options.updates * (size if not kind else small * num_texts / num_rows)
                    times[kind] += [1e3 * spent / texts] if turn else []  # the first one compiles
            saved = 1 - np.count_nonzero(packed.rows.until) / np.count_nonzero(apart.rows.until)
            best, median = (list(map(pick, times)) for pick in (min, np.median))
            print(
                f"{name:7}  {width:5}  {num_texts:5}  {num_rows:4}  {saved:12.1%}  "
                f"{best[0]:7.3f} ({median[0]:7.3f})  {best[1]:7.3f} ({median[1]:7.3f})  "
                f"{best[0] / best[1]:5.2f} ({median[0] / median[1]:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
