"""What learns: trainable weights put on a backend, one class for each way in which they reach the model.

| class | the weights are | methods |
|---|---|---|
| Virtual | vectors before the prompt | soft-prompt (arXiv 2104.08691), p-tuning (arXiv 2103.10385) |
| Prefix | keys and values before the prompt, of a decoder before the answer | prefix (arXiv 2101.00190) |
| LowRank, AdaptiveRank | beside the model's own | lora (arXiv 2106.09685), adalora (arXiv 2303.10512) |
| Full | the model's own | full |

Weights that learn are in fp32 whatever the model is in. Virtual tokens begin as the tokens of an instruction, keys and
values as what the model makes of them; P-tuning's network adds to such a beginning (as in residual prompt tuning,
Razdaibiedina et al. 2023, arXiv 2305.03937). PEFT's own forward would drop masks and positions, so the engine puts
learned prefixes before the prompt; what is saved is in PEFT's format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, TypeAlias

import torch
from torch.nn import Parameter

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens
from fewrec_prompt.backends.switching import UNNAMED, no_false_alarms
from fewrec_prompt.errors import ModelError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.tuning.peft_configs import (
    json_ready,
    low_rank_config,
    prefix_as_saved,
    prefix_as_used,
    virtual_config,
)
from fewrec_prompt.tuning.settings import Settings

Tensors: TypeAlias = dict[str, torch.Tensor]
LONE = "default"  # what PEFT calls the only adapter of a model


class Learner:
    """Weights that learn on a model, and the backend that answers with them as they are now."""

    backend: LocalBackend

    def parameters(self) -> dict[str, Parameter]:
        """What the optimizer changes, by name."""
        raise NotImplementedError

    def groups(self, rate: float) -> list[tuple[list[Parameter], float]]:
        """The same with the learning rate of each, where that of the method is `rate`."""
        return [([*self.parameters().values()], rate)]

    def answering(self, recommender: Recommender) -> Recommender:
        """A recommender as it answers with these weights."""
        return replace(recommender, backend=self.backend)

    def learning(self) -> AbstractContextManager[None]:
        """The model as it learns; outside, whatever happens, it answers as it does to everybody."""
        return _learning(self.backend.model)

    def place(self) -> None:
        """Make the backend answer with the weights as they are now; before every forward pass."""
        self.backend.forget()

    def penalty(self) -> torch.Tensor | float:
        """What the method adds to the loss of a step."""
        return 0.0

    def after_step(self) -> None:
        """What the method does once the optimizer has changed its weights; their gradients are still there."""

    def config(self) -> dict[str, Any] | None:
        """PEFT's configuration, JSON-ready; None for a method that PEFT has not."""
        raise NotImplementedError

    def export(self) -> Tensors:
        """What is saved, under PEFT's names."""
        raise NotImplementedError

    def adopt(self, tensors: Tensors) -> None:
        """Begin with what was saved earlier, under PEFT's names. Raises ModelError for a method that cannot."""
        raise ModelError(
            "what this method saved cannot be learnt on; begin anew, or take soft-prompt, prefix, lora or full"
        )

    def end(self) -> None:
        """Stop learning: the weights stay where they are, and nothing has gradients."""
        for weights in self.parameters().values():
            weights.requires_grad_(False)
        self.place()

    def state(self) -> Tensors:
        """A copy of the weights, to come back to."""
        return {name: weights.detach().clone() for name, weights in self.parameters().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go back to what `state` gave."""
        with torch.no_grad():
            for name, weights in self.parameters().items():
                weights.copy_(state[name])
        self.place()


class Virtual(Learner):
    """Vectors (n_tokens, width) before every prompt, perhaps made by a small network that is dropped in the end."""

    def __init__(self, backend: LocalBackend, settings: Settings, instruction: str) -> None:
        _freeze(backend.model)
        self.backend = backend.view(soft=SoftTokens(torch.zeros(settings.tokens, backend.vector_width)))
        self._start = _first_vectors(backend, settings, instruction)
        self._config = virtual_config(backend, settings)
        if settings.method == "p-tuning":
            torch.manual_seed(settings.seed)  # torch draws a layer's first weights from its own generator
            self._network = torch.nn.Sequential(
                torch.nn.Linear(backend.vector_width, backend.vector_width),
                torch.nn.ReLU(),
                _zero(backend.vector_width),
            ).to(backend.model.device)
            self._weights = {f"network.{name}": weights for name, weights in self._network.named_parameters()}
            self._weights["tokens"] = Parameter(self._start.clone())
        else:
            self._weights = {"tokens": Parameter(self._start.clone())}
        self.place()

    def parameters(self) -> dict[str, Parameter]:
        return self._weights

    def vectors(self) -> torch.Tensor:
        tokens = self._weights["tokens"]
        return self._start + self._network(tokens) if len(self._weights) > 1 else tokens

    def adopt(self, tensors: Tensors) -> None:
        """P-tuning's network was dropped: a new one adds to what it came to."""
        saved = tensors["prompt_embeddings"].to(self._start)
        if saved.shape != self._start.shape:
            raise ModelError(
                f"{len(saved)} virtual tokens were learnt earlier, not {len(self._start)}; ask for as many"
            )
        self._start = saved.clone()
        with torch.no_grad():
            self._weights["tokens"].copy_(saved)
        self.place()

    def place(self) -> None:
        self.backend.soft = SoftTokens(self.vectors())

    def end(self) -> None:
        super().end()
        self.backend.soft = SoftTokens(self.vectors().detach())

    def config(self) -> dict[str, Any]:
        return self._config

    def export(self) -> Tensors:
        return {"prompt_embeddings": self.vectors().detach().clone()}


class Prefix(Learner):
    """Keys and values (n_tokens, n_layers · 2 · n_heads · head_dim) in every layer: before the prompt, or, where an
    encoder reads that, before the answer."""

    def __init__(self, backend: LocalBackend, settings: Settings, instruction: str) -> None:
        _freeze(backend.model)
        with torch.no_grad():
            start = backend.keys_and_values(_first_ids(backend, settings, instruction))
        shape = start.layers[0][0].shape  # that of all, which was checked
        self._heads = {"n_heads": shape[1], "head_dim": shape[3]}
        self._places = len(start.layers), backend.task_type
        values = flat(start).float()
        if settings.init == "random":
            noise = rng_for(settings.seed, "first keys and values").standard_normal(values.shape)
            values = values.std() * torch.from_numpy(noise).to(values)
        self._weights = {"prefix": Parameter(values.clone())}
        self._config = virtual_config(backend, settings, start)
        self.backend = backend.view(soft=start)
        self.place()

    def parameters(self) -> dict[str, Parameter]:
        return self._weights

    def adopt(self, tensors: Tensors) -> None:
        saved = prefix_as_used(tensors["prompt_embeddings"], *self._places)
        if saved.shape != self._weights["prefix"].shape:
            raise ModelError(
                f"keys and values of {len(saved)} tokens were learnt earlier, not {len(self._weights['prefix'])}; ask "
                "for as many"
            )
        with torch.no_grad():
            self._weights["prefix"].copy_(saved)
        self.place()

    def place(self) -> None:
        values = self._weights["prefix"].to(self.backend.model.dtype)
        self.backend.soft = unflat(values, **self._heads)

    def config(self) -> dict[str, Any]:
        return self._config

    def export(self) -> Tensors:
        return {"prompt_embeddings": prefix_as_saved(self._weights["prefix"].detach().clone(), *self._places)}


class LowRank(Learner):
    """LoRA or AdaLoRA inside the model, through PEFT."""

    def __init__(self, backend: LocalBackend, settings: Settings, n_steps: int) -> None:
        _freeze(backend.model)
        torch.manual_seed(settings.seed)  # PEFT draws its first weights from torch's own generator
        self.name = backend.switch.add(low_rank_config(backend, settings, n_steps), learning=True)
        self.backend = backend.view(adapter_name=self.name)
        self._peft = backend.switch.peft
        self.place()
        for weights in self.parameters().values():
            weights.data = weights.data.float()

    def parameters(self) -> dict[str, Parameter]:
        """By the name that they have with PEFT's own name for a lone adapter, whatever others the model holds."""
        named = self.backend.model.named_parameters()
        own = {name: weights for name, weights in named if self.name in name.split(".") and "ranknum" not in name}
        return {_renamed(name, self.name, LONE): weights for name, weights in own.items()}

    def place(self) -> None:
        super().place()
        self.backend.switch.use(self.name)

    def adopt(self, tensors: Tensors) -> None:
        from peft import set_peft_model_state_dict

        if _shapes(tensors) != _shapes(self.export()):
            rank = min(min(weights.shape) for weights in tensors.values())
            raise ModelError(
                f"another rank or other layers were learnt earlier (rank {rank}, {len(tensors)} matrices); ask for the "
                "same --rank and --targets"
            )
        set_peft_model_state_dict(self._peft, dict(tensors), adapter_name=self.name)
        self.place()

    def end(self) -> None:
        super().end()
        self.backend.switch.stop_learning()

    def config(self) -> dict[str, Any]:
        return json_ready(self._peft.peft_config[self.name])

    def export(self) -> Tensors:
        from peft import get_peft_model_state_dict

        with no_false_alarms():
            found = get_peft_model_state_dict(self._peft, adapter_name=self.name)
        return {name: weights.detach().clone().contiguous() for name, weights in found.items()}


class AdaptiveRank(LowRank):
    """AdaLoRA: more rank than is wanted, of which the least important is taken away step by step."""

    _HELD = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what PEFT's allocator remembers of every weight

    def __init__(self, backend: LocalBackend, settings: Settings, n_steps: int) -> None:
        super().__init__(backend, settings, n_steps)
        if not hasattr(self._peft.base_model, "rankallocator"):  # PEFT makes one with a model's first adapter alone
            raise ModelError("'adalora' learns in a model that holds no other adapter yet; load the model anew")
        self._n_done = 0

    def adopt(self, tensors: Tensors) -> None:
        """Its ranks were settled: a second round would plan them anew."""
        Learner.adopt(self, tensors)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank that each matrix has now."""
        pattern = self._peft.peft_config[self.name].rank_pattern or {}
        return {name: sum(kept) for name, kept in pattern.items()}

    def config(self) -> dict[str, Any]:
        """Its ranks under the names of the layers alone, as PEFT reads them."""
        found = super().config()
        pattern = found["rank_pattern"] or {}
        own = {name.removesuffix(f".{self.name}"): kept for name, kept in pattern.items()}
        return found | {"rank_pattern": own or None}

    def penalty(self) -> torch.Tensor:
        """How far P and Q of W = PΛQ are from orthogonal: equation 4 of the paper, weighted as PEFT does."""
        parts = [self._apart(name, weights) for name, weights in self.parameters().items() if "lora_E" not in name]
        weight: float = self._peft.peft_config[self.name].orth_reg_weight
        return weight * torch.stack(parts).mean()

    @staticmethod
    def _apart(name: str, weights: torch.Tensor) -> torch.Tensor:
        product = weights @ weights.T if "lora_A" in name else weights.T @ weights
        distance: torch.Tensor = torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device))
        return distance

    def after_step(self) -> None:
        for weights in self.parameters().values():
            if weights.grad is None:  # of an expert that read nothing of this step; PEFT asks for one
                weights.grad = torch.zeros_like(weights)
        self._peft.base_model.update_and_allocate(self._n_done)
        self._n_done += 1

    def state(self) -> Tensors:
        """The weights, which directions are kept, and how much each mattered so far."""
        pattern = self._peft.peft_config[self.name].rank_pattern or {}
        allocator = self._peft.base_model.rankallocator
        held = {f"{kind}:{name}": v.clone() for kind in self._HELD for name, v in getattr(allocator, kind).items()}
        kept = {f"pattern:{name}": torch.tensor(directions) for name, directions in pattern.items()}
        more = {_renamed(name, self.name, LONE): values for name, values in (held | kept).items()}
        return super().state() | more | {"n_done": torch.tensor(self._n_done)}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        super().restore(state)
        allocator, config = self._peft.base_model.rankallocator, self._peft.peft_config[self.name]
        state = {_renamed(name, LONE, self.name): values for name, values in state.items()}
        for kind in self._HELD:
            held = _below(f"{kind}:", state)
            setattr(allocator, kind, {name: v.to(self.backend.model.device, copy=True) for name, v in held.items()})
        pattern = {name: directions.tolist() for name, directions in _below("pattern:", state).items()}
        config.rank_pattern = pattern or None
        self._n_done = int(state["n_done"])


class Full(Learner):
    """Every weight of the model."""

    def __init__(self, backend: LocalBackend) -> None:
        if backend.switch.peft is not None:
            raise ModelError("'full' learns in a model that holds no adapter; load the model anew")
        backend.switch.weights = UNNAMED
        self.backend = backend.view()
        for weights in backend.model.parameters():
            weights.requires_grad_(True)

    def parameters(self) -> dict[str, Parameter]:
        return dict(self.backend.model.named_parameters())

    def adopt(self, tensors: Tensors) -> None:
        self.restore(tensors)

    def config(self) -> None:
        """None: the whole model is saved."""

    def export(self) -> Tensors:
        return self.state()


def begin(backend: LocalBackend, settings: Settings, *, instruction: str, n_steps: int) -> Learner:
    """Put the method's weights on the model. Virtual tokens begin as those of the instruction.

    `n_steps` is what AdaLoRA plans its ranks by. That the model can take the method was checked ahead (ahead.py).
    """
    if settings.checkpointing:
        backend.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    match settings.method:
        case "soft-prompt" | "p-tuning":
            return Virtual(backend, settings, instruction)
        case "prefix":
            return Prefix(backend, settings, instruction)
        case "lora":
            return LowRank(backend, settings, n_steps)
        case "adalora":
            return AdaptiveRank(backend, settings, n_steps)
        case "full":
            return Full(backend)
        case _:
            raise AssertionError(f"{settings.method!r} stands on top of a model, where begin_head puts it")


@contextmanager
def _learning(model: Any) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def _renamed(name: str, old: str, new: str) -> str:
    """A dotted name with another part in place of `old`."""
    return ".".join(new if part == old else part for part in name.split("."))


def flat(prefix: KeyValues) -> torch.Tensor:
    """PEFT's form of keys and values: (n_tokens, n_layers · 2 · n_heads · head_dim)."""
    halves = torch.stack([half[0] for layer in prefix.layers for half in layer])  # (2 n_layers, heads, tokens, dim)
    return halves.permute(2, 0, 1, 3).flatten(1)


def unflat(values: torch.Tensor, *, n_heads: int, head_dim: int) -> KeyValues:
    """Keys and values of PEFT's form."""
    halves = values.view(len(values), -1, n_heads, head_dim).permute(1, 2, 0, 3)[:, None]
    return KeyValues(tuple((halves[at], halves[at + 1]) for at in range(0, len(halves), 2)))


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weights.shape) for name, weights in tensors.items()}


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> Tensors:
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def _freeze(model: Any) -> None:
    for weights in model.parameters():
        weights.requires_grad_(False)


def _zero(width: int) -> torch.nn.Linear:
    """A layer that adds nothing yet."""
    layer = torch.nn.Linear(width, width)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer


def _first_ids(backend: LocalBackend, settings: Settings, instruction: str) -> tuple[int, ...]:
    """Token ids that virtual tokens begin as: those of the instruction, again and again, or any words."""
    if settings.init == "vocabulary":
        n_words = len(backend.embeddings.weight)
        drawn = rng_for(settings.seed, "first tokens").integers(0, n_words, settings.tokens)
        return tuple(int(word) for word in drawn)
    ids = backend.tokens.text_ids(instruction)
    return tuple(islice(cycle(ids), settings.tokens))


def _first_vectors(backend: LocalBackend, settings: Settings, instruction: str) -> torch.Tensor:
    embeddings = backend.embeddings
    ids = torch.tensor(_first_ids(backend, settings, instruction), device=embeddings.weight.device)
    with torch.no_grad():
        vectors: torch.Tensor = embeddings(ids).float()
    if settings.init != "random":
        return vectors
    noise = rng_for(settings.seed, "first vectors").standard_normal(vectors.shape)
    drawn: torch.Tensor = vectors.std() * torch.from_numpy(noise).to(vectors)
    return drawn
