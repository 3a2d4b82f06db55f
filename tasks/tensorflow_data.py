"""seqio and TensorFlow, for data alone: quiet, and without the accelerators.

The other files of this folder take ``seqio`` and ``tf`` from here, so that two things are true
whichever of them is imported first. TensorFlow sees no accelerator: it only feeds data, and would
otherwise take all of a GPU's memory from jax. And it does not greet every run with complaints about
drivers that it is not to use: they come from native code that no setting silences.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def _quiet_native_code() -> Iterator[None]:
    """Holds back what is written to the process's stderr; it is shown after all if all fails."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none, as under a Windows service
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with contextlib.nullcontext() if "tensorflow" in sys.modules else _quiet_native_code():
    import seqio
    import tensorflow as tf

    for _kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError, ValueError):  # somebody else has started them
            tf.config.set_visible_devices([], _kind)
    tf.constant(0)  # the first operation starts the devices

__all__ = ["seqio", "tf"]
