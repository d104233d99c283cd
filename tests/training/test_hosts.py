"""Jobs on two hosts, started by ``launch/node.sh`` as on a cluster: addresses, signals, a host that is lost, and the run that
goes on without it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hosts import LONG, PLAIN, Host, assert_losses, lose, networks, reach, seconds_until
from launching import CONFIG, TOY, environment, family, launch, trace
from ports import free_port

from sleepfm.errors import LostRankError
from sleepfm.training.ranks.preemption import PREEMPTED_STATUS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

NODE = Path(__file__).parents[2] / "launch" / "node.sh"


def two_hosts(folder: Path, arguments: tuple[str, ...], prefixes: tuple[list[str], ...] = ([], []), **more: str) -> list[Host]:
    """Hosts with one process each; ``prefixes`` put each into its own network."""
    (folder / "toy.yaml").write_text(CONFIG)
    common = {"NODES": "127.0.0.1 127.0.0.2", "PROCESSES": "1", "MASTER_PORT": str(free_port())} | more
    command = ["bash", str(NODE), str(TOY), "toy.yaml", *arguments]
    return [
        Host(folder, f"host{rank}", [*prefix, *command], common | {"NODE_RANK": str(rank)})
        for rank, prefix in enumerate(prefixes)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes of one host that nothing disturbs: ``run``, and ``plain``."""
    folder = tmp_path_factory.mktemp("hosts")
    assert launch(folder, 2, *LONG).returncode == 0
    assert launch(folder, 2, *LONG, *PLAIN, "train.output=plain").returncode == 0
    return folder


def test_two_hosts_give_the_trace_of_one(undisturbed: Path) -> None:
    hosts = two_hosts(undisturbed, (*LONG, "train.output=two"))
    assert [host.wait() for host in hosts] == [0, 0], [host.log.read_text() for host in hosts]
    assert trace(undisturbed, "two") == trace(undisturbed)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_restarts_the_job_on_the_other(undisturbed: Path, lost: int) -> None:
    run = f"lost{lost}"
    hosts = two_hosts(undisturbed, (*LONG, *PLAIN, f"train.output={run}"))
    start = seconds_until(undisturbed, run, 1, hosts)
    reach(undisturbed, run, 10, hosts)
    lose(hosts[lost])
    step = trace(undisturbed, run)[-1]["step"]
    other = hosts[1 - lost]
    seconds = seconds_until(undisturbed, run, step + 1, [other])
    print(f"host {lost} lost at step {step}; the first new step after {seconds:.0f} s, of a start after {start:.0f} s")
    # A minute on two idle cores, where a start takes 20 s; what is left also brings the checkpoint into its own layout.
    assert seconds < 2 * start + 20
    assert other.wait() == 0, other.log.read_text()
    assert "start 2 on 1 nodes" in other.log.read_text()
    assert_losses(undisturbed, run)


def test_a_spare_takes_the_place_of_a_lost_host_bit_for_bit(undisturbed: Path) -> None:
    names = " ".join(f"127.0.0.{number}" for number in (1, 2, 3))
    arguments = (*LONG, "train.output=spare")
    hosts = two_hosts(undisturbed, arguments, ([], [], []), NODES=names, SPARES="1")
    reach(undisturbed, "spare", 10, hosts)
    lose(hosts[1])
    assert [hosts[0].wait(), hosts[2].wait()] == [0, 0], hosts[0].log.read_text()
    assert "start 2 on 2 nodes: 127.0.0.1 127.0.0.3" in hosts[2].log.read_text()
    assert trace(undisturbed, "spare") == trace(undisturbed)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_that_comes_back_under_its_number_is_taken_in(undisturbed: Path, lost: int) -> None:
    """As a pod that Kubernetes makes in place of one that it has lost."""
    run = f"back{lost}"
    arguments = (*PLAIN, "train.steps=24", "toy.seconds=2", f"train.output={run}")
    hosts = two_hosts(undisturbed, arguments, REGROUP_SECONDS="10")
    reach(undisturbed, run, 4, hosts)
    lose(hosts[lost])
    step, other = trace(undisturbed, run)[-1]["step"], hosts[1 - lost]
    reach(undisturbed, run, step + 1, [other])
    # With the same environment, in which the port is, and a log of its own.
    back = Host(undisturbed, f"again{lost}", hosts[lost].command, hosts[lost].variables)
    assert [other.wait(), back.wait()] == [0, 0], [other.log.read_text(), back.log.read_text()]
    said = other.log.read_text()
    assert "start 2 on 1 nodes" in said and "1 more nodes are ready; saving and restarting with them" in said
    assert "start 3 on 2 nodes" in said and "start 3 on 2 nodes" in back.log.read_text()
    assert_losses(undisturbed, run)


