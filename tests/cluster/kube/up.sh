#!/usr/bin/env bash
# Starts a Kubernetes control plane (and, with KUBE_NODE=N, N real nodes) from a folder of binaries.
#   KUBE_BIN=/path/to/bin ./up.sh           etcd, kube-apiserver, controller manager, scheduler on loopback
#   KUBE_NODE=2 KUBE_BIN=... ./up.sh        the same with two real nodes, all of it in namespaces of its own (root)
# Prints lines to eval: KUBECONFIG and, with a node, how to reach it. Settings: lib.sh. Stop: down.sh.
. "$(dirname "$0")/lib.sh"

need kube-apiserver etcd kubectl openssl jq
for p in $KUBE_PARTS; do need "$p"; done
[ ! -s "$run/etcd.pid" ] || ! kill -0 "$(cat "$run/etcd.pid")" 2>/dev/null || die "already up in $KUBE_DIR: down.sh first"
mkdir -p "$pki" "$run" "$logs" "$conf" "$KUBE_DIR/etcd"
chmod 700 "$KUBE_DIR/etcd"
v=$(minor)

# ---- certificates
ca ca trafficmirror-cluster-ca
ca front-proxy-ca trafficmirror-cluster-front-proxy
cert apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$KUBE_SVC_NET.1,IP:$KUBE_LINK_NET.2"
cert apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client
cert front-proxy /CN=front-proxy-client "" front-proxy-ca
cert admin /O=system:masters/CN=kubernetes-admin
cert kube-controller-manager /CN=system:kube-controller-manager
cert kube-scheduler /CN=system:kube-scheduler
[ -s "$pki/sa.key" ] || openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
[ -s "$pki/sa.pub" ] || openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null

kubeconfig admin
for p in kube-controller-manager kube-scheduler; do kubeconfig $p; done

# ---- the namespaces that the nodes live in
if [ "$KUBE_NODE" -gt 0 ]; then
  [ "$(id -u)" = 0 ] || die "KUBE_NODE=$KUBE_NODE needs root"
  need unshare nsenter ip kubelet containerd ctr containerd-shim-runc-v2
  . "$here/node.sh"
  lan
  for on in $(seq "$KUBE_NODE"); do node_namespaces; done
  on=1
fi

# ---- etcd
etcd_fast=; ! etcd --help 2>&1 | grep -q unsafe-no-fsync || etcd_fast=--unsafe-no-fsync
spawn etcd env ETCD_UNSUPPORTED_ARCH= etcd --name test --data-dir "$KUBE_DIR/etcd" $etcd_fast --logger zap \
  --listen-client-urls "http://127.0.0.1:$((KUBE_PORT + 1))" --advertise-client-urls "http://127.0.0.1:$((KUBE_PORT + 1))" \
  --listen-peer-urls "http://127.0.0.1:$((KUBE_PORT + 2))" --initial-advertise-peer-urls "http://127.0.0.1:$((KUBE_PORT + 2))" \
  --initial-cluster "test=http://127.0.0.1:$((KUBE_PORT + 2))"

# ---- kube-apiserver
reconciler=lease; [ "$KUBE_NODE" -gt 0 ] || reconciler=none # the 'kubernetes' Service may not have a loopback endpoint
spawn kube-apiserver kube-apiserver $gates \
  --etcd-servers="http://127.0.0.1:$((KUBE_PORT + 1))" \
  --bind-address="$bind_ip" --advertise-address="$api_ip" --secure-port="$KUBE_PORT" --endpoint-reconciler-type=$reconciler \
  --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
  --kubelet-client-certificate="$pki/apiserver-kubelet.crt" --kubelet-client-key="$pki/apiserver-kubelet.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
  --service-account-issuer=https://kubernetes.default.svc.cluster.local \
  --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
  --requestheader-client-ca-file="$pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
  --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
  --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
  --service-cluster-ip-range="$KUBE_SVC_NET.0/24" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --allow-privileged=true --profiling=false $KUBE_APISERVER_ARGS
until_ok 90 "kube-apiserver ready" k get --raw /readyz

# ---- controller manager, scheduler
old=; [ "$v" -ge 24 ] || old=--port=0
for p in $KUBE_PARTS; do
  case $p in
    kube-controller-manager)
      cidr="--allocate-node-cidrs=false"; [ "$KUBE_NODE" = 0 ] || cidr="--allocate-node-cidrs=true --cluster-cidr=$KUBE_POD_NET.0.0/16 --node-cidr-mask-size=24"
      spawn $p $p $gates $old --kubeconfig="$conf/$p.kubeconfig" --authentication-kubeconfig="$conf/$p.kubeconfig" --authorization-kubeconfig="$conf/$p.kubeconfig" \
        --bind-address=127.0.0.1 --secure-port=$((KUBE_PORT + 3)) --leader-elect=false --use-service-account-credentials=true $cidr \
        --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key"
      ;;
    kube-scheduler)
      spawn $p $p $gates $old --kubeconfig="$conf/$p.kubeconfig" --authentication-kubeconfig="$conf/$p.kubeconfig" --authorization-kubeconfig="$conf/$p.kubeconfig" \
        --bind-address=127.0.0.1 --secure-port=$((KUBE_PORT + 4)) --leader-elect=false
      ;;
    *) die "KUBE_PARTS: $p?" ;;
  esac
done
case " $KUBE_PARTS " in *" kube-controller-manager "*) until_ok 60 "default service account" k -n default get serviceaccount default ;; esac

if [ "$KUBE_NODE" -gt 0 ]; then
  pause_image
  for on in $(seq "$KUBE_NODE"); do node_start; done
  for on in $(seq "$KUBE_NODE"); do node_ready; done
fi

echo "export KUBECONFIG=$conf/admin.kubeconfig"
