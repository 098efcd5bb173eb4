"""restkv-eval: what eviction costs in quality, for every method, on the model that the user runs."""

from __future__ import annotations

import click

from ..._version import __version__
from ..options import CONTEXT_SETTINGS
from ..program import Program
from .options import CONVENTION
from .report import report
from .tasks import ROWS, command
from .texts import fidelity, ppl
from .turns import turns

_EPILOG = "Try: restkv-eval niah --contexts 2048,4096 --budgets 256,1024 --methods all --out results"


@click.group(cls=Program, context_settings=CONTEXT_SETTINGS, epilog=_EPILOG, help=f"""What eviction costs in quality.

Every sub-command runs its samples with the full cache and with every method, budget and prefill, and appends one line
per sample and setting to a file. It can be stopped, and go on with --resume. `report` draws what was measured.

{CONVENTION}
""")
@click.version_option(__version__)
def main() -> None:
    pass


for _row in ROWS:
    main.add_command(command(_row))
main.add_command(fidelity)
main.add_command(ppl)
main.add_command(turns)
main.add_command(report)


if __name__ == "__main__":
    main()
