"""Every pytree that crosses a file, and the choice between two. Imports nothing of ours.

Dimension key, used in every shape comment of the project:

    B  problems in a batch              R  rows of a tree (every step ever sampled for it)
    N  nodes that mctx expands          S  tokens of a step, at most
    A  candidate steps of a node        L  tokens of a sequence, at most (prompt and all steps)
    D  steps of a trace, at most        M  examples of an update
    W  prefixes of a problem at once    K  steps that a lane draws at once
    C  rows of a node                   P  tokens of a prompt, at most
    E  examples of a fit                G  slots that begin with a prompt at once
    J  lanes that write behind a prefix

A *step* is a piece of reasoning, never a gradient step (that is an *update*). *Finished* means that
the final answer has been given (an end token), *ended* that the branch cannot grow (finished, or
cut by the step or depth limit).
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct

# jax.Array inside jit, np.ndarray on the host: the stages hand both on, and no checker can tell
# them apart for us.
Array = Any
Params = Any  # nested dict of arrays

# where layers are scanned: the parameters of all of them, the layer as leading axis
STACKED = "blocks"
PROJECTIONS = ("wq", "wk", "wv", "wo", "gate", "up", "down")  # the matrices of a block, [in out]


class Kind(IntEnum):
    """What a row of a tree is."""

    EMPTY = 0  # never sampled
    CANDIDATE = 1  # a step sampled when its parent was expanded
    ROLLOUT = 2  # a step of a Monte Carlo rollout
    # a candidate whose text an earlier sibling has already; never searched, never labelled
    DUPLICATE = 3
    # a step that its task's check calls false, or one behind such a step, where a search filters:
    # never searched, never an answer, worth 0
    FALSE = 4


class Verdict(IntEnum):
    """The task's word on a finished trace."""

    NONE = 0  # not a finished trace
    CORRECT = 1
    WRONG = 2
    # finished without an answer that can be read; wrong for every purpose but the counts
    UNPARSABLE = 3
    ERROR = 4  # the verifier failed; counted, never trained on


JUDGED = (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE)  # those that tell of a trace


