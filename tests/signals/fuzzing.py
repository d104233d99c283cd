"""Hostile recordings, scorings and folders, read in a process that may neither write, connect nor take much memory.

Run as a program: ``fuzzing.py SEED FIRST LAST``, in an empty working folder, prints one JSON report. Case ``n`` of a seed
is always the same, so that a finding is repeated by ``SEED n n+1``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

# Beyond what the process holds before the first case: far below any claim of a hostile header.
EXTRA_BYTES = 300 << 20
CPU_SECONDS = 10.0
# A case that waits for something uses none of the processor; the processor may be busy with others' work.
WALL_SECONDS = 600.0
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
             "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree",
             "pickle.find_class", "exec")  # fmt: skip
NUMBERS = [b"4294967296", b"99999999", b"-1", b"-99999999", b"1e300", b"1e-300", b"nan", b"inf", b"-inf", b"", b"0", b"0.0000001",
           b"1_000", b"0x10", b"\xd9\xa3", b"2147483648", b"7" * 300, b"\xff\xff", b"..", b"%s%n", b"1e9", b"-0"]  # fmt: skip
STAMPS = [b"+9e9\x14\x14\0", b"+1\x1599999999\x14W\x14\0", b"-5\x14\x14\0", b"+" + b"9" * 11, b"+4\x14\x14\0+4\x14N2\x14\0"]
PIECES = [b"<", b">", b"&amp;", b"&x;", b'"', b"\0", b"\t", b",", b"\n", b"...", b"]]>", b"<!--"]
ENCODINGS = ["UTF-7", "utf-32", "rot13", "cp037", "zip", "\0", "utf-8", "latin-1"]
ENDINGS = [b".edf", b".EDF", b".bdf", b"-nsrr.xml", b".xml", b".csv", b"-Hypnogram.edf", b".eannot", b".annot"]


class Hang(BaseException):
    """A case that took too long; no reader may catch it."""


def main(seed: int, first: int, last: int) -> None:
    from made_edf import Made, noise, tal, write_edf
    from made_scorings import FORMATS, Night

    sound: dict[str, bytes] = {}
    for variant in ("EDF", "EDF+C", "EDF+D", "BDF", "BDF+D"):
        annotated = "+" in variant
        stamps = [tal(f"+{2 * i}") + tal(f"+{2 * i}", "30", "Sleep stage W") for i in range(20)] if annotated else None
        signals = [Made("EEG", noise(2000), 100), Made("SaO2", noise(20), 1, "%"), Made("EMG", noise(4000), 200)]
        path = Path("sound")
        write_edf(path, signals, seconds="2", bdf=variant.startswith("BDF"), variant=variant if annotated else "", stamps=stamps)
        sound[variant] = path.read_bytes()
    night = Night((0, 1, 2, 3, -1, 4, 2, 0, 0, 1), (("hypopnea", 70.5, 20.0), ("arousal", 100.0, 5.0)))
    for name, (write, _) in FORMATS.items():
        write(night, path)
        sound[name] = path.read_bytes()
    path.unlink()
    makers: list[tuple[Callable, Callable]] = [
        (lambda rng: mutated_edf(rng, sound), read_as_recording),
        (lambda rng: claiming_edf(rng, sound), read_as_recording),
        (lambda rng: mutated_text(rng, [sound[name] for name in FORMATS]), read_as_scoring),
        (hostile_text, read_as_scoring),
        (lambda rng: folder_of_names(rng, sound), read_as_folder),
    ]
    weights = [0.38, 0.1, 0.34, 0.1, 0.08]
    Path("cases").mkdir()
    warm_up(sound)
    report: dict = {"cases": 0, "outcomes": Counter(), "failures": [], "slowest": 0.0}
    limit_memory()
    guard = Guard()
    for number in range(first, last):
        rng = np.random.default_rng([seed, number])
        make, read = makers[rng.choice(len(makers), p=weights)]
        place = Path("cases") / str(number)
        place.mkdir()
        content = make(rng)
        lay(place, content)
        began = time.process_time()
        outcome = guard.run(partial(read, place))
        report["slowest"] = max(report["slowest"], time.process_time() - began)
        report["cases"] += 1
        report["outcomes"][f"{read.__name__}: {outcome.split(':')[0]}"] += 1
        if outcome.startswith("FAILURE"):
            report["failures"].append(f"case {number}: {read.__name__}: {outcome}")
        clear(place)
    # This process's own peak; getrusage would count that of the one it was started from.
    status = Path("/proc/self/status").read_text().splitlines()
    report["peak_mib"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    print(json.dumps(report))


def warm_up(sound: dict[str, bytes]) -> None:
    """Read what is sound, so that modules and cohort rules are loaded before memory is limited and the cases are watched."""
    import mne.filter  # noqa: F401  a filter's design imports it
    import scipy.signal  # noqa: F401  rates that the sound recording does not have are resampled by it

    sys.dont_write_bytecode = True
    place = Path("warm")
    place.mkdir()
    (place / "shhs1-200001.edf").write_bytes(sound["EDF"])
    (place / "shhs1-200001-nsrr.xml").write_bytes(sound["nsrr.xml"])
    read_as_folder(place)
    clear(place)


class Guard:
    """Runs a case with its time bounded and every write, start of a program or connection noted."""

    def __init__(self) -> None:
        self.watching = False
        self.noted: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._expired)
        signal.signal(signal.SIGALRM, self._expired)

    def run(self, read: Callable[[], None]) -> str:
        from sleepfm.errors import SleepFMError

        self.noted = []
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        self.watching = True
        try:
            read()
            outcome = "read"
        except SleepFMError as error:
            outcome = type(error).__name__ if str(error) else "FAILURE: an error without a reason"
        except Hang:
            outcome = "FAILURE: too slow"
        except BaseException as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
            outcome = f"FAILURE: {type(error).__name__} {str(error)[:200]!r} at {where}"
        finally:
            self.watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        return f"FAILURE: it did {self.noted[:3]}" if self.noted else outcome

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        # An installed module that is only now imported (a codec that XML names) is no code of the case's.
        installed = event == "exec" and getattr(arguments[0], "co_filename", "").startswith(
            (sys.prefix, sys.base_prefix, "<frozen")
        )
        if writes or (event in FORBIDDEN and not installed):
            self.noted.append(f"{event} {str(arguments)[:100]}")

    def _expired(self, *_: object) -> None:
        raise Hang


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + EXTRA_BYTES, held + EXTRA_BYTES))


def lay(place: Path, content: bytes | Callable[[Path], None]) -> None:
    if isinstance(content, bytes):
        (place / "case").write_bytes(content)
    else:
        content(place)


def clear(folder: Path) -> None:
    for entry in os.scandir(os.fsencode(folder)):
        if entry.is_dir(follow_symlinks=False):
            clear(Path(os.fsdecode(entry.path)))
        else:
            os.unlink(entry.path)
    os.rmdir(folder)


# How cases are read.


def read_as_recording(place: Path) -> None:
    from sleepfm.signals.examine import examine
    from sleepfm.signals.recording import read_recording

    recording = read_recording(place / "case")
    for index, info in enumerate(recording.signals):
        if not info.problem:
            samples = recording.read(index)
            assert samples.dtype == np.float32 and len(samples) == info.n_samples
    examine(place / "case")


def read_as_scoring(place: Path) -> None:
    from datetime import datetime

    from sleepfm.signals.scorings.labels import LABEL_EVENTS, event_labels, stage_labels
    from sleepfm.signals.scorings.reader import read_scoring
    from sleepfm.signals.scorings.reconcile import reconcile

    scoring = read_scoring(place / "case", datetime(2016, 2, 3, 22, 58, 47), 300.0)
    scoring = reconcile(scoring, 300.0, "cut", "case")
    assert np.isin(stage_labels(scoring, 10), range(-1, 5)).all()
    for types in LABEL_EVENTS.values():
        assert len(event_labels(scoring, 10, types)) == 10


def read_as_folder(place: Path) -> None:
    from sleepfm.signals.discover import discover
    from sleepfm.signals.doctor import examine_recordings

    for finding in examine_recordings(discover(place), place, None):
        assert finding.refused or finding.epochs


# Cases.


def mutated_edf(rng: np.random.Generator, sound: dict[str, bytes]) -> bytes:
    data = bytearray(sound[rng.choice(["EDF", "EDF+C", "EDF+D", "BDF", "BDF+D"])])
    # Widths of fields by their place: the fixed part, then the signals' (256 bytes each, by field).
    places = [(0, 8), (8, 80), (88, 80), (168, 8), (176, 8), (184, 8), (192, 44), (236, 8), (244, 8), (252, 4)]
    signals = int(data[252:256])
    at = 256
    for width in (16, 80, 8, 8, 8, 8, 8, 80, 8, 32):
        places += [(at + i * width, width) for i in range(signals)]
        at += width * signals
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(7)
        if kind <= 2:
            begin, width = places[rng.integers(len(places))]
            value = NUMBERS[rng.integers(len(NUMBERS))][:width].ljust(width)
            data[begin : begin + width] = value
        elif kind == 3:
            data[rng.integers(min(len(data), at + 2000))] = rng.integers(256)
        elif kind == 4:
            del data[rng.integers(200, len(data) + 1) :]
        elif kind == 5:
            begin = int(rng.integers(len(data) + 1))
            data[begin:begin] = rng.bytes(int(rng.integers(1, 64)))
        else:
            begin = int(rng.integers(at, max(at + 1, len(data))))
            data[begin : begin + 12] = rng.choice(
                [b"+9e9\x14\x14\0", b"+1\x1599999999\x14W\x14\0", b"-5\x14\x14\0", b"+" + b"9" * 11]
            )
        if len(data) < 300:
            break
    return bytes(data)


def claiming_edf(rng: np.random.Generator, sound: dict[str, bytes]) -> bytes:
    """A file of a KiB or so whose header claims gigabytes."""
    data = bytearray(sound[rng.choice(["EDF", "EDF+D", "BDF"])][: int(rng.integers(1024, 2048))])
    signals = int(data[252:256])
    for _ in range(rng.integers(1, 4)):
        value = str(int(rng.choice([2**31, 99_999_999, 2**24, 65_536]))).encode()[:8].ljust(8)
        kind = rng.integers(4)
        if kind == 0:
            data[236:244] = value
        elif kind == 1:
            data[252:256] = rng.choice([b"9999", b"4   ", b"7   "])
        elif kind == 2:
            begin = 256 + signals * 216 + 8 * int(rng.integers(signals))
            data[begin : begin + 8] = value
        else:
            data[244:252] = rng.choice([b"604800  ", b"1e-6    ", b"0.000001", b"99999999"])
    return bytes(data)


def mutated_text(rng: np.random.Generator, texts: list[bytes]) -> bytes:
    data = bytearray(texts[rng.integers(len(texts))])
    for _ in range(rng.integers(1, 6)):
        if not data:
            break
        kind = rng.integers(7)
        at = int(rng.integers(len(data)))
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            data[at:at] = NUMBERS[rng.integers(len(NUMBERS))]
        elif kind == 3:
            end = at + int(rng.integers(1, 200))
            data[at:at] = data[at:end] * int(rng.integers(1, 50))
        elif kind == 4:
            digits = [i for i, value in enumerate(data) if 48 <= value <= 57]
            if digits:
                place = digits[rng.integers(len(digits))]
                data[place : place + 1] = NUMBERS[rng.integers(len(NUMBERS))]
        elif kind == 5:
            del data[at:]
        else:
            data[at:at] = rng.choice(
                np.array([b"<", b">", b"&amp;", b"&x;", b'"', b"\0", b"\t", b",", b"\n", b"...", b"]]>", b"<!--"])
            )
    return bytes(data)


def hostile_text(rng: np.random.Generator) -> bytes:
    many = int(rng.integers(1, 400_000))
    expansion = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 20}">' for i in range(1, 12))
    stage = "<ScoredEvent><EventType>Stages</EventType><EventConcept>Wake|0</EventConcept>"
    texts: list[Callable[[], str | bytes]] = [
        lambda: f'<!DOCTYPE x [<!ENTITY e0 "ha">{expansion}]><PSGAnnotation>&e11;</PSGAnnotation>',
        lambda: '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///dev/zero">]><PSGAnnotation>&e;</PSGAnnotation>',
        lambda: '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><CMPStudyConfig/>',
        lambda: '<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><CMPStudyConfig/>',
        lambda: "<PSGAnnotation>" + "<a>" * many + "</a>" * many + "</PSGAnnotation>",
        lambda: "<PSGAnnotation " + " ".join(f'a{i}="1"' for i in range(many // 4)) + "/>",
        lambda: "<PSGAnnotation>" + "<a/>" * (2 * many) + "</PSGAnnotation>",
        lambda: f"<PSGAnnotation>{stage}<Start>{'9' * many}</Start><Duration>1</Duration></ScoredEvent></PSGAnnotation>",
        lambda: f"<PSGAnnotation>{stage}<Start>1e999</Start><Duration>-1</Duration></ScoredEvent></PSGAnnotation>",
        lambda: f"<PSGAnnotation>{'<EventConcept>' + 'x' * many}</EventConcept></PSGAnnotation>",
        lambda: "<CMPStudyConfig><EpochLength>1e-9</EpochLength><SleepStages>" + "<SleepStage>2</SleepStage>" * (many // 8),
        lambda: "<CMPStudyConfig><EpochLength>1e300</EpochLength>" + "<SleepStage>2</SleepStage>" * 2 + "</CMPStudyConfig>",
        lambda: ('<?xml version="1.0" encoding="' + ENCODINGS[rng.integers(len(ENCODINGS))] + '"?><a/>'),
        lambda: "W\n" * many,
        lambda: "W" * many,
        lambda: "onset,duration,description\n" + "0,1e9,hypopnea\n" * (many // 8) + "0,30,W\n",
        lambda: "onset,duration,description\n" + '"' + "0,30,W\n" * many,
        lambda: "," * many,
        lambda: "onset,duration,stage\n" + "\n" * many + "0,30," + "9" * 5000 + "\n",
        lambda: "class start stop\n" + "W e:999999:1e99 +1e300\n" * 4,
        lambda: "W 0 ...\n" * (many // 8),
        lambda: "W\t" + "1" * many + "\t...\n",
        lambda: "#" * many + "\nW\n",
        lambda: "# " + "1:N1," * (many // 8) + "\n1\n",
        lambda: "Start Time,Duration,Event\n" + "99/99/9999 99:99:99,30,Wake\n" * 3,
        lambda: "Start Time,Duration,Event\n" + "31/12/9999 23:59:59.999999999,30,Wake\n" * 3,
        lambda: "Start Time,Duration,Event\n23:59:60,30,Wake\n24:00:00,30,Wake\n",
        lambda: ("Heure de début,Événement,Durée\n" + "01/01/0001 00:00:00,N1,30\n").encode("utf-16")[: int(rng.integers(2, 80))],
        lambda: b"\xff\xfe" + rng.bytes(int(rng.integers(0, 4000))),
        lambda: b"\xef\xbb\xbf" + rng.bytes(int(rng.integers(0, 4000))),
        lambda: rng.bytes(int(rng.integers(0, 4000))),
        lambda: "٣\n٣\n",
        lambda: "²\n½\n",
        lambda: ("a" * 40 + "\t") * (many // 40),
        lambda: "1" + "e" * many,
        lambda: "0 1 2 " * many,
        lambda: "22:00:00 x\n" + "\n" * many,
        lambda: "22:00:00 STAGE - W\n22:00:30 a" + " " * many + "!\n",
        lambda: "22:00:00\tSTAGE - W\n" * (many // 8),
        lambda: "# " + "1" * many + "\n1\n",
        lambda: "onset,stage," + " (" * many + "\n0,W\n",
        lambda: '"' + "x" * many,
        lambda: "ab\n" * (4 * many),
        lambda: "W" + "\r" * many,
    ]  # fmt: skip
    text = texts[rng.integers(len(texts))]()
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def folder_of_names(rng: np.random.Generator, sound: dict[str, bytes]) -> Callable[[Path], None]:
    stems = [b"..", b"...", b"a..b", b"-rf", b"*", b"[x]", b"{stem}", b"%(x)s", b"\xff\xfe", b"\xe9", "ü".encode(), b"new\nline",
             b"x" * 240, b"shhs1-1", b"SC4001E0-PSG", b"~", b"$HOME", b" ", b"a;b", b"shhs1-..",
             b"\\..\\..\\x", b"con"]  # fmt: skip
    links = [
        b"/etc/passwd",
        b"/dev/zero",
        b"/dev/stdin",
        b"..",
        b".",
        b"loop.edf",
        b"/nowhere",
        b"../../..",
        b"pipe.edf",
        b"/proc/self/mem",
    ]
    contents = [sound["EDF"], sound["EDF+D"], sound["BDF"], b"", sound["nsrr.xml"], sound["aasm.edf"], sound["EDF"][:700]]
    chosen = [
        (
            stems[rng.integers(len(stems))],
            [b".edf", b".EDF", b".bdf", b"-nsrr.xml", b".xml", b".csv", b"-Hypnogram.edf", b".eannot", b".annot"][
                rng.integers(9)
            ],
            int(rng.integers(5)),
            contents[rng.integers(len(contents))],
            links[rng.integers(len(links))],
        )
        for _ in range(rng.integers(1, 7))
    ]

    def make(place: Path) -> None:
        root = os.fsencode(place)
        for stem, ending, kind, content, link in chosen:
            name = os.path.join(root, (stem + ending).replace(b"/", b"_"))
            if os.path.lexists(name):
                continue
            if kind == 0:
                os.symlink(link, name)
            elif kind == 1 and ending.endswith((b"df", b"DF")):
                os.mkfifo(name)
            elif kind == 2:
                os.mkdir(name)
                with open(os.path.join(name, b"in.edf"), "wb") as file:
                    file.write(content)
            else:
                with open(name, "wb") as file:
                    file.write(content)
        if not os.path.lexists(os.path.join(root, b"loop.edf")):
            os.symlink(b"loop.edf", os.path.join(root, b"loop.edf"))

    return make


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
