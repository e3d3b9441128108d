"""`hetsched export`: write what starts a plan."""

from pathlib import Path

import click

from hetsched.cli.options import OneOf, exporter_names, plan_argument


@click.command("export", short_help="Write the files that start a plan.")
@plan_argument
@click.option("--to", "launcher", required=True, type=OneOf(exporter_names), help="What starts it.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write into."
)
@click.option("-q", "--quiet", is_flag=True, help="Do not list the files.")
def export(plan_path: Path, launcher: str, output: Path, quiet: bool) -> None:
    """Write the files that start PLAN into the folder DIR, which is made where it is missing.

    torchrun, of a training plan: a script for each node, the plan, and a README.txt that says what to do with them.
    nginx, of a serving plan: a router that shares requests among the replicas as the plan says; where prefill and
    decode stand apart, with a router of SGLang's or vLLM's for each route behind it, so that each pair has its share.
    sglang, vllm: that, and for each node a script that starts its replicas.

    \b
    Examples:
      hetsched export plan.json --to torchrun -o launch
      hetsched export serving.json --to sglang -o launch
    """
    from hetsched.cli.output import say
    from hetsched.errors import HetschedError
    from hetsched.exporters import EXPORTERS, SERVING_EXPORTERS
    from hetsched.files import write_text
    from hetsched.readers import read_plan, read_serving_plan

    if launcher in EXPORTERS:
        files = EXPORTERS[launcher](read_plan(plan_path))
    else:
        files = SERVING_EXPORTERS[launcher](read_serving_plan(plan_path))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HetschedError(f"{output} can't be made: {error.strerror}", hint="name a folder, e.g. launch") from None
    for name, content in files.items():
        path = output / name
        write_text(path, content)
        if content.startswith("#!"):
            path.chmod(path.stat().st_mode | 0o111)
    if not quiet:
        say("\n".join(f"written: {output / name}" for name in files))
