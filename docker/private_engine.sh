#!/bin/bash
# A Docker engine of one's own for tests: other socket, other storage, no network bridge.
#
#   private_engine.sh up FOLDER      start it, and provide the base image if no registry is reached
#   private_engine.sh down FOLDER    end it (by its pid file) and remove FOLDER
#
# Needs root and Debian (docker.io, debootstrap). The base that stands in for the official image is
# a minimal Debian of the same release with Debian's Python 3.11: only the name is shared.
set -euo pipefail
verb=$1 folder=$(realpath -m "$2")
base=python:3.11-slim-bookworm
export DOCKER_HOST=unix://$folder/sock

up() {
  mkdir -p "$folder/exec" "$folder/root"
  if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      docker.io debootstrap >/dev/null
  fi
  setsid dockerd --data-root "$folder/root" --exec-root "$folder/exec" --pidfile "$folder/pid" \
    -H "unix://$folder/sock" --iptables=false --ip6tables=false --bridge=none \
    >"$folder/log" 2>&1 </dev/null &
  for _ in $(seq 60); do
    /usr/bin/docker version >/dev/null 2>&1 && break
    sleep 1
  done
  /usr/bin/docker version >/dev/null
  /usr/bin/docker image inspect "$base" >/dev/null 2>&1 || provide_base
}

provide_base() {
  local rootfs
  rootfs=$(mktemp -d "$folder/rootfs.XXXX")
  debootstrap --variant=minbase --include=ca-certificates,python3.11,python3.11-venv,python3-pip \
    bookworm "$rootfs" >"$folder/debootstrap.log"
  ln -s /usr/bin/python3.11 "$rootfs/usr/local/bin/python"
  ln -s /usr/bin/python3.11 "$rootfs/usr/local/bin/python3"
  rm -rf "$rootfs"/var/cache/apt/archives/*.deb "$rootfs"/var/lib/apt/lists/*
  tar -C "$rootfs" -c . | /usr/bin/docker import \
    -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    -c 'LABEL stands-in-for=python:3.11-slim-bookworm' - "$base" >/dev/null
  rm -rf "$rootfs"
}

down() {
  if [ -s "$folder/pid" ]; then
    kill "$(cat "$folder/pid")"
    for _ in $(seq 30); do
      [ -e "$folder/pid" ] || break
      sleep 1
    done
  fi
  rm -rf "$folder"
}

"$verb"
