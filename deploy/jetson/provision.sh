#!/usr/bin/env bash
# Sets a board up for agrikd, or brings it to another version of the agent's software.
# Run it as often as you like: what is right already is left alone, and each line says which of the two it was.
set -euo pipefail
umask 022
export PYTHONDONTWRITEBYTECODE=1 # running a check must not write into the board's own Python

usage() {
  cat <<'END'
provision.sh --wheelhouse DIR [OPTION...]    set up, or upgrade
provision.sh --rollback [OPTION...]          back to the version before

  --wheelhouse DIR     install from the wheels in DIR, without internet (agrikd deploy wheelhouse makes it)
  --online             what DIR lacks may come from the registry that pip is set up with; agrikd itself never does
  --version X          which agrikd, where DIR has several (default: the newest)
  --root ROOT.dsse     the root of trust: whose signatures the board takes (agrikd keys new --root)
  --flash-key KEY.pub  an SSH public key that may flash this board, and nothing else
  --store DIR          models, state and log (default: /var/lib/agrikd)
  --prefix DIR         the software, a folder a version (default: /opt/agrikd)
  --patience SECONDS   how long the new agent may take to answer (default: 60)
  --allow-no-opencv    go on where the board has no OpenCV: it cannot look at photos then
  --rollback           switch back to the version before this one
  --system-root DIR    work on the tree in DIR: no user sessions, no systemctl; the agent is tried by hand

Exit code 10: the new version did not answer, and the one before it is back.
END
}

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}
did() { echo "[done] $1"; }
was() { echo "[same] $1"; }

wheelhouse="" online=no wanted="*" trusted="" flash_key="" store=/var/lib/agrikd prefix=/opt/agrikd patience=60
opencv=needed rollback=no tree="" managed=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --online) online=yes; shift; continue ;;
    --allow-no-opencv) opencv=optional; shift; continue ;;
    --rollback) rollback=yes; shift; continue ;;
  esac
  [ $# -gt 1 ] || fail "$1: no such option, or its value is missing (--help lists them)" 2
  case "$1" in
    --wheelhouse) wheelhouse="$(realpath "$2")" ;;
    --version) wanted="$2" ;;
    --root) trusted="$(realpath "$2")" ;;
    --flash-key) flash_key="$(realpath "$2")" ;;
    --store) store="$2" ;;
    --prefix) prefix="$2" ;;
    --patience) patience="$2" ;;
    --system-root) tree="$(realpath "$2")" managed=no ;;
    *) fail "$1: no such option (--help lists them)" 2 ;;
  esac
  shift 2
done
here="$(dirname "$(realpath "${BASH_SOURCE[0]}")")"
tree="${tree%/}" home="$prefix/home" changed=no
software="$tree$prefix"
cd / # python -m looks into the folder that it is started in

work="$(mktemp -d)"
agent="" # of a trial without systemctl
stop_trial() {
  [ -z "$agent" ] || { kill "$agent" && wait "$agent"; } 2>/dev/null || true
  agent=""
}
trap 'stop_trial; rm -rf "$work"' EXIT

# What the steps are made of

put() { # FILE MODE: stdin becomes FILE, by a rename; after a lost power it is the old one or the new one
  cat >"$work/new"
  if cmp -s "$work/new" "$1" && [ "$(stat -c %a "$1")" = "$2" ]; then
    was "$1"
    return
  fi
  mkdir -p "$(dirname "$1")"
  install -m "$2" "$work/new" "$1.new"
  sync "$1.new"
  mv -T "$1.new" "$1"
  changed=yes
  did "$1 written"
}

point() { # LINK TARGET: by a rename, so that the link is the old one or the new one
  if [ "$(readlink "$1")" = "$2" ]; then return 1; fi
  mkdir -p "$(dirname "$1")"
  ln -sfn "$2" "$1.new"
  mv -T "$1.new" "$1"
  changed=yes
}

link() { # LINK TARGET
  if point "$1" "$2"; then did "$1 points to $2"; else was "$1 points to $2"; fi
}

