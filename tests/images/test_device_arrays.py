"""Arrays in the memory of a GPU, as other libraries describe them; without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import WithDlpack, WithInterface

from padim_edge.errors import UsageError
from padim_edge.images.device_arrays import DeviceArray, device_array
from padim_edge.images.frames import Frame
from padim_edge.images.preprocess import Preprocess

KINDS = [WithInterface, WithDlpack]
MEMORY = np.zeros((50, 70, 3), np.uint8)
ARRAYS = {
    "whole": MEMORY,
    "with gaps between rows": MEMORY[:, 3:60],
    "one row": MEMORY[7:8],
    "every other": MEMORY[::2, ::3],
    "upside down": MEMORY[::-1],
    "16 bits": np.zeros((4, 6), np.uint16)[:, 1:],
    "float": np.zeros((4, 6), np.float32),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_address_and_layout(kind, array):
    found = device_array(kind(array))
    assert found.address == array.ctypes.data
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.layout.strides == array.strides


@pytest.mark.parametrize("kind", KINDS)
def test_strides_may_be_left_out_where_there_are_no_gaps(kind):
    assert device_array(kind(MEMORY, strides=False)).layout.strides == MEMORY.strides


def test_what_is_in_the_hosts_memory_is_none():
    torch = pytest.importorskip("torch")
    for given in (MEMORY, [1], None, WithDlpack(MEMORY, device=(1, 0)), torch.zeros(2), "path"):
        assert device_array(given) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (WithDlpack(MEMORY, device=(2, 1)), "memory of GPU 1, and engines run on GPU 0"),
        (WithDlpack(MEMORY.astype(bool)), "DLPack's type 6 with 1 lanes: uint8 or uint16"),
        (WithInterface(MEMORY, mask=MEMORY), "has a mask"),
    ],
)
def test_what_no_engine_takes_is_refused(given, reason):
    with pytest.raises(UsageError, match=reason):
        device_array(given)


def test_streams():
    """DLPack's maker is told of ours; of the interface we are told theirs, or must assume one."""
    shared = WithDlpack(MEMORY)
    assert device_array(shared).announce(77) is None
    assert shared.streams == [-1, 77]
    for words, other in (({"stream": 5}, 5), ({"stream": None}, None), ({}, 1)):
        assert device_array(WithInterface(MEMORY, **words)).announce(77) == other


def test_dlpack_is_preferred_because_it_knows_of_streams():
    class Both(WithDlpack, WithInterface):
        pass

    both = Both(MEMORY)
    device_array(both).announce(9)
    assert both.streams == [-1, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_of_them(kind):
    frame = Frame(kind(MEMORY), "bgr")
    assert isinstance(frame.pixels, DeviceArray)
    assert frame.size == (50, 70)
    assert Frame(frame.pixels, "rgb").pixels is frame.pixels
    with pytest.raises(UsageError, match=r"\(50, 70, 3\)|\[50, 70, 3\]; pixels in nv12 are"):
        Frame(kind(MEMORY), "nv12")
    with pytest.raises(UsageError, match=r"array of float32 .* pixels in grey8 are uint8"):
        Frame(kind(ARRAYS["float"]), "grey8")


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu_they_are_refused_in_one_line(kind):
    with pytest.raises(
        UsageError, match=r"frame\.cpu\(\)\.numpy\(\).*engine trt or ort-cuda"
    ) as caught:
        Preprocess.whole((32, 32))(Frame(kind(MEMORY)))
    assert "\n" not in str(caught.value)


def test_reading_a_capsule_leaves_it_to_its_maker():
    shared = WithDlpack(MEMORY)
    for _ in range(3):
        device_array(shared)
    assert shared.freed == 3


class Disguised:
    """A real library's array, on the CPU, said to be on a GPU."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_capsules_of_real_libraries(library):
    array = np.arange(2 * 30 * 40, dtype=np.uint8).reshape(30, 80)[:, 5:60]
    given = array
    if library == "torch":
        given = pytest.importorskip("torch").from_numpy(array)
    found = device_array(Disguised(given))
    assert found.address == array.ctypes.data
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert found.layout.strides == array.strides
