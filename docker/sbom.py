"""List what is installed as CycloneDX 1.5 JSON: `python docker/sbom.py > wsipipe.cdx.json`.

Run it inside the image to list the image: `docker run --rm -i --entrypoint python wsipipe:cuda - <
docker/sbom.py`. It needs nothing but the standard library and no network.
"""

import json
import re
import sys
import uuid
from datetime import UTC, datetime
from importlib import metadata


def _component(dist: metadata.Distribution) -> dict[str, object]:
    name = re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower()
    purl = f"pkg:pypi/{name}@{dist.version}"
    component: dict[str, object] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": dist.version,
        "purl": purl,
    }
    licence = dist.metadata.get("License-Expression")
    if licence:
        component["licenses"] = [{"expression": licence}]
    else:
        classifiers = dist.metadata.get_all("Classifier") or []
        names = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
        if names:
            component["licenses"] = [{"license": {"name": name}} for name in names]
    return component


def _requirements(dist: metadata.Distribution, present: dict[str, str]) -> list[str]:
    names = {
        re.sub(r"[-_.]+", "-", re.split(r"[ ;<>=!~\[(]", text, maxsplit=1)[0]).lower()
        for text in dist.requires or ()
    }
    return sorted(present[name] for name in names if name in present)


def main() -> None:
    """Print the list."""
    found = {_component(d)["bom-ref"]: d for d in metadata.distributions() if d.metadata["Name"]}
    components = [_component(found[ref]) for ref in sorted(found, key=str)]
    present = {str(c["name"]): str(c["bom-ref"]) for c in components}
    own = [c for c in components if c["name"] == "wsipipe"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "component": {**own[0], "type": "application"} if own else {},
        },
        "components": [c for c in components if c["name"] != "wsipipe"],
        "dependencies": [
            {"ref": str(ref), "dependsOn": _requirements(found[ref], present)}
            for ref in sorted(found, key=str)
        ],
    }
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
