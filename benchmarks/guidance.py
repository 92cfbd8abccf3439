"""How good must a PRM be for search to pay? Countdown under values whose quality is known.

    python -m benchmarks.guidance --workdir RUN [--problems 256] [--to FILE.json]

RUN is a run of configs/quickstart.py or configs/countdown4.py; its newest policy writes. Every
score is the exact value of what was written (`benchmarks.countdown_values`) with noise, so an AUROC
is asked for and met. The PRM of the run reads along and is charged, and its word is not heard.
Problems are those of the dev split, and all that is compared has the same temperature.

A search stands beside best-of-k at the k that costs nearest to what it cost itself: tokens of both
networks, each counted where it was computed. Intervals are of 95 %, over problems.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.countdown_values import Noise, sigma_of_auroc, told_values, values
from jaxtrain import evaluation, labels, sharding, trees
from jaxtrain.boundaries import make_tables
from jaxtrain.build import abstract_state
from jaxtrain.commuting import make_form
from jaxtrain.errors import UserError
from jaxtrain.evaluation import Answered, Strategy, is_solved
from jaxtrain.evaluation.strategies import mean_costs
from jaxtrain.files import write_json
from jaxtrain.intervals import mean_interval, wilson
from jaxtrain.keys import Purpose, problem_keys
from jaxtrain.nn.reader import make_reader
from jaxtrain.nn.transformer import Transformer
from jaxtrain.nn.weights import decode_weights
from jaxtrain.prompts import encode, make_encode
from jaxtrain.runs import open_run
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.search.config import WideningConfig
from jaxtrain.search.frontier_rules import BeamConfig, DvtsConfig
from jaxtrain.search.mcts_star import MctsStarConfig
from jaxtrain.search.prior_rules import GumbelConfig
from jaxtrain.structs import Array, Params, Prompts, Tree
from jaxtrain.tasks import Task

NUM_CANDIDATES = 10  # of a node, where all are drawn at once
BEST_OF_K, VOTE = (evaluation.STRATEGIES[name] for name in ("best_of_k", "self_consistency"))
SEARCH = evaluation.STRATEGIES["search"]


class Level(NamedTuple):
    """AUROC of first and inner moves, and of leaves."""

    moves: float
    leaves: float

    @property
    def noise(self) -> Array:
        """Deviations of first moves, inner moves and leaves [3] float32."""
        sigmas = sigma_of_auroc(self.moves), sigma_of_auroc(self.leaves)
        return jnp.array([sigmas[0], *sigmas], jnp.float32)

    def __str__(self) -> str:
        return "exact" if self.moves == 1 else f"{self.moves:.2f} / {self.leaves:.2f}"


LEAVES_ONLY = [Level(0.76, 0.92), Level(0.53, 0.92)]  # where leaves are known better


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=256)
    told = "samples whose tokens the searches get"
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 18], help=told)
    told = "AUROCs of all moves alike, of which 1 is exact"
    parser.add_argument("--aurocs", type=float, nargs="+", default=[1.0, 0.92, 0.84], help=told)
    parser.add_argument("--temperature", type=float, default=1.0, help="of all methods")
    parser.add_argument("--to", type=Path, help="a file for the figures, as JSON")
    options = parser.parse_args()
    rows = []
    try:
        game = open_game(options.workdir, options.problems)
    except UserError as error:
        sys.exit(str(error))
    levels = [*(Level(area, area) for area in options.aurocs), *LEAVES_ONLY]
    for row in measure(game, options.samples, levels, options.temperature):
        rows.append(row)
        print(f"{row.method}, {row.level}: {cell(row)}", file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    if options.to:
        figures = [asdict(row) | {"level": row.level._asdict()} for row in rows]
        about = {"problems": len(game.keys), "temperature": options.temperature}
        write_json(options.to, about | {"moves": game.num_moves, "rows": figures})


@dataclass(frozen=True)
class Row:
    """What one method came to at one level. Shares, with their intervals."""

    method: str
    level: Level
    tokens: float  # of both networks, the mean of a problem
    accuracy: float
    low: float
    high: float
    k: int = 0  # samples of best-of-k that cost as much
    rival: float = 0.0  # its accuracy
    gain: float = 0.0  # over it, in pairs
    gain_low: float = 0.0
    gain_high: float = 0.0


def searches(k: int, depth: int, temperature: float) -> dict[str, SearchConfig]:
    """Name every search, of as many steps as `k` samples of `depth` steps have."""
    # One lane behind a prefix: no candidate is drawn in vain.
    base = SearchConfig(num_candidates=NUM_CANDIDATES, num_lanes=1, temperature=temperature)
    base = replace(base, mcts_star=MctsStarConfig(num_rollout_steps=0))
    turns = max(2, round(k * depth / NUM_CANDIDATES))
    # All but DFS look about before they go down: where several moves matter, they open more nodes
    # of fewer candidates, or no trace would end. So Gumbel halves as many as it can see through.
    tree = replace(
        base,
        num_simulations=turns * (depth - 1),
        num_candidates=NUM_CANDIDATES // (depth - 1),
        gumbel=GumbelConfig(num_considered=max(1, turns * (depth - 1) // depth)),
    )
    # Half as many candidates at a time: those that widening adds, or four and a rollout.
    half = replace(base, num_simulations=2 * turns, num_candidates=NUM_CANDIDATES // 2)
    more = WideningConfig(max_candidates=4 * half.num_candidates, num_more=half.num_candidates)
    paper = replace(
        half,
        num_candidates=half.num_candidates - 1,
        candidates="independent",
        ended_leaves="revisited",
        mcts_star=MctsStarConfig(),
    )
    narrow, wide = replace(base, num_candidates=k // 2), replace(base, num_candidates=1)
    return {
        f"MCTS* as in the paper, T {2 * turns}": paper,
        f"MCTS* distinct and closed, T {tree.num_simulations}": tree,
        f"the same with widening, T {2 * turns}": replace(half, widening=more),
        f"PUCT, T {tree.num_simulations}": replace(tree, method="puct"),
        f"Gumbel, T {tree.num_simulations}": replace(tree, method="gumbel"),
        f"best-first, T {tree.num_simulations}": replace(tree, method="best_first"),
        f"DFS, T {turns}": replace(base, method="dfs", num_simulations=turns),
        f"DVTS, 2 of {k // 2}": replace(narrow, method="dvts", dvts=DvtsConfig(2)),
        f"beam, 2 of {k // 2}": replace(narrow, method="beam", beam=BeamConfig(2)),
        f"beam, {k} of 1": replace(wide, method="beam", beam=BeamConfig(k)),
    }


@dataclass(frozen=True)
class Game:
    """A run, opened: its policy, and problems that it did not train on."""

    task: Task
    prompts: Prompts
    keys: Array
    params: tuple[Params, Params]
    make_grow: Callable[[SearchConfig], Any]
    num_moves: int

    def grow(
        self, config: SearchConfig, levels: Sequence[Level]
    ) -> Iterator[tuple[Level, Tree, np.ndarray]]:
        """Search with values of every level: (level, trees, verdicts on them)."""
        grow_fn, (policy, prm) = jax.jit(self.make_grow(config)), self.params
        for level in levels:
            told = policy, prm | {"noise": level.noise}
            tree = grow_fn(*told, self.prompts, self.keys, jnp.float32(config.temperature))
            tree = jax.device_get(tree)
            yield level, tree, labels.judge(tree, self.task.verify_tokens)

    def score_leaves(self, tree: Tree, level: Level) -> Tree:
        """Score the finished traces of a tree anew."""
        problem, row = np.nonzero(tree.is_finished)
        paths = trees.row_paths(tree.parent, problem, row)
        tokens, length, _ = trees.sequences(tree, problem, paths)
        decode, pairs = self.task.tokenizer.decode, zip(tokens, length, strict=True)
        texts = [decode(x[:n].tolist()) for x, n in pairs]
        prompts = [self.task.problems[i].prompt for i in tree.problem_id[problem].tolist()]
        score, noise = np.array(tree.score), Noise(*level.noise.tolist())
        score[problem, row] = values(prompts, texts, [True] * len(texts), noise)
        return replace(tree, score=score)


def open_game(path: Path, num_problems: int) -> Game:
    """Open a run. Raises UserError where it is none, or plays no Countdown."""
    run = open_run(path)
    config = run.config
    if config.tasks.name != "countdown":
        raise UserError(f"--workdir {path}: is a run of {config.tasks.name}; give one of countdown")
    task = run.task
    model = Transformer(config.model, config.model.vocab_size or task.tokenizer.vocab_size)
    abstract = abstract_state(config, model, sharding.make_mesh(config.sharding))
    with run.checkpoints() as checkpoints:
        networks = checkpoints.restore_networks(checkpoints.choose(None), abstract)

    # The problems, and how they are read.
    encode_fn = make_encode(config.prompts, task.tokenizer, task.demonstrations)
    problems = task.dev[:num_problems]
    (prompts,), _ = encode(problems, encode_fn, config.prompts.max_prompt_tokens, len(problems))
    trace, ids = config.trace, task.tokenizer
    tables = make_tables(ids.token_bytes, ids.end_ids, trace.boundary, trace.answer)
    form = make_form(ids.token_bytes, task.commuting)

    def grower(searching: SearchConfig) -> Any:
        searching = replace(searching, chunk_tokens=trace.max_step_tokens)
        reader = make_reader((model, model), tables, trace, searching.chunk, form)
        return make_grow(searching, trace.max_steps, told_values(reader, task.tokenizer.decode))

    cast = partial(decode_weights, config.model, is_split=False)
    prm = networks.prm | {"backbone": cast(networks.prm["backbone"])}
    keys = problem_keys(config.seed, jnp.int32(0), jnp.int32(Purpose.SOLVE), prompts.problem_id)
    return Game(task, prompts, keys, (cast(networks.policy), prm), grower, config.trace.max_steps)


def measure(
    game: Game, budgets: Sequence[int], levels: Sequence[Level], temperature: float
) -> Iterator[Row]:
    """Let every method answer at every level, for the tokens of so many samples each."""
    # The samples are the same at every level, and their scores are not.
    num_samples = 2 * max(budgets) + 4  # a vote pays for one network
    config = SearchConfig(method="sample", num_samples=num_samples, temperature=temperature)
    ((_, tree, verdict),) = game.grow(config, levels[:1])
    answer_fn, sampled = game.task.answer_tokens, {}
    for level in levels:
        scored = game.score_leaves(tree, level)
        found = evaluation.read_samples(scored, verdict, game.prompts.length, answer_fn)
        sampled[level] = found
        for k in budgets:
            yield row_of(f"best-of-k, k {k}", level, BEST_OF_K, found, k)
            same = nearest(mean_costs(VOTE, found), mean_costs(BEST_OF_K, found)[k - 1])
            yield row_of(f"self-consistency, k {same}", level, VOTE, found, same, found)
    for k in budgets:
        for name, config in searches(k, game.num_moves, temperature).items():
            for level, tree, verdict in game.grow(config, levels):
                found = evaluation.read_choice(tree, verdict, answer_fn)
                yield row_of(name, level, SEARCH, found, 1, sampled[level])


def row_of(
    method: str,
    level: Level,
    strategy: Strategy,
    found: Answered,
    k: int,
    samples: Answered | None = None,
) -> Row:
    """Tell what a strategy made of its first k traces, beside best-of-k of the samples."""
    solved = is_solved(strategy, found, k)
    tokens = float(mean_costs(strategy, found)[k - 1])
    share = float(solved.mean()), *wilson(int(solved.sum()), len(solved))
    if samples is None:
        return Row(method, level, tokens, *share)
    same = nearest(mean_costs(BEST_OF_K, samples), tokens)
    rival = is_solved(BEST_OF_K, samples, same)
    gain = solved.astype(float) - rival
    ends = mean_interval(gain, np.arange(len(gain)))
    return Row(method, level, tokens, *share, same, float(rival.mean()), float(gain.mean()), *ends)


def nearest(costs: np.ndarray, tokens: float) -> int:
    """Return the number of samples whose cost is nearest to so many tokens."""
    return int(np.argmin(np.abs(costs - tokens))) + 1


def pays_from(rows: Sequence[Row]) -> float:
    """Return the AUROC of all moves alike from which a method beats best-of-k: where its gain
    crosses zero first below exact values, between two levels on the line that joins them. NaN where
    it loses with exact values, the least of the levels where it wins at all of them.
    """
    alike = (row for row in rows if row.level.moves == row.level.leaves)
    points = sorted((row.level.moves, row.gain) for row in alike)[::-1]
    if points[0][1] <= 0:
        return math.nan
    for (above, won), (below, lost) in pairwise(points):
        if lost <= 0:
            return below + (above - below) * lost / (lost - won)
    return points[-1][0]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Write a line of Markdown for every method, a column for every level."""
    levels, methods = list(dict.fromkeys(row.level for row in rows)), {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    yield f"| method | {' | '.join(map(str, levels))} | pays from |"
    yield "| --- " * (len(levels) + 2) + "|"
    for method, found in methods.items():
        start = f"{pays_from(found):.2f}" if found[0].k else ""
        yield f"| {method} | {' | '.join(map(cell, found))} | {start} |"


def cell(row: Row) -> str:
    """Tell accuracy, half of its interval, tokens and the gain over best-of-k, in points."""
    share = f"{100 * row.accuracy:.1f} ±{50 * (row.high - row.low):.1f} @ {row.tokens:.0f}"
    return f"{share}, {100 * row.gain:+.1f}" if row.k else share


if __name__ == "__main__":
    main()
