"""What this machine has to run on."""

import os


def cpu_count() -> int:
    """CPUs that this process may use: fewer than the machine has, where it is pinned or a container limits it."""
    allowed = len(os.sched_getaffinity(0))
    limit = _container_limit()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def _container_limit() -> float | None:
    """CPUs' worth of time that the control group gives, or None where it sets no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
