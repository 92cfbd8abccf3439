"""What do labels from trees lack? Countdown, whose exact values are known, one change at a time.

    python -m benchmarks.labels --workdir RUN [--fits NAME ...] [--updates 2000] [--seeds 1]

RUN is a finished run of configs/quickstart.py. Two tables are printed. The first tells, for the
trees of every iteration and every kind of label, how labels of first moves compare with the truth:
the share of moves that have one, the accuracy of labels read as right or wrong, and their AUROC
over all moves and within a problem. (Leaves are judged, so they are exact.)

The second fits a PRM for every one of `FITS`, and tells its AUROC within a problem on the dev
split: over all legal first moves, over the first moves that the newest policy drew in trees that
are grown here, and over the leaves of these. The exact values are those of
`benchmarks.countdown_values`, for judging alone: no fit but those named `exact` sees them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.countdown_values import exact_value
from jaxtrain import datasets, labels, trees, updates
from jaxtrain.build import Functions, build
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.hub import Pretrained
from jaxtrain.intervals import auroc
from jaxtrain.keys import Purpose
from jaxtrain.learning import read_all
from jaxtrain.progress import Progress
from jaxtrain.prompts import encode, make_encode
from jaxtrain.runs import open_run
from jaxtrain.structs import (
    JUDGED,
    Labels,
    Networks,
    Params,
    Prompts,
    Shard,
    TokenRows,
    Tree,
    Verdict,
)
from jaxtrain.tasks import Problem, Task
from jaxtrain.tasks.countdown import legal_moves, read_prompt, write_move
from jaxtrain.trees import TreeFiles
from jaxtrain.updates import fits
from jaxtrain.updates.prm import PrmConfig

WARM, NEWEST, PREVIOUS = "warm policy", "newest policy", "previous PRM"


@dataclass(frozen=True)
class Fit:
    """What a PRM is fitted to, and from where."""

    kind: str = "quality"  # of label; exact: the truth
    start: str = WARM  # the network that the PRM begins as
    num_rounds: int = 1  # newest iterations whose trees are learnt from
    max_paths: int = 16  # of a problem and iteration
    shared_steps: str = "once"  # or on every path
    is_balanced: bool = True
    batch_size: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.01
    updates: int = 1  # times those that are asked for
    objective: str = "squared"

    def __str__(self) -> str:
        told = {
            f"{self.num_rounds} rounds": self.num_rounds > 1,
            f"{self.max_paths} paths of a problem": self.max_paths != 16,
            "shared steps on every path": self.shared_steps == "every",
            "outcomes not balanced": not self.is_balanced,
            f"batches of {self.batch_size}": self.batch_size != 32,
            f"rate {self.rate}": self.rate != 2e-3,
            f"weight decay {self.weight_decay}": self.weight_decay != 0.01,
            f"{self.updates} times the updates": self.updates > 1,
            self.objective: self.objective != "squared",
        }
        return ", ".join([f"{self.kind} from the {self.start}", *(x for x in told if told[x])])


BASE = Fit()  # the quickstart's, but for where it starts
FORK = replace(BASE, start=NEWEST)
HARD = replace(FORK, kind="hard", rate=1e-3)
EVERY = replace(HARD, shared_steps="every")
KINDS = ("exact", *(kind for kind in labels.TARGETS if kind != BASE.kind))
FITS = (
    # one change at a time
    BASE,
    *(replace(BASE, kind=kind) for kind in ("exact", "hard")),
    replace(BASE, num_rounds=3),
    replace(BASE, max_paths=64),
    replace(BASE, shared_steps="every"),
    replace(BASE, is_balanced=False),
    replace(BASE, weight_decay=0.3),
    replace(BASE, updates=3),
    replace(BASE, start=PREVIOUS),
    # the same from where it matters
    FORK,
    *(replace(FORK, kind=kind) for kind in KINDS),
    *(replace(FORK, kind="hard", objective=name) for name in ("binary", "bins", "pairwise")),
    replace(FORK, shared_steps="every"),
    # and together
    replace(EVERY, rate=2e-3, num_rounds=3),
    replace(EVERY, num_rounds=3),
    replace(EVERY, rate=5e-4, num_rounds=3),
    replace(HARD, num_rounds=3),
    *(replace(fit, updates=times) for fit in (HARD, EVERY) for times in (1, 3)),
    # pairs against points, at the rate and length that served best
    *(replace(HARD, objective=name, updates=3) for name in ("binary", "pairwise")),
)


class Texts(NamedTuple):
    """Beginnings of responses, whose truth is known."""

    rows: TokenRows
    problem_id: np.ndarray  # [E]
    is_right: np.ndarray  # [E] bool
    # [E], of the newest policy at the temperature of its search, where it has drawn them
    log_prob: np.ndarray | None = None


@dataclass(frozen=True)
class Bench:
    """A run, opened."""

    config: Config
    task: Task
    fns: Functions
    files: TreeFiles
    pretrained: Pretrained | None
    warm: Networks  # of iteration 0
    newest: Networks
    iteration: int  # theirs

    def encode(self, problems: Sequence[Problem]) -> Prompts:
        """Encode problems as one batch."""
        c = self.config.prompts
        encode_fn = make_encode(c, self.task.tokenizer, self.task.demonstrations)
        return encode(problems, encode_fn, c.max_prompt_tokens, len(problems))[0][0]

    @cached_property
    def rounds(self) -> dict[int, list[tuple[Prompts, Tree, np.ndarray]]]:
        """Stored trees by iteration, with their prompts and verdicts."""
        found: dict[int, list[tuple[Prompts, Tree, np.ndarray]]] = {}
        for place in self.files.training():
            tree = self.files.load(place)
            known = tree and self.files.load_labels(place, tree, self.config.labels.kind)
            if tree is None or known is None:
                raise UserError(f"{self.files.path(place)}: is not judged; let the run finish")
            # without the padding of the last batch
            is_problem = tree.problem_id >= 0
            tree, verdict = jax.tree.map(lambda x, at=is_problem: x[at], (tree, known.verdict))
            problems = [self.task.problems[int(i)] for i in tree.problem_id]
            shard = self.encode(problems), tree, verdict
            found.setdefault(place.iteration, []).append(shard)
        return found

    @cached_property
    def truths(self) -> dict[int, list[np.ndarray]]:
        """Of every row of the stored trees, in the order of `rounds`: [B R] bool."""
        return {i: [self.truth(*x) for x in shards] for i, shards in self.rounds.items()}

    def truth(self, prompts: Prompts, tree: Tree, verdict: np.ndarray) -> np.ndarray:
        """Say whether first moves can still win, and whether leaves have: [B R] bool."""
        is_right = verdict == Verdict.CORRECT
        for b, r in np.argwhere(is_first(tree)):
            text = self.task.tokenizer.decode(tree.tokens[b, r, : tree.length[b, r]].tolist())
            prompt = self.task.problems[int(tree.problem_id[b])].prompt
            is_right[b, r] = exact_value(prompt, text, bool(tree.is_finished[b, r])) > 0
        return is_right

    def shards(self, iteration: int, kind: str) -> list[Shard]:
        """Label the trees of an iteration."""
        config = replace(self.config.labels, kind="hard" if kind == "exact" else kind)
        made = []
        for k, (prompts, tree, verdict) in enumerate(self.rounds[iteration]):
            told = labels.label(tree, verdict, config)
            if kind == "exact":
                told = replace(
                    told, target=told.is_labelled * np.float32(self.truths[iteration][k])
                )
            made.append(Shard(prompts, tree, told))
        return made

    @cached_property
    def held_out(self) -> dict[str, Texts]:
        """What a PRM is judged by: dev problems, their legal first moves, and trees grown there."""
        problems, ids = self.task.dev, self.task.tokenizer
        prompts = self.encode(problems)
        keys = self.fns.problem_keys(self.iteration + 1, int(Purpose.SEARCH), prompts.problem_id)
        temperature = np.float32(self.config.search.temperature)
        tree = jax.device_get(self.fns.grow["train"](*self.newest, prompts, keys, temperature))
        verdict = labels.judge(tree, self.task.verify_tokens)
        is_right, first = self.truth(prompts, tree, verdict), is_first(tree)

        legal = [
            (
                [*prompts.tokens[k, : prompts.length[k]], *ids.encode(line)],
                p.id,
                exact_value(p.prompt, line),
            )
            for k, p in enumerate(problems)
            for line in (f"{write_move(move)}\n" for move in legal_moves(read_prompt(p.prompt)[0]))
        ]
        return {
            "legal first moves": texts(*zip(*legal, strict=True)),
            "drawn first moves": drawn_texts(prompts, tree, first, is_right),
            "leaves": drawn_texts(
                prompts, tree, trees.is_usable(tree) & np.isin(verdict, JUDGED), is_right
            ),
        }

    @cached_property
    def built(self) -> dict[PrmConfig, Functions]:
        """What was built so far, by how the PRM learns."""
        return {self.config.updates.prm: self.fns}

    def fns_of(self, fit: Fit) -> Functions:
        """Build the functions of a PRM that learns as a fit asks, once."""
        prm = self.config.updates.prm
        prm = replace(prm, objective=fit.objective, weight_decay=fit.weight_decay)
        if prm not in self.built:
            config = replace(self.config, updates=replace(self.config.updates, prm=prm))
            progress = Progress(0, sys.stderr)
            self.built[prm] = build(config, self.task, progress, self.pretrained)
        return self.built[prm]

    def fit(
        self, fit: Fit, num_updates: int, seed: int, learnt: np.ndarray | None = None
    ) -> Params:
        """Fit a PRM, and return its parameters; learnt: the ids of the problems, by default all."""
        # what it begins as, copied: an update takes its learner
        base, policy, prm = self.warm if fit.start == WARM else self.newest
        fns = self.fns_of(fit)
        learner = fns.init_prm(jax.tree.map(jnp.array, policy))
        if fit.start == PREVIOUS:
            learner = replace(learner, params=jax.tree.map(jnp.array, prm))
        # what it learns from
        newest = sorted(self.rounds)[-fit.num_rounds :]
        config = replace(
            self.config.datasets,
            paths_rounds=fit.num_rounds,
            max_paths_per_problem=fit.max_paths,
            shared_steps=fit.shared_steps,
            max_traces_per_problem=1,
        )
        rounds = {i: self.shards(i, fit.kind) for i in newest}
        if learnt is not None:
            rounds = {i: [only(shard, learnt) for shard in rounds[i]] for i in newest}
        _, paths, _ = datasets.collect(rounds, config, self.config.max_length, self.config.seed)
        # the fit itself
        num_updates = num_updates * fit.updates
        schedule = replace(self.config.updates.prm.fit, learning_rate=fit.rate)
        batches = datasets.batches(
            paths,
            num_updates,
            fit.batch_size,
            np.random.default_rng(seed),
            fit.is_balanced,
            order=updates.prm.OBJECTIVES[fit.objective].order,
            num_together=self.config.updates.prm.num_together,
        )
        learner, _ = fits.fit(
            partial(fns.update_prm, base),
            learner,
            batches,
            fits.learning_rates(schedule, num_updates),
        )
        return learner.params

    def rank(self, prm: Params | None) -> list[float]:
        """Return the AUROC within a problem of a PRM's values on all that is held out; without a
        PRM, of the policy's own probability.
        """
        shown = self.held_out.values()
        scores = [x.log_prob if prm is None else self.score(prm, x) for x in shown]
        return [
            np.nan if score is None else within(score, x.is_right, x.problem_id)
            for score, x in zip(scores, shown, strict=True)
        ]

    def score(self, prm: Params, shown: Texts) -> np.ndarray:
        """Return a PRM's values at the ends of texts."""
        read = partial(self.fns.read_values, self.newest.base, prm)
        # batches of an update's size, which all devices share
        values = read_all(read, shown.rows, self.config.updates.prm.batch_size)
        return values[np.arange(len(values)), (shown.rows.until > 0).sum(axis=1) - 1]


