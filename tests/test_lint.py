"""What lint finds: 41 broken templates by code and line, 12 mutants of good ones, a model's tokens, a task's people."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from _tiny import save_model, tokenizer
from click.testing import Result
from test_library import PROMPTS, people, tiny
from typer.testing import CliRunner

from fewrec_prompt import artifacts, contract, lint, templates, verbalizers
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.cli import app
from fewrec_prompt.errors import ArtifactError, TemplateError
from fewrec_prompt.inspection import Model, People, inspect
from fewrec_prompt.lint import Finding
from fewrec_prompt.rendering import Render
from fewrec_prompt.types import Query

READERS = {"choose": "letters", "judge": "yes-no", "rate": "stars", "complete": "title"}
HISTORY = "{% for seen in history %}{{ seen.title }}; {% endfor %}"
CANDIDATES = "{% for one in candidates %}{{ one.label }}. {{ one.title }}\n{% endfor %}Answer:"
DEMOS = "{% for demo in demos %}{{ demo.item.title }}?{% endfor %}"
LETTERED = "{% for x in history %}{{ 'ABCD'[loop.index0] }}. {{ x.title }}\n{% endfor %}"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a template whose text begins at line 7, and others beside it; keys of the front matter can be changed."""

    def written(kind: str, body: str, head: dict[str, str] | None = None, **others: str) -> Path:
        keys = {"kind": kind, "description": "d", "source": "own wording", "verbalizer": READERS[kind]} | (head or {})
        for name, text in others.items():
            (tmp_path / f"{name}.jinja").write_text(text, encoding="utf-8")
        path = tmp_path / "mine.jinja"
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        path.write_text("{#\n" + "\n".join(lines) + "\n#}\n" + body, encoding="utf-8")
        return path

    return written


def codes(found: list[Finding]) -> list[str]:
    return [finding.code for finding in found]


# --- forty broken templates: code, line, and the word that is wrong --------------------------------------------------

