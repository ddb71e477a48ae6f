#!/usr/bin/env bash
# Makes a folder with arm64's Python and ONNX Runtime, which tests/e2e/test_arm64.py runs under emulation:
#   tests/arm64.sh TREE        (on Debian, with qemu-user-static)
# TREE/python3 runs them, and is its own sys.executable, so that what it starts is emulated too. Nothing is registered
# with the kernel, nobody need be root, and what was broken off goes on with the next call.
set -euo pipefail

[ ! -e "$1/.ready" ] || exit 0
for program in qemu-aarch64-static apt-get dpkg-deb; do
  command -v "$program" >/dev/null || { echo "there is no $program" >&2; exit 1; }
done
mkdir -p "$1"
tree="$(cd "$1" && pwd -P)"

# This machine's sources and keys, another architecture, and a state of its own in which nothing is installed.
mkdir -p "$tree"/apt/{lists,cache/archives}/partial
: >"$tree/apt/status"
apt=(apt-get -qq --yes --no-install-recommends -o APT::Architecture=arm64 -o APT::Architectures=arm64
  -o APT::Sandbox::User="$(id -un)" -o Dir::State="$tree/apt" -o Dir::State::status="$tree/apt/status"
  -o Dir::Cache="$tree/apt/cache")
"${apt[@]}" update
"${apt[@]}" install --download-only python3-minimal libpython3-stdlib libstdc++6
for package in "$tree"/apt/cache/archives/*.deb; do
  dpkg-deb --extract "$package" "$tree"
done
found=("$tree"/usr/bin/python3.*)
version="${found[0]##*python}"

# A wheel for a later glibc than bookworm's 2.36 would not start. --no-compile: this Python's version may be another.
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --upgrade --no-compile --only-binary :all: \
  --implementation cp --python-version "$version" --target "$tree/usr/lib/python3/dist-packages" \
  --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
  --platform manylinux_2_34_aarch64 \
  numpy onnxruntime cryptography opencv-python-headless typer rich pydantic pyyaml

# A Cortex-A76 is the nearest to an Orin's A78AE that this emulator knows; its own choice has what no Jetson has.
cat >"$tree/python3" <<END
#!/bin/sh
here="\${0%/*}"
PYTHONHOME="\$here/usr" exec qemu-aarch64-static -cpu cortex-a76 -L "\$here" -0 "\$0" "\$here/usr/bin/python$version" "\$@"
END
chmod +x "$tree/python3"

# The emulator opens what lies in the tree instead of what it lies over. ONNX Runtime asks Linux what the processor is,
# and dies of an arm64 of which /proc tells an x86's story.
mkdir -p "$tree"/proc "$tree"/sys/devices/system/cpu
cat >"$tree/proc/cpuinfo" <<'END'
processor	: 0
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1
END
echo 0 | tee "$tree"/sys/devices/system/cpu/{possible,present} >/dev/null

# It compiles what it imports: without this the first test would.
"$tree/python3" -c 'import cryptography.hazmat.primitives.asymmetric.ed25519, cv2, onnxruntime, pydantic, typer, yaml'
rm -r "$tree/apt"
touch "$tree/.ready"
