"""Videos that are cut without encoding begin at the right keyframe, have every requested frame, and their sound fits."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from tests.media import make_video, read_index, remux
from vadcli.clipping import Cut, cut_file, plan_cut, why_uncuttable
from vadcli.errors import DecodeError
from vadcli.video.probe import probe

FRAMES, FPS, GOP = 100, 25, 20


def seen(path: Path) -> tuple[list[int], float, float]:
    """Return the numbers of the frames that a player shows, the time of the first frame, and the length of the sound in s."""
    with av.open(str(path)) as container:
        frames = [(read_index(frame.to_ndarray(format="gray")), frame.time) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        heard = [packet.duration * packet.time_base for packet in container.demux(audio=0)] if container.streams.audio else []
    assert frames[0][1] is not None
    return [number for number, _ in frames], frames[0][1], float(sum(length for length in heard if length))


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "h264"),
        ("a.mkv", "h264"),
        ("a.ts", "mpegts"),
        ("a.avi", "mpeg4"),
        ("a.mpeg", "mpeg1"),
        ("a.flv", "h264"),
        ("b.mp4", "hevc"),
        ("a.webm", "vp8"),
    ],
)
def test_a_part_begins_at_the_keyframe_before_it(tmp_path: Path, name: str, codec: str) -> None:
    info = probe(make_video(tmp_path / name, codec, frames=FRAMES, fps=FPS, gop=GOP, audio=True))
    part = plan_cut(info, 47 / FPS, 70 / FPS)
    assert part.start_s == pytest.approx(40 / FPS, abs=1.1 / FPS)
    target = tmp_path / ("cut.mkv" if codec == "vp8" else "cut.mp4")
    cut_file(info, target, part)
    numbers, first_s, sound_s = seen(target)
    assert numbers[:30] == list(range(40, 70))
    assert len(numbers) <= 36  # plus frames that are decoded before the last requested frame
    lead_s = 1.5 if codec == "mpeg1" else 0.3  # a program stream has few time stamps, so more sound may come before the video
    assert first_s < lead_s
    assert sound_s == pytest.approx(len(numbers) / FPS, abs=lead_s + 0.15)
    whole = tmp_path / f"whole{target.suffix}"
    cut_file(info, whole, plan_cut(info, -3.0, 99.0), tags={"creation_time": "2024-11-29T22:30:00+01:00"})
    assert seen(whole)[0] == list(range(FRAMES))
    assert probe(whole).created.startswith("2024-11-29T21:30:00")


def test_pictures_that_are_all_keyframes_are_not_cut_late(tmp_path: Path) -> None:
    info = probe(make_video(tmp_path / "a.avi", "mjpeg", frames=50))
    cut_file(info, tmp_path / "cut.mkv", plan_cut(info, 0.8, 1.2))
    numbers, _, sound_s = seen(tmp_path / "cut.mkv")
    assert 18 <= numbers[0] <= 20
    assert numbers[-1] in (29, 30)
    assert sound_s == 0


def test_what_cannot_be_cut_is_said(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.ts", "mpegts", frames=50)
    raw = remux(video, tmp_path / "a.h264")
    assert "raw stream" in why_uncuttable(probe(raw))
    twice = tmp_path / "twice.ts"
    twice.write_bytes(2 * video.read_bytes())
    assert "clock restarts" in why_uncuttable(probe(twice))
    assert why_uncuttable(probe(video)) == ""
    webm = probe(make_video(tmp_path / "a.webm", "vp8"))
    with pytest.raises(DecodeError, match=r"can't be cut; ffmpeg reports: .*vp8"):
        cut_file(webm, tmp_path / "cut.mp4", Cut(0.0, 1.0))
