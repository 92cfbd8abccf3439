"""What rules of `tree_loop` share: the back-up, and a node that is opened without a rollout."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtrain.search.rows import Rows, clip
from jaxtrain.search.tree_loop import MctxTree, TreeRule
from jaxtrain.structs import Array


def without_rollouts(select: Callable[[MctxTree, Array, Array], Array]) -> TreeRule:
    """Make the rule that selects like this, and takes the PRM's word for a candidate's value until
    it is searched.
    """

    def open_node(rows: Rows, num_candidates: int) -> tuple[Array, Array]:
        return jnp.zeros(num_candidates, jnp.int32), clip(rows.score[:num_candidates])

    return TreeRule(
        num_rounds=0,
        num_lanes=0,
        num_steps=0,
        select=select,
        follow=lambda rows, r: jnp.int32(-1),
        open=open_node,
        back_up=back_up,
    )


@jax.vmap
def back_up(tree: MctxTree, index: Array) -> MctxTree:
    """Walk from node `index` [B] to the root (Eq. 35-36); -1 leaves a tree as it is.

    n += 1; v = sum n_c v_c / sum n_c over visited children where there are any; both copied into
    the parent's slot.
    """

    def step(carry):
        index, n, v, children_n, children_v = carry
        visits = children_n[index]
        total = jnp.sum(visits)
        mean = jnp.sum(visits * children_v[index]) / jnp.maximum(total, 1)
        n = n.at[index].add(1)
        v = v.at[index].set(jnp.where(total > 0, mean, v[index]))
        parent, action = tree.parents[index], tree.action_from_parent[index]
        # At the root the parent is -1: the write is aimed past the end, where scatters drop it.
        slot = jnp.where(parent >= 0, parent, n.shape[0])
        children_n = children_n.at[slot, action].set(n[index], mode="drop")
        children_v = children_v.at[slot, action].set(v[index], mode="drop")
        return parent, n, v, children_n, children_v

    carry = index, tree.node_visits, tree.node_values, tree.children_visits, tree.children_values
    _, n, v, children_n, children_v = jax.lax.while_loop(lambda carry: carry[0] >= 0, step, carry)
    return tree.replace(
        node_visits=n, node_values=v, children_visits=children_n, children_values=children_v
    )
