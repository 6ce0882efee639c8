"""Starting all processes of a run on this machine: PyTorch's own launcher, as torchrun has it, without its noise."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from herd.runtime.signals import EXIT_STOPPED


def launch(arguments: Sequence[str], *, processes: int, restarts: int = 0, grace: float = 60.0) -> int:
    """Run `herd ARGUMENTS` in so many processes that form one group; return the exit status of the first that failed.

    restarts: how often all are started again when one has died; each goes on from the newest checkpoint. grace: what
    the processes are given to save and end after a signal, in seconds.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="herd",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="spawn",
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    if hasattr(config, "shutdown_timeout"):  # of PyTorch from 2.13; 30 s before
        config.shutdown_timeout = int(grace) + 5
    try:
        elastic_launch(config, sys.executable)("-m", "herd", *arguments)
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return EXIT_STOPPED if error.sigval in (signal.SIGTERM, signal.SIGUSR1) else 128 + error.sigval
    return 0
