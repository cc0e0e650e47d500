"""Slices assembled from the acquisitions of an ISMRMRD file: one readout each, in the order of the scan."""

from collections.abc import Callable
from typing import Any

import numpy as np

from monarch_sciml.errors import InputError
from monarch_sciml.mri.header import ALIKE, Header

__all__ = ["assemble"]

# bits of the flags of an acquisition, counted from 1 as in ismrmrd.h
CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = 20, 21, 22
# noise, navigator, phase correction, feedback, dummy, real-time feedback, surface coil, phase stabilisation
NOT_IMAGING = (19, 23, 24, 26, 27, 28, 29, 30, 31)

AT_ONCE = 64  # readouts: read one by one they take four times as long
LEAST = 1000  # one sample for so many points: with fewer, the header is wrong


def assemble(
    name: str, data: Any, header: Header
) -> tuple[tuple[int, int, int, int], Callable[[int], np.ndarray]]:
    """The shape (slices, coils, H, W), and a function that reads slice i, complex64 (coils, H, W).

    H × W is the encoded matrix, readout × phase encoding; of readouts that were written without their
    oversampling, H is their length. A line lies at W // 2 + step − center, its sample number
    ``center_sample`` at H // 2. Lines measured more than once are averaged, lines never measured are
    zero. Slices are the distinct values of the slice counter, in increasing order. Lines for calibration
    alone count where the header calls the calibration embedded: no others fill the centre there.

    Args:
        name: of the file, for messages.
        data: the HDF5 dataset of acquisitions: compounds of ``head``, ``traj`` and ``data``.
        header: of the scan, a Cartesian one.

    Raises:
        InputError: not two-dimensional, several images per slice, reversed readouts (EPI), short readouts
            that do not say where zero frequency is, or no acquisition of the image; when reading, a readout
            outside the encoded matrix.
    """
    heads = data.fields("head")[...]  # without the samples
    numbers = _imaging(name, header, heads)
    heads = heads[numbers]
    coils = int(heads["active_channels"][0])
    slices = np.unique(heads["idx"]["slice"])
    x, y = _readout(header, heads), header.encoded[1]
    lines = heads["idx"]["kspace_encode_step_1"].astype(int) + y // 2 - header.center
    measured, wanted = int(heads["number_of_samples"].astype(np.int64).sum()), len(slices) * x * y
    if measured * LEAST < wanted:
        found = f"{measured} samples for {len(slices)} slices of {x} × {y} in {name}"
        raise InputError(
            f"at least one in {LEAST} points measured", found, "correct encodedSpace in its header"
        )
    starts = x // 2 - heads["center_sample"].astype(int)
    # whole readouts fill the matrix, also where the file leaves center_sample at 0
    whole = heads["number_of_samples"] == x
    starts[whole] = 0
    if not (whole | (heads["center_sample"] > 0)).any():
        # half echoes by the definition, which no Cartesian scan has: 0 is where libraries begin
        remedy = "write the number of the sample at zero frequency; fill half echoes up with zeros in front"
        found = f"0 in all readouts, of fewer samples than the {x} encoded, in {name}"
        raise InputError("center_sample of the acquisitions", found, remedy)

    def read(index: int) -> np.ndarray:
        total = np.zeros((coils, x, y), np.complex64)
        count = np.zeros((x, y), np.float32)
        here = np.flatnonzero(heads["idx"]["slice"] == slices[index])
        for some in np.split(here, range(AT_ONCE, len(here), AT_ONCE)):
            for i, stored in zip(some, data.fields("data")[numbers[some]], strict=True):
                samples = stored.view(np.complex64).reshape(coils, -1)
                pre, stop = int(heads["discard_pre"][i]), samples.shape[1] - int(heads["discard_post"][i])
                first, line = starts[i] + pre, lines[i]
                last = starts[i] + stop
                if not (0 <= first < last <= x and 0 <= line < y):
                    what = f"samples {first} … {last - 1} of line {line}"
                    found = f"{what} in acquisition {numbers[i]} of {name}"
                    remedy = "correct encodedSpace or kspace_encoding_step_1 in its header"
                    raise InputError(f"readouts inside the encoded matrix {x} × {y}", found, remedy)
                total[:, first:last, line] += samples[:, pre:stop]
                count[first:last, line] += 1
        return total / np.maximum(count, 1)

    return (len(slices), coils, x, y), read


def _readout(header: Header, heads: np.ndarray) -> int:
    """Points along the readout: as encoded, or fewer where all lines lack the oversampling.

    Symmetric readouts, as long as the image's part of the encoded field of view, are those of the image: some
    converters take the oversampling out and leave the header as it was.
    """
    x, samples = header.encoded[0], np.unique(heads["number_of_samples"])
    n = int(samples[0])
    if len(samples) > 1 or n >= x or (heads["center_sample"] != n // 2).any():
        return x
    if header.field_of_view is None or header.encoded_field_of_view is None:
        return x
    part = header.field_of_view[0] / header.encoded_field_of_view[0]
    return n if abs(n / x - part) <= ALIKE * part else x


def _imaging(name: str, header: Header, heads: np.ndarray) -> np.ndarray:
    """Numbers of the acquisitions of the image, if they are two-dimensional and of one image."""

    def flag(*bits: int) -> np.ndarray:
        return heads["flags"] & np.uint64(sum(1 << (bit - 1) for bit in bits)) > 0

    calibration_only = flag(CALIBRATION) & ~flag(CALIBRATION_AND_IMAGING) & (not header.embedded)
    first_encoding = heads["encoding_space_ref"] == 0
    numbers = np.flatnonzero(~flag(*NOT_IMAGING) & ~calibration_only & first_encoding)
    if not len(numbers):
        found = f"none among {len(heads)} in {name}"
        raise InputError("acquisitions of the image", found, "check the flags of the acquisitions")
    if flag(REVERSE)[numbers].any():
        remedy = "reverse and phase-correct them first, and save them as .npy"
        raise InputError("readouts of one direction", f"reversed ones in {name}", remedy)
    counters = heads["idx"][numbers]
    partitions = max(header.encoded[2], int(counters["kspace_encode_step_2"].max()) + 1)
    if partitions > 1:
        remedy = "transform along z and save the slices as .npy (slices, coils, H, W)"
        raise InputError("two-dimensional slices", f"{partitions} partitions in {name}", remedy)
    for counter in ("contrast", "phase", "repetition", "set"):
        if (values := len(np.unique(counters[counter]))) > 1:
            found = f"{values} values of {counter} in {name}"
            raise InputError("one image per slice", found, f"write one file per {counter}")
    coils = np.unique(heads["active_channels"][numbers])
    if len(coils) > 1:
        found = f"{coils.tolist()} in {name}"
        raise InputError("equally many coils in all acquisitions", found, "leave the others out")
    return numbers
