"""Programs as solvers: the protocol of .npy arrays on standard output."""

import subprocess
import sys

import numpy as np
import pytest

from hadamard.distributed import Program


def _python(code):
    return Program([sys.executable, "-c", code], dt=0.25, t0=1.0)


def test_arrays_come_through_unchanged():
    code = (
        "import numpy as np\n"
        "from hadamard.distributed import write_step\n"
        "for i in range(3):\n"
        "    write_step(np.full((2, 500, 300), {0} + i, dtype='>f8'))"
    )
    got = list(_python(code)(np.array([0.5])))
    assert [t for t, _ in got] == [1.0, 1.25, 1.5]
    for i, (_, field) in enumerate(got):
        np.testing.assert_array_equal(field, np.full((2, 500, 300), 0.5 + i))


def test_any_language_can_write_it():
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
    header += " " * (64 - (10 + len(header) + 1) % 64) + "\n"
    code = (
        "import struct, sys\n"
        f"h = {header!r}.encode()\n"
        "sys.stdout.buffer.write(b'\\x93NUMPY\\x01\\x00' + struct.pack('<H', len(h)) + h + struct.pack('<ff', 1, 2))"
    )
    [(_, field)] = _python(code)(np.array([0.0]))
    assert field.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no convergence')", "ended with exit code 1 after 0 steps: no convergence"),
        ("import os; os.kill(os.getpid(), 9)", "ended with exit code -9 after 0 steps: it said nothing"),
        ("print('hello world')", r"must write arrays in the .npy format and nothing else, got b'hello '"),
        ("import sys; sys.stdout.buffer.write(b'\\x93NUMPY\\x01\\x00\\x10')", "cut short or no array of numbers"),
    ],
)
def test_programs_that_fail(code, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        list(_python(code)(np.array([0.0])))


def test_a_program_that_is_left_alone_ends():
    steps = _python("from hadamard.distributed import write_step\nwhile True: write_step([1.0])")(np.array([0.0]))
    next(steps)
    frame = steps.gi_frame.f_locals["process"]
    steps.close()
    assert frame.poll() is not None


def test_a_command_in_one_string():
    with pytest.raises(TypeError, match="command must be a list"):
        Program("solver --fast")


def test_clients_and_buffers_start_without_torch():
    code = "import sys, hadamard.distributed.buffer_server, hadamard.distributed.clients; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
