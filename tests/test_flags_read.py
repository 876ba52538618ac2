"""Flags that a method does not read are refused by name, before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
from typer.testing import CliRunner

from fewrec_prompt.cli import app
from fewrec_prompt.cli.tuning_options import FLAGS
from fewrec_prompt.errors import FewrecError
from fewrec_prompt.tuning.settings import METHODS, MethodName, Settings

OTHER = {  # a value of each flag that is not its default
    "--tokens": "5",
    "--init": "random",
    "--rank": "4",
    "--targets": "all",
    "--learning-rate": "0.1",
    "--weight-decay": "0.1",
    "--dropout": "0.1",
    "--epochs": "2",
    "--batch": "2",
    "--loss": "pairwise",
    "--negatives": "hard",
    "--warm-up": "1",
    "--held-out": "0.1",
    "--patience": "3",
    "--questions": "2",
    "--temperature": "2",
    "--checkpointing": None,
}


def said(*words: str) -> str:
    found = CliRunner().invoke(app, ["tune", "no-such-task", "--out", "x", *words])
    return str(found.exception or found.output)


def flags_of(*fields: str) -> list[str]:
    return [word for name in fields for word in (name, OTHER[name]) if word is not None]


@pytest.mark.parametrize(
    ("method", "unread"),
    [
        ("mix", tuple(OTHER)),
        ("lora", ("--tokens", "--init")),
        ("adalora", ("--tokens", "--init")),
        ("soft-prompt", ("--rank", "--targets", "--dropout")),
        ("full", ("--tokens", "--init", "--rank", "--targets", "--dropout")),
        ("head", ("--loss", "--negatives", "--warm-up", "--dropout", "--questions", "--rank", "--checkpointing")),
        ("head-lora", ("--loss", "--negatives", "--tokens")),
        ("prototypes", ("--epochs", "--learning-rate", "--batch", "--patience")),
    ],
)
def test_flags_that_a_method_does_not_read_are_refused_by_name(method: str, unread: tuple[str, ...]) -> None:
    for name in unread:
        assert f"{method!r} makes no use of {name};" in said("--method", method, *flags_of(name))
    all_of_them = said("--method", method, *flags_of(*unread))
    assert all(name in all_of_them for name in unread)


@pytest.mark.parametrize("method", ["mix", *get_args(MethodName)])
def test_what_a_method_reads_is_not_refused(method: str) -> None:
    own = METHODS[method].reads if method in METHODS else ()
    read = [name for name in OTHER if name.removeprefix("--").replace("-", "_") in own]
    others = [name for name in read if name != "--temperature"]  # which takes several tasks
    assert "no-such-task" in said("--method", method, *flags_of(*others))


@pytest.mark.parametrize(
    ("flags", "name", "needed"),
    [
        (["--replay", "0.5"], "--replay", "--from"),
        (["--replay", "0", "--pull", "1"], "--replay, --pull", "--from"),
        (["--temperature", "2"], "--temperature", "other tasks"),
    ],
)
def test_what_belongs_to_a_second_round_or_to_several_tasks_is_refused_without(
    flags: list[str], name: str, needed: str
) -> None:
    assert said("--method", "lora", *flags).startswith(f"{name}: means nothing without {needed}; leave")


def test_settings_refuse_what_their_method_does_not_read() -> None:
    with pytest.raises(FewrecError, match="'lora' makes no use of tokens; leave"):
        Settings("lora", tokens=5)
    with pytest.raises(FewrecError, match="'head' makes no use of loss, negatives; leave"):
        Settings("head", loss="binary", negatives="given")


def test_of_settings_that_methods_share_each_takes_what_it_reads() -> None:
    together = {"epochs": 2, "negatives": "given", "held_out": 0.0, "rank": 2, "tokens": 4, "questions": 8}
    assert Settings.shared("lora", together) == Settings(
        "lora", epochs=2, negatives="given", held_out=0.0, rank=2, questions=8
    )
    assert Settings.shared("head", together) == Settings("head", epochs=2, held_out=0.0)
    assert Settings.shared("prototypes", together) == Settings("prototypes", held_out=0.0)
    with pytest.raises(FewrecError, match=r"unknown tuning setting 'epoch'.*epochs"):
        Settings.shared("head", {"epoch": 2})


def test_every_setting_is_read_by_some_method() -> None:
    known = {field.name for field in fields(Settings)} - {"method", "seed"}
    assert frozenset().union(*(one.reads for one in METHODS.values())) == known
    assert set(METHODS) == {*get_args(MethodName)}


def test_prototypes_make_not_even_one_pass() -> None:
    assert "'prototypes' makes no use of --epochs;" in said("--method", "prototypes", "--epochs", "1")


def test_settings_that_methods_share_are_given_to_those_that_read_them() -> None:
    asked = {"checkpointing": True, "rank": 4, "tokens": 5}
    found = {method: Settings.shared(method, asked).to_dict() for method in ("lora", "prefix", "soft-prompt")}
    usual = Settings().to_dict()
    given = {name: {key for key in asked if own[key] != usual[key]} for name, own in found.items()}
    assert given == {
        "lora": {"checkpointing", "rank"},
        "prefix": {"tokens"},
        "soft-prompt": {"checkpointing", "tokens"},
    }


def test_flags_are_by_default_what_settings_are() -> None:
    usual = Settings().to_dict()
    told = {flag.name: flag.default.default for flag in FLAGS if flag.name in usual}
    assert set(usual) - set(told) == {"method", "seed", "temperature"}
    assert told == {name: usual[name] for name in told}
