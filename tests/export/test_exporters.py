"""Events in other formats."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.documents import DOCUMENT, FIGHT, PLAIN, video_of
from vadcli.errors import UsageError
from vadcli.export import CSV_COLUMNS, export, to_csv, to_edl, to_json, to_vtt
from vadcli.export.annotation import to_fiftyone, to_label_studio, write_cvat
from vadcli.store import OutputLayout
from vadcli.store.events import HeadMark
from vadcli.types import Answer, Description, Event, StartTime, TimeSource, Verification

QUIET = replace(video_of(DOCUMENT, path="quiet.mp4", fps=None), events=())


def test_json_is_one_array_of_the_documents():
    assert json.loads(to_json([DOCUMENT, QUIET])) == [DOCUMENT.to_json(), QUIET.to_json()]
    assert json.loads(to_json([])) == []


def test_csv_has_one_row_per_event_over_all_videos():
    odd = replace(video_of(DOCUMENT, path='odd, "name".mp4', camera=None), events=(PLAIN,))
    rows = list(csv.DictReader(io.StringIO(to_csv([DOCUMENT, QUIET, odd]))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["video"] for row in rows] == ["cam1/a.mp4", "cam1/a.mp4", 'odd, "name".mp4']
    assert rows[0] == {
        "video": "cam1/a.mp4",
        "camera": "cam1",
        "id": "1",
        "start_s": "1.0",
        "end_s": "2.0",
        "peak_s": "1.2",
        "start_frame": "25",
        "end_frame": "50",
        "peak_frame": "30",
        "peak_score": "0.875",
        "mean_score": "0.75",
        "category": "fight",
        "bbox_x": "10",
        "bbox_y": "20",
        "bbox_width": "30",
        "bbox_height": "40",
        "start_time": "",
        "end_time": "",
        "time_source": "",
        "verification": "",
        "verified_by": "",
        "description": "",
    }
    assert (rows[2]["camera"], rows[2]["category"], rows[2]["bbox_x"]) == ("", "", "")


def test_what_a_second_model_says_is_shown():
    """Captions, columns and attributes contain the answer. A description names the model that wrote it."""
    verification = Verification("qwen2-vl-2b", Answer.CONFIRMED, 2.5)
    event = replace(FIGHT, verification=verification, description=Description("qwen2-vl-2b", "Two people, who push."))
    document = replace(DOCUMENT, events=(event, replace(PLAIN, verification=Verification("qwen2-vl-2b", Answer.NOT_ASKED))))
    rows = list(csv.DictReader(io.StringIO(to_csv([document]))))
    assert [(row["verification"], row["verified_by"], row["description"]) for row in rows] == [
        ("confirmed", "qwen2-vl-2b", "Two people, who push."),
        ("not asked", "qwen2-vl-2b", ""),
    ]
    assert "fight 0.88, confirmed by qwen2-vl-2b\n" in to_vtt(document)
    assert "anomaly 0.50, not asked\n" in to_vtt(document)
    assert "* COMMENT: fight 0.88, confirmed by qwen2-vl-2b\n" in to_edl(document)
    said = 'qwen2-vl-2b says: "Two people, who push."'
    (found, _) = json.loads(to_fiftyone([document]))["labels"]["cam1/a"]
    assert (found["attributes"]["verification"], found["attributes"]["description"]) == ("confirmed by qwen2-vl-2b", said)
    (task,) = json.loads(to_label_studio([document]))
    assert task["predictions"][0]["result"][0]["meta"] == {"text": ["confirmed by qwen2-vl-2b", said]}
    file = io.StringIO()
    write_cvat(document, None, file)
    read = ElementTree.fromstring(file.getvalue())
    declared = [item.findtext("name") for item in read.iterfind(".//label[name='fight']/attributes/attribute")]
    assert declared == ["description", "verification"]
    (track,) = read.iterfind("track")
    for box in track.iterfind("box"):
        assert {item.get("name"): item.text for item in box.iterfind("attribute")} == {
            "verification": "confirmed by qwen2-vl-2b",
            "description": said,
        }


def test_the_score_of_the_head_is_shown_where_there_is_one():
    event = replace(FIGHT, head_score=0.625, verification=Verification("qwen2-vl-2b", Answer.CONFIRMED, 2.5))
    judged = replace(DOCUMENT, events=(event,), head=HeadMark("my-head", "logistic", "ab" * 32))
    rows = list(csv.DictReader(io.StringIO(to_csv([judged, replace(DOCUMENT, events=(PLAIN,))]))))
    assert [(row["peak_score"], row["head_score"]) for row in rows] == [("0.875", "0.625"), ("0.5", "")]
    assert tuple(rows[0]) == (*CSV_COLUMNS, "head_score")
    assert "head_score" not in to_csv([DOCUMENT])
    text = "fight 0.88, head 0.62, confirmed by qwen2-vl-2b\n"
    assert text in to_vtt(judged)
    assert f"* COMMENT: {text}" in to_edl(judged)
    (found,) = json.loads(to_fiftyone([judged]))["labels"]["cam1/a"]
    assert (found["confidence"], found["attributes"]["head_score"]) == (0.875, 0.625)


def test_vtt_has_one_cue_per_event():
    odd = replace(PLAIN, start_s=3723.0004, end_s=3723.0004, peak_s=3723.0004, category="a --> b\n& <i>")
    assert to_vtt(replace(DOCUMENT, events=(FIGHT, odd))) == (
        "WEBVTT\n\n"
        "1\n00:00:01.000 --> 00:00:02.000\nfight 0.88\n\n"
        "2\n01:02:03.000 --> 01:02:03.001\na --&gt; b &amp; &lt;i&gt; 0.50\n"
    )
    assert to_vtt(QUIET) == "WEBVTT\n"


def test_edl_lists_the_events_one_after_the_other():
    assert to_edl(DOCUMENT) == (
        "TITLE: cam1/a.mp4\n"
        "FCM: NON-DROP FRAME\n"
        "\n"
        "001  AX       V     C        00:00:01:00 00:00:02:00 01:00:00:00 01:00:01:00\n"
        "* FROM CLIP NAME: cam1/a.mp4\n"
        "* COMMENT: fight 0.88\n"
        "\n"
        "002  AX       V     C        00:00:04:00 00:00:08:00 01:00:01:00 01:00:05:00\n"
        "* FROM CLIP NAME: cam1/a.mp4\n"
        "* COMMENT: anomaly 0.50\n"
    )
    assert to_edl(QUIET) == "TITLE: quiet.mp4\nFCM: NON-DROP FRAME\n"


def test_a_video_without_frame_rate_has_no_edit_list_and_the_others_have(tmp_path):
    layout, unknown = OutputLayout(tmp_path / "out"), video_of(DOCUMENT, path="b.mp4", fps=None)
    problems = export([unknown, DOCUMENT], "edl", layout=layout, to=tmp_path / "to", file=io.StringIO())
    assert problems == [
        "b.mp4: an edit list needs the frame rate, which is not known (scan the video again, or choose another --format)"
    ]
    assert [path.name for path in (tmp_path / "to").rglob("*.*") if path.is_file()] == ["a.mp4.edl"]
    with pytest.raises(UsageError, match=r"b\.mp4: an edit list needs the frame rate"):
        export([unknown], "edl", layout=layout, file=io.StringIO())


def test_captions_and_edit_lists_say_when_it_was_recorded():
    start = StartTime(datetime(2026, 3, 29, 0, 59, 58, tzinfo=UTC).astimezone(ZoneInfo("Europe/Berlin")), TimeSource.NAME)
    document = replace(DOCUMENT, start=start)
    assert "fight 0.88\n2026-03-29 01:59:59\n\n2\n" in to_vtt(document)  # the second event is in summer time
    assert to_vtt(document).endswith("anomaly 0.50\n2026-03-29 03:00:02\n")
    assert "* COMMENT: fight 0.88\n* COMMENT: recorded at 2026-03-29 01:59:59\n" in to_edl(document)
    changed = replace(document, start=replace(start, source=TimeSource.MODIFIED))
    assert (to_vtt(changed), to_edl(changed)) == (to_vtt(DOCUMENT), to_edl(DOCUMENT))


def frames_in(timecode, nominal):
    hours, minutes, seconds, frames = map(int, timecode.split(":"))
    return ((hours * 60 + minutes) * 60 + seconds) * nominal + frames


@given(
    fps=st.sampled_from([1.0, 12.5, 24000 / 1001, 25.0, 30000 / 1001, 60.0]),
    spans=st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 5_000)), min_size=1, max_size=5),
)
def test_edl_timecodes_count_the_frames_of_a_constant_rate(fps, spans):
    events, row = [], 0
    for number, (gap, length) in enumerate(spans, 1):
        start, end = row + gap, row + gap + length
        events.append(Event(number, start, end, start / fps, end / fps, start, start / fps, 0.9, 0.9))
        row = end
    nominal = round(fps)
    lines = [
        line.split()
        for line in to_edl(replace(video_of(DOCUMENT, fps=fps), events=tuple(events))).splitlines()
        if " AX " in line
    ]
    assert [int(line[0]) for line in lines] == [event.id for event in events]
    record = 3600 * nominal
    for line, event in zip(lines, events, strict=True):
        source_in, source_out, record_in, record_out = (frames_in(code, nominal) for code in line[4:])
        assert (source_in, source_out) == (event.start_frame, event.end_frame)
        assert (record_in, record_out) == (record, record + event.end_frame - event.start_frame)
        record = record_out
