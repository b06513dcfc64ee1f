#!/bin/sh
# One site of a simulation on one machine: enrol with the kit that lies ready, approve the installed code, take part.
set -eu
: "${SITE:?name of the site}"
if [ -n "${OWN_IMAGES:-}" ]; then
  data=/data
  if [ ! -r /data/labels.csv ]; then
    echo "$SITE: user $(id -u) finds no labels.csv to read in $OWN_IMAGES: is the path right, may others read it?" >&2
    exit 2
  fi
elif [ -n "${IMAGES:-}" ]; then
  echo "$SITE has no images of its own beside sites that have some: it takes no part"
  mkdir -p "$POPMI_SITE_HOME/processes"
  while true; do
    touch "$POPMI_SITE_HOME/processes/alive"
    sleep 20
  done
fi
until [ -f /handover/kit.zip ]; do sleep 1; done
# Written last: without it nobody was ever told of a key that may lie here.
if [ ! -f "$POPMI_SITE_HOME/$SITE.enrolment.json" ]; then
  again=
  [ -f "$POPMI_SITE_HOME/site.toml" ] || again="--new-key --yes"
  # Where no site has images of its own, each draws a phantom.
  [ -n "${OWN_IMAGES:-}" ] || data=$(python /opt/popmi/deploy/compose/phantom.py /handover/kit.zip "$POPMI_SITE_HOME/phantom")
  popmi site enrol /handover/kit.zip --data "$data" $again
fi
cp "$POPMI_SITE_HOME/$SITE.enrolment.json" /handover/enrolment.part
mv /handover/enrolment.part /handover/enrolment.json
# This very code lies in the image; at a real hospital a person looks at it first.
popmi site approve --installed --yes
exec popmi site run
