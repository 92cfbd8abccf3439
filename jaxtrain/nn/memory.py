"""What the networks keep of a batch of trees: text, and keys and values where they are cached.

Those of a step are kept once. A pool has pages of as many tokens as a chunk, and a lane that writes
takes the next page of its tree; where the tokens of a step lie is told by their addresses, so a
path is a gather.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.boundaries import TraceConfig
from jaxtrain.nn.decode import Lanes, Siblings, Token, idle_lanes
from jaxtrain.nn.heads import Network
from jaxtrain.nn.transformer import Segment
from jaxtrain.structs import Array, Cost, LaneShape, Order, Params, Prompts

NO_PAGE = 2**24  # past all
Models = tuple[Network, Network]  # policy, PRM
Both = tuple[Params, Params]  # likewise


class Pool(NamedTuple):
    """Keys and values of one network: a layer [B kv pages c h]; scanned, the layer axis leads."""

    k: Any
    v: Any


class Cache(NamedTuple):
    """What the networks keep; each pair is (policy's, PRM's)."""

    prompt: tuple[Segment, Segment]  # B rows
    pool: tuple[Pool, Pool]
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


def open_memory(
    models: Models, trace: TraceConfig, chunk: int | None, params: Both, shape: LaneShape, size: int
) -> Memory:
    """Make the memory of trees that have no prompt yet."""
    # Text, empty.
    num_trees, num_rows = shape.num_trees, shape.num_rows
    prompts = jnp.zeros((num_trees, size), jnp.int32)
    rows = jnp.zeros((num_trees, num_rows, trace.max_step_tokens), jnp.int32)

    # What the networks would keep of a prompt, for its shapes alone.
    told = jax.eval_shape(partial(read_both, models), params, prompts, jnp.ones(num_trees, int))
    hidden = told[0][1]

    # Their caches.
    held = None
    if chunk is not None:
        num_pages = num_rows * -(-trace.max_step_tokens // chunk)
        num_chunks = -(-shape.num_steps * trace.max_step_tokens // chunk)  # of an order
        empty = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), s) for s, _ in told]
        pools = [empty_pool(s, num_trees, num_pages, chunk) for s, _ in told]
        held = Cache(
            prompt=tuple(s._replace(position=s.position - 1) for s in empty),
            pool=(pools[0], pools[1]),
            hidden=jnp.zeros((num_trees, 1 + num_rows, *hidden.shape[1:]), hidden.dtype),
            address=rows,
            page=jnp.full((num_trees, num_rows, num_chunks), -1),
            num_pages=jnp.zeros(num_trees, jnp.int32),
        )

    # Lanes, idle.
    b = num_trees * shape.num_prefixes * shape.num_lanes
    one = jnp.zeros(hidden.shape[1:], hidden.dtype)
    lanes = idle_lanes(b, shape.num_steps, shape.num_siblings, one, trace.calculator)
    return Memory(prompts, prompts[:, 0], rows, rows[..., 0], rows.astype(jnp.float32), lanes, held)


def renew(
    models: Models, params: Both, memory: Memory, slots: Array, prompts: Prompts
) -> tuple[Memory, Cost]:
    """Let trees begin with a prompt. What rows say is forgotten when they are written anew."""
    num_trees, none = len(memory.prompt), jnp.zeros(slots.shape, jnp.int32)
    slots = jnp.where(slots >= 0, slots, num_trees)

    def put(x: Array, new: Array | int) -> Array:
        return x.at[slots].set(new, mode="drop")

    def put_layers(x: Array, new: Array) -> Array:  # scanned, the layer axis leads
        return jax.vmap(put_layers)(x, new) if new.ndim > 4 else put(x, new)

    def put_rows(old: Segment, new: Segment) -> Segment:
        k, v = jax.tree.map(put_layers, (old.k, old.v), (new.k, new.v))
        return Segment(k, v, put(old.position, new.position))

    held, cost = memory.cache, Cost(none, none, none)
    if held is not None:
        told = read_both(models, params, prompts.tokens, prompts.length)
        segments = zip(held.prompt, told, strict=True)
        held = held._replace(
            prompt=tuple(put_rows(old, new) for old, (new, _) in segments),
            hidden=held.hidden.at[slots, 0].set(told[0][1], mode="drop"),
            page=put(held.page, -1),
            num_pages=put(held.num_pages, 0),
        )
        cost = Cost(prompts.length, prompts.length, none)
    memory = memory._replace(
        prompt=put(memory.prompt, prompts.tokens),
        prompt_length=put(memory.prompt_length, prompts.length),
        cache=held,
    )
    return memory, cost


def locate(memory: Memory, row: Array, num_places: int) -> Place:
    """Find the tokens of chains of rows [B n D], which have so many places."""
    num_trees, n, depth = row.shape
    tree = jnp.arange(num_trees)[:, None, None]
    length = jnp.where(row >= 0, memory.length[tree, row], 0)
    end, at = jnp.cumsum(length, axis=2), jnp.arange(num_places)
    # Which row a token lies in, and where.
    d = jnp.sum(at[:, None] >= end[:, :, None], axis=3)
    is_token, d = d < depth, jnp.minimum(d, max(depth - 1, 0))
    at = at - jnp.take_along_axis(end - length, d, axis=2)
    return Place(jnp.take_along_axis(row, d, axis=2), jnp.where(is_token, at, 0), is_token)


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
    """Mark the siblings [b A] that no earlier one repeats: lanes side by side may say the same."""
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
        pool=tuple(put_pages(pool, page, segment) for pool, segment in pools),
        hidden=held.hidden.at[tree, ends].set(by_tree(token.hidden), mode="drop"),
        address=held.address.at[index].set(address, mode="drop"),
        page=pages,
        num_pages=held.num_pages + jnp.sum(is_fresh, axis=1),
    )
    return memory._replace(cache=held)


def empty_pool(segment: Segment, num_trees: int, num_pages: int, size: int) -> Pool:
    """Make a pool of empty pages; segment: one of the network's, abstract, for its shapes."""

    def empty(x: Array) -> Array:
        *layers, _, kv, _, h = x.shape
        return jnp.zeros((*layers, num_trees, kv, num_pages, size, h), x.dtype)

    return Pool(*jax.tree.map(empty, (segment.k, segment.v)))


