"""A user's program, which is never run: `make lint` checks its types under mypy's strict rules."""

from dataclasses import replace
from pathlib import Path

import deepssim_scan as scan
from deepssim_scan import QueryConfig, query


class Printed:
    """Progress as a user would write it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Print how far the job is."""
        print(stage, done, total, note)

    def warn(self, text: str) -> None:
        """Print a warning."""
        print(text)


def jobs(folder: Path) -> tuple[int, bool, float]:
    """Call every job."""
    progress: scan.Progress = Printed()
    run = scan.RunContext("cpu", 1, scan.Limits(10.0), progress)
    ingest = scan.IngestConfig(scan.Selection(("*.png",)), scan.ReadOptions(axis=0))
    index = scan.IndexConfig(folder / "encoder", ingest, scan.EmbedConfig(4096), restart=True)
    built: scan.IndexResult = scan.build_index(folder, folder / "index", index, run)
    verdict = scan.VerdictConfig(top_k=3, rule="reference", similar=0.5)
    canaries = scan.CanaryConfig(50, 0.9)
    evidence = scan.EvidenceConfig(4, 1)
    config = QueryConfig(ingest, evidence=evidence, verdict=verdict, canaries=canaries)
    result: scan.QueryResult = query(folder, folder / "index", folder / "report", config, run)
    matches: list[scan.Match] = result.strongest
    checked: scan.Checked = scan.check(folder, progress)
    problems: tuple[scan.Problem, ...] = checked.problems
    checked = scan.repair(folder, scan.RepairConfig(images=folder), run)
    training: scan.TrainingConfig = replace(scan.ADAPTING, steps=scan.SCRATCH.steps)
    trained: scan.Trained = scan.train(folder, folder, scan.TrainConfig(training=training), run)
    after: scan.Assessment = trained.after
    loaded: scan.Checkpoint = scan.load_checkpoint(folder)
    remade: scan.CalibrationResult = scan.calibrate(folder, scan.CalibrateConfig(folder), run)
    calibration: scan.Calibration = remade.calibration
    print(scan.__version__, built.indexed, problems, matches[0].verdict, loaded.fingerprint)
    print(calibration.found(calibration.false_alarm(None)))
    return result.flagged, checked.intact, after.mae


def failures(folder: Path) -> str:
    """Catch every error."""
    try:
        scan.check(folder)
    except (scan.Busy, scan.CheckpointError, scan.Damaged, scan.DependencyMissing):
        return "machine"
    except (scan.Unfinished, scan.InputMissing, scan.StoreMismatch, scan.WriteFailed):
        return "folder"
    except scan.InputError as error:
        return str(error)
    except scan.ScanError as error:
        return str(error)
    return ""


def mistakes(folder: Path) -> None:
    """Make mistakes that a type checker must see: unused ignores are errors."""
    scan.querry(folder)  # type: ignore[attr-defined]
    scan.query(folder)  # type: ignore[call-arg]
    scan.IndexConfig(encoder=1)  # type: ignore[arg-type]