@pytest.mark.parametrize("how", ["killed", "stopped", "fails"])
def test_a_lost_process_restarts_the_job_on_both_hosts(undisturbed: Path, how: str) -> None:
    run = f"process-{how}"
    failing = ("toy.fail_at=50", f"toy.fail_flag={run}.flag") if how == "fails" else ()
    hosts = two_hosts(undisturbed, (*LONG, *failing, "train.silent_s=10", f"train.output={run}"))
    if how != "fails":
        reach(undisturbed, run, 10, hosts)
        victim = next(process for process in family(hosts[1].process) if "--local_rank=0" in process.cmdline())
        victim.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    assert [host.wait() for host in hosts] == [0, 0], [host.log.read_text() for host in hosts]
    assert all("start 2 on 2 nodes" in host.log.read_text() for host in hosts)
    assert not psutil.pid_exists(victim.pid) if how != "fails" else True
    assert trace(undisturbed, run) == trace(undisturbed)


def test_what_is_lost_again_and_again_ends_the_job(undisturbed: Path) -> None:
    arguments = (*LONG, "toy.fail_at=50", "train.output=again")
    hosts = two_hosts(undisturbed, arguments, MAX_RESTARTS="1")
    assert [host.wait() for host in hosts] == [LostRankError.exit_status] * 2
    assert "1 restarts, and no checkpoint newer than step 4 (MAX_RESTARTS=1)" in hosts[0].log.read_text()
    assert "start 3" not in hosts[0].log.read_text()


def test_what_is_refused_is_not_started_again(undisturbed: Path) -> None:
    hosts = two_hosts(undisturbed, (*LONG, "toy.nan_at=[0,8,16,24,32]", "train.output=refused"))
    assert [host.wait() for host in hosts] == [1, 1]
    hosts = two_hosts(undisturbed, (*LONG, "train.stepz=1", "train.output=wrong"))
    assert [host.wait() for host in hosts] == [2, 2]
    assert all("start 2" not in host.log.read_text() for host in hosts)


