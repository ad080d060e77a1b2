# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by whoever sources this
# What the commands of this folder share: which Debian 12 packages are needed for what, the build, and
# whether this host's KVM runs a stock kernel. Sourced, with $tree set.

packages_build=(gcc libc6-dev meson ninja-build pkg-config python3-minimal liburing-dev libseccomp-dev libjansson-dev)
packages_lab=(qemu-system-x86 busybox-static cpio kmod e2fsprogs)
packages_test=(clang clang-format clang-tidy libclang-rt-14-dev libcriterion-dev acpica-tools qemu-utils
	mmdebstrap shellcheck strace procps util-linux binutils mtools fdisk libarchive13 passt openssh-client
	iproute2 iperf3 btrfs-progs)

build=${CORRAL_BUILD:-$tree/build}

say() { printf '%s\n' "$*" >&2; }

# Runs a long step with its output in a log, of which the end is shown if it fails.
quietly() {
	local log=$1 what=$2
	shift 2
	if ! "$@" >"$log" 2>&1; then
		say "cannot $what: \"$*\" failed; the end of $log:"
		tail -n 15 "$log" >&2
		return 1
	fi
}

# Installs what is not there yet, and says what.
packages_need() {
	local missing=() name
	for name in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
	done
	[ ${#missing[@]} -eq 0 ] && return 0
	if [ "$(id -u)" != 0 ]; then
		say "cannot install ${missing[*]}: not root; run: sudo apt-get install ${missing[*]}"
		return 1
	fi
	say "installing ${#missing[@]} Debian packages: ${missing[*]}"
	quietly /tmp/corral-apt.log "read the package lists" apt-get update -q || return 1
	quietly /tmp/corral-apt.log "install packages" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# build_tree DIR [meson option…]: sets it up once, then builds what has changed; only $build_targets if set.
build_tree() {
	local dir=$1
	shift
	if [ ! -e "$dir/build.ninja" ]; then
		quietly /tmp/corral-build.log "set up the build in $dir" meson setup "$dir" "$tree" "$@" || return 1
	fi
	# shellcheck disable=SC2086 # words
	quietly /tmp/corral-build.log "build the tree in $dir" ninja -C "$dir" -j2 ${build_targets-}
}

# Does this host's KVM run a stock kernel? It does with VT-x or AMD-V under it.
kvm_runs_linux() {
	[ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; } &&
		grep -qwE 'vmx|svm' /proc/cpuinfo
}
