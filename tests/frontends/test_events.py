from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends import zoo
from frontends.datasets import Samples, Split, load, train_and_test
from frontends.events import EVENT_SETS
from frontends.events.aedat import decode_version_2, decode_version_3
from frontends.events.nmnist import decode
from frontends.events.recording import Events, Window, spikes
from hwmodel.errors import CompileError, Loc
from tests.frontends.event_files import (
    HEADING_2,
    Event,
    aedat_2_bytes,
    aedat_3_bytes,
    binned,
    nmnist_bytes,
    packet,
    random_events,
    write_nmnist,
)

LOC = Loc("file")


def drawn(sensor: int, last_us: int) -> st.SearchStrategy[list[Event]]:
    pixel = st.integers(0, sensor - 1)
    event = st.tuples(pixel, pixel, st.integers(0, 1), st.integers(0, last_us))
    return st.lists(event, min_size=1, max_size=60)


def as_tuples(events: Events) -> list[Event]:
    columns = (events.x, events.y, events.is_on.astype(int), events.time_us)
    return [(int(x), int(y), int(on), int(time)) for x, y, on, time in zip(*columns, strict=True)]


@given(events=drawn(34, (1 << 23) - 1))
def test_nmnist_events_are_read_as_written(events: list[Event]) -> None:
    assert as_tuples(decode(nmnist_bytes(events), LOC)) == events


@given(events=drawn(34, 10_000), mark=st.integers(0, 60))
def test_a_mark_in_nmnist_moves_the_clock_on(events: list[Event], mark: int) -> None:
    at = mark % (len(events) + 1)
    written = [*events[:at], (5, 240, 1, 7), *events[at:]]
    later = [(x, y, on, time + 8192) for x, y, on, time in events[at:]]
    assert as_tuples(decode(nmnist_bytes(written), LOC)) == [*events[:at], *later]


def test_a_first_nmnist_event_by_hand() -> None:
    # x 17, y 4, ON, 0x012345 us; x 33, y 33, OFF, 0x7fffff us
    content = bytes([17, 4, 0x81, 0x23, 0x45, 33, 33, 0x7F, 0xFF, 0xFF])
    assert as_tuples(decode(content, LOC)) == [(17, 4, 1, 0x012345), (33, 33, 0, 0x7FFFFF)]


@given(events=drawn(128, (1 << 32) - 1))
def test_aedat_2_events_are_read_as_written(events: list[Event]) -> None:
    assert as_tuples(decode_version_2(aedat_2_bytes(events), LOC)) == events


def test_a_first_aedat_2_event_by_hand() -> None:
    # address: y bits 3, x bits 10, polarity bit 1 (OFF); time 258 us. External events (bit 15) are no pixel's.
    words = bytes([0, 0, 3, 10 << 1 | 1, 0, 0, 1, 2]) + bytes([0, 0, 0x80, 0, 0, 0, 1, 3])
    assert as_tuples(decode_version_2(HEADING_2 + words, LOC)) == [(127 - 3, 127 - 10, 0, 258)]


@given(events=drawn(128, (1 << 31) - 1), cut=st.integers(0, 60), spare=st.integers(0, 3), overflow=st.integers(0, 5))
def test_aedat_3_events_are_read_as_written(events: list[Event], cut: int, spare: int, overflow: int) -> None:
    at = cut % (len(events) + 1)
    parts = [
        packet(events[:at], spare=spare),
        packet([(1, 2, 1, 3)], kind=0),  # of special events, which are left out
        packet([(1, 2, 1, 3)], valid=0),
        packet(events[at:], overflow=overflow),
    ]
    later = [(x, y, on, time + (overflow << 31)) for x, y, on, time in events[at:]]
    assert as_tuples(decode_version_3(aedat_3_bytes(parts), LOC)) == [*events[:at], *later]


