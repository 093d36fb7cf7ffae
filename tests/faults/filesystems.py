"""The real commands on file systems other than a plain disk, killed there, too.

Each is mounted, both commands run on it, and must find what they find on a plain disk. Then they
are killed at random moments and run again, as by `run.py`. A disk that is full, or may not be
written to, must give one line of ours and no result; once there is space, the same command goes on.
Needs root, and of Debian: bindfs btrfs-progs openssh-sftp-server sshfs xfsprogs.

    python tests/faults/filesystems.py
"""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import jobs
from harness import console, parser, write
from run import command_trials
from trials import (
    Command,
    Tally,
    Violation,
    differences,
    not_intact,
    prepare_command,
    reset,
    state,
)

_FORMAT = "truncate -s 400M {back}/disk && mkfs.{kind} -q {back}/disk > /dev/null"
_DISK = f"{_FORMAT} && mount -o loop {{back}}/disk {{at}}"
_LAYERS = "lowerdir={back}/lower,upperdir={back}/upper,workdir={back}/work"
_SFTP = "sshfs -o ssh_command={back}/ssh"
KINDS = {
    "xfs": _DISK,
    "btrfs": _DISK,
    "overlay": "mkdir {back}/lower {back}/upper {back}/work && "
    f"mount -t overlay none -o {_LAYERS} {{at}}",
    "sshfs": r"printf '#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n' > {back}/ssh && "
    f"chmod +x {{back}}/ssh && mkdir {{back}}/far && {_SFTP} far:{{back}}/far {{at}}",
    "owners squashed": "bindfs --force-user=nobody --force-group=nogroup --create-for-user=nobody "
    "{back} {at}",
}
"""How each is mounted at a folder, with another one to keep its content in."""

SPOILED = {
    "full": ("cat /dev/zero > {at}/filler 2> /dev/null || true", "rm {at}/filler"),
    "read-only": ("mount -o remount,ro {at}", "mount -o remount,rw {at}"),
}
"""How one is made to refuse what is written, and how that is repaired."""


def main() -> int:
    """Run every command on every file system, print and write."""
    options = parser(__doc__, {"kills": 5}).parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        inputs = jobs.write_inputs(work / "inputs")
        made = jobs.commands(jobs.real_jobs(inputs, work / "templates"), inputs)[:2]
        for kind, how in KINDS.items():
            with mounted(work, how, kind) as at:
                found[kind] = _tried(at / "root", work / "plain", made, options.kills, options.seed)
        for kind, (spoil, repair) in SPOILED.items():
            with mounted(work, "mount -t tmpfs -o size=20m none {at}", kind) as at:
                found[kind] = _refused(at, made, spoil, repair)
    for kind, tally in found.items():
        console.print(f"{kind}: {tally.trials} trials, {len(tally.violations)} violations")
        for each in tally.violations:
            console.print(f"  {each.job}: {each.text}")
    told = {
        kind: {"trials": tally.trials, "violations": len(tally.violations)}
        for kind, tally in found.items()
    }
    write("filesystems", options, {}, {}, found=told)
    return int(any(tally.violations for tally in found.values()))


@contextmanager
def mounted(work: Path, how: str, kind: str) -> Iterator[Path]:
    """Mount a file system; give the folder where it is."""
    with tempfile.TemporaryDirectory(dir=work) as back:
        at = work / "mounted"
        at.mkdir(exist_ok=True)
        _run(how, back=back, at=at, kind=kind)
        try:
            yield at
        finally:
            _run("umount -l {at}", at=at)


def _run(command: str, **names: object) -> None:
    quoted = {name: shlex.quote(str(value)) for name, value in names.items()}
    subprocess.run(command.format(**quoted), shell=True, check=True)  # noqa: S602 - ours


def _tried(root: Path, plain: Path, made: Sequence[Command], kills: int, seed: int) -> Tally:
    """Run commands, kill them and run them again; what they find must be that of a plain disk."""
    whole = Tally()
    for command in made:
        whole.add(command_trials(root, command, kills, seed))
        here, there = (prepare_command(each, command).rows for each in (root, plain))
        if here != there:
            text = f"finds other rows than on a plain disk: {here - there}, {there - here}"
            whole.violations.append(Violation(command.job.name, "", "", text))
    return whole


def _refused(at: Path, made: Sequence[Command], spoil: str, repair: str) -> Tally:
    """Run commands where nothing can be written, and again after that was repaired."""
    whole, root = Tally(), at / "root"
    for command in made:
        prepared = prepare_command(root, command)
        reset(root, command.job)
        _run(spoil, at=at)
        failure = command.failure(root)
        _run(repair, at=at)
        wrong = not_intact(root, prepared, may_be_aside=False)
        if not failure.startswith("ended with 1: ") or "Traceback" in failure:
            wrong.append(failure or "it ended as if nothing had been refused")
        if failure := command.failure(root):
            wrong.append(f"the run after it {failure}")
        elif differ := differences(prepared.after, state(root, command.job.volatile)):
            wrong.append(f"the run after it ends in another state: {differ}")
        whole.trials += 1
        whole.violations += [Violation(command.job.name, "", "", text) for text in wrong]
    return whole


if __name__ == "__main__":
    sys.exit(main())
