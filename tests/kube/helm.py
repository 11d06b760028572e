"""The real helm, and what it makes of the chart."""

import json
import os
import subprocess

import yaml

from apiserver import TOP, NoBinaries
from lab import LabError

CHART = os.path.join(TOP, "deploy", "helm", "trafficmirror")


def find_helm():
    command = [os.path.join(TOP, "tools", "helm-binary"), "--cached"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode == 2:
        raise NoBinaries(found.stderr.strip())
    if found.returncode != 0:
        raise LabError(found.stderr.strip())
    return found.stdout.strip()


def start(*words, environment=None):
    return subprocess.Popen([find_helm(), *words], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **(environment or {})})


def run(*words, environment=None, check=True):
    """Its output, or the CompletedProcess where `check` is false."""
    with start(*words, environment=environment) as process:
        try:
            out, err = process.communicate(timeout=120)
        except BaseException:
            process.kill()
            raise
    ended = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if not check:
        return ended
    if ended.returncode != 0:
        raise LabError(f"helm {' '.join(words)}: {err.strip()}")
    return out


def major_version():
    return int(run("version", "--short").removeprefix("v").split(".")[0])


def flags_of(values):
    """Of helm's, for {"log.level": "debug"}."""
    return [word for key, value in values.items()
            for word in ("--set-json", f"{key}={json.dumps(value)}")]


def template(values=None, namespace="trafficmirror", release="trafficmirror", kubernetes="1.35.0",
             check=True):
    """The objects that the chart makes, or helm's CompletedProcess where `check` is false."""
    told = run("template", release, CHART, "--namespace", namespace, "--kube-version", kubernetes,
               *flags_of(values or {}), check=check)
    return [thing for thing in yaml.safe_load_all(told) if thing] if check else told


def of_kind(things, kind, name=None):
    """The only one."""
    found = [thing for thing in things
             if thing["kind"] == kind and name in (None, thing["metadata"]["name"])]
    if len(found) != 1:
        raise LabError(f"there are {len(found)} of {kind} {name or ''}")
    return found[0]


def rights_of(things):
    """What roles that are bound allow: {namespace: {(resource, verb, name)}}, with "" for all
    namespaces and None for any name. Of the resource, the group comes first: "apps/deployments"."""
    rules = {(thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"]):
             thing["rules"] for thing in things if thing["kind"] in ("Role", "ClusterRole")}
    rights = {}
    for binding in things:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        namespace = binding["metadata"].get("namespace", "")
        role = binding["roleRef"]
        place = namespace if role["kind"] == "Role" else ""
        for rule in rules[role["kind"], place, role["name"]]:
            for group in rule["apiGroups"]:
                rights.setdefault(namespace, set()).update(
                    (f"{group}/{resource}", verb, name) for resource in rule["resources"]
                    for verb in rule["verbs"] for name in rule.get("resourceNames", [None]))
    return rights
