"""ranks.py: signals and errors in work that ranks do on their own."""
import errno
import signal

import pytest
import torch

from ranks import Stop


@pytest.fixture
def stop():
    handlers = [(signum, signal.getsignal(signum)) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield Stop("run.dir = 'runs/a'", "lower sampler.slots")
    for signum, handler in handlers:
        signal.signal(signum, handler)


def test_a_signal_ends_local_work_at_once_and_waits_for_other_work(stop):
    """Inside `interruptible` nothing more is done; elsewhere it is remembered, and work begun then runs to its end."""
    stop.raise_at_once, done = False, []
    assert not stop.any_rank()
    with stop.interruptible("first"):
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert stop.any_rank() and stop.signum == signal.SIGINT
    signal.raise_signal(signal.SIGTERM)
    with stop.interruptible("second"):
        done.append("second")
    assert done == ["second"] and stop.any_rank()


def test_an_error_in_local_work_is_kept_and_said_with_what_was_done(stop):
    with stop.interruptible("step 7"):
        raise ValueError("no such thing")
    with pytest.raises(ValueError, match="^step 7: no such thing$"):
        stop.any_rank()


@pytest.mark.parametrize(("error", "words"), [
    (OSError(errno.ENOSPC, "No space left on device"), "^step 7: run.dir = 'runs/a': no room left to write; make room"),
    (RuntimeError("safetensors: I/O error: File too large (os error 27)"), "^step 7: run.dir = 'runs/a': no room left"),
    (torch.OutOfMemoryError("CUDA out of memory"), "^step 7: out of GPU memory; lower sampler.slots$"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "^step 7: out of GPU memory"),
    (MemoryError(), "^step 7: out of memory; lower sampler.slots$")])
@pytest.mark.parametrize("inside", [True, False])
def test_full_memory_and_disk_are_said_in_words(stop, inside, error, words, capsys):
    """Wherever they happen, without a traceback; any other error comes through as it is."""
    with pytest.raises(ValueError, match=words):
        with stop.users_errors():
            with stop.interruptible("step 7"):
                if inside:
                    raise error
            stop.any_rank()
            raise error
    assert not capsys.readouterr().err
    with pytest.raises(KeyError):
        with stop.users_errors():
            raise KeyError("a defect")
