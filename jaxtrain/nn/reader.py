"""The only sight of the networks that a search has: paths of rows in, steps and their scores out.

A search knows a prefix by its path, the numbers of its rows. What the rows say, and what the
networks keep of them, lies in a Memory that a search hands on and never opens.

Two memories, with the same draws where siblings begin together or a chunk is a whole step.
*Cached*: both networks read every token once, in chunks, and keep its keys and values under its
row; a path is a gather, and a prompt is shared by its tree. *Recompute*: text alone is kept, and
prompt and path are read anew for every order.
"""

from functools import partial

import chex
import jax.numpy as jnp

from jaxtrain.boundaries import Tables, TraceConfig
from jaxtrain.commuting import make_form
from jaxtrain.keys import fold_in
from jaxtrain.nn.decode import Lanes, idle_lanes, write_chunk
from jaxtrain.nn.heads import Network, value_of
from jaxtrain.nn.memory import (
    Both,
    Memory,
    Models,
    Place,
    is_first_to_say,
    keep,
    locate,
    open_memory,
    read,
    read_pages,
    renew,
    siblings_of,
)
from jaxtrain.nn.transformer import Segment, empty_segment, join
from jaxtrain.structs import Array, Cost, FormFn, Order, Params, Reader, Written, choose

PLAIN = make_form((), "")  # steps are told apart by their tokens
LANES = 0x1A9E5  # sets the keys of lanes apart from those of nodes


def make_reader(
    models: Models,
    tables: Tables,
    trace: TraceConfig,
    chunk: int | None = None,
    form: FormFn = PLAIN,
) -> Reader:
    """Make a reader of the networks; see `structs.Reader` for its functions.

    chunk: tokens that a lane writes between two looks of the search, with everything cached; None:
    nothing is cached, and an order is written as a whole.

    A step ends where `tables` say so, or at `trace.step_tokens` tokens, but never inside an answer.
    At `trace.max_step_tokens` it is cut. form: which steps are the same.
    """
    return Reader(
        open=partial(open_memory, models, trace, chunk),
        renew=partial(renew, models),
        write=partial(write, models, tables, trace, chunk),
        text=lambda memory: memory.tokens,
        form=form,
    )


