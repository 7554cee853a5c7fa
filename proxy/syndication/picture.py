"""A stranger's picture made fit for a record: upright, without metadata, small enough. Decoded by Pillow.

Called in a process of its own (foreign.py): a hostile picture may be slow, large, or worse.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Final

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

# What app.bsky.embed.images and app.bsky.embed.external take, the older ones too.
MAX_BLOB_BYTES: Final = 1_000_000

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
# A camera's picture fits; decoded it takes some 200 MB.
_MAX_PIXELS: Final = 50_000_000
_QUALITY: Final = 90
_LOW_QUALITY: Final = 78
_SMALLEST_STEP: Final = 0.5


class Unreadable(Exception):
    """It is no picture that can be shown; the message says why and may be shown."""


def make_picture(source: bytes, *, edge: int) -> tuple[bytes, int, int]:
    """The picture in `source`, of an animation its first frame, as a JPEG; with its width and height.

    Neither is more than `edge` pixels, the JPEG at most MAX_BLOB_BYTES. Raises Unreadable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _decoded(source, edge)
        content = _jpeg(image, _QUALITY)
        if len(content) > MAX_BLOB_BYTES:
            content = _jpeg(image, _LOW_QUALITY)
        while len(content) > MAX_BLOB_BYTES:
            # Bytes go with the area; a little less, so that one more try will do.
            scale = max(_SMALLEST_STEP, 0.95 * math.sqrt(MAX_BLOB_BYTES / len(content)))
            smaller = max(1, int(image.width * scale)), max(1, int(image.height * scale))
            image = image.resize(smaller, Image.Resampling.LANCZOS)
            content = _jpeg(image, _LOW_QUALITY)
        return content, image.width, image.height


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _decoded(source: bytes, edge: int) -> Image.Image:
    try:
        # Above it Pillow warns, above twice as much it refuses.
        Image.MAX_IMAGE_PIXELS = _MAX_PIXELS // 2
        image = Image.open(io.BytesIO(source), formats=_FORMATS)
        image.draft("RGB", (edge, edge))  # decodes a large JPEG smaller at once
        image.load()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        return _plain(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise Unreadable("has too many pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("is no JPEG, PNG, WebP, GIF or AVIF") from None
    except MemoryError:
        raise Unreadable("takes too much memory") from None
    except Exception as error:  # noqa: BLE001  (decoders of damaged data raise whatever they come across)
        raise Unreadable(f"is damaged ({type(error).__name__})") from None


def _plain(image: Image.Image) -> Image.Image:
    """`image` in sRGB on white, with nothing beside its pixels."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # 16 bits a pixel, of which conversion would keep the lower ones.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("RGB", "CMYK", "L") and profile:
        image = _srgb(image, profile)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    return plain


def _srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image
