# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034,SC2154 # edk2_built is for tools/firmware, which sources this and sets edk2_options
#
# Debian's source package edk2: which version, where from, how it is built.

# What the package lists of this host say is current; nothing if they are empty.
edk2_version() {
	apt-cache show --no-all-versions ovmf 2>/dev/null | sed -n 's/^Version: //p'
}

# edk2_fetch VERSION DIRECTORY: unpacks the source into DIRECTORY/edk2 and sets edk2_fetched to its
# version. The host's package sources often lack those of source packages: apt-get is given a list and
# a place of its own, so that what the host has stays as it is.
edk2_fetch() {
	local version=$1 dir=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg signed="" uri release apt dsc
	command -v apt-get >/dev/null ||
		die "cannot fetch Debian's source package edk2: there is no apt-get here"
	[ ! -r $keyring ] || signed="[signed-by=$keyring] "
	# The words in parentheses are apt-get's own.
	# shellcheck disable=SC2016
	while read -r uri release; do
		printf 'deb-src %s%s %s main\n' "$signed" "$uri" "$release"
	done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' \
		'Created-By: Packages' 'Origin: Debian' 'Component: main') >"$dir/sources.list"
	[ -s "$dir/sources.list" ] ||
		die "cannot fetch Debian's source package edk2: apt-get knows no Debian source; add one to /etc/apt" \
			"and run apt-get update"
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	apt=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root
		-o APT::Get::List-Cleanup=false)
	say "fetching Debian's source package edk2${version:+ $version} (17 MB)"
	edk2_step "read the lists of source packages" "$dir/log" apt-get "${apt[@]}" update -q
	# shellcheck disable=SC2016 # that shell expands them
	edk2_step "fetch the source package edk2" "$dir/log" sh -c 'cd "$1" && shift && exec "$@"' - "$dir" \
		apt-get "${apt[@]}" source -q --download-only --only-source "edk2${version:+=$version}"
	dsc=$(find "$dir" -maxdepth 1 -name 'edk2_*.dsc')
	edk2_fetched=$(sed -n 's/^Version: //p' "$dsc" | head -n 1)
	edk2_step "unpack the source package edk2" "$dir/log" dpkg-source --no-check -x "$dsc" "$dir/edk2"
}

# edk2_step WHAT LOG COMMAND...
edk2_step() {
	local what=$1 log=$2 kept
	shift 2
	"$@" >"$log" 2>&1 </dev/null && return
	kept=$(mktemp "${TMPDIR:-/tmp}/corral-firmware.XXXXXX")
	cp "$log" "$kept"
	die "cannot $what: the last words are \"$(grep -v '^ *$' "$kept" | tail -n 1)\"; its whole output is in $kept"
}

# edk2_build DIRECTORY LOG: builds the tools, then the platform, and sets edk2_built to the firmware.
# edksetup.sh and the tools of EDK II expect the names of variables and a working directory of theirs.
edk2_build() {
	local dir=$1 log=$2 jobs
	jobs=$(nproc)
	[ "$jobs" -le 2 ] || jobs=$((jobs - 1))
	say "building the tools of EDK II $edk2_fetched (half a minute)"
	edk2_step "build the tools of EDK II" "$log" env PYTHON_COMMAND=python3 make -C "$dir/BaseTools" -j "$jobs" ARCH=X64
	say "building the firmware (three minutes)"
	(
		cd "$dir" || exit
		export WORKSPACE=$dir PYTHON_COMMAND=python3
		set --
		# shellcheck disable=SC1091 # part of the source package
		. ./edksetup.sh
		build -n "$jobs" -a X64 -t GCC5 -p OvmfPkg/CloudHv/CloudHvX64.dsc "${edk2_options[@]}"
	) >"$log" 2>&1 </dev/null &
	edk2_watch $! "$log" ||
		die "cannot build the firmware: \"$(grep -m 1 -E 'error( [0-9A-F]+)?:' "$log" || tail -n 1 "$log")\"; the" \
			"whole output is in $log"
	edk2_built=$(find "$dir/Build" -name CLOUDHV.fd)
}

# edk2_watch PID LOG: says now and then how far the build is, and returns its status.
edk2_watch() {
	local built=0 line
	while read -r line; do
		[ "${line#Building ... }" != "$line" ] || continue
		built=$((built + 1))
		[ $((built % 40)) != 0 ] || say "$built modules and libraries are built"
	done < <(tail -c +1 -s 0.5 -f --pid="$1" "$2" 2>/dev/null)
	wait "$1"
}