def test_a_first_aedat_3_event_by_hand() -> None:
    head = bytes([1, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    word = (100 << 17 | 20 << 2 | 1 << 1 | 1).to_bytes(4, "little")
    content = b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + head + word + bytes([2, 1, 0, 0])
    assert as_tuples(decode_version_3(content, LOC)) == [(100, 20, 1, 258)]


@given(
    events=drawn(128, 100_000),
    timesteps=st.integers(1, 6),
    bin_us=st.integers(1, 30_000),
    size=st.integers(1, 128),
)
@settings(max_examples=60)
def test_spikes_are_events_binned_one_by_one(events: list[Event], timesteps: int, bin_us: int, size: int) -> None:
    x, y, on, time = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    found = spikes(
        Events(x=x, y=y, is_on=on == 1, time_us=time), Window(timesteps=timesteps, bin_us=bin_us, size=size), 128
    )
    np.testing.assert_array_equal(found, binned(events, timesteps=timesteps, bin_us=bin_us, size=size, sensor=128))


def test_nmnist_folder(tmp_path: Path) -> None:
    files = {
        f"{part}/{digit}/{number:05}.bin": random_events(number, 300, sensor=34, last_us=100_000)
        for part, number, digit in [("Train", 3, 0), ("Train", 1, 7), ("Train", 2, 7), ("Test", 1, 9)]
    }
    write_nmnist(tmp_path, files)
    (tmp_path / "Train" / ".cache").mkdir()
    samples = load(f"nmnist:{tmp_path}", split=Split.TRAIN)
    assert samples.x.shape == (3, 15, 2, 34, 34)
    assert samples.y.tolist() == [7, 7, 0]
    for sample, name in zip(samples.x, ("7/00001", "7/00002", "0/00003"), strict=True):
        want = binned(files[f"Train/{name}.bin"], timesteps=15, bin_us=5000, size=34, sensor=34)
        np.testing.assert_array_equal(sample, want)
    assert load(f"nmnist:{tmp_path}", split=Split.TEST).y.tolist() == [9]
    smaller = load(f"nmnist:{tmp_path},timesteps=4,bin_us=20000,size=32,per_class=1", split=Split.TRAIN)
    assert smaller.y.tolist() == [7, 0]
    for sample, name in zip(smaller.x, ("7/00001", "0/00003"), strict=True):
        want = binned(files[f"Train/{name}.bin"], timesteps=4, bin_us=20_000, size=32, sensor=34)
        np.testing.assert_array_equal(sample, want)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    for label, name in enumerate(("airplane", "horse", "truck")):
        (tmp_path / name).mkdir()
        for number in range(21):
            events = random_events(100 * label + number, 20, sensor=128, last_us=60_000)
            (tmp_path / name / f"cifar10_{name}_{number}.aedat").write_bytes(aedat_2_bytes(events))
    return tmp_path


def keys(samples: Samples) -> set[bytes]:
    return {sample.tobytes() for sample in samples.x}


def test_cifar10dvs_splits_each_class(cifar: Path) -> None:
    train, test = train_and_test(f"cifar10dvs:{cifar}")
    assert (train.x.shape, test.x.shape) == ((54, 10, 2, 42, 42), (9, 10, 2, 42, 42))
    assert np.bincount(train.y).tolist() == [18, 0, 0, 0, 0, 0, 0, 18, 0, 18]
    assert np.bincount(test.y).tolist() == [3, 0, 0, 0, 0, 0, 0, 3, 0, 3]
    assert not keys(train) & keys(test)
    assert load(f"cifar10dvs:{cifar}", split=Split.TEST).digest() == test.digest()


def test_cifar10dvs_samples_are_the_files(cifar: Path) -> None:
    train, test = train_and_test(f"cifar10dvs:{cifar}")
    seeds = {0: 0, 7: 100, 9: 200}
    for label, base in seeds.items():
        want = {
            binned(
                random_events(base + number, 20, sensor=128, last_us=60_000),
                timesteps=10,
                bin_us=5000,
                size=42,
                sensor=128,
            ).tobytes()
            for number in range(21)
        }
        assert (
            keys(train.take(np.flatnonzero(train.y == label))) | keys(test.take(np.flatnonzero(test.y == label)))
            == want
        )


GESTURES = "class,startTime_usec,endTime_usec\n1,1000,50000\n11,50000,90000\n3,90001,200000\n"


@pytest.fixture
def gesture(tmp_path: Path) -> Path:
    events = random_events(4, 900, sensor=128, last_us=200_000)
    packets = [packet(events[at : at + 70]) for at in range(0, 900, 70)]
    (tmp_path / "user01_led.aedat").write_bytes(aedat_3_bytes(packets))
    (tmp_path / "user01_led_labels.csv").write_text(GESTURES)
    (tmp_path / "trials_to_train.txt").write_text("user01_led.aedat\r\n\r\n")
    return tmp_path


def test_a_gesture_ends_before_its_last_time(gesture: Path) -> None:
    events = random_events(4, 900, sensor=128, last_us=200_000)
    first, second, third = events[::300]
    (gesture / "user01_led_labels.csv").write_text(f"1,{first[3]},{second[3]}\n2,{second[3]},{third[3]}\n")
    one, two = load(f"dvsgesture:{gesture},timesteps=1,bin_us=200000,size=128", split=Split.TRAIN).x
    assert second[3] not in (events[299][3], third[3])
    np.testing.assert_array_equal(one, binned(events[:300], timesteps=1, bin_us=200_000, size=128, sensor=128))
    np.testing.assert_array_equal(two, binned(events[300:600], timesteps=1, bin_us=200_000, size=128, sensor=128))


def test_dvsgesture_folder(gesture: Path) -> None:
    samples = load(f"dvsgesture:{gesture},bin_us=2000", split=Split.TRAIN)
    assert samples.x.shape == (3, 60, 2, 32, 32)
    assert samples.y.tolist() == [0, 10, 2]
    events = random_events(4, 900, sensor=128, last_us=200_000)
    for sample, (begin, end) in zip(samples.x, [(1000, 50_000), (50_000, 90_000), (90_001, 200_000)], strict=True):
        own = [event for event in events if begin <= event[3] < end]
        np.testing.assert_array_equal(sample, binned(own, timesteps=60, bin_us=2000, size=32, sensor=128))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "has no samples for train"),
        ("class,a,b\n12,1,2\n", r"labels.csv:2: error: class 12 is not in 1..11"),
        ("1,5,5\n", r"labels.csv:1: error: ends at 5 us, begins at 5 us"),
        ("1,5\n", r"labels.csv:1: error: '1,5' is no class, first and last time"),
        ("1,5,x\n", r"is no class, first and last time"),
        ("1,-5,7\n", r"is no class, first and last time"),
        ("1,900000,900001\n", r"labels.csv:1: error: no event is from 900000 to 900001 us in user01_led.aedat"),
    ],
)
def test_tables_of_gestures_that_are_wrong(gesture: Path, table: str, message: str) -> None:
    (gesture / "user01_led_labels.csv").write_text(table)
    with pytest.raises(CompileError, match=message):
        load(f"dvsgesture:{gesture}", split=Split.TRAIN)


