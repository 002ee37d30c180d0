"""Stopping on request: a flag first, at once the second time."""

import os
import signal

import pytest

from fqs_jax.runtime.interrupts import SIGNALS, Interrupted, Interrupts


def handlers():
    return [signal.getsignal(signum) for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_remembered(signum, capfd):
    before = handlers()
    with Interrupts() as interrupts:
        interrupts.check("nothing came")
        os.kill(os.getpid(), signum)
        assert interrupts.signum == signum
        with pytest.raises(Interrupted, match="saved at step 3") as stop:
            interrupts.check("saved at step 3")
    assert stop.value.signum == signum
    assert handlers() == before
    note = capfd.readouterr().err
    assert signal.Signals(signum).name in note and "once more stops without saving" in note


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_second_one_stops_at_once(signum):
    before = handlers()
    with pytest.raises(Interrupted, match="without saving") as stop, Interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signum)
        raise AssertionError("went on")
    assert stop.value.signum == signal.SIGTERM
    assert handlers() == before


def test_other_errors_pass_through():
    before = handlers()
    with pytest.raises(KeyError), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        raise KeyError
    assert handlers() == before
