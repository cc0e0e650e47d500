"""The few numbers of an ISMRMRD header that reconstruction needs, read from and written as XML."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from monarch_sciml.errors import InputError

__all__ = ["Header", "parse_header", "write_header"]

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
LARGEST = 2**16 - 1  # the schema has unsigned short integers
DEEPEST = 100  # levels of elements; the schema has six
SHORTEST, LONGEST = 1e-6, 1e9  # mm of a field of view
ALIKE = 0.01  # pixels that differ by no more are equal: headers round their lengths
_STEPS = ("encodingLimits", "kspace_encoding_step_1")


@dataclass(frozen=True)
class Header:
    """What the first encoding of an ISMRMRD header says; x is the readout, y the phase encoding.

    Attributes:
        encoded: points of k-space along x, y, z, readout oversampling and zero padding included.
        recon: pixels of the image along x, y, z.
        center: the phase-encoding step, as counted in the file, that holds zero frequency.
        maximum: the last phase-encoding step, counted from 0.
        field_of_view: of the image along x, y, z in mm, or None where the header does not say.
        trajectory: ``"cartesian"``, ``"radial"``, ``"epi"`` …
        encoded_field_of_view: of the encoded space, as ``field_of_view``.
        embedded: lines for the calibration of parallel imaging are lines of the image's k-space too, those
            between the undersampled ones around the centre.
    """

    encoded: tuple[int, int, int]
    recon: tuple[int, int, int]
    center: int
    maximum: int
    field_of_view: tuple[float, float, float] | None = None
    trajectory: str = "cartesian"
    encoded_field_of_view: tuple[float, float, float] | None = None
    embedded: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        """(left, right): only the columns left ≤ w < right of k-space were measured, the others are padding.

        left = encoded_y // 2 − center and right = left + maximum + 1, as in fastMRI.
        """
        left = self.encoded[1] // 2 - self.center
        return left, left + self.maximum + 1

    def measured(self, width: int) -> tuple[int, int]:
        """``padding`` in k-space of ``width`` columns, zero frequency at width // 2, and inside of it.

        The same numbers where width is encoded_y; k-space that was cut or filled at both edges has others.
        """
        left = width // 2 - self.center
        return max(left, 0), min(left + self.maximum + 1, width)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Size along x, y, z in mm of the voxels that the header asks for, or None where it does not say.

        Scanners interpolate to those; for images of k-space as it is see ``voxel``.
        """
        if self.field_of_view is None:
            return None
        x, y, z = (length / points for length, points in zip(self.field_of_view, self.recon, strict=True))
        return x, y, z

    def image_shape(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Pixels (h, w) of the image of ``stored`` k-space points (H, W): what its field of view holds.

        round(field of view / pixel of k-space), at most H and W: images are cropped, never interpolated. That
        is the recon matrix where both spaces have the same pixels, as in fastMRI, and by assumption where a
        field of view is missing.
        """
        h, w = self.recon[:2]
        if (pixel := self._pixel(stored)) is not None and self.field_of_view is not None:
            x, y, _ = self.field_of_view
            h, w = _nearly(x / pixel[0], h), _nearly(y / pixel[1], w)
        return min(h, stored[0]), min(w, stored[1])

    def voxel(self, stored: tuple[int, int]) -> tuple[float, float, float] | None:
        """Size along x, y, z in mm of the voxels of that image, or None where the header does not say."""
        if self.field_of_view is None:
            return None
        x, y, z = self.field_of_view
        h, w = self.image_shape(stored)
        dx, dy = self._pixel(stored) or (x / h, y / w)
        return dx, dy, z / self.recon[2]

    def _pixel(self, stored: tuple[int, int]) -> tuple[float, float] | None:
        """Size along x, y in mm of the pixels of k-space: encoded field of view / encoded matrix.

        A readout shorter than encoded lost its oversampling, which leaves the pixels; a longer one and other
        numbers of columns were filled or cut, which leaves the field of view.
        """
        if self.encoded_field_of_view is None:
            return None
        x, y, _ = self.encoded_field_of_view
        return x / max(self.encoded[0], stored[0]), y / stored[1]


def parse_header(xml: str | bytes) -> Header:
    """Read an ISMRMRD header (namespace ``http://www.ismrm.org/ISMRMRD``).

    Without limits of the phase encoding, which its schema does not ask for, the steps are those of the whole
    encoded matrix, zero frequency in the middle.

    Raises:
        InputError: not XML, an XML that declares a document type (its entities can fill the memory), an
            element that is missing (the message names it) or that holds no sensible number.
    """
    try:
        # a declaration has to come first, which not every writer knows
        root = ET.fromstring(xml.lstrip(), parser=ET.XMLParser(target=_PlainTree()))
    except InputError:
        raise
    except (ET.ParseError, ValueError, LookupError) as error:  # the last: an encoding nobody knows
        raise InputError(
            "an ISMRMRD header in XML", f"damaged XML ({error})", "write the header again"
        ) from None
    encoding = root.find(f"{{{NAMESPACE}}}encoding")
    if encoding is None:
        raise _missing("encoding", f"the root element {root.tag!r} without it")
    encoded = _sizes(encoding, "encodedSpace")
    center, maximum = _limits(encoding, encoded[1])
    trajectory = encoding.findtext(f"{{{NAMESPACE}}}trajectory", "").strip().lower() or "cartesian"
    calibration = encoding.findtext(f"{{{NAMESPACE}}}parallelImaging/{{{NAMESPACE}}}calibrationMode", "")
    return Header(
        encoded,
        _sizes(encoding, "reconSpace"),
        center,
        maximum,
        _lengths(encoding, "reconSpace"),
        trajectory,
        _lengths(encoding, "encodedSpace"),
        calibration.strip().lower() == "embedded",
    )


def write_header(
    shape: tuple[int, int, int],
    recon: tuple[int, int],
    field_of_view: tuple[float, float, float] | None = None,
) -> str:
    """A minimal ISMRMRD header, valid for its schema, of fully encoded two-dimensional Cartesian slices.

    Args:
        shape: (H, W, slices) of the k-space: readout, phase encoding, number of slices.
        recon: (h, w) of the image.
        field_of_view: of the image along readout, phase encoding and slice thickness, in mm; by default the
            voxels have 1 mm. The pixels of the encoded space are of the same size.

    Raises:
        InputError: a size that is not positive.
    """
    if min(*shape, *recon) < 1:
        raise InputError("positive sizes", f"shape {shape}, recon {recon}", "pass (H, W, slices) and (h, w)")
    (height, width, slices), (h, w) = shape, recon
    x, y, z = field_of_view or (float(h), float(w), 1.0)
    if not all(0 < length < math.inf for length in (x, y, z)):
        raise InputError("a field of view > 0 in mm", f"{(x, y, z)}", "pass lengths in mm")

    def space(name: str, size: tuple[int, int], lengths: tuple[float, float]) -> str:
        matrix = f"<matrixSize><x>{size[0]}</x><y>{size[1]}</y><z>1</z></matrixSize>"
        fov = f"<fieldOfView_mm><x>{lengths[0]}</x><y>{lengths[1]}</y><z>{z}</z></fieldOfView_mm>"
        return f"<{name}>{matrix}{fov}</{name}>"

    def limits(name: str, points: int) -> str:
        first_last = f"<minimum>0</minimum><maximum>{points - 1}</maximum>"
        return f"<{name}>{first_last}<center>{points // 2}</center></{name}>"

    parts = [
        # the schema asks for the resonance frequency; 0 stands for unknown
        "<experimentalConditions><H1resonanceFrequency_Hz>0</H1resonanceFrequency_Hz></experimentalConditions>",
        "<encoding>",
        space("encodedSpace", (height, width), (x * height / h, y * width / w)),
        space("reconSpace", (h, w), (x, y)),
        f"<encodingLimits>{limits(_STEPS[1], width)}{limits('slice', slices)}</encodingLimits>",
        "<trajectory>cartesian</trajectory>",
        "</encoding>",
    ]
    body = "\n".join(parts)
    return f'<?xml version="1.0"?>\n<ismrmrdHeader xmlns="{NAMESPACE}">\n{body}\n</ismrmrdHeader>\n'


class _PlainTree(ET.TreeBuilder):
    """Builds the tree, unless the XML declares a document type, the only place where entities are defined,
    or nests so deeply that taking it apart takes seconds."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ET.Element:
        self.depth += 1
        if self.depth > DEEPEST:
            raise InputError(
                "a plain ISMRMRD header", f"more than {DEEPEST} levels", "write the header again"
            )
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ET.Element:
        self.depth -= 1
        return super().end(tag)

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise InputError("a plain ISMRMRD header", f"a document type {name!r} in it", "remove <!DOCTYPE …>")


def _missing(element: str, found: str) -> InputError:
    return InputError(f"the element {element} in the ISMRMRD header", found, "add it to the header")


def _text(parent: ET.Element, *path: str) -> str:
    text = parent.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in path))
    if text is None:
        raise _missing("/".join(("encoding", *path)), "a header without it")
    return text