@pytest.mark.parametrize("to", ["everything", "the script alone"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_host_saves_on_both_and_asks_for_another_start(
    undisturbed: Path, number: signal.Signals, to: str
) -> None:
    run = f"{number.name}-{to.split()[-1]}"
    hosts = two_hosts(undisturbed, (*LONG, f"train.output={run}"))
    reach(undisturbed, run, 6, hosts)
    if to == "everything":
        hosts[1].signal_all(number)
    else:
        hosts[1].process.send_signal(number)
    assert [host.wait() for host in hosts] == [PREEMPTED_STATUS, PREEMPTED_STATUS], [h.log.read_text() for h in hosts]
    left = trace(undisturbed, run)[-1]["step"]
    assert (undisturbed / run / "checkpoints" / f"step-{left:08d}").is_dir()
    again = two_hosts(undisturbed, (*LONG, f"train.output={run}"))
    assert [host.wait() for host in again] == [0, 0]
    assert trace(undisturbed, run) == trace(undisturbed)


def test_a_script_under_nohup_goes_on_when_the_terminal_is_closed(undisturbed: Path) -> None:
    hosts = two_hosts(undisturbed, (*LONG, "train.output=nohup"), (["nohup"], ["nohup"]))
    reach(undisturbed, "nohup", 6, hosts)
    hosts[0].signal_all(signal.SIGHUP)
    assert [host.wait() for host in hosts] == [0, 0], [host.log.read_text() for host in hosts]
    assert trace(undisturbed, "nohup") == trace(undisturbed)


CABLE = {"NODES": "10.77.0.1 10.77.0.2", "GLOO_SOCKET_IFNAME": "cable"}


def test_hosts_whose_cable_is_pulled_do_not_go_on_both(undisturbed: Path) -> None:
    """Nothing closes: each is silent for the other."""
    with networks() as prefixes:
        arguments = (*LONG, *PLAIN, "train.output=cable", "train.silent_s=10")
        hosts = two_hosts(undisturbed, arguments, prefixes, **CABLE)
        reach(undisturbed, "cable", 10, hosts)
        subprocess.run([*prefixes[1], "ip", "link", "set", "cable", "down"], check=True)
        step, began = trace(undisturbed, "cable")[-1]["step"], time.monotonic()
        # One step may be on its way.
        while (undisturbed / "cable" / "trace.jsonl").read_text().count("\n") < step + 2:
            assert time.monotonic() - began < 300, [host.log.read_text() for host in hosts]
            time.sleep(0.1)
        print(f"cable pulled at step {step}; the second new step after {time.monotonic() - began:.0f} s")
        statuses = [host.wait() for host in hosts]
        # Each tries alone. One holds the folder; the other is refused by it, finds the run done, or has no network.
        assert 0 in statuses and set(statuses) <= {0, 1, LostRankError.exit_status}, [host.log.read_text() for host in hosts]
    assert_losses(undisturbed, "cable")


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables with which ``ssh`` and ``pdsh`` reach 127.0.0.1 and 127.0.0.2 without a password, by an sshd of their own."""
    daemon = shutil.which("sshd") or "/usr/sbin/sshd"
    if os.geteuid() != 0 or not Path(daemon).exists() or not all(shutil.which(name) for name in ("pdsh", "ssh", "ssh-keygen")):
        pytest.skip("needs root, sshd and pdsh (Debian: openssh-server, pdsh)")
    folder, port = tmp_path / "ssh", free_port()
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    server = f"""
    Port {port}
    ListenAddress 127.0.0.1
    ListenAddress 127.0.0.2
    HostKey {folder}/host
    AuthorizedKeysFile {folder}/user.pub
    PermitRootLogin prohibit-password
    StrictModes no
    UsePAM no
    """
    client = f"""
    IdentityFile {folder}/user
    Port {port}
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    """
    (folder / "sshd_config").write_text(server)
    (folder / "ssh_config").write_text(client)
    (folder / "bin").mkdir()
    # The real ssh, with the test's own settings in place of the user's.
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    running = subprocess.Popen([daemon, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        yield {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    finally:
        for process in family(running):
            process.kill()
        running.wait()


def hostfile_job(folder: Path) -> list[str]:
    """The command of a job of two hosts in ``folder``, which pdsh reaches."""
    folder.mkdir()
    (folder / "toy.yaml").write_text(CONFIG)
    (folder / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    needed = environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    (folder / ".deepspeed_env").write_text(
        "".join(f"{n}={needed[n]}\n" for n in ("DS_ACCELERATOR", "OMP_NUM_THREADS", "PYTHONPATH"))
    )
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [launcher, "--hostfile", "hosts", *address, str(TOY), "toy.yaml", *LONG]


def ranks_in(folder: Path) -> list[psutil.Process]:
    ranks = [found for found in psutil.process_iter(["cmdline"]) if str(TOY) in (found.info["cmdline"] or [])]
    return [found for found in ranks if "--local_rank=0" in found.info["cmdline"] and found.cwd() == str(folder)]


# As docs/clusters.md says; the command dies of the signal of a terminal that is closed.
@pytest.mark.parametrize(
    ("to", "number", "status"),
    [
        ("a rank", signal.SIGUSR1, PREEMPTED_STATUS),
        ("the command", signal.SIGTERM, 1),
        ("the command", signal.SIGINT, 1),
        # A terminal that is closed, and one in which Ctrl-C is typed.
        ("the terminal", signal.SIGHUP, -signal.SIGHUP),
        ("the terminal", signal.SIGINT, 1),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_hostfile_and_pdsh_give_the_trace_of_one_host_also_after_a_signal(
    undisturbed: Path, ssh: dict[str, str], tmp_path: Path, to: str, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "pdsh"
    command = hostfile_job(folder)
    first = Host(folder, "first", command, ssh)
    reach(folder, "run", 6, [first])
    own = ranks_in(folder)
    assert len(own) == 2
    if to == "a rank":
        own[1].send_signal(number)
    elif to == "the command":
        first.process.send_signal(number)
    else:
        first.signal_all(number)
    assert first.wait() == status, first.log.read_text()
    assert psutil.wait_procs(own, timeout=40)[1] == []
    left = trace(folder, "run")[-1]["step"]
    assert 6 <= left < 24
    assert (folder / "run" / "checkpoints" / f"step-{left:08d}").is_dir()
    again = Host(folder, "again", command, ssh)
    assert again.wait() == 0, again.log.read_text()
    assert trace(folder, "run") == trace(undisturbed)
