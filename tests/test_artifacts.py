"""Files that people edit: found by name, read strictly, and every mistake named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewrec_prompt import artifacts, tasks, verbalizers
from fewrec_prompt.errors import ArtifactError, TaskError, VerbalizerError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, and the working directory."""
    monkeypatch.chdir(tmp_path)
    for kind in artifacts.SUFFIX:
        (tmp_path / kind).mkdir()
    return tmp_path


def error_of(text: str, path: Path) -> str:
    """What is said of a task file with this text, without the path before the line."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TaskError) as caught:
        tasks.load_task(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def test_a_file_of_the_project_hides_the_shipped_one_of_its_name(project: Path) -> None:
    mine = project / "verbalizers" / "title.toml"
    mine.write_text('kind = "complete"\ndescription = "mine"\n')

    assert verbalizers.load("title").description == "mine"
    assert artifacts.find("verbalizers", "letters").parent == artifacts.shipped_folder("verbalizers")
    assert "title" in artifacts.names("verbalizers")


def test_a_path_is_a_path_and_never_a_name(project: Path) -> None:
    with pytest.raises(ArtifactError, match=r"verbalizers/titel\.toml: no such file.*Did you mean 'title'"):
        artifacts.find("verbalizers", "verbalizers/titel.toml")


@pytest.mark.parametrize("name", ["eval/", "eval", "./eval"])
def test_a_folder_is_no_task(project: Path, name: str) -> None:
    with pytest.raises(TaskError, match=r"a folder|no task named 'eval'"):
        tasks.load_task(name)


def test_a_folder_called_like_a_file_is_not_listed(project: Path) -> None:
    (project / "eval" / "mine.toml").mkdir()
    assert "mine" not in artifacts.names("eval")
    with pytest.raises(TaskError, match=r"mine\.toml: a folder"):
        tasks.load_task("eval/mine.toml")


def test_an_unknown_name_brings_the_nearest(project: Path) -> None:
    with pytest.raises(TaskError, match=r"no task named 'tinny' in ./eval or among the shipped.*Did you mean 'tiny'\?"):
        tasks.load_task("tinny")
    with pytest.raises(ArtifactError, match=r"no verbalizer named 'leters'.*Did you mean 'letters'"):
        verbalizers.load("leters")


def test_text_that_is_not_utf8_is_named_with_its_line(project: Path) -> None:
    file = project / "eval" / "latin.toml"
    file.write_bytes(b'# one\ndescription = "caf\xe9"\n')
    with pytest.raises(TaskError, match=r"latin\.toml:2: not UTF-8 text"):
        tasks.load_task(file)


def test_a_byte_order_mark_is_accepted_and_a_huge_file_is_not(project: Path) -> None:
    file = project / "eval" / "bom.toml"
    file.write_bytes(b'\xef\xbb\xbf[data]\ndataset = "ml-100k"\n')
    assert tasks.load_task("bom").settings.data.dataset == "ml-100k"

    file.write_text("#" * (artifacts.MAX_BYTES + 1))
    with pytest.raises(TaskError, match="files of this kind end at 65536"):
        tasks.load_task("bom")


DATA = '[data]\ndataset = "ml-100k"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("sed = 1\n" + DATA, "1: unknown key 'sed'; known:", id="top"),
        pytest.param(DATA + "usres = 3\n", "3: unknown key 'usres'; known:", id="table"),
        pytest.param("# usres = 1\n\n" + DATA + "\nusres = 3\n", "6: unknown key 'usres'", id="after comment"),
        pytest.param(DATA + 'domain = { singular = "a", plurl = "b" }\n', "3: unknown key 'plurl'", id="inline table"),
        pytest.param(DATA + '[data.domain]\nverb = "v"\nplurl = "b"\n', "5: unknown key 'plurl'", id="nested table"),
        pytest.param(DATA + 'domain.plurl = "b"\n', "3: unknown key 'plurl'", id="dotted key"),
        pytest.param(DATA + '"us-res" = 3\n', "3: unknown key 'us-res'", id="quoted key"),
        pytest.param("[[rows]]\nprompt = 'a'\n[[rows]]\nprompt = 'b'\nalfa = 1.0\n" + DATA, "5: unknown", id="2nd row"),
        pytest.param("[[rows]]\nprompt='a'\nalfa=1.0\n[[rows]]\nprompt='b'\n" + DATA, "3: unknown", id="1st row"),
        pytest.param("rows = [\n {prompt = 'a'},\n {prompt = 'b', alfa = 1.0},\n]\n" + DATA, "1: unknown", id="array"),
        pytest.param('description = """\nusres = 1\n"""\n' + DATA + "usres = 1\n", "6: unknown", id="text lookalike"),
        pytest.param(DATA + "users = '3'\n", "3: data.users: Input should be a valid integer", id="type"),
        pytest.param(DATA + "users = 0\n", "3: data.users: Input should be greater than 0", id="range"),
        pytest.param(
            "metrics = [\n 'MRR',\n 1,\n]\n" + DATA, "1: metrics.1: Input should be a valid string", id="list"
        ),
        pytest.param("metrics = []\n" + DATA, "1: metrics: ", id="empty list"),
        pytest.param("seed = 1\n", "1: key 'data' is missing", id="missing table"),
        pytest.param(
            "[[rows]]\nprompt = 'a'\n\n[[rows]]\nalpha = 0.1\n" + DATA, "4: key 'rows.1.prompt'", id="no prompt"
        ),
        pytest.param("seed = 1\n[data]\nusers = 1\n", "2: data: give either `dataset`", id="no source"),
        pytest.param("[data]\nqueries = 'q.csv'\n", "1: data: `queries` needs `items`", id="no items"),
        pytest.param(DATA + "items = 'i.csv'\n", "1: data: give either `dataset`", id="two sources"),
        pytest.param(
            "[[rows]]\nprompt = 'a'\nalpha = 0.5\n" + DATA, "1: rows.0: `alpha` is the weight", id="idle alpha"
        ),
        pytest.param(
            "[[rows]]\nprompt = 'a'\ncalibrate = 'pmi'\nalpha = nan\n" + DATA, "4: rows.0.alpha: Input", id="nan alpha"
        ),
        pytest.param(DATA + "users = \n", "3: not valid TOML: Invalid value", id="syntax"),
        pytest.param(DATA + "users = 1\nusers = 2\n", "4: not valid TOML: Cannot overwrite", id="twice"),
        pytest.param(DATA + "x = [1,\n2", "4: not valid TOML:", id="end of file"),
    ],
)
def test_a_mistake_in_a_task_is_named_by_its_line(project: Path, text: str, said: str) -> None:
    assert said in error_of(text, project / "eval" / "mine.toml")
    crlf = text.replace("\n", "\r\n")
    assert said in error_of(crlf, project / "eval" / "mine.toml")


def test_a_mistake_in_a_verbalizer_is_named_by_its_line(project: Path) -> None:
    file = project / "verbalizers" / "mine.toml"
    file.write_text('kind = "judge"\ndescription = "d"\nyes = ["Yes"]\nno = ["No"]\nmaybe = ["x"]\n')
    with pytest.raises(VerbalizerError, match=r"mine\.toml:5: unknown key 'maybe'"):
        verbalizers.load("mine")


def test_every_shipped_file_reads() -> None:
    for name in artifacts.names("eval"):
        assert tasks.load_task(name).settings.data
    for name in artifacts.names("verbalizers"):
        assert verbalizers.load(name).description
