# Shared by up.sh, node-power.sh and down.sh; sourced, never run.
set -Eeuo pipefail
trap 'echo "kube: ${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND: exit code $?" >&2' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

KUBE_BIN=${KUBE_BIN:-}                                  # folder(s) of binaries, ':' between them
KUBE_DIR=${KUBE_DIR:-${TMPDIR:-/tmp}/trafficmirror-cluster-$(id -u)} # state: certs, etcd data, logs, pids
KUBE_NODE=${KUBE_NODE:-0}                               # how many nodes (root; each in its own pid, net and mount namespace); 0: none
KUBE_PARTS=${KUBE_PARTS-"kube-controller-manager kube-scheduler"} # beside etcd and kube-apiserver; "" for those two alone
KUBE_PORT=${KUBE_PORT:-16443}                           # API server; the next four ports are used too
KUBE_PROXY_MODE=${KUBE_PROXY_MODE:-}                    # iptables | nftables | none
KUBE_SVC_NET=${KUBE_SVC_NET:-10.96.0}                   # /24
KUBE_POD_NET=${KUBE_POD_NET:-10.244}                    # /16, a /24 for each node
KUBE_LINK_NET=${KUBE_LINK_NET:-10.231.0}                # /24: .1 this machine, .2 node1 (with the control plane), .3 node2, ...
KUBE_CNI_BIN=${KUBE_CNI_BIN:-}                          # CNI plugins; default KUBE_BIN/cni, then /usr/lib/cni
KUBE_FEATURES=${KUBE_FEATURES:-}                        # --feature-gates for every part
KUBE_APISERVER_ARGS=${KUBE_APISERVER_ARGS:-}            # more flags
gates=${KUBE_FEATURES:+--feature-gates=$KUBE_FEATURES}

[ -z "$KUBE_BIN" ] || PATH=$KUBE_BIN:$PATH
PATH=$PATH:/usr/sbin:/sbin
export PATH

pki=$KUBE_DIR/pki run=$KUBE_DIR/run logs=$KUBE_DIR/logs conf=$KUBE_DIR/conf
cgroup=trafficmirror-cluster-$(printf %s "$KUBE_DIR" | cksum | cut -d' ' -f1)
link=tm$(printf %s "$KUBE_DIR" | cksum | cut -d' ' -f1 | tail -c 9)

if [ "$KUBE_NODE" -gt 0 ]; then
  api_ip=$KUBE_LINK_NET.2 bind_ip=0.0.0.0
else
  api_ip=127.0.0.1 bind_ip=127.0.0.1
fi
api=https://$api_ip:$KUBE_PORT

die() { echo "kube: $*" >&2; exit 1; }
need() { for n; do command -v "$n" >/dev/null || die "no $n on PATH or in KUBE_BIN"; done; }
minor() { kube-apiserver --version | sed -E 's/^Kubernetes v1\.([0-9]+).*/\1/'; }

on=1 # the node that inside and spawn mean
holder() { [ -s "$run/holder$on.pid" ] && cat "$run/holder$on.pid"; }
# runs a command where the cluster lives: here, or in the namespaces of node $on
inside() {
  if [ "$KUBE_NODE" -gt 0 ]; then
    nsenter -t "$(holder)" -p -n -m -u -i -- "$@"
  else
    "$@"
  fi
}
# spawn NAME COMMAND...: detached, log in logs/NAME.log, pid in run/NAME.pid
spawn() {
  local name=$1; shift
  if [ "$KUBE_NODE" -gt 0 ]; then
    setsid nsenter -t "$(holder)" -p -n -m -u -i -- "$@" >>"$logs/$name.log" 2>&1 </dev/null &
  else
    setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null &
  fi
  echo $! >"$run/$name.pid"
  disown
}
# until_ok SECONDS WHAT COMMAND...
until_ok() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what: not within the time; see $logs"
    sleep 0.2
  done
}
k() { kubectl --kubeconfig "$conf/admin.kubeconfig" "$@"; }
ca() { # ca FILE CN
  [ -s "$pki/$1.crt" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature \
    -keyout "$pki/$1.key" -out "$pki/$1.crt" 2>/dev/null
}
cert() { # cert FILE SUBJECT [SAN] [CA]
  local f=$pki/$1 san=${3:-} by=${4:-ca}
  [ ! -s "$f.crt" ] || return 0
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$f.key" -out "$f.csr" 2>/dev/null
  openssl x509 -req -in "$f.csr" -CA "$pki/$by.crt" -CAkey "$pki/$by.key" -CAcreateserial -days 365 -out "$f.crt" -extfile <(
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=clientAuth,serverAuth"
    [ -z "$san" ] || echo "subjectAltName=$san"
  ) 2>/dev/null
}
kubeconfig() { # kubeconfig NAME [SERVER]
  local b="base64 -w0"
  cat >"$conf/$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "${2:-$api}", certificate-authority-data: $($b "$pki/ca.crt")}}]
users: [{name: $1, user: {client-certificate-data: $($b "$pki/$1.crt"), client-key-data: $($b "$pki/$1.key")}}]
contexts: [{name: test, context: {cluster: test, user: $1}}]
current-context: test
Y
  chmod 600 "$conf/$1.kubeconfig"
}
