"""Stage 4 of 7. Labels in, Replay out, and from it batches of few shapes.

Two datasets come of the same trees. *Traces* teach the policy: distinct, verified correct, capped
per problem, because without a cap the easy problems would dominate. *Paths* teach the PRM: one
causal pass over a path scores all its prefixes, so labels are packed by path, and a step that paths
share carries its weight on the first of them only.

The replay is bounded. Rounds too old are dropped first, then, over capacity, the oldest rows;
within a round the last choices of every problem go before the first choice of any. Everything
dropped is counted. All of this is host numpy: texts are compared, and the results are small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import chex
import jax
import numpy as np

from jaxtrain import trees
from jaxtrain.errors import require_at_least
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.structs import (
    Array,
    Labels,
    Paths,
    PolicyBatch,
    PrmBatch,
    Prompts,
    Replay,
    Traces,
    Tree,
    Verdict,
)

Rows = TypeVar("Rows", Traces, Paths)
Shard = tuple[Prompts, Tree, Labels]
POOL = 8  # batches that are grouped by length together


@dataclass(frozen=True)
class DatasetsConfig:
    """What is kept of the trees, and for how long."""

    max_traces_per_problem: int = 4  # distinct correct traces that a problem gives in one iteration
    # PRM paths that a problem gives in one iteration, correct and wrong in turn
    max_paths_per_problem: int = 16
    traces_rounds: int = 3  # newest iterations whose traces stay
    # newest iterations whose paths stay; old values are those of an old policy
    paths_rounds: int = 2
    max_traces: int = 8192  # capacity of the replay
    max_paths: int = 16384  # capacity of the replay
    # half of every PRM batch from paths that end correct, half from the others
    balance_outcomes: bool = True
    # rows of like length in a batch: less padding to compute, batches mixed less
    group_by_length: bool = False

    def __post_init__(self):
        require_at_least(
            1, "datasets", self, *(name for name in vars(self) if name.startswith("max_"))
        )
        require_at_least(1, "datasets", self, "traces_rounds", "paths_rounds")


def empty_replay(config: DatasetsConfig, max_length: int, max_steps: int) -> Replay:
    """Make a replay without rows: numpy arrays of the configured capacities, L = max_length and D =
    max_steps.
    """
    return Replay(
        traces=_empty_traces(config.max_traces, max_length),
        paths=_empty_paths(config.max_paths, max_length, max_steps),
    )


def num_rows(rows: Traces | Paths) -> int:
    """Count the rows in use; a fit on none is to be skipped, and said to be."""
    return int((rows.iteration >= 0).sum())


def add(
    replay: Replay, shards: Sequence[Shard], iteration: int, config: DatasetsConfig, seed: int
) -> tuple[Replay, dict[str, Any]]:
    """Add one iteration's labelled trees to the replay and drop what is too old or too much.

    shards are `(prompts, tree, labels)` batches; a problem may occur in several. seed (not
    negative) decides, with the iteration and the problem id, which paths stay under the cap.
    Returns a new replay of the same shapes and counts of what was kept and dropped;
    `value_histogram` is the labelled targets of this iteration in ten bins of 0.1.
    """
    replay, shards = jax.device_get((replay, shards))
    for prompts, tree, labels in shards:
        chex.assert_equal_shape([tree.parent, labels.verdict, labels.target])
        chex.assert_trees_all_equal(prompts.problem_id, tree.problem_id)
    traces, trace_counts = _add_traces(replay.traces, shards, iteration, config)
    paths, path_counts = _add_paths(replay.paths, shards, iteration, config, seed)
    targets = [labels.target[labels.is_labelled] for _, _, labels in shards]
    histogram, _ = np.histogram(np.concatenate([*targets, np.zeros(0)]), bins=10, range=(0, 1))
    info = trace_counts | path_counts | {"value_histogram": histogram.tolist()}
    return Replay(traces=traces, paths=paths), info


def demonstration_rows(
    demonstrations: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
) -> tuple[Traces, int]:
    """Make traces of encoded demonstrations, for the warm start; they are never part of the replay.

    demonstrations are pairs of prompt ids and response ids, the end id included. Returns rows of
    iteration 0 and problem -1, and the number of demonstrations left out because they are longer
    than max_length.
    """
    fitting = [
        (prompt, response)
        for prompt, response in demonstrations
        if len(prompt) + len(response) <= max_length
    ]
    rows = _empty_traces(len(fitting), max_length)
    rows.iteration[:] = 0
    for i, (prompt, response) in enumerate(fitting):
        rows.prompt_length[i] = len(prompt)
        rows.length[i] = len(prompt) + len(response)
        rows.tokens[i, : rows.length[i]] = [*prompt, *response]
    return rows, len(demonstrations) - len(fitting)


def policy_batches(
    traces: Traces,
    num_updates: int,
    batch_size: int,
    rng: np.random.Generator,
    group_by_length: bool = False,
) -> Iterator[PolicyBatch]:
    """Yield batches for a fixed number of policy updates; none if there are no traces.

    Rows are shuffled anew for every epoch; each comes once before any comes again. A batch is as
    wide as a quarter, a half, three quarters or all of L, whichever its longest row needs, so at
    most four programs are compiled. With group_by_length, every POOL batches are sorted by length,
    split anew and shuffled, across the ends of epochs too.
    """
    rows = np.flatnonzero(traces.iteration >= 0)
    streams = [_epochs(rows, num_updates, batch_size, rng)]
    for picked in _joined(streams, traces.length if group_by_length else None, rng):
        length = traces.length[picked]
        yield PolicyBatch(_cut(traces.tokens[picked], length), traces.prompt_length[picked], length)


def prm_batches(
    paths: Paths,
    num_updates: int,
    batch_size: int,
    rng: np.random.Generator,
    balance_outcomes: bool,
    group_by_length: bool = False,
) -> Iterator[PrmBatch]:
    """Yield batches for a fixed number of PRM updates; none if there are no paths.

    With balance_outcomes, half of each batch (the smaller half of an odd one) comes from paths that
    end correct and the rest from the others, each kind shuffled by itself; if one kind is missing,
    all comes from the other. With group_by_length, the two halves are sorted each by itself, as in
    `policy_batches`.
    """
    is_used = paths.iteration >= 0
    kinds = [
        np.flatnonzero(is_used & paths.is_correct),
        np.flatnonzero(is_used & ~paths.is_correct),
    ]
    if balance_outcomes and all(map(len, kinds)):
        sizes = [batch_size // 2, batch_size - batch_size // 2]
    else:
        kinds, sizes = [np.flatnonzero(is_used)], [batch_size]
    streams = [
        _epochs(rows, num_updates, size, rng) for rows, size in zip(kinds, sizes, strict=True)
    ]
    for picked in _joined(streams, paths.length if group_by_length else None, rng):
        length = paths.length[picked]
        yield PrmBatch(
            tokens=_cut(paths.tokens[picked], length),
            length=length,
            step_end=paths.step_end[picked],
            target=paths.target[picked],
            weight=paths.weight[picked],
        )


def _empty_traces(capacity: int, max_length: int) -> Traces:
    return Traces(
        tokens=np.zeros((capacity, max_length), np.int32),
        prompt_length=np.zeros(capacity, np.int32),
        length=np.zeros(capacity, np.int32),
        problem_id=np.full(capacity, -1, np.int32),
        iteration=np.full(capacity, -1, np.int32),
    )


def _empty_paths(capacity: int, max_length: int, max_steps: int) -> Paths:
    return Paths(
        tokens=np.zeros((capacity, max_length), np.int32),
        length=np.zeros(capacity, np.int32),
        step_end=np.zeros((capacity, max_steps), np.int32),
        target=np.zeros((capacity, max_steps), np.float32),
        weight=np.zeros((capacity, max_steps), np.float32),
        is_correct=np.zeros(capacity, bool),
        problem_id=np.full(capacity, -1, np.int32),
        iteration=np.full(capacity, -1, np.int32),
    )


def _add_traces(
    old: Traces, shards: Sequence[Shard], iteration: int, config: DatasetsConfig
) -> tuple[Traces, dict[str, int]]:
    empty = _empty_traces(*old.tokens.shape)
    max_length = empty.tokens.shape[1]
    gathered = [_gather_traces(*shard, iteration, max_length) for shard in shards]
    found = _concatenate([_empty_traces(0, max_length), *(rows for rows, _ in gathered)])
    groups = _rank_traces(found, np.concatenate([np.zeros(0), *(score for _, score in gathered)]))
    chosen = _interleave(groups, config.max_traces_per_problem)
    new = _take(found, chosen)
    new_texts = set(_texts(new))
    is_used, is_recent = old.iteration >= 0, old.iteration > iteration - config.traces_rounds
    is_renewed = is_used & np.array([text in new_texts for text in _texts(old)], bool)
    is_kept = is_used & is_recent & ~is_renewed
    merged = _merge(new, old, is_kept, empty)
    num_correct = sum(int((labels.verdict == Verdict.CORRECT).sum()) for _, _, labels in shards)
    num_distinct = sum(map(len, groups))
    return merged, {
        "num_traces": num_rows(merged),
        "num_traces_new": int((merged.iteration == iteration).sum()),
        "num_traces_too_long": num_correct - num_rows(found),
        "num_traces_duplicate": num_rows(found) - num_distinct,
        "num_traces_over_cap": num_distinct - len(chosen),
        "num_traces_renewed": int((is_recent & is_renewed).sum()),
        "num_traces_expired": int((is_used & ~is_recent).sum()),
        "num_traces_over_capacity": len(chosen) + int(is_kept.sum()) - num_rows(merged),
    }


def _add_paths(
    old: Paths, shards: Sequence[Shard], iteration: int, config: DatasetsConfig, seed: int
) -> tuple[Paths, dict[str, int]]:
    empty = _empty_paths(*old.tokens.shape, max_steps=old.step_end.shape[1])
    max_length, max_steps = empty.tokens.shape[1], empty.step_end.shape[1]
    gathered, num_leaves, num_ids = [], 0, 0
    for shard in shards:
        rows, row_id, num_shard_leaves = _gather_paths(*shard, iteration, max_length, max_steps)
        gathered.append((rows, np.where(row_id >= 0, row_id + num_ids, -1)))
        num_leaves += num_shard_leaves
        num_ids += shard[1].parent.size
    found = _concatenate([_empty_paths(0, max_length, max_steps), *(rows for rows, _ in gathered)])
    row_id = np.concatenate([np.zeros((0, max_steps), np.int64), *(ids for _, ids in gathered)])
    groups = _rank_paths(found, iteration, seed)
    chosen = _interleave(groups, config.max_paths_per_problem)
    new = replace(_take(found, chosen), weight=_first_weights(row_id[chosen]))
    is_used, is_recent = old.iteration >= 0, old.iteration > iteration - config.paths_rounds
    merged = _merge(new, old, is_used & is_recent, empty)
    num_labelled = sum(int(labels.is_labelled.sum()) for _, _, labels in shards)
    num_distinct = sum(map(len, groups))
    return merged, {
        "num_paths": num_rows(merged),
        "num_paths_correct": int(merged.is_correct.sum()),
        "num_paths_new": int((merged.iteration == iteration).sum()),
        "num_paths_too_long": num_leaves - num_rows(found),
        "num_paths_duplicate": num_rows(found) - num_distinct,
        "num_paths_over_cap": num_distinct - len(chosen),
        "num_paths_expired": int((is_used & ~is_recent).sum()),
        "num_paths_over_capacity": len(chosen)
        + int((is_used & is_recent).sum())
        - num_rows(merged),
        "num_values": int(merged.weight.sum()),
        "num_values_new": int(merged.weight[merged.iteration == iteration].sum()),
        "num_values_left_out": num_labelled - int(new.weight.sum()),
    }


def _gather_traces(
    prompts: Prompts, tree: Tree, labels: Labels, iteration: int, max_length: int
) -> tuple[Traces, Array]:
    """All correct traces that fit, [K], and their scores [K]."""
    problem, row = np.nonzero(labels.verdict == Verdict.CORRECT)
    rows = trees.row_paths(tree.parent, problem, row)
    tokens, length, _ = trees.sequences(tree, problem, rows, prompts)
    traces = Traces(
        tokens=_resize(tokens, max_length, 0),
        prompt_length=prompts.length[problem].astype(np.int32),
        length=length,
        problem_id=tree.problem_id[problem].astype(np.int32),
        iteration=np.full(len(row), iteration, np.int32),
    )
    fits = np.flatnonzero(length <= max_length)
    return _take(traces, fits), tree.score[problem, row][fits]


def _gather_paths(
    prompts: Prompts, tree: Tree, labels: Labels, iteration: int, max_length: int, max_steps: int
) -> tuple[Paths, np.ndarray, int]:
    """Paths [K] to the labelled leaves that fit, their rows [K D] in the flat trees (-1: none),
    number of leaves.
    """
    has_labelled_child = np.zeros_like(labels.is_labelled)
    problem, row = np.nonzero(labels.is_labelled & (tree.parent >= 0))
    has_labelled_child[problem, tree.parent[problem, row]] = True
    problem, row = np.nonzero(labels.is_labelled & ~has_labelled_child)
    rows = trees.row_paths(tree.parent, problem, row)
    tokens, length, step_end = trees.sequences(tree, problem, rows, prompts)
    fits = np.flatnonzero((length <= max_length) & ((rows >= 0).sum(axis=1) <= max_steps))
    rows = _resize(rows, max_steps, -1)
    is_labelled = (rows >= 0) & labels.is_labelled[problem[:, None], rows]
    paths = Paths(
        tokens=_resize(tokens, max_length, 0),
        length=length,
        step_end=_resize(step_end, max_steps, 0),
        target=np.where(is_labelled, labels.target[problem[:, None], rows], 0).astype(np.float32),
        weight=is_labelled.astype(np.float32),
        is_correct=labels.verdict[problem, row] == Verdict.CORRECT,
        problem_id=tree.problem_id[problem].astype(np.int32),
        iteration=np.full(len(row), iteration, np.int32),
    )
    row_id = np.where(is_labelled, problem[:, None] * tree.parent.shape[1] + rows, -1)
    return _take(paths, fits), row_id[fits], len(row)


def _rank_traces(traces: Traces, score: np.ndarray) -> list[list[int]]:
    """Distinct texts of each problem: highest score, then shortest, then by text, whatever the
    order of the rows.
    """
    texts = _texts(traces)
    groups: dict[int, dict[bytes, int]] = defaultdict(dict)
    for i in sorted(range(len(texts)), key=lambda i: (-score[i], traces.length[i], texts[i])):
        problem_id, text = texts[i]
        groups[problem_id].setdefault(text, i)
    return [list(group.values()) for group in groups.values()]


def _rank_paths(paths: Paths, iteration: int, seed: int) -> list[list[int]]:
    """Distinct texts of each problem in random order, correct and wrong in turn, so that a cap
    keeps both.
    """
    groups: dict[int, dict[bytes, int]] = defaultdict(dict)
    for i, (problem_id, text) in enumerate(_texts(paths)):
        groups[problem_id].setdefault(text, i)
    ranked = []
    for problem_id, group in groups.items():
        members = host_rng(seed, Purpose.PATHS, iteration, problem_id).permutation(
            list(group.values())
        )
        is_correct = paths.is_correct[members]
        turn = np.where(is_correct, np.cumsum(is_correct), np.cumsum(~is_correct))
        ranked.append(members[np.lexsort((~is_correct, turn))].tolist())
    return ranked


def _interleave(groups: list[list[int]], cap: int) -> list[int]:
    """The first choice of every group, then every second choice, up to cap: what is cut at the end,
    is cut fairly.
    """
    return [group[turn] for turn in range(cap) for group in groups if turn < len(group)]


def _first_weights(row_id: np.ndarray) -> np.ndarray:
    """1 where a row occurs for the first time, else 0; negative ids are no rows."""
    ids, first = np.unique(row_id.ravel(), return_index=True)
    weight = np.zeros(row_id.size, np.float32)
    weight[first[ids >= 0]] = 1
    return weight.reshape(row_id.shape)


def _epochs(
    rows: np.ndarray, num_updates: int, batch_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    waiting = rows[:0]
    for _ in range(num_updates if len(rows) else 0):
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(rows)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _joined(
    streams: Sequence[Iterator[np.ndarray]], length: np.ndarray | None, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Join the streams' parts to batches; with `length`, by row, every POOL batches hold rows of
    like length each.

    A row that a pool holds twice comes again behind the others: it must not stand beside itself.
    """
    batches = zip(*streams, strict=True)
    while pool := list(islice(batches, POOL)):
        order = np.arange(len(pool))
        if length is not None:
            rows = [np.concatenate(parts) for parts in zip(*pool, strict=True)]
            ordered = [row[np.lexsort((length[row], _turns(row)))] for row in rows]
            pool = list(zip(*(np.split(row, len(pool)) for row in ordered), strict=True))
            order = rng.permutation(len(pool))
        yield from (np.concatenate(pool[k]) for k in order)


