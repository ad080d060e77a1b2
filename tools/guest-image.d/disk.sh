# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034,SC2154 # result is for tools/guest-image, which sources this and sets cache and here
#
# Disk images that UEFI firmware boots: a Debian as its cloud images are, and Debian's installer. The
# sourcing script is tools/guest-image. Nothing is mounted and no loop device is used: the file
# systems are written straight into their partitions.

# Fixed, so that a guest can be told its root in files that are made before the disk.
DISK_ROOT_UUID=5d1d3a8c-6f0e-4a55-9a39-c0ffee000001
DISK_ESP_ID=C0FFEE01
ESP_START_MIB=1
ESP_MIB=64

# Where Debian keeps what a machine boots from, below the root of a system that has these packages.
SHIM=usr/lib/shim/shimx64.efi.signed
GRUB=usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed

# What Debian's cloud images hold of interest here; nothing of it is changed but by configuration files.
DISK_PACKAGES=linux-image-cloud-amd64,systemd-sysv,udev,dbus,libpam-systemd,openssh-server,cloud-init
DISK_PACKAGES+=,cloud-guest-utils,qemu-guest-agent,netplan.io,iproute2,iputils-ping,initramfs-tools,zstd
DISK_PACKAGES+=,grub-efi-amd64,grub-efi-amd64-signed,shim-signed,ca-certificates,sudo,login,passwd

# disk_table FILE SIZE_MIB [ROOT]: an empty disk with an EFI system partition, and with a root after it.
disk_table() {
	local log
	log=$(mktemp)
	truncate -s "$2M" "$1"
	{
		echo "label: gpt"
		echo "start=${ESP_START_MIB}MiB, size=${ESP_MIB}MiB, type=U, name=esp"
		[ -z "${3:-}" ] || echo "start=$((ESP_START_MIB + ESP_MIB))MiB, type=L, name=root"
	} | PATH=$PATH:/sbin:/usr/sbin sfdisk -q "$1" >"$log" 2>&1 ||
		die "cannot partition the disk \"$1\": sfdisk says \"$(tail -n 1 "$log")\""
	rm -f "$log"
}

