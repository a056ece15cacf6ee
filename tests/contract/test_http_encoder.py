"""The example that checks a server, against one of the standard library."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchnorm_tool import normalize
from batchnorm_tool.contract import Contract
from tests.contract.building import contract_of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RANDOM = np.random.default_rng(11)
X = RANDOM.normal(size=(16, 4)).astype(np.float32)
Encode = Callable[[Any], Any]


@pytest.fixture
def serve() -> Iterator[Callable[[Encode], str]]:
    """Serve a function from instances to predictions."""
    answers: list[Encode] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            answer = {"predictions": answers[0](body["instances"])}
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield lambda encode: answers.append(encode) or f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()
        thread.join()


@pytest.fixture
def check(
    serve: Callable[[Encode], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Contract, Encode], tuple[int, str]]:
    """The exit code of the example, and what it prints."""

    def run(contract: Contract, encode: Encode) -> tuple[int, str]:
        path = tmp_path / "contract.json"
        path.write_bytes(contract.to_bytes())
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", ["check_encoder", str(path), serve(encode)])
        with pytest.raises(SystemExit) as left:
            __import__("check_encoder").main()
        assert isinstance(left.value.code, int)
        return left.value.code, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("encode", "code", "words"),
    [
        (lambda rows: normalize(rows).tolist(), 0, "16 of 16 canary rows agree."),
        (lambda rows: rows, 4, "`y` is not normalized"),
        (lambda rows: normalize(rows).astype(np.float16).tolist(), 4, "half precision"),
    ],
    ids=["right", "raw", "float16"],
)
def test_a_server_is_held_to_a_contract(
    check: Callable[..., tuple[int, str]], encode: Encode, code: int, words: str
) -> None:
    exit_code, said = check(contract_of({"x": X}, {"y": X}), encode)
    assert exit_code == code
    assert words in said


def test_several_inputs_and_outputs_go_by_name(check: Callable[..., tuple[int, str]]) -> None:
    images = np.array([bytes([row, 255]) for row in range(16)], object)
    raw = {"a": X, "b": X[:, :2] + 1}
    contract = contract_of({"x": X, "image": images}, raw)
    sizes: list[int] = []

    def encode(rows: list[Any]) -> list[Any]:
        sizes.extend(len(base64.b64decode(row["image"]["b64"])) for row in rows)
        given = np.array([row["x"] for row in rows])
        vectors = zip(normalize(given).tolist(), normalize(given[:, :2] + 1).tolist(), strict=True)
        return [{"a": a, "b": b} for a, b in vectors]

    assert check(contract, encode) == (0, "16 of 16 canary rows agree.\n")
    assert sizes == [2] * 16
