"""What tests of several files share: the embedded model and data, or the reason why a test cannot run without them."""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fewrec_prompt import assets, tasks
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.dataset import Dataset

pytest_plugins = ["_strict_skips"]

# A job in the background of a shell ignores Ctrl-C, and so would the processes that tests start to interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What models answer here is kept apart from what a person keeps.
_scores = TemporaryDirectory(prefix="fewrec-scores-")
os.environ["FEWREC_CACHE"] = _scores.name

# evaluate copies every metric it loads by path into a folder, and stays bound to the first one of the process.
_modules = TemporaryDirectory(prefix="fewrec-modules-")
os.environ["HF_MODULES_CACHE"] = _modules.name


def _asset(name: str) -> Path:
    if assets.is_present(name):
        return assets.path(name)
    reason = f"asset {name} is not here; run: fewrec assets get {name}"
    if os.environ.get("FEWREC_REQUIRE_ASSETS") == "1":  # set where a skipped test would go unnoticed
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the embedded model: safetensors, tokenizer, chat template."""
    return _asset("smollm2-135m")


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """Folder of MovieLens-100K as ml-100k.inter, .item and .user."""
    return _asset("ml-100k")


@pytest.fixture(scope="session")
def films(ml_100k: Path) -> Dataset:
    """MovieLens-100K, read."""
    return read_dataset(ml_100k, "recbole")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model that the tiny task fits."""
    from _tiny import save_model

    return save_model(tmp_path_factory.mktemp("base") / "model", max_position_embeddings=512)


@pytest.fixture
def task(model: Path) -> tasks.Task:
    """The tiny task, over that model."""
    from fewrec_prompt import Options

    return Options(model=str(model)).applied(tasks.load_task("tiny"))
