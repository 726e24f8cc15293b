"""What the Python client does with the API server of the tests; `done` if all is as it should be."""

import threading

from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException

config.load_kube_config()
core = client.CoreV1Api()


def config_map(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"n": name}), data=data)


def failure(call):
    try:
        call()
    except ApiException as error:
        return error.status
    return None


for number in range(7):
    core.create_namespaced_config_map("default", config_map(f"m{number}", k=str(number)))
assert failure(lambda: core.create_namespaced_config_map("default", config_map("m1"))) == 409

# Pages are of one revision, whatever happens meanwhile.
page = core.list_namespaced_config_map("default", limit=3, label_selector="n")
core.delete_namespaced_config_map("m6", "default")
names = [item.metadata.name for item in page.items]
while page.metadata._continue:
    page = core.list_namespaced_config_map("default", limit=3, label_selector="n", _continue=page.metadata._continue)
    names += [item.metadata.name for item in page.items]
assert names == [f"m{number}" for number in range(7)], names

# A watch goes on from a list.
listed = core.list_namespaced_config_map("default")
seen = []


def follow():
    for event in watch.Watch().stream(
        core.list_namespaced_config_map,
        "default",
        resource_version=listed.metadata.resource_version,
        timeout_seconds=20,
    ):
        seen.append((event["type"], event["object"].metadata.name))
        if len(seen) == 3:
            return


follower = threading.Thread(target=follow)
follower.start()
core.create_namespaced_config_map("default", config_map("new"))
changed = core.read_namespaced_config_map("new", "default")
changed.data = {"x": "1"}
stale = core.read_namespaced_config_map("new", "default")
core.replace_namespaced_config_map("new", "default", changed)
stale.data = {"x": "2"}
assert failure(lambda: core.replace_namespaced_config_map("new", "default", stale)) == 409
core.delete_namespaced_config_map("new", "default")
follower.join()
assert seen == [("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "new")], seen

# Subresources and reviews.
token = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=["istio-ca"]))
token = core.create_namespaced_service_account_token("default", "default", token).status.token


def review(audience):
    spec = client.V1TokenReviewSpec(token=token, audiences=[audience])
    return client.AuthenticationV1Api().create_token_review(client.V1TokenReview(spec=spec)).status


assert review("istio-ca").user.username == "system:serviceaccount:default:default"
assert not review("other").authenticated

# Leases.
leases = client.CoordinationV1Api()
lease = client.V1Lease(metadata=client.V1ObjectMeta(name="l"), spec=client.V1LeaseSpec(holder_identity="a"))
lease = leases.create_namespaced_lease("default", lease)
lease.spec.holder_identity = "b"
leases.replace_namespaced_lease("l", "default", lease)
assert failure(lambda: leases.replace_namespaced_lease("l", "default", lease)) == 409

# What owners leave behind goes.
owner = core.create_namespaced_config_map("default", config_map("owner"))
owned = config_map("owned")
owned.metadata.owner_references = [
    client.V1OwnerReference(api_version="v1", kind="ConfigMap", name="owner", uid=owner.metadata.uid)
]
core.create_namespaced_config_map("default", owned)
core.delete_namespaced_config_map("owner", "default")
assert failure(lambda: core.read_namespaced_config_map("owned", "default")) == 404
print("done")
