"""The ISMRMRD header: what is written is read back, and what is missing is named."""

import re
import xml.etree.ElementTree as ET

import pytest

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import NAMESPACE, Header, parse_header, write_header

KNEE = write_header((640, 368, 36), (320, 320), (160.0, 160.0, 4.5))


def without(tag: str) -> str:
    return re.sub(rf"<{tag}>.*?</{tag}>", "", KNEE, flags=re.DOTALL)


def test_what_is_written_is_read():
    header = parse_header(KNEE)
    lengths = (160.0, 160.0, 4.5), "cartesian", (320.0, 184.0, 4.5)
    assert header == Header((640, 368, 1), (320, 320, 1), 184, 367, *lengths)
    assert header.spacing == (0.5, 0.5, 4.5)
    assert parse_header(KNEE.encode()) == header
    assert parse_header(f"\n {KNEE}") == parse_header(KNEE.encode("utf-16")) == header


@pytest.mark.parametrize("width", [1, 2, 7, 368, 401])
def test_a_header_written_here_has_no_padding(width: int):
    assert parse_header(write_header((9, width, 2), (5, 1))).padding == (0, width)


@pytest.mark.parametrize(
    ("encoded", "center", "maximum", "padding"),
    [
        (368, 184, 367, (0, 368)),
        (372, 161, 322, (25, 348)),
        (401, 200, 399, (0, 400)),
        (320, 100, 240, (60, 301)),
    ],
)
def test_padding(encoded: int, center: int, maximum: int, padding: tuple[int, int]):
    header = Header((640, encoded, 1), (320, 320, 1), center, maximum)
    assert header.padding == header.measured(encoded) == padding


@pytest.mark.parametrize(("stored", "measured"), [(260, (20, 240)), (180, (0, 180)), (225, (2, 222))])
def test_padding_is_counted_from_the_middle_of_the_columns_that_are_stored(
    stored: int, measured: tuple[int, int]
):
    assert Header((460, 260, 1), (230, 180, 1), 110, 219).measured(stored) == measured


@pytest.mark.parametrize("absent", ["kspace_encoding_step_1", "encodingLimits"])
@pytest.mark.parametrize("width", [368, 7])
def test_without_limits_the_whole_encoded_matrix_was_measured(absent: str, width: int):
    xml = write_header((640, width, 36), (320, 320))
    header = parse_header(re.sub(rf"<{absent}>.*?</{absent}>", "", xml, flags=re.DOTALL))
    assert (header.center, header.maximum) == (width // 2, width - 1)
    assert header == parse_header(xml)


@pytest.mark.parametrize("text", ["<trajectory></trajectory>", "<trajectory/>", ""])
def test_a_trajectory_that_is_not_named_is_cartesian(text: str):
    assert parse_header(KNEE.replace("<trajectory>cartesian</trajectory>", text)).trajectory == "cartesian"


def test_pixels_of_1_mm_by_default():
    assert parse_header(write_header((64, 48, 3), (32, 24))).spacing == (1.0, 1.0, 1.0)


def test_without_a_field_of_view_only_the_spacing_is_unknown():
    header = parse_header(without("fieldOfView_mm"))
    assert header.field_of_view is None
    assert header.spacing is None
    assert header.encoded == (640, 368, 1)


def test_the_first_encoding_counts():
    second = re.search("<encoding>.*</encoding>", KNEE, re.DOTALL)
    assert second
    twice = KNEE.replace("</ismrmrdHeader>", second[0].replace("368", "99") + "</ismrmrdHeader>")
    assert parse_header(twice) == parse_header(KNEE)


def test_a_prefix_for_the_namespace_changes_nothing():
    ET.register_namespace("mrd", NAMESPACE)
    prefixed = ET.tostring(ET.fromstring(KNEE))
    assert b"<mrd:encoding>" in prefixed
    assert parse_header(prefixed) == parse_header(KNEE)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (without("encoding"), "expected the element encoding in the ISMRMRD header; found the root element"),
        (
            without("encodedSpace"),
            "element encoding/encodedSpace/matrixSize/x .* found a header without it; add it",
        ),
        (without("reconSpace"), "element encoding/reconSpace/matrixSize/x in the"),
        (without("center"), "element encoding/encodingLimits/kspace_encoding_step_1/center in the"),
        (
            KNEE.replace(NAMESPACE, "elsewhere"),
            "found the root element '{elsewhere}ismrmrdHeader' without it",
        ),
        (KNEE.replace("<x>640</x>", "<x>many</x>"), "an integer in encodedSpace/matrixSize/x; found 'many'"),
        (
            KNEE.replace("<x>640</x>", "<x>0</x>"),
            r"positive sizes in encodedSpace/matrixSize, up to 65535; found \(0, 368, 1\)",
        ),
        (
            KNEE.replace(">184<", ">-4<"),
            "limits ≥ 0 in .*step_1, up to 65535; found center -4 and maximum 367",
        ),
        (KNEE[:300], "an ISMRMRD header in XML; found damaged XML"),
        ("", "damaged XML"),
        (b"\xff\xfe\x00", "damaged XML"),
    ],
)
def test_mistakes(xml: str | bytes, message: str):
    with pytest.raises(InputError, match=message):
        parse_header(xml)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_expand(encoding: str):
    lines = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12)]
    bomb = f'<!DOCTYPE bomb [<!ENTITY e0 "ha">{"".join(lines)}]>'
    xml = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}<ismrmrdHeader>&e11;</ismrmrdHeader>'
    with pytest.raises(InputError, match="found a document type 'bomb' in it; remove <!DOCTYPE"):
        parse_header(xml.encode(encoding))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 4, 1), (2, 2)), r"positive sizes; found shape \(0, 4, 1\)"),
        (((4, 4, 1), (2, 2), (1.0, -1.0, 1.0)), "a field of view > 0 in mm"),
    ],
)
def test_headers_that_are_not_written(arguments, message: str):
    with pytest.raises(InputError, match=message):
        write_header(*arguments)


def test_the_ismrmrd_package_agrees():
    ismrmrd = pytest.importorskip("ismrmrd")
    encoding = ismrmrd.xsd.CreateFromDocument(KNEE).encoding[0]
    size, limits = encoding.encodedSpace.matrixSize, encoding.encodingLimits
    assert (size.x, size.y, size.z) == parse_header(KNEE).encoded
    assert limits.kspace_encoding_step_1.center == 184
    assert limits.slice.maximum == 35
    assert encoding.encodedSpace.fieldOfView_mm.x == 320.0
    assert encoding.reconSpace.fieldOfView_mm.z == 4.5
    assert encoding.trajectory.value == "cartesian"
