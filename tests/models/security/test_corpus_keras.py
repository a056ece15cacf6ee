from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

from tests.command_line import invoke
from tests.fuzz.test_fuzz_models import CONFIG, archive
from tests.models.security.corpus import benign_keras, hostile_keras
from tests.models.security.corpus_benign import EXCLUDED, benign
from tests.models.security.corpus_keras import h5_of

pytestmark = pytest.mark.usefixtures("tensorflow")


def test_no_hostile_file_loads(tmp_path: Path) -> None:
    tried = dict(hostile_keras(tmp_path))
    assert len(tried) >= 60
    assert {name: fault for name, fault in tried.items() if fault} == {}


@pytest.mark.parametrize(("suffix", "write"), [("keras", archive), ("h5", h5_of)])
def test_the_file_that_they_are_made_from_loads(tmp_path: Path, suffix: str, write: Any) -> None:
    (tmp_path / f"model.{suffix}").write_bytes(write(CONFIG))
    assert invoke("show", tmp_path / f"model.{suffix}").exit_code == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_honest_model_is_refused_and_each_gives_what_predict_gives(tmp_path: Path) -> None:
    tried = dict(benign_keras(tmp_path))
    assert len(tried) >= 60
    assert {name: fault for name, fault in tried.items() if fault} == {}


def test_every_layer_of_keras_is_among_the_honest_models() -> None:
    names = {name for name, *_ in benign()} | EXCLUDED.keys()
    assert {name for name, value in vars(keras.layers).items() if isinstance(value, type)} <= names
