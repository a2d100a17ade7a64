"""Checks of deploy/ for check-deploy.sh, which makes their environment."""

import argparse
import ast
import json
import pathlib
import re
import shutil
import subprocess
import tomllib

import jsonschema
import kubernetes_validate
import referencing
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from kubernetes_validate.utils import schema_contents

# The oldest that all fields exist in (preStop.sleep), and the newest that there are schemas for.
KUBERNETES = ["1.30", "1.37"]
DEPLOY = pathlib.Path("deploy")
FLAG_VARIABLES = re.compile(r"\[env: (\w+)=")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubectl", required=True)
    parser.add_argument("--kinetoscope", required=True)
    parser.add_argument("--kserve", required=True, type=pathlib.Path, help="unpacked Python package")
    parser.add_argument("--compose-schema", required=True, type=pathlib.Path)
    parser.add_argument("--metrics", required=True, type=pathlib.Path, help="what a server answers at /metrics")
    parser.add_argument("--work", required=True, type=pathlib.Path)
    args = parser.parse_args()
    program = Program(args.kinetoscope, args.work)

    check_alerts_are_the_same()
    rendered = render_all(args.kubectl, args.work)
    schemas = Schemas(args.kserve)
    for name, documents in rendered.items():
        for document in documents:
            schemas.check(document)
        program.check_containers(documents)
        check_relations(documents)
        kinds = ", ".join(sorted({document["kind"] for document in documents}))
        ok(f"{name}: {len(documents)} valid objects ({kinds})")
    schemas.check_strictness(rendered["base"] + rendered["example"] + rendered["kserve"] + rendered["batch"])
    ok("unknown fields are found in each of these kinds")
    program.check_compose(json.loads(args.compose_schema.read_text()))
    program.check_unit((DEPLOY / "systemd/kinetoscope.service").read_text())
    check_images(rendered["base"] + rendered["kserve"] + rendered["batch"])
    check_metrics(args.metrics.read_text(), rendered["example"], args.work / "dashboard-rules.yml")


def ok(what):
    print(f"ok  {what}", flush=True)


def check_images(documents):
    """The Dockerfiles against what manifests and the Compose file take for granted. scripts/check-image.sh builds one."""
    settings = tomllib.loads(pathlib.Path("docker/kinetoscope.toml").read_text())
    listening = {settings[name].split(":")[1] for name in ["listen", "http"]}
    version = tomllib.loads(pathlib.Path("Cargo.toml").read_text())["workspace"]["package"]["version"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["kinetoscope"]
    assert pathlib.Path(compose["build"]["dockerfile"]).exists()
    for path in sorted(pathlib.Path("docker").glob("*.Dockerfile")):
        text = path.read_text().replace("\\\n", " ")
        last = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines() if line and line[0].isupper()}
        assert set(last["EXPOSE"].split()) == listening, path
        assert last["ENTRYPOINT"] == '["kinetoscope"]' and last["CMD"] == '["serve"]', path
        assert json.loads(last["HEALTHCHECK"].split("CMD ")[1]) == compose["healthcheck"]["test"][1:], path
        assert f'image.version="{version}"' in last["LABEL"], path
        assert {name for name in re.findall(r"--build-arg (\w+)", text)} <= set(re.findall(r"^ARG (\w+)", text, re.M)), path
        assert set(compose["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", text, re.M)), path
        for document in documents:
            template = document.get("spec", {}).get("template", {}).get("spec", {})
            for security in [template.get("securityContext"), *(
                    container["securityContext"] for container in document.get("spec", {}).get("containers", []))]:
                if security:
                    user = security["runAsUser"]
                    assert last["USER"] == f"{user}:{security.get('runAsGroup', user)}", (path, document["metadata"]["name"])
    ok("docker/: user, ports, health check, version and arguments are those that deploy/ counts on")


def render_all(kubectl, work):
    """Every kustomization, and the base with each component alone."""
    copy = work / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", copy)
    directories = {"base": copy / "base", "example": copy / "example"}
    directories |= {name: DEPLOY / name for name in ["kserve", "batch"]}
    for component in sorted((copy / "components").iterdir()):
        overlay = copy / f"with-{component.name}"
        overlay.mkdir()
        text = {"resources": ["../base"], "components": [f"../components/{component.name}"]}
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(text))
        directories[f"base with {component.name}"] = overlay
    rendered = {}
    for name, directory in directories.items():
        output = subprocess.run([kubectl, "kustomize", directory], check=True, capture_output=True, text=True).stdout
        rendered[name] = [document for document in yaml.safe_load_all(output) if document]
    return rendered


