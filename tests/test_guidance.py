"""`benchmarks.guidance`: search is told the values that it is meant to be told."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.countdown_values import Noise, told_values, values
from benchmarks.guidance import Level, Row, pays_from
from jaxtrain import trees
from jaxtrain.boundaries import TraceConfig, make_tables
from jaxtrain.keys import problem_keys
from jaxtrain.nn.heads import init_head
from jaxtrain.nn.reader import make_reader
from jaxtrain.nn.transformer import Transformer, abstract_params
from jaxtrain.prompts import PromptsConfig, encode, make_encode
from jaxtrain.search import SearchConfig, make_grow
from jaxtrain.structs import Kind
from jaxtrain.tasks import TasksConfig, make_task
from tests.tiny_models import CONFIG, random_like

TASK = make_task(TasksConfig(num_train=4, num_dev=1, num_test=1, num_demonstrations=1))
TRACE = TraceConfig(max_steps=2, max_step_tokens=6, step_tokens=5)
SEARCHES = [
    SearchConfig(num_simulations=3, num_candidates=3, num_lanes=1, chunk_tokens=4),
    SearchConfig(method="sample", num_samples=3),
]


@pytest.mark.parametrize("config", SEARCHES, ids=["search", "samples"])
def test_every_score_is_the_value_of_the_text_up_to_it(config):
    tokenizer = TASK.tokenizer
    model = Transformer(replace(CONFIG, num_layers=1), tokenizer.vocab_size)
    tables = make_tables(tokenizer.token_bytes, tokenizer.end_ids, "\n", "end")
    policy = random_like(abstract_params(model), 0)
    head = init_head(CONFIG.width)
    noise = Noise(first=0.3, inner=0.5, leaf=0.7)
    prm = {"backbone": policy, "head": head, "noise": jnp.array(noise[:3], jnp.float32)}
    encode_fn = make_encode(PromptsConfig(), tokenizer, ())
    (prompts,), _ = encode(TASK.train, encode_fn, 12, len(TASK.train))
    reader = told_values(make_reader((model, model), tables, TRACE, config.chunk), tokenizer.decode)
    keys = problem_keys(0, jnp.int32(0), jnp.int32(0), prompts.problem_id)
    grow = jax.jit(make_grow(config, TRACE.max_steps, reader))
    tree = jax.device_get(grow(policy, prm, prompts, keys, jnp.float32(1)))

    problem, row = np.nonzero(tree.kind != Kind.EMPTY)
    paths = trees.row_paths(tree.parent, problem, row)
    assert paths.shape[1] == 2 and (paths[:, 1] >= 0).any(), "some steps lie behind others"
    tokens, length, _ = trees.sequences(tree, problem, paths)
    texts = [tokenizer.decode(x[:n].tolist()) for x, n in zip(tokens, length, strict=True)]
    asked = [TASK.problems[int(i)].prompt for i in tree.problem_id[problem]]
    is_finished = tree.is_finished[problem, row].tolist()
    told = values(asked, texts, is_finished, noise)
    np.testing.assert_allclose(tree.score[problem, row], told, rtol=1e-5)
    assert len(set(told.tolist())) > len(told) / 2


def test_where_search_begins_to_pay_is_read_off_between_two_levels():
    def rows(*points):
        return [Row("", Level(area, area), 0, 0, 0, 0, gain=gain) for area, gain in points]

    assert pays_from(rows((0.84, -0.1), (0.92, 0.1), (1.0, 0.2))) == pytest.approx(0.88)
    assert pays_from(rows((0.84, 0.1), (0.92, 0.1), (1.0, 0.2))) == 0.84
    assert np.isnan(pays_from(rows((0.92, 0.1), (1.0, -0.2))))
