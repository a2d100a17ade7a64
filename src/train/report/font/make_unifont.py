"""Makes unifont.bin of GNU Unifont: `make_unifont.py unifont.hex unifont_upper.otf unifont.bin`.

zlib of: the number of runs (u32, little-endian), the runs (first character u32; characters u16; bytes a glyph u16: 16 or 32),
and their bitmaps, 16 rows a glyph, from the top, the leftmost pixel in the highest bit.
"""

import struct
import sys
import zlib

from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont

# Pictures and symbols beyond the first plane; scripts there are those of scholars.
UPPER = range(0x1F000, 0x1FB00)
PIXELS, ASCENT = 16, 14


def contours(pen):
    points = []
    for name, arguments in pen.value:
        if name in ("moveTo", "lineTo"):
            points.append(arguments[0])
        elif name in ("closePath", "endPath") and points:
            yield points
            points = []


def bitmap(glyphs, name, pixel):
    """Fills the glyph's outline, whose corners are those of pixels."""
    pen = DecomposingRecordingPen(glyphs)
    glyphs[name].draw(pen)
    width = round(glyphs[name].width / pixel)
    shapes = list(contours(pen))
    rows = []
    for row in range(PIXELS):
        y, bits = (ASCENT - row - 0.5) * pixel, 0
        for column in range(width):
            x, winding = (column + 0.5) * pixel, 0
            for shape in shapes:
                for (x0, y0), (x1, y1) in zip(shape, shape[1:] + shape[:1]):
                    if x0 == x1 and x0 > x and min(y0, y1) < y < max(y0, y1):
                        winding += 1 if y1 > y0 else -1
            bits = bits << 1 | (winding != 0)
        rows.append(bits.to_bytes(width // 8, "big"))
    return b"".join(rows)


def main(hex_path, otf_path, out):
    glyphs = {}
    with open(hex_path) as lines:
        for line in lines:
            character, bits = line.strip().split(":")
            glyphs[int(character, 16)] = bytes.fromhex(bits)
    font = TTFont(otf_path)
    outlines, pixel = font.getGlyphSet(), font["head"].unitsPerEm // PIXELS
    for character, name in font.getBestCmap().items():
        if character in UPPER:
            glyphs[character] = bitmap(outlines, name, pixel)

    runs = []
    for character, bits in sorted(glyphs.items()):
        if runs and runs[-1][0] + runs[-1][1] == character and runs[-1][2] == len(bits):
            runs[-1][1] += 1
        else:
            runs.append([character, 1, len(bits)])
    table = struct.pack("<I", len(runs)) + b"".join(struct.pack("<IHH", *run) for run in runs)
    data = table + b"".join(bits for _, bits in sorted(glyphs.items()))
    with open(out, "wb") as file:
        file.write(zlib.compress(data, 9))


main(*sys.argv[1:])