def open_bench(path: Path, progress: Progress) -> Bench:
    """Open a run. Raises UserError where it is none."""
    run = open_run(path)
    # a PRM begins as a policy here, whatever that of the run began as
    pretrained = run.pretrained and replace(run.pretrained, prm=None)
    fns = build(run.config, run.task, progress, pretrained)
    with run.checkpoints() as checkpoints:
        newest = checkpoints.choose(None)
        restore = partial(checkpoints.restore_networks, abstract=fns.abstract_state)
        warm, last = (restore(i, base=fns.init_base()) for i in (0, newest))
    return Bench(run.config, run.task, fns, run.trees, pretrained, warm, last, newest)


def is_first(tree: Tree) -> np.ndarray:
    """Mark the first moves, [B R] bool."""
    return trees.is_usable(tree) & (tree.parent < 0)


def only(shard: Shard, ids: np.ndarray) -> Shard:
    """Forget what is said of other problems than those of some ids."""
    told, is_kept = shard.labels, np.isin(shard.tree.problem_id, ids)[:, None]
    kept = replace(
        told,
        verdict=np.where(is_kept, told.verdict, Verdict.NONE),
        is_correct=told.is_correct & is_kept,
        is_labelled=told.is_labelled & is_kept,
    )
    return shard._replace(labels=kept)


