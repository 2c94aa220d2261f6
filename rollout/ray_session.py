"""Ray beneath a run: one per process, started on this machine or joined by its address, by whoever needs it first."""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.interrupts import deferring_interrupts

__all__ = ["actor_options", "join_ray", "reason_of"]

_OBJECT_STORE_BYTES = 256 * 2**20
_KNOCK_SECONDS = 10.0
_LOCAL_CPUS = 1  # a bookkeeping unit: how many threads an actor has, it sets itself

_joined = ""
"""The address that this process last joined a cluster by."""


def join_ray(address: str) -> bool:
    """See to it that Ray runs here; returns whether this call began it, and its caller is to shut it down.

    Args:
        address: of a cluster, as `ray.init` takes it; empty: whatever Ray this process has, or one on this machine.

    Raises:
        ValueError: no cluster is there, or this process has joined another one.
    """
    import ray

    global _joined
    if ray.is_initialized():
        if address and address != _joined:
            raise ValueError(
                f"fleet.address must be empty where this process has joined a Ray cluster already, got {address!r}"
            )
        return False
    try:
        # interrupted within, Ray leaves agents behind that look for the rest of it for a minute
        with deferring_interrupts():
            _start(address)
    except BaseException:
        ray.shutdown()
        raise
    _joined = address
    return True


def _start(address: str) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except OSError as error:
            raise ValueError(
                f"fleet.address must be that of a running Ray cluster, got {address!r}: {error}"
            ) from error
    else:
        # says that it is on
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_cpus=_LOCAL_CPUS,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
        )


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself tries again for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def actor_options(
    address: str, *, num_threads: int, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Of an actor, for its `options`: the cores that it asks for, and its environment.

    Args:
        address: as given to `join_ray`. A cluster has our code installed; on this machine the actor runs the very
            code that this process runs.
        num_threads: of OpenMP, and cores that it asks a cluster for.
        variables: of its environment, besides.
    """
    environment = {"OMP_NUM_THREADS": str(num_threads), **(variables or {})}
    if not address:
        root = str(Path(__file__).resolve().parents[1])
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([root, *([inherited] if inherited else [])])
    return {
        "num_cpus": num_threads if address else 0,
        "runtime_env": {"env_vars": environment},
    }


def reason_of(error: Exception) -> str:
    """What is worth knowing of Ray's account of an error."""
    text = str(error)
    if "worker process has died" in text:  # a page on what may kill a process follows
        return "its process died"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)  # what was raised, behind where
