"""Try the methods of mmdet and mmseg on a backbone: ``python tools/zoo.py [mmdet|mmseg|ops] [METHOD ...] [--write]``.

Exit code 1 if a method that was named does not work.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.cli import run_tool

PACKAGES = ("mmdet", "mmseg")
PAGE = Path(__file__).resolve().parents[1] / "docs/zoo.md"


def main() -> None:
    """Try, print, and write the page if asked."""
    parser = argparse.ArgumentParser(
        description="Loss, backward pass, step and prediction of each method of mmdet and mmseg on a backbone."
    )
    parser.add_argument(
        "package",
        nargs="?",
        choices=(*PACKAGES, "ops"),
        help="package whose methods are tried (default: both); ops lists the functions of mmcv's compiled module",
    )
    parser.add_argument("methods", metavar="METHOD", nargs="*", help="name of a folder of configs (default: all)")
    parser.add_argument("--backbone", default="convnext_atto", metavar="NAME", help="backbone (default: convnext_atto)")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/zoo.md too")
    args = parser.parse_args()
    if args.package == "ops" and args.methods:
        parser.error("ops lists all functions: name no method")
    if args.write and args.methods:
        parser.error("--write is for whole tables: name no method")

    # The tasks register themselves, and with them their packages.
    import detection.task  # noqa: F401
    import segmentation.task  # noqa: F401
    from analysis.zoo.ops import ops_markdown
    from analysis.zoo.table import sections, tried, write_section

    if args.package == "ops":
        text = ops_markdown(PACKAGES)
        print(text)
        if args.write:
            write_section(PAGE, "ops", text)
        return
    packages = [args.package] if args.package else PACKAGES
    results = list(tried(packages, args.methods, args.backbone, lambda line: print(line, flush=True)))
    failed = [outcome for _, outcome in results if outcome.reason]
    print(f"{len(results) - len(failed)} of {len(results)} methods work on {args.backbone}")
    if not args.methods:
        for name, text in sections(results, args.backbone).items():
            print(f"\n{text}")
            if args.write:
                write_section(PAGE, name, text)
    elif failed:
        print("\n".join(outcome.trace for outcome in failed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)
