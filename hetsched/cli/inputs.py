"""Finding what a plan file refers to: its cluster, and how it was priced."""

import hashlib
import os
import warnings
from pathlib import Path

from hetsched.cluster import Cluster
from hetsched.cost import COST_MODELS, SERVING_COST_MODELS
from hetsched.cost.account import MEMORY_FRACTION
from hetsched.errors import HetschedError, HetschedWarning
from hetsched.fields import Fields
from hetsched.plan import AnyPlan, ClusterReference, Plan
from hetsched.readers import read_cluster


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hex."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise HetschedError(f"cluster file {path} can't be read: {error.strerror}") from None


def reference_to(cluster: Cluster, path: Path, plan_path: Path | None, offers: Path | None = None) -> ClusterReference:
    """What a plan file says of its cluster; paths are relative to the plan's folder where they share one."""
    more = "" if offers is None else _seen_from(offers, plan_path)
    return ClusterReference(cluster.name, _seen_from(path, plan_path), sha256_of(path), more)


def _seen_from(path: Path, plan_path: Path | None) -> str:
    shown = str(path)
    if plan_path is not None:
        folder, target = plan_path.resolve().parent, path.resolve()
        shared = len(Path(os.path.commonpath([folder, target])).parts) > 1
        shown = os.path.relpath(target, folder) if shared else str(target)
    return Path(shown).as_posix()


def cluster_of(plan: AnyPlan, plan_path: Path, given: Path | None) -> Cluster:
    """The plan's cluster: the file given, else the plan's own, sought beside the plan file and then from here.

    Raises HetschedError where there is none, or it lacks a device of the plan; warns where the file has changed since
    the plan was made.
    """
    cluster = _cluster_of(plan, plan_path, given)
    for pipeline in plan.pipelines:
        for number, stage in enumerate(pipeline.stages):
            missing = [name for name in stage.devices if name not in cluster.index_of]
            if missing:
                raise HetschedError(
                    f"{plan_path.name}: pipeline {pipeline.name}, stage {number}: device {missing[0]!r} is not in "
                    f"cluster {cluster.name}",
                    hint=f"devices are named node/index, e.g. {cluster.devices[0].name}; --cluster FILE takes another "
                    "cluster",
                )
    return cluster


def _cluster_of(plan: AnyPlan, plan_path: Path, given: Path | None) -> Cluster:
    if given is not None:
        return read_cluster(given)
    reference = plan.cluster
    if not reference.path:
        raise HetschedError(
            f"{plan_path.name} does not say which cluster it is for",
            hint='give --cluster FILE, or put "cluster": {"path": "..."} in the plan',
        )
    found = _found(reference.path, plan_path)
    if reference.sha256 and reference.sha256 != sha256_of(found):
        warnings.warn(
            f"{found} has changed since {plan_path.name} was made; prices are for the file as it is now",
            HetschedWarning,
            stacklevel=2,
        )
    return read_cluster(found, _found(reference.offers, plan_path) if reference.offers else None)


def _found(name: str, plan_path: Path) -> Path:
    """The file that a plan names: beside the plan, or from here."""
    places = list(dict.fromkeys((plan_path.parent / name, Path(name))))
    found = next((place for place in places if _is_file(place)), None)
    if found is None:
        sought = " or ".join(repr(str(place)) for place in places)
        raise HetschedError(f"{plan_path.name}: its cluster is not at {sought}", hint="give --cluster FILE")
    return found


def pricing_of(plan: AnyPlan, plan_path: Path, name: str | None, memory_fraction: float | None) -> tuple[str, float]:
    """The cost model and the memory share: those given, else those the plan was made with, else the defaults."""
    made = Fields(plan.provenance, f"{plan_path.name}: provenance")
    models = list(COST_MODELS if isinstance(plan, Plan) else SERVING_COST_MODELS)
    name = name or made.choice("cost_model", models, models[0])
    if name not in models:
        kind = "training" if isinstance(plan, Plan) else "serving"
        raise HetschedError(
            f"{plan_path.name} is a {kind} plan, for which the cost model {name} has no price",
            hint=f"use one of: {', '.join(models)}",
        )
    if memory_fraction is None:
        memory_fraction = made.number("memory_fraction", MEMORY_FRACTION, above=0.0)
        if memory_fraction > 1:
            raise HetschedError(
                f"{made.at('memory_fraction')} is {memory_fraction:g}", hint="a share of the memory, at most 1"
            )
    return name, memory_fraction


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
