"""Every statement of the contract has its tests, and every citation its statement."""

import textwrap
from string import ascii_lowercase

import pytest

from tests.contract import (
    CONTRACT,
    LISTING,
    Citation,
    Statement,
    all_citations,
    cited_by,
    expand,
    listing,
    read_citations,
    read_statements,
    render,
    unknown,
)

STATEMENTS = read_statements(CONTRACT.read_text(encoding="utf-8"))
CITATIONS = all_citations()


# --- the repository --------------------------------------------------------------------------------------


def test_every_statement_of_the_contract_has_a_test() -> None:
    cited = cited_by(STATEMENTS, CITATIONS)
    missing = [f"{s.number}. {s.text}" for s in STATEMENTS if s.number not in cited]
    assert not missing, "no test cites\n" + "\n".join(missing)


def test_every_citation_names_a_statement_of_the_contract() -> None:
    wrong = unknown(STATEMENTS, CITATIONS)
    assert not wrong, "no such statement\n" + "\n".join(map(str, wrong))


def test_every_citation_stands_in_a_test_or_helper() -> None:
    strays = [citation for citation in CITATIONS if citation.strays]
    assert not strays, "above and in nothing\n" + "\n".join(map(str, strays))


def test_the_listing_is_up_to_date() -> None:
    assert LISTING.read_text(encoding="utf-8") == listing(), "run: python -m tests.contract"


def test_the_numbers_of_the_contract_ascend_without_a_gap() -> None:
    numbers = [s.number for s in STATEMENTS]
    plain = [int(number) for number in numbers if number.isdecimal()]
    assert plain == list(range(1, plain[-1] + 1))
    assert numbers == sorted(set(numbers), key=lambda number: (int(number.rstrip(ascii_lowercase)), number))
    assert all(s.section for s in STATEMENTS)


# --- reading what is cited -------------------------------------------------------------------------------

FOUR = [Statement(number, "A. All", f"text {number}") for number in ("1", "2", "2a", "3")]


def cited_in(source: str) -> list[tuple[str | None, tuple[str, ...]]]:
    return [(c.test, c.items) for c in read_citations(textwrap.dedent(source), "tests/test_it.py")]


@pytest.mark.parametrize(
    ("comment", "items"),
    [
        ("# contract 1", ("1",)),
        ("#contract 1, 2a", ("1", "2a")),
        ("# contract 1 to 3, 7", ("1 to 3", "7")),
        ("# contract 1, 2: why", ("1", "2")),
        ("# contract 1 (design D2)", ("1",)),
        ("# contract 1 and 2", ()),
        ("# contract 1,2", ()),
        ("# contract 1. why", ()),
    ],
)
def test_a_citation_is_read_as_it_is_written_or_is_unreadable(comment: str, items: tuple[str, ...]) -> None:
    assert cited_in(f"def test_it():\n    {comment}\n    pass\n") == [("test_it", items)]


def test_other_comments_and_texts_cite_nothing() -> None:
    assert cited_in("def test_it():\n    # contracts 1\n    # contract tests\n    '# contract 1'\n") == []


def test_a_citation_belongs_to_the_test_that_it_stands_in_or_above() -> None:
    assert cited_in(
        """
        # contract 1
        # why
        @decorated(
            by="much",  # contract 2
        )
        def test_one():
            def helper():
                # contract 3
                return 1
            assert helper()  # contract 4

        async def test_two():
            # contract 5
            await it()

        class TestMore:
            # contract 6
            def test_three(self):
                pass
        """
    ) == [
        ("test_one", ("1",)),
        ("test_one", ("2",)),
        ("test_one", ("3",)),
        ("test_one", ("4",)),
        ("test_two", ("5",)),
        ("TestMore.test_three", ("6",)),
    ]


def test_a_citation_in_a_helper_is_no_tests_and_one_in_nothing_strays() -> None:
    source = textwrap.dedent(
        """
        # contract 1

        # contract 2
        class Machine:
            def check(self):
                assert True  # contract 3

        def test_it():
            pass
        """
    )
    citations = read_citations(source, "tests/test_it.py")
    assert [(c.test, c.strays) for c in citations] == [(None, True), (None, False), (None, False)]


def test_a_range_holds_the_lettered_numbers_between_its_ends() -> None:
    assert expand("2", FOUR) == ["2"]
    assert expand("1 to 3", FOUR) == ["1", "2", "2a", "3"]
    for item in ("4", "2b", "1 to 4", "3 to 1"):
        with pytest.raises(LookupError):
            expand(item, FOUR)


def citation(*items: str, test: str | None = "test_it", path: str = "tests/test_a.py") -> Citation:
    return Citation(items, path, 7, test, strays=False)


def test_what_is_unreadable_or_does_not_exist_is_named_with_its_place() -> None:
    wrong = unknown(FOUR, [citation("1"), citation("1", "4"), citation(), citation("3 to 5", test=None)])
    assert [str(c) for c in wrong] == [
        "tests/test_a.py:7: 1, 4",
        "tests/test_a.py:7: unreadable",
        "tests/test_a.py:7: 3 to 5",
    ]


def test_the_listing_names_each_test_once_under_each_of_its_statements() -> None:
    citations = [citation("1 to 2"), citation("1"), citation("1", test="test_other"), citation("3", test=None)]
    assert [line for line in render(FOUR, citations).splitlines() if line.startswith(("-", "  -"))] == [
        "- **1.** text 1",
        "  - [test_it](../tests/test_a.py)",
        "  - [test_other](../tests/test_a.py)",
        "- **2.** text 2",
        "  - [test_it](../tests/test_a.py)",
        "- **2a.** text 2a",
        "  - **no test**",
        "- **3.** text 3",
        "  - **no test**",
    ]
