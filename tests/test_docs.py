"""The pages are true: blocks run, outputs are real, every command, name and link is in them."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pytest
import yaml

import batchnorm_tool
from batchnorm_tool.cli.app import cli
from batchnorm_tool.job import Input, Job, Normalize
from batchnorm_tool.norms.norm import NORM_NAMES
from tests.doc_blocks import (
    COMMANDS_PAGE,
    KEYS_PAGE,
    PAGES,
    PROGRAM,
    README,
    ROOT,
    Block,
    agree,
    blocks,
    commands,
    commands_page,
    help_of,
    is_ours,
    keys_page,
    perform,
    prose,
    words_of,
)

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_LINK = re.compile(r"""(?:\]\(|(?:src|srcset)=")(?!https?:)([^)"#]*)(?:#([^)"]*))?[)"]""")

TEXTS = {page: page.read_text() for page in PAGES}
TEXT = "".join(TEXTS.values())
DOCS = ROOT / "docs"
# Pages that no block is run of, and whose links are looked at all the same.
OTHERS = [ROOT / name for name in ("SECURITY.md", "CHANGELOG.md", "examples/README.md")]
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS for command in commands(block) if is_ours(command)]
SECTIONS = (
    "input",
    "model",
    "normalize",
    "output",
    "contract",
    "engine",
    "store",
    "gate",
    "publish",
)


