"""Lists the file suffixes of videos and of images, and other suffixes that need no message."""

from __future__ import annotations

from collections.abc import Mapping

# Suffixes without the dot. The first line has MP4 and QuickTime, also of phones, action cameras and drones.
_VIDEO = (
    "mp4 m4v mp4v mpg4 mov qt 3gp 3gpp 3gp2 3gpp2 3g2 k3g skm f4v ismv cmfv psp mj2 mjp2 insv lrv lrf 360 "
    "mkv mk3d webm avi divx xvid amv asf wmv wm flv ogv ogm ogx rm rmvb rv "
    # MPEG: transport streams, program streams, discs, camcorders
    "ts m2t m2ts mts m2s mpegts ssif tp trp rec tod mpg mpeg mpe mpg2 mpeg1 mpeg2 mpeg4 m2p vob vro evo mod mpv mpv2 mp2v m1v "
    "m2v "
    # TV recorders, broadcast, security cameras, DV
    "wtv dvr-ms ty pva nuv nsv mxf gxf lxf nut dav ifv dv dif "
    # streams without a container, and moving images
    "h261 h263 h264 264 h26l 26l avc h265 265 hevc h266 266 vvc evc av1 obu ivf vc1 rcv drc cavs avs2 avs3 mjpeg mjpg y4m gif "
    "apng"
)
_IMAGES = "bmp jpeg jpg pgm png ppm tif tiff webp"
# Images (but a WebP file may also be a video) and sound; texts, subtitles, playlists, indexes; data, programs, archives.
_NO_VIDEO = (
    "bmp jpeg jpg pgm png ppm tif tiff heic heif avif ico svg thm mp3 aac m4a m4b wav flac opus oga wma ac3 eac3 dts mka aif "
    "aiff amr mp2 srt vtt ass ssa sub idx lrc nfo m3u m3u8 mpd pls sdp ffconcat txt log md pdf csv tsv json jsonl xml html htm "
    "yaml yml toml ini cfg conf url lnk gpx kml md5 sha1 sha256 sfv db sqlite sqlite3 parquet npy npz mat py pyc sh bat ps1 js "
    "css exe dll so zip tar gz bz2 xz 7z rar tmp part crdownload lock pid swp bak"
)


def _dotted(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


VIDEO_SUFFIXES = _dotted(_VIDEO)
"""Suffixes of files that the probe accepts. A file with another suffix is scanned only if --include or PATHS name it."""
IMAGE_SUFFIXES = _dotted(_IMAGES)
NO_VIDEO_SUFFIXES = _dotted(_NO_VIDEO)
"""Suffixes of files that nobody expects to be scanned. They are left out without a message."""
MOST_NAMED = 5


def passed_over_text(counts: Mapping[str, int]) -> str:
    """Return a note about files with unknown suffixes; "" if there are no such files.

    Args:
        counts: number of files per suffix; "" for files without a suffix.
    """
    if not counts:
        return ""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{suffix or 'none'} {count}" for suffix, count in ordered[:MOST_NAMED]]
    more = [f"{len(ordered) - MOST_NAMED} more"] if len(ordered) > MOST_NAMED else []
    files = "1 file with an unknown suffix was" if total == 1 else f"{total} files with unknown suffixes were"
    return f"{files} passed over ({', '.join([*named, *more])}; --include to add them)"
