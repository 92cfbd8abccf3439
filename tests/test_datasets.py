"""Training rows and their batches, against plain Python over the trees that went in."""

from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from forest import Row, grow_at_random, plant

from jaxtrain import datasets, labels, learning
from jaxtrain.config import Config
from jaxtrain.datasets import DatasetsConfig
from jaxtrain.errors import UserError
from jaxtrain.labels import LabelsConfig
from jaxtrain.structs import Prompts, Shard, Verdict
from jaxtrain.updates import FitConfig, PolicyConfig, PrmConfig, UpdatesConfig

C, W = Verdict.CORRECT, Verdict.WRONG
MAX_LENGTH = 160
CAPPED = DatasetsConfig()
LARGE = DatasetsConfig(max_traces_per_problem=999, max_paths_per_problem=999)


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
    return Shard(prompts, tree, labels.label(tree, verdict, LabelsConfig("quality")))


def relabelled(shard, kind):
    return shard._replace(labels=labels.label(shard.tree, shard.labels.verdict, LabelsConfig(kind)))


def random_shard(rng, num_trees=12, num_rows=40, vocabulary=10**6):
    return shard_of([grow_at_random(rng, num_rows, vocabulary) for _ in range(num_trees)])


def collect(*rounds, config=CAPPED, seed=0, max_length=MAX_LENGTH):
    """Collect from the shards of iterations 1, 2, ...: (traces, paths, counts)."""
    return datasets.collect(dict(enumerate(rounds, start=1)), config, max_length, seed)


def length_of(rows):
    return (rows.until > 0).sum(axis=1)


def text(examples, i):
    return examples.rows.tokens[i, : length_of(examples.rows)[i]].tolist()


def endings(examples):
    return [text(examples, i)[-1] for i in range(datasets.num_rows(examples))]


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
    rounds = [[random_shard(rng, vocabulary=4)] for _ in range(3)]
    verified = set()
    for (shard,) in rounds:
        texts = source_texts(shard)
        for b, r in np.argwhere(shard.labels.verdict == C):
            verified.add((shard.tree.problem_id[b], tuple(texts[b, r])))
    traces, _, counts = collect(*rounds, config=LARGE)
    kept = [(traces.problem_id[i], tuple(text(traces, i))) for i in range(counts["num_traces"])]
    assert datasets.num_rows(traces) == len(kept) > 100
    assert set(kept) == verified and len(kept) == len(verified)
    assert traces.is_correct.all()


def test_the_policy_learns_the_response_alone():
    traces, _, _ = collect([random_shard(np.random.default_rng(0))])
    rows, length = traces.rows, length_of(traces.rows)
    place, start = np.arange(MAX_LENGTH), np.minimum(traces.problem_id + 1, 5)[:, None]
    is_response = (place >= start) & (place < length[:, None])
    np.testing.assert_array_equal(rows.weight, is_response)
    assert is_response.any(axis=1).all() and not rows.target.any()


def test_a_row_is_one_text_in_its_places():
    for examples in collect([random_shard(np.random.default_rng(0))])[:2]:
        rows, length = examples.rows, length_of(examples.rows)
        is_token = np.arange(MAX_LENGTH) < length[:, None]
        np.testing.assert_array_equal(rows.until, is_token * length[:, None])
        np.testing.assert_array_equal(rows.position, is_token * np.arange(MAX_LENGTH))
        assert not rows.weight[~is_token].any() and not rows.weight[:, 0].any()


def test_traces_are_distinct_and_capped_by_score_then_length_then_text():
    rows = [
        Row(-1, (1,), C, score=0.1),
        Row(-1, (2, 2), C, score=0.9),
        Row(-1, (3,), C, score=0.9),
        Row(-1, (3,), C, score=0.9),
        Row(-1, (4,), C, score=0.2),
        Row(-1, (5,), W, score=1.0),
    ]
    config = replace(CAPPED, max_traces_per_problem=3)
    for order in (rows, rows[::-1]):
        traces, _, counts = collect([shard_of([order], [7])], config=config)
        assert [text(traces, i)[5:] for i in range(3)] == [[3], [2, 2], [4]]
        assert (
            counts["num_traces_new"],
            counts["num_traces_duplicate"],
            counts["num_traces_over_cap"],
        ) == (3, 1, 1)


def test_a_problem_in_two_shards_is_one_problem():
    shards = [shard_of([answers(1, 2)], [3]), shard_of([answers(2, 4), answers(1)], [3, 5])]
    traces, _, counts = collect(shards)
    assert Counter(traces.problem_id.tolist()) == {3: 3, 5: 1}
    assert counts["num_traces_duplicate"] == 1


