"""Make the compiled functions of a run, once, in one place. Stands between the stages and the
iteration.

Every function is pure and knows its shardings: search runs per shard of the batch on whole weights,
updates run over the whole mesh. Closures capture config and modules, and no arrays but a base that
never changes. Each is compiled at its first call, and the compilation is announced.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtrain import search, sharding, updates
from jaxtrain.boundaries import make_tables
from jaxtrain.commuting import make_form
from jaxtrain.config import Config
from jaxtrain.hub import Pretrained
from jaxtrain.hub.pretrained import check_head, load_params, load_prm
from jaxtrain.keys import Purpose, problem_keys
from jaxtrain.memory import give_back
from jaxtrain.nn import heads, lora
from jaxtrain.nn.reader import make_reader
from jaxtrain.nn.transformer import Transformer, abstract_params, init_params
from jaxtrain.nn.weights import cast_weights, decode_weights, unroll, unstack
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.structs import Array, CheckFn, GrowOverFn, Learner, Params, Reader, State, TokenRows
from jaxtrain.tasks import Task
from jaxtrain.tasks.base import make_check
from jaxtrain.tokenizers import NOT_TEXT
from jaxtrain.updates import fits
from jaxtrain.updates.fits import UpdateFn

# of arrays: the same everywhere, or split along the batch
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(sharding.BATCH_AXES)
ReadOverFn = Callable[[Params, Params, TokenRows], Array]
# what the terminal calls the searches
GROWS = {
    "train": "search",
    "hinted": "hinted sampling",
    "greedy": "greedy decoding",
    "samples": "sampling",
    "search": "solving search",
}


@dataclass(frozen=True)
class Functions:
    """The compiled functions of a run."""

    # () -> what both networks share and no update changes; {} where all weights are trained
    init_base: Callable[[], Params]
    init_policy: Callable[[Array], Any]  # key data [2] -> Learner
    # policy params -> Learner, the PRM starting from the policy's weights
    init_prm: Callable[[Params], Any]
    # "train" and "hinted": the trees that are learnt from; the others answer: evaluation.TREES
    grow: Mapping[str, GrowOverFn]
    grow_by: Callable[[SearchConfig], GrowOverFn]  # any other search, compiled once
    imitate: UpdateFn  # the policy's update on demonstrations
    update_policy: UpdateFn  # on what trees gave
    # (base, params, rows [M L]) -> [M L] float32: the policy's log-probability of every token, the
    # PRM's value of the text up to it
    read_log_probs: ReadOverFn
    read_values: ReadOverFn
    update_prm: UpdateFn
    problem_keys: Callable  # (iteration, purpose, problem ids [B]) -> uint32 [B 2]
    abstract_state: State  # shapes, dtypes and shardings


def build(
    config: Config,
    task: Task,
    progress: Progress | None = None,
    pretrained: Pretrained | None = None,
    mesh: Any = None,
) -> Functions:
    """Build everything a run will call; the policy starts from `pretrained` where it is given.

    Of the task, its tokenizer is read, what commutes in a step, and its check of steps. Without
    progress nobody is told of compilations. Raises UserError where the mesh does not fit the
    devices.
    """
    # The networks, and how a search sees them.
    mesh = mesh or sharding.make_mesh(config.sharding)
    adapters = config.updates.lora
    vocab_size = config.model.vocab_size or task.tokenizer.vocab_size
    model = Transformer(config.model, vocab_size, adapters.scale, adapters.dropout)
    reader_of, check = make_readers(config, task, model), make_check(task, config.trace)

    # Where everything lies.
    state = abstract_state(config, model, mesh)
    at, networks = placed(state), placed(state.networks)
    whole, split = (NamedSharding(mesh, spec) for spec in (WHOLE, SPLIT))

    # How each kind of function is compiled.
    def compiled(name: str, fn: Callable, **jit_options) -> Callable:
        return Announced(name, jax.jit(fn, **jit_options), progress)

    def grower(name: str, searching: SearchConfig) -> Callable:
        fn = make_grow(config, searching, reader_of(searching), check, mesh)
        return compiled(name, fn, in_shardings=(*networks, split, split, whole))

    def updater(name: str, fn: Callable, learner: Any) -> Callable:
        how = {"in_shardings": (at.base, learner, split, whole), "donate_argnums": 1}
        return compiled(name, fn, out_shardings=(learner, whole), **how)

    # What starts from random weights, and what is read from a folder instead.
    policy = partial(new_policy, config, model)
    inits = {
        "base": compiled("base init", partial(new_base, config, model), out_shardings=at.base),
        "policy": compiled("policy init", policy, out_shardings=at.policy),
        "prm": compiled("prm init", partial(new_prm, config), out_shardings=at.prm),
    }
    if pretrained is not None:
        inits |= loaders(config, pretrained, state, progress)

    # Demonstrations are imitated, whatever is learnt of trees.
    objective = config.updates.policy.objective
    by_objective = {
        name: updater("policy update", policy_update(config, model, name), at.policy)
        for name in (objective, "nll")
    }

    # What both networks share is made once for all callers.
    @cache
    def init_base() -> Params:
        key = problem_keys(config.seed, 0, Purpose.INIT, np.zeros(1, np.int32))[0]
        return inits["base"](key) if state.base else {}

    # All that a run will call.
    read, read_values = readings(model)
    read_from = at.base, at.policy.params, split
    valued_from = at.base, at.prm.params, split
    return Functions(
        init_base=init_base,
        init_policy=inits["policy"],
        init_prm=inits["prm"],
        grow={name: grower(GROWS[name], c) for name, c in config.searches.items()},
        grow_by=cache(partial(grower, "search")),
        update_policy=by_objective[objective],
        imitate=by_objective["nll"],
        read_log_probs=compiled("policy reading", read, in_shardings=read_from),
        read_values=compiled("PRM reading", read_values, in_shardings=valued_from),
        update_prm=updater("PRM update", prm_update(config, model), at.prm),
        problem_keys=jax.jit(lambda *args: problem_keys(config.seed, *args)),
        abstract_state=state,
    )


def make_readers(
    config: Config, task: Task, model: Transformer
) -> Callable[[SearchConfig], Reader]:
    """Make the function from a search to its sight of the networks; a policy that writes has its
    layers apart.
    """
    trace, texts = config.trace, task.tokenizer.token_bytes
    texts += (NOT_TEXT,) * (model.vocab_size - len(texts))  # of ids that no text has
    writer = Transformer(unroll(config.model), model.vocab_size, model.scale)
    ends = task.tokenizer.end_ids, trace.boundary, trace.answer
    tables, form = make_tables(texts, *ends, trace.calculator), make_form(texts, task.commuting)
    return lambda search: make_reader((writer, model), tables, trace, search.chunk, form)


def new_base(config: Config, model: Transformer, key: Array) -> Params:
    """Draw what is not trained, in the dtype that it is computed in; key: data [2]."""
    # All weights are trained: there is nothing below them.
    if config.updates.lora.rank is None:
        return {}
    return cast_weights(config.model, init_params(model, jax.random.wrap_key_data(key)))


def new_policy(config: Config, model: Transformer, key: Array) -> Learner:
    """Draw what is trained of the policy; key: data [2]."""
    adapters, typed = config.updates.lora, jax.random.wrap_key_data(key)
    if adapters.rank is None:
        params = init_params(model, typed)
    else:
        shapes, lora_key = abstract_params(model), jax.random.fold_in(typed, 1)
        params = lora.init(shapes, lora_key, adapters.rank, adapters.targets)
    return fits.init_learner(params, fits.make_optimizer(config.updates.policy))


def new_prm(config: Config, policy_params: Params) -> Learner:
    """Start the PRM from the policy, with a head that says 0.5."""
    learning = config.updates.prm
    num_outputs = updates.prm.OBJECTIVES[learning.objective].num_outputs(learning)
    params = {"backbone": policy_params, "head": heads.init_head(config.model.width, num_outputs)}
    return fits.init_learner(params, fits.make_optimizer(config.updates.prm))


def abstract_state(config: Config, model: Transformer, mesh: Any) -> State:
    """Return the shapes, dtypes and shardings of a State."""
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    # Shapes alone: nothing is computed or held.
    base = jax.eval_shape(partial(new_base, config, model), key)
    policy = jax.eval_shape(partial(new_policy, config, model), key)
    prm = jax.eval_shape(partial(new_prm, config), policy.params)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), base, policy, prm)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        sharding.tree_shardings(mesh, state),
    )


def placed(abstract: Any) -> Any:
    """Return the shardings of a tree of abstract arrays."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def loaders(
    config: Config, pretrained: Pretrained, state: State, progress: Progress | None
) -> dict[str, Callable]:
    """Make the functions that read from folders what starts there."""

    def load(source: Pretrained, load_fn: Callable, abstract: Params) -> Params:
        if progress:
            progress.note(f"loading {source.where}")
        return load_fn(source, abstract)

    def learner(name: str, params: Params) -> Learner:
        optimizer = fits.make_optimizer(getattr(config.updates, name))
        fresh = partial(fits.init_learner, optimizer=optimizer)
        out = placed(getattr(state, name))
        return jax.jit(fresh, out_shardings=out, donate_argnums=0)(params)

    def policy(_: Array) -> Learner:
        return learner("policy", load(pretrained, load_params, state.policy.params))

    def prm(policy_params: Params) -> Learner:
        assert pretrained.prm is not None
        load_fn = partial(load_prm, unembedding=policy_params.get("unembedding"))
        return learner("prm", load(pretrained.prm, load_fn, state.prm.params))

    if pretrained.prm:
        objective, weight = config.updates.prm.objective, state.prm.params["head"]["weight"]
        check_head(pretrained.prm, 1 if weight.ndim == 1 else weight.shape[1], objective)
    # With adapters the pretrained weights are the base, and both learners start fresh.
    if state.base:
        return {"base": lambda _: load(pretrained, load_params, state.base)}
    return {"policy": policy} | ({"prm": prm} if pretrained.prm else {})


