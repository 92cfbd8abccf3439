"""How the two networks learn: lengths of fits, optimizers, objectives, adapters."""

from dataclasses import dataclass

from jaxtrain.errors import UserError, require, require_at_least, require_one_of, require_share
from jaxtrain.structs import PROJECTIONS
from jaxtrain.updates import policy, prm
from jaxtrain.updates.policy import PolicyConfig
from jaxtrain.updates.prm import PrmConfig


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of low rank, trained over weights that stay as they are."""

    rank: int | None = None  # of the adapters; none: all weights are trained instead
    # the matrices of a block that have an adapter: wq, wk, wv, wo, gate, up, down
    targets: tuple[str, ...] = PROJECTIONS
    alpha: float = 16.0  # what adapters give is multiplied by alpha / rank
    dropout: float = 0.0  # share of their inputs that an update leaves out

    @property
    def scale(self) -> float:
        """What adapters give is multiplied by."""
        return self.alpha / (self.rank or 1)


@dataclass(frozen=True)
class UpdatesConfig:
    """Fits of the two networks."""

    policy: PolicyConfig = PolicyConfig()
    prm: PrmConfig = PrmConfig()
    lora: LoraConfig = LoraConfig()
    # updates in a row that are not finite, and so are skipped, before the run stops
    max_skipped: int = 20

    def __post_init__(self):
        require_at_least(1, "updates", self, "max_skipped")
        require_at_least(1, "updates.lora", self.lora, "rank")
        require_at_least(0, "updates.lora", self.lora, "alpha", "dropout")
        targets = self.lora.targets
        if not targets or not set(targets) <= set(PROJECTIONS):
            told = f"--config.updates.lora.targets={','.join(targets)}"
            raise UserError(f"{told}: must be some of {', '.join(PROJECTIONS)}")
        require(self.lora.dropout < 1, "updates.lora", self.lora, "dropout", "must be below 1")
        for name in ("policy", "prm"):
            learner, section = getattr(self, name), f"updates.{name}"
            require_at_least(1, section, learner, "batch_size")
            require_at_least(0, section, learner, "weight_decay")
            require_share(section, learner, "b1", "b2")
            require(learner.clip_norm > 0, section, learner, "clip_norm", "must be above 0")
            starts = ("previous", "warm_start", *(["policy"] if name == "prm" else []))
            require_one_of(section, learner, init_from=starts)
            for part in ("warm_start", "fit"):
                fit, keys = getattr(learner, part), f"{section}.{part}"
                require_at_least(0, keys, fit, "num_updates", "max_epochs", "learning_rate")
                require_share(keys, fit, "warmup", "final")
        self._check_objectives()

    def _check_objectives(self) -> None:
        require_one_of("updates.policy", self.policy, objective=tuple(policy.OBJECTIVES))
        require_one_of("updates.prm", self.prm, objective=tuple(prm.OBJECTIVES))
        require_at_least(2, "updates.prm", self.prm, "num_bins", "num_together")
        require_at_least(0, "updates.prm", self.prm, "pairwise_weight", "lm_weight")
        for name in ("dropout", "held_out"):
            is_met = 0 <= getattr(self.prm, name) < 1
            require(is_met, "updates.prm", self.prm, name, "must be at least 0 and below 1")
        require_at_least(0, "updates.policy", self.policy, "beta", "clip", "kl")
        # What is compared with the policy before the fit begins there.
        free = [name for name, kind in policy.OBJECTIVES.items() if not kind.has_reference]
        if self.policy.init_from != "previous" and self.policy.objective not in free:
            raise UserError(
                f"--config.updates.policy.init_from={self.policy.init_from}: "
                f"{self.policy.objective} improves on the policy before; it goes with "
                f"--config.updates.policy.objective {' or '.join(free)}"
            )
        pairs = [name for name, kind in policy.OBJECTIVES.items() if kind.order == "pairs"]
        if self.policy.objective in pairs and self.policy.batch_size % 2:
            why = f"{self.policy.objective} takes pairs of rows; choose an even number"
            require(False, "updates.policy", self.policy, "batch_size", why)