def test_all_wrong_round_adds_nothing():
    solved = [shard_of([answers(1)])]
    before = collect(solved)
    after = collect(solved, [shard_of([answers(1, 2, verdict=W)])])
    counts = after[2]
    assert counts["num_traces_new"] == counts["num_paths_new"] == counts["num_values_new"] == 0
    jax.tree.map(np.testing.assert_array_equal, before[:2], after[:2])


def test_no_shards_give_no_rows():
    traces, paths, counts = collect([])
    assert datasets.num_rows(traces) == datasets.num_rows(paths) == 0
    assert traces.rows.tokens.shape == (0, MAX_LENGTH)
    assert counts["value_histogram"] == [0] * 10 and counts["targets_by_depth"] == []


def test_every_label_weighs_on_exactly_one_path():
    rng = np.random.default_rng(1)
    shards = [random_shard(rng, num_rows=60), random_shard(rng)]
    prompts, tree, made = shards[1]
    ids = np.arange(12, 24)
    shards[1] = Shard(replace(prompts, problem_id=ids), replace(tree, problem_id=ids), made)
    expected, by_depth = Counter(), defaultdict(list)
    for shard in shards:
        texts = source_texts(shard)
        for b, r in np.argwhere(shard.labels.is_labelled):
            target, depth, above = float(shard.labels.target[b, r]), 0, shard.tree.parent[b, r]
            while above >= 0:
                depth, above = depth + 1, shard.tree.parent[b, above]
            expected[shard.tree.problem_id[b], tuple(texts[b, r]), round(target, 5)] += 1
            by_depth[depth].append(target)
    _, paths, counts = collect(shards, config=LARGE)
    rows, weights = paths.rows, defaultdict(float)
    for i, at in np.argwhere(rows.weight):
        key = paths.problem_id[i], tuple(rows.tokens[i, : at + 1].tolist())
        weights[*key, round(float(rows.target[i, at]), 5)] += float(rows.weight[i, at])
    assert weights == expected
    assert sum(expected.values()) == counts["num_values"] == counts["num_values_new"] > 300
    assert (
        counts["num_values_left_out"]
        == counts["num_paths_over_cap"]
        == counts["num_paths_duplicate"]
        == 0
    )
    for (mean, num), values in zip(
        counts["targets_by_depth"], (by_depth[d] for d in range(len(by_depth))), strict=True
    ):
        assert num == len(values) and mean == pytest.approx(np.mean(values))


def test_under_the_cap_weights_stay_single_and_what_is_left_out_is_counted():
    rng = np.random.default_rng(2)
    shard = random_shard(rng, vocabulary=3)
    _, paths, counts = collect([shard], config=replace(LARGE, max_paths_per_problem=3))
    assert max(Counter(paths.problem_id.tolist()).values()) == 3
    assert set(np.unique(paths.rows.weight).tolist()) == {0.0, 1.0}
    assert counts["num_values"] == paths.rows.weight.sum()
    assert counts["num_values"] + counts["num_values_left_out"] == shard.labels.is_labelled.sum()
    assert counts["num_values_left_out"] > 0 and counts["num_paths_duplicate"] > 0
    assert (paths.rows.weight.sum(axis=1) > 0).all()


def test_equal_texts_of_a_problem_have_one_label_the_mean():
    """Within a tree, in another one of the problem, and in another round; other problems apart."""
    right, wrong = [Row(-1, (1,)), Row(0, (2,), C)], [Row(-1, (1,)), Row(0, (3,), W)]
    both = [*right, Row(-1, (1,)), Row(2, (3,), W)]
    newest = [shard_of([both, right, wrong], [3, 3, 4])]
    config = replace(LARGE, paths_rounds=2)
    before = [shard_of([wrong], [3])]
    rounds = [[relabelled(shard, "hard") for shard in shards] for shards in (before, newest)]
    _, paths, counts = collect(*rounds, config=config)
    said = {
        (int(problem_id), *tokens[problem_id + 1 : at + 1].tolist()): target[at]
        for problem_id, tokens, target, weight in zip(
            paths.problem_id, paths.rows.tokens, paths.rows.target, paths.rows.weight, strict=True
        )
        for at in np.flatnonzero(weight)
    }
    # four rows of problem 3 say of its first step: 1, 0, 1, 0
    assert said == {(3, 1): 0.5, (3, 1, 2): 1, (3, 1, 3): 0, (4, 1): 0, (4, 1, 3): 0}
    assert len(paths.problem_id) == 3 and counts["num_values"] == 5


