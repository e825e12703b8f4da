"""Other tools read the exported files: OpenTimelineIO, edit lists, WebVTT, CVAT, Label Studio and FiftyOne."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.store.documents import DOCUMENT, FIGHT, PLAIN, video_of
from vadcli.errors import UsageError
from vadcli.export import to_edl, to_otio, to_vtt
from vadcli.export.annotation import label_studio_config, runs, to_fiftyone, to_label_studio, write_cvat
from vadcli.store.events import EventsDocument
from vadcli.types import Thresholds

HOSTILE = 'a "b" <c> & \u202e\U0001f600\x01'
OTHER = replace(video_of(DOCUMENT, path="cam 2/ü#?.mkv"), events=(replace(PLAIN, category=HOSTILE),))
QUIET = replace(video_of(DOCUMENT, path="quiet.mp4"), events=())
ALL = (DOCUMENT, OTHER, QUIET)


def rows_of(documents: Sequence[EventsDocument]) -> list[tuple[int, int]]:
    return [(event.start_frame, event.end_frame) for document in documents for event in document.events]


def test_opentimelineio_reads_clips_markers_and_metadata() -> None:
    otio = pytest.importorskip("opentimelineio")
    timeline = otio.adapters.read_from_string(to_otio(ALL), "otio_json")
    (track,) = timeline.video_tracks()
    clips = list(track)
    assert [(clip.source_range.start_time.value, clip.source_range.end_time_exclusive().value) for clip in clips] == rows_of(
        ALL
    )
    assert {clip.source_range.start_time.rate for clip in clips} == {DOCUMENT.video["fps"]}
    assert clips[0].media_reference.target_url == "cam1/a.mp4"
    assert clips[2].media_reference.target_url == "cam%202/%C3%BC%23%3F.mkv"
    assert clips[0].media_reference.available_range.duration.value == DOCUMENT.video["frames"]
    assert clips[0].metadata["vadcli"]["peak_score"] == FIGHT.peak_score
    assert [clip.markers[0].marked_range.start_time.value for clip in clips[:2]] == [FIGHT.peak_frame, PLAIN.peak_frame]
    starts = [track.range_of_child_at_index(number).start_time.value for number in range(3)]
    lengths = [end - start for start, end in rows_of(ALL)]
    assert starts == [0, lengths[0], lengths[0] + lengths[1]]
    assert list(otio.adapters.read_from_string(to_otio([QUIET]), "otio_json").video_tracks()[0]) == []


def test_the_edit_list_reader_of_opentimelineio_finds_the_same_cuts() -> None:
    otio = pytest.importorskip("opentimelineio")
    pytest.importorskip("otio_cmx3600_adapter", reason="the CMX 3600 reader is a package of its own")
    timeline = otio.adapters.read_from_string(to_edl(DOCUMENT), "cmx_3600", rate=DOCUMENT.video["fps"])
    (track,) = timeline.video_tracks()
    found = [clip.source_range for clip in track if isinstance(clip, otio.schema.Clip)]
    assert [(span.start_time.value, span.end_time_exclusive().value) for span in found] == rows_of([DOCUMENT])
    assert [clip.name for clip in track] == ["cam1/a.mp4", "cam1/a.mp4"]


def test_webvtt_reads_one_cue_per_event() -> None:
    webvtt = pytest.importorskip("webvtt")
    cues = list(webvtt.from_string(to_vtt(DOCUMENT)))
    assert [(cue.start, cue.end) for cue in cues] == [("00:00:01.000", "00:00:02.000"), ("00:00:04.000", "00:00:08.000")]
    assert [cue.text for cue in cues] == ["fight 0.88", "anomaly 0.50"]


class Masks:
    """Stored masks of some rows, with the methods of `MaskTrack` that exporters use."""

    def __init__(self, stored: dict[int, np.ndarray]) -> None:
        self.stored = stored

    def between(self, start: int, end: int) -> list[tuple[int, np.ndarray]]:
        return [(row, mask) for row, mask in self.stored.items() if start <= row < end]

    def level(self, thresholds: Thresholds) -> int:
        return thresholds.mask_level


def tracks_of(document: EventsDocument, masks: Masks | None = None) -> list[ElementTree.Element]:
    file = io.StringIO()
    write_cvat(document, masks, file)  # type: ignore[arg-type]
    return ElementTree.fromstring(file.getvalue().encode()).findall("track")


def test_cvat_reads_masks_back_to_the_pixel_and_one_of_each_track() -> None:
    decode = pytest.importorskip("cvat_sdk.masks").decode_mask
    width, height = DOCUMENT.video["width"], DOCUMENT.video["height"]
    rng = np.random.default_rng(0)
    stored = {row: (rng.random((height, width)) < 0.3).astype(np.uint8) * 255 for row in (25, 27, 49, 50)}
    stored[26] = np.zeros((height, width), np.uint8)
    tracks = tracks_of(replace(DOCUMENT, events=(FIGHT,)), Masks(dict(sorted(stored.items()))))
    masks = [track.findall("mask") for track in tracks]
    assert [[int(mask.attrib["frame"]) for mask in found] for found in masks] == [[25], [27], [49]]
    for (mask,) in masks:
        box = [int(mask.attrib[name]) for name in ("left", "top", "width", "height")]
        encoded = [*map(int, mask.attrib["rle"].split(",")), box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1]
        found = decode(encoded, image_width=width, image_height=height)
        assert (found == (stored[int(mask.attrib["frame"])] > 0)).all()
    assert {track.attrib["label"] for track in tracks} == {"fight"}


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_runs_are_those_of_cvats_own_encoder(mask: np.ndarray) -> None:
    encode = pytest.importorskip("cvat_sdk.masks").encode_mask
    height, width = mask.shape
    assert runs(mask) == encode(mask, [0, 0, width, height])[:-4]


def test_cvat_gets_a_box_over_the_event_where_there_are_no_masks() -> None:
    (track, *others) = tracks_of(DOCUMENT)
    assert others == []  # the other event has no box
    shown, hidden = track.findall("box")
    assert (shown.attrib["frame"], shown.attrib["outside"], hidden.attrib["frame"], hidden.attrib["outside"]) == (
        "25",
        "0",
        "50",
        "1",
    )
    assert [float(shown.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr")] == [10, 20, 40, 60]
    last = replace(FIGHT, end_frame=int(DOCUMENT.video["frames"]))
    (track,) = tracks_of(replace(DOCUMENT, events=(last,)))
    assert len(track.findall("box")) == 1


def test_xml_holds_no_character_that_it_may_not() -> None:
    boxed = replace(OTHER, events=(replace(FIGHT, category=HOSTILE),))
    (track,) = tracks_of(boxed)
    assert track.attrib["label"] == HOSTILE.replace("\x01", "\ufffd")
    config = ElementTree.fromstring(label_studio_config([boxed]))
    assert HOSTILE.replace("\x01", "\ufffd") in {each.attrib["value"] for each in config.iter("Label")}


def test_label_studio_accepts_the_predictions_under_the_configuration_beside_them() -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    config = interface.LabelInterface(label_studio_config(ALL))
    tasks = json.loads(to_label_studio(ALL))
    assert [task["data"]["path"] for task in tasks] == [document.video["path"] for document in ALL]
    for task in tasks:
        for prediction in task["predictions"]:
            assert config.validate_prediction(prediction, return_errors=True) == []
    broken = json.loads(to_label_studio(ALL))[0]["predictions"][0]
    broken["result"][0]["value"]["timelinelabels"] = ["never heard of"]
    assert config.validate_prediction(broken, return_errors=True) != []


def test_label_studio_counts_frames_from_one_and_boxes_in_percent() -> None:
    task = json.loads(to_label_studio([DOCUMENT]))[0]
    results = {result["id"]: result for result in task["predictions"][0]["result"]}
    assert results["event-1"]["value"]["ranges"] == [{"start": 26, "end": 50}]
    shown, hidden = results["box-1"]["value"]["sequence"]
    assert (shown["frame"], shown["enabled"], hidden["frame"], hidden["enabled"]) == (26, True, 50, False)
    assert shown["x"] == pytest.approx(100 * 10 / DOCUMENT.video["width"])
    assert shown["height"] == pytest.approx(100 * 40 / DOCUMENT.video["height"])
    assert "box-2" not in results
    assert task["predictions"][0]["score"] == max(event.peak_score for event in DOCUMENT.events)


def test_fiftyone_reads_supports_and_confidence(tmp_path: Path) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers", reason="fiftyone is not installed")
    (tmp_path / "labels.json").write_text(to_fiftyone(ALL), encoding="utf-8")
    for document in ALL:
        video = tmp_path / "data" / str(document.video["path"])
        video.parent.mkdir(parents=True, exist_ok=True)
        video.touch()
    importer = importers.FiftyOneTemporalDetectionDatasetImporter(dataset_dir=str(tmp_path))
    importer.setup()
    found = {Path(path).relative_to(tmp_path / "data").as_posix(): label for path, _, label, _ in importer}
    assert set(found) == {document.video["path"] for document in ALL}
    for document in ALL:
        detections = found[str(document.video["path"])].detections
        assert [(each.support[0] - 1, each.support[1]) for each in detections] == rows_of([document])
        assert [each.confidence for each in detections] == [event.peak_score for event in document.events]


def test_fiftyone_is_told_where_it_could_not_tell_videos_apart() -> None:
    twin = video_of(DOCUMENT, path="cam1/a.mkv")
    with pytest.raises(UsageError, match=r"cam1/a\.mp4 from cam1/a\.mkv"):
        to_fiftyone([DOCUMENT, twin])
    labels = json.loads(to_fiftyone([DOCUMENT]))
    assert labels["classes"] == ["anomaly", "fight"]
    assert [each["support"] for each in labels["labels"]["cam1/a"]] == [[26, 50], [101, 200]]