BROKEN = [
    # front matter
    ("complete", HISTORY, {"kind": "chose"}, "P001", 2, "complete"),
    ("complete", HISTORY, {"sourse": "x"}, "P001", 6, "'sourse'"),
    ("complete", HISTORY, {"end": ""}, "P001", 6, "end"),
    ("complete", HISTORY, {"description": 'a "quoted" word'}, "P001", 3, "TOML"),
    # syntax
    ("complete", f"{HISTORY}\n{{% if %}}", {}, "P002", 8, "expression"),
    ("complete", f"{HISTORY}\n{{% for x in history %}}", {}, "P002", 8, "'for'"),
    ("complete", f"{HISTORY}\n\n{{{{ history[0].title }}", {}, "P002", 9, "'}'"),
    ("complete", f"{HISTORY}\n{{{{ history|lenght }}}}", {}, "P004", 8, "Did you mean 'length'"),
    ("complete", f"{HISTORY}\n{{{{ 1 is evne }}}}", {}, "P004", 8, "Did you mean 'even'"),
    # files
    ("complete", f"{HISTORY}\n{{% include '../x.jinja' %}}", {}, "P003", 8, "'../x.jinja'"),
    ("complete", f"{HISTORY}\n{{% include 'gone.jinja' %}}", {}, "P003", 8, "'gone.jinja'"),
    ("complete", f"{HISTORY}\n{{% include domain.verb %}}", {}, "P004", 8, "constant name"),
    # what no template may do
    ("complete", HISTORY + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", {}, "P004", None, "deep"),
    # unknown variables
    ("complete", f"{HISTORY}\n{{{{ histroy }}}}", {}, "P005", 8, "'histroy'"),
    ("complete", f"{HISTORY}\n\n{{{{ item.title }}}}", {}, "P005", 9, "'item'"),
    ("complete", HISTORY + "{% for x in histories %}{{ x }}{% endfor %}", {}, "P005", 7, "'histories'"),
    ("judge", HISTORY + "\n{{ item.title }} {{ candidate.title }}?", {}, "P005", 8, "'candidate'"),
    # what its kind is about
    ("choose", f"{HISTORY}?", {}, "P006", 1, "'candidates'"),
    ("judge", f"{HISTORY}?", {}, "P006", 1, "'item'"),
    ("rate", f"{HISTORY}?", {}, "P006", 1, "'item'"),
    # text that gets lost
    ("complete", f"Hello\n{{% block user %}}{HISTORY}{{% endblock %}}", {}, "P007", 7, "a chat"),
    ("complete", f"{{% block user %}}{HISTORY}{{% endblock %}}\n{{{{ domain.verb }}}}", {}, "P007", 8, "a chat"),
    ("complete", '{% extends "shipped/complete.jinja" %}\nMore', {}, "P007", 8, "extends"),
    # names that are set and not used
    ("complete", HISTORY + "\n{% set last = 3 %}-", {}, "P008", 8, "'last'"),
    ("complete", "{% for seen in history %}- {{ history[0].title }}\n{% endfor %}-", {}, "P008", 7, "'seen'"),
    # blocks that nobody shows
    ("complete", '{% extends "shipped/complete.jinja" %}\n{% block passt %}x{% endblock %}', {}, "P009", 8, "'past'"),
    # nobody wrote it
    ("complete", f"{HISTORY}?", {"source": ""}, "P010", 4, "''"),
    ("complete", f"{HISTORY}?", {"source": "TODO"}, "P010", 4, "'TODO'"),
    # verbalizers
    ("complete", f"{HISTORY}?", {"verbalizer": "titel"}, "P011", 5, "Did you mean 'title'"),
    ("complete", f"{HISTORY}?", {"verbalizer": "letters"}, "P011", 5, "'letters'"),
    # data
    ("complete", HISTORY + "\n{{ history[0].titel }}", {}, "P012", 8, "'titel'"),
    ("complete", "{% for seen in history %}{{ seen.title }}\n{{ seen.genres }}{% endfor %}", {}, "P012", 8, "'genres'"),
    ("complete", f"{HISTORY}\n\nThe last: {{{{ history[-1].title }}}}", {}, "P012", 9, "may be empty"),
    ("complete", HISTORY + "{{ 1 / 0 }}", {}, "P012", 7, "zero"),
    # white space
    ("complete", f"{HISTORY}\nNext: ", {}, "P013", 8, "space"),
    ("complete", f"{HISTORY}\nNext:\n\n", {}, "P013", 8, "line break"),
    # a history that makes no difference
    ("judge", "I like {{ domain.plural }}.\nDo I like {{ item.title }}?", {}, "P014", 1, "histories"),
    ("judge", "{% if history|length > 9 %}\n{% endif %}Do I like {{ item.title }}?", {}, "P014", 7, "histories"),
    # candidates
    ("choose", HISTORY + "\n" + CANDIDATES.replace("candidates", "candidates[:3]"), {}, "P015", 8, "never"),
    ("choose", HISTORY + "\n{% for one in candidates %}- {{ one.title }}\n{% endfor %}?", {}, "P015", 8, "label"),
    # items
    ("judge", f"{HISTORY}\nDo I like it{{% if item %}}?{{% endif %}}", {}, "P016", 8, "title"),
    # answers
    ("judge", HISTORY + "{{ item.title }}\n{{ item.id }}?", {}, "P017", 8, "ids"),
    ("complete", f"{HISTORY}\n{{{{ candidates[0].title }}}}?", {}, "P017", 8, "place"),
    # examples
    ("judge", DEMOS + HISTORY + "{{ item.title }}?", {}, "P022", 7, "demo.answer"),
    # labels
    ("choose", LETTERED + CANDIDATES, {}, "P018", 7, "'A'"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "head", "code", "line", "word"), BROKEN)
def test_template_lint(
    write: Write, kind: str, body: str, head: dict[str, str], code: str, line: int | None, word: str
) -> None:
    """A broken template gets the one finding that it deserves, with the line, the word, and what to do."""
    path = write(kind, body, head)
    found = inspect(path)

    assert codes(found) == [code]
    assert found[0].file == str(path)
    assert line is None or found[0].line == line
    assert word in f"{found[0].message}; {found[0].fix}"
    assert found[0].fix


def test_there_are_forty_broken_templates_and_every_rule_for_text_alone_has_one() -> None:
    assert len(BROKEN) >= 40
    assert {code for *_, code, _line, _word in BROKEN} == {*lint.RULES} - {"P019", "P020", "P021"}


def test_everything_that_is_wrong_with_a_file_is_found_at_once(write: Write) -> None:
    body = "{{ histroy }}\n{% set x = 1 %}\n{{ candidate }}{{ histroy }}\nAnswer: "
    found = inspect(write("choose", body, {"sourse": "x"}))

    assert [(finding.line, finding.code) for finding in found] == [(6, "P001"), (8, "P005"), (9, "P008"), (10, "P005")]


def test_what_is_wrong_in_an_included_file_is_named_there(write: Write, tmp_path: Path) -> None:
    found = inspect(write("complete", f"{HISTORY}{{% include 'line.jinja' %}}-", line="x\n{{ histroy }}"))

    assert [(one.file, one.line, one.code) for one in found] == [(str(tmp_path / "line.jinja"), 2, "P005")]


def test_what_lint_refuses_is_refused_in_the_same_words_when_a_template_is_loaded(write: Write) -> None:
    path = write("complete", HISTORY + "\n{{ histroy }}{{ itme }}")
    first, second = inspect(path)

    with pytest.raises(TemplateError, match=re.escape(f"{first} (1 more; `fewrec prompts lint` shows all)")):
        templates.read(path)
    assert (first.code, second.code) == ("P005", "P005")


def test_what_lint_only_advises_does_not_keep_a_template_from_use(write: Write) -> None:
    template = templates.read(write("complete", HISTORY + "{% set last = 3 %}-"))

    assert codes(list(template.advice)) == ["P008"]


# --- the contract: mutants of good templates -------------------------------------------------------------------------

LOOP = "{% for candidate in candidates %}"
MUTANTS = [
    ("choose", LOOP, "{% for candidate in candidates|reverse %}", "P015"),
    ("choose", LOOP, "{% for candidate in candidates|sort(attribute='title') %}", "P015"),
    ("choose", LOOP, "{% for candidate in candidates[1:] %}", "P015"),
    ("choose", LOOP, "{% for candidate in candidates[::2] %}", "P015"),
    ("choose", "{{ candidate.title }}", "{{ candidate.title }} ({{ candidate.title }})", "P015"),
    ("choose", LOOP, "{{ candidates[-1].title }}\n" + LOOP, "P015"),
    ("choose", "{{ candidate.label }}.", "{{ loop.index }}.", "P015"),
    ("choose", "{{ candidate.label }}.", "-", "P015"),
    ("choose", "{% if history %}", "{% if not history %}", "P014"),
    ("choose", "- {{ seen.title }}", "{{ 'DCBA'[loop.index0] }}) {{ seen.title }}", "P018"),
    ("judge", "{{ item.title }}", "{{ candidates[0].title }}{% if item %}{% endif %}", "P016"),
    ("judge", "- {{ seen.title }}", "- one", "P014"),
    ("judge", "Answer:", "Like {{ candidates[-1].title }}? Answer:", "P017"),
    ("rate", "{{ item.title }}", "{{ item.title[:4] }}", "P016"),
    ("complete", "- {{ seen.title }}", "- {{ seen.id }}", "P017"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "code"), MUTANTS)
def test_template_contract(tmp_path: Path, name: str, old: str, new: str, code: str) -> None:
    """A template that reorders, omits or repeats candidates, ignores the history or gives the answer away is caught."""
    text = PROMPTS[name].read_text(encoding="utf-8")
    assert old in text
    mutant = tmp_path / "mine.jinja"
    mutant.write_text(text.replace(old, new, 1), encoding="utf-8")

    assert code in codes(inspect(mutant))
    assert inspect(PROMPTS[name]) == []


def test_made_up_people_differ_and_half_of_them_have_titles_only() -> None:
    made = contract.people(("mood",))
    titles = [item.title for query in made for item in (*query.candidates, *(one.item for one in query.history))]

    assert len(set(titles)) == len(titles)
    assert not any(one in other for one in titles for other in titles if one is not other)
    assert [dict(query.candidates[0].fields).keys() for query in made[:2]] == [{"mood", "year", "genres"}, {"mood"}]
    assert [query.history[0].rating is None for query in made[:4]] == [False, True, False, True]


def test_a_template_may_name_the_fields_it_needs(write: Write) -> None:
    body = "{% for seen in history %}{{ seen.title }} ({{ seen.mood }}), {{ seen.rating }}; {% endfor %}-"
    assert codes(inspect(write("complete", body))) == ["P012"]

    path = write("complete", body)
    path.write_text(path.read_text().replace("#}", 'needs = ["mood", "rating"]\n#}', 1))
    assert inspect(path) == []


# --- with a model and a task -----------------------------------------------------------------------------------------


def reads(window: int = 4096, *, chat: bool = True) -> Model:
    words = copy.deepcopy(tokenizer())
    words.chat_template = words.chat_template if chat else None
    return Model("tiny", QuestionTokenizer(words), window)


def of_tiny(n: int = 6) -> People:
    return People(people()[:n], tiny().domain)


def test_labels_of_several_tokens_are_named_with_their_number(write: Write) -> None:
    found = inspect(write("judge", f"{HISTORY}{{{{ item.title }}}}?", {"verbalizer": "yes-no-zh"}), reads())

    assert codes(found) == ["P019"]
    assert "5 labels are not one token of tiny: ' 会' is 3, ' 是' is 3" in found[0].message


def test_a_space_that_all_labels_begin_with_does_not_make_them_long(write: Write) -> None:
    assert inspect(write("rate", f"{HISTORY}{{{{ item.title }}}}:"), reads()) == []


def test_labels_that_a_model_cannot_tell_apart_are_found(write: Write, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.toml"
    numbers.write_text('kind = "choose"\ndescription = ""\nlabels = ["1", "2", "3", "4", "11", "12"]\n')
    found = inspect(write("choose", f"{HISTORY}\n{CANDIDATES}", {"verbalizer": str(numbers)}), reads())

    assert codes(found) == ["P018"]
    assert "label words ' 1' and ' 11' cannot be told apart" in found[0].message


def test_prompts_that_exceed_the_window_are_counted_with_the_longest(write: Write) -> None:
    path = write("complete", f"{HISTORY}-")
    assert inspect(path, reads(), of_tiny()) == []

    lengths = sorted(_length(path, query) for query in people())
    found = inspect(path, reads(window=lengths[3]), of_tiny())

    assert codes(found) == ["P020"]
    assert f"the prompts of 2 of 6 people exceed the {lengths[3]} tokens that tiny reads" in found[0].message
    assert f"the longest with {lengths[-1]};" in found[0].message


def _length(path: Path, query: Query) -> int:
    (question,) = verbalizers.load("title").ask(query, Render(templates.read(path), tiny().domain))
    return max(len(one.ids) for one in reads().tokens.encode(question))


def test_a_chat_for_a_model_without_a_chat_format_is_found() -> None:
    assert codes(inspect(PROMPTS["choose-chat"], reads(chat=False))) == ["P021"]
    assert inspect(PROMPTS["choose-chat"], reads()) == []


def test_what_fails_on_a_tasks_people_names_the_first_of_them(write: Write) -> None:
    path = write("complete", HISTORY + "{% for seen in history if seen.rating < 3 %}{% endfor %}-")
    path.write_text(path.read_text().replace("#}", 'needs = ["rating"]\n#}', 1))
    assert inspect(path) == []

    found = inspect(path, people=of_tiny())
    assert codes(found) == ["P012"]
    assert "'rating'" in found[0].message
    assert "user 'ann'" in found[0].fix


def test_what_a_verbalizer_cannot_ask_of_a_tasks_people_is_found(write: Write, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('kind = "choose"\ndescription = ""\nlabels = ["A"]\n')
    path = write("choose", f"{HISTORY}\n{CANDIDATES}", {"verbalizer": str(tmp_path / "one.toml")})

    assert "user 'ann': 6 candidates but only 1 label" in inspect(path, people=of_tiny())[0].message


# --- the list of rules -----------------------------------------------------------------------------------------------


def test_the_readme_of_prompts_lists_the_rules_as_they_are() -> None:
    text = (artifacts.shipped_folder("prompts") / "README.md").read_text(encoding="utf-8")

    assert dict(re.findall(r"^\| (P\d{3}) \| ([^|]+) \|", text, re.MULTILINE)) == dict(lint.RULES)


def test_the_readme_of_prompts_lists_every_template_once() -> None:
    text = (artifacts.shipped_folder("prompts") / "README.md").read_text(encoding="utf-8")
    listed = text.partition("## What there is")[2].partition("\n## ")[0]

    assert sorted(re.findall(r"`([a-z0-9-]+)`", listed)) == sorted(PROMPTS)


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fewrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, ["prompts", *words])


def test_a_new_template_passes_lint_at_once_and_is_never_written_over(fewrec: Callable[..., Result]) -> None:
    for kind in lint.KINDS:
        assert fewrec("new", f"my-{kind}", "--kind", kind).exit_code == 0
    assert fewrec("new", "chat", "--from", "films-choose-chat").exit_code == 0
    done = fewrec("lint", "my-choose", "my-judge", "my-rate", "my-complete", "chat")
    assert (done.exit_code, done.stdout) == (0, "")

    Path("prompts/my-choose.jinja").write_text("mine")
    refused = fewrec("new", "my-choose")
    assert isinstance(refused.exception, ArtifactError)
    assert "prompts/my-choose.jinja: is there already" in str(refused.exception)
    assert Path("prompts/my-choose.jinja").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("new", "../x"), "'../x' cannot name a template"),
        (("new", "Mine"), "'Mine' cannot name a template"),
        (("new", "mine", "--kind", "chose"), "unknown kind 'chose'.*'choose'"),
        (("new", "mine", "--from", "chose"), "no template named 'chose'"),
        (
            ("new", "mine", "--from", "judge", "--kind", "rate"),
            "judge is of kind 'judge', and --kind says 'rate'",
        ),
        (("lint", "nope"), "no template named 'nope'"),
        (("lint", "--task", "nope"), "no task named 'nope'"),
    ],
)
def test_commands_refuse_what_they_cannot_do(fewrec: Callable[..., Result], words: tuple[str, ...], says: str) -> None:
    done = fewrec(*words)

    assert isinstance(done.exception, ArtifactError)
    assert re.search(says, str(done.exception))
    assert not Path("prompts").exists()


