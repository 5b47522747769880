"""Checks rendered Kubernetes manifests, read from standard input, beyond their schema: how pods are confined and probed, and
that names lead somewhere, and what an API server would refuse all the same. Prints each finding on a line; exits 1 when there are
any."""

import re
import sys
from math import ceil
from pathlib import Path
from urllib.parse import urlsplit

import yaml

REPOSITORY = Path(__file__).parents[2]

# The memory that a service needs at least, in MiB.
MEMORY = 256
# How much more each of its sagas may need, in bytes, which stay in memory while they wait for a peer: 4 kB, and 8 KiB of messages.
MEMORY_OF_SAGA = 4000 + 8192
# --max-sagas where nobody says it.
MAX_SAGAS = 100_000

# How long `service health` waits unless it is told, in seconds.
HEALTH_TIMEOUT = 2

# The label that says which service a pod is of.
NAME = "app.kubernetes.io/name"

# A quantity's unit, in bytes.
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

# An overlay of some of them leaves the others to another.
BASES = {folder.name for folder in (REPOSITORY / "k8s/base").iterdir()}

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
findings = []


def of_kind(kind):
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def expect(where, what, holds):
    if not holds:
        findings.append(f"{where}: {what}")


def leave_seconds(service):
    """How long a service may take to leave by itself: --drain-grace, --drain-timeout, a second for calls that are cut off, then five
    each for what it and its stores put away, for traces and for metrics."""
    sources = [*(REPOSITORY / "services" / service / "src").rglob("*.rs"), REPOSITORY / "libs/src/service/stores.rs"]
    hooks = [re.findall(r"\.(?:on_drain|task_until_drained)\(", source.read_text()) for source in sources]
    return 0.5 + 20 + 1 + 5 * (sum(map(len, hooks)) + 2)


def check_pod(where, template):
    pod, leaves = template["spec"], leave_seconds(template["metadata"]["labels"].get(NAME, ""))
    security = pod.get("securityContext", {})
    expect(where, "runs as non-root", security.get("runAsNonRoot") is True)
    expect(where, "seccomp profile is RuntimeDefault", security.get("seccompProfile") == {"type": "RuntimeDefault"})
    expect(where, "no service-account token", pod.get("automountServiceAccountToken") is False)
    expect(where, "its service account is its own and exists", pod.get("serviceAccountName") in of_kind("ServiceAccount"))
    expect(where, f"has more than {leaves} s to leave", pod.get("terminationGracePeriodSeconds", 0) > leaves)
    for volume in pod.get("volumes", []):
        sources = sorted(volume.keys() - {"name"})
        expect(where, f"volume {volume['name']} is one thing, not {' and '.join(sources)}", len(sources) <= 1)
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        expect(where, f"claim {claim} exists", claim is None or claim in of_kind("PersistentVolumeClaim"))


def mebibytes(quantity):
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(quantity))
    return float(match[1]) * UNITS[match[2]] / 2**20 if match and match[2] in UNITS else 0


def check_container(where, container, volumes):
    security = container.get("securityContext", {})
    expect(where, "read-only root", security.get("readOnlyRootFilesystem") is True)
    expect(where, "no privilege escalation", security.get("allowPrivilegeEscalation") is False)
    expect(where, "drops all capabilities", security.get("capabilities") == {"drop": ["ALL"]})
    resources = container.get("resources", {})
    expect(where, "requests processor and memory", {"cpu", "memory"} <= resources.get("requests", {}).keys())
    expect(where, "its image is tagged", re.search(r":[^/]+$", container["image"]))
    known = set()
    for variable in container.get("env", []):
        # The kubelet leaves a $(NAME) that it does not know yet as it is.
        for used in re.findall(r"\$\(([^)]*)\)", variable.get("value") or ""):
            expect(where, f"{used} is set before {variable['name']}, which holds it", used in known)
        known.add(variable["name"])
        expect(where, f"{variable['name']} has one of value and valueFrom", not (variable.get("value") and "valueFrom" in variable))
    for mount in container.get("volumeMounts", []):
        expect(where, f"volume {mount['name']}, which it mounts, exists", mount["name"] in volumes)


