#!/bin/sh
# The operator's part of a simulation on one machine: invite the sites, start the run, keep it going.
set -eu
: "${SITES:?NAME:NUMBER of the sites with blanks between, NAME:NUMBER:images where they have some of their own}"
for site in $SITES; do
  name=${site%%:*}
  rest=${site#*:}
  case "$SITES" in
    # A phantom has no place beside patients' images.
    *:images*) [ "$rest" != "${rest%:images}" ] || { echo "$name has no images of its own: not invited"; continue; } ;;
  esac
  /bin/sh /opt/popmi/deploy/compose/invite.sh "$name" "${rest%:images}"
done
if [ ! -f "$POPMI_SERVER_HOME/wanted.json" ]; then
  run="${RUN:-compose}"
  # Killed between the two steps of a start, a run is planned but not wanted.
  if [ -f "$POPMI_SERVER_HOME/runs/$run/plan.json" ]; then
    popmi server resume "$run"
  else
    popmi server start --name "$run"
  fi
fi
# Nobody is there to compare fingerprints: the keeper lets in whoever writes into these volumes, and its log says so.
exec popmi server up --only keeper --confirm-from /handovers
