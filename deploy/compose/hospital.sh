#!/bin/sh
# One site of a simulation on one machine: enrol with the kit that lies ready, approve the installed code, take part.
set -eu
: "${SITE:?name of the site}"
data=/data
# Without images of its own a site draws the phantom of its name.
[ -f /data/labels.csv ] || data="phantom:$SITE"
until [ -f /handover/kit.zip ]; do sleep 1; done
[ -f "$POPMI_SITE_HOME/node.key" ] || popmi site enrol /handover/kit.zip --data "$data"
cp "$POPMI_SITE_HOME/$SITE.enrolment.json" /handover/enrolment.part
mv /handover/enrolment.part /handover/enrolment.json
# This very code lies in the image; at a real hospital a person looks at it first.
popmi site approve --installed --yes
exec popmi site run
