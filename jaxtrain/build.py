"""Make the compiled functions of a run, once, in one place. Stands between the stages and the
iteration.

Every function is pure and knows its shardings: search runs per shard of the batch on whole weights,
updates run over the whole mesh. Closures capture config and modules, and no arrays but a base that
never changes. Each is compiled at its first call, and the compilation is announced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtrain import hub, search, sharding, updates
from jaxtrain.boundaries import make_tables
from jaxtrain.config import Config
from jaxtrain.hub import Pretrained
from jaxtrain.keys import Purpose, problem_keys
from jaxtrain.memory import give_back
from jaxtrain.nn import lora
from jaxtrain.nn.decode import make_sample_steps
from jaxtrain.nn.heads import HEAD, make_logits, make_values
from jaxtrain.nn.reader import make_score_steps, recompute_reader
from jaxtrain.nn.transformer import Transformer, cast_weights, init_params
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.structs import Array, Params, State, TokenRows


@dataclass(frozen=True)
class Functions:
    """The compiled functions.

    A grow is (base, policy params, PRM params, prompts, keys, temperature) -> Tree, an update is
    (base, learner, rows, learning rate) -> (Learner, what it told).
    """

    # () -> what both networks share and no update changes; {} where all weights are trained
    init_base: Callable[[], Params]
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
    adapters = config.updates.lora
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    model = Transformer(config.model, vocab_size, adapters.scale, adapters.dropout)
    c, trace = config.search, config.trace
    tables = make_tables(tokenizer.token_bytes, tokenizer.end_ids, trace.boundary, trace.answer)
    sample_steps = make_sample_steps(model, tables, trace)
    reader = recompute_reader(sample_steps, make_score_steps(model), trace)
    optimizer = (
        updates.make_optimizer(config.updates.policy),
        updates.make_optimizer(config.updates.prm),
    )

    def new_weights(key: Array) -> Params:
        return init_params(model, jax.random.wrap_key_data(key))

    # A base is never trained: it lies in the dtype that it is computed in.
    def new_base(key: Array) -> Params:
        return {} if adapters.rank is None else cast_weights(config.model, new_weights(key))

    def new_policy(key: Array):
        if adapters.rank is None:
            return updates.init_learner(new_weights(key), optimizer[0])
        lora_key = jax.random.fold_in(jax.random.wrap_key_data(key), 1)
        params = lora.init(base, lora_key, adapters.rank, adapters.targets)
        return updates.init_learner(params, optimizer[0])

    def new_prm(policy_params: Params):
        head_params = HEAD.init(jax.random.key(0), jnp.zeros((1, config.model.width)))["params"]
        return updates.init_learner({"backbone": policy_params, "head": head_params}, optimizer[1])

    some_key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    base = jax.eval_shape(new_base, some_key)
    policy = jax.eval_shape(new_policy, some_key)
    prm = jax.eval_shape(new_prm, policy.params)
    placed = sharding.tree_shardings(mesh, policy), sharding.tree_shardings(mesh, prm)
    base_placed = sharding.tree_shardings(mesh, base)
    is_loaded = pretrained is not None and adapters.rank is None

    @cache  # every caller shares it
    def init_base() -> Params:
        if not base or pretrained is None:
            key = problem_keys(config.seed, 0, Purpose.INIT, np.zeros(1, np.int32))[0]
            return compiled("base init", new_base, out_shardings=base_placed)(key) if base else {}
        progress.note(f"loading {pretrained.where}")
        return hub.load_params(pretrained, with_shardings(base, base_placed))

    def load(source: Pretrained, which: int, load_fn: Callable):
        progress.note(f"loading {source.where}")
        params = with_shardings((policy, prm)[which].params, placed[which].params)
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
        grow_fn = search.make_grow(search_config, trace.max_steps, reader)

        def grow(base: Params, policy_params: Params, prm_params: Params, *args):
            backbone = lora.merge(base, prm_params["backbone"])
            merged = lora.merge(base, policy_params), prm_params | {"backbone": backbone}
            return grow_fn(*merged, *args)

        per_shard = sharding.per_shard(grow, mesh, num_params=3, num_batched=2)

        def fn(base: Params, policy_params: Params, prm_params: Params, *args):
            cast = partial(cast_weights, config.model)
            prm_params = prm_params | {"backbone": cast(prm_params["backbone"])}
            return per_shard(cast(base), cast(policy_params), prm_params, *args)

        params = (base_placed, placed[0].params, placed[1].params)
        return compiled(name, fn, in_shardings=(*params, split, split, whole))

    def updater(name: str, loss: Callable, read_fn: Callable, purpose: Purpose) -> Callable:
        which = (Purpose.FIT_POLICY, Purpose.FIT_PRM).index(purpose)

        # The number of updates before tells the draws of an update from those of all others.
        def loss_fn(params: Params, base: Params, rows: TokenRows, num_updates: Array) -> Array:
            key = None
            if adapters.rank and adapters.dropout:
                key = problem_keys(config.seed, 0, purpose, num_updates)
            laid_over = {"backbone": base} if which and base else base
            return loss(partial(read_fn, key=key), lora.merge(laid_over, params), rows)

        learner = placed[which]
        return compiled(
            name,
            updates.make_update(loss_fn, optimizer[which]),
            in_shardings=(base_placed, learner, split, whole),
            out_shardings=(learner, whole),
            donate_argnums=1,
        )

    e = config.evaluation
    samples = replace(c, method="sample", num_samples=e.num_samples)
    solving = replace(
        c, method="mcts_star", num_simulations=e.num_simulations, num_candidates=e.num_candidates
    )
    abstract = State(np.zeros((), np.int32), base, policy, prm)
    return Functions(
        init_base=init_base,
        init_policy=load_policy
        if is_loaded
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
        update_policy=updater(
            "policy update", updates.policy_loss, make_logits(model), Purpose.FIT_POLICY
        ),
        update_prm=updater("PRM update", updates.prm_loss, make_values(model), Purpose.FIT_PRM),
        problem_keys=jax.jit(lambda *args: problem_keys(config.seed, *args)),
        abstract_state=with_shardings(abstract, State(whole, base_placed, *placed)),
    )


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Say of a tree of shapes where each lies."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
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
