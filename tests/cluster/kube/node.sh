# The nodes of up.sh; sourced. Each has its own pid, net, mount, uts and ipc namespace; the control plane is in node1's.
# This machine's routes (but for those to the nodes), firewall, mounts and /var stay as they are, and killing the first
# process of a node ends all of it.

# a switch, in a net namespace of its own, and this machine's port on it
lan() {
  setsid unshare --net bash -c 'while :; do sleep 1000; done' "$KUBE_DIR" >/dev/null 2>&1 </dev/null &
  local s=$!; disown
  echo $s >"$run/switch.pid"
  for _ in $(seq 50); do [ "$(readlink /proc/$s/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break; sleep 0.1; done
  nsenter -t $s -n ip link add lan type bridge
  nsenter -t $s -n ip link set lan up
  ip link del "$link" 2>/dev/null || true
  port "$link" host
  ip addr add "$KUBE_LINK_NET.1/24" dev "$link"
  ip link set "$link" up
  ip route replace "$KUBE_SVC_NET.0/24" via "$KUBE_LINK_NET.2"
}
port() { # port THIS_END SWITCH_END [NETNS_PID]
  ip link add "$1" ${3:+netns $3} type veth peer name "$2" netns "$(cat "$run/switch.pid")"
  nsenter -t "$(cat "$run/switch.pid")" -n ip link set "$2" master lan up
}
node_ip() { echo "$KUBE_LINK_NET.$(($1 + 1))"; }

node_namespaces() {
  # pid 1 in there: reaps what is orphaned. Its argument names KUBE_DIR so that down.sh knows it.
  setsid unshare --pid --net --mount --uts --ipc --fork --kill-child --mount-proc --propagation private \
    bash -c 'trap : TERM INT; while :; do sleep 1000 & wait $!; done' "$KUBE_DIR" >"$logs/holder$on.log" 2>&1 </dev/null &
  local u=$! h=; disown
  for _ in $(seq 50); do h=$(ps -o pid= --ppid $u | head -1 | tr -d ' ' || true); [ -z "$h" ] || break; sleep 0.1; done
  [ -n "$h" ] || die "namespaces: $(cat "$logs/holder$on.log")"
  echo "$h" >"$run/holder$on.pid"
  port eth0 "node$on" "$h"
  inside bash -e -c '
    dir=$1 own=$1/node$2 ip=$3 gw=$4
    hostname "node$2"
    # /sys of this net namespace, with the cgroup mounts of the old one
    mkdir -p "$own/cg"; mount --rbind /sys/fs/cgroup "$own/cg"
    mount -t sysfs sysfs /sys
    mount --rbind "$own/cg" /sys/fs/cgroup; umount -l "$own/cg"
    # what Kubernetes parts write outside their own folders stays in KUBE_DIR
    mkdir -p "$own/log" "$own/lib-up" "$own/lib-work"
    mount --bind "$own/log" /var/log
    mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$own/lib-up,workdir=$own/lib-work" /var/lib
    mount -t tmpfs -o mode=755 tmpfs /run
    mount --make-rshared /
    ip link set lo up
    ip addr add "$ip/24" dev eth0
    ip link set eth0 up
    ip route add default via "$gw"
    sysctl -qw net.ipv4.ip_forward=1
    sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true
  ' node "$KUBE_DIR" "$on" "$(node_ip "$on")" "$KUBE_LINK_NET.1"
}

pause_image() {
  mkdir -p "$KUBE_DIR/images/pause"
  [ -x "$KUBE_DIR/images/pause/pause" ] || { need cc; cc -Os -static -o "$KUBE_DIR/images/pause/pause" "$here/pause.c"; }
  "$here/image.sh" "$KUBE_DIR/images/pause.tar" localhost/pause:1 "$KUBE_DIR/images/pause" /pause
}

node_start() {
  local name=node$on ip cni=$KUBE_CNI_BIN own=$KUBE_DIR/node$on d
  ip=$(node_ip "$on")
  for d in ${KUBE_BIN//:/ }; do [ -n "$cni" ] || [ ! -x "$d/cni/bridge" ] || cni=$d/cni; done
  cni=${cni:-/usr/lib/cni}
  [ -x "$cni/bridge" ] && [ -x "$cni/host-local" ] && [ -x "$cni/loopback" ] || die "no CNI plugins in $cni"
  local runc; runc=$(command -v runc || command -v crun) || die "no runc and no crun"
  mkdir -p "$own/cni"
  cert "kubelet$on" "/O=system:nodes/CN=system:node:$name" "DNS:$name,IP:$ip,IP:127.0.0.1"
  cert kube-proxy /CN=system:kube-proxy
  kubeconfig "kubelet$on"; kubeconfig kube-proxy

  # ---- containerd
  local sock=/run/containerd/containerd.sock
  cat >"$own/containerd.toml" <<T
version = 2
root = "$own/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "$sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$cni"
    conf_dir = "$own/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "$runc"
        SystemdCgroup = false
T
  spawn "containerd$on" containerd --config "$own/containerd.toml"
  until_ok 30 containerd inside ctr -a $sock version
  inside ctr -a $sock -n k8s.io images import "$KUBE_DIR/images/pause.tar" >/dev/null

  # ---- kubelet
  local endpoint= flags= proxy=$KUBE_PROXY_MODE
  if [ "$v" -ge 27 ]; then endpoint="containerRuntimeEndpoint: unix://$sock"
  else flags="--container-runtime=remote --container-runtime-endpoint=unix://$sock"; fi
  : >"$conf/resolv.conf"
  {
    cat <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet$on.crt
tlsPrivateKeyFile: $pki/kubelet$on.key
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup-$on
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
failSwapOn: false
oomScoreAdj: 0
resolvConf: $conf/resolv.conf
clusterDomain: cluster.local
clusterDNS: ["$(node_ip 1)"]
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
nodeStatusUpdateFrequency: 2s
# A pod that has ended is taken out of the API at the next look at it, at the latest.
syncFrequency: 10s
$endpoint
Y
    # 1.31 refuses cgroup v1 from 1.35 on unless told
    [ "$v" -lt 31 ] || [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || echo "failCgroupV1: false"
  } >"$own/kubelet.yaml"
  # the group that pods live under, so that nothing of the machine's own is touched
  if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then mkdir -p "/sys/fs/cgroup/$cgroup-$on"
  else for d in /sys/fs/cgroup/*/; do [ "$d" = /sys/fs/cgroup/unified/ ] || mkdir -p "$d$cgroup-$on"; done
    [ ! -e /sys/fs/cgroup/cpuset/cpuset.cpus ] || for d in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$d" >"/sys/fs/cgroup/cpuset/$cgroup-$on/cpuset.$d"; done
  fi
  spawn "kubelet$on" kubelet $gates $flags --config="$own/kubelet.yaml" --kubeconfig="$conf/kubelet$on.kubeconfig" --hostname-override="$name" \
    --node-ip="$ip" --root-dir="$own/kubelet" --cert-dir="$own/kubelet/pki" --v=2
  until_ok 60 "$name registered" k get node "$name"

  # ---- pod network: the /24 that the controller manager gave the node, and a route to it from here and every other node
  local cidr= theirs= o i
  for _ in $(seq 150); do cidr=$(k get node "$name" -o jsonpath='{.spec.podCIDR}'); [ -z "$cidr" ] || break; sleep 0.2; done
  [ -n "$cidr" ] || die "$name got no podCIDR (is kube-controller-manager in KUBE_PARTS?)"
  ip route replace "$cidr" via "$ip"
  i=$on
  for o in $(seq "$KUBE_NODE"); do
    [ "$o" != "$i" ] || continue
    on=$o; inside ip route replace "$cidr" via "$ip"
    # and back, where that node was there before: this one may be on again after it was off
    on=$i; theirs=$(k get node "node$o" -o jsonpath='{.spec.podCIDR}' 2>/dev/null || true)
    [ -z "$theirs" ] || inside ip route replace "$theirs" via "$(node_ip "$o")"
  done
  on=$i
  cat >"$own/cni/10-test.conflist" <<J
{"cniVersion": "0.4.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$cidr"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J

  # ---- Services
  if [ -z "$proxy" ]; then
    if ! command -v kube-proxy >/dev/null; then proxy=none; elif [ "$v" -ge 33 ] && command -v nft >/dev/null; then proxy=nftables; else proxy=iptables; fi
  fi
  if [ "$proxy" != none ]; then
    need kube-proxy
    cat >"$own/kube-proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $proxy
oomScoreAdj: 0
clusterCIDR: $KUBE_POD_NET.0.0/16
clientConnection: {kubeconfig: $conf/kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
    # Started anew where it ends, as a DaemonSet's pod is.
    spawn "kube-proxy$on" bash -c 'until "$@"; do sleep 1; done' kube-proxy kube-proxy --config="$own/kube-proxy.yaml" --hostname-override="$name"
  fi
  # ---- names of Services and pods
  if [ "$on" = 1 ] && command -v python3 >/dev/null; then
    spawn dns python3 "$here/dns.py" "$ip" "$api" "$pki/ca.crt" "$pki/admin.crt" "$pki/admin.key"
  fi
}

node_ready() {
  until_ok 90 "node$on ready" bash -c "kubectl --kubeconfig '$conf/admin.kubeconfig' get node 'node$on' -o 'jsonpath={.status.conditions[?(@.type==\"Ready\")].status}' | grep -qx True"
  # A pod whose first packet to a Service comes before that waits for its connection in vain.
  [ "$KUBE_PROXY_MODE" = none ] || ! command -v kube-proxy >/dev/null ||
    (until_ok 60 "Services on node$on" inside timeout 1 bash -c ": </dev/tcp/$KUBE_SVC_NET.1/443") ||
    die "kube-proxy$on says: $(tail -n 20 "$logs/kube-proxy$on.log")"
  echo "export KUBE_CTR$on='nsenter -t $(holder) -p -n -m -u -i -- $(command -v ctr) -a /run/containerd/containerd.sock -n k8s.io'"
}
