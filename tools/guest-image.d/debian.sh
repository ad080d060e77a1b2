# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Pieces of Debian, for tools/lab and tools/guest-image (both source this file). Packages that must be
# installed to be of use (QEMU, cpio) go through apt_install; packages of which only files are needed
# (kernels, a static busybox) are fetched by apt-get, which checks their signatures, and unpacked into
# the cache, so that neither /boot nor the list of installed packages changes.
#
# The sourcing script sets: me (its name for messages), fail_status (its exit status for die).

say() {
	printf '%s: %s\n' "${me:?}" "$*" >&2
}

die() {
	say "$*"
	exit "${fail_status:-1}"
}

# cache_init: sets cache, a directory that the caller may write.
cache_init() {
	cache=${CORRAL_CACHE:-/var/cache/corral}
	if mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ]; then
		return
	fi
	[ -z "${CORRAL_CACHE:-}" ] ||
		die "cannot write the cache directory \"$cache\": set CORRAL_CACHE to one that you may write"
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/corral
	mkdir -p "$cache" ||
		die "cannot make the cache directory \"$cache\": set CORRAL_CACHE to one that you may write"
}

# cache_lock: until the script ends, no other one fills the same cache.
cache_lock() {
	[ -z "${cache_lock_fd:-}" ] || return 0
	exec {cache_lock_fd}>"$cache/.lock"
	flock -n "$cache_lock_fd" && return
	say "waiting for another process that fills $cache"
	flock "$cache_lock_fd"
}

cache_unlock() {
	[ -n "${cache_lock_fd:-}" ] || return 0
	exec {cache_lock_fd}>&-
	cache_lock_fd=
}

# with_apt WHAT COMMAND...: runs an apt-get command; when it fails, once more with fresh package lists.
with_apt() {
	local what=$1 log
	shift
	log=$(mktemp)
	if ! DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 </dev/null; then
		say "refreshing the package lists"
		apt-get update -qq -o DPkg::Lock::Timeout=300 >>"$log" 2>&1 </dev/null || :
		DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 </dev/null ||
			die "cannot $what: apt-get says \"$(grep -E '^E:' "$log" | head -n 1)\"; its" \
				"whole output is in $log; mend the package sources or the network and try again"
	fi
	rm -f "$log"
}

# apt_install PACKAGE...
apt_install() {
	command -v apt-get >/dev/null ||
		die "cannot install $*: there is no apt-get here; install what holds them by hand"
	[ "$(id -u)" = 0 ] ||
		die "cannot install $*: only root may; run \"apt-get install $*\" as root and try again"
	say "installing $*"
	with_apt "install $*" apt-get install -y -qq --no-install-recommends \
		-o DPkg::Lock::Timeout=300 "$@"
}

