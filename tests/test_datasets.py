"""The replay and its batches, against plain Python over the trees that went in."""

from collections import Counter, defaultdict
from dataclasses import replace

import jax
import numpy as np
import pytest
from forest import Row, grow_at_random, plant

from jaxtrain import datasets, labels
from jaxtrain.datasets import DatasetsConfig
from jaxtrain.structs import Paths, Prompts, Traces, Verdict

C, W = Verdict.CORRECT, Verdict.WRONG
MAX_LENGTH, MAX_STEPS = 160, 30
SMALL = DatasetsConfig(max_traces=40, max_paths=60)
LARGE = DatasetsConfig(
    max_traces=2000, max_paths=4000, max_traces_per_problem=999, max_paths_per_problem=999
)


back_up = jax.jit(labels.back_up)


def shard_of(forest, problem_ids=None):
    """Label drawn trees, in a padded batch; the prompt of problem i is i + 1 tokens long (at most
    5).
    """
    padding = 12 - len(forest)
    problem_ids = [*(problem_ids or range(len(forest))), *[-1] * padding]
    tree, verdict = plant([*forest, *[[Row(-1)]] * padding], problem_ids, num_rows=60)
    ids = tree.problem_id
    length = np.minimum(ids + 1, 5)
    prompts = Prompts(
        tokens=np.where(np.arange(5) < length[:, None], 900 + ids[:, None], 777),
        length=length,
        problem_id=ids,
    )
    return prompts, tree, jax.device_get(back_up(tree, verdict))


def random_shard(rng, num_trees=12, num_rows=40, vocabulary=10**6):
    return shard_of([grow_at_random(rng, num_rows, vocabulary) for _ in range(num_trees)])


def add(replay, shards, iteration=1, config=SMALL, seed=0):
    return datasets.add(replay, shards, iteration, config, seed)


def empty(config=SMALL, max_length=MAX_LENGTH, max_steps=MAX_STEPS):
    return datasets.empty_replay(config, max_length, max_steps)


def used(rows):
    return np.flatnonzero(rows.iteration >= 0).tolist()


def text(rows, i):
    return rows.tokens[i, : rows.length[i]].tolist()


def source_texts(shard):
    """Every row's prompt and response, by hand: {(tree, row): tokens}."""
    prompts, tree, _ = shard
    found = {}
    for b in range(tree.parent.shape[0]):
        for r in range(tree.parent.shape[1]):
            row, response = r, []
            while row >= 0:
                response = tree.tokens[b, row, : tree.length[b, row]].tolist() + response
                row = tree.parent[b, row]
            found[b, r] = prompts.tokens[b, : prompts.length[b]].tolist() + response
    return found


def answers(*endings, score=0.5, verdict=C):
    return [Row(-1, (token,), verdict, score=score) for token in endings]


def test_every_trace_kept_was_judged_correct():
    rng = np.random.default_rng(0)
    replay, info, verified = empty(LARGE), {}, set()
    for iteration in range(1, 4):
        shard = random_shard(rng, vocabulary=4)
        texts = source_texts(shard)
        for b, r in np.argwhere(shard[2].verdict == C):
            verified.add((shard[1].problem_id[b], tuple(texts[b, r])))
        replay, info = add(replay, [shard], iteration, LARGE)
    traces = replay.traces
    kept = [(traces.problem_id[i], tuple(text(traces, i))) for i in used(traces)]
    assert len(kept) == info["num_traces"] > 100
    assert set(kept) == verified and len(kept) == len(verified)
    assert all(traces.prompt_length[i] == min(traces.problem_id[i] + 1, 5) for i in used(traces))


def test_traces_are_distinct_and_capped_by_score_then_length_then_text():
    rows = [
        Row(-1, (1,), C, score=0.1),
        Row(-1, (2, 2), C, score=0.9),
        Row(-1, (3,), C, score=0.9),
        Row(-1, (3,), C, score=0.9),
        Row(-1, (4,), C, score=0.2),
        Row(-1, (5,), W, score=1.0),
    ]
    config = replace(SMALL, max_traces_per_problem=3)
    for order in (rows, rows[::-1]):
        replay, info = add(empty(), [shard_of([order], [7])], config=config)
        kept = [text(replay.traces, i)[5:] for i in used(replay.traces)]
        assert kept == [[3], [2, 2], [4]]
        assert (
            info["num_traces_new"],
            info["num_traces_duplicate"],
            info["num_traces_over_cap"],
        ) == (3, 1, 1)