def make_grow(
    config: Config, searching: SearchConfig, reader: Reader, check: CheckFn | None, mesh: Any
) -> GrowOverFn:
    """Make a search by shards, of both networks over their base in the dtype they compute in."""
    grow_fn = search.make_grow(searching, config.trace.max_steps, reader, check)
    asks_host = check is not None and searching.checks != "off"

    def grow(base: Params, policy_params: Params, prm_params: Params, *args):
        backbone = lora.merge(base, prm_params["backbone"])
        policy = unstack(lora.merge(base, policy_params))
        return grow_fn(policy, prm_params | {"backbone": backbone}, *args)

    # Trees do not know each other: a device grows its own, on weights that are gathered over data
    # and fsdp once. Tensor parallelism is the compiler's; a device that asks the host is alone.
    per_shard = jax.shard_map(
        grow,
        mesh=mesh,
        axis_names=set(mesh.axis_names if asks_host else sharding.BATCH_AXES),
        in_specs=(WHOLE, WHOLE, WHOLE, SPLIT, SPLIT, WHOLE),
        out_specs=SPLIT,
        check_vma=False,
    )

    def cast_and_grow(base: Params, policy_params: Params, prm_params: Params, *args):
        cast = partial(decode_weights, config.model, is_split=mesh.shape["tp"] > 1)
        prm_params = prm_params | {"backbone": cast(prm_params["backbone"])}
        return per_shard(cast(base), cast(policy_params), prm_params, *args)

    return cast_and_grow