def test_gesture_files_that_are_missing(gesture: Path) -> None:
    with pytest.raises(CompileError, match=r"trials_to_test.txt: error: no such file"):
        load(f"dvsgesture:{gesture}", split=Split.TEST)
    (gesture / "user01_led_labels.csv").unlink()
    with pytest.raises(CompileError, match=r"user01_led_labels.csv: error: no such file"):
        load(f"dvsgesture:{gesture}", split=Split.TRAIN)
    (gesture / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat\n")
    (gesture / "user01_led_labels.csv").write_text(GESTURES)
    with pytest.raises(CompileError, match=r"trials_to_train.txt:2: error: 'user02_led.aedat' is no .aedat file"):
        load(f"dvsgesture:{gesture}", split=Split.TRAIN)
    (gesture / "trials_to_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CompileError, match=r"trials_to_train.txt: error: cannot be read"):
        load(f"dvsgesture:{gesture}", split=Split.TRAIN)


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nmnist", "attack-spike-nmnist"), ("cifar10dvs", "attack-spike-cifar10dvs"), ("dvsgesture", "attack-gesture")],
)
def test_the_networks_of_chapter_5_take_these_events(kind: str, network: str) -> None:
    window, entry = EVENT_SETS[kind].window, zoo.entry(network)
    assert (2, window.size, window.size) == entry.input_shape
    assert window.timesteps == entry.timesteps


@pytest.mark.parametrize("kind", list(EVENT_SETS))
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("", "names no folder"),
        (",size=4", "names no folder"),
        ("F,size=129", r"size is 129, the sensor has (34|128) pixels"),
        ("F,size=0", "size is '0', must be a whole number from 1 on"),
        ("F,steps=3", "option 'steps' is not known"),
        ("F,size=3,size=4", "option 'size' is given twice"),
    ],
)
def test_names_that_are_wrong(kind: str, rest: str, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        load(f"{kind}:{rest}", split=Split.TEST)
    assert caught.value.loc.file == f"data {kind}:{rest}"


def test_a_folder_may_have_commas_in_its_name(tmp_path: Path) -> None:
    folder = write_nmnist(tmp_path / "a,b", {"Test/1/00001.bin": [(1, 2, 1, 3)]})
    assert load(f"nmnist:{folder}", split=Split.TEST).x.sum() == 1


def test_more_values_than_memory_is_likely_to_hold(tmp_path: Path) -> None:
    write_nmnist(tmp_path, {"Test/1/00001.bin": [(1, 2, 1, 3)]})
    with pytest.raises(CompileError, match="1 samples hold 2312000000 values") as caught:
        load(f"nmnist:{tmp_path},timesteps=1000000", split=Split.TEST)
    assert "per_class" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"Test: error: no such folder"),
        ({"Test/x.txt": b""}, r"Test: error: holds no class's folder"),
        ({"Test/ten/1.bin": b""}, r"Test/ten: error: is no class's folder"),
        ({"Test/3/1.dat": b""}, r"Test/3: error: holds no .bin file"),
        ({"Test/3/1.bin": b""}, r"Test/3/1.bin: error: holds no events"),
        ({"Test/3/1.bin": bytes(9)}, r"Test/3/1.bin: error: ends inside an event: 9 bytes, 5 each"),
        ({"Test/3/1.bin": bytes([0, 240, 0, 0, 0])}, r"Test/3/1.bin: error: holds no events"),
        ({"Test/3/1.bin": bytes([34, 1, 0, 0, 0])}, r"1.bin: error: event 0 is at x 34, y 1, the sensor has 34 x 34"),
    ],
)
def test_nmnist_folders_that_are_wrong(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CompileError, match=message):
        load(f"nmnist:{tmp_path}", split=Split.TEST)


