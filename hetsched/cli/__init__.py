"""The command line: parse, call, print. `main` is the group that `hetsched` starts.

Nothing heavy is imported before a command runs, so that `--help` and completion are quick.
"""

import click

from hetsched import __version__
from hetsched.cli.catalog import gpus, models, solvers
from hetsched.cli.compare import compare
from hetsched.cli.estimate import estimate
from hetsched.cli.evaluate import evaluate
from hetsched.cli.explain import explain
from hetsched.cli.export import export
from hetsched.cli.group import ErrorsAsMessages
from hetsched.cli.plan_serve import plan_serve
from hetsched.cli.plan_train import plan_train
from hetsched.cli.probe import probe
from hetsched.cli.run import run
from hetsched.cli.simulate import simulate


@click.group(cls=ErrorsAsMessages, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hetsched")
def main() -> None:
    """Plan how a large language model is trained on the GPUs you actually have: mixed, and scattered.

    Describe the GPUs and the network between them in a YAML file, and hetsched finds which GPU should hold which
    layers, says how fast that will be and why, and writes the files that start it.

    \b
    Example:
      hetsched plan-train cluster_specs/home-office.yaml --model gpt2 -o plan.json
      hetsched export plan.json --to torchrun -o launch
    """


for command in (
    plan_train,
    plan_serve,
    evaluate,
    estimate,
    simulate,
    explain,
    compare,
    export,
    run,
    probe,
    gpus,
    models,
    solvers,
):
    main.add_command(command)
