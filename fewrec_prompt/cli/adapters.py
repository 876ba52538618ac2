"""`fewrec adapters`: what was learnt and lies in folders: list, show, merge into a model, put on a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from fewrec_prompt.cli.model_options import Device
from fewrec_prompt.errors import AdapterError, FewrecError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    adapters = typer.Typer(help="List, show, merge and push what was learnt.", no_args_is_help=True)
    adapters.command("list")(list_adapters)
    adapters.command("show")(show)
    adapters.command("merge")(merge)
    adapters.command("push")(push)
    app.add_typer(adapters, name="adapters")


def list_adapters(
    folder: Annotated[Path, typer.Argument(help="Where they lie.")] = Path("adapters"),
) -> None:
    """The adapters in a folder: method, task, people, and how well they did on those held out."""
    from fewrec_prompt.cli.console import print_lines
    from fewrec_prompt.tuning.adapters import NOTE, read

    lines, broken = [("adapter", "method", "task", "shots", "loss", "held out")], []
    for note in sorted(folder.glob(f"*/{NOTE}")):
        try:
            about, method = (found := read(note.parent)).about, found.method
        except AdapterError as error:
            broken.append(str(error))
            continue
        shots = " + ".join(str(one["shots"]) for one in about["tasks"].values())
        lines.append((note.parent.name, method, ", ".join(about["tasks"]), shots, *_came_to(about)))
    if len(lines) == 1 and not broken:
        typer.echo(f"no adapter in {folder}/; make one with: fewrec tune TASK --out {folder}/NAME")
        return
    print_lines(lines, left=(0, 1, 2))
    if broken:
        raise AdapterError("not listed, for they cannot be used:\n  " + "\n  ".join(broken))


def _came_to(about: Mapping[str, Any]) -> tuple[str, str]:
    """Loss and held-out metric of what was kept; a classifier's is F1, and a mix has no passes."""
    if "passes" not in about:
        return f"{about['mix']['loss']:.3f}", "–"
    best = about["passes"][about["best_epoch"]]
    classes = [*best.get("judged", {}).values(), *filter(None, [best.get("held_out")])]  # "held_out" of older folders
    judged = [one["f1"] for one in classes]
    metric = fmean(judged) if judged else best.get("metric")
    held_out = "–" if metric is None else f"{'F1 ' if judged else ''}{100 * metric:.1f}"
    return f"{best['loss']:.3f}", held_out


def show(folder: Annotated[Path, typer.Argument(help="An adapter folder.")]) -> None:
    """What an adapter belongs to and how it was made, as JSON; its files are checked."""
    from fewrec_prompt.tuning.adapters import read

    found = read(folder)
    shapes = {name: list(values.shape) for name, values in sorted(found.tensors.items())}
    about = dict(found.about)
    if mix := about.get("mix"):
        about["mix"] = mix | {"effects": f"of {len(mix.get('effects', ())):,} items"}  # too many to be looked at
    whole = {"method": found.method, "sha256": found.sha256, "bound": found.bound, "about": about}
    typer.echo(json.dumps(whole | {"weights": shapes}, indent=1, ensure_ascii=False))


def merge(
    folder: Annotated[Path, typer.Argument(help="An adapter folder (lora, adalora or full).")],
    out: Annotated[Path, typer.Option(help="Folder of the model that is written.")],
    model: Annotated[str, typer.Option(help="The base: embedded model, folder or hub id.")] = "smollm2-135m",
    device: Device = None,
) -> None:
    """Write the base model with the adapter inside: a model folder that needs no adapter.

    In fp32, whatever the adapter was learnt in. What was learnt in fewer bits will score a little differently.
    """
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.recommender import Recommender
    from fewrec_prompt.tuning.adapters import learnt_with
    from fewrec_prompt.tuning.placing import merge as merged

    asked, domain = learnt_with(folder)  # weights are the same for all of its tasks
    recommender = Recommender.load(model, **asked, precision="fp32", device=device, domain=domain, say=say)
    typer.echo(f"model    {merged(recommender, folder, out, say)}")


def push(
    folder: Annotated[Path, typer.Argument(help="An adapter folder.")],
    to: Annotated[str, typer.Argument(help="A Hugging Face id, OWNER/NAME. The token is HF_TOKEN's.")],
    private: Annotated[bool, typer.Option(help="Who may see it: only its owner.")] = True,
) -> None:
    """Put an adapter on a hub, as it is. No person's history is in it: saved questions are put together at random.

    It holds digests of the ids of whom it was learnt from; who can guess an id can find out whether it is among them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from fewrec_prompt.backends.models import check_hub
    from fewrec_prompt.tuning.adapters import read

    read(folder)
    check_hub(f"{folder} cannot be put on the hub as {to}")
    try:
        api = HfApi()
        api.create_repo(to, private=private, exist_ok=True)
        if private and not api.repo_info(to).private:
            raise FewrecError(
                f"{to} is on the hub already and everybody may see it, so {folder} was not put there; make it private, "
                "name another, or say --no-private"
            )
        found = api.upload_folder(repo_id=to, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FewrecError(f"{folder} could not be put on the hub as {to}: {str(error).splitlines()[0]}") from error
    typer.echo(str(found))