def _turns(rows: np.ndarray) -> np.ndarray:
    """Count for every entry how many before it are the same."""
    return np.array([np.sum(rows[:k] == row) for k, row in enumerate(rows)])


def _cut(tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Drop the columns that no row reaches, by quarters: L is for the longest, most batches are far
    shorter.
    """
    quarter = -(-tokens.shape[1] // 4)
    return tokens[:, : quarter * -(-int(length.max()) // quarter)]


def _texts(rows: Traces | Paths) -> list[tuple[int, bytes]]:
    return [
        (int(problem_id), tokens[:length].tobytes())
        for problem_id, tokens, length in zip(
            rows.problem_id, rows.tokens, rows.length, strict=True
        )
    ]


def _take(rows: Rows, index: np.ndarray | list[int]) -> Rows:
    index = np.asarray(index, np.int64)
    return jax.tree.map(lambda field: field[index], rows)


def _concatenate(parts: list[Rows]) -> Rows:
    return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)


def _merge(new: Rows, old: Rows, is_kept: Array, empty: Rows) -> Rows:
    """New rows, then the old ones kept (newest first already), then empty ones, to the length of
    empty.
    """
    joined = _concatenate([new, _take(old, np.flatnonzero(np.asarray(is_kept))), empty])
    return _take(joined, np.arange(len(empty.iteration)))


def _resize(matrix: np.ndarray, width: int, fill: int) -> np.ndarray:
    missing = max(0, width - matrix.shape[1])
    return np.pad(matrix[:, :width], ((0, 0), (0, missing)), constant_values=fill)