folder() { # DIR MODE OWNER
  if [ "$(stat -c '%a %u:%g' "$1" 2>/dev/null)" = "$2 $3" ]; then
    was "$1"
  else
    mkdir -p "$1" && chown "$3" "$1" && chmod "$2" "$1"
    did "$1 belongs to $3, mode $2"
  fi
}

ids_of() { sed -n "s/^$1:[^:]*:\([0-9]*\):\([0-9]*\):.*/\1:\2/p" "$tree/etc/passwd"; }

# The steps

check_board() {
  [ "$managed" = no ] || [ "$(id -u)" = 0 ] || fail "run this as root: sudo $0 ..."
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$(python3 -V) is too old: agrikd wants 3.10 or later, which JetPack 6 and 7 have"
  local found
  if found="$(python3 -c 'import cv2; print(cv2.__version__)' 2>/dev/null)"; then
    was "OpenCV $found, the board's own"
  elif [ "$opencv" = needed ]; then
    fail "this board has no OpenCV: apt-get install python3-opencv (or nvidia-opencv of JetPack), then run this again.
       pip's OpenCV would come without GStreamer and hide the board's. --allow-no-opencv goes on without one."
  fi
  found="$(python3 -c 'import tensorrt; print("TensorRT", tensorrt.__version__)' 2>/dev/null)" ||
    found="no TensorRT: ONNX Runtime will answer, on the CPU"
  was "$found"
}

make_user() {
  if [ -n "$(ids_of agrikd)" ]; then
    was "user agrikd"
  else
    # A shell, because sshd runs the flashing key's one command with it; no password that any input would match.
    useradd ${tree:+--prefix "$tree"} --system --user-group --home-dir "$home" --no-create-home --shell /bin/sh \
      --password '*' agrikd
    did "user agrikd made"
  fi
  ids="$(ids_of agrikd)"
  local group
  for group in video render; do # the GPU and the cameras
    if grep -Eq "^$group:(.*[:,])?agrikd(,|\$)" "$tree/etc/group"; then
      was "agrikd is in the group $group"
    elif grep -q "^$group:" "$tree/etc/group"; then
      usermod ${tree:+--prefix "$tree"} --append --groups "$group" agrikd
      did "agrikd put into the group $group"
    fi
  done
}

find_wheel() {
  [ -d "$wheelhouse" ] || fail "--wheelhouse DIR: name the folder of wheels (agrikd deploy wheelhouse makes it)" 2
  if [ -f "$wheelhouse/SHA256SUMS" ]; then
    (cd "$wheelhouse" && sha256sum --check --strict --quiet SHA256SUMS) ||
      fail "$wheelhouse is not what was gathered: copy it again"
    was "$wheelhouse is whole"
  fi
  wheel="$(compgen -G "$wheelhouse/agrikd-$wanted-*.whl" | sort -V | tail -n 1)" ||
    fail "$wheelhouse holds no agrikd-$wanted-….whl"
  version="$(basename "$wheel" | cut -d- -f2)"
}

