"""Checks rendered Kubernetes manifests, read from standard input, beyond their schema: how pods are confined and probed, and
that names lead somewhere. Prints each finding on a line; exits 1 when there are any."""

import re
import sys

import yaml

# How long a service may take to leave by itself: --drain-grace, --drain-timeout, a second for calls that are cut off, then five
# each for sagas, the journal, traces and metrics.
LEAVE_SECONDS = 0.5 + 20 + 1 + 4 * 5

# The most memory that a service may have. Order's sagas stay in it while they wait for a peer.
MEMORY = {"order": "512Mi"}
MEMORY_OF_OTHERS = "256Mi"

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
findings = []


def of_kind(kind):
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def expect(where, what, holds):
    if not holds:
        findings.append(f"{where}: {what}")


def check_pod(where, pod):
    security = pod.get("securityContext", {})
    expect(where, "runs as non-root", security.get("runAsNonRoot") is True)
    expect(where, "seccomp profile is RuntimeDefault", security.get("seccompProfile") == {"type": "RuntimeDefault"})
    expect(where, "no service-account token", pod.get("automountServiceAccountToken") is False)
    expect(where, "its service account is its own and exists", pod.get("serviceAccountName") in of_kind("ServiceAccount"))
    expect(where, f"has more than {LEAVE_SECONDS} s to leave", pod.get("terminationGracePeriodSeconds", 0) > LEAVE_SECONDS)
    for volume in pod.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        expect(where, f"claim {claim} exists", claim is None or claim in of_kind("PersistentVolumeClaim"))


def check_container(where, container, memory):
    security = container.get("securityContext", {})
    expect(where, "read-only root", security.get("readOnlyRootFilesystem") is True)
    expect(where, "no privilege escalation", security.get("allowPrivilegeEscalation") is False)
    expect(where, "drops all capabilities", security.get("capabilities") == {"drop": ["ALL"]})
    resources = container.get("resources", {})
    expect(where, "requests processor and memory", {"cpu", "memory"} <= resources.get("requests", {}).keys())
    limit = resources.get("limits", {}).get("memory")
    expect(where, f"limits memory to {memory}, not {limit}", limit == memory)
    expect(where, "its image is tagged", re.search(r":[^/]+$", container["image"]))
    ports = [port["containerPort"] for port in container.get("ports", [])]
    environment = {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}
    listens = environment.get("LISTEN", "")
    expect(where, f"listens on its port, not {listens!r}", [listens] == [f"0.0.0.0:{port}" for port in ports])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        expect(where, f"{probe} asks for health at its port", container.get(probe, {}).get("grpc", {}).get("port") in ports)
    for peer in filter(None, environment.get("PEER", "").split(",")):
        match = re.fullmatch(r"\w+=http://([\w-]+):(\d+)", peer)
        ports = [port["port"] for port in of_kind("Service").get(match[1], {}).get("spec", {}).get("ports", [])] if match else []
        expect(where, f"peer {peer} is a Service and its port", match and int(match[2]) in ports)


def check_service(where, service):
    selector = service["spec"].get("selector", {}).items()
    pods = [deployment["spec"]["template"] for deployment in of_kind("Deployment").values()]
    chosen = [pod for pod in pods if selector and selector <= pod["metadata"]["labels"].items()]
    expect(where, "selects the pods of one Deployment", len(chosen) == 1)
    for port in service["spec"]["ports"]:
        named = [p["name"] for pod in chosen for c in pod["spec"]["containers"] for p in c.get("ports", [])]
        expect(where, f"port {port['targetPort']} is a container's", port["targetPort"] in named)


expect("manifests", "hold four Deployments", len(of_kind("Deployment")) == 4)
for name, deployment in of_kind("Deployment").items():
    pod = deployment["spec"]["template"]["spec"]
    check_pod(f"Deployment {name}", pod)
    for container in pod["containers"]:
        memory = MEMORY.get(name, MEMORY_OF_OTHERS)
        check_container(f"Deployment {name}, container {container['name']}", container, memory)
    on_claim = any("persistentVolumeClaim" in volume for volume in pod.get("volumes", []))
    alone = deployment["spec"].get("replicas") == 1 and deployment["spec"].get("strategy") == {"type": "Recreate"}
    expect(f"Deployment {name}", "is one pod at a time, as it keeps an embedded database", alone or not on_claim)
for name, service in of_kind("Service").items():
    check_service(f"Service {name}", service)
for name, account in of_kind("ServiceAccount").items():
    expect(f"ServiceAccount {name}", "mounts no token", account.get("automountServiceAccountToken") is False)

for finding in findings:
    print(f"expected of {finding}")
sys.exit(1 if findings else 0)
