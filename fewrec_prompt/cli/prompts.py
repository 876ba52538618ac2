"""`fewrec prompts`: which templates there are, what they say, and what a model will read for one user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fewrec_prompt.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from fewrec_prompt.backends.tokens import QuestionTokenizer
    from fewrec_prompt.data.queries import QuerySet
    from fewrec_prompt.types import Query, Question


def register(app: typer.Typer) -> None:
    """Add the commands."""
    prompts = typer.Typer(help="List, show and render prompt templates.", no_args_is_help=True)
    prompts.command("list")(list_prompts)
    prompts.command("show")(show)
    prompts.command("render")(render)
    app.add_typer(prompts, name="prompts")


def list_prompts() -> None:
    """All templates that resolve now: those of ./prompts hide shipped ones of the same name."""
    from fewrec_prompt import artifacts, templates

    found, broken = [], []
    for path in artifacts.names("prompts").values():
        try:
            found.append(templates.read(path))
        except ArtifactError as error:
            broken.append(error)
    width = max((len(template.name) for template in found), default=0)
    for template in found:
        front = template.front
        typer.echo(f"{template.name:<{width}}  {front.kind:<8}  {front.verbalizer:<8}  {front.description}")
    if broken:
        raise ArtifactError("not listed, for they cannot be used:\n  " + "\n  ".join(map(str, broken)))


def show(name: Annotated[str, typer.Argument(help="Template name or path.")]) -> None:
    """The template's file, and where it lies."""
    from fewrec_prompt import templates

    template = templates.load(name)
    typer.echo(f"{template.ref.origin}  sha256 {template.ref.sha256[:12]}\n", err=True)
    typer.echo(template.text, nl=False)


def render(
    name: Annotated[str, typer.Argument(help="Template name or path.")],
    task: Annotated[str, typer.Option(help="Task whose data is shown.")],
    user: Annotated[str | None, typer.Option(help="User id; the first of the task by default.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the token ids around the answer slot.")] = False,
    verbalizer: Annotated[str | None, typer.Option(help="The template's own where none is given.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokens; the task's model by default.")] = None,
) -> None:
    """What the model will read for one user, to the letter: the first question where there is one a candidate.

    History that the model's context cannot hold is still shown here; a run counts what it had to cut.
    """
    from fewrec_prompt import recommender, tasks
    from fewrec_prompt.cli.console import say

    found = tasks.load_task(task)
    template, reader, _ = recommender.choose(name, verbalizer, "none", None, None)
    query = _query(tasks.load_queries(found, say=say), user)
    questions = reader.ask(query, recommender.Render(template, found.domain))
    typer.echo(str(questions[0].prompt))
    if len(questions) > 1:
        say(f"(the first of {len(questions)} questions)")
    if tokens:
        from fewrec_prompt.backends.causal import load_tokens

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