def check_program(where, container, template):
    labels, environment = template["metadata"]["labels"], values(container)
    drives = environment.get("SURFACE") != "query" and (REPOSITORY / "services" / labels.get(NAME, "") / "src/sagas").is_dir()
    sagas = int(environment.get("MAX_SAGAS", MAX_SAGAS)) if drives else 0
    memory = MEMORY + ceil(sagas * MEMORY_OF_SAGA / 2**20)
    limit = container.get("resources", {}).get("limits", {}).get("memory")
    expect(where, f"has {memory} MiB of memory or more, with {sagas} sagas under way, not {limit}", mebibytes(limit) >= memory)
    ports = [port["containerPort"] for port in container.get("ports", [])]
    listens = environment.get("LISTEN", "")
    everywhere = [f"{address}:{port}" for address in ("0.0.0.0", "[::]") for port in ports]
    expect(where, f"listens on its port, not {listens!r}", listens in everywhere)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {})
        if "TLS_CERT" in environment:
            command = asked.get("exec", {}).get("command", [])
            expect(where, f"{probe} asks by TLS", command[:2] == ["service", "health"])
            check_patience(f"{where}, {probe}", " ".join(command), asked.get("timeoutSeconds", 1))
        else:
            expect(where, f"{probe} asks for health at its port", asked.get("grpc", {}).get("port") in ports)
    secrets = {volume["name"] for volume in template["spec"].get("volumes", []) if "secret" in volume}
    folders = [mount["mountPath"] for mount in container.get("volumeMounts", []) if mount["name"] in secrets]
    for flag in ("TLS_CERT", "TLS_KEY", "TLS_CA"):
        path = environment.get(flag)
        expect(where, f"{flag} {path} is in a secret", path is None or str(Path(path).parent) in folders)
    check_peers(where, environment.get("PEER"), labels)


def check_patience(where, command, seconds):
    """That the program of a probe waits as long as the probe. Where it is told how long, it is a little less: it can still say why."""
    typed = re.search(r" --timeout[ =](\d+)s\b", command)
    own = int(typed[1]) if typed else HEALTH_TIMEOUT
    expect(where, f"waits nearly as long as its timeoutSeconds, {seconds}, not {own} s", own + 1 >= seconds)
    expect(where, f"is told to wait for less than its timeoutSeconds, {seconds}, not {own} s", not typed or own < seconds)


def startup_seconds(container):
    """How long the kubelet waits for a container to start."""
    probe = container.get("startupProbe", {})
    return probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)


def program_of(template):
    """The container that runs the service, if there is one; others beside it are whatever an overlay wants."""
    return next((container for container in template["spec"]["containers"] if container["name"] == "service"), None)


def values(container):
    return {variable["name"]: variable["value"] for variable in container.get("env", []) if variable.get("value")}


def chosen_by(selector):
    """The pods that labels choose, as their Deployments' templates. A selector of expressions is nobody's here."""
    wanted = selector.items()
    templates = [deployment["spec"]["template"] for deployment in of_kind("Deployment").values()]
    return [template for template in templates if wanted and wanted <= template["metadata"]["labels"].items()]


