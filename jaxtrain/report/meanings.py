"""What every count of "Kept and dropped" means, by its metric key (without the network)."""

from __future__ import annotations

import re

from jaxtrain.tasks.jsonl import REASONS

MEANINGS = {
    "prompts/num_too_long": "problems left out: the prompt passes prompts.max_prompt_tokens",
    "prompts/num_demonstrations_too_long": "demonstrations left out: too long to train on",
    "tasks/solvable": "different problems that have a solution, before the sets are drawn",
    "tasks/rows": "lines of the data files",
    **{f"tasks/{reason}": f"lines dropped: {meaning}" for reason, meaning in REASONS.items()},
    "tasks/in_test_file": "training lines dropped: the question is in the test file",
    "tasks/repeated": "items dropped: they repeat an earlier one",
    "tasks/without_gold": "items dropped: they have no answer",
    "tasks/held_out": "items dropped: their template belongs to the other side of unseen_share",
    "tasks/refused": "demonstrations dropped: the verifier does not take them",
    "tasks/num_left_out": "problems not scored: the run trained on them",
    "search/num_simulations": "visits to a leaf: it is expanded, or had ended already",
    "search/num_wasted": "of these, visits to a leaf that had ended",
    "search/policy_tokens": "tokens the policy computed, read ones included",
    "search/prm_tokens": "tokens the PRM computed",
    "search/lane_tokens": "places for a token that were held open, used or not",
    "search/num_steps": "steps sampled: candidates and those of rollouts",
    "search/num_duplicates": "candidates that repeat the text of a sibling; they are not searched",
    "search/sampled_tokens": "tokens of all steps sampled",
    "search/share_wasted_simulations": "visits to ended leaves, of all simulations",
    "search/share_useful_lanes": "sampled tokens, of the places held open",
    "search/share_duplicates": "duplicates, of all candidates",
    "labels/num_trees": "problems searched",
    "labels/num_set_aside": "trees not used: a number of a network was not finite",
    "labels/num_trees_solved": "trees with a correct trace",
    "labels/num_trees_without_correct": "trees without one; they teach nothing",
    "labels/num_correct": "finished traces that the verifier takes",
    "labels/num_wrong": "finished traces with a wrong answer",
    "labels/num_unparsable": "finished traces without a readable answer; they count as wrong",
    "labels/num_errors": "finished traces on which the verifier failed; they teach nothing",
    "labels/num_labelled": "steps with a value target",
    "labels/num_unlabelled": "steps without one: no judged trace below, or an unsolved tree",
    "datasets/num_traces": "verified traces that the policy is fitted to, earlier ones included",
    "datasets/num_traces_new": "of these, found in this iteration",
    "datasets/num_traces_too_long": "correct traces dropped: too long for a row of training",
    "datasets/num_traces_duplicate": "correct traces dropped: the same text of the same problem",
    "datasets/num_traces_over_cap": "correct traces dropped: over max_traces_per_problem",
    "datasets/num_traces_renewed": "earlier traces found again and counted as new",
    "datasets/num_traces_expired": "earlier traces dropped: older than traces_rounds",
    "datasets/num_traces_over_capacity": "traces dropped: the replay holds max_traces",
    "datasets/num_paths": "traces with value targets that the PRM is fitted to",
    "datasets/num_paths_correct": "of these, those that end in a correct answer",
    "datasets/num_paths_new": "of these, found in this iteration",
    "datasets/num_paths_too_long": "paths dropped: too long for a row of training",
    "datasets/num_paths_duplicate": "paths dropped: the same text of the same problem",
    "datasets/num_paths_over_cap": "paths dropped: over max_paths_per_problem",
    "datasets/num_paths_expired": "earlier paths dropped: older than paths_rounds",
    "datasets/num_paths_over_capacity": "paths dropped: the replay holds max_paths",
    "datasets/num_values": "steps with a target in them; one that paths share counts once",
    "datasets/num_values_new": "of these, found in this iteration",
    "datasets/num_values_left_out": "labelled steps that no path kept goes through",
    "datasets/value_histogram": "targets of the steps labelled in this iteration, by tenths",
    "updates/num_updates": "updates of this fit",
    "updates/num_skipped": "updates without effect: loss or gradient was not finite",
    "updates/is_skipped_fit": "1: there was no data, so no update was made",
    "updates/loss": "mean loss over the fit",
    "updates/loss_last_tenth": "mean loss over the last tenth of its updates",
    "updates/grad_norm": "mean norm of the gradient, before clipping",
    "evaluation/num_too_long": "problems not scored: the prompt passes prompts.max_prompt_tokens",
    "evaluation/num_errors": "answers on which the verifier failed; they count as wrong",
    "evaluation/num_set_aside": "trees with a number that was not finite; they count as wrong",
}


def explain(key: str) -> str:
    """Return what a count means; nothing for a metric that no run writes."""
    return MEANINGS.get(re.sub("^updates/(policy|prm)/", "updates/", key), "")
