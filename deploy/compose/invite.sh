#!/bin/sh
# Invite one site and put its kit where the site finds it: invite.sh NAME NUMBER
set -eu
[ -f "$POPMI_SERVER_HOME/kits/$1.zip" ] || popmi server add-site "$1"
cp "$POPMI_SERVER_HOME/kits/$1.zip" "/handovers/$2/kit.part"
mv "/handovers/$2/kit.part" "/handovers/$2/kit.zip"
