"""What a run will need, before it runs: `python -m jaxtrain.main --config ... --plan`.

For a TPU topology the heavy programs are compiled for it, without one, by libtpu's compiler,
whose memory figures are those of the real thing; for the devices here, as they would be. For a GPU
that is not here, memory comes from shapes alone and is labelled so. FLOPs are formulas: a compiler
counts the body of a loop once. Times are rooflines: real runs take several times as long.
"""

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain import sharding
from jaxtrain.build import Functions, build
from jaxtrain.config import Config, check_batches
from jaxtrain.errors import UserError, require
from jaxtrain.memory import GIB, is_exhausted, machine_memory, shrink
from jaxtrain.progress import Progress
from jaxtrain.search import SearchConfig
from jaxtrain.search.work import work_of
from jaxtrain.structs import Prompts, TokenRows
from jaxtrain.tasks import Task
from jaxtrain.updates import policy


class Chip(NamedTuple):
    """One device: memory in GiB, dense bf16 FLOP/s, bytes/s of memory bandwidth."""

    memory: float
    flops: float
    bandwidth: float


CHIPS = {
    "v4": Chip(32, 275e12, 1.2e12),
    "v5e": Chip(16, 197e12, 0.82e12),
    "v6e": Chip(32, 918e12, 1.6e12),
    "h100": Chip(80e9 / GIB, 989e12, 3.35e12),
    "h200": Chip(141e9 / GIB, 989e12, 4.8e12),
    "cpu": Chip(0, 0.1e12, 20e9),  # of a laptop, for the times alone
}
FORWARD = 2  # FLOPs for each parameter and token that is read
TPUS = {"v4": dict(chip_config_name="megacore"), "v5e": {}, "v6e": {}}


class Program(NamedTuple):
    """Memory of one program on one device, in bytes, besides the State that is always there."""

    temporaries: float
    results: float


def plan(config: Config, progress: Progress) -> Iterator[str]:
    """Yield the lines of the plan. Raises UserError for a config that does not fit."""
    devices, chip, is_compiled = devices_of(config.sharding.topology)
    mesh = sharding.make_mesh(config.sharding, devices)
    check_batches(config, mesh)
    fns = build(config, stand_in(config), progress, mesh=mesh)
    yield json.dumps(asdict(config), indent=2)
    yield ""
    base, policy, prm = map(num_parameters, fns.abstract_state.networks)
    if base:
        yield f"{'base':16}{base:,} parameters, shared by both networks and not trained"
    yield f"{'policy':16}{policy:,} parameters"
    yield f"{'PRM':16}{prm:,} parameters"
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    where = config.sharding.topology or "this machine"
    yield f"devices         {mesh.size} of {where}, mesh {shape}"
    yield ""

    # What lies there all the time.
    def row(name: str, *sizes: float) -> str:
        return f"  {name:14}" + "".join(f"{size / GIB:10.3f}" for size in sizes)

    state = fns.abstract_state
    yield f"per device      {'policy':>10}{'PRM':>10}{'together':>10}   GiB"
    for name, part in (("parameters", "params"), ("optimizer", "opt_state")):
        both = [bytes_here(getattr(learner, part)) for learner in (state.policy, state.prm)]
        yield row(name, *both, sum(both))
    if base:
        yield row(f"{'base, of both':34}", bytes_here(state.base))
    kv, tree = search_bytes(config, fns, mesh, "train")
    caches = "keys and values of a search" + (", kept" if config.search.chunk else "")
    yield f"  {caches} {kv / GIB:.3f}, trees {tree / GIB:.3f}"
    yield ""

    # What each program takes besides, and whether the largest fits.
    worst = ("", 0.0)
    how = "compiled" if is_compiled else "from shapes, not compiled"
    how += ", in all of two searches" if config.loop.overlap_searches else ""
    yield f"program         {'temporary':>10}{'results':>10}{'in all':>10}   GiB per device, {how}"
    for name, program in programs(config, fns, mesh, is_compiled):
        num_at_once = 2 if config.loop.overlap_searches and "update" not in name else 1
        total = bytes_here(state) + num_at_once * sum(program)
        worst = max(worst, (name, total), key=lambda pair: pair[1])
        yield row(name, *program, total)
    yield ""
    yield from iteration_cost(config, fns, mesh, chip)
    yield from disk(config, fns, mesh)
    if chip.memory:
        needed = f"{worst[1] / GIB:.2f} GiB needed ({worst[0]})"
        yield f"memory          {needed}, {chip.memory:.2f} GiB there per device"
        told = f"needs {worst[1] / GIB:.2f} GiB per device, and there are {chip.memory:.2f}"
        lower = f"{shrink(worst[0])} or --config.prompts.max_prompt_tokens"
        then = f"lower {lower}, or raise --config.sharding.fsdp or .tp over more devices"
        require(worst[1] <= chip.memory * GIB, f"the {worst[0]}", f"{told}; {then}")


