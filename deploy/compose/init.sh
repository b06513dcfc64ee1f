#!/bin/sh
# Make the centre's home: settings, certificates, secret; said again, it renews what runs out.
set -eu
if [ -n "${CLASSES:-}" ]; then
  study="--classes=$CLASSES"
elif [ -n "${IMAGES:-}" ]; then
  echo "sites have images of their own: name the study's classes, CLASSES=A,B,... (else the record says phantom)" >&2
  exit 2
else
  study=--data=phantom
fi
# The run that was planned first; a later one is started by hand (docs/compose.md).
[ -f "$POPMI_SERVER_HOME/planned.toml" ] || cp /run.toml "$POPMI_SERVER_HOME/planned.toml"
exec popmi server init "$POPMI_SERVER_HOME/planned.toml" --project=compose --endpoint=gateway:8443 \
  --superlink=superlink:8000 --name=superlink --name=localhost "$study"
