"""``python -m benchmarks.peers``: trains peers for equal times; ``--speed`` times them, ``--judge`` makes the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .settings import CONFIG, Study


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a try is not finished."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    one, judging, speed, config = (vars(options).pop(key) for key in ("one", "judge", "speed", "config"))
    try:
        study = Study.read(config, **vars(options))
        if one:
            from .training import train_try

            train_try(study, study.at(one[0], float(one[1]), float(one[2])))
        elif judging:
            from .judging import judge
            from .table import write_table

            judge(study)
            print(write_table(study))
        elif speed:
            from .speed import measure_speeds

            measure_speeds(study)
        else:
            from .runner import run_tries

            failed = run_tries(study, words)
            for name, reason in failed.items():
                print(f"{name}: {reason}", file=sys.stderr)
            return 1 if failed else 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--config", default=str(CONFIG), help="settings; the options below win over them")
    parser.add_argument("--data", help="file of showers, split by primary")
    parser.add_argument("--floor", help="the same primaries simulated with another seed")
    parser.add_argument("--shape_floor", help="the same with the photon sums of the data (match_sums)")
    parser.add_argument("--out", help="folder of the results; finished tries in it are skipped")
    parser.add_argument("--peers", nargs="+", help="names in the settings; all if not given")
    parser.add_argument("--minutes", nargs="+", type=float, help="training times, each a training of its own")
    parser.add_argument("--tune_minutes", type=float, help="choose learning rates at this time for all times")
    parser.add_argument("--threads", type=int, help="threads of a training or judgement")
    parser.add_argument(
        "--answer_threads", type=int, help="threads of a trained model that answers; threads by default"
    )
    parser.add_argument("--jobs", type=int, help="how many run at once")
    parser.add_argument("--limit_minutes", type=float, help="end after that long; what is unfinished is recorded")
    parser.add_argument("--rows", type=int, help="test rows that are judged")
    parser.add_argument("--validation_rows", type=int, help="validation rows that choose learning rates")
    parser.add_argument("--seed", type=int, help="seed of everything random")
    parser.add_argument("--classifier_seeds", type=int, help="trainings of each judge")
    parser.add_argument("--speed", action="store_true", help="measure the time per response of what is trained")
    parser.add_argument("--judge", action="store_true", help="judge what is trained and write table and picture")
    parser.add_argument("--one", nargs=3, metavar=("PEER", "MINUTES", "LR"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
