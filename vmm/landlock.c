/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Landlock ruleset without a rule. The numbers are the kernel's interface, written out here
 * because the headers we build with know version 2 only.
 */
#include "vmm/landlock.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

struct ruleset {
	uint64_t fs;
	uint64_t net;
	uint64_t scoped;
};

#define CREATE_VERSION 1u

/* Bit counts: file system rights grew with the versions. Net: TCP bind and connect. Scope: abstract
 * UNIX sockets and signals outside. */
static const struct version {
	struct ruleset denied;
	size_t size; /* of the part of struct ruleset that this version takes */
	const char *words;
} versions[] = {
	[1] = {{(1u << 13) - 1, 0, 0}, 8, "files"},
	[2] = {{(1u << 14) - 1, 0, 0}, 8, "files"},
	[3] = {{(1u << 15) - 1, 0, 0}, 8, "files"},
	[4] = {{(1u << 15) - 1, 3, 0}, 16, "files, TCP"},
	[5] = {{(1u << 16) - 1, 3, 0}, 16, "files, TCP"},
	[6] = {{(1u << 16) - 1, 3, 3},
	       24,
	       "files, TCP, abstract UNIX sockets and signals to others"},
};

int landlock_deny_all(const char **ret_denies)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_VERSION);
	int r = 0;

	*ret_denies = NULL;
	if (abi < 0) /* not built in, or not switched on at boot */
		return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -errno;
	/* Newer kernels take what version 6 takes. */
	const struct version *version = &versions[MIN((size_t)abi, ARRAY_SIZE(versions) - 1)];
	int ruleset = (int)syscall(SYS_landlock_create_ruleset, &version->denied, version->size, 0);
	if (ruleset < 0)
		return -errno;
	if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
		r = -errno;
	close(ruleset);
	if (r < 0)
		return r;
	*ret_denies = version->words;
	return (int)abi;
}