def put_pages(pool: Pool, page: Array, own: Segment) -> Pool:
    """Write the chunks of lanes [B n] into pages [B n]; a page past the end is none."""

    def write(pages: Array, chunk: Array) -> Array:
        if chunk.ndim > 4:  # layer by layer
            return jax.vmap(write)(pages, chunk)
        by_tree = chunk.reshape(*page.shape, *chunk.shape[1:]).swapaxes(1, 2)
        return jax.vmap(lambda x, i, y: x.at[:, i].set(y, mode="drop"))(pages, page, by_tree)

    return Pool(*jax.tree.map(write, tuple(pool), (own.k, own.v)))


def read_pages(pool: Pool, address: Array, position: Array) -> Segment:
    """Read tokens at addresses [B n T], of positions [B n T], -1: none: a segment of B*n rows."""

    def read(pages: Array) -> Array:
        if pages.ndim > 5:
            return jax.vmap(read)(pages)
        tokens = pages.reshape(*pages.shape[:2], -1, pages.shape[-1])
        found = jax.vmap(lambda x, at: jax.vmap(lambda i: x[:, i])(at))(tokens, address)
        return found.reshape(-1, *found.shape[2:])

    k, v = jax.tree.map(read, tuple(pool))
    return Segment(k, v, position.reshape(-1, position.shape[-1]))


def read(model: Network, params: Params, tokens: Array, length: Array) -> tuple[Segment, Array]:
    """Read texts [b L]: (their segment, the hidden state at each one's last token [b width])."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = positions < length[:, None]
    hidden, segment = model.apply({"params": params}, tokens, positions, mask)
    last: Any = jnp.maximum(length - 1, 0)[:, None, None]
    return segment, jnp.take_along_axis(hidden, last, axis=1)[:, 0]


def read_both(models: Models, params: Both, *texts: Array) -> list[tuple[Segment, Array]]:
    """Let policy and PRM read texts, as `read` does."""
    backbones = zip(models, (params[0], params[1]["backbone"]), strict=True)
    return [read(*backbone, *texts) for backbone in backbones]
