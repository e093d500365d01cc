"""Reads what is shipped for Kubernetes, and prints its documents as JSON: {"documents": [...], "wrong": [...]}.

manifests.py read < YAML            documents of a file, each compared with Kubernetes' schema
manifests.py chart DIR < VALUES     the same of a Helm chart with these values, and what `helm lint` says
"""

import json
import sys

import kubernetes_validate
import yaml

SCHEMA = "1.33"


def documents(text, wrong):
    found = [document for document in yaml.safe_load_all(text) if document]
    for document in found:
        # Custom resources are their operators' to check.
        if "monitoring.coreos.com" in document.get("apiVersion", "monitoring.coreos.com"):
            continue
        try:
            kubernetes_validate.validate(document, SCHEMA, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{document['kind']}: {error}")
    return found


def chart(directory, values, wrong):
    import helm_python

    report = helm_python.lint(directory, values, strict=True, namespace="monitoring")
    # 1 only informs.
    wrong.extend(f"lint: {m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1)
    loaded = helm_python.Chart.load(directory)
    try:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="fdtracker", namespace="fdtracker")
    except helm_python.HelmError as error:
        wrong.append(f"render: {error}")
        return []
    manifests = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
    return [document for text in manifests for document in documents(text, wrong)]


def main():
    wrong = []
    if sys.argv[1] == "chart":
        found = chart(sys.argv[2], json.load(sys.stdin), wrong)
    else:
        found = documents(sys.stdin.read(), wrong)
    json.dump({"documents": found, "wrong": wrong}, sys.stdout)


main()
