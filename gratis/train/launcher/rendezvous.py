"""Several machines train one run: what their parents agree on before the ranks start, and after
they ended.

Every machine is given `make train NNODES=2 NODE_RANK=i RDZV=host:port GPUS=8`, alike but for
NODE_RANK. Node 0 keeps a store at host:port, which torchrun's c10d rendezvous then shares. It plans
the run and publishes the plan; the others take it from there and say what differs on theirs, so
that a mistake stops every machine before any rank starts. One machine alone does the same with
nobody to ask, over its loopback, which nobody else reaches. The store asks for no password: the
network of several is trusted."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from threading import Thread
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gratis.errors import INTERRUPTED, PREEMPTED, GratisError
from gratis.train.launcher.exit_status import ExitStatus
from gratis.train.launcher.nodes import POLL_S, Nodes, interface, own_address, wait_for_node_0
from gratis.train.mesh.mesh import listen_on_loopback

LAST_CALL_S = 10  # an elastic run, with machines enough, waits so long for more
SETTLE_S = 10.0  # for the others' report of a failure: theirs may have been the first
STORE_S = 60.0  # an answer of the store; a node 0 that is gone is noticed at once


class Rendezvous:
    """One machine's connection to the store that node 0 keeps."""

    def __init__(self, nodes: Nodes, store: TCPStore, host: str) -> None:
        self.nodes, self._store = nodes, store
        self.endpoint = f"[{host}]:{store.port}" if ":" in host else f"{host}:{store.port}"

    def publish(self, plan: str) -> None:
        """Node 0: what the others are to follow."""
        self._store.set("plan", plan)

    def plan(self) -> str:
        """Others: what node 0 published; GratisError with its message if it could not."""
        nodes = self.nodes
        try:
            answer = self._wait(("plan", "go"), nodes.join_timeout)
        except RuntimeError:
            raise node_0_error(nodes) from None
        if answer is None:
            late = f"had no plan within {nodes.join_timeout:g} s; see what it waits for"
            raise GratisError(f"node 0 at {nodes.rdzv} {late}")
        key, text = answer
        if key == "go" and text:
            raise GratisError(text)
        return text

    @contextmanager
    def errors_shared(self) -> Iterator[None]:
        """A GratisError raised inside ends all machines that have come, each with its message."""
        node = self.nodes.rank
        try:
            yield
        except GratisError as error:
            if node == 0:
                self._refuse(error)
            self._store.set(f"answer/{node}", f"node {node}: {error}")
            raise GratisError(f"node {node}: {error}") from None

    def begin(self) -> None:
        """Returns when all machines are ready; GratisError, the same on each, if one is not, or
        does not come."""
        if self.nodes.rank == 0:
            self._await_others()
            return
        nodes = self.nodes
        try:
            self._store.set(f"answer/{nodes.rank}", "")
            answer = self._wait(("go",), nodes.join_timeout + 2 * LAST_CALL_S)
        except RuntimeError:
            raise node_0_error(nodes) from None
        if answer is None:
            late = f"did not begin within {nodes.join_timeout:g} s"
            raise GratisError(f"node 0 at {nodes.rdzv} {late}")
        if answer[1]:
            raise GratisError(answer[1])

    def _await_others(self) -> None:
        """Node 0: until all have come, or enough of them and a last call is over."""
        nodes, began, enough = self.nodes, time.monotonic(), math.inf
        if nodes.most > 1:
            print(f"waiting for {nodes.most - 1} more at {self.endpoint}")
        while len(come := self._answers()) < nodes.most - 1 and not any(come.values()):
            now = time.monotonic()
            if len(come) + 1 >= nodes.least:
                enough = min(enough, now)
                if now - enough > LAST_CALL_S:
                    break
            elif now - began > nodes.join_timeout:
                missing = ", ".join(str(one) for one in range(1, nodes.most) if one not in come)
                late = f"did not come to {self.endpoint} within {nodes.join_timeout:g} s"
                way_out = "start it, or lower --nnodes"
                few = f"--nnodes {nodes.nnodes}, but node {missing} {late}; {way_out}"
                self._refuse(GratisError(few))
            time.sleep(POLL_S)
        if refused := next(filter(None, come.values()), None):
            self._refuse(GratisError(refused))
        self._store.set("go", "")

    def settle(self, own: ExitStatus) -> ExitStatus:
        """How the run ended for all: of several machines' failures the first, whose consequences
        the others are."""
        if self.nodes.most == 1 or own.code in (0, PREEMPTED, INTERRUPTED):
            return own
        try:
            return self._first_failure(own) if self.nodes.rank == 0 else self._report(own)
        except RuntimeError:  # the store is gone, and node 0 with it
            return status_without("node 0", own)

    def _first_failure(self, own: ExitStatus) -> ExitStatus:
        """Node 0: of all machines'; published for the others."""
        self._store.set("end/0", json.dumps(asdict(own)))
        deadline = time.monotonic() + SETTLE_S
        ends = {0: own}
        for node in (come := [node for node, refused in self._answers().items() if not refused]):
            if answer := self._wait((f"end/{node}",), deadline - time.monotonic()):
                ends[node] = ExitStatus(**json.loads(answer[1]))
        first = min(ends.values(), key=lambda end: end.order)
        if missing := [f"node {node}" for node in come if node not in ends]:
            first = status_without(", ".join(missing), first)
        self._store.set("first", json.dumps(asdict(first)))
        for node in ends.keys() - {0}:  # the store ends with this process
            self._wait((f"read/{node}",), SETTLE_S / 2)
        return first

    def _report(self, own: ExitStatus) -> ExitStatus:
        """Others: to node 0, whose answer is returned."""
        self._store.set(f"end/{self.nodes.rank}", json.dumps(asdict(own)))
        answer = self._wait(("first",), 2 * SETTLE_S)
        self._store.set(f"read/{self.nodes.rank}", "")
        return ExitStatus(**json.loads(answer[1])) if answer else own

    def _answers(self) -> dict[int, str]:
        """By node that has come: empty, or why it cannot begin."""
        answers = {}
        for node in range(1, self.nodes.most):
            if self._store.check([key := f"answer/{node}"]):
                answers[node] = self._store.get(key).decode()
        return answers

    def _refuse(self, why: GratisError) -> NoReturn:
        self._store.set("go", str(why))
        if self.nodes.most > 1:
            # the others look ten times a second, and the store ends with this process
            time.sleep(1.0)
        raise why from None

    def _wait(self, keys: tuple[str, ...], seconds: float) -> tuple[str, str] | None:
        """The first key that is there and its value; None if none comes in time.

        Looks again and again: a signal would not end a wait in C++.
        """
        deadline = time.monotonic() + seconds
        while True:
            for key in keys:
                if self._store.check([key]):
                    return key, self._store.get(key).decode()
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_S)