def write(
    models: Models,
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
    chex.assert_shape(order.key, (num_trees, width, 2))
    chex.assert_shape(order.number, (num_trees, width, num_lanes))
    # Begin what is new.
    memory = begin(memory, order)
    size = chunk or num_steps * trace.max_step_tokens

    # The policy writes.
    path, alone = see(memory, trace, order, size)
    segments, own, hidden = context(models[0], params[0], memory, 0, order, path, alone, size)
    is_new, lanes = order.is_new.reshape(-1), memory.lanes
    hidden = jnp.repeat(hidden.reshape(-1, *hidden.shape[2:]), num_lanes, axis=0)
    lanes = lanes._replace(hidden=jnp.where(is_new[:, None], hidden, lanes.hidden))
    was_live = lanes.is_live.reshape(order.number.shape)
    told = siblings_of(memory, order)
    lanes = lanes._replace(is_same=lanes.is_same & (is_first_to_say(told) | ~is_new[:, None]))
    lanes, token, segment, num_slots = write_chunk(
        models[0], trace, tables, params[0], lanes, segments, own, told, temperature, size
    )

    # The PRM reads what was written, and says its word where a step ends.
    backbone = params[1]["backbone"]
    segments, behind, _ = context(models[1], backbone, memory, 1, order, path, alone, size)
    tokens, is_written = token.token.T, token.is_written.T
    position = memory.lanes.start[:, None] + memory.lanes.num_tokens[:, None] + jnp.arange(size)
    # Where nothing is kept, nothing lies there: the compiler would fold what nobody sees.
    segments = segments if memory.cache is None else (*segments, behind)
    hidden, judged = models[1].apply({"params": backbone}, tokens, position, is_written, segments)
    value = value_of(params[1]["head"], hidden)
    lane = jnp.arange(len(tokens))[:, None]
    step = jnp.where(token.is_last.T, token.step.T, num_steps)
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
        before = memory.lanes.start.reshape(was_live.shape)[:, :, 0]
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
    sizes = len(room), order.row.shape[3], order.sibling.shape[3]
    fresh = idle_lanes(*sizes, lanes.hidden[0], lanes.sums is not None)
    is_same = (order.sibling >= 0).reshape(len(room), -1)
    fresh = fresh._replace(key=key, start=start, room=room, is_live=room > 0, is_same=is_same)

    lanes = choose(is_new, fresh, lanes)._replace(hidden=lanes.hidden)
    # What a row said before is forgotten.
    is_row = order.is_new[..., None] & (order.row >= 0)
    row = jnp.where(is_row, order.row, memory.tokens.shape[1])
    at = tree[..., None], row
    return memory._replace(
        lanes=lanes,
        tokens=memory.tokens.at[at].set(0, mode="drop"),
        length=memory.length.at[at].set(0, mode="drop"),
    )


def see(memory: Memory, trace: TraceConfig, order: Order, size: int) -> tuple[Place | None, ...]:
    """Find the steps that lanes see: (those that the lanes of a prefix share, those that one sees
    alone, with `size` places to write into).
    """
    num_trees, width, num_lanes, num_steps = order.row.shape
    depth, step = order.path.shape[2], trace.max_step_tokens
    if memory.cache is None:
        return locate(memory, order.path, depth * step), None
    row = order.row.reshape(num_trees, -1, num_steps)
    num_own = num_steps if num_steps * step > size else 0  # else a lane is done when its chunk is
    if num_lanes > 1:
        path = locate(memory, order.path, depth * step) if depth else None
        return path, locate(memory, row, num_own * step + size)
    # A lone lane has its path for itself; both together are no more than a trace.
    row = jnp.concatenate([order.path, row], axis=2)
    return None, locate(memory, row, min(depth + num_own, trace.max_steps) * step + size)


def context(
    model: Network,
    params: Params,
    memory: Memory,
    network: int,
    order: Order,
    path: Place | None,
    alone: Place | None,
    size: int,
) -> tuple[tuple[Segment, ...], Segment, Array]:
    """Give what lanes see: segments that they share, one of each its own with `size` places to
    write into, and the policy's hidden states at the prefixes' ends [B W width].
    """
    num_trees, width, num_lanes, _ = order.row.shape
    tree, held = jnp.arange(num_trees)[:, None, None], memory.cache
    length = memory.prompt_length[:, None]

    # Read prompt and path anew, one behind the other.
    if held is None:
        assert path is not None
        num_before = length + jnp.sum(path.is_token, axis=2)
        at = jnp.arange(memory.prompt.shape[1] + path.row.shape[2])
        prompt = jnp.pad(memory.prompt, ((0, 0), (0, path.row.shape[2])))[:, None]
        tokens = memory.tokens[tree, path.row, path.at]
        behind = jnp.clip(at - length, 0, max(tokens.shape[2] - 1, 0))[:, None]
        behind = jnp.broadcast_to(behind, (num_trees, width, len(at)))
        if tokens.shape[2]:
            tokens = jnp.take_along_axis(tokens, behind, axis=2)
            prompt = jnp.where(at < length[:, None], prompt, tokens)
        text = jnp.broadcast_to(prompt, behind.shape).reshape(-1, len(at))
        segment, hidden = read(model, params, text, num_before.reshape(-1))
        own = empty_segment(segment, num_trees * width * num_lanes, size)
        return (segment,), own, hidden.reshape(num_trees, width, -1)

    # Gather what was kept.
    def gather(place: Place, start: Array) -> Segment:
        position = start[..., None] + jnp.arange(place.row.shape[2])
        address = held.address[tree, place.row, place.at]
        return read_pages(pool, address, jnp.where(place.is_token, position, -1))

    assert alone is not None
    pool, segments, start = held.pool[network], [held.prompt[network]], length
    if path is not None:
        segments.append(gather(path, jnp.broadcast_to(length, path.row.shape[:2])))
        start = jnp.repeat(length + jnp.sum(path.is_token, axis=2), num_lanes, axis=1)
    segments.append(gather(alone, jnp.broadcast_to(start, alone.row.shape[:2])))

    # Those of as many rows become one: the compiler would join them anew for every token.
    joined = segments[:1]
    for segment in segments[1:]:
        is_equal = len(segment.position) == len(joined[-1].position)
        joined[-1:] = [join(joined[-1], segment)] if is_equal else [joined[-1], segment]
    # The newest row of a path; without one, the prompt stands in front.
    last = jnp.max(order.path[..., -1:], axis=2, initial=-1) + 1
    return tuple(joined[:-1]), joined[-1], held.hidden[tree[..., 0], last]


def tell(trace: TraceConfig, lanes: Lanes, order: Order) -> Written:
    """Tell the search where the lanes stand."""
    shape = order.row.shape
    depth = jnp.sum(order.path >= 0, axis=2)[..., None, None] + 1 + jnp.arange(shape[3])
    told = lanes.length, lanes.score, lanes.log_prob, lanes.is_finished, lanes.is_cut
    length, score, log_prob, is_finished, is_cut = (x.reshape(shape) for x in told)
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
