"""``python -m jobs.suites._loopback_ray start ...``: Ray's command line with several nodes on loopback.

Ray binds its ports to loopback only under RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which also makes ``ray start`` refuse a
second node. This lifts that refusal within the command itself; what it starts still has the variable, and listens on
loopback alone (seen with ss -ltnp, Ray 2.60).
"""

from __future__ import annotations

import os
import sys


def _main() -> int:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main

    services.get_node_ip_address = lambda address=None: "127.0.0.1"
    ray_constants.ENABLE_RAY_CLUSTER = True
    main()  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(_main())
