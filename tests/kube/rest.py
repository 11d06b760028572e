"""A client of the Kubernetes API for tests: objects are dicts, and a resource is "v1/pods" or
"apps/v1/deployments"."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

# What is there for a while only, or changes without anybody's doing.
NOT_LISTED = {"events", "componentstatuses"}


class ApiError(Exception):
    """An answer of the server that is not a success."""

    def __init__(self, method, path, status, body):
        self.status = status
        try:
            answer = json.loads(body)
            self.reason, self.message = answer.get("reason", ""), answer.get("message", "")
        except ValueError:
            self.reason, self.message = "", body.decode(errors="replace").strip()
        super().__init__(f"{method} {path}: {status} {self.reason} {self.message}")


def path_of(resource, name="", namespace="", subresource="", **query):
    """The path in a URL, with what of `query` is not empty."""
    words = ["/api" if resource.count("/") == 1 else "/apis"]
    group_version, plural = resource.rsplit("/", 1)
    words.append(group_version)
    if namespace:
        words += ["namespaces", namespace]
    words += [word for word in (plural, name, subresource) if word]
    query = {key: value for key, value in query.items() if value not in ("", None)}
    return "/".join(words) + ("?" + urllib.parse.urlencode(query) if query else "")


class Client:
    """For any number of threads; each has a connection of its own."""

    def __init__(self, url, context=None, token=None):
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self.host, self.port = parts.hostname, parts.port
        self.context = context
        self.token = token
        self._local = threading.local()
        self._connections = []
        self._resources = {}

    def connect(self, seconds=30.0):
        if self.context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        return http.client.HTTPSConnection(
            self.host, self.port, timeout=seconds, context=self.context
        )

    def close(self):
        """No thread may ask any more."""
        for connection in self._connections:
            connection.close()

    def headers(self, content_type=None):
        headers = {"Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def raw(self, method, path, body=None, content_type=None):
        """(status, bytes) of the answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers(content_type or (data and "application/json"))
        for attempt in (1, 2):
            connection = getattr(self._local, "connection", None)
            fresh = connection is None
            if fresh:
                connection = self._local.connection = self.connect()
                self._connections.append(connection)
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._local.connection = None
                # A connection that was kept may have been closed meanwhile.
                if fresh or attempt == 2:
                    raise

    def call(self, method, path, body=None, content_type=None):
        status, answer = self.raw(method, path, body, content_type)
        if not 200 <= status < 300:
            raise ApiError(method, path, status, answer)
        return json.loads(answer)

    # --- objects ------------------------------------------------------------------------------

    def get(self, resource, name, namespace=""):
        return self.call("GET", path_of(resource, name, namespace))

    def find(self, resource, name, namespace=""):
        """The object, or None where there is none."""
        try:
            return self.get(resource, name, namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def page(self, resource, namespace="", **query):
        return self.call("GET", path_of(resource, namespace=namespace, **query))

    def list(self, resource, namespace="", labels="", fields=""):
        query = {"labelSelector": labels, "fieldSelector": fields}
        return self.page(resource, namespace, **query)["items"] or []

    def create(self, thing):
        return self.call("POST", self._path(thing, named=False), thing)

    def update(self, thing, subresource=""):
        return self.call("PUT", self._path(thing, subresource), thing)

    def apply(self, thing, manager="test", force=False, subresource=""):
        path = self._path(thing, subresource)
        query = {"fieldManager": manager, "force": str(force).lower()}
        return self.call("PATCH", path + "?" + urllib.parse.urlencode(query), thing, APPLY)

    def patch(self, resource, name, patch, namespace="", subresource="", kind=MERGE):
        path = path_of(resource, name, namespace, subresource)
        return self.call("PATCH", path, patch, kind)

    def delete(self, resource, name, namespace="", grace=None):
        """Whether there was one."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self.call("DELETE", path_of(resource, name, namespace), body)
            return True
        except ApiError as error:
            if error.status != 404:
                raise
            return False

    def watch(self, resource, namespace="", version=""):
        return Watch(self, path_of(resource, namespace=namespace, watch="true",
                                   allowWatchBookmarks="true", resourceVersion=version))

    def _path(self, thing, subresource="", named=True):
        metadata = thing["metadata"]
        resource = self.resource_of(thing["apiVersion"], thing["kind"])
        name = metadata["name"] if named else ""
        return path_of(resource, name, metadata.get("namespace", ""), subresource)

    # --- what the server has --------------------------------------------------------------------

    def resource_of(self, group_version, kind):
        key = (group_version, kind)
        if key not in self._resources:
            for entry in self.resources_of(group_version):
                found = (group_version, entry["kind"])
                self._resources[found] = f"{group_version}/{entry['name']}"
        if key not in self._resources:
            raise KeyError(f"the server has no {kind} of {group_version}")
        return self._resources[key]

    def resources_of(self, group_version):
        """Its APIResources, without subresources."""
        path = ("/apis/" if "/" in group_version else "/api/") + group_version
        return [entry for entry in self.call("GET", path)["resources"] if "/" not in entry["name"]]

    def listable_resources(self):
        """Each resource once, in the version that its group prefers."""
        groups = [["v1"]]
        for group in self.call("GET", "/apis")["groups"]:
            preferred = group["preferredVersion"]["groupVersion"]
            others = [version["groupVersion"] for version in group["versions"]]
            groups.append([preferred, *(other for other in others if other != preferred)])
        found = []
        for versions in groups:
            names = set(NOT_LISTED)
            for version in versions:
                for entry in self.resources_of(version):
                    if "list" in entry["verbs"] and entry["name"] not in names:
                        names.add(entry["name"])
                        found.append(f"{version}/{entry['name']}")
        return found

    def listing(self):
        """All objects that the server has: {"apps/v1/deployments shop/checkout": object}, without
        what changes by itself. Two of them are equal where nothing was left and nothing is gone."""
        objects = {}
        for resource in self.listable_resources():
            for thing in self.list(resource):
                metadata = thing["metadata"]
                name = "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))
                objects[f"{resource} {name}"] = without_clock(resource, thing)
        return objects


def without_clock(resource, thing):
    metadata = thing["metadata"]
    metadata.pop("resourceVersion", None)
    for manager in metadata.get("managedFields", ()):
        manager.pop("time", None)
    if resource.endswith("/leases"):
        thing.pop("spec", None)
    return thing


def differences(before, after):
    """What tells two listings apart, a line each."""
    lines = [f"left: {name}" for name in sorted(after.keys() - before.keys())]
    lines += [f"gone: {name}" for name in sorted(before.keys() - after.keys())]
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            lines += [f"changed: {name} {line}" for line in differing(before[name], after[name])]
    return lines


def differing(before, after, path=""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differing(before.get(key), after.get(key), f"{path}.{key}")
    elif before != after:
        yield f"{path}: {json.dumps(before)} is now {json.dumps(after)}"


class Watch:
    """Iterates over (type, object) until the server or close() ends it."""

    def __init__(self, client, path):
        self._connection = client.connect(None)
        self._connection.request("GET", path, headers=client.headers())
        self._answer = self._connection.getresponse()
        if self._answer.status != 200:
            body = self._answer.read()
            self._connection.close()
            raise ApiError("GET", path, self._answer.status, body)

    def __iter__(self):
        try:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                for line in self._answer:
                    event = json.loads(line)
                    yield event["type"], event["object"]
        finally:
            self._answer.close()
            self._connection.close()

    def close(self):
        """From any thread."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)


class Follower:
    """The objects of some resources as they are, followed by a thread for each; `changed` is
    notified under its own lock whenever one changes."""

    def __init__(self, client, resources):
        self.changed = threading.Condition()
        self.objects = {resource: {} for resource in resources}
        self._client = client
        self._stopped = False
        self._read = set()
        self._gone = set()  # UIDs
        self._watches = {}
        self._threads = [
            threading.Thread(target=self._run, args=(resource,), daemon=True)
            for resource in resources
        ]
        for thread in self._threads:
            thread.start()

    def all(self, resource):
        """With the lock of `changed` held."""
        return list(self.objects[resource].values())

    def has_all(self):
        """Whether each resource has been read once."""
        return self._read == self.objects.keys()

    def put(self, resource, thing):
        """What the server answered to a write, before the watch tells it, unless that has told more."""
        with self.changed:
            known = self.objects[resource].get(key_of(thing))
            if thing["metadata"]["uid"] not in self._gone and not (known and newer(known, thing)):
                self.objects[resource][key_of(thing)] = thing

    def drop(self, resource, thing):
        with self.changed:
            self.objects[resource].pop(key_of(thing), None)

    def _run(self, resource):
        while not self._stopped:
            try:
                page = self._client.page(resource)
                self._take_all(resource, page["items"] or [])
                watch = self._client.watch(resource, version=page["metadata"]["resourceVersion"])
                self._watches[resource] = watch
                if not self._stopped:
                    self._follow(resource, watch)
                watch.close()
            except (OSError, ApiError, http.client.HTTPException, ValueError):
                time.sleep(0.1)  # the server is away

    def _follow(self, resource, watch):
        for kind, thing in watch:
            if kind == "ERROR":
                return
            if kind == "BOOKMARK":
                continue
            with self.changed:
                if kind == "DELETED":
                    self._gone.add(thing["metadata"]["uid"])
                    self.objects[resource].pop(key_of(thing), None)
                else:
                    self.objects[resource][key_of(thing)] = thing
                self.changed.notify_all()

    def _take_all(self, resource, items):
        with self.changed:
            self.objects[resource] = {key_of(thing): thing for thing in items}
            self._read.add(resource)
            self.changed.notify_all()

    def stop(self):
        self._stopped = True
        for watch in list(self._watches.values()):
            watch.close()
        for thread in self._threads:
            thread.join(10)


def newer(thing, other):
    versions = [int(one["metadata"]["resourceVersion"]) for one in (thing, other)]
    return versions[0] > versions[1]


def key_of(thing):
    return thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def admin_context(authority, certificate, key):
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    return context
