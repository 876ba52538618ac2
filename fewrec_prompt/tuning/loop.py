"""The one training loop: questions of the recommender, scores of the recommender, a loss over them, a step.

What a task brings stands in lessons.py, how often it is drawn in mixture.py, what a pass is over and makes small in
passes.py, what may be trained in methods.py, how weights are changed in stepping.py. Any number of processes share a
step's people and add up their gradients (accelerate).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from accelerate import PartialState

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import DataError, NumericError, RunError
from fewrec_prompt.files import made_folder
from fewrec_prompt.metrics.naming import better_of
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning import checkpoint
from fewrec_prompt.tuning.ahead import check_ahead
from fewrec_prompt.tuning.classifiers import begin_head, look
from fewrec_prompt.tuning.examples import Example, parted
from fewrec_prompt.tuning.identity import Earlier, identity
from fewrec_prompt.tuning.lessons import Lesson, Measured, instruction
from fewrec_prompt.tuning.methods import Learner, Tensors, begin
from fewrec_prompt.tuning.mixture import Draw, Mixture, shares
from fewrec_prompt.tuning.outcome import Pass, Tuned, line, metrics_of
from fewrec_prompt.tuning.passes import First, Kind, kinds_of
from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings
from fewrec_prompt.tuning.stepping import Stepper
from fewrec_prompt.tuning.tracking import Tracking, numbers_of
from fewrec_prompt.types import Query

T = TypeVar("T")
_Asked: TypeAlias = tuple[Draw, Example]
Watch: TypeAlias = Callable[[int, float], None]
"""Called after each pass with its number and the metric of those held out (minus the loss where nobody is); may raise
to stop."""


def tune(
    recommender: Recommender,
    examples: Sequence[Example],
    settings: Settings,
    *,
    held_out: Sequence[Example] = (),
    training: Training | None = None,
    metric: str = "nDCG@10",
    **how: Any,
) -> Tuned:
    """Learn from the examples of one task, with the loss and the negatives of the settings; else as `tune_together`."""
    loss, negatives = settings.loss or "listwise", settings.negatives or "given"
    lesson = Lesson(recommender, tuple(examples), tuple(held_out), training, loss, negatives, metric)
    return tune_together([lesson], settings, **how)


def tune_together(
    lessons: Sequence[Lesson],
    settings: Settings,
    *,
    earlier: Earlier | None = None,
    folder: Path | None = None,
    track: Tracking | None = None,
    watch: Watch | None = None,
    say: Say = quiet,
) -> Tuned:
    """Learn from all lessons at once; they ask one model.

    The best state by the metrics of those held out, the mean over the tasks, stays; the last one where nobody is held
    out. `earlier` is a round to learn on from. With a `folder` an interrupted training goes on where it stopped. The
    recommenders themselves stay as they are. Raises DataError for examples that the loss cannot use, NumericError where
    a loss is not finite, ModelError for a method that the model cannot take.
    """
    backend = lessons[0].recommender.backend
    assert all(lesson.recommender.backend is backend for lesson in lessons), "adapters are learnt for one model"
    if not isinstance(backend, LocalBackend):
        raise DataError(f"only models that run here are tuned, and this recommender asks a {type(backend).__name__}")
    if backend.learnt is not None or backend.adapter_name is not None:
        raise DataError(
            "this recommender has learnt already, and methods learn on a bare model; start from its base, or learn on "
            "from its folder (fewrec tune --from)"
        )
    settings = settings.complete()
    for lesson in lessons:
        lesson.check(settings)
    if settings.method in CLASSIFIERS:
        lessons = [lesson.labelled(say) for lesson in lessons]
    if settings.method == "prototypes":
        if earlier is not None:
            raise DataError("prototypes are one look at the examples, with no round to go on from; make them anew")
        return look(lessons, settings, track or Tracking(), say)
    state = _Training(tuple(lessons), backend, settings, say, earlier)
    return state.run(folder, watch, track or Tracking())


def speaks() -> bool:
    """Whether this is the one of several processes that writes and talks."""
    return bool(PartialState().is_main_process)


def wait_for_all() -> None:
    """Until every process of a training is here."""
    PartialState().wait_for_everyone()


def adapt(
    recommender: Recommender, examples: Sequence[tuple[Query, Sequence[int]]], *, say: Say = quiet, **settings: Any
) -> Tuned:
    """`tune` from plain pairs: a question, and the places of its answers among the candidates.

    Single candidates are likes and dislikes, each learnt by itself. Of 16 people on, the share `held_out` of the
    settings is measured after each pass, and the best pass stays.
    """
    asked, pairs = Settings.from_dict(settings), [Example(query, tuple(relevant)) for query, relevant in examples]
    learnt, held_out = parted(pairs, asked.held_out, asked.seed)
    if "loss" in METHODS[asked.method].reads and all(len(one.query.candidates) == 1 for one in pairs):
        single = replace(asked, loss=asked.loss or "binary")
        return tune(recommender, learnt, single, held_out=held_out, metric="pooled-AUC", say=say)
    return tune(recommender, learnt, asked, held_out=held_out, say=say)


@dataclass
class _Training:
    """The state of one training."""

    lessons: tuple[Lesson, ...]
    backend: LocalBackend
    settings: Settings
    say: Say
    earlier: Earlier | None = None
    passes: list[Pass] = field(default_factory=list)
    best: tuple[int, float, Tensors] | None = None  # epoch, metric, weights

    def __post_init__(self) -> None:
        settings = self.settings
        sizes = tuple(len(lesson.examples) for lesson in self.lessons)
        self.mixture = Mixture(sizes, settings.temperature, settings.seed)
        self.n_batches, self.n_steps = settings.n_batches(sum(sizes)), settings.n_steps(sum(sizes))
        check_ahead(settings, self.backend, self.n_steps)
        self.plan = settings.passes
        self.identity = identity(settings, self.lessons, self.backend, self.earlier)
        self.kinds = [kinds_of(lesson, settings) for lesson in self.lessons]
        starts = [lesson.recommender for lesson in self.lessons]
        bare = self.earlier is None and settings.method not in CLASSIFIERS  # or what it begins with is asked first
        if bare:
            self.first = self._first(starts)
            before = self.first.fitted(starts)
        begin_time = time.perf_counter()
        self.learner = self._begun(starts)
        self.begun_in = time.perf_counter() - begin_time  # seconds: a head looks at everybody
        self.tuned = tuple(map(self.learner.answering, starts))
        self.anchor: Tensors = {}
        self.earlier_loss: float | None = None
        if self.earlier is not None:
            self.learner.adopt(self.earlier.tensors)
            self.anchor = {name: weights.detach().clone() for name, weights in self.learner.parameters().items()}
            self.earlier_loss = self._loss_of_earlier()
        if not bare:
            self.first = self._first(self.tuned)
            before = self.first.fitted(self.tuned)
        log_scales, self.losses_before = before
        self.log_scales = torch.nn.Parameter(torch.tensor(log_scales, device=self.backend.model.device))
        groups = self.learner.groups(settings.rate)
        self.stepper = Stepper(groups, self.log_scales, settings.weight_decay, self.n_steps)

    def _begun(self, starts: Sequence[Recommender]) -> Learner:
        if self.settings.method in CLASSIFIERS:
            return begin_head([kinds.labels for kinds in self.kinds], starts, self.settings, self.n_steps)
        return begin(self.backend, self.settings, instruction=instruction(starts), n_steps=self.n_steps)

    def run(self, folder: Path | None, watch: Watch | None, track: Tracking) -> Tuned:
        with track.telling(self.settings, self.lessons) as self.accelerator:
            self._resume(folder)
            self.accelerator.wait_for_everyone()  # nobody writes before all have read
            if not self.passes:
                self._note_pass(0, self.losses_before, self.begun_in, 0)
                self._save(folder)
            for epoch in range(len(self.passes), len(self.plan)):
                if self._waited_enough():
                    break
                self._pass(epoch)
                self._save(folder)
                if watch is not None:
                    last = self.passes[-1]
                    watch(epoch, -last.loss if last.metric is None else last.metric)
            return self._end()

    def _pass(self, epoch: int) -> None:
        begin_time, n_tokens = time.perf_counter(), 0
        sums = np.zeros(len(self.lessons))
        rng = rng_for(self.settings.seed, "dropout", epoch, self.accelerator.process_index)
        torch.manual_seed(int(rng.integers(2**63)))  # anew in each pass: nothing of it has to be kept
        for draws in self._steps(epoch):
            self.learner.place()
            batch = self._batch(draws, epoch, self.tuned)
            sizes = [self._kind(draw, epoch).n_tokens(self.tuned[draw.task], one) for draw, one in batch]
            with self.learner.learning():
                sums += self._step(batch, sizes, epoch) * len(batch)
            n_tokens += sum(sizes)
        seconds = time.perf_counter() - begin_time
        self._note_pass(epoch, (sums / self.mixture.counts(epoch)).tolist(), seconds, n_tokens)

    def _steps(self, epoch: int) -> Iterator[list[Draw]]:
        """The draws of a pass, step by step."""
        order = self.mixture.draws(epoch)
        return (order[at : at + self.settings.batch] for at in range(0, len(order), self.settings.batch))

    def _batch(self, draws: Sequence[Draw], epoch: int, recommenders: Sequence[Recommender]) -> list[_Asked]:
        """The people of one step, task by task, with the candidates or histories of this time that they are drawn."""
        found: list[_Asked] = []
        for (task, turn), group in groupby(sorted(draws, key=_time), _time):
            own = list(group)
            found += zip(own, self._kind(own[0], epoch).ask(own, turn, recommenders[task]), strict=True)
        return found

    def _kind(self, draw: Draw, epoch: int) -> Kind:
        """What a pass asks of this draw's task."""
        return self.kinds[draw.task].of(self.plan[epoch])

    def _step(self, batch: Sequence[_Asked], sizes: Sequence[int], epoch: int) -> np.ndarray:
        """One change of the weights; what each task adds to the mean loss of the batch before it, (n_tasks,)."""
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        totals = np.zeros(len(self.lessons))
        for unit in self._units(batch[mine], sizes[mine], epoch):
            self.learner.place()
            draw, examples = unit[0][0], [example for _, example in unit]
            with _naming(examples, epoch):
                losses = self._kind(draw, epoch).losses(self.tuned[draw.task], examples, self.log_scales[draw.task])
                _check_finite(losses, examples)
            loss = losses.sum() / len(batch)
            self.accelerator.backward(loss)
            totals[draw.task] += float(loss.detach())
        if isinstance(penalty := self.learner.penalty() + self._pull(), torch.Tensor):
            self.accelerator.backward(penalty / self.accelerator.num_processes)
        self._add_up()
        with _naming([example for _, example in batch], epoch):
            self.stepper.step()
        self.learner.after_step()
        self.stepper.clear()
        return self._summed(totals)

    def _units(self, batch: Sequence[_Asked], sizes: Sequence[int], epoch: int) -> Iterator[list[_Asked]]:
        """People of one task who are asked together: one by one, or as many as the token budget holds."""
        unit: list[_Asked] = []
        n_tokens = 0
        for one, size in zip(batch, sizes, strict=True):
            most = len(batch) if self._kind(one[0], epoch).together else self.backend.mode.users_per_unit
            full = len(unit) == most or n_tokens + size > self.learner.backend.token_budget
            if unit and (full or unit[0][0].task != one[0].task):
                yield unit
                unit, n_tokens = [], 0
            unit.append(one)
            n_tokens += size
        if unit:
            yield unit

    def _pull(self) -> torch.Tensor | float:
        """Towards the weights of the earlier round."""
        if self.earlier is None or self.earlier.pull == 0.0:
            return 0.0
        weights = self.learner.parameters()
        return self.earlier.pull * torch.stack([(weights[n] - w).square().sum() for n, w in self.anchor.items()]).sum()

    def _loss_of_earlier(self) -> float | None:
        """Mean loss of all people of the earlier round, at the scales that suit them best; None if none are known."""
        pairs = [pair for pair in zip(self.lessons, self.kinds, self.tuned, strict=True) if pair[0].earlier]
        if not pairs:
            return None
        with torch.no_grad():
            self.learner.place()
            losses = [kinds.answers.before(tuned, lesson.earlier)[1] for lesson, kinds, tuned in pairs]
        return float(np.average(losses, weights=[len(lesson.earlier) for lesson, *_ in pairs]))

    def _add_up(self) -> None:
        """Gradients of all processes, summed."""
        if self.accelerator.num_processes == 1:
            return
        own = torch.tensor([weights.grad is not None for weights in self.stepper.weights], dtype=torch.float)
        anywhere = self.accelerator.reduce(own.to(self.accelerator.device), "sum").tolist()
        for weights, n_processes in zip(self.stepper.weights, anywhere, strict=True):
            if n_processes:  # else it stays as it is, as in one process
                gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
                weights.grad = self.accelerator.reduce(gradient, "sum")

    def _summed(self, values: np.ndarray) -> np.ndarray:
        if self.accelerator.num_processes == 1:
            return values
        shared = torch.from_numpy(values).float().to(self.accelerator.device)
        return np.asarray(self.accelerator.reduce(shared, "sum").cpu(), dtype=float)

    def _first(self, recommenders: Sequence[Recommender]) -> First:
        """What is asked before training: the questions of the first pass that counts, so losses can be compared."""
        epoch = self.plan.index(self.settings.goal)
        asked: list[list[Example]] = [[] for _ in self.lessons]
        with torch.no_grad():
            for draws in self._steps(epoch):
                for draw, example in self._batch(draws, epoch, recommenders):
                    asked[draw.task].append(example)
        return First([kinds.of(self.settings.goal) for kinds in self.kinds], asked)

    def _again(self, epoch: int) -> Pass | None:
        """The questions before training, asked of the weights that stay; None where every pass asks them."""
        if self.settings.questions == 1 or self.settings.goal != "answers" or not epoch:
            return None
        _, losses = self.first.fitted(self.tuned)
        return Pass(epoch, "answers", self._by_name(losses), self._mean(losses), {}, None, 0.0, 0.0)

    def _note_pass(self, epoch: int, losses: Sequence[float], seconds: float, n_tokens: int) -> None:
        found = self._measured()
        metrics = {name: one.value for name, one in found.items()}
        judged = {name: one.judged for name, one in found.items() if one.judged}
        metric = float(np.mean([*metrics.values()])) if metrics else None
        named = self._by_name(losses)
        speed = n_tokens / seconds if seconds else 0.0
        done = Pass(epoch, self.plan[epoch], named, self._mean(losses), metrics, metric, seconds, speed, judged)
        self.passes.append(done)
        height = float(epoch) if metric is None else self._sign * metric
        if self.best is None or height > self.best[1]:
            self.best = (epoch, height, self.learner.state())
        self.accelerator.log(numbers_of(done), step=epoch)
        self.say(line(done, self.settings.method, self.lessons, len(self.plan) - 1 - epoch))

    def _mean(self, losses: Sequence[float]) -> float:
        """Of the tasks, by their shares of a pass."""
        return float(np.dot(losses, shares(self.mixture.sizes, self.mixture.temperature)))

    @property
    def _sign(self) -> int:
        """1 where more of the metric is better, else -1."""
        return 1 if better_of(self.lessons[0].metric) == "more" else -1

    def _by_name(self, values: Iterable[T]) -> dict[str, T]:
        return {lesson.name: value for lesson, value in zip(self.lessons, values, strict=True)}

    def _measured(self) -> dict[str, Measured]:
        """What those held out came to, by the name of their task; of the tasks that hold somebody out."""
        self.learner.place()
        each = zip(self.lessons, self.kinds, self.tuned, strict=True)
        found = {lesson.name: kinds.answers.measured(tuned) for lesson, kinds, tuned in each if lesson.held_out}
        told = {name: one for name, one in found.items() if math.isfinite(one.value)}
        if not self.passes and len(told) < len(found):
            where = ", ".join(sorted({*found} - {*told})) or "these examples"
            nobody = "" if told else "; nothing is chosen by them, and the last pass stays"
            self.say(f"{metrics_of(self.lessons)} cannot be told of the people held out of {where}{nobody}")
        return told

    def _waited_enough(self) -> bool:
        """Whether passes of the kind that counts went by without a better one; a warm-up's are not waited for."""
        assert self.best is not None, "measured before the first pass"
        since = max(self.best[0], self.plan.index(self.settings.goal) - 1)
        return self.passes[0].metric is not None and len(self.passes) - 1 - since >= self.settings.patience

    def _end(self) -> Tuned:
        assert self.best is not None, "measured before the first pass"
        epoch, _, weights = self.best
        self.learner.restore(weights)
        self.learner.end()
        before, after = self.earlier_loss, self._loss_of_earlier()
        forgotten = None if before is None or after is None else (before, after)
        n_weights = sum(weights.numel() for weights in self.learner.parameters().values())
        settings, passes = self.settings, tuple(self.passes)
        state = self.lessons, self.tuned, self.learner, settings, passes, epoch, n_weights
        found = Tuned(*state, forgotten, self._again(epoch))
        if not found.learned:
            self.say(
                f"{self.settings.method} did not learn: the weights that stay had no lower loss than the "
                f"{found.zero_shot_loss:.3f} before; try another learning rate or more passes"
            )
        elif found.not_learned:
            self.say(f"{self.settings.method} did not learn {', '.join(found.not_learned)}, but the others")
        return found

    # --- to go on after an interruption ------------------------------------------------------------------------------

    def _save(self, folder: Path | None) -> None:
        if folder is None or not self.accelerator.is_main_process:
            return
        assert self.best is not None, "measured before it is saved"
        made_folder(folder)
        groups = {
            "weights": self.learner.state(),
            "best": self.best[2],
            "optimizer": self.stepper.state(),
            "scales": {"log_scales": self.log_scales.detach()},
        }
        note = {
            "identity": self.identity,
            "passes": [asdict(done) for done in self.passes],
            "best": self.best[:2],
        }
        checkpoint.save(folder, groups, note)

    def _resume(self, folder: Path | None) -> None:
        saved = None if folder is None else checkpoint.load(folder)
        if saved is None:
            return
        groups, note = saved
        if note["identity"] != self.identity:
            raise RunError(
                f"{folder}: holds the training of other examples, settings or another model; remove it to train anew, "
                "or name another folder for what is learnt (--out)"
            )
        self.learner.restore(groups["weights"])
        with torch.no_grad():
            self.log_scales.copy_(groups["scales"]["log_scales"])
        self.passes = [Pass(**done) for done in note["passes"]]
        n_done = self.n_batches * (len(self.passes) - 1)  # a checkpoint is written between passes
        self.stepper.restore(groups.get("optimizer", {}), n_done)
        self.best = (*note["best"], groups["best"])
        self.say(f"goes on after pass {self.passes[-1].epoch}, from {folder}")


@contextmanager
def _naming(examples: Sequence[Example], epoch: int) -> Iterator[None]:
    """Whose numbers are not finite, and when, is said with every NumericError inside."""
    try:
        yield
    except NumericError as error:
        several = ", ".join(repr(example.query.user_id) for example in examples)
        raise NumericError(
            f"pass {epoch}, user {several}: {error}. A lower learning rate or --precision fp32 may help. What was "
            "saved before is intact"
        ) from error


def _check_finite(losses: torch.Tensor, examples: Sequence[Example]) -> None:
    for example, loss in zip(examples, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            raise NumericError(f"the loss of {example.query.user_id!r} is {loss}")


def _time(draw: Draw) -> tuple[int, int]:
    return draw.task, draw.turn
