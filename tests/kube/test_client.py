"""operator/kube against a real API server: client_test.cc, in an environment made here."""

import os
import subprocess
import unittest

import kubetest
from apiserver import ApiServer

RESTART = "ApiServer.AnInformerFollowsThroughARestart"


def setUpModule():
    global server
    server = ApiServer().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)


def environment():
    """What client_test.cc reads."""
    name = "reader"
    kind = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]}]
    server.client.apply({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": name, "namespace": "default"}})
    server.client.apply({"apiVersion": f"{kind}/v1", "kind": "ClusterRole",
                         "metadata": {"name": name}, "rules": rules})
    server.client.apply({
        "apiVersion": f"{kind}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": kind, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}]})
    token = server.token("default", name)
    pod = server.path("pod")
    os.makedirs(pod, exist_ok=True)
    with open(server.path("ca.crt")) as file:
        authority = file.read()
    for file_name, text in (("token", token), ("namespace", "default"), ("ca.crt", authority)):
        with open(os.path.join(pod, file_name), "w") as file:
            file.write(text)
    return {
        **os.environ,
        "KUBECONFIG": server.admin_kubeconfig,
        "TEST_ETCD": server.etcd_url,
        "TEST_VERSION": "{}.{}".format(*server.version()),
        "TEST_PORT": str(server.port),
        "TEST_POD": pod,
        "TEST_READER_KUBECONFIG": server.kubeconfig(name, token_file=os.path.join(pod, "token")),
        "TEST_READER_TOKEN": token,
        "TEST_TOKEN_FILE": server.path("token"),
        "TEST_OTHER_AUTHORITY": server.path("admin.crt"),
    }


class Client(unittest.TestCase):
    def test_each(self):
        command = [kubetest.program("api_server_test"), f"--gtest_filter=-{RESTART}"]
        ended = subprocess.run(command, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, timeout=120)
        self.assertEqual(ended.returncode, 0, ended.stdout)
        self.assertIn("[  PASSED  ]", ended.stdout)

    def test_an_informer_follows_through_a_restart(self):
        command = [kubetest.program("api_server_test"), f"--gtest_filter={RESTART}"]
        running = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output = []
            for line in running.stdout:
                output.append(line)
                if line.startswith("following "):
                    namespace = line.split()[1]
                    break
            else:
                self.fail("".join(output))
            server.stop()
            server.forget("configmaps", "m1", namespace)
            server.start()
            rest, _ = running.communicate("restarted\n", 120)
            self.assertEqual(running.returncode, 0, "".join(output) + rest)
        finally:
            running.kill()
            running.wait()


if __name__ == "__main__":
    kubetest.main()
