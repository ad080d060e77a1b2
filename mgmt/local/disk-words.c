/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: the text after --disk. Out: a `struct vm_disk` whose words are in their places; whether they
 * go together is for vm_check to say.
 */
#include "mgmt/local/disk-words.h"

#include <errno.h>
#include <string.h>

#include "mgmt/local/parts.h"
#include "proto/vm.h"

#define LIMIT "limit="

/* "iops:1000:bps:100M": names and values in turn; more of them may come in another word. */
static int limit_read(struct vm_limit *limit, char *text, struct error *err)
{
	int r = 0;

	while (text && r >= 0) {
		char *name = strsep(&text, ":"), *value = strsep(&text, ":");

		if (!value || !name[0] || !value[0])
			return error_set(err, -EINVAL,
					 "limit: name and value come in turn, as in "
					 "iops:1000:bps:100M");
		/* part_set knows the nearest name. */
		value[-1] = '=';
		r = part_set(&vm_limit_table, limit, name, err);
	}
	return r < 0 ? error_prefix(err, "limit: ") : 0;
}

static int word_read(struct vm_disk *disk, char *part, struct error *err)
{
	if (!strcmp(part, "chain") || !strncmp(part, "chain=", strlen("chain=")))
		return error_set(err, -EINVAL,
				 "chain: is found by what the image says; backing=allow opens it");
	if (!strncmp(part, LIMIT, strlen(LIMIT)))
		return limit_read(&disk->limit, part + strlen(LIMIT), err);
	return part_set(&vm_disk_table, disk, part, err);
}

int disk_words_read(struct vm_disk *disk, const char *flag_name, const char *value,
		    struct error *err)
{
	_cleanup_(freep) char *text = strdup(value);
	char *rest = text;
	int r;

	if (!text)
		return error_set(err, -ENOMEM, "%s: out of memory", flag_name);
	r = table_set_text(&vm_disk_table, disk, "path", part_next(&rest), err);
	while (r >= 0 && rest)
		r = word_read(disk, part_next(&rest), err);
	return r < 0 ? error_prefix(err, "%s: ", flag_name) : 0;
}
