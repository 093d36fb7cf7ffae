"""A review: who has the address sees the findings and decides, and nobody else."""

import http.client
import json
import urllib.error
import urllib.request
from contextlib import contextmanager
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from deepssim_scan.audit.history import History
from deepssim_scan.audit.review import server
from deepssim_scan.audit.review.agreement import DECISIONS, agreements
from deepssim_scan.audit.review.server import Review, undecided
from deepssim_scan.errors import WriteFailed
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.pictures import Pictures

NAME = "<script>alert(1)</script>.png"


def match(key, synthetic="a.png"):
    return Match(synthetic, 1, "p/t.png", 0.95, "duplicate", p_value=1e-4, finding=key)


def draw(matches):
    (found,) = matches
    key = found.finding.encode()
    gone = found.synthetic == "gone.png"
    return [None if gone else Pictures(b"s" + key, b"t" + key, b"d" + key)]


KEYS = [f"{number:016x}" for number in range(4)]
FLAGGED = {
    "first": ([match(KEYS[0]), match(KEYS[1], NAME)], draw),
    "second": ([match(KEYS[1]), match(KEYS[2], "gone.png"), match(KEYS[3])], draw),
}


@contextmanager
def serving(folder, reader="A", blinded=False):
    """Serve a review from a thread, as it would be from the main one: with its own history."""
    ready, running = [], None

    def serve():
        with History(folder, begin=True) as history:
            history.decide(KEYS[3], "A", "copy", blinded=False)
            cases = undecided(FLAGGED, history, reader)
            with Review(cases, history, reader, blinded=blinded) as review:
                ready.append(review)
                review.serve_forever(poll_interval=0.02)

    running = Thread(target=serve)
    running.start()
    while not ready:
        running.join(0.01)
    try:
        yield ready[0]
    finally:
        ready[0].shutdown()
        running.join()


def ask(address, data=None, host=None):
    request = urllib.request.Request(address, data, {"Host": host} if host else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - of this machine
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def decisions(folder):
    with History(folder) as history:
        return history.decisions()


def test_each_finding_is_shown_once_and_what_is_decided_is_kept(tmp_path):
    with serving(tmp_path) as review:
        status, body = ask(review.address)
        assert status == 200
        assert b"<script>alert" not in body
        assert [*review.cases] == KEYS[:3]
        assert ask(f"{review.address}{KEYS[1]}/training.png") == (200, b"t" + KEYS[1].encode())
        assert ask(f"{review.address}{KEYS[2]}/training.png")[0] == 404
        for key, decision in zip(KEYS, DECISIONS, strict=False):
            value = json.dumps({"finding": key, "decision": decision}).encode()
            assert ask(f"{review.address}decide", value)[0] == 204
        assert review.decided == dict(zip(KEYS, DECISIONS, strict=False))
    assert decisions(tmp_path)[KEYS[1]] == {"A": "no copy"}
    with serving(tmp_path) as review:
        assert review.cases == {}
    with serving(tmp_path, reader="B") as review:
        assert [*review.cases] == KEYS


def test_a_browser_that_goes_on_before_its_answer_is_no_error(tmp_path, capfd, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    with serving(tmp_path) as review:
        with monkeypatch.context() as patch:
            patch.setattr(server._Handler, "_answer", gone)
            with pytest.raises(http.client.RemoteDisconnected):
                ask(review.address)
        assert ask(review.address)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_decision_that_cannot_be_taken_down_is_answered_by_why(tmp_path, capfd, monkeypatch):
    def full(*_, **__):
        raise WriteFailed("history.sqlite: database or disk is full.")

    value = json.dumps({"finding": KEYS[0], "decision": "copy"}).encode()
    with serving(tmp_path) as review:
        with monkeypatch.context() as patch:
            patch.setattr(History, "decide", full)
            told = ask(f"{review.address}decide", value)
        assert told == (500, b"history.sqlite: database or disk is full.")
        assert review.decided == {}
        assert ask(f"{review.address}decide", value)[0] == 204
    assert capfd.readouterr().err == ""


def test_a_blinded_reader_sees_no_name_and_no_number(tmp_path):
    for blinded in (True, False):
        with serving(tmp_path, blinded=blinded) as review:
            body = ask(review.address)[1]
        assert (b"a.png" in body, b"0.95" in body) == (not blinded, not blinded)


def test_whoever_has_no_token_or_comes_by_another_name_gets_nothing(tmp_path):
    with serving(tmp_path) as review:
        root = review.address.removesuffix(f"{review.token}/")
        value = json.dumps({"finding": KEYS[0], "decision": "copy"}).encode()
        for path in ("", "decide", "x/", f"x/{KEYS[0]}/training.png", f"{review.token[:-1]}/"):
            assert ask(root + path)[0] == 404
            assert ask(root + path, value)[0] == 404
        assert ask(review.address, host="evil.example")[0] == 404
        assert ask(f"{review.address}decide", value, host="evil.example")[0] == 404
        assert review.server_address[0] == "127.0.0.1"
        assert not review.decided


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"finding": "0000000000000000", "decision": "maybe"}',
        b'{"finding": "9999999999999999", "decision": "copy"}',
        b'{"finding": ["0"], "decision": "copy"}',
        b'{"finding": "0000000000000000", "decision": {"a": 1}}',
        b'{"finding": "0000000000000000", "decision": "copy", "reader": "B"}',
        b" " * 2000,
        b"\xff",
    ],
)
def test_what_is_no_decision_is_refused(tmp_path, body):
    with serving(tmp_path) as review:
        assert ask(f"{review.address}decide", body)[0] == 400
    assert decisions(tmp_path) == {KEYS[3]: {"A": "copy"}}


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(DECISIONS), st.sampled_from(DECISIONS)), min_size=1),
    st.integers(0, 3),
)
def test_the_agreement_of_two_readers_is_that_of_scikit_learn(pairs, alone):
    made = {str(number): {"A": a, "B": b} for number, (a, b) in enumerate(pairs)}
    made |= {f"alone{number}": {"A": "copy"} for number in range(alone)}
    (found,) = agreements(made)
    assert (found.readers, found.findings) == (("A", "B"), len(pairs))
    assert found.same == sum(a == b for a, b in pairs)
    if len({*sum(pairs, ())}) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))


def test_readers_with_no_finding_in_common_are_not_compared():
    assert agreements({"1": {"A": "copy"}, "2": {"B": "copy"}}) == []
