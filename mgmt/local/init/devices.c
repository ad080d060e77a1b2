/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the kernel's messages about new devices. Out: which disk is the root (by its serial number)
 * and which port leads to the launcher (by its name). Nothing is asked twice by the clock: the
 * kernel says when something has come, and then we look.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/poll.h>
#include <linux/time_types.h>
#include <sys/socket.h>

#include "mgmt/local/init/protocol.h"
#include "mgmt/local/init/system.h"

#define SILENCE_S    20 /* without a message; a device then has no driver */
#define UEVENT_GROUP 1

struct entry { /* of getdents64 */
	uint64_t inode;
	int64_t offset;
	uint16_t length;
	uint8_t type;
	char name[];
};

int devices_watch(void)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = UEVENT_GROUP};
	long fd = CALL3(socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	long r = fd < 0 ? fd : CALL3(bind, fd, &address, sizeof(address));

	return r < 0 ? r : fd;
}

/* "/dev/NAME" of the entry of `directory` whose file `attribute` says `wanted`. */
static void look(const char *directory, const char *attribute, const char *wanted, char *found,
		 unsigned long size)
{
	static char entries[4096] __attribute__((aligned(8)));
	long fd = CALL4(openat, AT_FDCWD, directory, O_RDONLY | O_DIRECTORY, 0);
	long n = fd < 0 ? fd : CALL3(getdents64, fd, entries, sizeof(entries));

	for (long at = 0; at < n && !found[0]; at += ((struct entry *)(entries + at))->length) {
		const struct entry *entry = (void *)(entries + at);
		char path[160] = "", text[64];

		if (entry->name[0] == '.')
			continue;
		text_add(path, sizeof(path), directory);
		text_add(path, sizeof(path), entry->name);
		text_add(path, sizeof(path), attribute);
		text_read(path, text, sizeof(text));
		if (!text_same(text, wanted))
			continue;
		text_add(found, size, "/dev/");
		text_add(found, size, entry->name);
	}
	if (fd >= 0)
		CALL1(close, fd);
}

int devices_find(int watch, struct guest_devices *found)
{
	char message[2048];

	for (;;) {
		struct __kernel_timespec silence = {.tv_sec = SILENCE_S};
		struct pollfd event = {.fd = watch, .events = POLLIN};

		if (!found->root[0])
			look("/sys/block/", "/serial", JOB_DISK_SERIAL, found->root,
			     sizeof(found->root));
		if (!found->port[0])
			look("/sys/class/virtio-ports/", "/name", JOB_PORT_NAME, found->port,
			     sizeof(found->port));
		if (found->root[0] && found->port[0])
			return 0;
		if (CALL5(ppoll, &event, 1, &silence, 0, 0) <= 0)
			return -ETIMEDOUT;
		/* Lost messages (ENOBUFS) are as good as others: we look at what is there. */
		while (CALL5(recvfrom, watch, message, sizeof(message), MSG_DONTWAIT, 0) > 0)
			;
	}
}
