"""Training rows as a view of the trees of the rounds in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import chex
import jax
import numpy as np
from flax import struct

from jaxtrain import trees
from jaxtrain.errors import require_at_least
from jaxtrain.keys import Purpose, host_rng
from jaxtrain.structs import Examples, Shard, TokenRows, Verdict

Rounds = Mapping[int, Sequence[Shard]]
Counts = dict[str, Any]
# shard -> (tree of the batch [K], row of the tree [K])
LeavesFn = Callable[[Shard], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class DatasetsConfig:
    """What is kept of the trees, and for how long."""

    max_traces_per_problem: int = 4  # distinct correct traces that a problem gives in one iteration
    # PRM paths that a problem gives in one iteration, correct and wrong in turn
    max_paths_per_problem: int = 16
    traces_rounds: int = 3  # newest iterations whose traces are learnt from
    # newest iterations whose paths are learnt from; old values are those of an old policy
    paths_rounds: int = 2
    # half of every PRM batch from paths that end correct, half from the others
    balance_outcomes: bool = True
    # rows of like length in a batch: less padding to compute, batches mixed less
    group_by_length: bool = False

    def __post_init__(self):
        require_at_least(1, "datasets", self, "max_traces_per_problem", "max_paths_per_problem")
        require_at_least(1, "datasets", self, "traces_rounds", "paths_rounds")


@struct.dataclass
class Texts:
    """K texts of a round, each from its prompt to a leaf of a tree."""

    problem_id: np.ndarray  # [K] int32
    tokens: np.ndarray  # [K L] int32
    prompt_length: np.ndarray  # [K] int32
    length: np.ndarray  # [K] int32
    # of the labelled steps, at the last token of each:
    row_id: np.ndarray  # [K L] int64, the number of a row over all trees; -1: no step ends here
    depth: np.ndarray  # [K L] int32, steps before it
    target: np.ndarray  # [K L] float32
    score: np.ndarray  # [K] float32, the PRM's of the leaf
    is_correct: np.ndarray  # [K] bool, ends with a correct answer


def num_rounds(config: DatasetsConfig) -> int:
    """Return how many of the newest iterations must have kept their trees."""
    return max(config.traces_rounds, config.paths_rounds)


def num_rows(examples: Examples) -> int:
    """Count the rows; a fit on none is to be skipped, and said to be."""
    return len(examples.problem_id)


def collect(
    rounds: Rounds, config: DatasetsConfig, max_length: int, seed: int
) -> tuple[Examples, Examples, Counts]:
    """Make the rows of both networks from the labelled trees of the newest rounds.

    rounds: shards by iteration, among them the newest one; a problem may occur in several shards.
    max_length: L; what is longer is left out. seed (not negative) decides, with
    the iteration and the problem id, which paths stay under the cap.

    Returns the policy's examples, the PRM's, and counts of what was kept and dropped. The host
    holds at most 20 L bytes a row, and rounds x problems x cap rows. In the counts, "new" is of the
    newest iteration, and so is why something was dropped. `value_histogram` is its labelled targets
    in ten bins of 0.1; `targets_by_depth`, [mean, count] for steps 1, 2, ..., is of all values that
    the PRM learns.
    """
    rounds = jax.device_get(rounds)
    newest = max(rounds)
    for prompts, tree, labels in (shard for shards in rounds.values() for shard in shards):
        chex.assert_equal_shape([tree.parent, labels.verdict, labels.target])
        chex.assert_trees_all_equal(prompts.problem_id, tree.problem_id)
    targets = [shard.labels.target[shard.labels.is_labelled] for shard in rounds[newest]]
    histogram, _ = np.histogram(np.concatenate([*targets, np.zeros(0)]), bins=10, range=(0, 1))
    traces, trace_counts = _collect_traces(rounds, newest, config, max_length)
    paths, path_counts = _collect_paths(rounds, newest, config, max_length, seed)
    return traces, paths, {**trace_counts, **path_counts, "value_histogram": histogram.tolist()}


def demonstrations(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
) -> tuple[Examples, int]:
    """Make the policy's examples for the warm start, of iteration 0 and problem -1.

    pairs: ids of prompts and of responses, the end id included. Returns the examples and the number
    of demonstrations left out because they are longer than max_length.
    """
    fitting = [
        (len(prompt), [*prompt, *response])
        for prompt, response in pairs
        if len(prompt) + len(response) <= max_length
    ]
    prompt_length = np.array([start for start, _ in fitting], np.int32)
    length = np.array([len(text) for _, text in fitting], np.int32)
    tokens = np.zeros((len(fitting), max_length), np.int32)
    for row, (_, text) in zip(tokens, fitting, strict=True):
        row[: len(text)] = text
    rows = _rows(
        tokens, length, np.zeros(tokens.shape), _is_response(tokens, prompt_length, length)
    )
    nowhere = np.full(len(fitting), -1, np.int32)
    return Examples(rows, nowhere, nowhere + 1, nowhere >= 0), len(pairs) - len(fitting)


def _collect_traces(
    rounds: Rounds, newest: int, config: DatasetsConfig, max_length: int
) -> tuple[Examples, Counts]:
    """Take the best traces of every problem; a text found again counts for its newest round."""
    parts, counts, seen, num_renewed = [], {}, set(), 0
    for i in _newest(rounds, newest, config.traces_rounds):
        found, num_leaves = _read(rounds[i], _correct_leaves, max_length)
        groups = _rank_traces(found)
        chosen = _interleave(groups, config.max_traces_per_problem)
        texts = _texts(found)
        fresh = [k for k in chosen if texts[k] not in seen]
        num_renewed += len(chosen) - len(fresh)
        seen |= {texts[k] for k in chosen}
        kept = _take(found, fresh)
        weight = _is_response(kept.tokens, kept.prompt_length, kept.length)
        parts.append(_examples(kept, i, np.zeros(weight.shape), weight))
        if i == newest:
            counts = _fates("traces", num_leaves, found, groups, chosen)
    examples = _concatenate(parts)
    return examples, {
        "num_traces": num_rows(examples),
        **counts,
        "num_traces_renewed": num_renewed,
    }


def _collect_paths(
    rounds: Rounds, newest: int, config: DatasetsConfig, max_length: int, seed: int
) -> tuple[Examples, Counts]:
    """Take paths of every problem by chance, correct and wrong in turn; each label weighs once."""
    parts, counts, values, num_labelled = [], {}, [], 0
    for i in _newest(rounds, newest, config.paths_rounds):
        found, num_leaves = _read(rounds[i], _labelled_leaves, max_length)
        groups = _rank_paths(found, i, seed)
        chosen = _interleave(groups, config.max_paths_per_problem)
        kept = _take(found, chosen)
        is_learnt = _is_first(kept.row_id)
        parts.append(_examples(kept, i, np.where(is_learnt, kept.target, 0), is_learnt))
        values.append((kept.target[is_learnt], kept.depth[is_learnt]))
        if i == newest:
            num_labelled = sum(int(shard.labels.is_labelled.sum()) for shard in rounds[i])
            counts = _fates("paths", num_leaves, found, groups, chosen)
    examples = _concatenate(parts)
    value, depth = (np.concatenate(column) for column in zip(*values, strict=True))
    return examples, {
        "num_paths": num_rows(examples),
        "num_paths_correct": int(examples.is_correct.sum()),
        **counts,
        "num_values": len(value),
        "num_values_new": len(values[0][0]),
        "num_values_left_out": num_labelled - len(values[0][0]),
        "targets_by_depth": _by_depth(value, depth),
    }


def _newest(rounds: Rounds, newest: int, num: int) -> list[int]:
    """The newest iterations that are there, newest first."""
    return [i for i in sorted(rounds, reverse=True) if newest - num < i <= newest]


def _correct_leaves(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    problem, row = np.nonzero(shard.labels.verdict == Verdict.CORRECT)
    return problem, row


def _labelled_leaves(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    is_labelled, parent = shard.labels.is_labelled, shard.tree.parent
    has_labelled_child = np.zeros_like(is_labelled)
    problem, row = np.nonzero(is_labelled & (parent >= 0))
    has_labelled_child[problem, parent[problem, row]] = True
    problem, row = np.nonzero(is_labelled & ~has_labelled_child)
    return problem, row


def _read(shards: Sequence[Shard], leaves_fn: LeavesFn, max_length: int) -> tuple[Texts, int]:
    """Read the texts that end in certain leaves and fit. Returns them and the number of leaves."""
    parts, num_leaves, num_ids = [_no_texts(max_length)], 0, 0
    for shard in shards:
        prompts, tree, labels = shard
        leaves = leaves_fn(shard)
        rows = trees.row_paths(tree.parent, *leaves)
        texts = trees.sequences(tree, leaves[0], rows, prompts)
        fits = np.flatnonzero(texts[1] <= max_length)
        problem, row, rows, tokens, length, step_end = (x[fits] for x in (*leaves, rows, *texts))

        # what is known of steps stands at their last tokens
        tokens = _resize(tokens, max_length)
        row_id, depth, target = (
            np.full(tokens.shape, -1),
            np.zeros_like(tokens),
            np.zeros(tokens.shape),
        )
        k, d = np.nonzero((rows >= 0) & labels.is_labelled[problem[:, None], rows])
        at, place = (k, step_end[k, d]), (problem[k], rows[k, d])
        row_id[at] = num_ids + np.ravel_multi_index(place, tree.parent.shape)
        depth[at], target[at] = d, labels.target[place]
        parts.append(
            Texts(
                problem_id=tree.problem_id[problem].astype(np.int32),
                tokens=tokens,
                prompt_length=prompts.length[problem].astype(np.int32),
                length=length,
                row_id=row_id,
                depth=depth,
                target=target.astype(np.float32),
                score=tree.score[problem, row],
                is_correct=labels.verdict[problem, row] == Verdict.CORRECT,
            )
        )
        num_leaves += len(leaves[0])
        num_ids += tree.parent.size
    return _concatenate(parts), num_leaves


def _no_texts(max_length: int) -> Texts:
    one, each = np.zeros(0, np.int32), np.zeros((0, max_length), np.int32)
    ids, values = each.astype(np.int64), each.astype(np.float32)
    return Texts(one, each, one, one, ids, each, values, one.astype(np.float32), one > 0)


def _rank_traces(found: Texts) -> list[list[int]]:
    """Distinct texts of each problem: highest score, then shortest, then by text, whatever the
    order of the rows.
    """
    texts = _texts(found)
    groups: dict[int, dict[bytes, int]] = defaultdict(dict)
    for i in sorted(range(len(texts)), key=lambda i: (-found.score[i], found.length[i], texts[i])):
        problem_id, text = texts[i]
        groups[problem_id].setdefault(text, i)
    return [list(group.values()) for group in groups.values()]


def _rank_paths(found: Texts, iteration: int, seed: int) -> list[list[int]]:
    """Distinct texts of each problem in random order, correct and wrong in turn, so that a cap
    keeps both.
    """
    groups: dict[int, dict[bytes, int]] = defaultdict(dict)
    for i, (problem_id, text) in enumerate(_texts(found)):
        groups[problem_id].setdefault(text, i)
    ranked = []
    for problem_id, group in groups.items():
        members = host_rng(seed, Purpose.PATHS, iteration, problem_id).permutation(
            list(group.values())
        )
        is_correct = found.is_correct[members]
        turn = np.where(is_correct, np.cumsum(is_correct), np.cumsum(~is_correct))
        ranked.append(members[np.lexsort((~is_correct, turn))].tolist())
    return ranked


def _interleave(groups: list[list[int]], cap: int) -> list[int]:
    """The first choice of every group, then every second choice, up to cap."""
    return [group[turn] for turn in range(cap) for group in groups if turn < len(group)]


def _fates(
    name: str, num_leaves: int, found: Texts, groups: list[list[int]], chosen: list[int]
) -> Counts:
    """Count what became of the leaves of a round."""
    num_found, num_distinct = len(found.length), sum(map(len, groups))
    return {
        f"num_{name}_new": len(chosen),
        f"num_{name}_too_long": num_leaves - num_found,
        f"num_{name}_duplicate": num_found - num_distinct,
        f"num_{name}_over_cap": num_distinct - len(chosen),
    }


def _by_depth(value: np.ndarray, depth: np.ndarray) -> list[list]:
    """Average values by their depth: [mean, count] each, the mean None where there is none."""
    counts, sums = np.bincount(depth), np.bincount(depth, value)
    return [[s / n if n else None, int(n)] for s, n in zip(sums, counts, strict=True)]


def _is_first(row_id: np.ndarray) -> np.ndarray:
    """Mark where a row occurs for the first time; negative ids are no rows."""
    is_first, at = np.zeros(row_id.shape, bool), np.nonzero(row_id >= 0)
    _, first = np.unique(row_id[at], return_index=True)
    is_first[at[0][first], at[1][first]] = True
    return is_first


def _is_response(tokens: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    place = np.arange(tokens.shape[1])
    return (place >= start[:, None]) & (place < end[:, None])


def _examples(found: Texts, iteration: int, target: np.ndarray, weight: np.ndarray) -> Examples:
    rows = _rows(found.tokens, found.length, target, weight)
    made_in = np.full(len(found.length), iteration, np.int32)
    return Examples(rows, found.problem_id, made_in, found.is_correct)


def _rows(
    tokens: np.ndarray, length: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> TokenRows:
    """Make rows of one text each."""
    place = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    is_token = place < length[:, None]
    return TokenRows(
        tokens=tokens,
        position=np.where(is_token, place, 0),
        segment=is_token.astype(np.int32),
        target=target.astype(np.float32),
        weight=weight.astype(np.float32),
        group=np.full(len(tokens), -1, np.int32),
    )


def _texts(found: Texts) -> list[tuple[int, bytes]]:
    return [
        (int(problem_id), tokens[:length].tobytes())
        for problem_id, tokens, length in zip(
            found.problem_id, found.tokens, found.length, strict=True
        )
    ]


def _take(texts: Texts, index: np.ndarray | list[int]) -> Texts:
    index = np.asarray(index, np.int64)
    return jax.tree.map(lambda field: field[index], texts)


def _concatenate(parts: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)


def _resize(matrix: np.ndarray, width: int) -> np.ndarray:
    missing = max(0, width - matrix.shape[1])
    return np.pad(matrix[:, :width], ((0, 0), (0, missing)))
