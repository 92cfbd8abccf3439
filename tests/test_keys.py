"""Keys are folded from what they are for, and stay what they were: a resumed run must draw the
same.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.keys import Purpose, fold_in, host_rng, problem_keys


def test_fold_in_is_jax_fold_in_broadcast():
    keys = np.random.default_rng(0).integers(0, 2**32, (3, 1, 2), np.uint32)
    numbers = np.array([[0, 1, 5, 2**31 - 1]] * 3, np.int32)
    folded = fold_in(keys, numbers)
    assert (folded.shape, folded.dtype) == ((3, 4, 2), jnp.uint32)
    for i, j in np.ndindex(3, 4):
        expected = jax.random.fold_in(jax.random.wrap_key_data(keys[i, 0]), numbers[i, j])
        np.testing.assert_array_equal(folded[i, j], jax.random.key_data(expected))


def test_a_problem_has_its_key_wherever_it_stands():
    keys = problem_keys(0, 1, 2, np.array([5, 3, -1, 5]))
    np.testing.assert_array_equal(keys[::-1], problem_keys(0, 1, 2, np.array([5, -1, 3, 5])))


def test_seed_iteration_purpose_and_problem_each_make_another_key():
    ids = np.arange(-1, 40)
    keys = [problem_keys(s, i, p, ids) for s in (0, 1) for i in (0, 1, 2) for p in (0, 1, 2)]
    rows = np.concatenate(keys)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_keys_are_what_they_always_were():
    """Threefry draws the same on every backend and in every version, so resuming and comparing runs
    may rely on it.
    """
    expected = [[2163567284, 2573891739], [1542921275, 2807102400]]
    np.testing.assert_array_equal(problem_keys(7, 3, 1, np.array([0, 12])), expected)


def test_no_two_purposes_share_a_generator():
    """Epoch 5 of the prompts, the paths of problem 5 and a fit of iteration 1 were one stream."""
    streams = [host_rng(0, purpose, 1).random() for purpose in Purpose]
    streams += [host_rng(0, Purpose.PATHS, i, k).random() for i in (0, 1) for k in (1, 5)]
    streams += [host_rng(1, Purpose.PROMPTS, 1).random()]
    assert len(set(streams)) == len(streams)
