"""Builds shards from damaged and hostile recordings and scorings, and says what must not have happened.

    python fuzz_build.py EDF FOLDER SEED CASES

Every case is a recording and its scoring, mutated, converted by ``build_shard`` under a limit of time and of address
space, while an audit hook watches every file that is opened for writing, renamed or removed. Prints a JSON summary.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.build_config import load_build_config
from shards.plan import Entry, ShardPlan
from shards.task import build_shard

SECONDS_PER_CASE = 20
ADDRESS_SPACE = 6 << 30
RECORDS = 90  # of one second: three epochs
NUMBERS = [
    b"-1",
    b"0",
    b"1",
    b"7",
    b"99999999",
    b"1e308",
    b"-1e308",
    b"nan",
    b"inf",
    b"",
    b"0.0001",
    b"2147483647",
    b"4294967296",
]
WORDS = [
    b"EDF Annotations",
    b"EEG",
    b"EEG(sec)",
    b"../../x",
    b"\xff\xfe\xfd",
    b"uV",
    b"mV",
    b"\xb5V",
    b"EDF+D",
    b"EDF+C",
    b"\0\n\r",
]
FIXED = [(0, 8), (8, 80), (88, 80), (168, 8), (176, 8), (184, 8), (192, 44), (236, 8), (244, 8), (252, 4)]
WIDTHS = [16, 80, 8, 8, 8, 8, 8, 80, 8, 32]
STAMP = b"+%d\x14\x14\x00"


class TookTooLongError(BaseException):
    """Not an Exception: nothing may swallow it."""


def scoring(seconds: int) -> bytes:
    events = [("Stages|Stages", "Stage 2 sleep|2", 0, seconds), ("Respiratory|Respiratory", "Hypopnea|Hypopnea", 20, 15)]
    body = "".join(
        f"<ScoredEvent>\n<EventType>{kind}</EventType>\n<EventConcept>{concept}</EventConcept>\n"
        f"<Start>{start}</Start>\n<Duration>{length}</Duration>\n</ScoredEvent>\n"
        for kind, concept, start, length in events
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<PSGAnnotation>\n<ScoredEvents>\n{body}</ScoredEvents>\n</PSGAnnotation>\n'
    ).encode()


def short(edf: bytes) -> bytes:
    """The first records of ``edf``."""
    signals = int(edf[252:256])
    begin = 256 * (1 + signals)
    samples = [int(edf[256 + signals * 216 + 8 * n : 256 + signals * 216 + 8 * (n + 1)]) for n in range(signals)]
    return edf[:236] + b"%-8d" % RECORDS + edf[244 : begin + RECORDS * 2 * sum(samples)]


def put(content: bytes, place: int, width: int, value: bytes) -> bytes:
    return content[:place] + value[:width].ljust(width) + content[place + width :]


def flip(rng: random.Random, content: bytes, stop: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(min(stop, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def header_field(rng: random.Random, edf: bytes, signals: int) -> bytes:
    """One field of a header that had ``signals`` signals, replaced."""
    if rng.random() < 0.4:
        place, width = rng.choice(FIXED)
    else:
        column, row = rng.randrange(len(WIDTHS)), rng.randrange(signals)
        width = WIDTHS[column]
        place = 256 + signals * sum(WIDTHS[:column]) + row * width
    value = rng.choice(NUMBERS + WORDS) if rng.random() < 0.8 else b"%d" % rng.randrange(-(10**7), 10**8)
    return put(edf, place, width, value)


def annotated(rng: random.Random, edf: bytes) -> bytes:
    """EDF+D whose first signal is annotations, with time stamps that may lie."""
    signals = int(edf[252:256])
    samples = [int(edf[256 + signals * 216 + 8 * n : 256 + signals * 216 + 8 * (n + 1)]) for n in range(signals)]
    changed = bytearray(put(put(edf, 192, 44, rng.choice([b"EDF+D", b"EDF+C"])), 256, 16, b"EDF Annotations"))
    begin, step, onset = 256 * (1 + signals), 2 * sum(samples), 0
    lie = rng.choice(["none", "jump", "back", "noise", "long"])
    for record in range(RECORDS):
        onset += 1
        if lie == "jump" and rng.random() < 0.05:
            onset += rng.choice([1, 60, 10**5, 10**12])
        if lie == "back" and rng.random() < 0.05:
            onset -= rng.randrange(100)
        text = STAMP % onset if onset >= 0 else b"-%d\x14\x14\x00" % -onset
        if lie == "noise" and rng.random() < 0.3:
            text = rng.randbytes(2 * samples[0])
        if lie == "long":
            text += (STAMP % onset)[:-2] + b"Sleep stage W\x14" * 40
        place = begin + record * step
        changed[place : place + 2 * samples[0]] = text[: 2 * samples[0]].ljust(2 * samples[0], b"\0")
    return bytes(changed)


def mutate_edf(rng: random.Random, edf: bytes) -> bytes:
    signals = int(edf[252:256])
    kinds: list[Callable[[], bytes]] = [
        lambda: flip(rng, edf, 256 * (1 + signals)),
        lambda: flip(rng, edf, len(edf)),
        lambda: header_field(rng, edf, signals),
        lambda: header_field(rng, header_field(rng, edf, signals), signals),
        lambda: edf[: rng.randrange(len(edf))],
        lambda: edf + rng.randbytes(rng.randrange(1, 5000)),
        lambda: edf[: rng.randrange(256, 5000)] + rng.randbytes(2000),
        lambda: annotated(rng, edf),
        lambda: rng.randbytes(rng.randrange(3000)),
        # Four GiB claimed by a file of a kilobyte.
        lambda: put(put(edf[: 256 * (1 + signals)], 236, 8, b"99999999"), 244, 8, b"1"),
    ]
    return rng.choice(kinds)()


def mutate_xml(rng: random.Random, xml: bytes) -> bytes:
    number = rng.choice(NUMBERS)
    kinds: list[Callable[[], bytes]] = [
        lambda: flip(rng, xml, len(xml)),
        lambda: xml[: rng.randrange(len(xml))],
        lambda: xml.replace(b"<Start>0<", b"<Start>" + number + b"<"),
        lambda: xml.replace(b"<Duration>15<", b"<Duration>" + number + b"<"),
        lambda: xml.replace(b"<Duration>90<", b"<Duration>" + rng.choice([number, b"120", b"60", b"30000000"]) + b"<"),
        lambda: xml.replace(b"Stage 2 sleep|2", rng.choice([b"|", b"Stage|99", b"x" * 10_000, b"Stage 3|3|3"])),
        lambda: xml.replace(b"<ScoredEvents>", b"<ScoredEvents>" + b"<a>" * 50_000),
        lambda: xml.replace(b"<ScoredEvents>", b"<ScoredEvents>" + b"<ScoredEvent/>" * 20_000),
        lambda: xml.replace(b"?>\n", b'?>\n<!DOCTYPE a [<!ENTITY b "' + b"c" * 1000 + b'">]>\n').replace(
            b"Hypopnea|", b"&b;" * 99
        ),
        lambda: xml.replace(b"?>\n", b'?>\n<!DOCTYPE a SYSTEM "file:///etc/passwd">\n'),
        lambda: xml.decode().encode("utf-16"),
        lambda: xml.replace(b"UTF-8", rng.choice([b"UTF-7", b"nonsense", b"latin-1"])),
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: b"<" * rng.randrange(1, 100_000),
        lambda: b"",
    ]
    return rng.choice(kinds)()


def watch(allowed: Path, violations: list[str]) -> None:
    """From here on notes whatever is written, moved or removed outside ``allowed``, and any process or connection."""
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
    starting = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    prefix = f"{allowed}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not armed[0]:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & writing and not str(path).startswith(prefix):
                violations.append(f"open {path}")
        elif event in changing and not str(arguments[0]).startswith(prefix):
            violations.append(f"{event} {arguments[0]}")
        elif event in starting:
            violations.append(event)

    armed = [True]
    sys.addaudithook(hook)
    watch.disarm = lambda: armed.__setitem__(0, False)  # type: ignore[attr-defined]
    watch.arm = lambda: armed.__setitem__(0, True)  # type: ignore[attr-defined]


def main() -> None:
    edf, folder, seed, cases = short(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    xml, rng = scoring(RECORDS), random.Random(seed)
    source, out = folder / "source", folder / "out"
    for place in (source, out / "shards"):
        place.mkdir(parents=True)
    config = load_build_config(None, ["cohort=shhs1"])
    recording, scored = source / "shhs1-200001.edf", source / "shhs1-200001-nsrr.xml"

    def convert(number: int) -> dict[str, Any]:
        shard = ShardPlan(f"shard-{number:06d}.tar", (Entry(recording.name, recording.stat().st_size, "night"),))
        build_shard(source, out, shard, config, "fuzz")
        sidecar: dict[str, Any] = json.loads((out / "shards" / f"shard-{number:06d}.json").read_text())
        return sidecar

    recording.write_bytes(edf)
    scored.write_bytes(xml)
    assert convert(0)["records"], "the undamaged case is converted"
    signal.signal(signal.SIGALRM, _ring)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    violations: list[str] = []
    watch(out, violations)
    results: Counter[str] = Counter()
    faults: list[str] = []
    reasons: set[str] = set()
    for number in range(1, cases + 1):
        watch.disarm()  # type: ignore[attr-defined]
        which = rng.random()
        recording.write_bytes(mutate_edf(rng, edf) if which < 0.7 else edf)
        scored.write_bytes(mutate_xml(rng, xml) if which > 0.6 else xml)
        watch.arm()  # type: ignore[attr-defined]
        signal.alarm(SECONDS_PER_CASE)
        try:
            sidecar = convert(number)
            for refusal in sidecar["quarantine"]:
                results[refusal["error"]] += 1
                reasons.add(refusal["reason"])
                if len(refusal["reason"]) < 10 or not refusal["reason"].isprintable() or str(folder) in refusal["reason"]:
                    faults.append(f"case {number}: reason {refusal['reason']!r}")
            for record in sidecar["records"]:
                unscored = record["provenance"]["scoring_refused"]
                results["unscored" if unscored else "converted"] += 1
                if unscored and (len(unscored) < 10 or str(folder) in unscored):
                    faults.append(f"case {number}: scoring not used {unscored!r}")
        except BaseException as error:
            faults.append(f"case {number}: {error!r}")
        finally:
            signal.alarm(0)
        for path in (out / "shards").iterdir():
            path.unlink()
    watch.disarm()  # type: ignore[attr-defined]
    # This process's own peak; getrusage would count that of the one it was started from.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    left = sorted(str(path) for path in folder.rglob("*") if path.is_file() and path not in (recording, scored))
    print(json.dumps({"results": results, "faults": faults, "violations": violations, "peak_mb": peak, "left": left}))


def _ring(*_: Any) -> None:
    raise TookTooLongError


if __name__ == "__main__":
    main()
