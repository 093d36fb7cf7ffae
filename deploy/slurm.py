"""Start a cluster of SLURM jobs for deepssim-scan, and keep it until this program ends.

    python deploy/slurm.py --workers 40 --file scheduler.json -- --partition=long
    deepssim-scan query --synthetic generated/ --scheduler scheduler.json

What follows `--` are lines of the job script (`#SBATCH ...`). `--print` prints that script and
submits nothing. Needs `pip install dask-jobqueue`, and certificates by `certificates.sh` under
DASK_CONFIG.
"""

import argparse
import signal
from pathlib import Path

from dask_jobqueue import SLURMCluster
from distributed import Security


def main() -> None:
    """Start the cluster, write where its scheduler is, and wait."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8, help="jobs, each of one core (8)")
    parser.add_argument("--memory", default="6GB", help="of a job (6GB)")
    parser.add_argument("--time", default="08:00:00", help="that a job may take (08:00:00)")
    parser.add_argument("--file", type=Path, default=Path("scheduler.json"), help="to be written")
    parser.add_argument("--interface", help="network interface that the nodes share, e.g. ib0")
    parser.add_argument("--print", action="store_true", help="only print the job script")
    parser.add_argument("directives", nargs="*", help="of SLURM, e.g. --partition=long")
    options = parser.parse_args()
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        memory=options.memory,
        protocol="tls://",
        interface=options.interface,
        security=Security(require_encryption=True),
        walltime=options.time,
        job_extra_directives=options.directives,
    )
    with cluster:
        if options.print:
            print(cluster.job_script())
            return
        cluster.scale(options.workers)
        options.file.write_text(f'{{"address": "{cluster.scheduler_address}"}}\n')
        print(f"{options.file}: {cluster.scheduler_address}. Ctrl-C ends the cluster.")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