def node_0_error(nodes: Nodes) -> SystemExit:
    """Node 0 ended, or was taken away, before the ranks started. Nobody's mistake, so the exit code
    is 1 and not 2."""
    return SystemExit(f"error: node 0 at {nodes.rdzv} ended before it had begun; see there why")


def status_without(who: str, own: ExitStatus) -> ExitStatus:
    """The status when machine `who` sends none: `own`, if that has a cause of its own."""
    if own.weight < 2:
        return own
    message = f"error: {who} cannot be reached any more; give the same commands to go on"
    return ExitStatus(code=1, message=message)


def join(nodes: Nodes) -> Rendezvous:
    """Opens the store on node 0, connects to it from the others; GratisError if that fails."""
    host = nodes.address[0]
    local = own_address(nodes) if nodes.rank == 0 else wait_for_node_0(nodes)
    # gloo would take the address that the host's name has: often a loopback one where others must
    # reach it, and another where nobody need
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface(local, host))
    return Rendezvous(nodes, open_store(nodes), host)


def open_store(nodes: Nodes) -> TCPStore:
    """In a thread, as torch would wait for ever for a server of another kind to answer."""
    result: list[TCPStore | Exception] = []

    def connect() -> None:
        host, port = nodes.address
        try:
            socket = listen_on_loopback(host, port) if nodes.rank == 0 else None
            store = TCPStore(
                host,
                port,
                is_master=nodes.rank == 0,
                multi_tenant=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=STORE_S),
                master_listen_fd=socket,
            )
            result.append(store)
        except (RuntimeError, OSError) as error:
            result.append(error)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(min(nodes.join_timeout, STORE_S))
    if not result or isinstance(result[0], Exception):
        why = "what answers there is no node 0 of this run; take another port"
        raise GratisError(f"--rdzv {nodes.rdzv}: {why}")
    return result[0]
