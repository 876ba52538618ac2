"""What a task file may say, and what each key means: the words of eval/*.toml, checked against each other."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, FiniteFloat, PositiveInt, model_validator

from fewrec_prompt.artifacts import Settings
from fewrec_prompt.calibration import NAMES, CalibrationName
from fewrec_prompt.data.candidates import SamplerName
from fewrec_prompt.data.catalogue import OnProblem
from fewrec_prompt.data.protocols import FormName
from fewrec_prompt.data.splits import Sizes, SplitName
from fewrec_prompt.types import Domain
from fewrec_prompt.verbalizers import Length, Orders

DEFAULT_USERS, DEFAULT_HISTORY, DEFAULT_CANDIDATES = 200, 10, 20
BASELINES = ("random", "popularity")
METRICS = ("nDCG@1", "nDCG@5", "nDCG@10", "nDCG@20", "HR@10", "MRR")
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

# A key that is younger than finished runs stands in a record only where it is given: they stay what their headers say.
_UNLESS_GIVEN = Field(exclude_if=lambda value: value is None)


class DomainSettings(Settings):
    """Words that templates use for what is recommended."""

    singular: str = Domain().singular
    plural: str = Domain().plural
    verb: str = Domain().verb


class ColumnSettings(Settings):
    """What the columns of own files are called, where not user_id, item_id, rating, timestamp and title."""

    user: str | None = None
    item: str | None = None
    id: str | None = None  # of the items file, where it calls ids otherwise than the interactions
    rating: str | None = None
    time: str | None = None
    title: str | None = None

    def named(self) -> dict[str, str]:
        """The names that were given, by role."""
        return {role: str(name) for role, name in self.model_dump().items() if name is not None}


class PartSettings(Settings):
    """What the file of a part of a published protocol is called."""

    test: str = "test"
    selection: str = "valid"
    train: str = "train"


class DataSettings(Settings):
    """A data set by name, or files of interactions, from which queries are drawn; or files with ready queries."""

    dataset: str | None = None
    items: str | None = None
    queries: str | None = None
    selection: str | None = None  # queries of other users, to choose things on; belongs to `queries`
    interactions: str | None = None
    columns: ColumnSettings = ColumnSettings()
    domain: DomainSettings = DomainSettings()
    on_problem: OnProblem = "error"
    users: PositiveInt | None = None  # None: 200 of a data set, all of a queries file
    all_users: bool = False  # of a data set
    history: PositiveInt | None = None  # latest items shown; None: 10 of a data set, all of a queries file
    candidates: Annotated[int, Field(ge=2)] | None = None  # None: 20 of a data set; of a file as many as it lists
    split: SplitName = "leave-one-out"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of interactions (temporal), users or items (cold ones)
    known: PositiveInt = 3  # interactions of a cold user
    shots: Annotated[int, Field(ge=0)] = 0  # users of the part "train"
    sampler: SamplerName = "uniform"
    category: str | None = None  # the field that the sampler "category" goes by
    lists: str | None = None  # the file that the sampler "file" reads
    core: PositiveInt | None = None  # users and items with fewer interactions are left out, again and again
    min_rating: FiniteFloat | None = None  # what is rated lower is left out
    learn_from: Annotated[str | None, _UNLESS_GIVEN] = None  # a file beside the data set's with user_id: whoever it
    # names, and is not tested, may be learnt from or chosen on, and nobody else
    file: str | None = None  # queries of a published protocol; {part} in it is test, valid or train
    file_of: str | None = None  # the data set in whose folder it lies; None: `dataset`
    form: FormName | None = None  # how it is read
    parts: Annotated[PartSettings | None, _UNLESS_GIVEN] = None  # which {part} is tested, chosen on, learnt from
    draws: Annotated[str | None, _UNLESS_GIVEN] = None  # rows of its part "train" that the protocol drew, by seed and k

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        files = next((name for name in ("queries", "interactions") if getattr(self, name) is not None), None)
        if (self.dataset is None) == (files is None) or (self.dataset is not None and self.items is not None):
            raise ValueError(
                "give either `dataset` (a name), which brings its items, or `items` with `queries` or `interactions`"
            )
        if files is not None and self.items is None:
            raise ValueError(f"`{files}` needs `items`, the file with their titles")
        if self.selection is not None and self.queries is None:
            raise ValueError("`selection`, a file of queries to choose things on, goes together with `queries`")
        if self.queries is not None and (drawn := sorted(_DRAWN & self.model_fields_set)):
            raise ValueError(f"`{drawn[0]}` says how queries are drawn, but `queries` names a file with ready ones")
        return self

    @model_validator(mode="after")
    def _of_a_protocol(self) -> Self:
        if (self.file is None) != (self.form is None) or (self.file is None and self.file_of is not None):
            raise ValueError("`file`, `form` and perhaps `file_of` go together")
        if (self.parts or self.draws) and "{part}" not in (self.file or ""):
            raise ValueError("`parts` and `draws` belong to a `file` with {part} in its name")
        if self.file is not None and self.dataset is None:
            raise ValueError("`file` needs `dataset`, whose items it names")
        if self.file is not None and (drawn := sorted(_DRAWN & self.model_fields_set)):
            raise ValueError(f"`{drawn[0]}` says how queries are drawn, but `file` names ready ones")
        return self

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.sampler == "full" and self.candidates is not None:
            raise ValueError('sampler = "full" takes all unseen items; leave `candidates` out')
        if (self.sampler == "file") != (self.lists is not None):
            raise ValueError('`lists`, a file with user_id and candidates, belongs to sampler = "file"')
        if self.category is not None and self.sampler != "category":
            raise ValueError('`category`, a field of items, belongs to sampler = "category"')
        if self.all_users and self.users is not None:
            raise ValueError("give either `users` or `all_users`")
        return self

    @property
    def sizes(self) -> Sizes:
        """How much is drawn of a data set."""
        full = self.sampler == "full"
        return Sizes(
            users=None if self.all_users else self.users or DEFAULT_USERS,
            history=self.history or DEFAULT_HISTORY,
            candidates=None if full else self.candidates or DEFAULT_CANDIDATES,
            shots=self.shots,
        )


_DRAWN = {
    "learn_from",
    "columns",
    "all_users",
    "split",
    "share",
    "known",
    "shots",
    "sampler",
    "category",
    "lists",
    "core",
    "min_rating",
}


class RowSettings(Settings):
    """One row of the table: how a prompt is asked, read and calibrated."""

    prompt: str
    verbalizer: str | None = None  # None: the template's own
    calibrate: CalibrationName = "none"
    alpha: FiniteFloat | None = None  # None: the verbalizer's own
    length: Length | None = None
    orders: Orders | None = None
    adapter: str | None = None  # folder of learnt weights; a path starts from the working directory

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.alpha is not None and self.calibrate == "none":
            raise ValueError(f"`alpha` is the weight of a calibration; add calibrate, one of {', '.join(NAMES[1:])}")
        return self


class EnsembleSettings(Settings):
    """One more row of the table, which ranks by what several rows score; they need not be rows of the table.

    All count alike, or by the weights of a mix that was learnt; a mix may be of one row alone.
    """

    members: Annotated[tuple[RowSettings, ...], Field(min_length=1, strict=False)]
    mix: str | None = None  # folder of a learnt mix; a path starts from the working directory

    @model_validator(mode="after")
    def _several(self) -> Self:
        if self.mix is None and len(self.members) < 2:
            raise ValueError("an ensemble has two `members` or more, or a learnt `mix`")
        return self

    @property
    def prompt(self) -> str:
        return " + ".join(dict.fromkeys(row.prompt for row in self.members))


class TaskSettings(Settings):
    """A whole task file. `[data]` alone is complete."""

    description: str = ""
    model: str = "smollm2-135m"
    seed: int = 0
    metrics: Names = METRICS
    baselines: Annotated[tuple[str, ...], Field(strict=False)] = BASELINES
    data: DataSettings
    rows: Annotated[tuple[RowSettings, ...], Field(min_length=1, strict=False)] = (
        RowSettings(prompt="complete"),
        RowSettings(prompt="complete", calibrate="pmi"),
    )
    ensembles: Annotated[tuple[EnsembleSettings, ...], Field(strict=False)] = ()
