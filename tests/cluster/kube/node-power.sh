#!/usr/bin/env bash
# node-power.sh off|on N: ends all of node N at once, as a power cut does, or starts it again with what
# is on its disk.
. "$(dirname "$0")/lib.sh"
. "$here/node.sh"
v=$(minor)
on=$2
case $1 in
  off)
    h=$(holder)
    kill -9 "$h"
    until_ok 20 "node$on is off" bash -c "! kill -0 $h"
    ;;
  on)
    node_namespaces
    node_start
    node_ready
    ;;
  *) die "off or on?" ;;
esac