def test_references_teach_the_prm_what_no_path_has_said():
    """Their labels are heard with those of trees, and the policy never sees them."""
    shard = shard_of([[Row(-1, (1,)), Row(0, (2,), C), Row(0, (3,), W)], [Row(-1, (4,), W)]])
    prompts = [shard.prompts.tokens[b, : b + 1] for b in range(2)]
    references = [
        datasets.reference(0, prompts[0], [[1], [5, 6], [7]], np.array([0.25, 0.5, 1])),
        datasets.reference(1, prompts[1], [[8, 8], [9]], np.array([0.5, 1])),
        datasets.reference(1, prompts[1], [[8] * MAX_LENGTH, [9]], np.array([0.5, 1])),
    ]
    rounds = {0: [shard]}
    traces, paths, counts = datasets.collect(rounds, LARGE, MAX_LENGTH, 0, references=references)
    plain = datasets.collect(rounds, LARGE, MAX_LENGTH, 0)
    jax.tree.map(np.testing.assert_array_equal, traces, plain[0])
    assert counts["num_reference_paths"] == 2 and plain[2]["num_reference_paths"] == 0
    assert paths.iteration.tolist() == [0, 0, -1, -1] and paths.is_correct[2:].all()
    said = {
        tuple(text(paths, i)[: at + 1]): float(paths.rows.target[i, at])
        for i, at in np.argwhere(paths.rows.weight)
    }
    # its tree says 1/2 of the step that both have
    assert said[900, 1] == (0.5 + 0.25) / 2
    assert (said[900, 1, 5, 6], said[900, 1, 5, 6, 7]) == (0.5, 1)
    assert (said[901, 901, 8, 8], said[901, 901, 8, 8, 9]) == (0.5, 1)
    assert (paths.rows.weight.sum(axis=1) == [2, 1, 2, 2]).all()


def test_of_a_reference_some_steps_may_be_taught_alone():
    shard = shard_of([[Row(-1, (1,)), Row(0, (2,), C)]])
    prompt = shard.prompts.tokens[0, :1]
    wrong = datasets.reference(0, prompt, [[1], [6]], np.array([0.25, 0.1]))
    wrong = wrong._replace(is_correct=False, steps=wrong.steps[-1:])
    _, paths, counts = datasets.collect({0: [shard]}, LARGE, MAX_LENGTH, 0, references=[wrong])
    assert counts["num_reference_paths"] == 1 and paths.is_correct.tolist() == [True, False]
    assert text(paths, 1) == [900, 1, 6] and paths.rows.weight[1].tolist()[:3] == [0, 0, 1]
    np.testing.assert_allclose(paths.rows.target[:, :3], [[0, 0.5, 1], [0, 0, 0.1]])


def test_a_step_that_paths_share_is_learnt_once_or_on_every_path():
    rng = np.random.default_rng(1)
    shard = random_shard(rng, num_rows=60)
    once, every = (
        collect([shard], config=replace(LARGE, shared_steps=how))[1] for how in ("once", "every")
    )
    np.testing.assert_array_equal(once.rows.tokens, every.rows.tokens)
    said = defaultdict(set)
    for i, at in np.argwhere(every.rows.weight):
        key = every.problem_id[i], tuple(every.rows.tokens[i, : at + 1].tolist())
        said[key].add(float(every.rows.target[i, at]))
    assert all(len(targets) == 1 for targets in said.values())
    assert len(said) == once.rows.weight.sum() < every.rows.weight.sum()


def test_a_label_counts_by_its_weight():
    rows = [Row(-1), Row(0, (1,), C), Row(0, (2,), W), Row(0, (3,), W)]
    _, paths, _ = collect([relabelled(shard_of([rows]), "outcome")], config=LARGE)
    assert sorted(paths.rows.weight[paths.rows.weight > 0]) == [1, 1, 1, 3]


def test_equal_texts_of_two_trees_count_for_the_traces_of_both():
    """So two rounds say what a tree that holds all their traces does."""
    first, step = [Row(-1), Row(0, (1,), C), Row(0, (2,), W), Row(0, (3,), W)], Row(0, (4,), C)
    apart = [[relabelled(shard_of([rows]), "outcome")] for rows in (first, [Row(-1), step])]
    joined = [[relabelled(shard_of([[*first, step]]), "outcome")]]
    config = replace(LARGE, paths_rounds=2)
    told = [
        sorted(zip(rows.target[at].tolist(), rows.weight[at].tolist(), strict=True))
        for rounds in (apart, joined)
        for rows in [collect(*rounds, config=config)[1].rows]
        for at in [rows.weight > 0]
    ]
    assert told[0] == told[1] and (0.5, 4.0) in told[0]