def drawn_texts(prompts: Prompts, tree: Tree, is_shown: np.ndarray, is_right: np.ndarray) -> Texts:
    """Make rows of the texts up to some rows of trees, [B R] bool, with their truth, [B R] bool."""
    problem, row = np.nonzero(is_shown)
    paths = trees.row_paths(tree.parent, problem, row)
    tokens, length, _ = trees.sequences(tree, problem, paths, prompts)
    steps = np.where(paths >= 0, tree.log_prob[problem[:, None], paths], 0)
    pairs = zip(tokens, length, strict=True)
    made = texts([x[:n] for x, n in pairs], tree.problem_id[problem], is_right[is_shown])
    return made._replace(log_prob=steps.sum(axis=1))


def texts(
    tokens: Sequence[Sequence[int]],
    problem_id: Sequence[int] | np.ndarray,
    is_right: Sequence[bool] | np.ndarray,
) -> Texts:
    """Make rows of one text each."""
    length = np.array([len(x) for x in tokens])
    is_token = np.arange(length.max()) < length[:, None]
    ids = np.zeros(is_token.shape, np.int32)
    ids[is_token] = np.concatenate(tokens)
    none = np.zeros(is_token.shape, np.float32)
    rows = TokenRows(
        tokens=ids,
        position=np.where(is_token, np.arange(length.max(), dtype=np.int32), 0),
        until=np.where(is_token, length[:, None], 0).astype(np.int32),
        target=none,
        weight=none,
        group=np.full(ids.shape, -1, np.int32),
    )
    return Texts(rows, np.array(problem_id), np.array(is_right, bool))


