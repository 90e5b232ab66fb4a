#!/bin/bash
# Two nodes on one machine: this network and process namespace, which `unshare` has made, is the
# first; stubs/srun makes the second. Arguments: a script and its arguments.
set -e
ip link set lo up
ip link add node type veth peer name peer
ip addr add 10.77.0.1/24 dev node
ip link set node up
bash "$@"