class Schemas:
    def __init__(self, kserve):
        operators = {
            "keda.sh/v1alpha1/ScaledObject": keda.ScaledObject,
            "monitoring.coreos.com/v1/ServiceMonitor": prometheus_operator.ServiceMonitor,
            "monitoring.coreos.com/v1/PrometheusRule": prometheus_operator.PrometheusRule,
        }
        self.custom = {name: closed(model.model_json_schema()) for name, model in operators.items()}
        kserve = kserve_definitions(kserve)
        for version, kind in [("v1alpha1", "ClusterServingRuntime"), ("v1beta1", "InferenceService")]:
            # Beside Kubernetes' own, which it refers to.
            place = {"$id": "https://kubernetes.io/api/kserve"}
            schema = place | {"$ref": f"#/$defs/{version.capitalize()}{kind}", "$defs": kserve}
            self.custom[f"serving.kserve.io/{version}/{kind}"] = schema
        definitions = schema_contents(f"kubernetes-json-schema/v{KUBERNETES[-1]}.0-local-strict/_definitions.json", "")
        self.registry = referencing.Resource.from_contents(definitions) @ referencing.Registry()
        self.valid = set()

    def check(self, document):
        text = json.dumps(document)
        if text in self.valid:
            return
        custom = self.custom.get(f"{document['apiVersion']}/{document['kind']}")
        if custom:
            jsonschema.Draft202012Validator(custom, registry=self.registry).validate(document)
        else:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)
        self.valid.add(text)

    def check_strictness(self, documents):
        for document in documents:
            wrong = json.loads(json.dumps(document))
            wrong.setdefault("spec", {})["noSuchField"] = {}
            try:
                self.check(wrong)
            except jsonschema.ValidationError:
                continue
            raise SystemExit(f"nobody minds an unknown field of {document['kind']}")


def closed(schema):
    """The schema with no properties but those it names."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def kserve_definitions(package):
    """JSON schemas from the classes that KServe generates from its own; what is Kubernetes' comes from its schemas."""
    simple = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}

    def schema(kind):
        if kind in simple:
            return {"type": simple[kind]}
        if kind.startswith("list["):
            return {"type": "array", "items": schema(kind[5:-1])}
        if kind.startswith("dict("):
            return {"type": "object", "additionalProperties": schema(kind[5:-1].split(", ", 1)[1])}
        if kind in classes:
            return {"$ref": f"#/$defs/{kind}"}
        if kind == "V1ObjectMeta":
            return {"$ref": "/api/_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
        if kind.startswith("V1"):
            return {"$ref": f"/api/_definitions.json#/$defs/io.k8s.api.core.v1.{kind[2:]}"}
        return {}

    classes = {}
    for path in sorted((package / "kserve/models").glob("v1*.py")):
        text = path.read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    statement.targets[0].id: ast.literal_eval(statement.value)
                    for statement in node.body
                    if isinstance(statement, ast.Assign)
                }
                classes[node.name] = (tables, re.findall(r"Invalid value for `(\w+)`, must not be `None`", text))
    definitions = {}
    for name, (tables, required) in classes.items():
        keys = tables["attribute_map"]
        definitions[name] = {
            "type": "object",
            "properties": {keys[attribute]: schema(kind) for attribute, kind in tables["openapi_types"].items()},
            "required": [keys[attribute] for attribute in set(required)],
            "additionalProperties": False,
        }
    return definitions


