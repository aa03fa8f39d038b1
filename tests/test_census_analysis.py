"""What the steps of the census example do, on small trees; no run, no database."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from durably.codec import codec_for

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "census.py"

MODULE = '''\
"""A module."""
import os, sys
import os.path
from collections import abc
from . import sibling
from .sibling import thing


class Outer:
    class Inner:
        async def method(self):
            return [lambda: 1]


def long():
    def nested():
        pass

    return nested
'''


@pytest.fixture(scope="module")
def census() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("census_example", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def write_tree(root: Path, files: Mapping[str, str | bytes]) -> list[str]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(files)


def install(
    root: Path, name: str, files: Mapping[str, str | bytes], *, version: str = "1.0", record: bool = True
) -> None:
    write_tree(root, files)
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    write_tree(info, {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"})
    if record:
        write_tree(info, {"RECORD": "".join(f"{file},,\n" for file in files)})


def many_modules(count: int) -> dict[str, str | bytes]:
    dice = random.Random(7)
    return {
        f"pack/m{index:03}.py": f"import m{dice.randrange(9)}\ndef f{index}():\n" + "    pass\n" * dice.randint(1, 40)
        for index in range(count)
    }


def test_a_module_is_counted(census: ModuleType, tmp_path: Path) -> None:
    write_tree(tmp_path, {"m.py": MODULE})
    assert census.count_file(tmp_path, "m.py") == census.Counts(
        files=1,
        lines=19,
        functions=3,
        classes=2,
        imports=5,
        lengths={2: 2, 5: 1},
        longest=(
            census.Function("long", "m.py", 15, 5),
            census.Function("method", "m.py", 11, 2),
            census.Function("nested", "m.py", 16, 2),
        ),
        modules={"os": 1, "sys": 1, "collections": 1},
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("print 'hello'\n", id="code of Python 2"),
        pytest.param("{% template %}\n", id="a template"),
        pytest.param(b"name = '\xff'\n", id="not UTF-8"),
        pytest.param("# coding: martian\n", id="an unknown encoding"),
        pytest.param(b"a = 1\0\n", id="a null byte"),
        pytest.param("(" * 5000, id="nested too deep for the tokenizer"),
        pytest.param("-" * 200_000 + "1", id="nested too deep for the parser"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_skipped_and_counts_nowhere_else(
    census: ModuleType, tmp_path: Path, content: str | bytes
) -> None:
    write_tree(tmp_path, {"bad.py": content})
    assert census.count_file(tmp_path, "bad.py") == census.Counts(skipped=1)


def test_a_file_that_is_recorded_but_missing_is_skipped(census: ModuleType, tmp_path: Path) -> None:
    assert census.count_file(tmp_path, "gone.py") == census.Counts(skipped=1)


def test_a_folder_named_like_a_module_is_skipped(census: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    assert census.count_file(tmp_path, "folder.py") == census.Counts(skipped=1)


def test_an_empty_file_is_a_module_of_no_lines(census: ModuleType, tmp_path: Path) -> None:
    write_tree(tmp_path, {"__init__.py": ""})
    assert census.count_file(tmp_path, "__init__.py") == census.Counts(files=1)


def test_a_declared_encoding_is_honoured(census: ModuleType, tmp_path: Path) -> None:
    write_tree(tmp_path, {"m.py": "# coding: latin-1\nname = 'é'\n".encode("latin-1")})
    assert census.count_file(tmp_path, "m.py") == census.Counts(files=1, lines=2)


@pytest.mark.parametrize("content", ["path = '\\d'\n", "same = 1 is 1\n"])
def test_doubtful_code_is_counted_without_a_warning(census: ModuleType, tmp_path: Path, content: str | bytes) -> None:
    write_tree(tmp_path, {"m.py": content})  # a warning would be an error here
    assert census.count_file(tmp_path, "m.py") == census.Counts(files=1, lines=1)


def test_lines_end_as_python_ends_them(census: ModuleType, tmp_path: Path) -> None:
    write_tree(tmp_path, {"m.py": "a = 1\r\nb = '\x0c \u2028'\nc = 3"})
    assert census.count_file(tmp_path, "m.py").lines == 3


def test_the_total_of_nothing_is_nothing(census: ModuleType) -> None:
    assert census.total([]) == census.Counts()


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_the_counts_do_not_depend_on_how_the_files_were_divided(census: ModuleType, tmp_path: Path, size: int) -> None:
    files = write_tree(tmp_path, many_modules(120) | {"pack/bad.py": "def"})
    parts = [census.parse_files(tmp_path, batch) for _, batch in census.batches(files, size)]
    whole = census.parse_files(tmp_path, files)
    assert census.total(parts) == whole
    assert census.total(reversed(parts)) == whole
    assert (whole.files, whole.skipped, len(whole.longest)) == (120, 1, census.TOP)


def test_counts_are_stored_and_read_back_as_themselves(census: ModuleType, tmp_path: Path) -> None:
    files = write_tree(tmp_path, many_modules(30))
    package = census.PackageCensus("pack", "1.0", census.parse_files(tmp_path, files))
    codec = codec_for(census.PackageCensus)
    assert codec.decode(codec.encode(package).text) == package


def test_requests_are_stored_and_read_back_as_themselves(census: ModuleType, tmp_path: Path) -> None:
    for value in (census.PackageRequest("p", "1", tmp_path), census.ReportRequest(("a", "b"), tmp_path)):
        codec = codec_for(type(value))
        assert codec.decode(codec.encode(value).text) == value


def test_batches_cover_the_items_in_order(census: ModuleType) -> None:
    assert list(census.batches("abcde", 2)) == [(0, "ab"), (2, "cd"), (4, "e")]
    assert list(census.batches((), 2)) == []


def test_the_modules_of_a_distribution_are_listed_sorted_and_once(
    census: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "census-sample", {"sample/z.py": "", "sample/a.py": "", "sample/data.txt": "", "b.pyi": ""})
    with (tmp_path / "census_sample-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("sample/z.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert census.list_modules("census-sample") == ("sample/a.py", "sample/z.py")


def test_a_distribution_without_a_record_has_no_modules(
    census: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "census-recordless", {"m.py": ""}, record=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert census.list_modules("census-recordless") == ()


def test_a_distribution_that_is_gone_has_no_modules(census: ModuleType) -> None:
    assert census.list_modules("census-never-installed") == ()


def test_installed_distributions_come_by_name_and_the_first_on_the_path_counts(
    census: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    install(far, "Census-Twin", {}, version="1.0")
    install(far, "census-zoo", {})
    install(far, "Census.Alpha", {})
    install(near, "census_twin", {}, version="2.0")
    write_tree(near, {"~ensus_left-1.0.dist-info/METADATA": "", "~ensus_more-1.0.dist-info/RECORD": ""})
    monkeypatch.syspath_prepend(far)
    monkeypatch.syspath_prepend(near)
    found = [request for request in census.installed(0.5) if request.root in (near, far)]
    assert found == [
        census.PackageRequest("Census.Alpha", "1.0", far, 0.5),
        census.PackageRequest("census_twin", "2.0", near, 0.5),
        census.PackageRequest("census-zoo", "1.0", far, 0.5),
    ]


def test_what_is_installed_is_found_by_its_request(census: ModuleType) -> None:
    requests = census.installed()
    keys = [request.name.lower().replace("_", "-").replace(".", "-") for request in requests]
    assert keys == sorted(set(keys))
    pytest_request = next(request for request in requests if request.name == "pytest")
    assert all((pytest_request.root / file).is_file() for file in census.list_modules("pytest"))


def sample_packages(census: ModuleType, root: Path, batch_size: int) -> list[Any]:
    packages = []
    for name, count in (("big", 60), ("middle", 20), ("small", 1)):
        files = write_tree(root / name, many_modules(count))
        parts = [census.parse_files(root / name, batch) for _, batch in census.batches(files, batch_size)]
        packages.append(census.summarise(census.PackageRequest(name, "1.0", root / name), parts))
    return packages


def test_the_report_is_the_same_to_the_byte_however_it_was_counted(census: ModuleType, tmp_path: Path) -> None:
    first = census.render(sample_packages(census, tmp_path / "here", 1), "census.png")
    second = census.render(sample_packages(census, tmp_path / "there", 50), "census.png")
    assert first == second
    assert str(tmp_path) not in first


def test_the_report_has_totals_and_tables(census: ModuleType, tmp_path: Path) -> None:
    write_tree(tmp_path, {"m.py": MODULE, "bad.py": "def"})
    counts = census.parse_files(tmp_path, ["m.py", "bad.py"])
    lines = census.render([census.PackageCensus("pack", "1.0", counts)], "census.png").splitlines()
    assert "| Distributions | Files | Lines | Functions | Classes | Imports | Skipped |" in lines
    assert "| 1 | 1 | 19 | 3 | 2 | 5 | 1 |" in lines
    assert "| pack | 1.0 | 1 | 19 | 3 | 2 | 5 | 1 |" in lines
    assert "| `long` | `m.py:15` | 5 |" in lines
    assert "| `collections` | 1 | 1 |" in lines
    assert "![Lines and lengths](census.png)" in lines


def test_the_tables_are_cut_at_the_top(census: ModuleType) -> None:
    packages = [census.PackageCensus(f"p{n:02}", "1", census.Counts(files=1, lines=100 - n)) for n in range(30)]
    report = census.render(packages, None)
    assert "| p19 |" in report
    assert "| p20 |" not in report


def test_a_report_without_matplotlib_says_so(census: ModuleType) -> None:
    assert "No chart: matplotlib is not installed." in census.render([], None).splitlines()


def test_numbers_stand_to_the_right(census: ModuleType) -> None:
    assert census.table(["Name", "Count"], [("a", 1234)]) == "| Name | Count |\n| --- | ---: |\n| a | 1,234 |"


@pytest.mark.parametrize("count", [0, 3])
def test_the_chart_is_drawn(census: ModuleType, tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    packages = sample_packages(census, tmp_path / "trees", 50)[:count]
    path = census.draw_chart(packages, tmp_path / "out" / "census.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_chart_and_no_error(
    census: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert census.draw_chart([], tmp_path / "census.png") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_and_leaves_no_draft(census: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    for content in (b"first, and longer", b"second"):
        assert census.write_whole(path, content) == path
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_importing_the_application_loads_no_matplotlib_and_makes_no_file(tmp_path: Path) -> None:
    code = f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
