/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The descriptors a VMM is handed, planned from its description before anything is opened:
 * `--dry-run` prints the plan, `corral run` carries it out.
 */
#pragma once

#include <assert.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/fd.h"
#include "proto/vm.h"

struct grant {
	char name[NAMED_FDS_LENGTH];
	const char *what; /* borrowed: what a person calls it, NULL for its name */
	const char *path; /* borrowed from the description; NULL: made in the run directory */
	int flags;        /* open(2) flags: the rights */
	int fd;           /* owned, -1 until opened */
	dev_t dev;        /* disks: to tell whether two are the same */
	ino_t ino;
};

/* A tap and a vhost-net for each pair of queues are the most. */
#define GRANTS_MAX \
	(VM_DISKS_MAX + VM_CHAINS_MAX + VM_NETS_MAX * VM_QUEUES_MAX * 2 + VM_PORTS_MAX + 20)
static_assert(GRANTS_MAX <= NAMED_FDS_MAX, "a VMM takes every descriptor a description asks for");

struct grants {
	uint32_t n_grants;
	struct grant list[GRANTS_MAX];
};

/* Everything the description names by path, the console file last. */
void grants_plan(struct grants *grants, const struct vm_description *vm);

/* Opens what has a path and no descriptor yet, with exactly the planned rights. */
int grants_open(struct grants *grants, struct error *err) __must_check;

/* Plans one more; `path` is borrowed. */
void grants_plan_path(struct grants *grants, const char *name, const char *path, int flags);

/* Adds a descriptor that is open already (taken over). */
void grants_add(struct grants *grants, const char *name, int fd);

/* Gives what is planned under that name a descriptor of ours (taken over): its path is not opened.
 */
void grants_give(struct grants *grants, const char *name, int fd);

/* The words after --fds. */
void grants_names(const struct grants *grants, char *text, size_t size);
void grants_print(const struct grants *grants, FILE *file);
void grants_close(struct grants *grants);
