"""Walks over trees: paths and texts against loops in plain Python."""

from dataclasses import replace

import numpy as np
from forest import Row, grow_at_random, plant

from jaxtrain import trees
from jaxtrain.structs import Kind, Prompts


def path_by_hand(rows: list[Row], row: int) -> list[int]:
    path = []
    while row >= 0:
        path.insert(0, row)
        row = rows[row].parent
    return path


def test_paths_and_sequences_equal_a_walk_by_hand():
    rng = np.random.default_rng(0)
    forest = [grow_at_random(rng, 30) for _ in range(5)]
    tree, _ = plant(forest)
    texts = [rng.integers(0, 9, size=n).tolist() for n in (1, 4, 2, 6, 3)]
    prompts = Prompts(
        # the padding must never show
        tokens=np.array([text + [8] * (6 - len(text)) for text in texts]),
        length=np.array([len(text) for text in texts]),
        problem_id=np.arange(5),
    )
    problem, row = np.nonzero(tree.kind != Kind.EMPTY)
    rows = trees.row_paths(tree.parent, problem, row)
    tokens, length, step_end = trees.sequences(tree, problem, rows, prompts)
    bare_tokens, bare_length, bare_end = trees.sequences(tree, problem, rows)
    for k, (b, r) in enumerate(zip(problem, row, strict=True)):
        path = path_by_hand(forest[b], int(r))
        assert rows[k, : len(path)].tolist() == path and (rows[k, len(path) :] == -1).all()
        response = [token for i in path for token in forest[b][i].tokens]
        assert bare_tokens[k, : bare_length[k]].tolist() == response
        assert tokens[k, : length[k]].tolist() == texts[b] + response
        assert not tokens[k, length[k] :].any() and not bare_tokens[k, bare_length[k] :].any()
        ends = np.cumsum([len(forest[b][i].tokens) for i in path]) - 1
        assert bare_end[k, : len(path)].tolist() == ends.tolist()
        assert step_end[k, : len(path)].tolist() == (ends + len(texts[b])).tolist()
        assert (step_end[k] < length[k]).all()


def test_no_rows_give_no_sequences():
    tree, _ = plant([[Row(-1)]])
    none = np.zeros(0, np.int64)
    rows = trees.row_paths(tree.parent, none, none)
    tokens, length, step_end = trees.sequences(tree, none, rows)
    assert (tokens.shape, length.shape, step_end.shape) == ((0, 0), (0,), (0, 0))


def test_usable_rows_are_the_real_steps_of_real_problems():
    rows = [Row(-1, kind=kind) for kind in Kind]
    tree, _ = plant([rows, rows, rows], problem_ids=[0, -1, 2])
    tree = replace(tree, is_ok=np.array([True, True, False]))
    expected = [kind in (Kind.CANDIDATE, Kind.ROLLOUT) for kind in Kind]
    assert trees.is_usable(tree).tolist() == [expected, *[[False] * len(Kind)] * 2]
