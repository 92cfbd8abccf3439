"""Texts of a problem in one row, against the same texts in rows of their own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import CONFIG, VOCAB, random_params

from jaxtrain import datasets, updates
from jaxtrain.config import Config
from jaxtrain.datasets import DatasetsConfig
from jaxtrain.errors import UserError
from jaxtrain.learning import hold_out, pack, rank_ends
from jaxtrain.nn.heads import head_outputs, make_log_probs, read_rows
from jaxtrain.nn.transformer import Transformer
from jaxtrain.structs import Examples, TokenRows
from jaxtrain.updates import PolicyConfig, PrmConfig, UpdatesConfig
from jaxtrain.updates.policy import likelihood
from jaxtrain.updates.prm import cross_entropy, pairwise, squared

LENGTH = 9
RNG = np.random.default_rng(0)


def random_examples(num_texts=24, num_problems=3):
    """Distinct texts that part anywhere behind the prompts, some of them a beginning of others; a
    token is worth the same wherever its text is.
    """
    texts = set()
    while len(texts) < num_texts:
        problem, length = RNG.integers(num_problems), RNG.integers(2, LENGTH - 1)
        texts.add((int(problem), (7, int(problem), *RNG.integers(0, 2, length - 1).tolist())))
    found = sorted(texts, key=lambda text: RNG.uniform())
    length = np.array([len(tokens) for _, tokens in found], np.int32)[:, None]
    place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (num_texts, LENGTH))
    is_token, told = place < length, {}
    target = np.zeros(place.shape, np.float32)
    for row, (_, tokens) in enumerate(found):
        for at in range(len(tokens)):
            target[row, at] = told.setdefault(tokens[: at + 1], RNG.uniform())
    is_taught = is_token & (place > 1) & (RNG.uniform(size=place.shape) < 0.7)
    rows = TokenRows(
        tokens=np.array([[*t, *[0] * (LENGTH - len(t))] for _, t in found], np.int32),
        position=np.where(is_token, place, 0),
        until=np.where(is_token, length, 0),
        target=target,
        weight=np.where(is_taught, RNG.uniform(0.5, 2, place.shape), 0).astype(np.float32),
        group=np.full(place.shape, -1, np.int32),
    )
    return Examples(
        rows=rows,
        problem_id=np.array([problem for problem, _ in found], np.int32),
        iteration=RNG.integers(1, 3, num_texts).astype(np.int32),
        is_correct=RNG.uniform(size=num_texts) < 0.3,
    )


EXAMPLES = random_examples()
MODELS = {
    "plain": CONFIG,
    "untied": replace(CONFIG, is_tied=False),
    "window": replace(CONFIG, window=3),
    "scanned": replace(CONFIG, is_scanned=True, is_rematerialised=True),
}


def prefixes(examples):
    """List what every token sees: (problem, tokens up to it in the order of columns)."""
    rows, found = examples.rows, []
    for row, at in np.argwhere(rows.until):
        seen = [k for k in range(at + 1) if at < rows.until[row, k]]
        assert rows.position[row, seen].tolist() == list(range(len(seen)))
        found.append((int(examples.problem_id[row]), *rows.tokens[row, seen].tolist()))
    return found


@pytest.mark.parametrize(("name", "width"), [*zip(MODELS, (100, LENGTH, 20, 20), strict=True)])
def test_what_is_learnt_is_that_of_rows_of_one_text(name, width):
    """Losses and gradients of both networks, by every objective that is a mean over tokens."""
    model = Transformer(MODELS[name], VOCAB)
    heads = {"squared": (16,), "binary": (16, 2), "bins": (16, 5)}
    params = {
        "backbone": random_params(model),
        "heads": {
            name: {"weight": jnp.asarray(RNG.normal(size=shape), jnp.float32), "bias": 0.1}
            for name, shape in heads.items()
        },
    }

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def cost(params, rows):
        log_probs = make_log_probs(model)(params["backbone"], rows)
        found = {"policy": likelihood(log_probs, rows, PolicyConfig())}
        for name, head in params["heads"].items():
            said = head_outputs(head, read_rows(model, params["backbone"], rows))
            loss_fn = squared if name == "squared" else cross_entropy
            found[name] = loss_fn(said, rows, PrmConfig(), LENGTH)
        # Shares of no likely sum, so that a difference in one gradient is one in all.
        return sum(x * np.sqrt(k + 2) for k, x in enumerate(found.values())), found

    packed = datasets.pack(EXAMPLES, width)
    assert np.count_nonzero(packed.rows.until) < np.count_nonzero(EXAMPLES.rows.until)
    (costs, gradients), (packed_costs, packed_gradients) = (
        cost(params, rows) for rows in (EXAMPLES.rows, packed.rows)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), packed_costs, costs)
    # One entry has the rounding of all that it is a sum of, in an order that is the machine's.
    atol = 1e-5 * float(optax.tree.norm(gradients))
    is_near = partial(np.testing.assert_allclose, rtol=0, atol=atol)
    jax.tree.map(is_near, packed_gradients, gradients)


def test_every_token_stands_once_behind_what_it_goes_on_from():
    one = datasets.pack(EXAMPLES, 200)
    assert len(set(one.problem_id.tolist())) == len(one.problem_id) == 3
    found = prefixes(one)
    assert len(found) == len(set(found)) and set(found) == set(prefixes(EXAMPLES))
    several = datasets.pack(EXAMPLES, LENGTH)
    assert set(prefixes(several)) == set(found) and len(several.problem_id) > 3


def test_texts_may_come_in_any_order():
    packed = datasets.pack(EXAMPLES, 20)
    for _ in range(3):
        at = RNG.permutation(len(EXAMPLES.problem_id))
        shuffled = jax.tree.map(lambda x, at=at: x[at], EXAMPLES)
        jax.tree.map(np.testing.assert_array_equal, datasets.pack(shuffled, 20), packed)


def test_right_texts_weigh_as_much_as_the_others():
    """The gradient of an epoch is the mean one of batches of half of each."""
    alone = np.arange(len(EXAMPLES.problem_id), dtype=np.int32)  # of a problem each: a text a row
    examples = EXAMPLES.replace(problem_id=alone)
    packed = datasets.pack(examples, LENGTH, balance_outcomes=True)
    kinds = examples.is_correct, ~examples.is_correct
    for kind in kinds:
        count = len(alone) / (2 * kind.sum())
        expected = count * examples.rows.weight[kind]
        np.testing.assert_allclose(packed.rows.weight[kind], expected, rtol=1e-6)
    assert min(map(np.sum, kinds)) and np.sum(kinds[0]) != np.sum(kinds[1])
    of_one_kind = examples.replace(is_correct=kinds[0] & False)
    same = datasets.pack(of_one_kind, LENGTH, balance_outcomes=True).rows.weight
    np.testing.assert_allclose(same, examples.rows.weight)


def test_what_balances_the_prm_leaves_the_policys_weights_as_they_are():
    how = UpdatesConfig(policy=PolicyConfig(objective="weighted"))
    data, log = DatasetsConfig(packed_tokens=500), SimpleNamespace(append=lambda *told: None)
    run: Any = SimpleNamespace(config=Config(updates=how, datasets=data), log=log)
    for name, is_balanced in (("policy", False), ("prm", True)):
        expected = datasets.pack(EXAMPLES, 500, is_balanced).rows.weight
        np.testing.assert_array_equal(pack(run, 1, name, EXAMPLES).rows.weight, expected)


def test_steps_of_a_problem_are_compared_as_in_rows_of_one_text():
    """Where each of them is learnt once."""
    rows, seen = EXAMPLES.rows, set()
    is_new = np.zeros(rows.tokens.shape, bool)
    for (row, at), text in zip(np.argwhere(rows.until), prefixes(EXAMPLES), strict=True):
        is_new[row, at] = text not in seen
        seen.add(text)
    group = np.where(is_new, 99 * EXAMPLES.problem_id[:, None] + rows.position, -1)
    weight = np.where(is_new, rows.weight, 0)
    examples = EXAMPLES.replace(rows=rows.replace(weight=weight, group=group.astype(np.int32)))

    def loss(examples, **how):
        rows = examples.rows
        outputs = np.zeros((*rows.tokens.shape, 2), np.float32)
        # what a network says is told by the text alone
        for (row, at), text in zip(np.argwhere(rows.until), prefixes(examples), strict=True):
            outputs[row, at] = np.random.default_rng(text).normal(size=2)
        return float(pairwise(outputs, rows, PrmConfig(**how), num_labels=100))

    packed = datasets.pack(examples, 20)
    assert loss(packed) == pytest.approx(loss(examples), rel=1e-5)
    assert loss(packed) > loss(packed, pairwise_weight=0.0) + 0.1


def test_held_out_ends_are_ranked_within_their_problems():
    """As a plain loop over pairs does."""
    whole = [
        tuple(row[:n])
        for row, n in zip(EXAMPLES.rows.tokens, EXAMPLES.rows.until[:, 0], strict=True)
    ]
    is_end = np.array([all(a == b or b[: len(a)] != a for b in whole) for a in whole])
    examples = jax.tree.map(lambda x: x[is_end], EXAMPLES)
    rows, at = examples.rows, (np.arange(is_end.sum()), examples.rows.until[:, 0] - 1)
    weight, target = rows.weight.copy(), rows.target * 0.9
    weight[at], target[at] = 1, np.where(np.arange(is_end.sum()) % 3, target[at], 1)
    examples = examples.replace(rows=rows.replace(weight=weight, target=target))

    def read_values(base, params, rows):
        value = np.zeros(rows.tokens.shape, np.float32)
        told = examples.replace(rows=rows, problem_id=rows.tokens[:, 1])
        for (row, column), text in zip(np.argwhere(rows.until), prefixes(told), strict=True):
            value[row, column] = np.random.default_rng(text).normal()
        return value

    fns = SimpleNamespace(read_values=read_values)
    run: Any = SimpleNamespace(
        fns=fns, config=Config(updates=UpdatesConfig(prm=PrmConfig(batch_size=5)))
    )
    prm: Any = SimpleNamespace(params={})
    value, right, found = read_values(None, None, examples.rows)[at], target[at] == 1, []
    for problem in np.unique(examples.problem_id):
        own = examples.problem_id == problem
        wins = value[own & right][:, None] > value[own & ~right]
        found += [wins.mean()] * bool(wins.size)
    assert len(found) > 1 and 0 < np.mean(found) < 1
    assert rank_ends(run, {}, prm, examples) == pytest.approx(np.mean(found))


def test_of_one_problem_nothing_is_held_out():
    """However large the share: something must be left to learn. A small one is one problem."""
    for share, num_problems, num_held in ((0.9, 1, 0), (0.9, 3, 2), (0.2, 3, 1), (0.01, 3, 1)):
        config = Config(updates=UpdatesConfig(prm=PrmConfig(held_out=share)))
        run: Any = SimpleNamespace(config=config)
        at = np.isin(EXAMPLES.problem_id, np.unique(EXAMPLES.problem_id)[:num_problems])
        examples = jax.tree.map(lambda x, at=at: x[at], EXAMPLES)
        examples = replace(examples, iteration=np.ones_like(examples.iteration))
        learnt, held = hold_out(run, 1, "prm", examples)
        assert len(np.unique(held.problem_id)) == num_held if held else not num_held
        assert len(np.unique(learnt.problem_id)) == num_problems - num_held


def test_nothing_is_packed_where_there_is_nothing():
    packed = datasets.pack(jax.tree.map(lambda x: x[:0], EXAMPLES), 30, balance_outcomes=True)
    assert packed.rows.tokens.shape == (0, 30) and not datasets.num_rows(packed)


def test_what_cannot_be_packed_is_refused():
    config = partial(Config, datasets=DatasetsConfig(packed_tokens=10**6))
    for name in updates.OBJECTIVES["policy"]:
        how = UpdatesConfig(policy=PolicyConfig(objective=name))
        if name in ("nll", "weighted"):
            config(updates=how)
            continue
        with pytest.raises(UserError, match=rf"=1000000: {name} .*policy\.objective nll or weig"):
            config(updates=how)
    assert config().row_length == 10**6
    with pytest.raises(UserError, match="packed_tokens=10: a text has up to"):
        Config(datasets=DatasetsConfig(packed_tokens=10))
    with pytest.raises(UserError, match="packed_tokens=0: must be 1 or more"):
        DatasetsConfig(packed_tokens=0)
