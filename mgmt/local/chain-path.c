/* SPDX-License-Identifier: Apache-2.0 */
/* What an image calls the one that it stands on, as a path. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mgmt/local/chain.h"

char *chain_path(const char *image, const char *name)
{
	const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
	const char *end = strrchr(image, '/');
	char *path;

	/* "nbd://host", "json:{…}": what others know how to reach. */
	if (colon && (!slash || colon < slash)) {
		if (strncmp(name, "file:", 5))
			return errno = 0, NULL;
		name += 5;
	}
	if (name[0] == '/' || !end)
		return strdup(name);
	if (asprintf(&path, "%.*s/%s", (int)(end - image), image, name) < 0)
		return errno = ENOMEM, NULL;
	return path;
}
