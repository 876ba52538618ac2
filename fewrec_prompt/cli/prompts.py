"""`fewrec prompts`: which templates there are, what they say, what is wrong with them, and what a model will read."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewrec_prompt.errors import ArtifactError, DataError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt.backends.tokens import QuestionTokenizer
    from fewrec_prompt.data.queries import QuerySet
    from fewrec_prompt.inspection import Model, People
    from fewrec_prompt.types import Domain, Query, Question

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # what `extends` and `include` can refer to

Name = Annotated[str, typer.Argument(help="Template name or path.")]
Verbalizer = Annotated[str | None, typer.Option(help="The template's own where none is given.")]
TokensOf = Annotated[str | None, typer.Option("--model", help="Whose tokens; the task's model by default.")]
User = Annotated[str | None, typer.Option(help="User id; the first of the task by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    prompts = typer.Typer(help="Make, list, show, check, compare and render prompt templates.", no_args_is_help=True)
    prompts.command("new")(new)
    prompts.command("list")(list_prompts)
    prompts.command("show")(show)
    prompts.command("render")(render)
    prompts.command("lint")(lint)
    prompts.command("diff")(diff)
    app.add_typer(prompts, name="prompts")


def new(
    name: Annotated[str, typer.Argument(help="What it shall be called; prompts/NAME.jinja is written.")],
    kind: Annotated[str | None, typer.Option(help="choose, judge, rate or complete.")] = None,
    copied: Annotated[str | None, typer.Option("--from", help="The template to begin with.")] = None,
) -> None:
    """Write a template of your own that works as it is, to be edited: a copy of the plain one of a kind, or of any."""
    from fewrec_prompt import files, lint, templates

    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{name!r} cannot name a template; use small letters, digits, - and _, 64 at most")
    if kind is not None and kind not in lint.KINDS:
        raise ArtifactError(f"unknown kind {kind!r}; {did_you_mean(kind, lint.KINDS)}")
    source = templates.load(copied or kind or "choose")
    if kind is not None and source.kind != kind:
        raise ArtifactError(f"--from {copied} is of kind {source.kind!r}, and --kind says {kind!r}; leave one out")
    path = Path("prompts") / f"{name}.jinja"
    if path.exists():
        raise ArtifactError(f"{path}: is there already; choose another name, or edit it")
    path.parent.mkdir(exist_ok=True)
    files.write_text(path, source.text)
    typer.echo(f"{path}  (a copy of {source.name}; see it with: fewrec prompts render {name} --task tiny)")


def list_prompts(
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Only worded for this: products, posts, films, news.")] = None,
    language: Annotated[str | None, typer.Option(help="Only in this language: en, zh.")] = None,
) -> None:
    """All templates that resolve now: those of ./prompts hide shipped ones of the same name."""
    from fewrec_prompt import artifacts, templates
    from fewrec_prompt.cli.console import print_lines

    found, broken = [], []
    for path in artifacts.names("prompts").values():
        try:
            found.append(templates.read(path))
        except ArtifactError as error:
            broken.append(error)
    wanted = {"kind": kind, "scenario": scenario, "language": language}
    lines = [
        (one.name, one.kind, one.front.scenario, one.front.language, one.front.verbalizer, one.front.description)
        for one in found
        if all(getattr(one.front, key) == value for key, value in wanted.items() if value is not None)
    ]
    if lines:
        print_lines(lines, left=range(6), last_left=True)
    if broken:
        raise ArtifactError("not listed, for they cannot be used:\n  " + "\n  ".join(map(str, broken)))


def show(name: Name) -> None:
    """The template's file, and where it lies."""
    from fewrec_prompt import templates

    template = templates.load(name)
    typer.echo(f"{template.ref.origin}  sha256 {template.ref.sha256[:12]}\n", err=True)
    typer.echo(template.text, nl=False)


def lint(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME…]", help="All templates where none is named.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Check them on this task's data, and with its model's tokens.")
    ] = None,
    model: TokensOf = None,
    shape: Annotated[Literal["text", "json"], typer.Option("--format", help="How findings are printed.")] = "text",
) -> None:
    """What is wrong with templates: file, line, code, and what to do. Ends with 1 if anything is."""
    from fewrec_prompt import artifacts, inspection
    from fewrec_prompt.cli.console import say

    paths = [artifacts.find("prompts", name) for name in names or artifacts.names("prompts")]
    reader, people = _measured_by(task, model)
    found = [finding for path in paths for finding in inspection.inspect(path, reader, people)]
    if shape == "json":
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        for one in found:
            typer.echo(f"{one.file}:{one.line}: {one.code} {one.message}; {one.fix}")
    say(f"templates: {len(paths)}, findings: {len(found)}")
    if found:
        raise typer.Exit(1)


