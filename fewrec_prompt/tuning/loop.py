"""The one training loop: questions of the recommender, scores of the recommender, a loss over them, a step.

What may be trained stands in methods.py, what is minimised in losses.py, what an answer is learnt against in
negatives.py. Any number of processes share a step's people and add up their gradients (accelerate).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator, PartialState

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.data.training import Training
from fewrec_prompt.errors import BudgetError, DataError, NumericError, RunError
from fewrec_prompt.metrics import Shelf, UserScores, measure_all
from fewrec_prompt.recommender import Recommender, check_trains
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning import checkpoint
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.losses import LOSSES, best_scale, check_answers
from fewrec_prompt.tuning.methods import Learner, Tensors, begin
from fewrec_prompt.tuning.negatives import Negatives
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Query, Question, Ranking, TokenLogprobs

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LARGEST_GRADIENT = 1.0  # norm; steeper ones are cut
TEMPERATURE_RATE = 0.02  # learning rate of the scores' scale
Watch: TypeAlias = Callable[[int, float], None]
"""Called after each pass with its number and the metric of those held out; may raise to stop."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the examples."""

    epoch: int  # 0: before learning
    of: str  # start, histories (plain modelling of the next title) or answers
    loss: float  # mean over the people of the pass, in nats
    metric: float | None  # of those held out, a fraction; None where nobody is
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier round to go on from, and how it is held on to.

    `replay` are people of that round who are learnt from again; `pull` is the weight of the squared distance to its
    weights (Li et al. 2018, arXiv 1802.01483). What was forgotten is measured on all its people.
    """

    tensors: Tensors
    people: tuple[Example, ...]
    replay: tuple[Example, ...] = ()
    pull: float = 0.0


@dataclass(frozen=True, slots=True)
class Tuned:
    """What training came to: the recommender as it learnt, and how it went."""

    recommender: Recommender
    learner: Learner
    settings: Settings
    passes: tuple[Pass, ...]
    zero_shot_loss: float  # of the untrained recommender on the same examples, at the scale that suits it best
    best_epoch: int
    n_weights: int
    earlier_loss: tuple[float, float] | None = None  # of the earlier round's people, before this round and after it

    @property
    def learned(self) -> bool:
        """Whether the training loss beat that of the untrained recommender."""
        return any(done.loss < self.zero_shot_loss for done in self.passes if done.of == "answers")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the weights."""
        return {
            "settings": self.settings.to_dict(),
            "passes": [asdict(done) for done in self.passes],
            "zero_shot_loss": self.zero_shot_loss,
            "learned": self.learned,
            "best_epoch": self.best_epoch,
            "n_weights": self.n_weights,
            "earlier_loss": self.earlier_loss,
        }


@dataclass(frozen=True, slots=True)
class Graded:
    """A backend whose answers carry gradients: what a recommender makes of them does, too."""

    backend: CausalBackend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def logprobs(self, questions: Sequence[Question]) -> list[TokenLogprobs]:
        return self.backend.logprobs(questions, grad=True)


def tune(
    recommender: Recommender,
    examples: Sequence[Example],
    settings: Settings,
    *,
    held_out: Sequence[Example] = (),
    training: Training | None = None,
    earlier: Earlier | None = None,
    folder: Path | None = None,
    metric: str = "nDCG@10",
    watch: Watch | None = None,
    say: Say = quiet,
) -> Tuned:
    """Learn from examples; the best state by the metric of those held out stays, the last one where nobody is.

    `earlier` is a round to learn on from. With a `folder` an interrupted training goes on where it stopped. The
    recommender itself stays as it is. Raises DataError for examples that the loss cannot use, NumericError where a loss
    is not finite, ModelError for a method that the model cannot take.
    """
    if not isinstance(recommender.backend, CausalBackend):
        raise DataError("only causal language models are tuned; this recommender asks another kind of backend")
    if recommender.backend.engine.soft is not None:
        raise DataError("this recommender has a learned prefix already; continue that adapter, or start from its base")
    check_trains(recommender.verbalizer, recommender.calibration)
    settings = settings.complete()
    if settings.warm_up and recommender.verbalizer.kind != "complete":
        raise DataError(
            "a warm-up models the next title, which takes a template of kind 'complete', not "
            f"{recommender.verbalizer.kind!r}"
        )
    for example in examples:
        check_answers(settings.loss_name, len(example.query.candidates), len(example.relevant), example.query.user_id)
    state = _Training(
        recommender, recommender.backend, tuple(examples), tuple(held_out), settings, training, metric, say, earlier
    )
    return state.run(folder, watch)


