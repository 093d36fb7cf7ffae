"""Check kubernetes.yaml against the schema of the operator's own resource.

pip download --no-deps dask-kubernetes && pip install jsonschema
python deploy/check_kubernetes.py dask_kubernetes-*.whl
"""

import sys
import zipfile
from pathlib import Path

import jsonschema
import yaml

SCHEMA = "dask_kubernetes/operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
UNKNOWN_KEYS = {"additionalProperties": False}


def closed(schema: object) -> object:
    """Let no property be that a schema does not name, so that a misspelt one is found."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    named = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    return made | UNKNOWN_KEYS if named and "additionalProperties" not in made else made


def main() -> None:
    """Validate, and say so."""
    wheel = zipfile.ZipFile(sys.argv[1])
    version = yaml.safe_load(wheel.read(SCHEMA))["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    found = yaml.safe_load(Path(__file__).with_name("kubernetes.yaml").read_text())
    jsonschema.validate(found["spec"], closed(schema["properties"]["spec"]))
    print(f"kubernetes.yaml: {found['kind']} as {version['name']} of {Path(sys.argv[1]).name}")


if __name__ == "__main__":
    main()