def test_lint_prints_place_and_code_and_ends_with_one(fewrec: Callable[..., Result], write: Write) -> None:
    path = write("complete", f"{HISTORY}\n{{{{ histroy }}}}")

    done = fewrec("lint", str(path))
    assert done.exit_code == 1
    assert f"{path}:8: P005 unknown variable 'histroy'" in done.stdout
    assert "templates: 1, findings: 1" in done.stderr

    found = json.loads(fewrec("lint", str(path), "--format", "json").stdout)
    assert [(one["file"], one["line"], one["code"]) for one in found] == [(str(path), 8, "P005")]
    assert found[0].keys() == {"file", "line", "code", "message", "fix"}


def test_lint_without_names_takes_all_templates(fewrec: Callable[..., Result]) -> None:
    Path("prompts").mkdir()
    Path("prompts/mine.jinja").write_text("no front matter")

    done = fewrec("lint")

    assert done.stdout == (
        "prompts/mine.jinja:1: P001 no front matter; "
        "begin with a comment {# … #} of TOML: kind, description, source, verbalizer\n"
    )
    assert f"templates: {len(PROMPTS) + 1}, findings: 1" in done.stderr


def test_templates_are_listed_by_kind_scenario_and_language(fewrec: Callable[..., Result]) -> None:
    names = [line.split()[0] for line in fewrec("list", "--scenario", "films", "--kind", "choose").stdout.splitlines()]

    assert {"films-choose", "films-choose-zh"} <= set(names)
    assert all(name.startswith("films-choose") for name in names)
    (only,) = fewrec("list", "--scenario", "news", "--language", "zh").stdout.splitlines()
    assert only.split()[:5] == ["news-complete-zh", "complete", "news", "zh", "title"]


def test_diff_shows_how_files_and_prompts_differ_and_what_both_cost(
    fewrec: Callable[..., Result], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model")
    done = fewrec("diff", "judge", "films-judge", "--task", "tiny", "--user", "bob", "--model", str(folder))

    assert done.exit_code == 0, done.exception
    files, prompts = done.stdout.split("\n--- judge for bob")
    assert "+{% block past %}Films I like:{% endblock %}" in files
    assert "-Some films I like:\n+Films I like:\n" in prompts
    assert re.search(r"tokens in 6 questions\n\+\+\+ films-judge for bob: \d+ tokens in 6 questions", prompts)
    assert "(the same)" in fewrec("diff", "judge", "judge").stdout