class Program:
    """The binary: it knows its own settings."""

    def __init__(self, kinetoscope, work):
        self.kinetoscope = kinetoscope
        self.work = work
        self.variables = set()
        for command in ["serve", "classify"]:
            self.variables |= set(FLAG_VARIABLES.findall(self.run([command, "--help"], {})))
        # What the manifests mount, and where it is here.
        self.files = {
            "/etc/kinetoscope-tls": work / "tls",
            "/etc/kinetoscope-tokens": work / "tokens",
            "/etc/kinetoscope": work / "config",
            "/models": pathlib.Path("weights/camera-motion"),
        }
        (work / "config").mkdir()

    def run(self, arguments, environment):
        result = subprocess.run(
            [self.kinetoscope, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if result.returncode != 0:
            raise SystemExit(f"kinetoscope {' '.join(arguments)} with {environment}:\n{result.stderr}")
        return result.stdout

    def here(self, text):
        text = text.replace("/mnt/models", "/models")
        for there, here in self.files.items():
            text = text.replace(there, str(here))
        return text

    def check_containers(self, documents):
        maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
        for document in documents:
            containers = {
                "Deployment": lambda spec: spec["template"]["spec"]["containers"],
                "Job": lambda spec: spec["template"]["spec"]["containers"],
                "ClusterServingRuntime": lambda spec: spec["containers"],
            }.get(document["kind"], lambda spec: [])(document.get("spec", {}))
            for container in containers:
                environment = {variable["name"]: variable["value"] for variable in container.get("env", [])}
                self.check_variables(environment)
                if container["command"] == ["kinetoscope", "serve"]:
                    for data in maps.values():
                        for name, text in data.items():
                            (self.work / "config" / name).write_text(self.here(text))
                    self.check_serve(container["args"], environment)

    def check_variables(self, environment):
        ours = {name for name in environment if name.startswith(("KINETOSCOPE_", "OTEL_EXPORTER"))}
        if ours - self.variables:
            raise SystemExit(f"no flag has the variables {ours - self.variables}")

    def check_serve(self, arguments, environment):
        environment = {name: self.here(value) for name, value in environment.items()}
        self.run(["serve", "--check", *map(self.here, arguments)], environment)

    def check_compose(self, schema):
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        # The schema is older than this key.
        del compose["name"]
        jsonschema.Draft7Validator(schema).validate(compose)
        server = compose["services"]["kinetoscope"]
        self.check_variables(server["environment"])
        self.check_serve([], server["environment"])
        for service in compose["services"].values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / source).exists(), volume
                else:
                    assert source in compose["volumes"], volume
        ok("compose.yaml: it fits the schema, the server's settings are valid, the mounted files are there")

    def check_unit(self, unit):
        command = re.search(r"^ExecStart=\S+ serve (.*)$", unit, re.M).group(1)
        config = DEPLOY / "systemd/kinetoscope.toml"
        (self.work / "config/kinetoscope.toml").write_text(config.read_text())
        self.check_serve(command.split(), {})
        grace = seconds(tomllib.loads(config.read_text())["grace"])
        assert seconds(re.search(r"^TimeoutStopSec=(.*)$", unit, re.M).group(1)) > grace
        ok("kinetoscope.service: its settings are valid, it waits for the grace period")


def seconds(time):
    return int(re.fullmatch(r"(\d+)s", time).group(1))


def check_relations(documents):
    """What no schema knows: numbers and labels that have to fit each other."""
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    for deployment in by_kind.get("Deployment", []):
        pod = deployment["spec"]["template"]["spec"]
        [settings] = [tomllib.loads(config["data"]["kinetoscope.toml"]) for config in by_kind["ConfigMap"]]
        sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > sleep + seconds(settings["grace"]), "no time to drain"
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        selectors = [service["spec"]["selector"] for service in by_kind["Service"]]
        selectors += [budget["spec"]["selector"]["matchLabels"] for budget in by_kind["PodDisruptionBudget"]]
        selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in by_kind["NetworkPolicy"]]
        selectors += [deployment["spec"]["selector"]["matchLabels"]]
        assert all(selector.items() <= labels for selector in selectors), "a selector misses the pods"
        scalers = by_kind.get("HorizontalPodAutoscaler", []) + by_kind.get("ScaledObject", [])
        assert [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers] == [deployment["metadata"]["name"]]
    for job in by_kind.get("Job", []):
        environment = {variable["name"]: variable["value"] for variable in job["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert int(environment["SHARDS"]) == job["spec"]["completions"], "SHARDS are not completions"


def check_alerts_are_the_same():
    rules = yaml.safe_load((DEPLOY / "observability/alerts.yml").read_text())
    operator = yaml.safe_load((DEPLOY / "kubernetes/components/monitoring/alerts.yaml").read_text())
    assert rules == operator["spec"], "alerts.yml and the PrometheusRule differ"
    guide = pathlib.Path("docs/deploying.md").read_text()
    for rule in rules["groups"][0]["rules"]:
        assert f"`{rule['alert']}`" in guide, f"docs/deploying.md does not explain {rule['alert']}"
        assert {"summary", "description"} <= rule["annotations"].keys()
    ok("alerts.yml: the PrometheusRule has the same rules, the guide explains each")


def check_metrics(exposed, documents, rules):
    """Every metric and label that an expression names is one that the server has."""
    suffixes = {"counter": [""], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    names = {
        name + suffix for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposed, re.M) for suffix in suffixes[kind]
    }
    labels = {}
    for name, body in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", exposed, re.M):
        labels.setdefault(name, {"instance", "job"}).update(re.findall(r'(\w+)="', body))

    dashboard = json.loads((DEPLOY / "observability/grafana/dashboards/kinetoscope.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    variables = [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    alerts = yaml.safe_load((DEPLOY / "observability/alerts.yml").read_text())["groups"][0]["rules"]
    [scaler] = [document for document in documents if document["kind"] == "ScaledObject"]
    queries = [trigger["metadata"]["query"] for trigger in scaler["spec"]["triggers"] if trigger["type"] == "prometheus"]
    used = set()
    for text in panels + variables + queries + [rule["expr"] for rule in alerts]:
        for name, body in re.findall(r"(kinetoscope_\w+)(?:\{(.*?)\})?", text):
            assert name in names, f"the server has no metric {name}: {text}"
            for label in re.findall(r'(\w+)[=!]~?"', body or ""):
                assert label in labels[name], f"{name} has no label {label}: {text}"
            used.add(name)
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    # Those of the process are on the dashboards that people have for every program.
    ours = {name for name in names if name.startswith("kinetoscope_")}
    unseen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours} - families
    assert not unseen, f"the dashboard shows no {unseen}"
    ok(f"dashboard, alerts and scaler: the server exposes all {len(families)} metrics they name, and they miss none")

    panels = [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for text in panels + queries]
    group = {"name": "dashboard", "rules": [{"record": f"panel_{i}", "expr": text} for i, text in enumerate(panels)]}
    rules.write_text(yaml.safe_dump({"groups": [group]}))


if __name__ == "__main__":
    main()
