"""Small trees for tests, drawn as lists of rows or grown at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxtrain.structs import Kind, Tree, Verdict


@dataclass(frozen=True)
class Row:
    """One sampled step; a verdict other than NONE makes it a finished trace."""

    parent: int
    tokens: tuple[int, ...] = (7,)
    verdict: Verdict = Verdict.NONE
    kind: Kind = Kind.CANDIDATE
    score: float = 0.5


NUM_TOKENS = 4  # of a step, at most


def plant(
    forest: list[list[Row]], problem_ids: list[int] | None = None, num_rows: int = 0
) -> tuple[Tree, np.ndarray]:
    """Make the `Tree` of a list of trees and the verdicts `[B R]`.

    Problem ids are 0, 1, ... unless given. Empty rows fill every tree up to the largest, or to
    num_rows if that is more.
    """
    num_problems, num_rows = len(forest), max(num_rows, *map(len, forest))
    shape = (num_problems, num_rows)
    parent, kind, length = (np.zeros(shape, np.int32) for _ in range(3))
    tokens, score = np.zeros((*shape, NUM_TOKENS), np.int32), np.zeros(shape, np.float32)
    verdict = np.zeros(shape, np.int32)
    for b, rows in enumerate(forest):
        for r, row in enumerate(rows):
            parent[b, r], kind[b, r], length[b, r] = row.parent, row.kind, len(row.tokens)
            tokens[b, r, : len(row.tokens)] = row.tokens
            score[b, r], verdict[b, r] = row.score, row.verdict
    zeros = np.zeros(num_problems, np.int32)
    tree = Tree(
        problem_id=np.array(range(num_problems) if problem_ids is None else problem_ids, np.int32),
        parent=parent,
        kind=kind,
        tokens=tokens,
        length=length,
        score=score,
        log_prob=np.zeros(shape, np.float32),
        visits=np.zeros(shape, np.int32),
        value=score,
        is_ended=verdict != Verdict.NONE,
        is_finished=verdict != Verdict.NONE,
        chosen=zeros - 1,
        is_ok=np.ones(num_problems, bool),
        num_simulations=zeros,
        num_wasted=zeros,
        num_closed=zeros,
        num_exhausted=zeros,
        policy_tokens=zeros,
        prm_tokens=zeros,
        lane_tokens=zeros,
    )
    return tree, verdict


def grow_at_random(rng: np.random.Generator, num_rows: int, vocabulary: int = 50) -> list[Row]:
    """Grow a tree with every verdict, unfinished branches, rollouts, duplicates and empty rows."""
    rows: list[Row] = []
    for r in range(num_rows):
        open_rows = [
            i for i, row in enumerate(rows) if row.verdict == Verdict.NONE and row.kind in (1, 2)
        ]
        parent = int(rng.choice([-1, *open_rows[-6:]]))
        kind = Kind(rng.choice(4, p=[0.05, 0.6, 0.25, 0.1]))
        verdict = (
            Verdict(rng.choice(5, p=[0.5, 0.15, 0.2, 0.08, 0.07]))
            if kind in (1, 2) and r > 2
            else Verdict.NONE
        )
        tokens = tuple(rng.integers(0, vocabulary, size=rng.integers(1, NUM_TOKENS + 1)).tolist())
        rows.append(Row(parent, tokens, verdict, kind, float(rng.random())))
    return rows
