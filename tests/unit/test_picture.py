"""A stranger's picture becomes one that a record may have, or it is said why not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.pictures import (
    BLUE,
    RED,
    WHITE,
    animated,
    bomb,
    near,
    noise,
    opened,
    picture,
    saved,
    turned,
)
from proxy.syndication.picture import MAX_BLOB_BYTES, Unreadable, make_picture


def made(source, edge=2000):
    """The picture made of `source`, opened; what is told of it is so."""
    content, width, height = make_picture(source, edge=edge)
    image = opened(content)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))
    assert len(content) <= MAX_BLOB_BYTES
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_what_the_web_shows_is_read(kind):
    image = made(picture(kind))
    assert image.size == (40, 20)
    assert near(image.getpixel((5, 5)), BLUE)
    assert near(image.getpixel((35, 15)), RED)


@pytest.mark.parametrize(
    ("orientation", "size", "blue_at"),
    [
        (1, (40, 20), (3, 3)),
        (2, (40, 20), (36, 3)),
        (3, (40, 20), (36, 16)),
        (4, (40, 20), (3, 16)),
        (5, (20, 40), (3, 3)),
        (6, (20, 40), (16, 3)),
        (7, (20, 40), (16, 36)),
        (8, (20, 40), (3, 36)),
    ],
)
def test_it_is_turned_upright(orientation, size, blue_at):
    image = made(turned(orientation))
    assert image.size == size
    assert near(image.getpixel(blue_at), BLUE)


def test_where_and_with_what_it_was_taken_is_nobodys_business():
    source = turned(6)
    assert b"SECRET" in source
    content, _, _ = make_picture(source, edge=2000)
    assert b"SECRET" not in content
    assert not opened(content).getexif()
    assert not {"exif", "icc_profile", "comment", "xmp"} & opened(content).info.keys()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_it_is_the_first_frame(kind):
    image = made(animated(kind))
    assert getattr(image, "n_frames", 1) == 1
    assert near(image.getpixel((20, 10)), RED)


@pytest.mark.parametrize(
    "source",
    [
        saved(Image.new("RGBA", (40, 20), (0, 0, 0, 0))),
        saved(Image.new("LA", (40, 20), (0, 0))),
        saved(Image.new("P", (40, 20), 0), transparency=0),
        saved(Image.new("RGBA", (40, 20), (0, 0, 0, 0)), "WEBP"),
    ],
    ids=["RGBA", "LA", "P", "WebP"],
)
def test_what_is_transparent_is_on_white(source):
    assert near(made(source).getpixel((20, 10)), WHITE)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_colours_than_rgb(mode):
    made(saved(Image.new(mode, (40, 20)), "JPEG" if mode == "CMYK" else "PNG"))


def test_sixteen_bits_a_pixel_keep_their_brightness():
    grey = Image.new("I;16", (40, 20), 0x8000)
    assert near(made(saved(grey)).getpixel((20, 10)), (128, 128, 128))


def test_a_damaged_colour_profile_is_left_out():
    made(picture(icc_profile=b"no profile at all"))


def test_a_large_one_is_made_smaller_and_never_a_small_one_larger():
    assert made(picture(size=(3000, 1500))).size == (2000, 1000)
    assert made(picture(size=(300, 3000)), edge=1200).size == (120, 1200)
    assert made(picture(size=(3, 2))).size == (3, 2)
    assert made(picture("PNG", size=(9000, 1))).size == (2000, 1)


def test_what_does_not_compress_is_made_smaller_until_it_fits():
    image = made(noise((1600, 1200), "JPEG"))
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)


def test_a_bomb_is_not_unpacked():
    with pytest.raises(Unreadable, match="too many pixels"):
        make_picture(bomb(), edge=2000)


@pytest.mark.parametrize(
    "source", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"<html>", bytes(1000)]
)
def test_what_is_no_picture(source):
    with pytest.raises(Unreadable, match="is no JPEG"):
        make_picture(source, edge=2000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_half_a_picture_is_damaged(kind):
    source = noise((64, 64), kind)
    with pytest.raises(Unreadable, match=r"is damaged|is no"):
        make_picture(source[: len(source) // 2], edge=2000)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_is_worse_than_unreadable(data):
    source = bytearray(data.draw(st.sampled_from(SOURCES)))
    for _ in range(data.draw(st.integers(1, 6))):
        source[data.draw(st.integers(0, len(source) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Unreadable):
        made(bytes(source))


SOURCES = [picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "AVIF")] + [turned(6), animated("GIF")]