def speaks() -> bool:
    """Whether this is the one of several processes that writes and talks."""
    return bool(PartialState().is_main_process)


def wait_for_all() -> None:
    """Until every process of a training is here."""
    PartialState().wait_for_everyone()


def adapt(recommender: Recommender, examples: Sequence[tuple[Query, Sequence[int]]], **settings: Any) -> Tuned:
    """`tune` from plain pairs: a question, and the places of its answers among the candidates."""
    return tune(recommender, [Example(query, tuple(relevant)) for query, relevant in examples], Settings(**settings))


@dataclass
class _Training:
    """The state of one training."""

    start: Recommender
    backend: CausalBackend
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    settings: Settings
    training: Training | None
    metric: str
    say: Say
    earlier: Earlier | None = None
    passes: list[Pass] = field(default_factory=list)
    best: tuple[int, float, Tensors] | None = None  # epoch, metric, weights

    def __post_init__(self) -> None:
        settings = self.settings
        if self.earlier is not None:
            self.examples += self.earlier.replay
        self.accelerator = Accelerator(cpu=self.backend.mode.device == "cpu")
        self.n_batches = -(-len(self.examples) // settings.batch)
        self.plan = ("start", *["histories"] * settings.warm_up, *["answers"] * settings.n_epochs)
        n_steps = self.n_batches * (len(self.plan) - 1)
        self.n_steps = n_steps
        self.negatives = Negatives(settings.negatives_name, self.training, settings.seed)
        log_scale, self.zero_shot_loss = self._untrained()
        self.learner = begin(self.backend, settings, instruction=_instruction(self.start), n_steps=n_steps)
        self.tuned = replace(self.start, backend=self.learner.backend)
        self.anchor: Tensors = {}
        self.earlier_loss = None
        if self.earlier is not None:
            self.learner.adopt(self.earlier.tensors)
            self.anchor = {name: weights.detach().clone() for name, weights in self.learner.parameters().items()}
            self.earlier_loss = self._loss_of_earlier()
        self.log_scale = torch.nn.Parameter(torch.tensor(log_scale, device=self.backend.model.device))
        weights = list(self.learner.parameters().values())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": weights, "lr": settings.rate, "weight_decay": settings.weight_decay},
                {"params": [self.log_scale], "lr": TEMPERATURE_RATE, "weight_decay": 0.0},
            ]
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, partial(_rate, n_steps=n_steps))
        torch.manual_seed(settings.seed)  # dropout

    def run(self, folder: Path | None, watch: Watch | None) -> Tuned:
        self._resume(folder)
        self.accelerator.wait_for_everyone()  # nobody writes before all have read
        if not self.passes:
            self._note_pass(0, self.zero_shot_loss, 0.0, 0)
            self._save(folder)
        for epoch in range(len(self.passes), len(self.plan)):
            if self._waited_enough():
                break
            self._pass(epoch)
            self._save(folder)
            if watch is not None:
                watch(epoch, self.passes[-1].metric or -self.passes[-1].loss)
        return self._end()

    def _pass(self, epoch: int) -> None:
        self.backend.model.train()
        begin_time, losses, n_tokens = time.perf_counter(), [], 0
        order = rng_for(self.settings.seed, "order", epoch).permutation(len(self.examples)).tolist()
        for at in range(0, len(order), self.settings.batch):
            batch = [self.examples[place] for place in order[at : at + self.settings.batch]]
            if self.plan[epoch] == "answers":
                batch = self.negatives(batch, epoch, self._rank)
            losses.append(self._step(batch, epoch) * len(batch))
            n_tokens += sum(self.tuned.work(example.query) for example in batch)
        self.backend.model.eval()
        seconds = time.perf_counter() - begin_time
        self._note_pass(epoch, sum(losses) / len(order), seconds, n_tokens)

    def _step(self, batch: Sequence[Example], epoch: int) -> float:
        """One change of the weights; the mean loss of the batch before it."""
        mine = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        total = 0.0
        for example in mine:
            self.learner.place()
            loss = self._loss(example, epoch) / len(batch)
            if not bool(torch.isfinite(loss)):
                raise NumericError(
                    f"the loss of user {example.query.user_id!r} in pass {epoch} is {float(loss)}; "
                    "a lower learning rate or --precision fp32 may help. What was saved before is intact"
                )
            self.accelerator.backward(loss)
            total += float(loss.detach())
        if isinstance(penalty := self.learner.penalty() + self._pull(), torch.Tensor):
            self.accelerator.backward(penalty / self.accelerator.num_processes)
        self._add_up()
        weights = [*self.learner.parameters().values(), self.log_scale]
        torch.nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
        self.optimizer.step()
        self.learner.after_step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._summed(total)

    def _loss(self, example: Example, epoch: int) -> torch.Tensor:
        asker = replace(self.tuned, backend=Graded(self.learner.backend))  # type: ignore[arg-type]  # all of a Backend
        if self.plan[epoch] == "histories":
            return _next_title(asker, example.query, rng_for(self.settings.seed, "cut", epoch, example.query.user_id))
        scores = asker.scores(asker.answers(example.query)).float()
        return LOSSES[self.settings.loss_name](scores * self.log_scale.exp(), example.relevant)

    def _pull(self) -> torch.Tensor | float:
        """Towards the weights of the earlier round."""
        if self.earlier is None or self.earlier.pull == 0.0:
            return 0.0
        weights = self.learner.parameters()
        return self.earlier.pull * torch.stack([(weights[n] - w).square().sum() for n, w in self.anchor.items()]).sum()

    def _loss_of_earlier(self) -> float:
        """Mean loss of all people of the earlier round, at the scale that suits them best."""
        assert self.earlier is not None, "there is one"
        with torch.no_grad():
            self.learner.place()
            people = self.earlier.people
            scores = [np.asarray(self.tuned.scores(self.tuned.answers(one.query))) for one in people]
        return best_scale(self.settings.loss_name, scores, [one.relevant for one in people])[1]

    def _add_up(self) -> None:
        """Gradients of all processes, summed."""
        if self.accelerator.num_processes == 1:
            return
        for weights in (*self.learner.parameters().values(), self.log_scale):
            gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
            weights.grad = self.accelerator.reduce(gradient, "sum")

    def _summed(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "sum"))

    def _untrained(self) -> tuple[float, float]:
        """The scale at which the scores before training suit the answers best, and their loss at it."""
        scores = [np.asarray(self.start.scores(self.start.answers(example.query))) for example in self.examples]
        return best_scale(self.settings.loss_name, scores, [example.relevant for example in self.examples])

    def _rank(self, query: Query) -> Ranking:
        with torch.no_grad():
            self.learner.place()
            return self.tuned.rank(query)

    def _note_pass(self, epoch: int, loss: float, seconds: float, n_tokens: int) -> None:
        metric = self._measured()
        self.passes.append(Pass(epoch, self.plan[epoch], loss, metric, seconds, n_tokens / seconds if seconds else 0.0))
        value = metric if metric is not None else float(epoch)
        if self.best is None or value > self.best[1]:
            self.best = (epoch, value, self.learner.state())
        held = "" if metric is None else f", {self.metric} of {len(self.held_out)} held out {100 * metric:.1f}"
        left = (len(self.plan) - 1 - epoch) * seconds
        speed = f", {self.passes[-1].tokens_per_second:,.0f} tokens/s, {left:.0f} s left" if epoch else ""
        self.say(f"{self.settings.method} pass {epoch}: loss {loss:.3f}{held}{speed}")

    def _measured(self) -> float | None:
        if not self.held_out:
            return None
        self.learner.place()
        users = [_judged(self.tuned, example) for example in self.held_out]
        measured = measure_all([self.metric], users, Shelf())
        if self.metric in measured.of_run:
            return float(measured.of_run[self.metric].value)
        return float(np.nanmean(measured.per_user[self.metric]))

    def _waited_enough(self) -> bool:
        assert self.best is not None, "measured before the first pass"
        return bool(self.held_out) and len(self.passes) - 1 - self.best[0] >= self.settings.patience

    def _end(self) -> Tuned:
        assert self.best is not None, "measured before the first pass"
        epoch, _, weights = self.best
        self.learner.restore(weights)
        self.learner.end()
        forgotten = None if self.earlier_loss is None else (self.earlier_loss, self._loss_of_earlier())
        n_weights = sum(weights.numel() for weights in self.learner.parameters().values())
        found = Tuned(
            self.tuned,
            self.learner,
            self.settings,
            tuple(self.passes),
            self.zero_shot_loss,
            epoch,
            n_weights,
            forgotten,
        )
        if not found.learned:
            self.say(
                f"{self.settings.method} did not learn: no pass had a lower loss than the untrained model's "
                f"{self.zero_shot_loss:.3f}; try another learning rate or more passes"
            )
        return found

    # --- to go on after an interruption ------------------------------------------------------------------------------

    def _identity(self) -> str:
        """What a checkpoint must agree with: settings, questions, answers, model."""
        people = [(one.query.user_id, _ids(one.query), one.relevant) for one in self.examples]
        held = [one.query.user_id for one in self.held_out]
        files = self.backend.files
        earlier = None if self.earlier is None else (self.earlier.pull, *map(_digest, self.earlier.tensors.values()))
        whole = (self.settings.to_dict(), people, held, self.start.template.ref.sha256, files and files.sha256, earlier)
        return sha256(repr(whole).encode()).hexdigest()

    def _save(self, folder: Path | None) -> None:
        if folder is None or not self.accelerator.is_main_process:
            return
        assert self.best is not None, "measured before it is saved"
        folder.mkdir(parents=True, exist_ok=True)
        groups = {
            "weights": self.learner.state(),
            "best": self.best[2],
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            "chance": {"torch": torch.get_rng_state(), "log_scale": self.log_scale.detach()},
        }
        note = {
            "identity": self._identity(),
            "passes": [asdict(done) for done in self.passes],
            "best": self.best[:2],
        }
        checkpoint.save(folder, groups, note)

    def _resume(self, folder: Path | None) -> None:
        saved = None if folder is None else checkpoint.load(folder)
        if saved is None:
            return
        groups, note = saved
        if note["identity"] != self._identity():
            raise RunError(f"{folder}: holds the training of other examples, settings or another model; name another")
        self.learner.restore(groups["weights"])
        checkpoint.restore_optimizer(self.optimizer, groups.get("optimizer", {}))  # none before the first step
        with torch.no_grad():
            self.log_scale.copy_(groups["chance"]["log_scale"])
        self.passes = [Pass(**done) for done in note["passes"]]
        n_done = self.n_batches * (len(self.passes) - 1)  # a checkpoint is written between passes
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": n_done})
        for group, factor in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = factor * _rate(n_done, n_steps=self.n_steps)
        self.best = (*note["best"], groups["best"])
        torch.set_rng_state(groups["chance"]["torch"])
        self.say(f"goes on after pass {self.passes[-1].epoch}, from {folder}")