install_version() {
  local venv="$software/$version" sum numpy=()
  sum="$(sha256sum <"$wheel" | cut -d' ' -f1)"
  if [ -s "$venv/.installed" ]; then
    [ "$(cat "$venv/.installed")" = "$sum" ] ||
      fail "agrikd $version is installed already, from another wheel: give yours another version number"
    was "agrikd $version in $prefix/$version"
    return
  fi
  # A half of one: the mark is written last. Where it is current all the same, the version before stands in meanwhile.
  if [ "$(readlink "$software/current")" = "$version" ] && [ -L "$software/previous" ]; then
    link "$software/current" "$(readlink "$software/previous")"
  fi
  rm -rf "$venv"
  local without=() pip=("$venv/bin/python" -m pip)
  if compgen -G "$wheelhouse/pip-*.whl" >/dev/null; then # then the board needs no python3-venv
    without=(--without-pip)
    pip=("$venv/bin/python" "$(compgen -G "$wheelhouse/pip-*.whl" | sort -V | tail -n 1)/pip")
  fi
  python3 -m venv --system-site-packages "${without[@]}" "$venv" ||
    fail "no environment could be made: apt-get install python3-venv, or put pip's wheel into $wheelhouse"
  case "$(python3 -c 'import numpy; print(numpy.__version__)' 2>/dev/null)" in
    1.*) numpy=("numpy<2") ;; # the board's OpenCV was built with numpy 1 and cannot be imported beside 2
  esac
  local from=(--isolated --no-index)
  [ "$online" = no ] || from=()
  "${pip[@]}" install --quiet --disable-pip-version-check --no-warn-script-location "${from[@]}" \
    --find-links "$wheelhouse" "${wheel}[edge]" "${numpy[@]}" ||
    fail "pip could not install agrikd $version; the version that ran before runs on"
  "$venv/bin/python" -c 'import agrikd.device.agent, onnxruntime, cryptography' ||
    fail "agrikd $version cannot be imported here; the version that ran before runs on"
  [ "$opencv" = optional ] || "$venv/bin/python" -c 'import cv2' ||
    fail "the board's OpenCV cannot be imported beside what pip installed; the version that ran before runs on"
  sync --file-system "$software" # before the mark says that it is whole: the power may go
  put "$venv/.installed" 644 <<<"$sum"
  did "agrikd $version in $prefix/$version"
}

put_version_files() { # what goes forth and back with the software
  put "$software/$version/agrikd-device" 755 <<END
#!/bin/sh
# The verbs of this board. As root they run as agrikd, to whom the store belongs.
[ "\$(id -u)" != 0 ] || exec setpriv --reuid agrikd --regid agrikd --init-groups --reset-env "\$0" "\$@"
exec $prefix/current/bin/python -I -m agrikd.device --store $store "\$@"
END
  # no pipe into put: in a process of its own it could not say what changed
  sed "s|/var/lib/agrikd|$store|; s|/opt/agrikd|$prefix|" "$here/agrikd-agent.service" >"$work/unit"
  put "$software/$version/agrikd-agent.service" 644 <"$work/unit"
  sed "s|^\(wheelhouse=.*\) store=[^ ]* prefix=[^ ]* |\1 store=$store prefix=$prefix |" \
    "$here/provision.sh" >"$work/script"
  put "$software/$version/provision.sh" 755 <"$work/script" # for --rollback, far from any checkout
  put "$software/$version/README.md" 644 <"$here/README.md"
}

put_links() {
  link "$tree/usr/local/bin/agrikd-device" "$prefix/current/agrikd-device"
  link "$tree/etc/systemd/system/agrikd-agent.service" "$prefix/current/agrikd-agent.service"
  link "$tree/etc/systemd/system/multi-user.target.wants/agrikd-agent.service" \
    /etc/systemd/system/agrikd-agent.service
}

put_flash_key() { # the file is root's: agrikd itself lets nobody in
  [ -n "$flash_key" ] || return 0
  local kind="" blob="" line file="$tree$home/.ssh/authorized_keys"
  read -r kind blob _ <"$flash_key" || true
  [[ "$kind $blob" =~ ^(ssh|ecdsa|sk)-[a-z0-9@.-]+\ AAAA[A-Za-z0-9+/=]+$ ]] ||
    fail "$flash_key is no SSH public key: give the .pub file"
  line="command=\"/usr/local/bin/agrikd-device serve --stdio\",restrict $kind $blob"
  if grep -qxF "$line" "$file" 2>/dev/null; then
    was "$flash_key may flash"
  else # whatever else the same key was allowed ends here
    { grep -vF " $blob" "$file" 2>/dev/null || true; echo "$line"; } | put "$file" 644
  fi
}

