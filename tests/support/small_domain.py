"""A domain of random shapes for the catalogues benchmark: seconds instead of packages."""

import io
import random

from PIL import Image, ImageDraw

from benchmarks.catalogues.domain import Artist, Category, Domain

LANGUAGES = ("de", "fr")


def shape(*names: object) -> bytes:
    """A PNG with transparency, keyed by names."""
    draw = random.Random(" ".join(str(name) for name in names))
    image = Image.new("RGBA", (128, 128))
    for _ in range(4):
        x, y, size = draw.randrange(90), draw.randrange(90), draw.randrange(12, 36)
        colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256), 255)
        ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def small_domain(*, categories: int = 60, artists: int = 4, drawings: int = 2, roles: bool = False) -> Domain:
    """A domain whose category "thing 7" has the tags "tag 7" and its own name, and near ones in groups of five.

    Args:
        categories: their number.
        artists: of every category.
        drawings: of every artist.
        roles: half of the artists draw queries only, the others documents only.
    """
    role = ["query" if number % 2 else "document" for number in range(artists)] if roles else ["any"] * artists
    found = [
        Artist(f"artist-{n}", f"package-{n}", "1.0", "MIT", "https://example.org", role[n]) for n in range(artists)
    ]
    rows = []
    for number in range(categories):
        tags = (f"tag{number}", f"widget{number}s", f"shelf mate {number}")
        other = {code: (f"{code}{number}", f"widget{number}") for code in LANGUAGES}
        names = (f"widget{number} thing", f"gadget{number}")
        near = (f"group{number // 5}",)
        rows.append(Category(f"k{number}", f"widget{number}", f"shelf-{number // 5}", near, tags, names, other))
    pictures = {
        one.key: {artist.name: [shape(one.key, artist.name, n) for n in range(drawings)] for artist in found}
        for one in rows
    }
    words = [Artist("words", "package-words", "1.0", "MIT", "https://example.org")]
    return Domain("icons", rows, pictures, found, painted=not roles, words=words)
