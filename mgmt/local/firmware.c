/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: nothing but the environment. Out: the first firmware file that is there: the one that
 * CORRAL_FIRMWARE names, beside our own binary, where a package puts it, or the newest that
 * tools/firmware has built.
 */
#include "mgmt/local/firmware.h"

#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mgmt/local/spawn.h"

#define FIRMWARE_FILE "CLOUDHV.fd"
#define CACHE         "/var/cache/corral"
#define CACHE_PATTERN "%s%s/firmware/cloudhv-*.fd"
#define DEBUG_ENDING  "-debug.fd"

static int path_set(char **ret_path, const char *path)
{
	*ret_path = strdup(path);
	return *ret_path ? 0 : -ENOMEM;
}

static bool is_debug(const char *path)
{
	size_t length = strlen(path), ending = strlen(DEBUG_ENDING);

	return length >= ending && !strcmp(path + length - ending, DEBUG_ENDING);
}

struct newest {
	char *path; /* owned */
	struct timespec when;
};

static int newest_take(struct newest *newest, const char *path)
{
	_cleanup_(freep) char *copy = NULL;
	struct stat st;

	if (is_debug(path) || stat(path, &st) < 0)
		return 0;
	if (newest->path && (st.st_mtim.tv_sec < newest->when.tv_sec ||
			     (st.st_mtim.tv_sec == newest->when.tv_sec &&
			      st.st_mtim.tv_nsec <= newest->when.tv_nsec)))
		return 0;
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	free(newest->path);
	newest->path = take_ptr(copy);
	newest->when = st.st_mtim;
	return 0;
}

/* Builds have their version and a key in their names; the newest is what was asked for last. */
static int cache_look(struct newest *newest, const char *cache, const char *below)
{
	char pattern[PATH_MAX];
	glob_t found = {};
	int r = 0;

	if ((size_t)snprintf(pattern, sizeof(pattern), CACHE_PATTERN, cache, below) >=
	    sizeof(pattern))
		return 0;
	if (!glob(pattern, GLOB_NOSORT, NULL, &found))
		for (size_t i = 0; i < found.gl_pathc && r >= 0; i++)
			r = newest_take(newest, found.gl_pathv[i]);
	globfree(&found);
	return r;
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value && value[0] ? value : NULL;
}

/* Where the tools put things: a cache of the user's own if /var's is not for him to write. */
static int cache_find(char **ret_path)
{
	const char *named = variable("CORRAL_CACHE"), *user = variable("XDG_CACHE_HOME");
	const char *home = variable("HOME");
	struct newest newest = {};
	int r = cache_look(&newest, named ?: CACHE, "");

	if (r >= 0 && !named && user)
		r = cache_look(&newest, user, "/corral");
	else if (r >= 0 && !named && home)
		r = cache_look(&newest, home, "/.cache/corral");
	if (r < 0) {
		free(newest.path);
		return r;
	}
	*ret_path = newest.path;
	return newest.path ? 0 : -ENOENT;
}

static int places_find(char **ret_path)
{
	static const char *const beside[] = {FIRMWARE_FILE, "../share/corral/" FIRMWARE_FILE};
	char own[PATH_MAX], path[PATH_MAX * 2];

	if (own_directory(own, sizeof(own)) >= 0)
		for (size_t i = 0; i < ARRAY_SIZE(beside); i++) {
			snprintf(path, sizeof(path), "%s/%s", own, beside[i]);
			if (!access(path, F_OK))
				return path_set(ret_path, path);
		}
	if (!access("/usr/share/corral/" FIRMWARE_FILE, F_OK))
		return path_set(ret_path, "/usr/share/corral/" FIRMWARE_FILE);
	return cache_find(ret_path);
}

int firmware_find(char **ret_path, struct error *err)
{
	const char *named = getenv("CORRAL_FIRMWARE");
	int r;

	if (named && named[0])
		r = path_set(ret_path, named);
	else
		r = places_find(ret_path);
	if (r == -ENOENT)
		return error_set(
			err, r,
			"no firmware to boot the disk with: build one with tools/firmware, name "
			"one with --firmware FILE or in CORRAL_FIRMWARE, or boot a --kernel FILE");
	return r < 0 ? error_set(err, r, "cannot look for a firmware: %s", strerror(-r)) : 0;
}
