"""Names what a file is that no decoder here takes, by its first bytes."""

from __future__ import annotations

PICTURE = "convert it to JPEG or PNG"
OTHER = "it is no still image: leave it out"
# where, what lies there, what that is, what to do
MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL", PICTURE),
    (0, b"\xff\x0a", "JPEG XL", PICTURE),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000", PICTURE),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", PICTURE),
    (0, b"II\xbc\x01", "JPEG XR", PICTURE),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", PICTURE),
    (0, b"IIRO", "a camera's raw file (ORF)", PICTURE),
    (0, b"IIRS", "a camera's raw file (ORF)", PICTURE),
    (0, b"MMOR", "a camera's raw file (ORF)", PICTURE),
    (0, b"IIU\x00", "a camera's raw file (RW2)", PICTURE),
    (0, b"FOVb", "a camera's raw file (X3F)", PICTURE),
    (0, b"HEAPCCDR", "a camera's raw file (CRW)", PICTURE),
    (0, b"8BPS", "a Photoshop document (PSD)", PICTURE),
    (0, b"gimp xcf", "a GIMP document (XCF)", PICTURE),
    (0, b"qoif", "QOI", PICTURE),
    (0, b"FLIF", "FLIF", PICTURE),
    (0, b"BPG\xfb", "BPG", PICTURE),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", PICTURE),
    (0, b"#?RADIANCE", "Radiance HDR", PICTURE),
    (0, b"DDS ", "DDS", PICTURE),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)", PICTURE),
    (0, b"icns", "an icon (ICNS)", PICTURE),
    (0, b"\x0a\x05\x01", "PCX", PICTURE),
    (0, b"SIMPLE  =", "FITS", PICTURE),
    (128, b"DICM", "DICOM", PICTURE),
    (0, b"AT&TFORM", "DjVu", PICTURE),
    (0, b"P7\n", "PAM", PICTURE),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", PICTURE),
    (0, b"%PDF", "PDF", PICTURE),
    (0, b"%!PS", "PostScript", PICTURE),
    (0, b"\x93NUMPY", "a NumPy array", PICTURE),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5", OTHER),
    (0, b"\x1a\x45\xdf\xa3", "video (Matroska or WebM)", OTHER),
    (8, b"AVI ", "video (AVI)", OTHER),
    (0, b"\x00\x00\x01\xba", "video (MPEG)", OTHER),
    (0, b"\x00\x00\x01\xb3", "video (MPEG)", OTHER),
    (0, b"FLV\x01", "video (FLV)", OTHER),
    (0, b"OggS", "video or sound (Ogg)", OTHER),
    (8, b"WAVE", "sound (WAV)", OTHER),
    (0, b"ID3", "sound (MP3)", OTHER),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"BZh", "compressed by bzip2", "unpack it"),
    (0, b"\xfd7zXZ\x00", "compressed by xz", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it"),
    (257, b"ustar", "a tar", "unpack it"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
)
# of an ISO base media file, at byte 8 and, from byte 16 on, what it is compatible with
BRANDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"avif", b"avis"), "AVIF", PICTURE),
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC", PICTURE),
    ((b"mif1", b"msf1", b"miaf"), "HEIF", PICTURE),
    ((b"crx ",), "a camera's raw file (CR3)", PICTURE),
)
HEAD = 512  # bytes that are looked at


def name_format(data: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, such as "AVIF", and what to do with it; None: unknown. For
    files that no decoder here takes: others are not told apart."""
    head = data[:HEAD]
    for offset, magic, name, way_out in MAGIC:
        if head.startswith(magic, offset):
            return name, way_out
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), HEAD)
        brands = [head[8:12], *(head[k : k + 4] for k in range(16, end - 3, 4))]
        for known, name, way_out in BRANDS:
            if any(brand in known for brand in brands):
                return name, way_out
        return "video (MP4 or QuickTime)", OTHER
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "SVG", PICTURE
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page", "download the image again"
    return None