give_trust() {
  local before
  before="$(ls "$tree$store/trust" 2>/dev/null)" || true
  if [ -n "$trusted" ]; then
    install -m 644 "$trusted" "$work/root" && chmod 755 "$work"
    "${device[@]}" trust "$work/root" 2>"$work/said" || fail "$(cat "$work/said")"
  fi
  if [ "$before" != "$(ls "$tree$store/trust" 2>/dev/null)" ]; then
    did "the board trusts $(cat "$work/said")"
  elif [ -n "$before" ]; then
    was "the board trusts root $(tr -dc '0-9\n' <<<"$before" | sort -n | tail -n 1)"
  else
    was "the board trusts nobody yet: give it --root, or it takes no bundle"
  fi
}

# The switch

serving() { # what the agent's model is; "-" where no agent answers
  "${device[@]}" status --json 2>/dev/null | python3 -c '
import json, sys
agent = json.load(sys.stdin)["agent"]
print(agent["serving"] if agent else "-")' 2>/dev/null || echo -
}

restart() {
  if [ "$managed" = yes ]; then
    systemctl daemon-reload
    systemctl stop agrikd-agent # first, or the old one would answer for the new one
    systemctl start --no-block agrikd-agent
  else
    stop_trial
    "${device[@]}" run >>"$work/agent.log" 2>&1 &
    agent=$!
  fi
}

answers() { # BEFORE: three times in a row, with the model that served before
  local now good=0 end=$((SECONDS + patience))
  while [ "$SECONDS" -lt "$end" ] && [ "$good" -lt 3 ]; do
    sleep 0.5
    now="$(serving)"
    if [ "$now" = - ] || { [ -n "${1#-}" ] && [ "$now" != "$1" ]; }; then good=0; else good=$((good + 1)); fi
  done
  [ "$good" = 3 ]
}

last_words() {
  if [ "$managed" = yes ]; then journalctl -u agrikd-agent -n 15 --no-pager; else tail -n 15 "$work/agent.log"; fi >&2
}

switch_to() { # VERSION: `previous` keeps the way back
  local old older before
  old="$(readlink "$software/current")" || true
  older="$(readlink "$software/previous")" || true
  before="$(serving)"
  if [ "$old" != "$1" ]; then
    [ -z "$old" ] || point "$software/previous" "$old" || true
    sync --file-system "$software" # all that it points to: the power may go
    point "$software/current" "$1"
  elif [ "$changed" = no ] && [ "$managed $before" != "yes -" ]; then
    was "agrikd $1 is current"
    return
  fi
  restart
  if answers "$before"; then
    did "agrikd $1 answers"
    sync --file-system "$software"
    return
  fi
  last_words
  if [ -z "$old" ] || [ "$old" = "$1" ]; then
    fail "agrikd $1 does not answer after $patience s, and there is no other version to go back to"
  fi
  point "$software/current" "$old"
  if [ -n "$older" ]; then point "$software/previous" "$older" || true; else rm -f "$software/previous"; fi
  restart
  answers "$before" || last_words
  fail "agrikd $1 did not answer in $patience s: $old is back" 10
}

drop_older() { # but for the version that runs and the way back
  local one name
  for one in "$software"/*/pyvenv.cfg; do
    name="$(basename "$(dirname "$one")")"
    [ ! -L "$software/$name" ] || continue
    case "$name" in "$(readlink "$software/current")" | "$(readlink "$software/previous")") continue ;; esac
    rm -rf "${software:?}/$name"
    did "agrikd $name removed: neither this version nor the one before"
  done
}

make_device() { # the command that runs the device's verbs as agrikd
  local become=()
  [ "${ids%:*}" = "$(id -u)" ] || become=(setpriv --reuid "${ids%:*}" --regid "${ids#*:}" --clear-groups)
  device=("${become[@]}" "$software/current/bin/python" -m agrikd.device --store "$tree$store")
}

if [ "$rollback" = yes ]; then
  version="$(readlink "$software/previous")" || fail "there is no version before this one"
  ids="$(ids_of agrikd)"
  make_device
  switch_to "$version"
  exit 0
fi
check_board
make_user
find_wheel
folder "$tree$store" 750 "$ids"
install_version
put_version_files
put_links
put_flash_key
make_device
switch_to "$version"
give_trust
drop_older