def check_peers(where, peers, caller):
    """The program's own rules: NAME=URI, a comma before each further peer, or each further address of the peer before it."""
    parts = peers.split(",") if peers else []
    peer = ""
    expect(where, f"peers {peers} begin with NAME=", not parts or "=" in parts[0])
    for part in parts:
        name, named, address = part.rpartition("=")
        peer = name or peer
        plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        expect(where, f"peer {part} has a name such as inventory or inventory.queries", plain or not named)
        try:
            uri = urlsplit(address)
            host, port = uri.hostname, uri.port or {"http": 80, "https": 443}.get(uri.scheme)
        except ValueError:
            host, port = None, None
        well_formed = re.fullmatch(r"https?://[^/?#\s]+/?", address)
        expect(where, f"peer {part} is http://HOST:PORT or https://HOST:PORT", well_formed and host and port)
        if host and is_ours(host):
            service = host.split(".")[0]
            served = [its["port"] for its in of_kind("Service").get(service, {"spec": {}})["spec"].get("ports", [])]
            elsewhere = service in BASES - of_kind("Service").keys()
            expect(where, f"peer {part} is a Service and its port", port in served or elsewhere)
            for template in chosen_by(of_kind("Service").get(service, {"spec": {}})["spec"].get("selector", {})):
                check_peer(f"{where}, peer {part}", peer, uri.scheme, template, caller)


def check_peer(where, peer, scheme, template, caller):
    """That a peer's pods serve what they are called for, speak as they are spoken to, and may be called."""
    environment = values(program_of(template) or {})
    surface = "query" if peer.endswith(".queries") else "command"
    expect(where, f"serves its {surface} surface", environment.get("SURFACE", "all") in ("all", surface))
    spoken = "https" if "TLS_CERT" in environment else "http"
    expect(where, f"is called by {spoken}, as it serves", scheme == spoken)
    labels = template["metadata"]["labels"]
    for name, policy in of_kind("NetworkPolicy").items():
        if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items():
            rules = policy["spec"].get("ingress", [])
            admitted = any(admits(source, caller) for rule in rules for source in rule.get("from", [{}]))
            expect(where, f"may be called by {caller.get(NAME)}, as NetworkPolicy {name} has it", admitted)


def admits(source, labels):
    """Whether a NetworkPolicy's source holds pods of the same namespace with these labels."""
    # An empty one is every namespace; any other is taken for somebody else's.
    if "ipBlock" in source or source.get("namespaceSelector"):
        return False
    selector = source.get("podSelector", {})
    among = all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )
    return among and selector.get("matchLabels", {}).items() <= labels.items()


def is_for(policy, deployment):
    """Whether a NetworkPolicy says who may reach a Deployment's pods: all of them, so one of expressions is not."""
    spec, selector = policy["spec"], policy["spec"]["podSelector"]
    is_near = policy["metadata"].get("namespace") == deployment["metadata"].get("namespace")
    is_of_ingress = "Ingress" in spec.get("policyTypes", ["Ingress"])
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    is_theirs = selector.get("matchLabels", {}).items() <= labels.items() and not selector.get("matchExpressions")
    return is_near and is_of_ingress and is_theirs


def is_anywhere(source):
    """True of a NetworkPolicy's source that holds whoever there is, outside of the cluster too."""
    return not source or source.get("ipBlock", {}).get("cidr", "").endswith("/0")


def is_ours(host):
    """True of a name in the pods' own namespace; any other is somebody else's, whom no manifest here tells of."""
    labels = host.split(".")
    namespaces = {deployment["metadata"].get("namespace") for deployment in of_kind("Deployment").values()}
    return ":" not in host and (len(labels) == 1 or (labels[1] in namespaces and labels[2:3] in ([], ["svc"])))


def check_service(where, service):
    chosen = chosen_by(service["spec"].get("selector", {}))
    expect(where, "selects the pods of one Deployment", len(chosen) == 1)
    for port in service["spec"]["ports"]:
        named = [p["name"] for pod in chosen for c in pod["spec"]["containers"] for p in c.get("ports", [])]
        expect(where, f"port {port['targetPort']} is a container's", port["targetPort"] in named)


