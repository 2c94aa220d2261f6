"""Ray session of a process: the first user joins a cluster by its address, or starts one on this machine."""

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
_LOCAL_CPUS = 1  # only for Ray's bookkeeping: an actor sets its own number of threads

_joined = ""
"""Address by which this process last joined a cluster."""


def join_ray(address: str) -> bool:
    """Start Ray or join a cluster, unless this process already has.

    Args:
        address: address of a cluster, as `ray.init` takes it. Empty: use the Ray session of this process, or start
            one on this machine.

    Returns:
        True if this call started or joined it, so that the caller must shut it down.

    Raises:
        ValueError: no cluster answers at the address, or this process has joined another one.
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
        # an interrupt during the start would leave Ray's agents running for a minute
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
        # hides a message that authentication is on
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
    """Raise an OSError if nothing listens at the address. Ray itself would retry for many minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def actor_options(
    address: str, *, num_threads: int, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the `options` of a Ray actor: the cores it requests, and its environment variables.

    Args:
        address: address given to `join_ray`. A cluster has Paceline installed; on this machine the actor runs the
            same code as this process.
        num_threads: number of OpenMP threads, and of cores that the actor requests from a cluster.
        variables: further environment variables.
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
    """Return the informative part of an error message from Ray."""
    text = str(error)
    if "worker process has died" in text:  # Ray adds a page on possible causes
        return "its process died"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)  # the last line has the error, after its traceback
