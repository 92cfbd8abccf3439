"""Stage 6 of 7. State to disk and back.

One orbax checkpoint an iteration holds everything the next one needs: both learners and the replay. It is restored
through the abstract state (shapes, dtypes, shardings) that also shaped its initialisation, so another number of devices
is no matter. A checkpoint is committed whole or not at all; what a killed save left behind is swept at the next start.
Where a fit takes long, it is saved on its way too.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtrain.errors import UserError, require_at_least
from jaxtrain.structs import Learner, State


@dataclass(frozen=True)
class CheckpointsConfig:
    """What stays on disk."""

    num_kept: int = 3  # newest checkpoints; iteration 0, the warm start, always stays
    num_updates: int = 0  # a fit is saved on its way after every so many updates; 0: an interrupted fit begins again

    def __post_init__(self):
        require_at_least(1, "checkpoints", self, "num_kept")
        require_at_least(0, "checkpoints", self, "num_updates")


def fingerprint(folder: Path, iteration: int) -> str:
    """Hash what orbax noted of a checkpoint when it saved it, the time among it: two saves differ, copies do not."""
    return hashlib.sha256((folder / str(iteration) / "_CHECKPOINT_METADATA").read_bytes()).hexdigest()


# orbax warns that it does as it is told.
logging.getLogger("absl").addFilter(lambda record: "directory is read only" not in record.getMessage())


class Checkpoints:
    """The folder `checkpoints/<iteration>/state` of a run."""

    def __init__(self, folder: Path, config: CheckpointsConfig, is_read_only: bool = False):
        """Open the folder of a run; `is_read_only` for one that another process may be writing to."""
        policy = ocp.checkpoint_managers.preservation_policy
        keep = policy.AnyPreservationPolicy([policy.LatestN(config.num_kept), policy.CustomSteps([0])])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if is_read_only else keep,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not is_read_only,
            create=not is_read_only,
            read_only=is_read_only,
            save_interval_steps=0 if is_read_only else 1,
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def newest(self) -> int | None:
        """Return the newest iteration on disk, None if there is none."""
        return self._manager.latest_step()

    def all(self) -> list[int]:
        """Return the iterations on disk."""
        return sorted(self._manager.all_steps())

    def choose(self, iteration: int | None) -> int:
        """Return `iteration`, or the newest one for None. Raises UserError where it is not on disk."""
        there = self.all()
        chosen = max(there, default=None) if iteration is None else iteration
        if chosen is None or chosen not in there:
            known = ", ".join(map(str, there)) or "none"
            raise UserError(f"--iteration {iteration}: {self._manager.directory} has checkpoints {known}")
        return chosen

    def save(self, state: State) -> None:
        """Write a checkpoint; it is on disk when this returns."""
        self._manager.save(int(state.iteration), args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def restore(self, iteration: int, abstract: Any) -> State:
        """Read a checkpoint onto the shardings of `abstract`, a State of ShapeDtypeStruct; the replay as numpy."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state: State = self._manager.restore(iteration, args=args)["state"]
        return replace(state, replay=jax.device_get(state.replay), iteration=jax.device_get(state.iteration))


class FitCheckpoints:
    """A fit on its way, in the folder `fits/<iteration>/<network>/<updates>` of a run; only the newest stays.

    It goes when the checkpoint of its iteration is there.
    """

    def __init__(self, folder: Path, is_on: bool):
        """Open the folder of a fit; nothing is read or written unless `is_on`."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options) if is_on else None

    def __enter__(self) -> FitCheckpoints:
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager:
            self._manager.close()

    def save(self, learner: Learner, infos: dict[str, np.ndarray]) -> None:
        """Write the learner and what its updates told so far, [N] a key; on disk when this returns."""
        if self._manager:
            fit = {"learner": learner, "infos": infos}
            self._manager.save(len(infos["loss"]), args=ocp.args.StandardSave(fit))

    def restore(self, learner: Learner, infos: dict[str, np.ndarray]) -> tuple[Learner, dict[str, np.ndarray]]:
        """Return both as last saved, or the given ones where nothing was; the memory of a learner replaced is freed."""
        num_updates = self._manager.latest_step() if self._manager else None
        if self._manager is None or num_updates is None:
            return learner, infos
        saved = {key: np.zeros(num_updates, x.dtype) for key, x in infos.items()}
        abstract = {"learner": jax.tree.map(ocp.utils.to_shape_dtype_struct, learner), "infos": saved}
        jax.tree.map(lambda x: x.delete(), learner)  # an update donates it as well
        fit = self._manager.restore(num_updates, args=ocp.args.StandardRestore(abstract))
        return fit["learner"], jax.device_get(fit["infos"])
