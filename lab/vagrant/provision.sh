#!/bin/sh
# Makes a Debian 12 machine one of the two that run the demo's lab; called by the Vagrantfile, as root, with TOKEN set.
#
#   provision.sh home   ADDRESS         this machine: node-a, the controller, all orders
#   provision.sh joined ADDRESS         ADDRESS is the home's; this machine: node-b
set -eu

role=$1 address=$2
source=/opt/culvert
state=/var/lib/culvert
manifests=$state/demo.yaml
token=$state/token

apt-get -qq update
apt-get -qq install -y --no-install-recommends make >/dev/null
make -C "$source" setup packages-demo
ln -sf "$source/.venv/bin/culvert" /usr/local/bin/culvert

mkdir -p "$state"
(umask 077 && printf '%s\n' "$TOKEN" >"$token")
# The demo's clients run where its orders are taken, its servers on the other machine.
sed -e "s|@APPS@|$source/cli/demo/apps|" -e 's/node-1/node-b/' -e 's/node-2/node-a/' \
	"$source/cli/demo/manifests/demo.yaml" >"$manifests"

case $role in
home) up="$manifests --listen $address --local node-a" ;;
joined) up="--join $address --local node-b" ;;
*) echo "provision.sh: $role is neither home nor joined" >&2 && exit 2 ;;
esac

cat >/etc/systemd/system/culvert-lab.service <<UNIT
[Unit]
Description=Culvert lab ($role)
Wants=network-online.target
After=network-online.target

[Service]
Type=forking
PIDFile=/run/culvert/labs/demo/supervisor.pid
ExecStart=/usr/local/bin/culvert lab up --lab demo $up --token-file $token
ExecStop=/usr/local/bin/culvert lab down --lab demo
Restart=always
RestartSec=5
TimeoutStartSec=180

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable culvert-lab.service
systemctl restart culvert-lab.service