# need_tool COMMAND PACKAGE [COMMAND PACKAGE]...: installs the packages whose command is not there.
need_tool() {
	local missing=()
	while [ $# -ge 2 ]; do
		command -v "$1" >/dev/null || missing+=("$2")
		shift 2
	done
	[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# deb_unpack PACKAGE: sets deb_dir to a directory in the cache that holds the package's files.
deb_unpack() {
	local package=$1 work
	deb_dir=$cache/debian/$package
	[ ! -d "$deb_dir" ] || return 0
	cache_lock
	[ ! -d "$deb_dir" ] || return 0
	command -v apt-get >/dev/null ||
		die "cannot fetch the Debian package $package: there is no apt-get here"
	say "fetching the Debian package $package"
	mkdir -p "$cache/debian"
	work=$(mktemp -d "$cache/debian/.new.XXXXXX")
	# The child changes directory: apt-get download knows no other way to say where to.
	# shellcheck disable=SC2016 # that shell expands them
	with_apt "fetch the Debian package $package" \
		sh -c 'cd "$1" && exec apt-get download -qq -o APT::Sandbox::User=root "$2"' - "$work" "$package"
	dpkg-deb -x "$work"/*.deb "$work/files" ||
		die "cannot unpack the Debian package $package into $work: is the disk full?"
	chmod 755 "$work/files"
	mv -T "$work/files" "$deb_dir"
	rm -rf "$work"
}

# static_busybox: sets busybox to the path of a busybox without libraries.
static_busybox() {
	busybox=$(command -v busybox || :)
	# A dynamic executable names its interpreter in the first page.
	if [ -n "$busybox" ] && ! head -c 4096 "$busybox" | grep -qa ld-linux; then
		return
	fi
	deb_unpack busybox-static
	busybox=$deb_dir/bin/busybox
	[ -x "$busybox" ] || busybox=$deb_dir/usr/bin/busybox
}

# kernel_in ROOT FLAVOUR: sets kernel_* for the newest complete kernel under ROOT, or fails.
# shellcheck disable=SC2034 # kernel_* are for the script that sources this one
kernel_in() {
	local root=$1 flavour=$2 image version
	while read -r version; do
		image=$root/boot/vmlinuz-$version
		if [ -r "$image" ] && [ -r "$root/lib/modules/$version/modules.dep" ]; then
			kernel_version=$version
			kernel_image=$image
			kernel_modules=$root/lib/modules/$version
			return 0
		fi
	done < <(for image in "$root"/boot/vmlinuz-*; do
		printf '%s\n' "${image##*/vmlinuz-}"
	done | grep -E -- "^[0-9][^-]*(-[0-9]+)?-$flavour\$" | sort -rV)
	return 1
}

# debian_kernel FLAVOUR: sets kernel_version, kernel_image and kernel_modules for Debian's kernel of that
# flavour (amd64, cloud-amd64): the installed one, the cached one, or one fetched now.
debian_kernel() {
	local flavour=$1 dir package
	kernel_in "" "$flavour" && return
	while read -r dir; do
		kernel_in "$dir" "$flavour" && return
	done < <(find "$cache/debian" -maxdepth 1 -name "linux-image-*-$flavour" 2>/dev/null | sort -rV)

	need_tool depmod kmod
	package=$(kernel_package "$flavour")
	if [ -z "$package" ]; then
		say "refreshing the package lists"
		apt-get update -qq </dev/null >&2 || :
		package=$(kernel_package "$flavour")
	fi
	[ -n "$package" ] ||
		die "cannot find Debian's $flavour kernel: apt-get knows no linux-image-$flavour;" \
			"add a Debian \"main\" source to /etc/apt and try again"
	deb_unpack "$package"
	depmod -b "$deb_dir" "${package#linux-image-}" ||
		die "cannot list the modules of $package in $deb_dir: remove that directory and try again"
	kernel_in "$deb_dir" "$flavour" ||
		die "cannot use $package: $deb_dir holds no whole kernel; remove that directory and try again"
}

# kernel_package FLAVOUR: prints the package that linux-image-FLAVOUR stands for today.
kernel_package() {
	apt-cache depends --important "linux-image-$1" 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# module_files MODULE...: prints the files of the modules and of what they need, relative to
# $kernel_modules, in an order in which they load. A module built into the kernel has none.
module_files() {
	local name file deps i
	for name in "$@"; do
		while IFS=: read -r file deps; do
			# modules.dep names the module that must come first last.
			read -ra deps <<<"$deps"
			for ((i = ${#deps[@]} - 1; i >= 0; i--)); do
				printf '%s\n' "${deps[i]}"
			done
			printf '%s\n' "$file"
		done < <(grep -E "/${name//[-_]/[-_]}\.ko[^:]*:" "$kernel_modules/modules.dep")
	done | awk '!seen[$0]++'
}

# key_of WORD|FILE...: prints a short hash over words and over the content of files.
key_of() {
	local arg
	for arg in "$@"; do
		if [ -f "$arg" ]; then
			sha256sum <"$arg"
		else
			printf '%s\n' "$arg"
		fi
	done | sha256sum | cut -c 1-16
}

# make_initrd DIRECTORY FILE: packs the tree, uncompressed (an emulated CPU unpacks slowly).
make_initrd() {
	(cd "$1" && find . -print0 | LC_ALL=C sort -z |
		cpio --null --quiet -o -H newc -R 0:0 --reproducible) >"$2.$$" ||
		die "cannot write the initrd \"$2\": is the disk full?"
	mv "$2.$$" "$2"
}

# tree_with_busybox DIRECTORY APPLET...: a root with busybox and links to it under these names.
tree_with_busybox() {
	local dir=$1 applet
	shift
	mkdir -p "$dir"/{bin,dev,proc,sys,run,tmp,etc}
	cp "$busybox" "$dir/bin/busybox"
	for applet in "$@"; do
		ln -s busybox "$dir/bin/$applet"
	done
}

# tree_with_modules DIRECTORY MODULE...: /modules/*.ko and the order to load them in, /modules/order.
tree_with_modules() {
	local dir=$1/modules file name
	shift
	mkdir -p "$dir"
	while read -r file; do
		name=${file##*/}
		case $name in
		*.ko) cp "$kernel_modules/$file" "$dir/$name" ;;
		*.ko.xz) xz -dc "$kernel_modules/$file" >"$dir/${name%.xz}" ;;
		*.ko.zst) zstd -qdc "$kernel_modules/$file" >"$dir/${name%.zst}" ;;
		esac || die "cannot copy the kernel module \"$kernel_modules/$file\": is the kernel whole?"
		name=${name%.xz}
		printf '%s\n' "${name%.zst}"
	done < <(module_files "$@") >"$dir/order"
}
