"""How an encoder is trained: options that are recorded in its checkpoint."""

from dataclasses import dataclass

from deepssim_scan.errors import InputError

_RATES = ("learning_rate", "weight_decay", "gradient_norm", "contrastive_weight", "pose_weight")
_MOST_SEED = 1 << 32


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How to train; recorded in the checkpoint.

    `batch` images are drawn for a step, a multiple of 4. `pose_steps` come before the `steps` and
    teach poses alone, where the network has a pose estimator; `pose_weight` is the
    weight of their error. There is a step of either kind at least. At most `max_images` images are
    kept in memory, of as many files at most, and `held_out` is the share of them that is held out.

    Raises InputError for a value out of range.
    """

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: int = 100
    gradient_norm: float = 1.0
    contrastive_weight: float = 0.1
    temperature: float = 0.05
    pose_weight: float = 20.0
    pose_steps: int = 0
    held_out: float = 0.05
    max_images: int = 50_000
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "steps": 1 if not self.pose_steps else 0,
            "pose_steps": 0,
            "batch": 1,
            "evaluate_every": 1,
            "max_images": 1,
            "warmup": 0,
            "seed": 0,
            **dict.fromkeys(_RATES, 0),
        }
        for name, bound in least.items():
            if not getattr(self, name) >= bound:  # NaN is not, either
                raise InputError(f"{name} must be >= {bound}, found {getattr(self, name)}")
        if self.seed > _MOST_SEED:
            raise InputError(f"seed must be <= {_MOST_SEED}, found {self.seed}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, found {self.temperature:g}")
        if self.batch % 4 or not 4 <= self.batch <= 64:
            raise InputError(f"batch must be a multiple of 4 up to 64, found {self.batch}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, found {self.held_out:g}")


SCRATCH = TrainingConfig(pose_steps=2000)
"""How to train from random weights."""

ADAPTING = TrainingConfig(steps=300, learning_rate=3e-4, warmup=30, held_out=0.5, evaluate_every=50)
"""How to adapt a trained encoder to other images: minutes on a CPU.

Half of the subjects are held out: the null of an index of these images is made of them.
"""
