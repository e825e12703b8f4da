"""The user's CSV table: its labels, its errors, and reading a table that vadcli has written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ground_truth.tables import table, true_rows
from vadcli.errors import DocumentError
from vadcli.ground_truth import Span, open_ground_truth
from vadcli.ground_truth.interval_sets import template_from_events, template_from_labels
from vadcli.types import Event


@pytest.fixture
def read(tmp_path):
    def reader(text):
        path = tmp_path / "truth.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return open_ground_truth("csv", path)

    return reader


def test_rows_are_intervals_and_empty_times_are_a_normal_video(read):
    truth = read("video,start_s,end_s,category\na.mp4,0.5,1.0,fighting\nb.mp4,,,\n a.mp4 , 0.1,.2,\n").videos()
    assert list(truth) == ["a.mp4", "b.mp4"]
    times = np.arange(20) / 10
    assert truth["a.mp4"].spans(table("a.mp4", times=times)) == (Span(1, 2, None), Span(5, 10, "fighting"))
    assert truth["a.mp4"].categories == ("fighting",)
    assert truth["b.mp4"].is_normal
    assert not truth["b.mp4"].has_masks


def test_the_table_may_lack_categories_and_have_a_byte_order_mark_and_quotes(read):
    truth = read(b'\xef\xbb\xbfvideo,start_s,end_s\r\n"a, b.mp4",0,1\r\n\r\n').videos()
    assert true_rows(truth["a, b.mp4"].labels(table("x", times=[0, 0.5, 1.0]))) == [0, 1]


def test_only_the_end_of_a_path_may_differ(read):
    truth = read("video,start_s,end_s\ncam1/a.mp4,,\ncam2/a.mp4,,\n")
    matching = truth.match(["cam1/a.mkv", "cam3/a.mp4"], allow_missing=True)
    assert list(matching.pairs) == ["cam1/a.mkv"]
    assert matching.unknown == ("cam3/a.mp4",)
    assert matching.unscored == ("cam2/a.mp4",)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a.mp4,2,1,", "line 3"),
        ("a.mp4,1,1,", "line 3"),
        ("a.mp4,-1,1,", "line 3"),
        ("a.mp4,nan,1,", "line 3"),
        ("a.mp4,0,inf,", "line 3"),
        ("a.mp4,0:10,0:20,", "line 3"),
        ("a.mp4,1,,", "line 3"),
        ("a.mp4,,1,", "line 3"),
        ("a.mp4", "line 3: has 1 columns instead of 4"),
        ("a.mp4,1,2,x,y", "line 3: has 5 columns"),
        (",1,2,", "line 3: the cell of the column video is empty"),
        ("ok.mp4,,,", "line 3: 'ok.mp4' has several rows, and one of them has empty times"),
        ('a.mp4,1,2,"x', "line 3: not CSV"),
        ("a.mp4,1,2," + "x" * 200_000, "line 3: not CSV"),
    ],
)
def test_errors_of_rows_name_the_line(read, row, says):
    with pytest.raises(DocumentError) as caught:
        read(f"video,start_s,end_s,category\nok.mp4,0,1,\n{row}\n").videos()
    assert f"truth.csv, {says}" in caught.value.message
    assert len(caught.value.message) < 400


def test_a_normal_video_twice_or_with_an_interval_after_is_an_error(read):
    for second in ("a.mp4,,", "a.mp4,0,1"):
        with pytest.raises(DocumentError, match="line 3"):
            read(f"video,start_s,end_s\na.mp4,,\n{second}\n").videos()


def test_a_severity_is_a_number_or_unknown(read):
    found = read("video,start_s,end_s,severity,category\na.mp4,0,1,2.5,fire\na.mp4,2,3,,\na.mp4,4,5\n").videos()["a.mp4"]
    spans = found.spans(table("x", times=np.arange(10.0)))
    assert spans == (Span(0, 1, "fire", 2.5), Span(2, 3), Span(4, 5))
    for wrong in ("bad", "nan", "inf"):
        with pytest.raises(DocumentError, match=f"line 2: the severity '{wrong}' is not a number"):
            read(f"video,start_s,end_s,severity\na.mp4,0,1,{wrong}\n").videos()


@pytest.mark.parametrize("text", ["", "a.mp4,0,1\n", "video;start_s;end_s\n", "video,start,end\n"])
def test_another_header_is_an_error_that_shows_the_right_one(read, text):
    with pytest.raises(DocumentError, match="instead of video,start_s,end_s,category"):
        read(text).videos()


def event(start, end, category=None):
    return Event(1, 0, 1, start, end, 0, start, 0.9, 0.8, category)


def test_a_template_from_events_reads_back(read):
    one, other = table(" cam/a, 1.mp4", times=np.arange(20) / 2), table("b.mp4", times=[0.0])
    text = template_from_events([(one, [event(0.5, 1.5, "fighting"), event(2.0, 10.0)]), (other, [])])
    assert text == 'video,start_s,end_s,category\n" cam/a, 1.mp4",0.5,1.5,fighting\n" cam/a, 1.mp4",2,10,\nb.mp4,,,\n'
    truth = read(text).match([one.video, other.video]).pairs
    assert truth["b.mp4"].is_normal
    assert truth[one.video].spans(one) == (Span(1, 3, "fighting"), Span(4, 20))


@pytest.mark.parametrize("times", [[0.0, 1.0, 2.0], [0.0], [0.0, 1.0, 1.0 + 5e-7]])
def test_an_event_in_a_long_last_frame_reads_back(read, times):
    scored = table("a.mp4", times=times)
    whole = Event(1, 0, len(times), 0.0, 60.0, 0, 0.0, 0.9, 0.8)
    truth = read(template_from_events([(scored, [whole])])).videos()["a.mp4"]
    assert truth.labels(scored).all()


@given(st.lists(st.tuples(st.floats(2e-6, 3.0), st.booleans()), min_size=1, max_size=30))
def test_a_template_from_labels_gives_the_same_labels(tmp_path_factory, rows):
    times = np.cumsum([0.0, *(step for step, _ in rows[:-1])])
    labels = np.array([flag for _, flag in rows])
    scored = table("a.mp4", times=times)
    path = tmp_path_factory.mktemp("template") / "truth.csv"
    path.write_text(template_from_labels([(scored, labels)]))
    truth = open_ground_truth("csv", path).videos()["a.mp4"]
    assert truth.labels(scored).tolist() == labels.tolist()


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="there are 3 labels, but 2 rows"):
        template_from_labels([(table("a", 2), np.zeros(3, bool))])
