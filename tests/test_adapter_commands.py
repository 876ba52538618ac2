"""`fewrec adapters merge` and `push`, as a person types them. The hub is one on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from test_few_shot import LORA, backend
from typer.testing import CliRunner, Result

from fewrec_prompt import Options, tasks
from fewrec_prompt.backends import causal, precision
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError, FewrecError, ModelError
from fewrec_prompt.few_shot import default_row, recommender_of, tune_task
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.placing import adapted
from fewrec_prompt.tuning.settings import Settings


def run(*words: str | Path) -> Result:
    """The command, with whatever it raises."""
    done = CliRunner().invoke(app, ["adapters", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# --- merge -----------------------------------------------------------------------------------------------------------


def merged(model: Path, folder: Path, out: Path) -> Result:
    return run("merge", folder, "--out", out, "--model", model, "--device", "cpu")


@pytest.mark.parametrize("row", [RowSettings(prompt="complete"), RowSettings(prompt="choose", orders=2)])
def test_a_merged_model_scores_as_base_and_adapter(
    row: RowSettings, task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    """Also where the row asks more orders than its verbalizer: the adapter is bound to them."""
    tune_task(task, LORA, 3, tmp_path / "a", row=row, backend=backend(model))
    done = merged(model, tmp_path / "a", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert f"model    {tmp_path / 'merged'}" in done.stdout
    assert "was learnt in" not in done.output
    query = shots_of(task, 3).learnt[0].query
    one = recommender_of(task, row, backend(model)).adapted(tmp_path / "a")
    two = recommender_of(task, row, backend(tmp_path / "merged"))
    assert two.scores(two.answers(query)) == pytest.approx(one.scores(one.answers(query)), abs=1e-4)


def test_an_adapter_learnt_in_bf16_is_merged_into_fp32_and_it_is_said(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    if why := precision._missing("bf16", "cpu"):
        pytest.skip(f"this machine cannot: {why}")
    learner = causal.load(str(model), Numerics("bf16", "cpu"))
    tuned = tune_task(task, LORA, 3, tmp_path / "a", backend=learner)
    done = merged(model, tmp_path / "a", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "a: was learnt in bf16 and is merged into fp32, so its scores will be a little different" in done.stderr
    query = tuned.lessons[0].examples[0].query
    row = default_row(task)
    one = adapted(recommender_of(task, row, backend(model)), tmp_path / "a", force=True).recommender
    two = recommender_of(task, row, backend(tmp_path / "merged"))
    assert two.scores(two.answers(query)) == pytest.approx(one.scores(one.answers(query)), abs=1e-4)


def test_what_cannot_be_merged_is_an_error_and_nothing_is_written(
    task: tasks.Task, model: Path, tmp_path: Path
) -> None:
    settings = Settings("soft-prompt", tokens=4, epochs=1)
    tune_task(task, settings, 3, tmp_path / "a", backend=backend(model))
    with pytest.raises(AdapterError, match="what 'soft-prompt' learnt stands before or behind the model"):
        merged(model, tmp_path / "a", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --- push ------------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks. `calls` are what it was asked, `files` what it was given, `refuses` a
    status that it answers with instead."""

    calls: list[tuple[str, str | None, Any]]
    files: dict[str, bytes]
    refuses: int | None
    private: bool  # whether the repository is

    def do_GET(self) -> None:
        self._answer({"id": "somebody/films", "private": self.private})

    def do_HEAD(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        told = [json.loads(line) for line in lines]
        self.calls.append((self.path, self.headers["Authorization"], told))
        if self.refuses:
            self._answer({"error": "no"}, self.refuses)
        elif self.path == "/api/repos/create":
            self._answer({"url": f"{constants.ENDPOINT}/somebody/films"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in told[0]["files"]]
            self._answer({"files": files})
        else:
            given = [one["value"] for one in told if one["key"] == "file"]
            self.files.update({one["path"]: base64.b64decode(one["content"]) for one in given})
            url = f"{constants.ENDPOINT}/somebody/films/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40})

    def _answer(self, told: Any, status: int = 200) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: tests say enough."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, in the place of the real one."""
    Hub.calls, Hub.files, Hub.refuses, Hub.private = [], {}, None, True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = Options(model=str(model)).applied(tasks.load_task("tiny"))
    folder = tmp_path_factory.mktemp("adapters") / "films"
    tune_task(task, LORA, 3, folder, backend=backend(model))
    return folder


@pytest.mark.parametrize("flag", ["--private", "--no-private"])
def test_a_pushed_adapter_lies_on_the_hub_as_it_is(flag: str, hub: type[Hub], adapter: Path) -> None:
    done = run("push", adapter, "somebody/films", flag)
    assert done.exit_code == 0, done.output
    assert "somebody/films" in done.stdout
    assert hub.files == {path.name: path.read_bytes() for path in adapter.iterdir()}
    where, token, (asked,) = hub.calls[0]
    assert (where, token) == ("/api/repos/create", "Bearer hf_of_a_test")
    assert (asked["organization"], asked["name"]) == ("somebody", "films")
    assert asked["visibility"] == ("private" if flag == "--private" else "public")


def test_an_adapter_is_private_unless_it_is_said(hub: type[Hub], adapter: Path) -> None:
    assert run("push", adapter, "somebody/films").exit_code == 0
    assert hub.calls[0][2][0]["visibility"] == "private"


def test_nothing_private_goes_where_everybody_looks(hub: type[Hub], adapter: Path) -> None:
    hub.private = False
    with pytest.raises(FewrecError, match="somebody/films is on the hub already and everybody may see it"):
        run("push", adapter, "somebody/films")
    assert hub.files == {}


def test_a_damaged_adapter_is_not_pushed(hub: type[Hub], adapter: Path, tmp_path: Path) -> None:
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() + b" ")
    with pytest.raises(AdapterError, match="was changed since it was written"):
        run("push", tmp_path, "somebody/films")
    assert hub.calls == []


def test_what_a_hub_refuses_is_told_without_the_token(hub: type[Hub], adapter: Path) -> None:
    hub.refuses = 403
    with pytest.raises(FewrecError, match="could not be put on the hub as somebody/films: 403") as refused:
        run("push", adapter, "somebody/films")
    assert "hf_of_a_test" not in str(refused.value)
    assert hub.files == {}


def test_a_hub_that_is_switched_off_is_not_asked(
    hub: type[Hub], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be put on the hub as somebody/films: the hub is switched off"):
        run("push", adapter, "somebody/films")
    assert hub.calls == []
