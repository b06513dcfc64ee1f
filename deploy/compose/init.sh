#!/bin/sh
# Make the centre's home: settings, certificates, secret; said again, it renews what runs out and leaves the settings alone.
set -eu
if [ -n "${CLASSES:-}" ]; then
  study="--classes=$CLASSES"
elif [ -n "${IMAGES:-}" ]; then
  echo "sites have images of their own: name the study's classes, CLASSES=A,B,... (else the record says phantom)" >&2
  exit 2
else
  study=--data=phantom
fi
if [ -f "$POPMI_SERVER_HOME/server.toml" ]; then
  # Whatever this POPMI's own defaults are: a study keeps what it was begun with.
  popmi server renew ${CLASSES:+"--classes=$CLASSES"}
else
  # The run that is planned first; a later one is started by hand (docs/compose.md).
  if [ ! -f "$POPMI_SERVER_HOME/planned.toml" ]; then
    if [ ! -r /run.toml ]; then
      echo "user $(id -u) cannot read RUN_FILE (./deploy/compose/run.toml): chmod a+r" >&2
      exit 2
    fi
    cp /run.toml "$POPMI_SERVER_HOME/planned.part"
    mv "$POPMI_SERVER_HOME/planned.part" "$POPMI_SERVER_HOME/planned.toml"
  fi
  popmi server init "$POPMI_SERVER_HOME/planned.toml" --project=compose --endpoint=gateway:8443 \
    --superlink=superlink:8000 --name=superlink --name=localhost "$study"
fi

# Runs have a volume of their own, which the pages may read. An older POPMI kept them in the centre's: each is moved once, and
# is there whole or not at all. A run that somebody is at holds its lock.
for old in "$POPMI_SERVER_HOME/runs"/*/; do
  [ -d "$old" ] || continue
  name=$(basename "$old")
  if [ ! -d "/runs/$name" ]; then
    if [ -f "$old/run.lock" ] && ! flock --nonblock "$old/run.lock" true; then
      echo "run $name is going on in the volume it must leave: docker compose down, then docker compose up --build" >&2
      exit 2
    fi
    rm -rf "/runs/.$name.part"
    cp -a "$old" "/runs/.$name.part"
    mv "/runs/.$name.part" "/runs/$name"
    echo "run $name was moved into the volume \`runs\`"
  fi
  rm -rf "$old"
done

# A file is there whole or not at all, and never open to others, not for a moment.
umask 077
put() { # put FOLDER/NAME MODE < CONTENT
  cat > "$1.part"
  chmod "$2" "$1.part"
  mv "$1.part" "$1"
}

# The database's password, once. PostgreSQL, another user, reads it as a member of this user's group; libpq wants a file
# that is its own user's only.
if [ ! -s /password/password ]; then
  made=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')
  echo "$made" | put /password/password 640
fi
echo "*:*:*:popmi:$(cat /password/password)" | put /password/pgpass 600

# What the gateway needs of all this, and no more: not the authority's key, the secret or the runs.
mkdir -p /gateway/pki
for name in server.toml pki/ca.pem pki/server.key pki/server.pem; do
  put "/gateway/$name" 600 < "$POPMI_SERVER_HOME/$name"
done
