"""Redis as operators run it: behind TLS, watched by Sentinels, as a cluster. Real servers, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from harness.redis_servers import binary_of
from harness.waiting import until_true

PASSWORD = "open sesame/@:%"
ESCAPED = "open%20sesame%2F%40%3A%25"
HOST = "127.0.0.1"


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`; a server that does not answer yet makes it false."""
    return until_true(condition, what, faults=(redis.RedisError, OSError))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Node:
    """One server process on a port, which can be killed, started again and frozen."""

    def __init__(self, port: int, directory: Path, *options: str, password: str = "") -> None:
        self.port = port
        self.directory = directory
        self.directory.mkdir()
        base = (
            "--port",
            str(port),
            "--bind",
            HOST,
            "--dir",
            str(directory),
            "--save",
            "",
            "--appendonly",
            "no",
        )
        self._command = [binary_of("valkey-9"), *base, *options]
        if password:
            self._command += ["--requirepass", password, "--masterauth", password]
        self.client = redis.Redis(
            host=HOST, port=port, password=password or None, socket_timeout=5, retry=Retry(NoBackoff(), 0)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, start_new_session=True)

    def wait(self) -> None:
        """Until it answers."""
        eventually(self.client.ping, f"an answer on port {self.port}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither answers nor goes away."""
        assert self._process is not None, "not started"
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.client.close()


class SentinelSet:
    """A master, a replica and three Sentinels, which find a dead master within a second or two."""

    NAME = "main"

    def __init__(self, directory: Path) -> None:
        one, two, *ports = free_ports(5)
        quick = ("--repl-diskless-sync-delay", "0", "--repl-timeout", "5")
        self.nodes = {
            one: Node(one, directory / "one", *quick, password=PASSWORD),
            two: Node(two, directory / "two", *quick, "--replicaof", HOST, str(one), password=PASSWORD),
        }
        self._first = one
        # One is faster to judge than the others, who follow it: no election is tied.
        self.sentinels = [
            self._sentinel(port, directory / f"sentinel-{port}", quorum=2 if number else 1, after_ms=down)
            for number, (port, down) in enumerate(zip(ports, (1000, 2000, 2000), strict=True))
        ]
        hosts = ",".join(f"{HOST}:{port}" for port in ports)
        self.url = f"redis+sentinel://:{ESCAPED}@{hosts}/{self.NAME}"

    @property
    def master(self) -> Node:
        """The one that all Sentinels name."""
        return self.nodes[eventually(self._agreed, "Sentinels of one mind")]

    @property
    def replica(self) -> Node:
        return next(node for node in self.nodes.values() if node is not self.master)

    def start(self) -> None:
        for node in (*self.nodes.values(), *self.sentinels):
            node.start()
        for node in (*self.nodes.values(), *self.sentinels):
            node.wait()
        for sentinel in self.sentinels:
            # Operators are patient, tests are not. (What a replica has said counts for three periods of info,
            # or five of ping, and must outlast the second between two questions during a failover.)
            for name, period_ms in (("info", 1000), ("ask", 100), ("publish", 100), ("ping", 400)):
                sentinel.client.execute_command("SENTINEL", "DEBUG", f"{name}-period", period_ms)
            # A machine that stalls would stop a Sentinel for half a minute.
            sentinel.client.execute_command("SENTINEL", "DEBUG", "tilt-trigger", 60_000)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Until the replica follows and every Sentinel knows everybody."""

        def whole() -> bool:
            info = self.replica.client.info("replication")
            states = [
                sentinel.client.execute_command("SENTINEL MASTER", self.NAME) for sentinel in self.sentinels
            ]
            return (
                info["role"] == "slave"
                and info["master_link_status"] == "up"
                and all(
                    state["num-slaves"] == 1
                    and state["num-other-sentinels"] == 2
                    and state["flags"] == "master"
                    for state in states
                )
            )

        eventually(whole, "a master, a replica and three Sentinels that know each other")

    def cut_replica_off(self) -> None:
        """What the master takes from now on, the replica never sees."""
        replica = self.replica.client
        replica.config_set("masterauth", "wrong")
        replica.execute_command("CLIENT", "KILL", "TYPE", "master")
        eventually(lambda: replica.info("replication")["master_link_status"] == "down", "a replica cut off")

    def kill_master(self) -> int:
        """SIGKILL; the port of the node that is gone."""
        master = self.master
        master.kill()
        return master.port

    def replace_master(self) -> None:
        """Have the replica promoted while the master lives, which is not told before `heal`."""
        self._publish_every(20_000)  # it is told after four of these periods
        ask = self.sentinels[0].client.execute_command
        eventually(lambda: ask("SENTINEL", "FAILOVER", self.NAME), "a replica good enough")

    def wait_for_other(self, port: int) -> Node:
        """Until all Sentinels name another master than the one on `port`, which says so itself."""

        def promoted() -> Node | None:
            agreed = self._agreed()
            node = self.nodes.get(agreed) if agreed != port else None
            return node if node is not None and node.client.info("replication")["role"] == "master" else None

        return eventually(promoted, "a new master")

    def heal(self) -> None:
        """Start what is dead, as a replica of the master; everybody trusts everybody again."""
        self._publish_every(100)
        master = self.master
        for node in self.nodes.values():
            if node is not master:
                node.kill()
                node.start()
                node.wait()
                node.client.config_set("masterauth", PASSWORD)
                node.client.replicaof(HOST, master.port)
        master.client.config_set("masterauth", PASSWORD)
        self.wait_until_whole()

    def close(self) -> None:
        for node in (*self.sentinels, *self.nodes.values()):
            node.close()

    def _sentinel(self, port: int, directory: Path, *, quorum: int, after_ms: int) -> Node:
        sentinel = Node(port, directory)
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind {HOST}\ndir {directory}\n"
            f"sentinel monitor {self.NAME} {HOST} {self._first} {quorum}\n"
            f'sentinel auth-pass {self.NAME} "{PASSWORD}"\n'
            f"sentinel down-after-milliseconds {self.NAME} {after_ms}\n"
            f"sentinel failover-timeout {self.NAME} 2000\n"
        )
        sentinel._command = [binary_of("valkey-9"), str(config), "--sentinel"]
        return sentinel

    def _publish_every(self, period_ms: int) -> None:
        for sentinel in self.sentinels:
            sentinel.client.execute_command("SENTINEL", "DEBUG", "publish-period", period_ms)

    def _agreed(self) -> int | None:
        ports = {
            int(sentinel.client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.NAME)[1])
            for sentinel in self.sentinels
        }
        return ports.pop() if len(ports) == 1 else None


class Cluster:
    """Three masters, and a replica of the one that has `slot`."""

    def __init__(self, directory: Path, slot: int) -> None:
        free = free_ports(8)
        ports, buses = free[:4], free[4:]
        self.nodes = [
            Node(
                port,
                directory / str(port),
                *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"),
                *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
                *("--cluster-require-full-coverage", "no"),
                password=PASSWORD,
            )
            for port, bus in zip(ports, buses, strict=True)
        ]
        self._buses = buses
        self.slot = slot
        self.url = f"redis+cluster://:{ESCAPED}@" + ",".join(f"{HOST}:{port}" for port in ports[:2])

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait()
        for number, node in enumerate(self.nodes[:3]):
            node.client.execute_command(
                "CLUSTER", "ADDSLOTSRANGE", 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            )
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            self.nodes[0].client.execute_command("CLUSTER", "MEET", HOST, node.port, bus)
        eventually(
            lambda: all(len(self._known(node)) == 4 for node in self.nodes), "nodes that know each other"
        )
        owner = self.owner(self.slot)
        self.nodes[3].client.execute_command("CLUSTER", "REPLICATE", self.id_of(owner))
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Until all nodes are content, and the replica follows."""

        def whole() -> bool:
            for node in self.nodes:
                info = node.client.execute_command("CLUSTER", "INFO")
                if b"cluster_state:ok" not in info or b"cluster_slots_ok:16384" not in info:
                    return False
            roles = [node.client.info("replication") for node in self.nodes]
            followers = [role for role in roles if role["role"] == "slave"]
            return len(followers) == 1 and followers[0]["master_link_status"] == "up"

        eventually(whole, "a whole cluster")

    def owner(self, slot: int) -> Node:
        """The master of `slot`, as all live nodes see it."""

        def agreed() -> Node | None:
            seen = {self._owner_port(node, slot) for node in self.nodes if node._process is not None}
            return next((n for n in self.nodes if n.port in seen), None) if len(seen) == 1 else None

        return eventually(agreed, f"nodes of one mind on slot {slot}")

    def wait_for_other(self, gone: Node) -> Node:
        """Until another than `gone`, which is dead, has the slot."""
        return eventually(
            lambda: (owner := self.owner(self.slot)) is not gone and owner, "another master of the slot"
        )

    def id_of(self, node: Node) -> str:
        return node.client.execute_command("CLUSTER", "MYID").decode()

    def other_than(self, *nodes: Node) -> Node:
        """A master that is none of `nodes`."""
        return next(
            node
            for node in self.nodes
            if node not in nodes and node._process and node.client.info("replication")["role"] == "master"
        )

    def keys(self, pattern: str) -> set[bytes]:
        """What the masters hold."""
        return {
            key
            for node in self.nodes
            if node._process is not None and node.client.info("replication")["role"] == "master"
            for key in node.client.scan_iter(pattern, count=1000)
        }

    def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """From now on what is not (yet) at the source is answered by an ASK."""
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.client.execute_command(
                *("MIGRATE", HOST, target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
            )

    def end_move(self, slot: int, target: Node) -> None:
        for node in (target, *(node for node in self.nodes if node is not target)):
            if node.client.info("replication")["role"] == "master":
                node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _known(self, node: Node) -> list[str]:
        return node.client.execute_command("CLUSTER", "NODES").decode().strip().splitlines()

    def _owner_port(self, node: Node, slot: int) -> int | None:
        for first, last, master, *_ in node.client.execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return int(master[1])
        return None


@contextlib.contextmanager
def sentinel_set() -> Iterator[SentinelSet]:
    with tempfile.TemporaryDirectory(prefix="fp-sentinel-") as directory:
        running = SentinelSet(Path(directory))
        with contextlib.closing(running):
            running.start()
            yield running


@contextlib.contextmanager
def cluster(tag: str = "q") -> Iterator[Cluster]:
    """A cluster with a replica for the keys that are tagged with `tag`."""
    with tempfile.TemporaryDirectory(prefix="fp-cluster-") as directory:
        running = Cluster(Path(directory), key_slot(tag.encode()))
        with contextlib.closing(running):
            running.start()
            yield running


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for this host that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "feedproxy test")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


@contextlib.asynccontextmanager
async def tls_before(target: str, cert: Path, key: Path) -> AsyncIterator[int]:
    """The port of a TLS listener before the unix socket `target`, as stunnel would be."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        inner_reader, inner_writer = await asyncio.open_unix_connection(target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, inner_writer))
                group.create_task(_copy(inner_reader, writer))
        finally:
            relays.discard(task)
            writer.close()
            inner_writer.close()

    server = await asyncio.start_server(relay, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(relays):
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        await server.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
