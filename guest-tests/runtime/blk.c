/* SPDX-License-Identifier: Apache-2.0 */
/* The disk driver of the guest tests: synchronous requests, and single steps for tests in flight.
 */
#include "guest-tests/runtime/blk.h"

bool blk_find(struct blk *blk, unsigned int nth)
{
	*blk = (struct blk){0};
	return virtio_find(&blk->dev, VIRTIO_ID_BLK, nth);
}

void blk_start(struct blk *blk, uint64_t features, bool polled)
{
	virtio_begin(&blk->dev, features);
	blk->n_sectors = virtio_config_read64(&blk->dev, BLK_CONFIG_CAPACITY);
	blk->n_queues = 1;
	if (virtio_has(&blk->dev, BLK_F_MQ))
		blk->n_queues = virtio_config_read16(&blk->dev, BLK_CONFIG_N_QUEUES);
	GUEST_ASSERT(blk->n_queues >= 1, "no queue");
	if (blk->n_queues > BLK_MAX_QUEUES)
		blk->n_queues = BLK_MAX_QUEUES;
	for (unsigned int i = 0; i < blk->n_queues; i++)
		virtq_init(&blk->queues[i], &blk->dev, i, 0, polled);
	virtio_driver_ok(&blk->dev);
}

static bool device_writes(enum blk_type type)
{
	return type == BLK_IN || type == BLK_GET_ID;
}

void blk_submit(struct virtq *q, struct blk_request *r, enum blk_type type, uint64_t sector,
		void *data, uint32_t data_len)
{
	struct virtq_seg segs[3] = {{r, 16}};
	unsigned int n = 1, n_out = 1;

	r->type = type;
	r->reserved = 0;
	r->sector = sector;
	r->status = BLK_NO_ANSWER;
	if (data_len) {
		segs[n++] = (struct virtq_seg){data, data_len};
		n_out += device_writes(type) ? 0 : 1;
	}
	segs[n++] = (struct virtq_seg){(void *)&r->status, 1};
	r->head = virtq_add(q, segs, n_out, n - n_out);
}

enum blk_status blk_do(struct virtq *q, enum blk_type type, uint64_t sector, void *data,
		       uint32_t data_len)
{
	struct blk_request r;
	uint32_t len;
	int head;

	blk_submit(q, &r, type, sector, data, data_len);
	virtq_kick(q);
	head = virtq_wait(q, &len, BLK_TIMEOUT_MS);
	GUEST_ASSERT(head >= 0, "type %u sector %lu: no answer", type, sector);
	GUEST_ASSERT(head == (int)r.head, "head %d, not %u", head, r.head);
	GUEST_ASSERT(r.status != BLK_NO_ANSWER, "type %u: no status", type);
	if (r.status == BLK_OK)
		GUEST_ASSERT(len == 1 + (type == BLK_IN       ? data_len
					 : type == BLK_GET_ID ? len - 1
							      : 0),
			     "type %u: used length %u for %u bytes", type, len, data_len);
	return r.status;
}

void fletcher_add(struct fletcher *sum, const void *data, size_t len)
{
	const uint64_t *words = data;

	for (size_t i = 0; i < len / sizeof(*words); i++) {
		sum->a += words[i];
		sum->b += sum->a;
	}
}
