"""Everything: python -m benchmarks [options of benchmarks.peer]

Writes benchmarks/results.json, docs/benchmarks.md and docs/benchmarks.png. Leave the machine alone
meanwhile.
"""

import sys

from benchmarks import flops, peer, report


def main() -> None:
    folder = peer.ROOT / "benchmarks"
    path = folder / "results.json"
    results = peer.main(["--json", str(path), *sys.argv[1:]])
    # In a process that is not pinned to cores, and after the timing is over.
    results["flops"] = flops.main([])
    peer.write_results(path, results)
    report.write(results, peer.ROOT / "docs")


if __name__ == "__main__":
    main()
