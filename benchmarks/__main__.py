"""Everything: python -m benchmarks [options of benchmarks.peer]

Writes benchmarks/results.json, the results beside it of qwix_lora, depth and devices,
docs/benchmarks.md and docs/benchmarks.png. Leave the machine alone meanwhile. `bank`, `pipeline`,
`minilm`, `plans` and, where a GPU is, `gpu` are commands of their own, whose results the page has
too.
"""

import subprocess
import sys

from benchmarks import flops, peer, report

# Each in a process of its own: they choose their devices before jax starts.
APART = ("qwix_lora", "depth", "devices")


def main() -> None:
    folder = peer.ROOT / "benchmarks"
    path = folder / "results.json"
    results = peer.main(["--json", str(path), *sys.argv[1:]])
    # In a process that is not pinned to cores, and after the timing is over.
    results["flops"] = flops.main([])
    peer.write_results(path, results)
    for name in APART:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=peer.ROOT, check=True)
    report.write(results, peer.ROOT / "docs")


if __name__ == "__main__":
    main()
