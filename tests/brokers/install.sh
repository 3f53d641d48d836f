#!/usr/bin/env bash
# Installs Debian's RabbitMQ, Mosquitto and strace for the tests, where they are missing and this is root on Debian.
# Without strace, tests of a failing disk are skipped; without the brokers there is no `make test`.
set -eu
missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1 || missing+=(rabbitmq-server)
command -v mosquitto >/dev/null 2>&1 || [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
wanted=("${missing[@]}")
command -v strace >/dev/null 2>&1 || wanted+=(strace)
[ ${#wanted[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing ${wanted[*]} from Debian ..."
  export DEBIAN_FRONTEND=noninteractive
  # The packages start their servers at once; the tests start their own on free ports.
  printf '#!/bin/sh\nexit 101\n' > /tmp/policy-rc.d.$$
  chmod +x /tmp/policy-rc.d.$$
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    cp /tmp/policy-rc.d.$$ /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get update -q >/dev/null
  apt-get install -y -q --no-install-recommends "${wanted[@]}" >/dev/null
  exit 0
fi
[ ${#missing[@]} -eq 0 ] && exit 0
echo "the tests need ${missing[*]}: install with apt-get install ${missing[*]}, or run make test as root on Debian" >&2
exit 1