def test_a_problem_in_two_shards_is_one_problem():
    shards = [shard_of([answers(1, 2)], [3]), shard_of([answers(2, 4), answers(1)], [3, 5])]
    replay, info = add(empty(), shards)
    kept = Counter(replay.traces.problem_id[used(replay.traces)].tolist())
    assert kept == {3: 3, 5: 1} and info["num_traces_duplicate"] == 1


def test_all_wrong_round_adds_nothing():
    before, _ = add(empty(), [shard_of([answers(1)])], iteration=1)
    after, info = add(before, [shard_of([answers(1, 2, verdict=W)])], iteration=2)
    assert info["num_traces_new"] == info["num_paths_new"] == info["num_values_new"] == 0
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_no_shards_add_nothing():
    after, info = add(empty(), [])
    jax.tree.map(np.testing.assert_array_equal, empty(), after)
    assert info["value_histogram"] == [0] * 10


def test_every_label_weighs_on_exactly_one_path():
    rng = np.random.default_rng(1)
    shards = [random_shard(rng, num_rows=60), random_shard(rng)]
    prompts, tree, made = shards[1]
    shards[1] = (
        replace(prompts, problem_id=np.arange(12, 24)),
        replace(tree, problem_id=np.arange(12, 24)),
        made,
    )
    replay, info = add(empty(LARGE), shards, config=LARGE)
    expected = Counter()
    for shard in shards:
        texts = source_texts(shard)
        for b, r in np.argwhere(shard[2].is_labelled):
            key = shard[1].problem_id[b], tuple(texts[b, r]), round(float(shard[2].target[b, r]), 5)
            expected[key] += 1
    paths, weights = replay.paths, defaultdict(float)
    for i in used(paths):
        for d in range(MAX_STEPS):
            if paths.weight[i, d]:
                prefix = tuple(paths.tokens[i, : paths.step_end[i, d] + 1].tolist())
                weights[paths.problem_id[i], prefix, round(float(paths.target[i, d]), 5)] += float(
                    paths.weight[i, d]
                )
    assert weights == expected
    assert sum(expected.values()) == info["num_values"] == info["num_values_new"] > 300
    assert (
        info["num_values_left_out"]
        == info["num_paths_over_cap"]
        == info["num_paths_duplicate"]
        == 0
    )


def test_under_the_cap_weights_stay_single_and_what_is_left_out_is_counted():
    rng = np.random.default_rng(2)
    shard = random_shard(rng, vocabulary=3)
    config = replace(LARGE, max_paths_per_problem=3)
    replay, info = add(empty(LARGE), [shard], config=config)
    paths = replay.paths
    assert max(Counter(paths.problem_id[used(paths)].tolist()).values()) == 3
    assert set(np.unique(paths.weight).tolist()) == {0.0, 1.0}
    assert info["num_values"] + info["num_values_left_out"] == shard[2].is_labelled.sum()
    assert info["num_values_left_out"] > 0 and info["num_paths_duplicate"] > 0
    assert (paths.weight[used(paths)].sum(axis=1) > 0).all()


def test_cap_keeps_both_outcomes():
    rows = answers(*range(10)) + answers(100, verdict=W)
    for seed in range(5):
        replay, _ = add(
            empty(), [shard_of([rows])], config=replace(SMALL, max_paths_per_problem=2), seed=seed
        )
        assert sorted(replay.paths.is_correct[used(replay.paths)].tolist()) == [False, True]


