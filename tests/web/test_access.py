"""Tokens: how often one may be wrong, and who is counted as one."""

from __future__ import annotations

import pytest

from padim_edge.web.access import PAUSE, REMEMBERED, TRIES, Access, make_token

TOKEN = "0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock) -> Access:
    return Access(TOKEN, clock)


def test_made_tokens_differ_and_are_taken():
    made = {make_token() for _ in range(100)}
    assert len(made) == 100
    for token in made:
        assert Access(token).try_token(token, "10.0.0.1")


def test_after_too_many_wrong_ones_only_the_right_one_passes_for_a_while(access, clock):
    assert [access.try_token("x", "10.0.0.1") for _ in range(TRIES)] == [False] * TRIES
    assert access.try_token("x", "10.0.0.1") is None
    assert access.try_token(TOKEN, "10.0.0.1") is True
    assert access.try_token("x", "10.0.0.2") is False
    clock.now += PAUSE - 1
    assert access.try_token("x", "10.0.0.1") is None
    clock.now += 2
    assert access.try_token("x", "10.0.0.1") is False


def test_a_right_one_does_not_buy_more_wrong_ones(access):
    for _ in range(TRIES):
        assert access.try_token("x", "10.0.0.1") is False
        if _ < TRIES - 1:
            assert access.try_token(TOKEN, "10.0.0.1") is True
    assert access.try_token("x", "10.0.0.1") is None


def test_the_addresses_of_one_network_of_ipv6_are_one(access):
    for number in range(TRIES):
        assert access.try_token("x", f"2001:db8::{number:x}") is False
    assert access.try_token("x", "2001:db8::ffff") is None
    assert access.try_token("x", "2001:db8:0:1::1") is False


def test_addresses_are_remembered_in_bounded_memory(access):
    for number in range(3 * REMEMBERED):
        access.try_token("x", f"10.{number >> 16}.{(number >> 8) & 255}.{number & 255}")
    assert len(access._failed) == REMEMBERED


def test_a_session_is_of_one_token_and_one_port(access):
    cookie = access.cookie(8080, secure=False).partition(";")[0]
    assert access.has_session(f"a=b; {cookie}", 8080)
    assert not access.has_session(cookie, 8081)
    assert not Access(TOKEN + "x").has_session(cookie, 8080)
    assert not access.has_session("", 8080)
    assert access.cookie(1, secure=True).endswith("; Secure")


@pytest.mark.parametrize("shown", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\udcff", "é" * 16])
def test_what_is_not_the_token(access, shown):
    assert access.try_token(shown, "10.0.0.1") is False
