"""ranks.py: signals and errors in work that ranks do on their own."""
import signal

import pytest

from ranks import Stop


@pytest.fixture
def stop():
    handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield Stop()
    for signum, handler in handlers:
        signal.signal(signum, handler)


def test_a_signal_ends_local_work_at_once_and_waits_for_other_work(stop):
    """Inside `local` nothing more is done; elsewhere it is remembered, and work that was begun all the same runs to its end without a traceback."""
    stop.immediate, done = False, []
    assert not stop.any_rank()
    with stop.local("first"):
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert stop.any_rank() and stop.signum == signal.SIGINT
    signal.raise_signal(signal.SIGTERM)
    with stop.local("second"):
        done.append("second")
    assert done == ["second"] and stop.any_rank()


def test_an_error_in_local_work_is_kept_and_said_with_what_was_done(stop):
    with stop.local("step 7"):
        raise ValueError("no such thing")
    with pytest.raises(ValueError, match="^step 7: no such thing$"):
        stop.any_rank()
