"""What a person may say about tuning, and what each method takes where nothing is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from fewrec_prompt.errors import FewrecError, did_you_mean
from fewrec_prompt.tuning.losses import LossName

MethodName = Literal[
    "soft-prompt", "p-tuning", "prefix", "lora", "adalora", "full", "head", "head-lora", "head-full", "prototypes"
]
InitName = Literal["instruction", "vocabulary", "random"]
TargetsName = Literal["attention", "all"]
PassName = Literal["start", "histories", "answers"]
NegativesName = Literal["given", "uniform", "shared", "popularity", "in-batch", "hard"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method learns. None: the method's own (METHODS), the listwise loss, the candidates as they are given.

    Which fields a method reads stands in METHODS, too. `targets` are the linear layers that low-rank methods change,
    `batch` is people a step. `warm_up` are passes over the histories alone, as plain modelling of the next title,
    before any answer is learnt from, or, with 0 `epochs`, instead; `held_out` is the share of people that early
    stopping looks at, and `patience` how many passes may go by without a better one. `temperature` says how evenly
    several tasks are drawn (mixture.py): 1 in proportion to their people, a large one each as often. `questions` is
    about how many of a person's latest things is asked, another one every pass (examples.py). Raises FewrecError for
    values that cannot be meant, and where the method does not read what was given.
    """

    method: MethodName = "soft-prompt"
    tokens: int = 20
    rank: int = 8
    targets: TargetsName = "attention"
    init: InitName = "instruction"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    dropout: float = 0.0
    epochs: int | None = None
    batch: int = 4
    loss: LossName | None = None
    negatives: NegativesName | None = None
    warm_up: int = 0
    held_out: float = 0.25
    patience: int = 2
    temperature: float = 1.0
    questions: int = 1
    seed: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, names in _NAMES.items():
            value = getattr(self, name)
            if value not in names and not (value is None and name in ("loss", "negatives")):
                raise FewrecError(f"unknown {name} {value!r}; {did_you_mean(str(value), names)}")
        for name, (low, high) in _BOUNDS.items():
            number = getattr(self, name)
            if number is not None and not (_is_number(number, name in _WHOLE) and low <= number <= high):
                kind = "whole number" if name in _WHOLE else "number"
                raise FewrecError(f"{name.replace('_', ' ')} is {number!r}; give a {kind} from {low:g} to {high:g}")
        if self.epochs == 0 and self.warm_up == 0:
            raise FewrecError("0 passes over answers and 0 over histories learn nothing; give epochs, or a warm-up")
        check_read(self.method, self.to_dict())

    def complete(self) -> Settings:
        """The same with the method's own learning rate and passes in the place of None."""
        own = METHODS[self.method]
        return replace(
            self,
            learning_rate=own.rate if self.learning_rate is None else self.learning_rate,
            epochs=own.epochs if self.epochs is None else self.epochs,
        )

    @property
    def rate(self) -> float:
        """The learning rate of complete settings."""
        assert self.learning_rate is not None, "settings are completed first"
        return self.learning_rate

    @property
    def passes(self) -> tuple[PassName, ...]:
        """What each pass of complete settings is over; "start" is the measuring before them."""
        assert self.epochs is not None or METHODS[self.method].epochs is None, "settings are completed first"
        plan: list[PassName] = ["start"]
        plan += ["histories"] * self.warm_up
        plan += ["answers"] * (self.epochs or 0)
        return tuple(plan)

    @property
    def goal(self) -> PassName:
        """What complete settings learn in the end, by whose loss it is told whether they did."""
        return self.passes[-1]

    def n_batches(self, n_people: int) -> int:
        """Steps of a pass over so many people."""
        return -(-n_people // self.batch)

    def n_steps(self, n_people: int) -> int:
        """Steps of all passes of complete settings over so many people."""
        return self.n_batches(n_people) * (len(self.passes) - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What `to_dict` made. Raises FewrecError for a key nobody knows."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise FewrecError(f"unknown tuning setting {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
        return cls(**values)

    @classmethod
    def shared(cls, method: str, values: Mapping[str, Any]) -> Settings:
        """Of settings that several methods share, those that this one reads. Raises FewrecError as `from_dict`."""
        left_out = unread(method, values)
        return cls.from_dict(
            {name: value for name, value in values.items() if name not in left_out} | {"method": method}
        )


_NAMES: Mapping[str, tuple[str, ...]] = {
    "method": get_args(MethodName),
    "init": get_args(InitName),
    "targets": get_args(TargetsName),
    "loss": get_args(LossName),
    "negatives": get_args(NegativesName),
}
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "tokens": (1, 200),
    "rank": (1, 512),
    "learning_rate": (1e-8, 1.0),
    "weight_decay": (0.0, 1.0),
    "dropout": (0.0, 0.9),
    "epochs": (0, 1000),
    "batch": (1, 4096),
    "warm_up": (0, 100),
    "held_out": (0.0, 0.5),
    "patience": (1, 1000),
    "temperature": (1.0, 1e6),
    "questions": (1, 100),
    "seed": (0, 2**63 - 1),
}
_WHOLE = frozenset({"tokens", "rank", "epochs", "batch", "warm_up", "patience", "questions", "seed"})
_EVERY_PASS = frozenset({"learning_rate", "weight_decay", "epochs", "batch", "held_out", "patience", "temperature"})
_LOOP = _EVERY_PASS | {"loss", "negatives", "warm_up", "questions", "checkpointing"}
_VIRTUAL = _LOOP | {"tokens", "init"}
_RANKS = frozenset({"rank", "targets", "dropout"})


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method before it learns.

    `rate` and `epochs` are its own where nothing is said (None: it makes no passes), `reads` the settings that it makes
    use of, beside the seed, `inside` what learns in the model, and `classifies` whether it tells classes apart by
    hidden states.
    """

    rate: float | None
    epochs: int | None
    reads: frozenset[str]
    inside: MethodName | None
    classifies: bool = False


METHODS: Mapping[str, Method] = {
    "soft-prompt": Method(1e-2, 4, _VIRTUAL, "soft-prompt"),
    "p-tuning": Method(3e-3, 4, _VIRTUAL, "p-tuning"),
    # gradient checkpointing would drop what it learns
    "prefix": Method(1e-2, 4, _VIRTUAL - {"checkpointing"}, "prefix"),
    "lora": Method(1e-3, 4, _LOOP | _RANKS, "lora"),
    "adalora": Method(5e-3, 4, _LOOP | _RANKS, "adalora"),
    "full": Method(3e-5, 4, _LOOP, "full"),
    "head": Method(3e-4, 30, _EVERY_PASS, None, classifies=True),
    # the rate of the weights below the head, which has its own
    "head-lora": Method(1e-3, 4, _EVERY_PASS | _RANKS | {"checkpointing"}, "lora", classifies=True),
    "head-full": Method(3e-5, 4, _EVERY_PASS | {"checkpointing"}, "full", classifies=True),
    # nothing is trained: one look at the examples
    "prototypes": Method(None, None, frozenset({"held_out", "temperature"}), None, classifies=True),
}
CLASSIFIERS = tuple(name for name, method in METHODS.items() if method.classifies)


def _is_number(value: Any, whole: bool) -> bool:
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def unread(method: str, values: Mapping[str, Any]) -> list[str]:
    """The names of settings that were given, other than by their default, and that the method does not read.

    A method that is none of METHODS, such as a mix, reads none.
    """
    defaults = {field.name: field.default for field in fields(Settings) if field.name not in ("method", "seed")}
    given = [name for name, default in defaults.items() if values.get(name, default) != default]
    reads = METHODS[method].reads if method in METHODS else ()
    return [name for name in given if name not in reads]


def check_read(method: str, values: Mapping[str, Any], called: Callable[[str], str] = str) -> None:
    """Raises FewrecError for settings that the method does not read, by what they are called where they were given."""
    if names := ", ".join(map(called, unread(method, values))):
        raise FewrecError(f"{method!r} makes no use of {names}; leave {names} out, or take a method that does")