def _integer(parent: ET.Element, *path: str) -> int:
    text = _text(parent, *path)
    # int() takes underscores and the digits of all alphabets too
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text):
        raise InputError(f"an integer in {'/'.join(path)}", repr(text[:40]), "repair the header")
    return int(text)


def _sizes(encoding: ET.Element, space: str) -> tuple[int, int, int]:
    x, y, z = (_integer(encoding, space, "matrixSize", axis) for axis in "xyz")
    if min(x, y, z) < 1 or max(x, y, z) > LARGEST:
        expected = f"positive sizes in {space}/matrixSize, up to {LARGEST}"
        raise InputError(expected, f"{(x, y, z)}", "repair the header")
    return x, y, z


def _limits(encoding: ET.Element, steps: int) -> tuple[int, int]:
    """Centre and maximum of the phase-encoding steps."""
    if encoding.find("/".join(f"{{{NAMESPACE}}}{name}" for name in _STEPS)) is None:
        return steps // 2, steps - 1
    center, maximum = (_integer(encoding, *_STEPS, limit) for limit in ("center", "maximum"))
    if min(center, maximum) < 0 or max(center, maximum) > LARGEST:
        found = f"center {center} and maximum {maximum}"
        raise InputError(f"limits ≥ 0 in {'/'.join(_STEPS)}, up to {LARGEST}", found, "repair the header")
    return center, maximum


def _lengths(encoding: ET.Element, space: str) -> tuple[float, float, float] | None:
    """The field of view of a space; without it only sizes in mm are unknown."""
    try:
        x, y, z = (float(_text(encoding, space, "fieldOfView_mm", axis)) for axis in "xyz")
    except ValueError:  # an InputError is one
        return None
    return (x, y, z) if all(SHORTEST <= length <= LONGEST for length in (x, y, z)) else None


def _nearly(points: float, asked: int) -> int:
    """``points`` as a number of pixels: the one that was ``asked`` for, if that is what is meant."""
    return asked if abs(points - asked) <= ALIKE * asked else max(1, round(points))