def policy_update(config: Config, model: Transformer, objective: str) -> UpdateFn:
    """Make the policy's update by one of its objectives."""
    key_of, learning = dropout_key(config, Purpose.FIT_POLICY), config.updates.policy
    loss_fn = updates.policy.OBJECTIVES[objective].loss

    def loss(params: Params, base: Params, rows: TokenRows, num_updates: Array) -> Array:
        read = heads.make_log_probs(model, key_of(num_updates))
        return loss_fn(read(lora.merge(base, params), rows), rows, learning)

    return fits.make_update(loss, fits.make_optimizer(learning))


def readings(model: Transformer) -> tuple[ReadOverFn, ReadOverFn]:
    """Make what reads rows: the policy's log-probabilities of tokens, the PRM's values."""

    def log_probs(base: Params, params: Params, rows: TokenRows) -> Array:
        return heads.make_log_probs(model)(lora.merge(base, params), rows)

    def values(base: Params, params: Params, rows: TokenRows) -> Array:
        hidden = heads.read_rows(model, lora.merge(base, params["backbone"]), rows)
        return heads.value_of(params["head"], hidden)

    return log_probs, values


def prm_update(config: Config, model: Transformer) -> UpdateFn:
    """Make the PRM's update."""
    learning = config.updates.prm
    key_of = dropout_key(config, Purpose.FIT_PRM, learning.dropout)
    loss_fn = updates.prm.OBJECTIVES[learning.objective].loss
    model = model.clone(residual_dropout=learning.dropout)

    def loss(params: Params, base: Params, rows: TokenRows, num_updates: Array) -> Array:
        backbone = lora.merge(base, params["backbone"])
        hidden = heads.read_rows(model, backbone, rows, key_of(num_updates))
        outputs = heads.head_outputs(params["head"], hidden)
        value_loss = loss_fn(outputs, rows, learning, config.labels_per_row)
        if not learning.lm_weight:
            return value_loss
        # The backbone is a policy's, so it can still say what it would write.
        log_probs = heads.log_probs_of(model, backbone, hidden, rows)
        return value_loss + learning.lm_weight * updates.prm.language(log_probs, rows)

    return fits.make_update(loss, fits.make_optimizer(learning))


def dropout_key(config: Config, purpose: Purpose, share: float = 0.0) -> Callable[[Array], Any]:
    """Make the function from the number of updates before to an update's key, data [2] or None.

    A learner counts its updates through all fits, so the number tells the iteration too.
    """
    adapters = config.updates.lora
    if not share and (adapters.rank is None or not adapters.dropout):
        return lambda num_updates: None
    return lambda num_updates: problem_keys(config.seed, 0, purpose, num_updates)


class Announced:
    """A jitted function that says when it compiles: once for all shapes and dtypes of arguments."""

    def __init__(self, name: str, jitted: Any, progress: Progress | None):
        self._name, self.jitted, self._progress = name, jitted, progress
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *args):
        # Abstract or not, what has a shape and a dtype is told apart by them.
        kinds = tuple(
            (np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in jax.tree.leaves(args)
        )
        if kinds not in self._compiled:
            told = self._progress.compiling(self._name) if self._progress else nullcontext()
            with told:
                self._compiled[kinds] = self.jitted.lower(*args).compile()
            give_back()
        return self._compiled[kinds](*args)