expect("manifests", "hold a Deployment", of_kind("Deployment"))
for name, deployment in of_kind("Deployment").items():
    where, spec = f"Deployment {name}", deployment["spec"]
    pod, strategy = spec["template"]["spec"], spec.get("strategy", {})
    check_pod(where, spec["template"])
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        check_container(f"{where}, container {container['name']}", container, volumes)
    program = program_of(spec["template"])
    expect(where, "has the container service", program)
    if program:
        check_program(f"{where}, container service", program, spec["template"])
    on_claim = any("persistentVolumeClaim" in volume for volume in pod.get("volumes", []))
    embedded = bool(program) and values(program).get("DATABASE_URL", "").startswith("sqlite:")
    alone = spec.get("replicas", 1) == 1 and strategy.get("type") == "Recreate"
    expect(where, "keeps its embedded database on a claim", on_claim or not embedded)
    expect(where, "is one pod at a time, as it keeps an embedded database", alone or not (on_claim or embedded))
    expect(where, "has room for SQLite's sorts if it has SQLite, and only then", ("scratch" in volumes) == embedded)
    shared = bool(program) and any("valueFrom" in v for v in program.get("env", []) if v["name"] == "DATABASE_URL")
    rolling, rests = strategy.get("rollingUpdate") or {}, spec.get("minReadySeconds", 0)
    paced = (rolling.get("maxSurge"), rolling.get("maxUnavailable")) == (1, 0) and rests >= pod.get("terminationGracePeriodSeconds", 30)
    expect(where, "has one pod at most that comes and one that leaves, as its database's sessions are counted", paced or not shared)
    starts = startup_seconds(program or {})
    expect(where, f"may take an hour to start, as it does while a version's new index is made, not {starts} s", starts >= 3600)
    comes, deadline = starts + rests, spec.get("progressDeadlineSeconds", 600)
    expect(where, f"its update has not failed after {deadline} s, as a pod may take {comes} s to start and to rest", deadline > comes)
    expect(where, "has no rollingUpdate beside Recreate", strategy.get("type") != "Recreate" or not strategy.get("rollingUpdate"))
    policies = of_kind("NetworkPolicy").values()
    expect(where, "a NetworkPolicy says who may reach its pods", any(is_for(policy, deployment) for policy in policies))
for name, service in of_kind("Service").items():
    check_service(f"Service {name}", service)
for kind, selector in {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.items():
    for name, document in of_kind(kind).items():
        chosen = chosen_by(document["spec"][selector].get("matchLabels", {}))
        expect(f"{kind} {name}", "selects the pods of one Deployment", len(chosen) == 1)
for name, policy in of_kind("NetworkPolicy").items():
    for rule in policy["spec"].get("ingress") or []:
        # What a rule leaves out it says of everybody, and of every port.
        sources, ports = rule.get("from") or [{}], rule.get("ports") or [{}]
        expect(f"NetworkPolicy {name}", "says of each rule from where, not anywhere", not any(map(is_anywhere, sources)))
        expect(f"NetworkPolicy {name}", "says of each rule which port", all("port" in port for port in ports))
for name, budget in of_kind("PodDisruptionBudget").items():
    always = budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow"
    expect(f"PodDisruptionBudget {name}", "holds no pod back that isn't ready", always)
for name, autoscaler in of_kind("HorizontalPodAutoscaler").items():
    where, target = f"HorizontalPodAutoscaler {name}", autoscaler["spec"]["scaleTargetRef"]["name"]
    deployment = of_kind("Deployment").get(target, {"spec": {}})
    expect(where, f"its target {target} is a Deployment, of the same name", target == name and deployment["spec"])
    expect(where, "its target leaves the number of pods to it", "replicas" not in deployment["spec"])
    expect(where, "its target may be several", deployment["spec"].get("strategy", {}).get("type") != "Recreate")
for name, account in of_kind("ServiceAccount").items():
    expect(f"ServiceAccount {name}", "mounts no token", account.get("automountServiceAccountToken") is False)

for finding in findings:
    print(f"expected of {finding}")
sys.exit(1 if findings else 0)
