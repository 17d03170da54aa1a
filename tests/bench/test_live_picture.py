"""What a hold of `bench.live` says of its probes, window by window."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from bench.live_probe import Probe
from bench.output.live_picture import draw_timeline, timeline


def probes() -> list[Probe]:
    """One a second for half a minute, seen after 0.1 s and learned after 1 s, but for those sent after 20 s."""
    return [
        Probe(f"u{at}", 100.0 + at, in_history_s=100.1 + at, learned_s=101.0 + at if at < 20 else None)
        for at in range(30)
    ]


def test_a_probe_that_is_never_learned_counts_with_the_time_it_has_waited() -> None:
    points = timeline(probes(), ended_s=160.0)
    assert [point["at_s"] for point in points] == [0.0, 10.0, 20.0]
    assert [point["learned_s_p50"] for point in points] == pytest.approx([1.0, 1.0, 160 - 124.5])
    assert all(point["in_history_s_p99"] == pytest.approx(0.1) for point in points)
    assert timeline([], 0.0) == []


def test_the_picture_is_well_formed_and_names_its_rate() -> None:
    for points in (timeline(probes(), 160.0), []):
        picture = draw_timeline(points, 1000.0, "two cores & more")
        words = "".join(ET.fromstring(picture).itertext())
        assert "1,000 live actions/s" in words
        assert "two cores & more" in words
