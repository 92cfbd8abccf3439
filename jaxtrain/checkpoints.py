"""Stage 6 of 7. State to disk and back.

One orbax checkpoint an iteration holds the parameters and the optimizer of both networks, each as
an item that can be restored alone, through the abstract state (shapes, dtypes, shardings) that also
shaped its initialisation, so another number of devices is no matter. A checkpoint is sealed
(`files.py`) before it gets its name and verified before it is used: what is damaged is set aside,
and the newest good one is used. Where a fit takes long, it is saved on its way too.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtrain import files
from jaxtrain.errors import Count, Section, UserError, require
from jaxtrain.structs import Learner, Networks, Params, State

NoteFn = Callable[[str], None]

NETWORKS = ("policy", "prm")
SAVE = "save.json"  # what tells a save from all others, a number drawn at random
NUMBER = re.compile("0|[1-9][0-9]*")
# of a save that was killed
LEFTOVER = re.compile(rf"[0-9]+{re.escape(files.TEMPORARY)}(\.orbax-checkpoint-tmp.*)?")
# free bytes asked for, as a share of the arrays: orbax keeps some of them twice for a while
ROOM = 1.5


@dataclass(frozen=True)
class CheckpointsConfig(Section, at="checkpoints"):
    """What stays on disk."""

    num_kept: Count = 3  # newest checkpoints; iteration 0, the warm start, always stays
    # a fit is saved on its way after every so many updates; none: an interrupted fit begins again
    num_updates: Count | None = None


def fingerprint(folder: Path, iteration: int) -> str:
    """Return what tells one save from another: two saves differ, copies do not."""
    return files.read_json(folder / str(iteration) / files.SEAL)["files"][SAVE]


def about_checkpoint(run_key: str) -> dict[str, str]:
    """Say what the checkpoints of a run are."""
    return {"kind": "checkpoint", "run": run_key}


class Store:
    """Sealed folders `<number>/` of a run, in each an orbax folder for every item."""

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        run: Path,
        note_fn: NoteFn,
        is_read_only: bool = False,
    ):
        """Open the folder. What is not `about` this, JSON, is damaged; a reader moves nothing."""
        self.folder, self._about, self._run = folder.absolute(), about, run.absolute()
        self._note, self._is_read_only = note_fn, is_read_only
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        if not is_read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in filter(LEFTOVER.fullmatch, os.listdir(self.folder)):
                self.remove(leftover)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()  # gives its threads back

    def numbers(self) -> list[int]:
        """Return the numbers on disk, good or not, in order."""
        found = self.folder.glob("*/") if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if NUMBER.fullmatch(path.name))

    def fault(self, number: int) -> str:
        """Say what is wrong with a number, "" where it is as it was saved."""
        return files.fault(self.folder / str(number), self._about | {"number": number})

    def newest_good(self) -> tuple[int | None, dict[int, str]]:
        """Return (the newest good number, None without any; what is wrong with the newer ones)."""
        faults = {}
        for number in reversed(self.numbers()):
            if not (fault := self.fault(number)):
                return number, faults
            faults[number] = fault
        return None, faults

    def set_aside(self, faults: dict[int, str], instead: str) -> None:
        """Set damaged numbers aside and say what is used instead; a reader only says it."""
        for number, fault in faults.items():
            place = "left where it is"
            if not self._is_read_only:
                to = files.set_aside(self.folder / str(number), self._run)
                place = f"set aside in {to.relative_to(self._run)}"
            self._note(f"{fault}; it is {place}, and {instead}")

    def write(self, number: int, items: Mapping[str, Any]) -> None:
        """Write items, sealed and on disk on return. Raises UserError for a disk too full."""
        self.require_space(items, f"{self._about['kind']} {number}")
        path = self.folder / str(number)
        temporary = path.with_name(path.name + files.TEMPORARY)
        saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._orbax.save(temporary, args=ocp.args.Composite(**saves))
        files.write_json(temporary / SAVE, secrets.token_hex(16))
        files.seal(temporary, self._about | {"number": number})
        if os.path.lexists(path):  # a stray file, folder or link
            files.set_aside(path, self._run)
        files.rename(temporary, path)

    def require_space(self, tree: Any, what: str = "a checkpoint") -> None:
        """Refuse to begin where the disk has no room for a tree of arrays. Raises UserError."""
        size = sum(x.size * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
        needed, free = int(ROOM * size), shutil.disk_usage(self.folder).free
        told = f"{what} needs {needed:,} bytes, and {free:,} are free on that disk; free some,"
        then = "or move the run folder to another disk and name it by --workdir"
        require(free >= needed, self.folder, f"{told} {then}")

    def read(self, number: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Read some items of a number onto the shapes, dtypes and shardings of `abstract`."""
        restores = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        path = self.folder / str(number)
        try:
            found = self._orbax.restore(path, args=ocp.args.Composite(**restores))
        except FileNotFoundError as error:  # a reader's: a writer owns the folder
            raise UserError(f"{path} was removed by its run meanwhile; start again") from error
        return {name: found[name] for name in abstract}

    def remove(self, name: int | str) -> None:
        """Delete a number or what else lies there, but not what a link leads to."""
        path = self.folder / str(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class Checkpoints(Store):
    """The folder `checkpoints/<iteration>/` of a run."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointsConfig,
        run_key: str = "",
        is_read_only: bool = False,
        note_fn: NoteFn = lambda text: None,
    ):
        """Open the folder of a run; a checkpoint of another `run_key` counts as damaged."""
        self._num_kept = config.num_kept
        self.save_seconds = 0.0  # of the last save
        super().__init__(folder, about_checkpoint(run_key), folder.parent, note_fn, is_read_only)

    def newest(self) -> int | None:
        """Return the newest good iteration, None without any. Raises UserError if all are bad."""
        number, faults = self.newest_good()
        told = f"holds no good checkpoint: {'; '.join(faults.values())}"
        then = "restore it from a copy, or begin again in another --workdir"
        require(number is not None or not faults, self.folder, f"{told}; {then}")
        self.set_aside(faults, f"iteration {number} is used")
        return number

    def choose(self, iteration: int | None) -> int:
        """Return `iteration`, or the newest good one for None. Raises UserError without it."""
        newest = self.newest() if iteration is None else None
        if newest is not None:
            return newest
        there, flag = self.numbers(), f"--iteration {iteration}"
        if iteration is None or not there:
            raise UserError(f"{self.folder} has no checkpoint yet; run until one is there")
        told = f"{self.folder} has checkpoints {', '.join(map(str, there))}; choose one"
        require(iteration in there, flag, told)
        fault = self.fault(iteration)
        require(not fault, flag, f"{fault}; choose another one, or leave --iteration out")
        return iteration

    def save(self, state: State) -> None:
        """Write a checkpoint, on disk on return. Raises UserError for a disk too full."""
        start = time.monotonic()
        self.write(int(state.iteration), as_items(state))
        self.save_seconds = time.monotonic() - start

    def prune(self) -> None:
        """Delete what need not be kept."""
        for old in self.numbers()[: -self._num_kept]:
            if old != 0:
                self.remove(old)

    def restore(self, iteration: int, abstract: State, base: Params | None = None) -> State:
        """Read a checkpoint onto the shardings of `abstract`; `base` lies under what is trained."""
        learners = {name: self.restore_learner(iteration, name, abstract) for name in NETWORKS}
        return State(np.asarray(iteration, np.int32), base or {}, **learners)

    def restore_networks(
        self, iteration: int, abstract: State, base: Params | None = None
    ) -> Networks:
        """Read the parameters of both networks, and nothing of their optimizers."""
        params = {name: getattr(abstract.networks, name) for name in NETWORKS}
        return Networks(base or {}, **self.read(iteration, params))

    def restore_learner(self, iteration: int, network: str, abstract: State) -> Learner:
        """Read one network, `policy` or `prm`, and its optimizer."""
        names = network, f"{network}_optimizer"
        found = self.read(iteration, {name: as_items(abstract)[name] for name in names})
        return Learner(params=found[network], **found[names[1]])

    def restore_params(self, iteration: int, network: str, abstract: State) -> Params:
        """Read the parameters of one network, `policy` or `prm`, and nothing else."""
        params = getattr(abstract.networks, network)
        return self.read(iteration, {network: params})[network]


def as_items(state: State) -> dict[str, Any]:
    """Name the parts of a State, or of shapes for one, that can be restored alone."""
    items = {}
    for name in NETWORKS:
        learner = dict(vars(getattr(state, name)))
        items |= {name: learner.pop("params"), f"{name}_optimizer": learner}
    return items


class FitCheckpoints(Store):
    """A fit on its way, in `fits/<iteration>/<network>/<updates>`: the newest, and the best."""

    def __init__(self, folder: Path, is_read_only: bool, run_key: str, note_fn: NoteFn):
        """Open the folder of a fit of a run; `is_read_only` where fits are not saved."""
        names = {"iteration": folder.parent.name, "network": folder.name}
        about = {"kind": "fit", "run": run_key, **names}
        super().__init__(folder, about, folder.parents[2], note_fn, is_read_only)

    def save(self, learner: Learner, infos: dict[str, np.ndarray], best: int | None = None) -> None:
        """Write the learner and what its updates told so far, [N] a key; on disk on return.

        best: the number that stays beside the newest one.
        """
        self.write(len(infos["loss"]), {"learner": learner, "infos": infos})
        for old in self.numbers()[:-1]:
            if old != best:
                self.remove(old)

    def go_back(self, number: int, learner: Learner) -> Learner:
        """Return the learner of a number, which frees the given one. Raises UserError."""
        if fault := self.fault(number):
            raise UserError(f"{fault}; remove {self.folder}, and the fit begins again")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, learner)
        jax.tree.map(lambda x: x.delete(), learner)
        return self.read(number, {"learner": abstract})["learner"]

    def restore(
        self, learner: Learner, infos: dict[str, np.ndarray]
    ) -> tuple[Learner, dict[str, np.ndarray]]:
        """Return both as last saved, which frees the given learner, or the given ones."""
        num_updates, faults = self.newest_good()
        self.set_aside(faults, f"the fit goes on from update {num_updates or 0}")
        if num_updates is None:
            return learner, infos
        abstract = {
            "learner": jax.tree.map(ocp.utils.to_shape_dtype_struct, learner),
            "infos": {key: np.zeros(num_updates, x.dtype) for key, x in infos.items()},
        }
        jax.tree.map(lambda x: x.delete(), learner)  # an update donates it as well
        fit = self.read(num_updates, abstract)
        return fit["learner"], jax.device_get(fit["infos"])
