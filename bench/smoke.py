"""One call of an op, forward and backward, against its reference: the first thing to run on a new machine.

    python -m cfmvit.bench.smoke --device cuda --size tiny,small info_nce roi_align

An op that plain PyTorch computes there fails, with the reason why no kernel does.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from cfmvit.bench import gate
from cfmvit.bench.registry import DTYPES, load
from cfmvit.info import choices


def main() -> int:
    """Run the command line; 0 where every op is right."""
    parser = argparse.ArgumentParser(prog="smoke", description=__doc__.split("\n\n")[0])
    parser.add_argument("ops", nargs="+", metavar="OP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="tiny", help="comma-separated")
    options = parser.parse_args()
    wrong = 0
    for op in options.ops:
        chosen, reasons = choices(options.device)[op]
        if chosen == "reference":
            print(f"ERROR {op}: no kernel for {options.device} tensors: {'; '.join(reasons)}")
            wrong += 1
        entry = load()[op]
        for size in options.size.split(","):
            for dtype in entry.dtypes:
                begin = time.monotonic()
                case = replace(entry.case(size, DTYPES[dtype], options.device), peers={})
                found = gate.check(case, DTYPES[dtype])[gate.OURS]
                wrong += not found["passed"]
                print(
                    f"{'ok' if found['passed'] else 'FAILED'} {op} {size} {dtype}, {chosen}: error {found['error']:.1e} "
                    f"(at most {found['tolerance']:.0e}), {time.monotonic() - begin:.1f} s",
                    flush=True,
                )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
