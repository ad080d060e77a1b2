/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a run directory. Out: its VM's description, and by the cards' addresses in it what the host's
 * neighbour table knows.
 */
#include "mgmt/local/described.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "mgmt/local/rundir.h"

#define DESCRIPTION_MAX (1 << 20)

int described_read(const struct rundir *dir, struct vm_description *vm, struct error *err)
{
	_cleanup_(fd_closep) int fd =
		openat(dir->fd, RUNDIR_DESCRIPTION, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_(freep) char *text = NULL;
	size_t size;
	int r;

	*vm = (struct vm_description){};
	r = fd < 0 ? -errno : fd_read_all(fd, DESCRIPTION_MAX, &text, &size);
	if (r >= 0)
		r = table_init(&vm_table, vm);
	if (r < 0)
		return error_set(err, r, "cannot read \"%s/" RUNDIR_DESCRIPTION "\": %s", dir->path,
				 strerror(-r));
	return table_from_text(&vm_table, text, size, RUNDIR_DESCRIPTION, vm, err);
}

void described_mac(const struct vm_description *vm, uint32_t net, char text[MAC_TEXT_MAX])
{
	const char *given = vm->nets[net].mac;
	uint8_t mac[6];

	if (!given || vm_mac_parse(given, mac) < 0)
		vm_mac_make(vm->name, net, mac);
	snprintf(text, MAC_TEXT_MAX, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
		 mac[3], mac[4], mac[5]);
}

/* "192.0.2.7  0x1  0x2  52:54:00:12:34:56  *  br0"; flags 0: it did not answer. */
bool described_neighbour(const char *mac, char text[ADDRESS_TEXT_MAX])
{
	FILE *table = fopen("/proc/net/arp", "re");
	char line[256];
	bool found = false;

	while (table && !found && fgets(line, sizeof(line), table)) {
		char address[ADDRESS_TEXT_MAX], station[MAC_TEXT_MAX];
		uint32_t flags;
		struct in_addr parsed;

		found = sscanf(line, "%15s %*s %x %17s", address, &flags, station) == 3 && flags &&
			!strcasecmp(station, mac) && inet_pton(AF_INET, address, &parsed) == 1;
		if (found)
			snprintf(text, ADDRESS_TEXT_MAX, "%s", address);
	}
	if (table)
		fclose(table);
	return found;
}