def _rate(step: int, *, n_steps: int) -> float:
    """Share of the learning rate: it rises over the first steps and falls to zero at the last (linear)."""
    rising = max(1, round(WARM_UP * n_steps))
    return (step + 1) / rising if step < rising else max(0.0, (n_steps - step) / max(1, n_steps - rising))


def _instruction(recommender: Recommender) -> str:
    """Words that virtual tokens begin as: what the template is for."""
    domain = recommender.domain
    return f"{recommender.template.front.description} Which {domain.plural} will the person {domain.verb} next?\n"


def _next_title(recommender: Recommender, query: Query, rng: np.random.Generator) -> torch.Tensor:
    """Mean loss of a token (nats) of one title of the history after those before it: which one, chance decides."""
    cut = int(rng.integers(1, len(query.history))) if len(query.history) > 1 else 0
    known = replace(query, history=query.history[:cut], candidates=(query.history[cut].item,))
    rows: list[Any] = recommender.backend.logprobs(recommender.questions(known))
    return -torch.cat([row for answer in rows for row in answer]).mean()


def _digest(values: torch.Tensor) -> str:
    return sha256(values.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def _ids(query: Query) -> list[str]:
    return [item.id for item in query.candidates]


def _judged(recommender: Recommender, example: Example) -> UserScores:
    """An example as metrics want it."""
    query = example.query
    try:
        scores = np.asarray(recommender.scores(recommender.answers(query)), dtype=float)
    except BudgetError as error:
        raise BudgetError(f"held out: {error}") from error
    marks = np.zeros(len(query.candidates), dtype=bool)
    marks[list(example.relevant)] = True
    return UserScores(
        query.user_id,
        scores,
        marks,
        len(example.relevant),
        tuple(_ids(query)),
        tuple(seen.item.id for seen in query.history),
        None,
    )
