/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In: a file. Out: its header, checked by block/. As much is read as the header says a cluster has.
 */
#include "disk/header.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static int read_bits(const struct block_file *file, uint32_t *ret_bits)
{
	struct qcow2_disk_header start;
	int r = block_file_read(file, &start, sizeof(start), 0);

	*ret_bits = be32toh(start.cluster_bits);
	if (r < 0 || *ret_bits < QCOW2_CLUSTER_BITS_MIN)
		*ret_bits = QCOW2_CLUSTER_BITS_MIN;
	if (*ret_bits > QCOW2_CLUSTER_BITS_MAX)
		*ret_bits = QCOW2_CLUSTER_BITS_MAX;
	return r;
}

static int parse(const struct block_file *file, const char *name, struct qcow2_header *header,
		 struct error *err)
{
	_cleanup_(freep) char *data = NULL;
	int64_t size = block_file_size(file);
	uint32_t bits = 0;
	size_t n;
	int r = size < 0 ? (int)size : read_bits(file, &bits);

	n = r < 0 ? 0 : (size_t)1 << bits;
	if (n > (size_t)size)
		n = (size_t)size;
	data = malloc(n + 1);
	if (r == 0 && !data)
		r = -ENOMEM;
	if (r == 0)
		r = block_file_read(file, data, n, 0);
	if (r < 0)
		return error_set(err, r, "cannot read \"%s\": %s", name, strerror(-r));
	return qcow2_header_parse(header, data, n, (uint64_t)size, name, err);
}

int header_read(const struct block_file *file, const char *name, struct qcow2_header **ret_header,
		struct error *err)
{
	struct qcow2_header *header = calloc(1, sizeof(*header));
	int r;

	if (!header)
		return error_set(err, -ENOMEM, "cannot read \"%s\": out of memory", name);
	r = parse(file, name, header, err);
	if (r < 0) {
		free(header);
		return r;
	}
	*ret_header = header;
	return 0;
}

void header_freep(struct qcow2_header **header)
{
	if (!*header)
		return;
	qcow2_header_free(*header);
	free(*header);
	*header = NULL;
}
