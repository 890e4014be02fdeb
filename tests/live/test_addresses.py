"""Addresses: taken apart, refused in one line, shown without passwords."""

from __future__ import annotations

import pytest

from padim_edge.errors import UsageError
from padim_edge.live import addresses
from padim_edge.live.addresses import display, parse

SCHEMES = ("", "folder", "rtsp", "mqtt", "v4l2")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://me:secret@host/1", "rtsp://me:***@host/1"),
        ("rtsp://me:se@cr@et@host:554/1", "rtsp://me:***@host:554/1"),
        ("mqtt://:only@host", "mqtt://:***@host"),
        ("https://host/x?token=abc&n=1#secret=d", "https://host/x?token=***&n=1#secret=***"),
        ("https://h/x?sig=a%2Fb&code=c&key=d", "https://h/x?sig=***&code=***&key=***"),
        ("mqtt://u@h?password_from=hunter2", "mqtt://u@h?password_from=***"),
        ("mqtt://u@h?password_from=env:NAME", "mqtt://u@h?password_from=env:NAME"),
        ("gst:rtspsrc location=rtsp://a:b@h/1 user-pw=c ! x", None),
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("photos/", "photos/"),
    ],
)
def test_passwords_are_never_shown(given, shown):
    shown = shown or "gst:rtspsrc location=rtsp://a:***@h/1 user-pw=*** ! x"
    assert display(given) == shown


def test_a_url_is_taken_apart():
    one = parse("mqtt://m%40e:p%3Aw@[::1]:1883/line/3?qos=1&name=a%26b#x=2", "sink", SCHEMES)
    assert (one.scheme, one.host, one.port, one.path) == ("mqtt", "::1", 1883, "/line/3")
    assert (one.user, one.password) == ("m@e", "p:w")
    assert (one.options, one.fragment) == ({"qos": "1", "name": "a&b"}, {"x": "2"})
    assert "p%3Aw" not in repr(one) + str(one)
    assert "p:w" not in repr(one)


def test_a_path_keeps_what_is_no_option():
    one = parse("folder:a?b/c: d?max=2GB", "sink", SCHEMES)
    assert (one.rest, one.options) == ("a?b/c: d", {"max": "2GB"})
    assert parse("folder:what?", "sink", SCHEMES).rest == "what?"
    assert parse("photos: monday?a=b", "source", SCHEMES).path == "photos: monday?a=b"
    assert parse("V4L2:/dev/video0?size=640x480", "source", SCHEMES).options == {"size": "640x480"}


@pytest.mark.parametrize(
    ("given", "schemes", "words"),
    [
        ("", SCHEMES, ("an empty address", "folder:", "a path")),
        ("ftp://me:secret@host", SCHEMES, ("no source 'ftp'", "ftp://me:***@host", "rtsp:")),
        ("rtsp://host:port/x", SCHEMES, ("rtsp://host:port/x", "rtsp://host:port/path")),
        ("mqtt://me:sec/ret@host/x", SCHEMES, ("mqtt://me:***@host/x", "%2F")),
        ("mqtt://me:s?secret#@@host/x", SCHEMES, ("mqtt://me:***@host/x", "%3F")),
        ("ftp://me:se#secret@host", SCHEMES, ("no source 'ftp'", "ftp://me:***@host")),
        ("photos", ("jsonl",), ("no source is called photos", "jsonl:")),
        ("mqtt://me:12/sec@host/x", SCHEMES, ("mqtt://me:***@host/x: an @ follows", "%2F %3F %23")),
        ("mqtt://me:12#sec@host", SCHEMES, ("mqtt://me:***@host: an @ follows", "mqtt://@")),
        ("mqtt://me:12?sec@host", SCHEMES, ("mqtt://me:***@host: an @ follows",)),
        ("mqtt://me:a@b/sec@host", SCHEMES, ("mqtt://me:***@host: an @ follows",)),
        ("mqtt://me@corp:12/sec@host", SCHEMES, ("mqtt://me@corp:***@host: an @ follows",)),
        ("mqtt://me@corp:sec/ret@host", SCHEMES, ("mqtt://me@corp:***@host is no URL",)),
        (" rtsp://me:secret@host/1", SCHEMES, ("no source is called", ":***@host/1")),
    ],
)
def test_what_makes_no_sense_is_refused(given, schemes, words):
    with pytest.raises(UsageError) as refused:
        parse(given, "source", schemes)
    for word in words:
        assert word in str(refused.value)
    assert "sec" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        "rtsp://@host:554/a@b",
        "rtsp://host/a@b?c@d#timeout=5",
        "rtsp://me@host/a@b",
        "rtsp://[::1]/a@b",
        "rtsp://host:554/a%40b",
        "rtsp://me:s%2F%40@host:554/a%40b",
        "rtsp://me:with blank@host:554/a",
        "rtsp://me:with\ttab:and\nline@host:554/a",
    ],
)
def test_what_makes_sense_is_taken_and_shows_no_password(given):
    one = parse(given, "source", SCHEMES)
    assert one.host in ("host", "::1")
    assert one.given == given
    for shown in (str(one), str(one.refused("why"))):
        for part in ("s%2F", "blank", "tab", "line"):
            assert part not in shown


def test_without_its_slashes_an_address_shows_no_password_either():
    for given in ("mqtt:me:secret@host/x", "mqtt:/me:sec/ret@host"):
        said = str(parse(given, "sink", SCHEMES).refused("name a broker"))
        assert "sec" not in said
        assert said.endswith("name a broker")


def test_options_are_read_or_refused():
    one = parse("v4l2:x?size=640x480&fps=30&max=1.5GB&n=7", "source", SCHEMES)
    assert one.option("size", addresses.size, (0, 0)) == (640, 480)
    assert one.option("fps", addresses.number(), 0.0) == 30.0
    assert one.option("max", addresses.byte_count, 0) == 1_500_000_000
    assert one.option("n", addresses.whole(1, 9), 0) == 7
    assert one.option("other", addresses.size, (1, 2)) == (1, 2)
    one.check_options(("size", "fps", "max", "n"))
    with pytest.raises(UsageError, match="no option 'size'; allowed are fps"):
        one.check_options(("fps",))
    wrong = {"size": "0x4", "fps": "nan", "max": "x", "n": "10"}
    readers = (addresses.size, addresses.number(), addresses.byte_count, addresses.whole(1, 9))
    for (name, text), read in zip(wrong.items(), readers, strict=True):
        with pytest.raises(UsageError, match=f"{name}={text}"):
            one.option(name, read, None, wrong)
    with pytest.raises(ValueError, match="allowed are a, b"):
        addresses.one_of("a", "b")("c")
