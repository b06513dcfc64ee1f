#!/bin/sh
# The operator's part of a simulation on one machine: invite the sites, start the run, keep it going.
set -eu
: "${SITES:?NAME:NUMBER of the sites with blanks between}"
for site in $SITES; do
  /bin/sh /opt/popmi/deploy/compose/invite.sh "${site%:*}" "${site##*:}"
done
[ -f "$POPMI_SERVER_HOME/wanted.json" ] || popmi server start --name "${RUN:-compose}"
# Nobody is there to compare fingerprints: the keeper lets in whoever writes into these volumes, and its log says so.
exec popmi server up --only keeper --confirm-from /handovers