def _measured_by(task: str | None, model: str | None) -> tuple[Model | None, People | None]:
    """The model whose tokens count, and the people of the task, as far as they are named."""
    from fewrec_prompt import inspection, tasks
    from fewrec_prompt.cli.console import say

    found = tasks.load_task(task) if task is not None else None
    people = None if found is None else inspection.People(tasks.load_queries(found, say=say).queries, found.domain)
    name = model or (found.settings.model if found is not None else None)
    if name is None:
        return None, people
    from fewrec_prompt.backends.choice import load_reader

    tokens, window = load_reader(name, say=say)
    return inspection.Model(name, tokens, window), people


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="Template name or path.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Template name or path.")],
    task: Annotated[str | None, typer.Option(help="Also compare what a user of this task is asked.")] = None,
    user: User = None,
    model: TokensOf = None,
) -> None:
    """How two templates differ: their files and, with a task, what one user is asked, with the tokens of both."""
    from fewrec_prompt import templates

    pair = (templates.load(one), templates.load(other))
    _print_diff(*((template.ref.origin, template.text) for template in pair))
    if task is None:
        return
    from fewrec_prompt import tasks
    from fewrec_prompt.backends.choice import load_tokens
    from fewrec_prompt.cli.console import say

    found = tasks.load_task(task)
    query = _query(tasks.load_queries(found, say=say), user)
    tokens = load_tokens(model or found.settings.model, say=say)
    groups = [_asked(name, None, query, found.domain) for name in (one, other)]
    counts = [sum(max(len(it.ids) for it in tokens.encode(question)) for question in group) for group in groups]
    titles = [
        f"{name} for {query.user_id}: {count} tokens in {len(group)} question{'s' if len(group) > 1 else ''}"
        for name, count, group in zip((one, other), counts, groups, strict=True)
    ]
    typer.echo()
    _print_diff(*((title, f"{group[0].prompt}\n") for title, group in zip(titles, groups, strict=True)))


def _print_diff(one: tuple[str, str], other: tuple[str, str]) -> None:
    """A unified diff of two named texts; their names alone where they are equal."""
    (name, text), (name_b, text_b) = one, other
    lines = list(unified_diff(text.splitlines(), text_b.splitlines(), name, name_b, lineterm=""))
    for line in lines or [f"--- {name}", f"+++ {name_b}", "(the same)"]:
        typer.echo(line)


def _asked(name: str, verbalizer: str | None, query: Query, domain: Domain) -> list[Question]:
    """What a user is asked with this template."""
    from fewrec_prompt.recommender import choose
    from fewrec_prompt.rendering import Render

    template, reader, _ = choose(name, verbalizer, "none", None, None)
    return reader.ask(query, Render(template, domain))


def render(
    name: Name,
    task: Annotated[str, typer.Option(help="Task whose data is shown.")],
    user: User = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the token ids around the answer slot.")] = False,
    verbalizer: Verbalizer = None,
    model: TokensOf = None,
) -> None:
    """What the model will read for one user, to the letter: the first question where there is one a candidate.

    History that the model's context cannot hold is still shown here; a run counts what it had to cut.
    """
    from fewrec_prompt import tasks
    from fewrec_prompt.cli.console import say

    found = tasks.load_task(task)
    questions = _asked(name, verbalizer, _query(tasks.load_queries(found, say=say), user), found.domain)
    typer.echo(str(questions[0].prompt))
    if len(questions) > 1:
        say(f"(the first of {len(questions)} questions)")
    if tokens:
        from fewrec_prompt.backends.choice import load_tokens

        _show_slot(load_tokens(model or found.settings.model, say=say), questions[0])


def _query(queries: QuerySet, user: str | None) -> Query:
    if user is None:
        return queries.queries[0]
    for query in queries.queries:
        if query.user_id == user:
            return query
    some = ", ".join(query.user_id for query in queries.queries[:8])
    raise DataError(f"user {user!r} is not among the {len(queries.queries)} of this task; the first are {some}")


def _show_slot(tokens: QuestionTokenizer, question: Question, before: int = 8, shown: int = 3) -> None:
    """The last tokens of the prompt, then the first continuations as the model will meet them."""
    typer.echo("\ntokens before the answer:")
    for token_id in tokens.prompt_ids(question.prompt)[-before:]:
        typer.echo(f"  {token_id:>7}  {tokens.decode([token_id])!r}")
    for continuation, sequence in list(zip(question.continuations, tokens.encode(question), strict=True))[:shown]:
        typer.echo(f"answer {continuation!r}:")
        for token_id in sequence.ids[sequence.scored_from :]:
            typer.echo(f"  {token_id:>7}  {tokens.decode([token_id])!r}")
    if len(question.continuations) > shown:
        typer.echo(f"… and {len(question.continuations) - shown} more answers")