def test_choice_under_the_cap_is_seeded_and_does_not_see_other_problems():
    config = replace(SMALL, max_paths_per_problem=3)
    target = answers(*range(10)) + answers(*range(20, 30), verdict=W)

    def chosen(forest, ids, seed):
        replay, _ = add(empty(), [shard_of(forest, ids)], config=config, seed=seed)
        return [
            text(replay.paths, i) for i in used(replay.paths) if replay.paths.problem_id[i] == 4
        ]

    alone = chosen([target], [4], 0)
    assert alone == chosen([answers(1, 2), target, answers(3)], [0, 4, 9], 0)
    assert any(alone != chosen([target], [4], seed) for seed in range(1, 6))


def test_a_path_ends_correct_only_with_a_correct_answer():
    rows = [
        Row(-1),
        Row(0, (1,), C),
        Row(0, (2,), W),
        Row(0, (3,), Verdict.UNPARSABLE),
        Row(0, (4,), Verdict.ERROR),
    ]
    replay, _ = add(empty(), [shard_of([rows])])
    paths = replay.paths
    assert {text(paths, i)[-1]: bool(paths.is_correct[i]) for i in used(paths)} == {
        1: True,
        2: False,
        3: False,
    }


def test_what_is_too_long_is_dropped_and_counted():
    rows = [Row(-1, (1, 1)), Row(0, (2, 2), C), Row(0, (3,), C), Row(0, (4,)), Row(3, (5,), C)]
    replay, info = add(empty(max_length=5, max_steps=2), [shard_of([rows], [1])])
    assert [text(replay.traces, i)[2:] for i in used(replay.traces)] == [[1, 1, 3]]
    assert (info["num_traces_too_long"], info["num_paths_too_long"]) == (2, 2)
    deep, info = add(empty(max_length=9, max_steps=2), [shard_of([rows], [1])])
    assert info["num_paths_too_long"] == 1 and info["num_paths_new"] == 2


def test_rounds_expire_and_every_row_remembers_its_iteration():
    config = replace(SMALL, traces_rounds=2, paths_rounds=1)
    replay, info = empty(), {}
    for iteration in range(5):
        replay, info = add(replay, [shard_of([answers(iteration)])], iteration, config)
        ages = replay.traces.iteration[used(replay.traces)].tolist()
        assert ages == [i for i in (iteration, iteration - 1) if i >= 0]
        assert [text(replay.traces, i)[-1] for i in used(replay.traces)] == ages
        assert replay.paths.iteration[used(replay.paths)].tolist() == [iteration]
    assert info["num_traces_expired"] == info["num_paths_expired"] == 1


def test_capacity_drops_the_oldest_rows_and_last_choices_first():
    config = DatasetsConfig(max_traces=5, max_paths=5, traces_rounds=9, paths_rounds=9)
    replay, _ = add(empty(config), [shard_of([answers(1, 2), answers(3)])], 1, config)
    replay, info = add(replay, [shard_of([answers(11, 12), answers(13)])], 2, config)
    for rows in (replay.traces, replay.paths):
        assert rows.iteration.tolist() == [2, 2, 2, 1, 1]
        # both keep their first choice of iteration 1
        assert sorted(rows.problem_id[3:].tolist()) == [0, 1]
    assert info["num_traces_over_capacity"] == info["num_paths_over_capacity"] == 1
    assert info["num_traces"] == info["num_paths"] == 5


def test_a_text_found_again_is_renewed_not_doubled():
    replay, _ = add(empty(), [shard_of([answers(1, 2)])], 1)
    replay, info = add(replay, [shard_of([answers(2, 3)])], 2)
    kept = {
        text(replay.traces, i)[-1]: int(replay.traces.iteration[i]) for i in used(replay.traces)
    }
    assert kept == {1: 1, 2: 2, 3: 2}
    assert info["num_traces_renewed"] == 1 and info["num_traces"] == 3


def test_counts_of_a_round_add_up():
    rng = np.random.default_rng(3)
    replay, info = empty(), {}
    for iteration in range(1, 5):
        before = replay
        shard = random_shard(rng, num_trees=8, vocabulary=4)
        replay, info = add(before, [shard], iteration)
        assert (shard[2].verdict == C).sum() + datasets.num_rows(before.traces) == info[
            "num_traces"
        ] + sum(
            info[f"num_traces_{why}"]
            for why in ("too_long", "duplicate", "over_cap", "renewed", "expired", "over_capacity")
        )
        assert sum(info["value_histogram"]) == shard[2].is_labelled.sum()
    assert info["num_traces_over_capacity"] > 0


