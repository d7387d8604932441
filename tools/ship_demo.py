"""The reports of `make audit`, put where readers see them: `python tools/ship_demo.py audit-demo`.

Each report goes into nbs/audit/reports/, from where pages show it; the outputs of the first run go into
nbs/audit/audit_log.ipynb, the notebook that every audit with a log is."""

import shutil
import sys
from pathlib import Path

from readme import NBS
from ship import show

KINDS = ("generator", "classifier")
WHO = ("infringing", "innocent")


def main():
    if len(sys.argv) != 2:
        sys.exit("Name the folder of the demonstration: python tools/ship_demo.py audit-demo")
    demo, audit = Path(sys.argv[1]), NBS / "audit"
    reports = {f"{kind}-{who}": demo / kind / who / "report" for kind in KINDS for who in WHO}
    if lacking := [str(p) for p in reports.values() if not (p / "report.json").is_file()]:
        sys.exit(
            f"{lacking[0]} has no report: run make audit, and make audit KIND=classifier, first."
        )
    show(reports["generator-infringing"] / "audit_log.ipynb", audit / "audit_log.ipynb")
    for name, folder in reports.items():
        (audit / "reports" / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "report.json", audit / "reports" / name / "report.json")
        print(name)


if __name__ == "__main__":
    main()
