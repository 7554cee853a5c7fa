"""Pictures as strangers have them: sound, odd and hostile."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

ORIENTATION = 0x0112


def picture(kind="JPEG", size=(40, 20), colour="red", mode="RGB", **options) -> bytes:
    """A picture of one colour; the quarter at its upper left is blue."""
    image = Image.new(mode, size, colour)
    image.paste(Image.new("RGB", (size[0] // 2, size[1] // 2), "blue").convert(mode), (0, 0))
    return saved(image, kind, **options)


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, *, size=(40, 20)) -> bytes:
    """A camera's picture that says how to hold it, and where it was taken."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "SECRET CAMERA"
    exif.get_ifd(0x8825)[1] = "N"
    return picture(size=size, exif=exif, quality=95, comment=b"SECRET COMMENT")


def animated(kind: str) -> bytes:
    """The first frame is red, the others are green."""
    frames = [Image.new("RGB", (40, 20), colour) for colour in ("red", "green", "green")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, loop=0)


def noise(size, kind="PNG") -> bytes:
    """A picture that no codec makes small."""
    return saved(Image.effect_noise(size, 100).convert("RGB"), kind)


def bomb(width=30_000, height=30_000) -> bytes:
    """A PNG of a few kilobytes that unpacks to gigabytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def near(pixel, colour) -> bool:
    """Whether a pixel of a JPEG is meant to have `colour`."""
    return all(abs(ours - theirs) < 40 for ours, theirs in zip(pixel, colour, strict=True))


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
