"""The only sight of the networks that a search has: paths of rows in, steps and their scores out.

A search knows a prefix by its path, the numbers of its rows. What the rows say, and what the
networks keep of them, lies in a Memory that a search hands on and never opens.

Two memories, with the same draws. *Cached*: both networks read every token once, in chunks, and
keep its keys and values under its row; a path is a gather, and a prompt is shared by its tree.
*Recompute*: text alone is kept, and prompt and path are read anew for every order.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxtrain.boundaries import Tables, TraceConfig
from jaxtrain.keys import fold_in
from jaxtrain.nn import cache
from jaxtrain.nn.decode import Lanes, Siblings, Token, idle_lanes, write_chunk
from jaxtrain.nn.heads import HEAD, Network
from jaxtrain.nn.transformer import Segment
from jaxtrain.structs import Array, Cost, LaneShape, Order, Params, Prompts, Reader, Written

NO_PAGE = 2**24  # past all
LANES = 0x1A9E5  # sets the keys of lanes apart from those of nodes
Both = tuple[Params, Params]  # policy, PRM


class Cache(NamedTuple):
    """What the networks keep; each pair is (policy's, PRM's)."""

    prompt: tuple[Segment, Segment]  # B rows
    pool: tuple[cache.Pool, cache.Pool]
    hidden: Array  # [B 1+R width], the policy's at the end of the prompt and of every row
    address: Array  # [B R S] int32, where in the pools a token lies
    page: Array  # [B R n] int32, the pages of an order, by its first row; -1: not taken yet
    num_pages: Array  # [B] int32, that are taken


class Memory(NamedTuple):
    """What is known of B trees."""

    prompt: Array  # [B P] int32
    prompt_length: Array  # [B] int32
    tokens: Array  # [B R S] int32
    length: Array  # [B R] int32
    log_prob: Array  # [B R S] float32, of a token
    lanes: Lanes  # b = B*W*J
    cache: Cache | None  # None: everything is read anew


class Place(NamedTuple):
    """Where the tokens of a chain of rows stand, one behind the other: n chains of T tokens."""

    row: Array  # [B n T] int32
    at: Array  # [B n T] int32, the place in its step
    is_token: Array  # [B n T] bool


def make_reader(
    model: Network, tables: Tables, trace: TraceConfig, chunk: int | None = None
) -> Reader:
    """Make a reader of the networks; see `structs.Reader` for its functions.

    chunk: tokens that a lane writes between two looks of the search, with everything cached; None:
    nothing is cached, and an order is written as a whole.

    A step ends where `tables` say so, or at `trace.step_tokens` tokens, but never inside an answer.
    At `trace.max_step_tokens` it is cut.
    """
    return Reader(
        open=partial(open_memory, model, trace, chunk),
        renew=partial(renew, model),
        write=partial(write, model, tables, trace, chunk),
        text=lambda memory: memory.tokens,
    )


def open_memory(
    model: Network, trace: TraceConfig, chunk: int | None, params: Both, shape: LaneShape, size: int
) -> Memory:
    """Make the memory of trees that have no prompt yet."""
    num_trees, num_rows = shape.num_trees, shape.num_rows
    prompts = jnp.zeros((num_trees, size), jnp.int32)
    rows = jnp.zeros((num_trees, num_rows, trace.max_step_tokens), jnp.int32)
    backbones = params[0], params[1]["backbone"]
    told = [
        jax.eval_shape(partial(read, model, p), prompts, jnp.ones(num_trees, int))
        for p in backbones
    ]
    hidden = told[0][1]

    held = None
    if chunk is not None:
        num_pages = num_rows * -(-trace.max_step_tokens // chunk)
        num_chunks = -(-shape.num_steps * trace.max_step_tokens // chunk)  # of an order
        empty = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), s) for s, _ in told]
        held = Cache(
            prompt=tuple(s._replace(position=s.position - 1) for s in empty),
            pool=(
                cache.empty_pool(told[0][0], num_trees, num_pages, chunk),
                cache.empty_pool(told[1][0], num_trees, num_pages, chunk),
            ),
            hidden=jnp.zeros((num_trees, 1 + num_rows, *hidden.shape[1:]), hidden.dtype),
            address=rows,
            page=jnp.full((num_trees, num_rows, num_chunks), -1),
            num_pages=jnp.zeros(num_trees, jnp.int32),
        )
    b = num_trees * shape.num_prefixes * shape.num_lanes
    lanes = idle_lanes(
        b, shape.num_steps, shape.num_siblings, jnp.zeros(hidden.shape[1:], hidden.dtype)
    )
    return Memory(prompts, prompts[:, 0], rows, rows[..., 0], rows.astype(jnp.float32), lanes, held)


def renew(
    model: Network, params: Both, memory: Memory, slots: Array, prompts: Prompts
) -> tuple[Memory, Cost]:
    """Let trees begin with a prompt, and forget their rows."""
    num_trees, none = len(memory.prompt), jnp.zeros(slots.shape, jnp.int32)
    slots = jnp.where(slots >= 0, slots, num_trees)

    def put(x: Array, new: Array | int) -> Array:
        return x.at[slots].set(new, mode="drop")

    held, cost = memory.cache, Cost(none, none, none)
    if held is not None:
        backbones = params[0], params[1]["backbone"]
        told = [read(model, p, prompts.tokens, prompts.length) for p in backbones]
        segments = zip(held.prompt, told, strict=True)
        held = held._replace(
            prompt=tuple(cache.put_rows(old, slots, new) for old, (new, _) in segments),
            hidden=held.hidden.at[slots, 0].set(told[0][1], mode="drop"),
            page=put(held.page, -1),
            num_pages=put(held.num_pages, 0),
        )
        cost = Cost(prompts.length, prompts.length, none)
    memory = memory._replace(
        prompt=put(memory.prompt, prompts.tokens),
        prompt_length=put(memory.prompt_length, prompts.length),
        tokens=put(memory.tokens, 0),
        length=put(memory.length, 0),
        log_prob=put(memory.log_prob, 0),
        cache=held,
    )
    return memory, cost


def write(
    model: Network,
    tables: Tables,
    trace: TraceConfig,
    chunk: int | None,
    params: Both,
    memory: Memory,
    order: Order,
    temperature: Array,
) -> tuple[Memory, Written, Cost]:
    """Write some tokens in every live lane, and let the PRM read them."""
    num_trees, width, num_lanes, num_steps = order.row.shape
    chex.assert_shape(
        [order.key, order.number], [(num_trees, width, 2), (num_trees, width, num_lanes)]
    )
    # Begin what is new.
    memory = begin(memory, order)
    place = locate(memory, order.path, trace.max_step_tokens)
    size = chunk or num_steps * trace.max_step_tokens
    own = None
    if num_steps * trace.max_step_tokens > size:  # else a lane is done when its chunk is
        row = order.row.reshape(num_trees, width * num_lanes, num_steps)
        own = locate(memory, row, trace.max_step_tokens)

    # The policy writes.
    (segments, hidden), lanes = (
        context(model, params[0], memory, 0, order, place, own),
        memory.lanes,
    )
    is_new = order.is_new.reshape(-1)
    hidden = jnp.repeat(hidden.reshape(-1, *hidden.shape[2:]), num_lanes, axis=0)
    lanes = lanes._replace(hidden=jnp.where(is_new[:, None], hidden, lanes.hidden))
    was_live = lanes.is_live.reshape(order.number.shape)
    told = siblings_of(memory, order)
    is_same = lanes.is_same & (is_first_to_say(told) | ~is_new[:, None])
    lanes = lanes._replace(is_same=is_same)
    lanes, token, segment, num_slots = write_chunk(
        model, trace, tables, params[0], lanes, segments, told, temperature, size
    )

    # The PRM reads what was written, and says its word where a step ends.
    backbone = params[1]["backbone"]
    segments, _ = context(model, backbone, memory, 1, order, place, own)
    tokens, is_written = token.token.T, token.is_written.T
    position = memory.lanes.start[:, None] + memory.lanes.num_tokens[:, None] + jnp.arange(size)
    hidden, judged = model.apply({"params": backbone}, tokens, position, is_written, segments)
    value = HEAD.apply({"params": params[1]["head"]}, hidden).astype(jnp.float32)
    lane, step = (
        jnp.arange(len(tokens))[:, None],
        jnp.where(token.is_last.T, token.step.T, num_steps),
    )
    is_finite = jnp.all(jnp.isfinite(value) | ~token.is_last.T, axis=1)
    value = jnp.where(jnp.isfinite(value), value, 0.0)
    lanes = lanes._replace(
        score=lanes.score.at[lane, step].set(value, mode="drop"), is_ok=lanes.is_ok & is_finite
    )

    # Keep it all, and tell the search.
    memory = keep(memory._replace(lanes=lanes), order, token, (segment, judged))
    num_written = jnp.sum(is_written.reshape(num_trees, -1), axis=1)
    num_read = num_written
    if memory.cache is None:
        before = memory.prompt_length[:, None] + jnp.sum(place.is_token, axis=2)
        num_read = num_read + jnp.sum(jnp.where(jnp.any(was_live, axis=2), before, 0), axis=1)
    num_held = jnp.broadcast_to(num_slots * width * num_lanes, (num_trees,))
    return memory, tell(trace, memory.lanes, order), Cost(num_read, num_read, num_held)


def begin(memory: Memory, order: Order) -> Memory:
    """Give new orders to their lanes."""
    lanes, (num_trees, _, num_lanes, _) = memory.lanes, order.row.shape
    is_new, tree = order.is_new.reshape(-1), jnp.arange(num_trees)[:, None, None]
    # Folded twice: nodes fold an action into the same key, and a lane must not draw with the key of
    # a child node.
    key = fold_in(fold_in(order.key, LANES)[:, :, None], order.number).reshape(-1, 2)
    length = jnp.sum(jnp.where(order.path >= 0, memory.length[tree, order.path], 0), axis=2)
    start = jnp.repeat((memory.prompt_length[:, None] + length).reshape(-1), num_lanes)
    room = order.room.reshape(-1)
    fresh = idle_lanes(len(room), order.row.shape[3], order.sibling.shape[3], lanes.hidden[0])
    is_same = (order.sibling >= 0).reshape(len(room), -1)
    fresh = fresh._replace(key=key, start=start, room=room, is_live=room > 0, is_same=is_same)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(is_new.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    lanes = jax.tree.map(choose, fresh, lanes)._replace(hidden=lanes.hidden)
    # What a row said before is forgotten.
    is_row = order.is_new[..., None] & (order.row >= 0)
    row = jnp.where(is_row, order.row, memory.tokens.shape[1])
    at = tree[..., None], row
    return memory._replace(
        lanes=lanes,
        tokens=memory.tokens.at[at].set(0, mode="drop"),
        length=memory.length.at[at].set(0, mode="drop"),
    )


def locate(memory: Memory, row: Array, size: int) -> Place:
    """Find the tokens of chains of rows [B n D], at most D * size each."""
    num_trees, n, depth = row.shape
    tree = jnp.arange(num_trees)[:, None, None]
    length = jnp.where(row >= 0, memory.length[tree, row], 0)
    end, at = jnp.cumsum(length, axis=2), jnp.arange(depth * size)
    # Which row a token lies in, and where.
    d = jnp.sum(at[:, None] >= end[:, :, None], axis=3)
    is_token, d = d < depth, jnp.minimum(d, max(depth - 1, 0))
    at = at - jnp.take_along_axis(end - length, d, axis=2)
    return Place(jnp.take_along_axis(row, d, axis=2), jnp.where(is_token, at, 0), is_token)


def context(
    model: Network,
    params: Params,
    memory: Memory,
    network: int,
    order: Order,
    path: Place,
    own: Place | None,
) -> tuple[tuple[Segment, ...], Array]:
    """Give what a lane sees: segments, and the policy's hidden states at the prefixes' ends
    [B W width].
    """
    num_trees, width, _ = path.row.shape
    tree, held = jnp.arange(num_trees)[:, None, None], memory.cache
    length = memory.prompt_length[:, None]
    num_before = length + jnp.sum(path.is_token, axis=2)

    # Read prompt and path anew, one behind the other.
    if held is None:
        size = memory.prompt.shape[1]
        at = jnp.arange(size + path.row.shape[2])
        prompt = jnp.pad(memory.prompt, ((0, 0), (0, path.row.shape[2])))[:, None]
        tokens = memory.tokens[tree, path.row, path.at]
        behind = jnp.clip(at - length, 0, max(tokens.shape[2] - 1, 0))[:, None]
        behind = jnp.broadcast_to(behind, (num_trees, width, len(at)))
        if tokens.shape[2]:
            tokens = jnp.take_along_axis(tokens, behind, axis=2)
            prompt = jnp.where(at < length[:, None], prompt, tokens)
        text = jnp.broadcast_to(prompt, behind.shape).reshape(-1, len(at))
        segment, hidden = read(model, params, text, num_before.reshape(-1))
        return (segment,), hidden.reshape(num_trees, width, -1)

    # Gather what was kept.
    def gather(place: Place, start: Array) -> Segment:
        position = start[..., None] + jnp.arange(place.row.shape[2])
        address = held.address[tree, place.row, place.at]
        return cache.gather(pool, address, jnp.where(place.is_token, position, -1))

    pool, segments = held.pool[network], [held.prompt[network]]
    if path.row.shape[2]:
        segments.append(gather(path, jnp.broadcast_to(length, num_before.shape)))
    if own is not None:
        segments.append(gather(own, jnp.repeat(num_before, own.row.shape[1] // width, axis=1)))
    # The newest row of a path; without one, the prompt stands in front.
    last = jnp.max(order.path[..., -1:], axis=2, initial=-1) + 1
    return tuple(segments), held.hidden[tree[..., 0], last]


def siblings_of(memory: Memory, order: Order) -> Siblings:
    """Gather the steps that lanes must not say again."""
    tree, b = jnp.arange(len(order.row))[:, None, None, None], memory.lanes.room.shape[0]
    tokens = memory.tokens[tree, order.sibling]
    length = jnp.where(order.sibling >= 0, memory.length[tree, order.sibling], 0)
    log_prob = memory.log_prob[tree, order.sibling]
    is_token = jnp.arange(tokens.shape[-1]) < length[..., None]
    log_prob = jnp.where(is_token, log_prob, 0.0)
    rest = jnp.flip(jnp.cumsum(jnp.flip(log_prob, -1), axis=-1), -1) - log_prob
    return Siblings(*(x.reshape(b, *x.shape[3:]) for x in (tokens, length, rest)))


def is_first_to_say(told: Siblings) -> Array:
    """Mark the siblings [b A] that say what no earlier one says, so that no mass counts twice:
    lanes side by side may have said the same.
    """
    is_equal = jnp.all(told.tokens[:, :, None] == told.tokens[:, None], axis=3)
    is_equal &= told.length[:, :, None] == told.length[:, None]
    return ~jnp.any(jnp.tril(is_equal, k=-1), axis=2)


def keep(memory: Memory, order: Order, token: Token, segments: tuple[Segment, Segment]) -> Memory:
    """Keep the tokens of a chunk [c b] under their rows, with their keys and values."""
    num_trees, num_rows = memory.tokens.shape[:2]
    size, b = token.token.shape
    n = b // num_trees
    row = order.row.reshape(b, -1)
    step = jnp.where(token.is_written, token.step, 0)
    row = jnp.where(token.is_written, row[jnp.arange(b), step], num_rows)

    def by_tree(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(size, num_trees, n, *x.shape[2:]), 0, 2)

    tree = jnp.arange(num_trees)[:, None, None]
    row, at, is_written = map(by_tree, (row, token.at, token.is_written))
    index = tree, row, at
    memory = memory._replace(
        tokens=memory.tokens.at[index].set(by_tree(token.token), mode="drop"),
        log_prob=memory.log_prob.at[index].set(by_tree(token.log_prob), mode="drop"),
        length=memory.length.at[tree, row].max(at + 1, mode="drop"),
    )
    held = memory.cache
    if held is None:
        return memory

    # A lane that wrote takes a page, the old one where its order was written before. Where it is to
    # write is known only when everything was read, or the compiler would copy the pools.
    lanes, tree = memory.lanes, tree[..., 0]
    num_written = jnp.sum(is_written, axis=2)
    has_page = (num_written > 0) & lanes.is_ok.reshape(num_trees, n)
    owner = jnp.where(has_page, order.row[..., 0].reshape(num_trees, n), num_rows)
    nth = (lanes.num_tokens.reshape(num_trees, n) - num_written) // size
    page = held.page.at[tree, owner, nth].get(mode="fill", fill_value=0)
    is_fresh = has_page & (page < 0)
    page = jnp.where(is_fresh, held.num_pages[:, None] + jnp.cumsum(is_fresh, axis=1) - 1, page)
    pages = held.page.at[tree, owner, nth].set(page, mode="drop")
    page = jnp.where(has_page, page, NO_PAGE)
    address, tree = page[:, :, None] * size + jnp.arange(size), tree[..., None]
    is_last = by_tree(token.is_last & token.is_written)
    ends = jnp.where(is_last, row + 1, num_rows + 1)
    pools = zip(held.pool, segments, strict=True)
    held = held._replace(
        pool=tuple(cache.put(pool, page, segment) for pool, segment in pools),
        hidden=held.hidden.at[tree, ends].set(by_tree(token.hidden), mode="drop"),
        address=held.address.at[index].set(address, mode="drop"),
        page=pages,
        num_pages=held.num_pages + jnp.sum(is_fresh, axis=1),
    )
    return memory._replace(cache=held)


def tell(trace: TraceConfig, lanes: Lanes, order: Order) -> Written:
    """Tell the search where the lanes stand."""
    shape = order.row.shape
    depth = jnp.sum(order.path >= 0, axis=2)[..., None, None] + 1 + jnp.arange(shape[3])
    length, score, log_prob, is_finished, is_cut = (
        x.reshape(shape)
        for x in (lanes.length, lanes.score, lanes.log_prob, lanes.is_finished, lanes.is_cut)
    )
    is_deepest = (length > 0) & (depth >= trace.max_steps)
    return Written(
        is_live=lanes.is_live.reshape(shape[:3]),
        is_ok=lanes.is_ok.reshape(shape[:3]),
        length=length,
        score=score,
        log_prob=log_prob,
        is_finished=is_finished,
        is_ended=is_finished | is_cut | is_deepest,
    )


def read(model: Network, params: Params, tokens: Array, length: Array) -> tuple[Segment, Array]:
    """Read texts [b L]: (their segment, the hidden state at each one's last token [b width])."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = positions < length[:, None]
    hidden, segment = model.apply({"params": params}, tokens, positions, mask)
    last: Any = jnp.maximum(length - 1, 0)[:, None, None]
    return segment, jnp.take_along_axis(hidden, last, axis=1)[:, 0]
