"""What searches cost, read from their trees."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtrain.structs import Kind, Tree


def totals_of(grown: Sequence[Tree]) -> dict[str, float]:
    """Count what a search cost and how much of it was of use."""
    if not grown:
        return {}
    # what the trees counted themselves
    names = ("num_simulations", "num_wasted", "policy_tokens", "prm_tokens", "lane_tokens")
    totals: dict[str, float] = {
        name: int(sum(getattr(t, name).sum() for t in grown)) for name in names
    }
    # what their rows are
    rows = {kind: sum(int((t.kind == kind).sum()) for t in grown) for kind in Kind}
    num_candidates = rows[Kind.CANDIDATE] + rows[Kind.DUPLICATE]
    useful = sum(int(t.length.sum()) for t in grown)
    both = totals["policy_tokens"] + totals["prm_tokens"]
    return totals | {
        "num_steps": num_candidates + rows[Kind.ROLLOUT],
        "num_duplicates": rows[Kind.DUPLICATE],
        "num_closed_nodes": sum(int(t.num_closed.sum()) for t in grown),
        "num_exhausted_nodes": sum(int(t.num_exhausted.sum()) for t in grown),
        "sampled_tokens": useful,
        "share_wasted_simulations": totals["num_wasted"] / max(totals["num_simulations"], 1),
        "share_useful_lanes": useful / max(totals["lane_tokens"], 1),
        "share_duplicates": rows[Kind.DUPLICATE] / max(num_candidates, 1),
        "policy_tokens_per_sampled": totals["policy_tokens"] / max(useful, 1),
        "tokens_per_sampled": both / max(useful, 1),
    }
