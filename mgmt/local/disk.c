/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `corral disk`: becomes corral-disk, where images are parsed, in a process of their own that can
 * open nothing; or, for the disk of a running VM, asks its VMM.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "mgmt/local/disk-hotplug.h"
#include "mgmt/local/disk-tool.h"
#include "mgmt/local/disk-vm.h"
#include "mgmt/local/local.h"

int verb_disk(int argc, char **argv)
{
	struct error err = ERROR_NULL;
	char path[PATH_MAX * 2];

	if (disk_vm_wanted(argc, argv))
		return disk_vm(argc, argv);
	if (argc > 1 && !strcmp(argv[1], "add"))
		return disk_add(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "remove"))
		return disk_remove(argc - 1, argv + 1);
	if (disk_tool_find(path, sizeof(path), &err) < 0)
		return local_fail(&err, LOCAL_FAILED);
	argv[0] = (char *)"corral-disk";
	execv(path, argv);
	local_say("cannot start \"%s\": %s", path, strerror(errno));
	return LOCAL_FAILED;
}