def of(*languages: str) -> list[Any]:
    """Parameters: the blocks in these languages."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return [pytest.param(block, id=block.id) for block in chosen]


def the_block(page: Path, language: str, word: str) -> Block:
    [block] = [one for one in blocks(page) if one.language == language and word in one.text]
    return block


@dataclass(frozen=True)
class Performed:
    directory: Path
    results: dict[str, dict[str, str | None]]


@pytest.fixture(scope="module")
def performed(tmp_path_factory: pytest.TempPathFactory) -> Performed:
    directory = tmp_path_factory.mktemp("docs").resolve()
    return Performed(directory, perform(directory, PAGES))


@pytest.mark.parametrize("block", of("sh", "console", "python", "bash"))
def test_every_block_runs(performed: Performed, block: Block) -> None:
    if not block.runs:
        compile(block.text, block.page, "exec")
        return
    failure = performed.results[block.id]["failure"]
    assert failure is None, failure


@pytest.mark.parametrize("block", of("console"))
def test_what_is_shown_is_what_commands_print(performed: Performed, block: Block) -> None:
    printed = performed.results[block.id]["printed"]
    assert printed is not None
    if not agree(block.text, printed):
        assert block.text == printed, "python -m tests.doc_blocks --update"


@pytest.mark.parametrize(
    ("printed", "agrees"),
    [
        ("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", True),
        ("Done. 1,797 rows, 7 rows/s\n1.0001 ██ 426\n", True),
        ("Done. 1,790 rows, 99 rows/s\n1.0  ████ 425\n", False),
        ("Done. 1,797 rows, 99 rows/s\n1.1  ████ 425\n", False),
        ("Good. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", False),
        ("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425 5\n", False),
    ],
)
def test_outputs_are_compared_but_for_what_varies(printed: str, *, agrees: bool) -> None:
    assert agree("Done. 1,797 rows, 99 rows/s\n1.0  ████ 425\n", printed) is agrees


def test_the_help_of_every_command_is_shown() -> None:
    assert COMMANDS_PAGE.read_text() == commands_page(), "python -m tests.doc_blocks --update"


@pytest.mark.parametrize("words", [[], ["run"]], ids=["all", "run"])
def test_a_terminal_of_80_columns_gets_the_help_that_is_shown(words: list[str]) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "batchnorm_tool", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "80"},
    ).stdout
    assert printed == help_of(*words)


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_is_shown_at_work(name: str) -> None:
    assert [
        words for words in map(words_of, COMMANDS) if name in words[1] and "--help" not in words[1]
    ]


@pytest.mark.parametrize("name", batchnorm_tool.__all__)
def test_every_public_name_is_shown(name: str) -> None:
    code = [block.text for block in BLOCKS if block.language == "python"]
    words = re.findall("`[^`\n]+`", prose(TEXT))
    assert re.search(rf"\b{name}\b", "".join([*code, *words]))


def test_every_flag_that_is_named_exists() -> None:
    flags = {flag for name in cli.commands for flag in flags_of(name)}
    ours = re.sub("`python -m benchmarks[^`]*`", "", TEXT)
    assert set(_FLAG.findall(ours)) - flags == {"--version", "--update"}


@pytest.mark.parametrize("command", [pytest.param(command, id=command) for command in COMMANDS])
def test_commands_are_shown_with_flags_of_their_own(command: str) -> None:
    words = words_of(command)[1]
    if words[1] in cli.commands:
        assert {word for word in words if word.startswith("--")} <= flags_of(words[1])


def flags_of(name: str) -> set[str]:
    return {"--help"} | {flag for one in cli.commands[name].params for flag in one.opts}


@pytest.mark.parametrize("block", of("yaml"))
def test_job_files_load(block: Block, tmp_path: Path) -> None:
    rest = yaml.safe_load((ROOT / "configs" / "refresh.yaml").read_text())
    shown = yaml.safe_load(block.text)
    path = tmp_path / "job.yaml"
    path.write_text(block.text if "input" in shown else yaml.safe_dump({**rest, **shown}))
    job = Job.load(path)
    assert {section for section in shown if getattr(job, section)} == shown.keys()


def test_every_key_is_explained() -> None:
    assert KEYS_PAGE.read_text() == keys_page(), "python -m tests.doc_blocks --update"


def test_every_key_that_is_named_exists() -> None:
    # A method, and names of files.
    ours = re.sub(r"`(model\.predict|model\.xml|contract\.json)`", "", TEXT)
    named = re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)", ours)
    assert len(named) > 15
    known = set(re.findall(r"^\| `(\w+\.\w+)", keys_page(), re.MULTILINE))
    assert [f"{section}.{key}" for section, key in named if f"{section}.{key}" not in known] == []


@pytest.mark.parametrize(
    ("section", "key"), [(Input, "invalid"), (Normalize, "nonfinite"), (Normalize, "zero")]
)
def test_the_table_of_policies_is_whole(section: type[Input | Normalize], key: str) -> None:
    text = TEXTS[DOCS / "bad-rows.md"]
    [row] = re.findall(rf"^\| `{section.__name__.lower()}\.{key}`.*$", text, re.MULTILINE)
    _, _, _, default, others, _ = row.split("|")
    field = section.model_fields[key]
    assert re.findall("`(.*?)`", default) == [field.default]
    assert {field.default, *re.findall("`(.*?)`", others)} == set(get_args(field.annotation))


def test_the_table_of_norms_is_whole() -> None:
    table = TEXTS[DOCS / "norms.md"].partition("| `normalize.norm` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(NORM_NAMES)


def test_the_table_of_exit_codes_is_whole() -> None:
    rows = dict(re.findall(r"^\| (\d[\d, ]*) \|([^|]*)\|", TEXTS[README], re.MULTILINE))
    known = {name: getattr(batchnorm_tool, name) for name in batchnorm_tool.__all__}
    errors = {name: error for name, error in known.items() if hasattr(error, "exit_code")}
    codes = {name: code for code, names in rows.items() for name in re.findall(r"`(\w+)`", names)}
    assert codes.keys() == errors.keys() - {"BatchnormToolError"}
    for name, code in codes.items():
        assert code.startswith(str(errors[name].exit_code))


def test_the_first_screen_says_what_it_is_and_how_to_begin() -> None:
    text = TEXTS[README]
    assert text.count("\n") <= 300
    assert "nothing" in text[:400]
    assert "`BatchNormalization` layer" in text[:400]
    first = "".join(text.splitlines(keepends=True)[:60])
    for command in ("make quickstart", "make test", "pip install .", "uv tool install ."):
        assert command in first
    for command in ("run", "compare", "refresh"):
        assert f"$ {PROGRAM} {command} " in first
    assert "```python" in first


def test_the_speed_in_the_readme_is_that_of_the_saved_table() -> None:
    said = TEXTS[README].partition("\n## Speed\n")[2].partition("\n## ")[0]
    saved = (ROOT / "benchmarks" / "results" / "full.md").read_text()
    [command] = re.findall("`(python -m benchmarks.*?)`", said)
    assert f"Made by `{command}` on" in saved
    figures = re.findall(r"\d+\.\d+ s", said)
    assert len(figures) == 6
    assert [figure for figure in figures if figure not in saved] == []


def test_make_does_what_the_pages_say() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert set(re.findall(r"[`$] ?make (\w+)", TEXT)) == targets - {"help", "clean"}
    quickstart = makefile.partition("\nquickstart:")[2].partition("\n\n")[0]
    recipe = re.findall(rf"^\t\$\(VENV\)/bin/({PROGRAM} .*)$", quickstart, re.MULTILINE)
    assert len(recipe) == 2
    assert set(recipe) <= {command for block in blocks(README) for command in commands(block)}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [
        ((page.parent / path).resolve() if path else page, anchor)
        for path, anchor in _LINK.findall(prose(page.read_text()))
    ]
    assert [str(target) for target, _ in links if not target.exists()] == []
    assert [f"{target}#{a}" for target, a in links if a and a not in anchors(target)] == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / path).resolve() for path, _ in _LINK.findall(TEXTS[README])}
    assert {*PAGES, *OTHERS} - linked == {README}


@pytest.mark.parametrize(
    ("page", "words"),
    [(README, "cli/"), (DOCS / "architecture.md", "cli/"), (ROOT / "CONTRIBUTING.md", "cli/")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_file_that_is_named_exists(page: Path, words: str) -> None:
    named = re.findall(r"\b[a-z_]+(?:\.py|/)", the_block(page, "text", words).text)
    assert len(named) > 15
    package = ROOT / "batchnorm_tool"
    known = {path.name + "/" * path.is_dir() for path in package.rglob("*")}
    assert [name for name in named if name not in known] == []


def test_the_layout_names_every_package() -> None:
    layout = the_block(DOCS / "architecture.md", "text", "cli/").text
    package = ROOT / "batchnorm_tool"
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert packages - set(re.findall(r"^\w+/", layout, re.MULTILINE)) == set()


@pytest.mark.parametrize("name", ["compare-light.png", "compare-dark.png"])
def test_the_pictures_are_small(name: str) -> None:
    data = (DOCS / name).read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1280
    assert height < 1000
    assert len(data) < 200_000


@pytest.mark.needs("g++")
@pytest.mark.parametrize("block", of("cpp"))
def test_arrow_in_cpp_reads_the_result(performed: Performed, block: Block) -> None:
    (performed.directory / "read.cc").write_text(block.text)
    [libraries] = pa.get_library_dirs()
    names = ("arrow", "arrow_compute", "arrow_dataset", "parquet")
    linked = [str(path) for name in names for path in Path(libraries).glob(f"lib{name}.so.*")]
    include = f"-I{pa.get_include()}"
    compiler = ["g++", "-std=c++20", include, "read.cc", *linked, f"-Wl,-rpath,{libraries}"]
    subprocess.run([*compiler, "-o", "read"], cwd=performed.directory, check=True)
    done = subprocess.run(
        ["./read"], cwd=performed.directory, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1797 rows, vector: fixed_size_list<element: float>[32]\n", done.stderr
