"""Make the compiled functions of a run, once, in one place. Stands between the stages and the
iteration.

Every function is pure and knows its shardings: search runs per shard of the batch on whole weights,
updates run over the whole mesh. Closures capture config and modules, never arrays. Each is compiled
at its first call, and the compilation is announced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtrain import hub, search, sharding, updates
from jaxtrain.boundaries import make_tables
from jaxtrain.config import Config
from jaxtrain.hub import Pretrained
from jaxtrain.keys import problem_keys
from jaxtrain.memory import give_back
from jaxtrain.nn.heads import HEAD, make_logits, make_values
from jaxtrain.nn.sampling import make_sample_steps, make_score_steps
from jaxtrain.nn.transformer import Transformer, cast_weights, init_params
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.structs import Array, Params, State


@dataclass(frozen=True)
class Functions:
    """The compiled functions; a grow is (policy_params, prm_params, prompts, keys, temperature) ->
    Tree.
    """

    init_policy: Callable[[Array], Any]  # key data [2] -> Learner
    # policy params -> Learner, the PRM starting from the policy's weights
    init_prm: Callable[[Params], Any]
    grow: Callable  # training trees
    solve: Callable  # trees that answer evaluation problems
    sample: Callable  # independent traces
    greedy: Callable  # one trace
    update_policy: Callable
    update_prm: Callable
    problem_keys: Callable  # (iteration, purpose, problem ids [B]) -> uint32 [B 2]
    abstract_state: State  # shapes, dtypes and shardings


def build(
    config: Config,
    tokenizer: Any,
    progress: Progress,
    pretrained: Pretrained | None = None,
    mesh: Any = None,
) -> Functions:
    """Build everything a run will call; the policy starts from `pretrained` where it is given.

    Raises UserError where the mesh does not fit the devices.
    """
    mesh = mesh or sharding.make_mesh(config.sharding)
    whole, split = NamedSharding(mesh, PartitionSpec()), sharding.batch_sharding(mesh)
    model = Transformer(config.model, config.model.vocab_size or tokenizer.vocab_size)
    c, trace = config.search, config.trace
    tables = make_tables(tokenizer.token_bytes, tokenizer.end_ids, trace.boundary, trace.answer)
    sample_steps = make_sample_steps(model, tables, trace.max_step_tokens, trace.step_tokens)
    score_steps = make_score_steps(model)
    optimizer = (
        updates.make_optimizer(config.updates.policy),
        updates.make_optimizer(config.updates.prm),
    )

    def new_policy(key: Array):
        return updates.init_learner(init_params(model, jax.random.wrap_key_data(key)), optimizer[0])

    def new_prm(policy_params: Params):
        head_params = HEAD.init(jax.random.key(0), jnp.zeros((1, config.model.width)))["params"]
        return updates.init_learner({"backbone": policy_params, "head": head_params}, optimizer[1])

    policy = jax.eval_shape(new_policy, jax.ShapeDtypeStruct((2,), jnp.uint32))
    prm = jax.eval_shape(new_prm, policy.params)
    placed = sharding.tree_shardings(mesh, policy), sharding.tree_shardings(mesh, prm)

    def load(source: Pretrained, which: int, load_fn: Callable):
        progress.note(f"loading {source.where}")
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            (policy, prm)[which].params,
            placed[which].params,
        )
        wrap = jax.jit(
            lambda params: updates.init_learner(params, optimizer[which]),
            out_shardings=placed[which],
            donate_argnums=0,
        )
        return wrap(load_fn(source, params))

    def load_policy(_: Array):
        assert pretrained is not None
        return load(pretrained, 0, hub.load_params)

    def import_prm(policy_params: Params):
        assert pretrained is not None and pretrained.prm is not None
        return load(
            pretrained.prm, 1, partial(hub.load_prm, unembedding=policy_params.get("unembedding"))
        )

    def compiled(name: str, fn: Callable, **jit_options) -> Callable:
        return Announced(name, jax.jit(fn, **jit_options), progress)

    def grower(name: str, search_config: SearchConfig) -> Callable:
        grow_fn = search.make_grow(search_config, trace, sample_steps, score_steps)
        per_shard = sharding.per_shard(grow_fn, mesh, num_params=2, num_batched=2)

        def fn(policy_params: Params, prm_params: Params, *args):
            backbone = cast_weights(config.model, prm_params["backbone"])
            return per_shard(
                cast_weights(config.model, policy_params),
                prm_params | {"backbone": backbone},
                *args,
            )

        return compiled(
            name, fn, in_shardings=(placed[0].params, placed[1].params, split, split, whole)
        )

    def updater(name: str, loss: Callable, which: int) -> Callable:
        update = updates.make_update(loss, optimizer[which])
        learner = placed[which]
        return compiled(
            name,
            update,
            in_shardings=(learner, split, whole),
            out_shardings=(learner, whole),
            donate_argnums=0,
        )

    e = config.evaluation
    samples = replace(c, method="sample", num_samples=e.num_samples)
    solving = replace(
        c, method="mcts_star", num_simulations=e.num_simulations, num_candidates=e.num_candidates
    )
    abstract = State(
        iteration=np.zeros((), np.int32),
        policy=policy,
        prm=prm,
    )
    shardings = State(whole, *placed)
    return Functions(
        init_policy=load_policy
        if pretrained
        else compiled("policy init", new_policy, out_shardings=placed[0]),
        init_prm=import_prm
        if pretrained and pretrained.prm
        else compiled(
            "PRM init", new_prm, in_shardings=(placed[0].params,), out_shardings=placed[1]
        ),
        grow=grower("search", c),
        solve=grower("solving search", solving),
        sample=grower("sampling", samples),
        greedy=grower("greedy decoding", replace(samples, num_samples=1)),
        update_policy=updater("policy update", partial(updates.policy_loss, make_logits(model)), 0),
        update_prm=updater("PRM update", partial(updates.prm_loss, make_values(model)), 1),
        problem_keys=jax.jit(lambda *args: problem_keys(config.seed, *args)),
        abstract_state=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        ),
    )


class Announced:
    """A jitted function that says when it compiles, once for every shape of arguments."""

    def __init__(self, name: str, jitted: Any, progress: Progress):
        self._name, self._jitted, self._progress, self._compiled = name, jitted, progress, {}

    def lower(self, *args):
        """Lower for arguments that may be abstract, without compiling."""
        return self._jitted.lower(*args)

    def __call__(self, *args):
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(args))
        if shapes not in self._compiled:
            with self._progress.compiling(self._name):
                self._compiled[shapes] = self._jitted.lower(*args).compile()
            give_back()
        return self._compiled[shapes](*args)
