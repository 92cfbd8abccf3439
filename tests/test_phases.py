"""What the host does while the device grows trees: in which order, and what it holds meanwhile."""

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxtrain import phases

NUM_BATCHES = 4


class OnDevice:
    """Stands for trees on the device: whoever reads them waits."""

    def __init__(self, k: int, events: list):
        self.k, self.events = k, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetch {self.k}")
        return np.array(self.k)


class Bench:
    """A run whose device and disk only note what is asked of them."""

    def __init__(self, stored: dict[int, str] | None = None, broken: int | None = None):
        self.events: list[str] = []
        self.threads: list[int] = []
        self.alive: Any = weakref.WeakSet()
        self.most_alive = 0
        self.stored, self.broken = stored or {}, broken
        options = SimpleNamespace(temperature=1.0)
        self.run: Any = SimpleNamespace(
            config=SimpleNamespace(
                searches={"train": options, "greedy": options},
                labels=SimpleNamespace(kind="kind"),
                loop=SimpleNamespace(overlap_searches=True),
            ),
            fns=SimpleNamespace(
                grow={"train": self.grow, "greedy": self.grow},
                problem_keys=lambda i, purpose, problem_id: None,
            ),
            workdir=SimpleNamespace(trees=self),
        )

    def grow(self, batch, keys, temperature):
        if batch.k == self.broken:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        self.events.append(f"begin {batch.k}")
        self.threads.append(threading.get_ident())
        tree = OnDevice(batch.k, self.events)
        self.alive.add(tree)
        self.most_alive = max(self.most_alive, len(self.alive))
        return tree

    def load(self, place):
        return self.stored.get(place.shard)

    def save(self, place, tree):
        self.events.append(f"store {place.purpose} {place.shard}")

    def load_labels(self, place, tree, kind):
        return "labels"

    def shards(self, *names: str):
        batches: Any = [SimpleNamespace(k=k, problem_id=None) for k in range(NUM_BATCHES)]
        asked = phases.jobs(batches, *names)
        return phases.make_shards(self.run, 1, asked, lambda: ())  # type: ignore


def test_the_next_batch_is_begun_before_this_one_is_waited_for():
    bench = Bench()
    for shard, is_restored in bench.shards():
        assert not is_restored
        bench.events.append(f"use {int(shard.tree)}")
    told = ["begin 0"]
    for k in range(NUM_BATCHES):
        told += [f"begin {k + 1}"] if k + 1 < NUM_BATCHES else []
        told += [f"fetch {k}", f"store search {k}", f"use {k}"]
    assert bench.events == told


@pytest.mark.parametrize("is_asked", [False, True])
def test_two_threads_take_turns_where_searches_overlap(is_asked):
    bench = Bench()
    bench.run.config.loop.overlap_searches = is_asked
    list(bench.shards())
    assert len(set(bench.threads)) == 1 + is_asked
    assert bench.threads[::2] == bench.threads[:1] * len(bench.threads[::2])
    assert bench.threads[1::2] == bench.threads[1:2] * len(bench.threads[1::2])


def test_the_device_holds_two_batches_of_trees_at_most():
    bench = Bench()
    list(bench.shards())
    assert (bench.most_alive, len(bench.alive)) == (2, 0)


def test_the_next_kind_of_trees_is_begun_as_well():
    bench = Bench()
    list(bench.shards("train", "greedy"))
    last = NUM_BATCHES - 1
    where = bench.events.index(f"fetch {last}")
    assert bench.events[where - 1] == "begin 0"
    assert bench.events[-1] == f"store greedy {last}"


def test_what_is_restored_asks_nothing_of_the_device():
    bench = Bench(stored={0: "trees", 2: "trees"})
    assert [is_restored for _, is_restored in bench.shards()] == [True, False, True, False]
    assert [event for event in bench.events if event.startswith("begin")] == ["begin 1", "begin 3"]


def test_a_batch_that_cannot_be_begun_leaves_those_before_it_on_the_disk():
    bench, used = Bench(broken=2), []
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        for shard, _ in bench.shards():
            used.append(int(shard.tree))
    assert used == [0, 1]
    assert "store search 1" in bench.events


def test_who_stops_in_between_leaves_what_was_used_on_the_disk():
    bench = Bench()
    with pytest.raises(KeyboardInterrupt):
        for _ in bench.shards():
            raise KeyboardInterrupt
    assert bench.events == ["begin 0", "begin 1", "fetch 0", "store search 0"]