def test_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "Test/3/1.bin").mkdir(parents=True)
    with pytest.raises(CompileError, match=r"1.bin: error: cannot be read"):
        load(f"nmnist:{tmp_path}", split=Split.TEST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin with '#'"),
        (bytes(16), "does not begin with '#'"),
        (b"#!AER-DAT3.1\r\n" + bytes(8), "is AEDAT 3.1, version 2 is read"),
        (HEADING_2, "holds no events"),
        (b"# no line's end", "holds no events"),
        (HEADING_2 + bytes(12), "ends inside an event: 12 bytes of events, 8 each"),
        (HEADING_2 + bytes([0, 1, 0, 0, 0, 0, 0, 0]), "address 0x10000 is none of a 128 x 128 sensor"),
    ],
)
def test_aedat_2_files_that_are_wrong(content: bytes, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        decode_version_2(content, LOC)


ONE = packet([(1, 2, 1, 3)])


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([], "holds no events"),
        ([packet([])], "holds no events"),
        ([ONE[:20]], "ends inside the header of a packet"),
        ([ONE, ONE[:-1]], "ends inside a packet of 1 events"),
        ([packet([(128, 0, 0, 0)])], "event 0 is at x 128, y 0, the sensor has 128 x 128"),
        ([packet([(1, 2, 1, 3)], overflow=-1)], "a packet says 1 of 1 events of 8 bytes, time overflow -1"),
        ([ONE[:4] + bytes(4) + ONE[8:]], "a packet says 1 of 1 events of 0 bytes"),
        ([ONE[:4] + b"\4\0\0\0" + ONE[8:]], "a polarity event has 4 bytes, not 8"),
        ([ONE[:20] + b"\2\0\0\0" + ONE[24:]], "a packet says 2 of 1 events"),
    ],
)
def test_aedat_3_files_that_are_wrong(packets: list[bytes], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        decode_version_3(aedat_3_bytes(packets), LOC)