def test_a_step_that_weighs_by_its_traces_is_not_shown_on_each_of_them_too():
    with pytest.raises(UserError, match=r"labels\.kind=outcome: .*shared_steps=once"):
        Config(labels=LabelsConfig("outcome"), datasets=replace(LARGE, shared_steps="every"))


def test_cap_keeps_both_outcomes():
    rows = answers(*range(10)) + answers(100, verdict=W)
    for seed in range(5):
        _, paths, _ = collect(
            [shard_of([rows])], config=replace(CAPPED, max_paths_per_problem=2), seed=seed
        )
        assert sorted(paths.is_correct.tolist()) == [False, True]


def test_choice_under_the_cap_is_seeded_and_does_not_see_other_problems():
    config = replace(CAPPED, max_paths_per_problem=3)
    target = answers(*range(10)) + answers(*range(20, 30), verdict=W)

    def chosen(forest, ids, seed):
        _, paths, _ = collect([shard_of(forest, ids)], config=config, seed=seed)
        return [text(paths, i) for i in np.flatnonzero(paths.problem_id == 4)]

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
    _, paths, _ = collect([shard_of([rows])])
    told = dict(zip(endings(paths), paths.is_correct.tolist(), strict=True))
    assert told == {1: True, 2: False, 3: False}


def test_what_is_too_long_is_dropped_and_counted():
    rows = [Row(-1, (1, 1)), Row(0, (2, 2), C), Row(0, (3,), C), Row(0, (4,)), Row(3, (5,), C)]
    traces, paths, counts = collect([shard_of([rows], [1])], max_length=5)
    assert [text(traces, i)[2:] for i in range(datasets.num_rows(traces))] == [[1, 1, 3]]
    assert traces.rows.tokens.shape == paths.rows.tokens.shape == (1, 5)
    assert (counts["num_traces_too_long"], counts["num_paths_too_long"]) == (2, 2)
    assert counts["num_values_left_out"] == 3, "the shared step is on the path that fits"


def test_rounds_expire_and_every_row_remembers_its_iteration():
    config = replace(CAPPED, traces_rounds=2, paths_rounds=1)
    assert datasets.num_rounds(config) == 2
    rounds = [[shard_of([answers(i)])] for i in range(1, 6)]
    for newest in range(1, 6):
        traces, paths, _ = collect(*rounds[:newest], config=config)
        ages = [i for i in (newest, newest - 1) if i >= 1]
        assert traces.iteration.tolist() == endings(traces) == ages
        assert paths.iteration.tolist() == [newest]


def test_a_text_found_again_is_renewed_not_doubled():
    rounds = [[shard_of([answers(1, 2)])], [shard_of([answers(2, 3)])]]
    traces, _, counts = collect(*rounds)
    assert dict(zip(endings(traces), traces.iteration.tolist(), strict=True)) == {1: 1, 2: 2, 3: 2}
    assert counts["num_traces_renewed"] == 1 and counts["num_traces"] == 3


def test_counts_of_a_round_add_up():
    rng = np.random.default_rng(3)
    rounds = [[random_shard(rng, num_trees=8, vocabulary=4)] for _ in range(4)]
    for newest in range(1, 5):
        counts = collect(*rounds[:newest])[2]
        before = collect(*rounds[max(0, newest - 3) : newest - 1] or [[]])[2]
        (shard,) = rounds[newest - 1]
        fates = ("too_long", "duplicate", "over_cap")
        num_dropped = sum(counts[f"num_traces_{fate}"] for fate in fates)
        assert (shard.labels.verdict == C).sum() == counts["num_traces_new"] + num_dropped
        renewed = counts["num_traces_renewed"] - before["num_traces_renewed"]
        assert counts["num_traces"] == before["num_traces"] + counts["num_traces_new"] - renewed
        assert sum(counts["value_histogram"]) == shard.labels.is_labelled.sum()


def test_histogram_bins_are_tenths():
    # a clean solution of four steps: .25 .5 .75 1
    chain = [Row(-1), Row(0), Row(1), Row(2, (1,), C)]
    counts = collect([shard_of([chain])])[2]
    assert counts["value_histogram"] == [0, 0, 1, 0, 0, 1, 0, 1, 0, 1]


def test_collect_changes_nothing_in_place():
    shards = [random_shard(np.random.default_rng(4))]
    copy = jax.tree.map(np.copy, shards)
    collect(shards)
    jax.tree.map(np.testing.assert_array_equal, shards, copy)