def within(score: np.ndarray, is_right: np.ndarray, group: np.ndarray) -> float:
    """Return the mean AUROC of the groups that have both kinds."""
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return float(np.nanmean([auroc(score[at], is_right[at]) for at in parts]))


def tell_labels(bench: Bench) -> Iterator[str]:
    """Write the table of labels of first moves against the truth."""
    yield "| iteration | kind | moves | right | labelled | accuracy | AUROC | within a problem |"
    yield "| --- " * 8 + "|"
    for i, shards in bench.rounds.items():
        first = [is_first(tree) for _, tree, _ in shards]
        right = np.concatenate([x[at] for x, at in zip(bench.truths[i], first, strict=True)])
        group = np.concatenate(
            [
                np.broadcast_to(tree.problem_id[:, None], at.shape)[at]
                for (_, tree, _), at in zip(shards, first, strict=True)
            ]
        )
        for kind in labels.TARGETS:
            told: list[Labels] = [shard.labels for shard in bench.shards(i, kind)]
            target, is_labelled = (
                np.concatenate([getattr(x, name)[at] for x, at in zip(told, first, strict=True)])
                for name in ("target", "is_labelled")
            )
            at = is_labelled
            accuracy = np.mean((target[at] > 0) == right[at])
            figures = (
                accuracy,
                auroc(target[at], right[at]),
                within(target[at], right[at], group[at]),
            )
            start = f"| {i} | {kind} | {len(right)} | {right.mean():.3f} | {at.mean():.3f} | "
            yield start + " | ".join(f"{x:.3f}" for x in figures) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    known = {str(fit): fit for fit in FITS}
    parser.add_argument("--fits", nargs="*", choices=known, default=list(known), metavar="NAME")
    parser.add_argument("--updates", type=count, default=2000)
    parser.add_argument("--seeds", type=count, default=1)
    options = parser.parse_args()
    with Progress(0, sys.stderr) as progress:
        try:
            bench = open_bench(options.workdir, progress)
            if (name := bench.config.tasks.name) != "countdown":
                told = f"is a run of {name}; give one of countdown"
                raise UserError(f"--workdir {options.workdir}: {told}")
            print("\n".join(tell_labels(bench)), flush=True)
        except UserError as error:
            sys.exit(str(error))
        print("\n| PRM | " + " | ".join(bench.held_out) + " |\n" + "| --- " * 4 + "|")
        tell("the newest policy's own probability", [bench.rank(None)])
        tell("as stored, the newest", [bench.rank(bench.newest.prm)])
        for name in options.fits:
            seeds = range(options.seeds)
            tell(name, [bench.rank(bench.fit(known[name], options.updates, k)) for k in seeds])


def count(text: str) -> int:
    """Read a flag's whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def tell(name: str, found: Sequence[Sequence[float]]) -> None:
    """Print a row: the means over seeds, and between which ends they lie."""
    cells = [
        f"{np.mean(x):.3f}" + (f" ({min(x):.3f}-{max(x):.3f})" if len(x) > 1 else "")
        for x in zip(*found, strict=True)
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
