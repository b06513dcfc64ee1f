#!/bin/sh
# Invite one site and put its kit where the site finds it: invite.sh NAME NUMBER
set -eu
if [ -n "${IMAGES:-}" ] && [ -z "${OWN_IMAGES:-}" ]; then
  # A phantom has no place beside patients' images.
  echo "$1 has no images of its own: not invited"
  exit 0
fi
[ -f "$POPMI_SERVER_HOME/kits/$1.zip" ] || popmi server add-site "$1"
cp "$POPMI_SERVER_HOME/kits/$1.zip" "/handovers/$2/kit.part"
mv "/handovers/$2/kit.part" "/handovers/$2/kit.zip"