def shown(*lengths):
    """Examples of prompt 1 and responses 100, 101, ... of the given lengths."""
    pairs = [([1], [100 + i] * (length - 1)) for i, length in enumerate(lengths)]
    return datasets.demonstrations(pairs, max(lengths))[0]


def paths_of(outcomes):
    """Examples that end correct or not, of the lengths 1, 2, ..."""
    examples = shown(*range(1, len(outcomes) + 1))
    return examples.replace(is_correct=np.array(outcomes))


def batches(examples, num_updates, batch_size, seed=0, **how):
    return list(
        datasets.batches(examples, num_updates, batch_size, np.random.default_rng(seed), **how)
    )


def test_batches_show_every_row_once_an_epoch():
    found = batches(shown(*[2] * 10), 15, 4)
    assert len(found) == 15 and all(len(batch.tokens) == 4 for batch in found)
    seen = np.concatenate([batch.tokens[:, 1] for batch in found]).reshape(6, 10)
    assert (np.sort(seen, axis=1) == np.arange(100, 110)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 6


@pytest.mark.parametrize(
    ("longest", "width"), [(1, 5), (5, 5), (6, 10), (15, 15), (16, 18), (18, 18)]
)
def test_a_batch_is_as_wide_as_the_quarters_that_its_longest_row_needs(longest, width):
    pairs = [([1], list(range(2, length + 1))) for length in (1, longest)]
    (batch,) = batches(datasets.demonstrations(pairs, 18)[0], 1, 2)
    for field in (batch.tokens, batch.position, batch.until, batch.target, batch.weight):
        assert field.shape == (2, width)
    assert batch.group.shape == (2, width)
    assert sorted(length_of(batch).tolist()) == [1, longest]
    assert max(batch.tokens.max(axis=1)) == longest


def test_batches_larger_than_the_data_repeat_it():
    (batch,) = batches(shown(2, 2, 2), 1, 8)
    assert sorted(Counter(batch.tokens[:, 1].tolist()).values()) == [2, 3, 3]


def test_batches_follow_the_seed():
    one, same, other = (
        [b.tokens.tolist() for b in batches(shown(*[2] * 9), 5, 4, seed)] for seed in (0, 0, 1)
    )
    assert one == same != other


def test_no_rows_no_batches():
    for examples in collect([])[:2]:
        assert not batches(examples, 3, 4, balance_outcomes=True)


@pytest.mark.parametrize("batch_size", [8, 7])
def test_balanced_batches_hold_half_of_each_outcome(batch_size):
    paths = paths_of([True] * 3 + [False] * 17)
    for batch in batches(paths, 12, batch_size, balance_outcomes=True):
        length = length_of(batch)
        assert (length <= 3).sum() == batch_size // 2
        assert length.shape == (batch_size,) and length.all()


@pytest.mark.parametrize(
    ("outcomes", "is_balanced"),
    [([True] * 6, True), ([False] * 6, True), ([True] + [False] * 5, False)],
)
def test_batches_of_one_outcome_or_unbalanced_are_plain_epochs(outcomes, is_balanced):
    found = batches(paths_of(outcomes), 4, 3, balance_outcomes=is_balanced)
    seen = np.concatenate([length_of(batch) for batch in found]).reshape(2, 6)
    assert (np.sort(seen, axis=1) == np.arange(1, 7)).all()


def test_batches_of_one_row_cannot_be_balanced_and_show_both_outcomes():
    paths = paths_of([True, False, False])
    found = [int(length_of(b)[0]) for b in batches(paths, 6, 1, balance_outcomes=True)]
    assert sorted(found) == [1, 1, 2, 2, 3, 3]


def lengths_by_pool(found):
    """Lengths [pools POOL M] of batches, every batch sorted."""
    lengths = np.sort([length_of(batch) for batch in found], axis=1)
    return lengths.reshape(-1, datasets.POOL, lengths.shape[1])


def test_grouped_batches_are_epochs_whose_pools_are_split_by_length():
    pools = lengths_by_pool(batches(shown(*range(1, 65)), 32, 4, group_by_length=True))
    assert (np.sort(pools.reshape(2, 64), axis=1) == np.arange(1, 65)).all(), (
        "two epochs of two pools"
    )
    for pool in pools:
        assert (np.sort(pool.flatten()).reshape(pool.shape) == pool[np.argsort(pool[:, 0])]).all()
        assert (np.diff(pool[:, 0]) < 0).any(), "the batches are shuffled"


def test_grouped_batches_of_few_rows_hold_each_as_often_as_they_must():
    for batch in batches(shown(*range(1, 7)), 16, 3, group_by_length=True):
        assert len(set(length_of(batch).tolist())) == 3
    paths = paths_of([True] * 2 + [False] * 6)
    for batch in batches(paths, 16, 4, balance_outcomes=True, group_by_length=True):
        assert len(set(length_of(batch).tolist())) == 4


def test_grouped_batches_stay_balanced_and_sort_each_half():
    paths = paths_of([True] * 16 + [False] * 48)
    pools = lengths_by_pool(batches(paths, 16, 4, balance_outcomes=True, group_by_length=True))
    for half in (pools[..., :2], pools[..., 2:]):  # the correct are the shorter ones
        assert ((half <= 16).all() or (half > 16).all()) and len(half) == 2
        for pool in half:
            assert (
                np.sort(pool.flatten()).reshape(pool.shape) == pool[np.argsort(pool[:, 0])]
            ).all()


def test_pairs_stay_side_by_side():
    found = batches(shown(*[2] * 10), 20, 4, order="pairs", balance_outcomes=True)
    pairs = np.concatenate([batch.tokens[:, 1] for batch in found]).reshape(-1, 2) - 100
    assert (pairs[:, 0] % 2 == 0).all() and (pairs[:, 1] == pairs[:, 0] + 1).all()
    epochs = np.sort(pairs.reshape(8, 5, 2)[..., 0], axis=1)
    assert (epochs == np.arange(0, 10, 2)).all()
    assert len({tuple(epoch) for epoch in pairs.reshape(8, 10).tolist()}) > 3


def bunches(problems, num_together, num_updates, batch_size, seed=0):
    """Rows of problems, by runs of one problem: [[(problem, row), ...], ...] of all batches."""
    examples = paths_of([row % 4 == 0 for row in range(len(problems))])
    examples = examples.replace(problem_id=np.array(problems, np.int32))
    how = dict(order="problems", num_together=num_together)
    rows = [length_of(b) - 1 for b in batches(examples, num_updates, batch_size, seed, **how)]
    return np.concatenate(rows)


def test_rows_of_a_problem_come_together():
    """Every epoch holds every row once; a problem's bunches are of like size."""
    problems = np.array([0] * 9 + [1] * 3 + [2] * 4 + [3])
    rows = bunches(problems, 4, 17 * 4, 2).reshape(-1, 17)  # 8 epochs
    assert (np.sort(rows, axis=1) == np.arange(17)).all()
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 8
    for epoch in problems[rows]:
        runs = np.split(epoch, np.flatnonzero(np.diff(epoch)) + 1)
        sizes = {p: [len(run) for run in runs if run[0] == p] for p in range(4)}
        # neighbours may be of one problem: three bunches of 3 are a run of 9, too
        assert all(n % 3 == 0 for n in sizes[0]) and sum(sizes[0]) == 9
        assert (sizes[1], sizes[2], sizes[3]) == ([3], [4], [1])


def test_a_bunch_holds_its_share_of_what_ends_correct():
    rows = bunches([5] * 16, 4, 12, 4).reshape(-1, 4)
    assert ((rows % 4 == 0).sum(axis=1) == 1).all()
    other = bunches([5] * 16, 4, 12, 4, seed=1).reshape(-1, 4)
    assert (rows != other).any() and (rows == bunches([5] * 16, 4, 12, 4).reshape(-1, 4)).all()


def test_steps_are_compared_at_their_depth_and_ends_with_ends():
    """All of one problem, whatever the shard and the iteration."""
    tree = [Row(-1, (1,)), Row(0, (2,)), Row(1, (3,), C), Row(0, (4,), W), Row(-1, (5,), W)]
    shards = [shard_of([tree, tree], [3, 4]), shard_of([tree], [3])]
    _, paths, _ = collect(shards, shards, config=LARGE)
    rows, named = paths.rows, defaultdict(set)
    for row, at in zip(*np.nonzero(rows.weight), strict=True):
        depth = at - min(paths.problem_id[row] + 1, 5)
        is_end = at == length_of(rows)[row] - 1
        named[paths.problem_id[row], -1 if is_end else depth].add(int(rows.group[row, at]))
    assert len(named) == 6 and all(len(groups) == 1 for groups in named.values())
    assert len({group for groups in named.values() for group in groups}) == 6
    assert (rows.group[rows.weight == 0] == -1).all()


def test_a_wrong_step_without_an_answer_is_compared_at_its_depth():
    """By omega a path is labelled up to its first error: that is a step, and no answer."""
    shard = relabelled(
        shard_of([[Row(-1, (1,)), Row(0, (2,), C), Row(-1, (3,)), Row(2, (4,), W)]]), "omega"
    )
    _, paths, _ = collect([shard], config=LARGE)
    rows = paths.rows
    group = {
        int(rows.tokens[k, at]): int(rows.group[k, at])
        for k, at in zip(*np.nonzero(rows.weight), strict=True)
    }
    assert set(group) == {1, 2, 3} and group[1] == group[3] != group[2]


def rows_of(kind, *rounds, config=LARGE, seed=0):
    """Rows of a kind that the policy learns from: ([(text, what is learnt), ...], counts)."""
    rounds = dict(enumerate(rounds, start=1))
    examples, counts = datasets.ROWS[kind](rounds, config, MAX_LENGTH, seed)
    at = range(datasets.num_rows(examples))
    learnt = [examples.rows.tokens[i][examples.rows.weight[i] > 0].tolist() for i in at]
    return [(text(examples, i), learnt[i]) for i in at], examples, counts


# Behind a prompt of 900: two answers behind 1, of which one is right, and a wrong one at once.
FORKED = [Row(-1, (1,)), Row(0, (2, 3), C), Row(0, (4,), W), Row(-1, (5,), W), Row(-1, (6,))]


def test_pairs_of_traces_are_right_and_wrong_answers_to_a_problem():
    rows, examples, counts = rows_of("trace_pairs", [shard_of([FORKED])])
    (chosen, _), (rejected, _) = rows
    assert chosen == [900, 1, 2, 3] and rejected in ([900, 1, 4], [900, 5])
    assert [learnt for _, learnt in rows] == [chosen[1:], rejected[1:]]
    assert counts == {"num_pairs": 1, "num_pairs_new": 1, "num_pairs_over_cap": 0}
    assert not examples.rows.target.any() and examples.is_correct.tolist() == [True, False]
    seen = {str(rows_of("trace_pairs", [shard_of([FORKED])], seed=s)[0]) for s in range(8)}
    assert len(seen) == 2, "which ones are matched is chance"


def test_pairs_of_steps_are_siblings_and_learn_the_step_alone():
    """Of 1 and 5 one leads to a right answer, and so it is of (2, 3) and 4 behind 1."""
    rows, _, counts = rows_of("step_pairs", [shard_of([FORKED])])
    pairs = sorted(zip(rows[::2], rows[1::2], strict=True))
    assert pairs == [
        (([900, 1], [1]), ([900, 5], [5])),
        (([900, 1, 2, 3], [2, 3]), ([900, 1, 4], [4])),
    ]
    assert counts["num_pairs"] == 2
    one = replace(LARGE, max_traces_per_problem=1)
    rows, _, counts = rows_of("step_pairs", [shard_of([FORKED])], config=one)
    assert len(rows) == 2 and counts["num_pairs_over_cap"] == 1


def test_a_text_of_a_pair_that_was_once_right_is_right():
    """Equal texts of several trees are one, and siblings are what stands behind equal texts."""
    lost = [Row(-1, (1,)), Row(0, (9,), W), Row(-1, (7,), C)]
    rows, *_ = rows_of("step_pairs", [shard_of([FORKED, lost], [0, 0])])
    chosen, rejected = [x for x, _ in rows[::2]], [x for x, _ in rows[1::2]]
    assert [900, 1] in chosen or [900, 7] in chosen
    assert [900, 1] not in rejected and [900, 5] in rejected
    assert rejected.count([900, 1, 4]) + rejected.count([900, 1, 9]) == 1


def test_pairs_learn_of_all_rounds_in_use():
    """Each round gives its own; none where all are right or wrong."""
    alike = [Row(-1, (1,), W), Row(-1, (2,), W)]
    rounds = [shard_of([FORKED])], [shard_of([alike])]
    _, examples, counts = rows_of("trace_pairs", *rounds)
    assert examples.iteration.tolist() == [1, 1] and counts["num_pairs_new"] == 0
    newest = replace(LARGE, traces_rounds=1)
    assert rows_of("trace_pairs", *rounds, config=newest)[2]["num_pairs"] == 0


def test_steps_weigh_what_their_labels_are_worth():
    """A step that paths share is learnt on one of them; a path of no worth on none."""
    shard = shard_of([[*FORKED[:4], Row(3, (6,), W)]])
    _, examples, counts = rows_of("steps", [shard])
    paths = collect([shard], config=LARGE)[1].rows
    ends = {
        (tuple(tokens[: at + 1])): target[at]
        for tokens, target, weight in zip(paths.tokens, paths.target, paths.weight, strict=True)
        for at in np.flatnonzero(weight)
    }
    learnt = {}
    rows = examples.rows
    for tokens, weight in zip(rows.tokens, rows.weight, strict=True):
        for at in np.flatnonzero(weight):
            learnt.setdefault(tuple(tokens[: at + 1]), []).append(weight[at])
    worth = {text: value for text, value in ends.items() if value > 0}
    assert {len(values) for values in learnt.values()} == {1} and len(worth) >= 3
    assert worth.items() <= {text: values[0] for text, values in learnt.items()}.items()
    inside = learnt[900, 1, 2]  # the first token of the step (2, 3)
    assert inside == learnt[900, 1, 2, 3] == [1] and len(learnt) == len(worth) + 1
    assert counts["num_weighted_paths"] == len(rows.tokens) and not rows.target.any()


def test_answers_carry_their_advantage():
    """As often as they were given; (reward - mean) / (deviation + 1e-4), as in TRL."""
    given = [*FORKED, Row(-1, (5,), W)]
    alike = [Row(-1, (1,), W), Row(-1, (2,), W)]
    old = [shard_of([[Row(-1, (8,), C), Row(-1, (9,), W)]])]
    rows, examples, counts = rows_of("answers", old, [shard_of([given, alike])])
    assert Counter(str(x) for x, _ in rows)[str([900, 5])] == 2 and len(rows) == 4
    deviation = np.std([1, 0, 0, 0], ddof=1) + 1e-4
    for row, is_correct in enumerate(examples.is_correct):
        told = examples.rows.target[row][examples.rows.weight[row] > 0]
        np.testing.assert_allclose(told, (is_correct - 0.25) / deviation, rtol=1e-6)
        assert rows[row][1] == rows[row][0][1:]
    known = {"num_answers": 4, "num_problems_undecided": 1, "num_answers_over_cap": 0}
    assert counts == known
    two = replace(LARGE, max_paths_per_problem=2)
    found = [len(rows_of("answers", [shard_of([given])], config=two, seed=s)[0]) for s in range(9)]
    assert set(found) == {0, 2}, "two of four, by chance both wrong"
    counts = rows_of("answers", [shard_of([given])], config=two)[2]
    assert counts["num_answers_over_cap"] == 2


@pytest.mark.parametrize("objective", ["grpo", "weighted"])
def test_the_policys_batches_show_all_rows_alike_and_the_prms_are_balanced(objective):
    """Advantages of a problem sum to 0, which balanced batches would not let them."""
    rows, how = [Row(-1, (1,), C), *(Row(-1, (k,), W) for k in range(2, 9))], FitConfig(4)
    learnt = {
        "policy": PolicyConfig(objective=objective, batch_size=4, fit=how),
        "prm": PrmConfig(batch_size=4, fit=how),
    }
    run: Any = SimpleNamespace(config=Config(updates=UpdatesConfig(**learnt)))
    examples = rows_of("answers", [shard_of([rows])])[1]
    share = {}
    for name in learnt:
        found = list(learning.lay_out(run, 1, name, examples, is_imitation=False)[1])
        advantage = np.concatenate([batch.target.sum(axis=1) for batch in found])
        share[name] = float((advantage > 0).mean())
        assert name == "prm" or abs(advantage.sum()) < 1e-4
    assert share == {"policy": 1 / 8, "prm": 1 / 2}


def test_text_is_told_from_padding_whatever_the_ids():
    rows = [Row(-1, (0, 5, 0)), Row(0, (0, 0), C)]  # 0 is the padding id too
    traces, paths, _ = collect([shard_of([rows], [0])])
    (batch,) = batches(traces, 1, 1)
    assert np.flatnonzero(batch.until[0]).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(batch.weight[0]).tolist() == [1, 2, 3, 4, 5]
    (batch,) = batches(paths, 1, 1)
    assert np.flatnonzero(batch.weight[0]).tolist() == [3, 5]


def test_demonstrations_become_rows_and_long_ones_are_counted():
    examples, num_left_out = datasets.demonstrations(
        [([1, 2], [3, 0]), ([1, 2, 3], [4, 5]), ([9], [8])], 4
    )
    assert num_left_out == 1 and datasets.num_rows(examples) == 2
    assert [text(examples, i) for i in range(2)] == [[1, 2, 3, 0], [9, 8]]
    assert examples.rows.weight.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert (examples.problem_id == -1).all() and not examples.iteration.any()