def devices_of(topology: str) -> tuple[list[Any] | None, Chip, bool]:
    """Find what to compile for. Returns (devices, chip, whether programs can be compiled)."""
    # The devices here.
    kind, _, size = topology.partition(":")
    flag = f"--config.sharding.topology={topology}"
    if topology == "cpu" or not topology and jax.default_backend() == "cpu":
        memory = machine_memory() / GIB / jax.device_count()
        return None, CHIPS["cpu"]._replace(memory=memory), True
    if not topology:
        name = jax.devices()[0].device_kind.lower().replace(" lite", "e")
        known = (chip for kind, chip in CHIPS.items() if kind in name.split())
        # one that is not listed is timed as a CPU, and tells its memory
        there = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 0) / GIB
        return None, next(known, CHIPS["cpu"]._replace(memory=there)), True
    is_known = kind in CHIPS and kind != "cpu"
    require(is_known, flag, f"unknown; known are {', '.join(CHIPS)}, as in v4:2x2x1")
    if kind not in TPUS:
        is_met = size.isdecimal() and int(size) > 0
        require(is_met, flag, f"name a number of devices, as in {kind}:8")
        return [SimpleNamespace(id=i) for i in range(int(size))], CHIPS[kind], False
    # libtpu describes, and compiles for, TPUs that are not here.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **TPUS[kind])
    except Exception as error:  # whatever the plugin raises, for a missing libtpu too
        reason = str(error).splitlines()[0]
        then = "it needs pip install 'jaxtrain[plan]' and a size such as v4:2x2x1 or v5e:2x2"
        raise UserError(f"{flag}: cannot be compiled for ({reason}); {then}") from error
    return list(found.devices), CHIPS[kind], True


def stand_in(config: Config) -> Task:
    """Stand for a task: of which text a token is, a calculator alone needs to know the digits."""
    size = config.model.vocab_size
    if not size:
        why = "a plan needs the size of the vocabulary, or the pretrained model"
        raise UserError(f"--config.model.vocab_size=none: {why}")
    texts = tuple(b"%d" % (i % 10) for i in range(size))
    tokenizer: Any = SimpleNamespace(vocab_size=size, token_bytes=texts, end_ids=(0,))
    return Task("", tokenizer)


def num_parameters(params: Any) -> int:
    """Count the numbers of a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))


def num_read(fns: Functions) -> int:
    """Count the parameters of a network through which a token goes; the PRM's head is left out."""
    base, policy, _ = map(num_parameters, fns.abstract_state.networks)
    return base + policy


def bytes_here(state: Any) -> int:
    """Count what a State, or a part of it, takes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(state)
    )


def trees_at_once(config: Config, mesh: Any, searching: SearchConfig) -> float:
    """Count the trees that a device grows at once."""
    size = config.prompts.batch_size / sharding.num_shards(mesh)
    return min(searching.num_trees or size, size)


def rows_at_once(config: Config, mesh: Any, searching: SearchConfig) -> float:
    """Count the rows of the trees that a device grows at once."""
    num_rows = work_of(searching, config.trace.max_steps).num_rows
    return trees_at_once(config, mesh, searching) * num_rows


def heavy(config: Config, mesh: Any) -> dict[str, str]:
    """Name the heavy programs that grow trees: the label of each, and its key of `GROWN`."""
    held = {key: rows_at_once(config, mesh, c) for key, c in config.searches.items()}
    # The search that answers, where it holds more than the one that learns; the largest sampling.
    named = {"search": "train"}
    if held.get("search", 0) > held["train"]:
        named["answering"] = "search"
    if sampling := [key for key in ("samples", "greedy", "hinted") if key in held]:
        named["sampling"] = max(sampling, key=held.__getitem__)
    return named


def search_bytes(config: Config, fns: Functions, mesh: Any, key: str) -> tuple[float, float]:
    """Count the keys and values of a search, and the trees of a batch, on one device."""
    c, t = config.searches[key], config.trace
    work = work_of(c, t.max_steps)
    prompt, size = config.prompts.max_prompt_tokens, t.max_step_tokens
    path, own = work.width * work.depth * size, work.num_lanes * work.num_steps * size
    if c.chunk is not None:
        # Both networks keep all tokens, and what lanes see is gathered for one of them at a time.
        pages = -(-size // c.chunk) * c.chunk
        seen = path + own * (work.num_steps * size > c.chunk)
        if work.num_lanes == work.width:
            seen = min(seen, work.width * t.max_steps * size)
        seen += work.num_lanes * c.chunk + prompt * (work.width == 1)
        tokens = 2 * (prompt + work.num_rows * pages) + seen
    else:
        tokens = work.width * prompt + path + own
    kv = trees_at_once(config, mesh, c) * kv_bytes(config, mesh) * tokens
    return kv, tree_bytes(config, fns, mesh, key) / sharding.num_shards(mesh)


def num_bytes(tree: Any) -> int:
    """Count the bytes of abstract arrays, whatever devices hold them."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def kv_bytes(config: Config, mesh: Any) -> float:
    """Count the bytes of a cached token on one device; tp may leave heads whole everywhere."""
    m, tp = config.model, mesh.shape["tp"]
    num_heads = m.num_kv_heads / (1 if m.num_kv_heads % tp else tp)
    return 2 * m.num_layers * num_heads * m.head * jnp.dtype(m.dtype).itemsize


