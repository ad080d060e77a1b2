/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's words in, checked copies out; nothing here touches a ring or an image.
 */
#include "virtio/blk-request.h"

#include <errno.h>

#define RANGE_UNMAP 1u

/* Drops `n` bytes from the front of the iovecs; there are as many. */
static void iov_skip(struct iovec **iov, uint32_t *n_iov, uint64_t n)
{
	while (n > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*n_iov)--;
	}
	if (n > 0) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

bool blk_request_parse(struct blk_request *request)
{
	struct virtqueue_chain *chain = &request->chain;
	struct iovec *last = &chain->iov[chain->n_out + chain->n_in - 1];
	struct blk_request_header *header = &request->header;

	if (chain->out_bytes < sizeof(*header) || chain->in_bytes < 1)
		return false;
	chain_read(chain, 0, header, sizeof(*header));
	last->iov_len--;
	request->status = (uint8_t *)last->iov_base + last->iov_len;
	request->done = 0;
	request->flushing = false;
	if (header->type == BLK_T_IN || header->type == BLK_T_GET_ID) {
		request->data = chain->iov + chain->n_out;
		request->n_data = chain->n_in - (last->iov_len == 0);
		request->bytes = chain->in_bytes - 1;
	} else {
		request->data = chain->iov;
		request->n_data = chain->n_out;
		request->bytes = chain->out_bytes - sizeof(*header);
		if (header->type == BLK_T_OUT)
			iov_skip(&request->data, &request->n_data, sizeof(*header));
	}
	return true;
}

/* Sectors [sector, sector + n) exist. */
static bool sectors_exist(const struct blk *blk, uint64_t sector, uint64_t n)
{
	uint64_t capacity = atomic_load_explicit(&blk->capacity, memory_order_relaxed);

	return n <= capacity && sector <= capacity - n;
}

/* Checks a copied range list. Returns BLK_S_OK when it may be carried out. */
static enum blk_status ranges_check(const struct blk *blk, struct blk_request *request)
{
	uint32_t known = request->header.type == BLK_T_WRITE_ZEROES ? RANGE_UNMAP : 0;

	if (request->bytes == 0 || request->bytes % sizeof(struct blk_range) != 0 ||
	    request->bytes > sizeof(request->ranges))
		return BLK_S_IOERR;
	request->n_ranges = request->bytes / sizeof(struct blk_range);
	request->range = 0;
	chain_read(&request->chain, sizeof(request->header), request->ranges, request->bytes);
	for (uint32_t i = 0; i < request->n_ranges; i++) {
		const struct blk_range *range = &request->ranges[i];

		if (range->flags & ~known)
			return BLK_S_UNSUPPORTED;
		if (range->n_sectors == 0 || range->n_sectors > BLK_RANGE_SECTORS_MAX ||
		    !sectors_exist(blk, range->sector, range->n_sectors))
			return BLK_S_IOERR;
	}
	return BLK_S_OK;
}

static enum blk_status data_check(const struct blk *blk, const struct blk_request *request)
{
	if (request->bytes % BLOCK_SECTOR != 0 || request->bytes == 0 ||
	    !sectors_exist(blk, request->header.sector, request->bytes / BLOCK_SECTOR))
		return BLK_S_IOERR;
	return BLK_S_OK;
}

enum blk_status blk_request_check(const struct blk *blk, struct blk_request *request)
{
	bool readonly = blk->image->readonly;

	switch (request->header.type) {
	case BLK_T_IN:
		return data_check(blk, request);
	case BLK_T_OUT:
		return readonly ? BLK_S_IOERR : data_check(blk, request);
	case BLK_T_FLUSH:
		return BLK_S_OK;
	case BLK_T_DISCARD:
	case BLK_T_WRITE_ZEROES:
		return readonly ? BLK_S_IOERR : ranges_check(blk, request);
	default:
		return BLK_S_UNSUPPORTED;
	}
}

static struct io_op range_op(const struct blk_request *request)
{
	const struct blk_range *range = &request->ranges[request->range];
	struct io_op op = {
		.kind = IO_DISCARD,
		.offset = range->sector * BLOCK_SECTOR,
		.length = (uint64_t)range->n_sectors * BLOCK_SECTOR,
	};

	if (request->header.type == BLK_T_WRITE_ZEROES)
		op.kind = range->flags & RANGE_UNMAP ? IO_ZERO : IO_ZERO_KEEP;
	return op;
}

struct io_op blk_request_op(const struct blk_request *request)
{
	uint32_t type = request->header.type;

	if (request->flushing || type == BLK_T_FLUSH)
		return (struct io_op){.kind = IO_FLUSH};
	if (type != BLK_T_IN && type != BLK_T_OUT)
		return range_op(request);
	return (struct io_op){
		.kind = type == BLK_T_IN ? IO_READ : IO_WRITE,
		.iov = request->data,
		.n_iov = request->n_data,
		.offset = request->header.sector * BLOCK_SECTOR + request->done,
	};
}

bool blk_request_step(struct blk_request *request, bool writethrough, int32_t result, int *ret_code)
{
	uint32_t type = request->header.type;
	bool transfer = type == BLK_T_IN || type == BLK_T_OUT, more = false;

	*ret_code = MIN(result, 0);
	/* The file ended early, or was cut meanwhile. */
	if (result == 0 && transfer && !request->flushing)
		*ret_code = -EIO;
	if (*ret_code < 0)
		return false;
	if (transfer && !request->flushing) {
		request->done += result;
		more = request->done < request->bytes;
		if (more)
			iov_skip(&request->data, &request->n_data, result);
	} else if ((type == BLK_T_DISCARD || type == BLK_T_WRITE_ZEROES) && !request->flushing) {
		more = ++request->range < request->n_ranges;
	}
	if (!more && writethrough && !request->flushing &&
	    (type == BLK_T_OUT || type == BLK_T_WRITE_ZEROES))
		more = request->flushing = true;
	return more;
}

enum blk_operation blk_request_kind(const struct blk_request *request)
{
	switch (request->header.type) {
	case BLK_T_IN:
		return BLK_READ;
	case BLK_T_OUT:
		return BLK_WRITE;
	case BLK_T_FLUSH:
		return BLK_FLUSH;
	default:
		return BLK_DISCARD;
	}
}
