"""The scoreboard: every training method on the built-in base, scored, as docs/results.md.

    python benchmarks/scoreboard.py --work FOLDER

Started again, it goes on where it was stopped: a job with a score is never done again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scripts")]

from scoreboard.jobs import run_jobs, wanted_jobs
from scoreboard.methods import ROOT, job_of
from scoreboard.report import write_report


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for jobs and scores")
    parser.add_argument("--processes", type=int, default=2, help="jobs at once, a thread each")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of every job")
    parser.add_argument("--only", default="", help="jobs with this in set/method/seed; * is any")
    parser.add_argument("--quick", action="store_true", help="2 steps, 2 prompts: does it run?")
    parser.add_argument("--report", action="store_true", help="run nothing, write the report")
    parser.add_argument("--docs", type=Path, help="where the report goes; docs/ of the project")
    parser.add_argument("--score", metavar="JOB", help="only score this trained job, here and now")
    return parser.parse_args()


def main() -> None:
    """Run what is not done, then write the report."""
    options = parse_arguments()
    work = options.work.resolve()
    if options.score:
        from scoreboard.score import score_job

        score_job(job_of(options.score), work, options.quick)
        return
    failed = []
    if not options.report:
        jobs = wanted_jobs(options.seeds, options.only)
        failed = run_jobs(jobs, work, options.processes, options.quick)
    # A quick run's numbers mean nothing: they must not end up in the documents.
    docs = options.docs or (work / "docs" if options.quick else ROOT / "docs")
    print(f"report: {write_report(work, docs)}")
    if failed:
        sys.exit("\n".join(["these jobs failed; started again, they are tried again:", *failed]))


if __name__ == "__main__":
    main()
