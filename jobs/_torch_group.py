"""Training workers as a torch process group that listens on their nodes' own addresses alone.

Ray's ``TorchConfig`` leaves the meeting point of a group to torch, whose TCPStore then listens on every interface of
rank 0's node, whatever address it is told (torch 2.15). Here it is given a socket that is bound already.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, and not in its module's __all__
_store: Any = None  # in rank 0's process: the group's meeting point, as long as the process lives


class GroupConfig(TorchConfig):
    """``TorchConfig`` of a group that listens no further than it must."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # shuts the group down as Ray does
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Ray's hook, once every worker's process is there."""
        place = worker_group.execute_single(0, _open_meeting_point)
        size = len(worker_group)
        common = (place, size, backend_config.backend, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *common) for rank in range(size)])


def _open_meeting_point() -> tuple[str, int]:
    """On rank 0: its address, as its Ray node is known to the others, and port."""
    global _store
    address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
    listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    listening.bind((address, 0))
    listening.listen(1024)
    port = int(listening.getsockname()[1])
    _store = _TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return address, port


def _join(rank: int, place: tuple[str, int], size: int, backend: str, timeout_s: int) -> None:
    """On every rank."""
    address, port = place
    timeout = timedelta(seconds=timeout_s)
    if ipaddress.ip_address(address).is_loopback:
        # Both would listen at the address that the machine's name leads to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if "nccl" in backend and "TORCH_NCCL_BLOCKING_WAIT" not in os.environ:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # as Ray sets it: a lost peer ends the call
    store = _store if rank == 0 else _TCPStore(address, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