def test_histogram_bins_are_tenths():
    # a clean solution of four steps: .25 .5 .75 1
    chain = [Row(-1), Row(0), Row(1), Row(2, (1,), C)]
    _, info = add(empty(), [shard_of([chain])])
    assert info["value_histogram"] == [0, 0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_add_changes_nothing_in_place_and_keeps_shapes_and_types():
    rng = np.random.default_rng(4)
    first, _ = add(empty(), [random_shard(rng)], 1)
    copy = jax.tree.map(np.copy, first)
    second, _ = add(first, [random_shard(rng)], 2)
    jax.tree.map(np.testing.assert_array_equal, first, copy)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), second) == jax.tree.map(
        lambda x: (x.shape, x.dtype), empty()
    )


def traces_of(num_traces):
    return datasets.demonstration_rows([([1], [i + 100]) for i in range(num_traces)], 4)[0]


def paths_of(outcomes):
    replay = datasets.empty_replay(DatasetsConfig(max_paths=len(outcomes) + 3), 4, 2)
    replay.paths.iteration[: len(outcomes)] = 1
    replay.paths.is_correct[: len(outcomes)] = outcomes
    replay.paths.length[: len(outcomes)] = np.arange(len(outcomes)) + 1
    return replay.paths


def test_policy_batches_show_every_row_once_an_epoch():
    batches = list(datasets.policy_batches(traces_of(10), 15, 4, np.random.default_rng(0)))
    assert len(batches) == 15 and all(len(batch.tokens) == 4 for batch in batches)
    seen = np.concatenate([batch.tokens[:, 1] for batch in batches]).reshape(6, 10)
    assert (np.sort(seen, axis=1) == np.arange(100, 110)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 6


@pytest.mark.parametrize(
    ("longest", "width"), [(1, 5), (5, 5), (6, 10), (15, 15), (16, 18), (18, 18)]
)
def test_a_batch_is_as_wide_as_the_quarters_that_its_longest_row_needs(longest, width):
    pairs = [([1], list(range(2, length + 1))) for length in (1, longest)]
    rows, _ = datasets.demonstration_rows(pairs, 18)
    (batch,) = datasets.policy_batches(rows, 1, 2, np.random.default_rng(0))
    assert batch.tokens.shape == (2, width)
    assert sorted(batch.length.tolist()) == [1, longest]
    assert max(batch.tokens.max(axis=1)) == longest


def test_batches_larger_than_the_data_repeat_it():
    (batch,) = datasets.policy_batches(traces_of(3), 1, 8, np.random.default_rng(0))
    assert sorted(Counter(batch.tokens[:, 1].tolist()).values()) == [2, 3, 3]


def test_batches_follow_the_seed():
    one, same, other = (
        [
            b.tokens.tolist()
            for b in datasets.policy_batches(traces_of(9), 5, 4, np.random.default_rng(seed))
        ]
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_no_rows_no_batches():
    replay = empty()
    assert datasets.num_rows(replay.traces) == datasets.num_rows(replay.paths) == 0
    rng = np.random.default_rng(0)
    assert not list(datasets.policy_batches(replay.traces, 3, 4, rng))
    assert not list(datasets.prm_batches(replay.paths, 3, 4, rng, True))


@pytest.mark.parametrize("batch_size", [8, 7])
def test_balanced_batches_hold_half_of_each_outcome(batch_size):
    paths = paths_of([True] * 3 + [False] * 17)
    for batch in datasets.prm_batches(paths, 12, batch_size, np.random.default_rng(0), True):
        assert (batch.length <= 3).sum() == batch_size // 2
        assert batch.length.shape == (batch_size,) and batch.length.all()


@pytest.mark.parametrize(
    ("outcomes", "is_balanced"),
    [([True] * 6, True), ([False] * 6, True), ([True] + [False] * 5, False)],
)
def test_prm_batches_of_one_kind_or_unbalanced_are_plain_epochs(outcomes, is_balanced):
    batches = datasets.prm_batches(paths_of(outcomes), 4, 3, np.random.default_rng(0), is_balanced)
    seen = np.concatenate([batch.length for batch in batches]).reshape(2, 6)
    assert (np.sort(seen, axis=1) == np.arange(1, 7)).all()


def lengths_by_pool(batches):
    """Lengths [pools POOL M] of batches, every batch sorted."""
    lengths = np.sort([batch.length for batch in batches], axis=1)
    return lengths.reshape(-1, datasets.POOL, lengths.shape[1])


def test_grouped_policy_batches_are_epochs_whose_pools_are_split_by_length():
    rows, _ = datasets.demonstration_rows([([1], list(range(2, 2 + n))) for n in range(64)], 64)
    pools = lengths_by_pool(datasets.policy_batches(rows, 32, 4, np.random.default_rng(0), True))
    assert (np.sort(pools.reshape(2, 64), axis=1) == np.arange(1, 65)).all(), (
        "two epochs of two pools"
    )
    for pool in pools:
        assert (np.sort(pool.flatten()).reshape(pool.shape) == pool[np.argsort(pool[:, 0])]).all()
        assert (np.diff(pool[:, 0]) < 0).any(), "the batches are shuffled"


def test_grouped_batches_of_few_rows_hold_each_as_often_as_they_must():
    rows, _ = datasets.demonstration_rows([([1], list(range(2, 2 + n))) for n in range(6)], 64)
    for batch in datasets.policy_batches(rows, 16, 3, np.random.default_rng(0), True):
        assert len(set(batch.length.tolist())) == 3
    paths = paths_of([True] * 2 + [False] * 6)
    for batch in datasets.prm_batches(paths, 16, 4, np.random.default_rng(0), True, True):
        assert len(set(batch.length.tolist())) == 4


def test_grouped_prm_batches_stay_balanced_and_sort_each_half():
    paths = paths_of([True] * 16 + [False] * 48)
    pools = lengths_by_pool(
        datasets.prm_batches(paths, 16, 4, np.random.default_rng(0), True, True)
    )
    for half in (pools[..., :2], pools[..., 2:]):  # the correct are the shorter ones
        assert ((half <= 16).all() or (half > 16).all()) and len(half) == 2
        for pool in half:
            assert (
                np.sort(pool.flatten()).reshape(pool.shape) == pool[np.argsort(pool[:, 0])]
            ).all()


def test_lengths_tell_text_from_padding_whatever_the_ids():
    rows = [Row(-1, (0, 5, 0)), Row(0, (0, 0), C)]  # 0 is the padding id too
    replay, _ = add(empty(), [shard_of([rows], [0])])
    (batch,) = datasets.policy_batches(replay.traces, 1, 1, np.random.default_rng(0))
    assert (batch.prompt_length.tolist(), batch.length.tolist()) == ([1], [6])
    (batch,) = datasets.prm_batches(replay.paths, 1, 1, np.random.default_rng(0), True)
    assert batch.step_end[0, :2].tolist() == [3, 5] and batch.weight[0].sum() == 2


def test_demonstrations_become_traces_and_long_ones_are_counted():
    rows, num_left_out = datasets.demonstration_rows(
        [([1, 2], [3, 0]), ([1, 2, 3], [4, 5]), ([9], [8])], 4
    )
    assert num_left_out == 1 and datasets.num_rows(rows) == 2
    assert [text(rows, i) for i in range(2)] == [[1, 2, 3, 0], [9, 8]]
    assert rows.prompt_length.tolist() == [2, 1]


def test_rows_of_both_kinds_index_inside_the_sequence():
    replay, _ = add(empty(LARGE), [random_shard(np.random.default_rng(5))], config=LARGE)
    traces: Traces = replay.traces
    paths: Paths = replay.paths
    kept = used(traces)
    assert (traces.prompt_length[kept] < traces.length[kept]).all()
    kept = used(paths)
    assert (paths.step_end[kept].max(axis=1) < paths.length[kept]).all()