# disk_esp FILE TREE: fills the EFI system partition.
disk_esp() {
	local at=$1@@${ESP_START_MIB}M
	{
		MTOOLS_SKIP_CHECK=1 mformat -i "$at" -F -T $((ESP_MIB * 2048)) -h 64 -s 32 -N ${DISK_ESP_ID,,} -v ESP :: &&
			MTOOLS_SKIP_CHECK=1 mcopy -i "$at" -s "$2"/* ::
	} || die "cannot fill the EFI system partition of \"$1\": mtools failed; is the disk full?"
}

# disk_loader TREE FROM: Debian's signed boot loader of the system FROM, at the path for removable media,
# where firmware looks that was told of no other.
disk_loader() {
	mkdir -p "$1/EFI/BOOT" "$1/EFI/debian"
	install -m 644 "$2/$SHIM" "$1/EFI/BOOT/BOOTX64.EFI"
	install -m 644 "$2/$GRUB" "$1/EFI/BOOT/grubx64.efi"
}

# Configuration of the system in $1, before its packages are configured.
disk_configure() {
	local root=$1
	mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/etc/default" "$root/etc/ssh/sshd_config.d"
	# Drivers by list: those for this machine cannot be asked of the one that makes the image.
	echo MODULES=list >"$root/etc/initramfs-tools/conf.d/modules"
	printf '%s\n' virtio_pci virtio_blk virtio_rng ext4 >"$root/etc/initramfs-tools/modules"
	cat >"$root/etc/fstab" <<-END
		UUID=$DISK_ROOT_UUID / ext4 rw,discard,errors=remount-ro 0 1
		UUID=${DISK_ESP_ID:0:4}-${DISK_ESP_ID:4} /boot/efi vfat umask=0077 0 0
	END
	echo debian >"$root/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n' >"$root/etc/hosts"
}

# What update-grub would write, for a disk that it cannot see yet.
disk_menu() {
	local root=$1 version=$2
	mkdir -p "$root/boot/grub" "$root/boot/efi"
	cat >"$root/boot/grub/grub.cfg" <<-END
		set timeout=0
		set default=0
		menuentry "Debian GNU/Linux" {
			insmod gzio
			insmod part_gpt
			insmod ext2
			search --no-floppy --fs-uuid --set=root $DISK_ROOT_UUID
			echo "Loading Linux $version ..."
			set gfxpayload=text
			linux /boot/vmlinuz-$version root=UUID=$DISK_ROOT_UUID ro quiet console=tty0 console=ttyS0,115200
			echo "Loading initial ramdisk ..."
			initrd /boot/initrd.img-$version
		}
	END
	cat >"$root/etc/default/grub.d/serial.cfg" <<-END
		GRUB_TIMEOUT=0
		GRUB_TERMINAL=console
		GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"
	END
}

# What a guest of a few minutes has no use for.
disk_disable() {
	local root=$1
	chroot "$root" systemctl -q disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
		e2scrub_all.timer e2scrub_reap.service fstrim.timer || return
	chroot "$root" systemctl -q enable systemd-networkd.service
	echo root:corral | chroot "$root" chpasswd
	# The options of dpkg are for the making, not for the guest.
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \
		"$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
	: >"$root/etc/machine-id"
}

make_disk() {
	need_tool mmdebstrap mmdebstrap mke2fs e2fsprogs mformat mtools sfdisk fdisk
	local suite log version
	suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	result=$cache/guest/disk-${suite:=bookworm}-$(key_of $DISK_ROOT_UUID $DISK_ESP_ID $ESP_MIB "$DISK_PACKAGES" \
		"$(declare -f make_disk disk_root disk_table disk_esp disk_loader disk_configure disk_menu disk_disable \
			disk_write)").img
	[ ! -f "$result" ] || return 0
	[ "$(id -u)" = 0 ] ||
		die "cannot make a Debian disk: only root may; run \"tools/guest-image disk\" as root"
	cache_lock
	[ ! -f "$result" ] || return 0
	say "making a disk with Debian $suite (two minutes)"
	work=$(mktemp -d)
	log=$(mktemp)
	# Words that the shell of the hook expands.
	disk_root "$suite" "$work" >"$log" 2>&1 ||
		die "cannot make a Debian disk: \"$(grep -m 1 -iE '^E:|error' "$log" || tail -n 1 "$log")\"; the whole" \
			"output is in $log; mend the network or the package sources and try again"
	rm -f "$log"
	version=$(basename "$work"/root/boot/vmlinuz-*)
	disk_menu "$work/root" "${version#vmlinuz-}"
	disk_loader "$work/esp" "$work/root"
	cat >"$work/esp/EFI/debian/grub.cfg" <<-END
		search.fs_uuid $DISK_ROOT_UUID root
		set prefix=(\$root)/boot/grub
		configfile \$prefix/grub.cfg
	END
	disk_write "$work" 1024 "$result"
}

# The installer's own kernel and initrd, with a menu that has it speak on the serial port: the one in the
# package is for a screen.
make_installer() {
	need_tool mformat mtools sfdisk fdisk
	local release pieces
	release=$(sed -n 's/^VERSION_ID="*\([0-9]*\).*/\1/p' /etc/os-release)
	deb_unpack "debian-installer-${release:=12}-netboot-amd64"
	pieces=$deb_dir/usr/lib/debian-installer/images/$release/amd64/text/debian-installer/amd64
	result=$cache/guest/installer-$release-$(key_of "$pieces/linux" "$pieces/initrd.gz" \
		"$(declare -f make_installer disk_table disk_esp)").img
	[ ! -f "$result" ] || return 0
	work=$(mktemp -d)
	mkdir -p "$work/EFI/BOOT" "$work/debian-installer/amd64/grub"
	install -m 644 "$pieces/bootnetx64.efi" "$work/EFI/BOOT/BOOTX64.EFI"
	install -m 644 "$pieces/grubx64.efi" "$work/EFI/BOOT/grubx64.efi"
	install -m 644 "$pieces/linux" "$pieces/initrd.gz" "$work/debian-installer/amd64"
	cat >"$work/debian-installer/amd64/grub/grub.cfg" <<-END
		set timeout=0
		menuentry "Install" {
			set gfxpayload=text
			linux /debian-installer/amd64/linux console=ttyS0,115200n8 ---
			initrd /debian-installer/amd64/initrd.gz
		}
	END
	disk_table "$result.$$" $((ESP_START_MIB + ESP_MIB + 1))
	disk_esp "$result.$$" "$work"
	chmod 444 "$result.$$"
	mv "$result.$$" "$result"
}

# disk_root SUITE DIRECTORY: the system itself, in DIRECTORY/root.
disk_root() {
	disk_configure "$2/early" &&
		mmdebstrap --quiet --variant=minbase --include="$DISK_PACKAGES" \
			--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
			--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt=force-unsafe-io \
			--essential-hook="cp -a '$2/early/.' \"\$1/\"" "$1" "$2/root" &&
		disk_disable "$2/root"
}

# disk_write DIRECTORY SIZE_MIB FILE: a disk of DIRECTORY/esp and DIRECTORY/root.
disk_write() {
	local log start=$((ESP_START_MIB + ESP_MIB))
	rm -f "$3.$$"
	log=$(mktemp)
	disk_table "$3.$$" "$2" root
	disk_esp "$3.$$" "$1/esp"
	# The last MiB is the partition table's copy.
	PATH=$PATH:/sbin:/usr/sbin mke2fs -q -t ext4 -L root -U $DISK_ROOT_UUID \
		-E "root_owner=0:0,lazy_itable_init=0,offset=$((start << 20))" \
		-d "$1/root" "$3.$$" $((($2 - start - 1) * 1024))k >"$log" 2>&1 ||
		die "cannot make the file system of \"$3\": mke2fs says \"$(tail -n 1 "$log")\"; is the disk full?"
	rm -f "$log"
	chmod 444 "$3.$$"
	mv "$3.$$" "$3"
}
