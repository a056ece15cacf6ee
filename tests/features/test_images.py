from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from batchnorm_tool.chunk import Field, Reason
from batchnorm_tool.features import FeatureReader
from batchnorm_tool.features.values import Shape, decode_images, is_image_shape
from batchnorm_tool.job import Input

NULL, RAGGED, UNDECODABLE = (Reason.NULL_FEATURE, Reason.RAGGED_FEATURE, Reason.UNDECODABLE_IMAGE)
RANDOM = np.random.default_rng(7)
COLOUR = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
GREY = RANDOM.integers(0, 256, (4, 6), np.uint8)
# JPEG keeps flat blocks of 8 by 8 pixels exactly.
FLAT = np.full((8, 16, 3), 128, np.uint8)


def encoded(
    pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **keys: object
) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind, **keys)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "shape", "expected"),
    [
        pytest.param(encoded(COLOUR), (4, 6, 3), COLOUR, id="colour"),
        pytest.param(encoded(GREY), (4, 6, 1), GREY[:, :, None], id="grey with channel"),
        pytest.param(encoded(GREY), (4, 6), GREY, id="grey without channel"),
        pytest.param(encoded(GREY), (4, 6, 3), np.stack([GREY] * 3, 2), id="grey to colour"),
        pytest.param(
            encoded(COLOUR, mode="RGBA"),
            (4, 6, 4),
            np.dstack([COLOUR, np.full((4, 6), 255, np.uint8)]),
            id="opaque",
        ),
        pytest.param(encoded(COLOUR, mode="RGBA"), (4, 6, 3), COLOUR, id="without opacity"),
        pytest.param(encoded(COLOUR), (None, None, 3), COLOUR, id="open size"),
        pytest.param(encoded(COLOUR), (None, None, None), COLOUR, id="open channels"),
        pytest.param(encoded(GREY > 99), (4, 6), (GREY > 99) * 255, id="black and white"),
    ],
)
def test_png_gives_back_its_pixels(data: bytes, shape: tuple, expected: np.ndarray) -> None:
    images, faults = decode_images([data], "png", shape)
    assert images.dtype == np.uint8
    assert faults.tolist() == [0]
    assert images.tolist() == [expected.tolist()]


def test_jpeg_gives_back_flat_blocks() -> None:
    images, faults = decode_images([encoded(FLAT, "JPEG")], "jpeg", (8, 16, 3))
    assert faults.tolist() == [0]
    assert images[0].tolist() == FLAT.tolist()


def test_orientation_in_exif_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images, faults = decode_images([encoded(FLAT, "JPEG", exif=exif)], "jpeg", (8, 16, 3))
    assert images.shape == (1, 8, 16, 3)
    assert faults.tolist() == [0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(None, NULL, id="null"),
        pytest.param(b"", UNDECODABLE, id="empty"),
        pytest.param(b"no image at all", UNDECODABLE, id="text"),
        pytest.param(encoded(COLOUR)[:-30], UNDECODABLE, id="truncated"),
        pytest.param(encoded(COLOUR, "JPEG"), UNDECODABLE, id="other format"),
        pytest.param(encoded(COLOUR[:3]), RAGGED, id="other size"),
        pytest.param(encoded(COLOUR.transpose(1, 0, 2).copy()), RAGGED, id="turned"),
        pytest.param(encoded(GREY.astype(np.uint16) * 200), UNDECODABLE, id="16 bits"),
    ],
)
def test_bad_image_is_named_and_blank(data: bytes | None, reason: Reason) -> None:
    images, faults = decode_images([encoded(COLOUR), data, encoded(COLOUR)], "png", (4, 6, 3))
    assert faults.tolist() == [0, reason, 0]
    assert not images[1].any()
    assert images[2].tolist() == COLOUR.tolist()


def test_huge_image_of_few_bytes_is_not_decompressed() -> None:
    # Its pixels are cut off: whoever looked at them would find it damaged.
    data = encoded(np.zeros((3000, 3000), np.uint8))[:200]
    images, faults = decode_images([data], "png", (4, 6))
    assert faults.tolist() == [RAGGED]
    assert images.shape == (1, 4, 6)


def test_header_that_claims_terabytes_is_undecodable() -> None:
    data = bytearray(encoded(COLOUR))
    data[16:24] = b"\x00\x0f\xff\xff" * 2
    _, faults = decode_images([bytes(data)], "png", (None, None, 3))
    assert faults.tolist() == [UNDECODABLE]


def test_open_size_is_the_most_common_one() -> None:
    small = encoded(COLOUR[:2])
    images, faults = decode_images([small, encoded(COLOUR), encoded(COLOUR)], "png", (None, 6, 3))
    assert images.shape == (3, 4, 6, 3)
    assert faults.tolist() == [RAGGED, 0, 0]


@pytest.mark.parametrize("encoded_rows", [[], [None, b"?"]], ids=["no rows", "no images"])
def test_open_size_without_any_image_is_one(encoded_rows: list) -> None:
    images, _ = decode_images(encoded_rows, "png", (None, None, 3))
    assert images.shape == (len(encoded_rows), 1, 1, 3)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    place=st.integers(0, 200),
    byte=st.integers(0, 255),
    end=st.integers(0, 200),
)
def test_damaged_bytes_never_raise(kind: str, place: int, byte: int, end: int) -> None:
    data = bytearray(encoded(COLOUR, kind))
    data[place % len(data)] = byte
    data = data[: len(data) - max(0, end - 150)]
    images, faults = decode_images([bytes(data)], kind.lower(), (4, 6, 3))
    assert images.shape == (1, 4, 6, 3)
    assert faults[0] in (0, RAGGED, UNDECODABLE)
    assert faults[0] == 0 or not images.any()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bfloat16"])
def test_column_of_images_feeds_an_input(kind: pa.DataType, dtype: str) -> None:
    column = pa.array([b"", encoded(COLOUR), None, b"?", encoded(COLOUR[:2])], kind)
    table = pa.table({"png": column}).slice(1)
    field = Field("image", (4, 6, 3), dtype)
    spec = Input(path="x", decode={"png": "png"})
    arrays, faults = FeatureReader({"image": ("png",)}, [field], spec).read(table)
    assert faults.tolist() == [0, NULL, UNDECODABLE, RAGGED]
    assert str(arrays["image"].dtype) == dtype
    expected = np.zeros((4, 4, 6, 3))
    expected[0] = COLOUR if dtype != "bfloat16" else arrays["image"][0].astype(float)
    assert np.array_equal(arrays["image"].astype(float), expected)
    assert np.abs(arrays["image"][0].astype(float) - COLOUR).max() <= (
        1 if dtype == "bfloat16" else 0
    )


def test_pixels_that_an_input_cannot_hold_make_a_bad_row() -> None:
    bright = np.full((4, 6, 3), 255, np.uint8)
    table = pa.table({"png": [encoded(bright)]})
    spec = Input(path="x", decode={"png": "png"})
    _, faults = FeatureReader({"i": ("png",)}, [Field("i", (4, 6, 3), "int8")], spec).read(table)
    assert faults.tolist() == [Reason.UNFIT_FEATURE]


@pytest.mark.parametrize(
    "shape", [(224, 224), (224, 224, 1), (224, 224, 3), (None, None, None)], ids=str
)
def test_images_fill_height_width_and_one_three_or_four_channels(shape: Shape) -> None:
    assert is_image_shape(shape)


@pytest.mark.parametrize("shape", [(64,), (224, 224, 2), (1, 224, 224, 3)], ids=str)
def test_images_fill_no_other_shape(shape: Shape) -> None:
    assert not is_image_shape(shape)