def calls_of(config: Config, fns: Functions, mesh: Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """List the heavy programs, each with abstract arguments."""
    state, u, size = fns.abstract_state, config.updates, config.prompts.batch_size

    def array(*shape: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    def rows(size: int, has_reference: bool = False) -> TokenRows:
        whole = array(size, config.row_length)
        values = array(size, config.row_length, dtype=jnp.float32)
        log_prob = values if has_reference else None
        return TokenRows(whole, whole, whole, values, values, whole, log_prob)

    prompts = Prompts(array(size, config.prompts.max_prompt_tokens), array(size), array(size))
    keys, number = array(size, 2, dtype=jnp.uint32), array(dtype=jnp.float32)
    grown = (*state.networks, prompts, keys, number)
    named = heavy(config, mesh).items()
    calls: dict[str, Any] = {name: (fns.grow[key], grown) for name, key in named}
    policy_rows = rows(u.policy.batch_size, policy.OBJECTIVES[u.policy.objective].has_reference)
    calls["policy update"] = fns.update_policy, (state.base, state.policy, policy_rows, number)
    prm_rows = rows(u.prm.batch_size)
    calls["PRM update"] = fns.update_prm, (state.base, state.prm, prm_rows, number)
    return calls


def tree_bytes(config: Config, fns: Functions, mesh: Any, key: str) -> int:
    """Count the bytes of the trees of one batch."""
    _, arguments = calls_of(config, fns, mesh)["search"]
    return num_bytes(fns.grow[key].jitted.eval_shape(*arguments))


def programs(
    config: Config, fns: Functions, mesh: Any, is_compiled: bool
) -> Iterator[tuple[str, Program]]:
    """Measure the heavy programs, by compiling them or from shapes."""
    if not is_compiled:
        yield from estimate(config, fns, mesh)
        return
    calls = calls_of(config, fns, mesh)

    def measure(name: str) -> Program:
        fn, arguments = calls[name]
        try:
            memory = fn.jitted.lower(*arguments).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            told = f"{name}: {str(error).splitlines()[0]}"
            raise UserError(f"{told}; smaller would be {shrink(name)}") from error
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return Program(memory.temp_size_in_bytes, results)

    with ThreadPoolExecutor() as threads:  # a compiler works on one core
        yield from zip(calls, threads.map(measure, calls), strict=True)


def estimate(config: Config, fns: Functions, mesh: Any) -> Iterator[tuple[str, Program]]:
    """Estimate from shapes: copies of weights, caches, gradients, activations, logits."""
    m, shards, tp = config.model, sharding.num_shards(mesh), mesh.shape["tp"]
    item = jnp.dtype(m.dtype).itemsize
    base, trained, _ = map(num_parameters, fns.abstract_state.networks)
    # A base that is shared lies there as it is computed with, unless it is split.
    is_copied = item < 4 or m.is_scanned or mesh.shape["fsdp"] > 1
    copies = 2 * trained * item / tp if is_copied else 0
    copies += base * item / tp if mesh.shape["fsdp"] > 1 else 0
    for name, key in heavy(config, mesh).items():
        c = config.searches[key]
        if name != "sampling":
            kv, tree = search_bytes(config, fns, mesh, key)
            lanes = trees_at_once(config, mesh, c) * work_of(c, config.trace.max_steps).num_lanes
            yield name, Program(copies + kv + 3 * lanes * m.num_ids * 4 + tree, tree)
            continue
        lanes = config.prompts.batch_size / shards * c.num_samples
        # What was sampled is cached anew with every token, and read by the PRM at once.
        sampled = 2 * lanes * config.trace.max_steps * config.trace.max_step_tokens
        sampled *= kv_bytes(config, mesh)
        yield name, Program(copies + sampled + 3 * lanes * m.num_ids * 4, 0)
    for name, fit, is_policy in (
        ("policy update", config.updates.policy, True),
        ("PRM update", config.updates.prm, False),
    ):
        tokens = fit.batch_size / shards * config.row_length
        grads = trained * 4 / (mesh.shape["fsdp"] * tp)
        # Kept for the backward pass: a block's inputs, norms, q k v, scores, mixed, gate, up and
        # their product.
        block = tokens * (6 * m.width + 4 * m.mlp_width / tp) * item
        heads = m.num_heads / (1 if m.num_heads % tp else tp)
        block += fit.batch_size / shards * heads * config.row_length**2 * 4 * 2
        kept = m.num_layers * block
        if m.is_rematerialised:
            kept = m.num_layers * tokens * m.width * item + block
        writes = is_policy or config.updates.prm.lm_weight
        logits = 3 * tokens * m.num_ids * 4 / tp if writes else 0
        weights = trained * item / tp if item < 4 or m.is_scanned else 0
        yield name, Program(2 * grads + kept + logits + weights, 0)


def iteration_cost(config: Config, fns: Functions, mesh: Any, chip: Chip) -> Iterator[str]:
    """Bound the tokens, the FLOPs and the time of an iteration."""
    t, m, u = config.trace, config.model, config.updates
    work = work_of(config.search, t.max_steps)
    count = num_read(fns)
    num_problems = config.prompts.num_problems or config.prompts.batch_size
    # What is kept is read once; else every prefix with its prompt and half of its steps.
    num_prompts, steps = 1, work.num_rows
    if config.search.chunk is None:
        num_prompts = work.num_prefixes
        steps = steps + (t.max_steps - 1) / 2 * (num_prompts - 1)
    read = num_prompts * config.prompts.max_prompt_tokens + steps * t.max_step_tokens
    search_tokens = 2 * num_problems * read
    fit_tokens = {
        "policy update": u.policy.fit.num_updates * u.policy.batch_size * config.row_length,
        "PRM update": u.prm.fit.num_updates * u.prm.batch_size * config.row_length,
    }
    per_token = 8 if m.is_rematerialised else 6
    peak, size = chip.flops * mesh.size, jnp.dtype(m.dtype).itemsize
    batches = -(-num_problems // config.prompts.batch_size)
    # Decoding reads the weights once for every token of a step, the lanes of a batch together.
    reads = batches * work.num_turns * t.max_step_tokens
    decode = reads * count * size / mesh.shape["tp"] / chip.bandwidth
    seconds = {"search": max(FORWARD * count * search_tokens / peak, decode)}
    seconds |= {name: per_token * count * tokens / peak for name, tokens in fit_tokens.items()}
    if not config.prompts.num_problems:
        yield "an iteration takes all problems; the figures for search and trees are of one batch"
    yield f"iteration       {'tokens':>14}{'FLOPs':>12}{'seconds':>10}   at most, at most, at least"
    for name, tokens in {"search": search_tokens, **fit_tokens}.items():
        flops = (FORWARD if name == "search" else per_token) * count * tokens
        yield f"  {name:14}{tokens:14,.0f}{flops:12.2e}{seconds[name]:10.1f}"
    yield f"  {'in all':14}{'':26}{sum(seconds.values()):10.1f}"
    yield ""


def disk(config: Config, fns: Functions, mesh: Any) -> Iterator[str]:
    """Bound what a run writes."""
    both = fns.abstract_state.policy, fns.abstract_state.prm
    state, kept = num_bytes(both) / GIB, config.checkpoints.num_kept + 1
    learnt, scored = config.prompts.num_problems or 1, config.evaluation.num_problems
    trees = sum(
        -(-(learnt if key in ("train", "hinted") else scored) // config.prompts.batch_size)
        * tree_bytes(config, fns, mesh, key)
        for key in config.searches
    )
    fits = f"{state:.2f} GiB more while fits are saved; " if config.checkpoints.num_updates else ""
    yield (
        f"disk            {state:.2f} GiB a checkpoint, {kept} kept: {kept * state:.2f} GiB; {fits}"
        f"at most {trees / GIB:.3f} GiB of trees an iteration, before compression"
    )
