"""Walks over the rows of a tree, for every stage that reads one.

The rows of a `Tree` hold single steps; judging, training data and reports need what lies between
the prompt and a row. These are host functions of whole batches of rows: a round has tens of
thousands of them.
"""

from __future__ import annotations

import numpy as np

from jaxtrain.structs import Array, Kind, Prompts, Tree


def is_usable(tree: Tree) -> Array:
    """Mark the rows that may be judged and labelled, `[B R]` bool: real steps, no duplicates, no
    set-aside tree.
    """
    is_step = (tree.kind == Kind.CANDIDATE) | (tree.kind == Kind.ROLLOUT)
    return is_step & (tree.is_ok & (tree.problem_id >= 0))[:, None]


def row_paths(parent: Array, problem: np.ndarray, row: np.ndarray) -> np.ndarray:
    """List the rows from the first step down to each given row.

    parent `[B R]`, problem `[K]` and row `[K]` (indices into B and R). Returns `[K depth]` int32,
    the first step in column 0, -1 past the end.
    """
    parent, upwards, current = np.asarray(parent), [], np.asarray(row, np.int32)
    while (current >= 0).any():
        upwards.append(current)
        current = np.where(current >= 0, parent[problem, current], -1).astype(np.int32)
    if not upwards:
        return np.full((len(row), 0), -1, np.int32)
    rows = np.stack(upwards, axis=1)
    column = (rows >= 0).sum(axis=1)[:, None] - 1 - np.arange(rows.shape[1])
    return np.where(column >= 0, np.take_along_axis(rows, np.maximum(column, 0), axis=1), -1)


def sequences(
    tree: Tree, problem: np.ndarray, rows: np.ndarray, prompts: Prompts | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concatenate the steps of paths, behind their prompts if these are given.

    problem `[K]`, rows `[K depth]` as `row_paths` gives them. Returns tokens `[K W]` int32 with
    zeros past the end, length `[K]` int32, and step_end `[K depth]` int32, the index of each step's
    last token; past the last step it repeats, so it can always be indexed with. W is the longest
    length.
    """
    all_tokens = np.asarray(tree.tokens)
    step_length = np.where(rows >= 0, np.asarray(tree.length)[problem[:, None], rows], 0)
    start = (
        np.zeros(len(problem), np.int32) if prompts is None else np.asarray(prompts.length)[problem]
    )
    end = start[:, None] + np.cumsum(step_length, axis=1)
    length = end[:, -1] if rows.shape[1] else start
    tokens = np.zeros((len(problem), length.max(initial=0)), np.int32)
    if prompts is not None:
        _write(tokens, np.zeros_like(start), np.asarray(prompts.tokens)[problem], start)
    for depth in range(rows.shape[1]):
        steps = all_tokens[problem, rows[:, depth]]
        _write(tokens, end[:, depth] - step_length[:, depth], steps, step_length[:, depth])
    return tokens, length.astype(np.int32), (end - 1).astype(np.int32)


def _write(tokens: np.ndarray, start: np.ndarray, pieces: np.ndarray, length: np.ndarray) -> None:
    lane, position = np.nonzero(np.arange(pieces.shape[1]) < length[:, None])
    tokens[lane, start[lane] + position] = pieces[lane, position]
