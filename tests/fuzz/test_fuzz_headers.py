"""ISMRMRD headers of any text: eight numbers that make sense, or a refusal; no entity is ever expanded."""

import re

import pytest
from files import DAMAGE
from hypothesis import strategies as st
from wild import answer, damage, fuzz, guarded

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import NAMESPACE, Header, parse_header, write_header

KNEE = write_header((640, 368, 36), (320, 320), (160.0, 160.0, 4.5))
TEXTS = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "007",
    "+5",
    "3.0",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 12,
    "9" * 5000,
]
TEXTS += [
    "1_0",
    "٣",
    "²",
    "0x10",
    "many",
    "\u202e5",
    "&amp;",
    "<x>1</x>",
    "<!-- 5 -->5",
    "<![CDATA[5]]>",
    "&lol;",
]


def sensible(header: Header) -> bool:
    """Whether all its numbers lie where reconstruction can use them."""
    sizes = header.encoded + header.recon
    spacing = header.spacing or (1.0, 1.0, 1.0)
    limits = all(type(n) is int and 0 <= n <= 65535 for n in (header.center, header.maximum))
    return (
        all(type(n) is int and 1 <= n <= 65535 for n in sizes)
        and limits
        and all(0 < s < 1e300 for s in spacing)
    )


def check(xml: str | bytes) -> Header | InputError:
    found = answer(parse_header, xml)
    assert isinstance(found, InputError) or sensible(found), found
    return found


@fuzz(300, number=st.integers(0, 40), text=st.sampled_from(TEXTS))
def test_other_values(number: int, text: str) -> None:
    places = [match.span(1) for match in re.finditer(r">([^<>\s]+)<", KNEE)]
    start, stop = places[number % len(places)]
    check(KNEE[:start] + text + KNEE[stop:])


@fuzz(
    100,
    number=st.integers(0, 80),
    change=st.sampled_from(["", "<{}>", "<{}/>", "</{}>", "<a:{}>", '<{} a="1" a="2">']),
)
def test_other_tags(number: int, change: str) -> None:
    tags = list(re.finditer(r"</?(\w+)[^>]*>", KNEE))
    tag = tags[number % len(tags)]
    check(KNEE[: tag.start()] + change.format(tag[1]) + KNEE[tag.end() :])


@fuzz(300, **DAMAGE)
def test_damaged_bytes(kind: str, at: float, count: int, fill: bytes) -> None:
    check(damage(KNEE.encode(), kind, at, count, fill))


@fuzz(60, text=st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_text(text: str | bytes) -> None:
    assert isinstance(check(text), InputError)


ENCODINGS = [
    "utf-8",
    "UTF-16",
    "latin-1",
    "ascii",
    "utf-7",
    "utf-32",
    "idna",
    "base64",
    "rot13",
    "none",
    "",
    "x" * 300,
]


@fuzz(40, declared=st.sampled_from(ENCODINGS), actual=st.sampled_from(["utf-8", "utf-16", "utf-32", "cp500"]))
def test_encodings(declared: str, actual: str) -> None:
    check(KNEE.replace('version="1.0"', f'version="1.0" encoding="{declared}"').encode(actual))


def bomb(levels: int) -> str:
    lines = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, levels)]
    return f'<!DOCTYPE lolz [<!ENTITY e0 "ha">{"".join(lines)}]>', f"&e{levels - 1};"


DOCTYPES = [
    bomb(12),
    ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>', "&e;"),
    ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">', "1"),
    ('<!DOCTYPE a [<!ENTITY % e SYSTEM "file:///dev/zero"> %e;]>', "1"),
    ('<!DOCTYPE a [<!ENTITY e "1">]>', "&e;"),
    ("<!DOCTYPE a>", "1"),
    ('<!DOCTYPE a PUBLIC "b" "c">', "1"),
]


@pytest.mark.parametrize(("doctype", "text"), DOCTYPES)
@fuzz(12, number=st.integers(0, 10), encoding=st.sampled_from(["utf-8", "utf-16"]))
def test_document_types(doctype: str, text: str, number: int, encoding: str) -> None:
    _, rest = KNEE.split("\n", 1)
    places = [match.span(1) for match in re.finditer(r">([^<>\s]+)<", rest)]
    start, stop = places[number % len(places)]
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{doctype}{rest[:start]}{text}{rest[stop:]}'
    found = check(xml.encode(encoding))
    assert isinstance(found, InputError)
    assert "document type" in str(found)


@pytest.mark.parametrize("depth", [10**2, 10**4, 10**6])
def test_deep_nesting(depth: int) -> None:
    with guarded():
        root = f'<ismrmrdHeader xmlns="{NAMESPACE}">'
        assert isinstance(check(root + "<a>" * depth), InputError)
        assert isinstance(check(root + "<a>" * depth + "</a>" * depth + "</ismrmrdHeader>"), InputError)
        inside = KNEE.replace("<encoding>", "<encoding>" + "<a>" * depth + "</a>" * depth)
        assert isinstance(check(inside), InputError)
        assert isinstance(check(KNEE.replace("<encoding>", "<encoding>" + "<a>" * 9 + "</a>" * 9)), Header)


def test_long_texts_are_cut_short() -> None:
    found = check(KNEE.replace("<x>640</x>", f"<x>{'many' * 10**5}</x>"))
    assert isinstance(found, InputError)
    assert len(str(found)) < 300


SIZES = st.sampled_from([-1, 0, 1, 7, 65535])
LENGTHS = st.sampled_from([-1.0, 0.0, 0.5, 220.0, float("nan"), float("inf")])


@fuzz(
    100,
    shape=st.tuples(SIZES, SIZES, SIZES),
    recon=st.tuples(SIZES, SIZES),
    lengths=st.tuples(LENGTHS, LENGTHS, LENGTHS),
)
def test_what_is_written_is_read(
    shape: tuple[int, int, int], recon: tuple[int, int], lengths: tuple[float, float, float]
) -> None:
    xml = answer(write_header, shape, recon, lengths)
    if not isinstance(xml, InputError):
        found = check(xml)
        assert isinstance(found, Header)
        assert found.encoded == (*shape[:2], 1)
        assert found.recon == (*recon, 1)
        assert found.field_of_view == lengths
        assert found.padding == (0, shape[1])