class Tokenizer(Protocol):
    """What turns text into ids and back, ours or one of transformers."""

    @property
    def vocab_size(self) -> int: ...  # ids that a network knows
    @property
    def pad_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...  # written behind a response
    @property
    def end_ids(self) -> tuple[int, ...]: ...  # any of them ends a response
    @property
    def token_bytes(self) -> tuple[bytes, ...]: ...  # of every id
    def encode(self, text: str) -> list[int]: ...
    def encode_start(self, text: str) -> list[int]: ...  # of a text that begins a row
    def encode_chat(self, text: str, system: str, date: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@struct.dataclass
class Prompts:
    """Encoded problems, right-padded. A row with problem_id -1 is padding of the batch."""

    tokens: Array  # [B P] int32
    length: Array  # [B] int32
    problem_id: Array  # [B] int32


# Prefixes by address: the rows of their steps in the tree that holds them, [... D] int32, last step
# last, -1 before the first.
Path = Array


class Cost(NamedTuple):
    """What was computed, in tokens."""

    policy_tokens: Array  # [B] int32, prompts and steps that the policy read, padding not
    prm_tokens: Array  # [B] int32, those that the PRM read
    lane_tokens: Array  # [B] int32, token slots held open, whether or not of use


class Order(NamedTuple):
    """What the lanes are to write: up to K steps a lane, behind W prefixes of every tree."""

    path: Path  # [B W D-K]
    key: Array  # [B W 2] uint32, of a prefix
    number: Array  # [B W J] int32, which of the draws behind its prefix a lane makes
    row: Array  # [B W J K] int32, where its steps go
    room: Array  # [B W J] int32, steps that it may write
    sibling: Array  # [B W J A] int32, rows whose step it must not say again, -1: none
    is_new: Array  # [B W J] bool, it begins; the others go on with what they were told before


class Written(NamedTuple):
    """What the lanes have written of their orders; a lane that is not live has done its own."""

    is_live: Array  # [B W J] bool
    is_ok: Array  # [B W J] bool, every logit and score was finite
    length: Array  # [B W J K] int32, 0: there is no such step
    score: Array  # [B W J K] float32, the PRM's raw word; 0 where not finite
    log_prob: Array  # [B W J K] float32, of the step, under the law that it was drawn from
    is_finished: Array  # [B W J K] bool
    is_ended: Array  # [B W J K] bool: finished, cut, or at the depth limit


class LaneShape(NamedTuple):
    """How many lanes a search has, and of which form; what a Reader makes its memory for."""

    num_trees: int  # B
    num_rows: int  # R
    num_prefixes: int  # W
    num_lanes: int  # J, of a prefix
    num_steps: int  # K
    num_siblings: int  # A


# (id of a problem, tokens of the steps of a path, int32 as bytes) -> how many of these steps are
# certainly wrong; asked on the host
CheckFn = Callable[[int, tuple[bytes, ...]], int]

# tokens of steps [... S] and how many of them count [...] -> [... x], equal where two are the same
FormFn = Callable[[Array, Array], Array]
Memory = Any  # what a Reader keeps of prompts, rows and lanes; opaque to search


class Reader(NamedTuple):
    """The sight of the networks that a search has. `params` is (policy, PRM).

    open(params, lane_shape, prompt_size) -> Memory of trees without prompts;
    renew(params, memory, slots [G], prompts [G]) -> (Memory, Cost [G]): these slots begin with a
    prompt, their rows forgotten; a slot of -1 is none;
    write(params, memory, order, temperature) -> (Memory, Written, Cost): some tokens in every live
    lane;
    text(memory) -> [B R S] int32, tokens of every row;
    form: which steps are the same.
    """

    open: Callable[[tuple[Params, Params], LaneShape, int], Memory]
    renew: Callable[[tuple[Params, Params], Memory, Array, Prompts], tuple[Memory, Cost]]
    write: Callable[..., tuple[Memory, Written, Cost]]
    text: Callable[[Memory], Array]
    form: FormFn


@struct.dataclass
class Tree:
    """A finished search over one prompt, in rows that no engine's internals show through.

    A row is one sampled step. Its parent row always has a smaller index; parent -1 is the prompt
    itself.
    """

    problem_id: Array  # [B] int32
    parent: Array  # [B R] int32
    kind: Array  # [B R] int32, a Kind
    tokens: Array  # [B R S] int32
    length: Array  # [B R] int32
    score: Array  # [B R] float32, the PRM's value of the prefix that ends with this step
    log_prob: Array  # [B R] float32, of the step, under the law that it was drawn from
    visits: Array  # [B R] int32
    value: Array  # [B R] float32, after back-up; the score where nothing was backed up
    is_ended: Array  # [B R] bool
    is_finished: Array  # [B R] bool
    chosen: Array  # [B] int32, the row that the search answers with, -1 if it has no finished one
    is_ok: Array  # [B] bool, False: a logit or a score was not finite and the problem is set aside
    # [B] int32, expansions and re-visits of ended leaves; lanes opened, where no tree is walked
    num_simulations: Array
    num_wasted: Array  # [B] int32, simulations spent on leaves that had ended
    num_closed: Array  # [B] int32, nodes below which nothing is open any more
    num_exhausted: Array  # [B] int32, nodes that had fewer distinct steps than asked
    policy_tokens: Array  # [B] int32, tokens the policy computed (prefill and samples, padding not)
    prm_tokens: Array  # [B] int32, tokens the PRM computed
    # [B] int32, token slots held open, which depends on the batch; `length` summed were of use
    lane_tokens: Array


# (policy params, PRM params, prompts, keys [B 2] uint32, temperature []) -> trees
GrowFn = Callable[[Params, Params, Prompts, Array, Array], Tree]
# the same over a base that both networks share, which comes first
GrowOverFn = Callable[[Params, Params, Params, Prompts, Array, Array], Tree]


@struct.dataclass
class Labels:
    """What every row of a tree is worth, given the verdicts on its finished traces (stage 3)."""

    verdict: Array  # [B R] int32, a Verdict
    is_correct: Array  # [B R] bool, a correct answer is reached here or below
    target: Array  # [B R] float32, what the step is worth, in [0, 1]
    is_labelled: Array  # [B R] bool
    weight: Array | None = None  # [B R] float32, how much a label counts; None: all alike


class Shard(NamedTuple):
    """One batch of problems, what search made of it, and what that is worth."""

    prompts: Prompts
    tree: Tree
    labels: Labels


@struct.dataclass
class TokenRows:
    """Training rows of either network: one text a row, or several that may share their beginnings.

    The tokens of a row are a tree in preorder: what goes on from a token stands behind it, up to a
    column. So one text is a row, texts one behind the other are, and a beginning that texts share
    stands there once. A batch has M rows, and fewer columns where no row needs all. What is learnt
    at a token is the network's business: the policy learns to write it, the PRM the value of the
    text that ends with it.
    """

    tokens: Array  # [E L] int32
    position: Array  # [E L] int32, the place of a token in its own text
    # [E L] int32, the column behind the last token that goes on from this one; 0 is padding
    until: Array
    target: Array  # [E L] float32, a value; unread where no value is learnt
    # [E L] float32, how much a token counts in the loss; 0 where nothing is learnt, and so at the
    # first token of a text
    weight: Array
    group: Array  # [E L] int32, tokens of one number are compared by a loss; -1: with no other
    # [E L] float32, of every token by the policy before the fit; None where no loss asks for it
    log_prob: Array | None = None


# (params, rows [M L]) -> what a network says at every token, float32: the policy's log-probability
# of it [M L], the PRM's outputs [M L] or [M L K]
ReadFn = Callable[[Params, TokenRows], Array]


@struct.dataclass
class Examples:
    """All rows that one network is fitted to, a text each, and where they came from."""

    rows: TokenRows
    problem_id: Array  # [E] int32, -1: of no problem that is searched
    iteration: Array  # [E] int32, the iteration that made the row
    is_correct: Array  # [E] bool, the text is verified to end with a correct answer


@struct.dataclass
class Learner:
    """A network with its optimizer."""

    params: Params
    opt_state: Any
    num_updates: Array  # [] int32


class Networks(NamedTuple):
    """The parameters that search reads: what is trained of both networks lies over their base."""

    base: Params
    policy: Params
    prm: Params


@struct.dataclass
class State:
    """All that an iteration hands to the next one, besides the trees on disk."""

    iteration: Array  # [] int32
    base: Params  # shared by both networks and never trained; {} where all weights are trained
    policy: Learner
    prm: Learner

    @property
    def networks(self) -> Networks:
        return Networks(self.base, self.policy.params, self.prm.params)


def choose(is_new: Array, new: Any, old: Any) -> Any:
    """Take the entries [B] that are new from one tree of arrays [B ...], the others from `old`."""
    return jax.tree.map(lambda x, y: jax.vmap(jnp.where)(is_new, x, y), new, old)
