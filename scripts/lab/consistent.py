#!/usr/bin/env python3
"""What docker/ and manifests/ say twice must be said alike; needs PyYAML.

consistent.py [--write] RENDERED.yaml...   the checks; --write makes prometheus-rule.yaml from alerts.yaml first
consistent.py --expressions                the dashboard's expressions as a rules file, for promtool
"""

import json
import pathlib
import re
import sys

import yaml

COMPONENTS = pathlib.Path("manifests/components")
RULES = COMPONENTS / "prometheus-rule"
RULE_HEAD = """# Made from alerts.yaml by scripts/manifests-check.sh --write.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: perennial
spec:
"""
# Commands that must be the same wherever a server is born a replica of Perennial.
BORN_A_REPLICA = [
    "--replicaof 127.0.0.1 6390", "--replica-serve-stale-data no", "--repl-backlog-size 64mb",
    "--repl-diskless-sync-delay 0", "--protected-mode no", '--save ""', "--appendonly no", "--dir /data",
]

# Metrics that alerts and dashboard know already: until they are there those alerts are silent, and those panels empty.
NOT_YET = set()

problems = []


def check(condition, text):
    if not condition:
        problems.append(text)


def load(path):
    return yaml.safe_load(pathlib.Path(path).read_text())


def dashboard_expressions():
    dashboard = json.loads((COMPONENTS / "dashboard/perennial.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def expressions():
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$instance", ".*")}
        for number, (_, expr) in enumerate(dashboard_expressions())
    ]
    print(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, sort_keys=False, width=1000))


def rule_text():
    lines = (RULES / "alerts.yaml").read_text().splitlines()
    groups = lines[lines.index("groups:"):]
    return RULE_HEAD + "".join(f"  {line}".rstrip() + "\n" for line in groups)


def check_rules():
    check((RULES / "prometheus-rule.yaml").read_text() == rule_text(),
          "prometheus-rule.yaml is not what alerts.yaml makes: scripts/manifests-check.sh --write")
    alerts = [rule for group in load(RULES / "alerts.yaml")["groups"] for rule in group["rules"]]
    operations = pathlib.Path("docs/operations.md").read_text()
    tested = [
        test["alertname"] for case in load(RULES / "alerts.test.yaml")["tests"] for test in case["alert_rule_test"]
        if test["exp_alerts"]
    ]
    for alert in alerts:
        name = alert["alert"]
        check(f"\n### {name}\n" in operations, f"docs/operations.md has no page for the alert {name}")
        check(name in tested, f"alerts.test.yaml never sees {name} fire")
        check(alert["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}", f"{name}: its runbook_url")
    for name in re.findall(r"\n### (Perennial\w+)\n", operations):
        check(name in [alert["alert"] for alert in alerts], f"docs/operations.md has a page for {name}, and there is no such alert")
    return [alert["expr"] for alert in alerts]


def check_metrics(used):
    """Whatever an alert or a panel asks for must be a metric that docs/operations.md lists."""
    listed = set(re.findall(r"`(perennial_\w+)", pathlib.Path("docs/operations.md").read_text()))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for expr in used for name in re.findall(r"\bperennial_\w+", expr)}
    for name in sorted(names - listed - NOT_YET):
        problems.append(f"{name} is used by an alert or by the dashboard, and docs/operations.md does not list it")
    return len(names)


def containers(document):
    spec = document["spec"]["template"]["spec"]
    return spec.get("initContainers", []) + spec["containers"]


def check_rendered(path):
    leaders = 0
    for document in yaml.safe_load_all(pathlib.Path(path).read_text()):
        if document["kind"] != "Deployment":
            continue
        name, pod = document["metadata"]["name"], document["spec"]["template"]["spec"]
        where = f"{pathlib.Path(path).stem}: {name}"
        by_name = {container["name"]: container for container in containers(document)}
        labels = document["spec"]["template"]["metadata"]["labels"]
        for label, value in document["spec"]["selector"]["matchLabels"].items():
            check(labels.get(label) == value, f"{where}: its selector does not select its pods")
        if name not in ("redis-master", "redis-leader"):
            continue
        leaders += 1
        perennial = by_name.get("perennial")
        check(perennial is not None, f"{where}: no perennial beside it")
        redis = next((container for key, container in by_name.items() if key in ("master", "leader")), None)
        if perennial is None or redis is None:
            continue
        check(redis["args"] == ["redis-server", *BORN_A_REPLICA], f"{where}: its redis is started otherwise than elsewhere")
        check(document["spec"]["strategy"] == {"type": "Recreate"}, f"{where}: its strategy is not Recreate")
        check(pod["terminationGracePeriodSeconds"] >= 60, f"{where}: its grace period")
        check("tcpSocket" in redis["livenessProbe"], f"{where}: its liveness must not PING")
        check(perennial["startupProbe"]["httpGet"]["path"] == "/healthz", f"{where}: startup must not wait for a seed")
        check(perennial["readinessProbe"]["httpGet"]["path"] == "/readyz", f"{where}: readiness")
        check(document["spec"]["template"]["metadata"]["annotations"]["perennial/data-set"] == name, f"{where}: its data set's name")
        # $(NAME) is replaced only by what stands before it.
        known = set()
        for variable in perennial["env"]:
            for wanted in re.findall(r"\$\((\w+)\)", variable.get("value", "")):
                check(wanted in known, f"{where}: {variable['name']} uses {wanted} before it is set")
            known.add(variable["name"])
        check(pod["securityContext"].get("runAsNonRoot") is True, f"{where}: may run as root")
        check(pod["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"}, f"{where}: seccomp")
        for key, container in by_name.items():
            context = container.get("securityContext", {})
            check(context.get("allowPrivilegeEscalation") is False and context.get("capabilities") == {"drop": ["ALL"]}
                  and context.get("readOnlyRootFilesystem") is True, f"{where}: {key} is not restricted")
    check(leaders == 1, f"{pathlib.Path(path).stem}: {leaders} leaders")


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["--expressions"]:
        return expressions()
    if arguments[:1] == ["--write"]:
        arguments = arguments[1:]
        (RULES / "prometheus-rule.yaml").write_text(rule_text())
    used = check_rules() + [expr for _, expr in dashboard_expressions()]
    count = check_metrics(used)
    compose = load("docker/compose.yaml")
    check(compose["services"]["redis"]["command"] == ["redis-server", *BORN_A_REPLICA], "compose.yaml: its redis is started otherwise than elsewhere")
    for path in arguments:
        check_rendered(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"consistent: {len(arguments)} kustomizations, {count} metrics used, {len(used)} expressions")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
