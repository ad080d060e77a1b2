/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel of a guest that runs one command, and the modules it needs to reach its root and us:
 * which, where they lie, in which order they load.
 */
#pragma once

#include <limits.h>
#include <stdint.h>

#include "base/error.h"
#include "mgmt/local/init/protocol.h"

#define GUEST_VERSION_MAX 128

/* The newest kernel in ROOTFS/boot (NULL: none), else that of the host, else the newest in /boot.
 * A path that the caller frees. */
int guest_kernel_find(const char *rootfs, char **ret_path, struct error *err) __must_check;

/* "6.1.0-56-cloud-amd64", from a bzImage's header or an ELF file's words. */
int guest_kernel_version(const char *path, char version[GUEST_VERSION_MAX],
			 struct error *err) __must_check;

struct guest_modules {
	char directory[PATH_MAX]; /* empty: none are needed */
	uint32_t n_files;
	char *files[JOB_MODULES_MAX]; /* owned; relative to the directory, in the order of loading
				       */
};

struct guest_modules_wish {
	const char *kernel;      /* path of its file */
	const char *modules;     /* --modules; "none": all are in the kernel; NULL: look for them */
	const char *rootfs;      /* a directory that may hold them, or NULL */
	const char *file_system; /* "ext4" */
	bool net;
};

int guest_modules_find(struct guest_modules *modules, const struct guest_modules_wish *wish,
		       struct error *err) __must_check;
void guest_modules_deinit(struct guest_modules *modules);
