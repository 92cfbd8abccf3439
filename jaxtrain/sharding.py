"""Where arrays live: one mesh `(data, fsdp, tp)`, one table from parameter path to PartitionSpec.

Batches are split over data and fsdp, weights over fsdp and tp. The same table shapes init, restore
and every jitted function. Axes are Auto: the compiler places the tensor-parallel collectives;
search is written per shard (`build.make_grow`), so that its loop holds none of the others.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtrain.errors import require
from jaxtrain.structs import STACKED

BATCH_AXES = ("data", "fsdp")

# First match wins; a parameter (or its optimizer moment) that nothing matches is replicated.
TABLE = (
    (r"(un)?embedding", PartitionSpec("tp", "fsdp")),
    (r"w[qkv]", PartitionSpec("fsdp", "tp", None)),
    (r"wo", PartitionSpec("tp", None, "fsdp")),
    (r"gate|up", PartitionSpec("fsdp", "tp")),
    (r"down", PartitionSpec("tp", "fsdp")),
)


@dataclass(frozen=True)
class ShardingConfig:
    """Sizes of the mesh axes; one of them may be none, the rest of the devices."""

    data: int | None = None  # copies of the weights, batch split
    fsdp: int | None = 1  # weights and batch split
    tp: int | None = 1  # heads and MLP width split
    # what --plan is for: v4:2x2x1, v5e:2x2, v6e:2x2, h100:1, cpu; empty: the devices here
    topology: str = ""


def make_mesh(config: ShardingConfig, devices: Sequence[Any] | None = None) -> Any:
    """Build the mesh over all devices.

    `devices` may be those of a topology that is not here; ones without a platform make an
    AbstractMesh. Raises UserError where the sizes do not multiply to their number.
    """
    total = jax.device_count() if devices is None else len(devices)
    asked = (config.data, config.fsdp, config.tp)
    rest = total // max(1, math.prod(size for size in asked if size is not None))
    sizes = tuple(rest if size is None else size for size in asked)
    told = f"data x fsdp x tp = {config.data} x {config.fsdp} x {config.tp} does not make {total}"
    then = "set --config.sharding.data, .fsdp and .tp so that their product does (none is the rest)"
    is_met = min(sizes) >= 1 and math.prod(sizes) == total
    require(is_met, "sharding", f"{told} devices; {then}")
    axes, types = ("data", "fsdp", "tp"), (AxisType.Auto,) * 3
    if devices is not None and not hasattr(devices[0], "platform"):
        return AbstractMesh(sizes, axes, axis_types=types)
    return jax.make_mesh(sizes, axes, axis_types=types, devices=devices)


def num_shards(mesh: Mesh) -> int:
    """Count the parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Look up a parameter. A dimension that an axis does not divide stays whole, as layers do."""
    parts = path.split("/")
    layers = (None,) if STACKED in parts else ()
    for pattern, spec in TABLE:
        if re.fullmatch(pattern, parts[-1]) and len(layers + spec) == len(shape):
            wanted = zip(layers + spec, shape, strict=True)
            return PartitionSpec(
                *(a if a is None or n % mesh.shape[a] == 0 else None for a, n in wanted)
            )
    return PartitionSpec()


def tree_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Map a tree of shapes (params, optimizer state, whole learners) to a tree of NamedSharding."""

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes)
