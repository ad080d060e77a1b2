/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The split ring of the driver. One queue has one user at a time; its interrupt only counts, what
 * is used is taken by the code that waits.
 */
#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/virtio.h"

#define QUEUE_SIZE_WANTED 64
#define NO_DESC           0xffff

uint16_t virtq_max_size(const struct virtio_device *dev, unsigned int index)
{
	mmio_write16(dev->common + VIRTIO_COMMON_QUEUE_SELECT, (uint16_t)index);
	return mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_SIZE);
}

/* The event words lie behind the rings. */
static volatile uint16_t *used_event(const struct virtq *q)
{
	return &q->avail->ring[q->size];
}

static volatile uint16_t *avail_event(const struct virtq *q)
{
	return (volatile uint16_t *)&q->used->ring[q->size];
}

static void interrupt(void *arg)
{
	struct virtq *q = arg;

	q->n_interrupts++;
}

static void alloc_rings(struct virtq *q)
{
	q->desc = mem_alloc(sizeof(struct virtq_desc) * q->size, 16);
	q->avail = mem_alloc(6 + 2 * q->size, 2);
	q->used = mem_alloc(6 + sizeof(struct virtq_used_entry) * q->size, 8);
	q->indirect = mem_alloc(sizeof(*q->indirect) * q->size, 16);
}

static void clear_rings(struct virtq *q)
{
	memset((void *)q->desc, 0, sizeof(struct virtq_desc) * q->size);
	memset((void *)q->avail, 0, 6 + 2 * q->size);
	memset((void *)q->used, 0, 6 + sizeof(struct virtq_used_entry) * q->size);
	for (unsigned int i = 0; i < q->size; i++)
		q->desc[i].next = (uint16_t)(i + 1);
	q->n_free = q->size;
}

static void write_gpa(const struct virtq *q, unsigned int reg, volatile void *ring)
{
	mmio_write32(q->dev->common + reg, (uint32_t)(gpa_t)ring);
	mmio_write32(q->dev->common + reg + 4, (uint32_t)((gpa_t)ring >> 32));
}

/* Queue n has MSI-X entry n; the last entry is kept for configuration changes. */
static void route(struct virtq *q)
{
	struct virtio_device *dev = q->dev;
	uint16_t entry = q->polled ? VIRTIO_NO_VECTOR : q->index % (dev->pci.n_vectors - 1);

	if (!q->polled) {
		if (!q->vector)
			q->vector = irq_alloc(interrupt, q);
		msix_route(&dev->pci, entry, q->vector, dev->irq_target);
	}
	mmio_write16(dev->common + VIRTIO_COMMON_QUEUE_VECTOR, entry);
	GUEST_ASSERT(mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_VECTOR) == entry,
		     "queue %u: vector refused", q->index);
}

void virtq_init(struct virtq *q, struct virtio_device *dev, unsigned int index, unsigned int size,
		bool polled)
{
	struct virtq old = *q; /* a queue that is set up again keeps its memory and vector */
	uint16_t max = virtq_max_size(dev, index), offset;

	GUEST_ASSERT(max, "slot %x has no queue %u", dev->pci.slot, index);
	if (!size)
		size = max < QUEUE_SIZE_WANTED ? max : QUEUE_SIZE_WANTED;
	*q = (struct virtq){.dev = dev,
			    .index = (uint16_t)index,
			    .size = (uint16_t)size,
			    .polled = polled,
			    .vector = old.vector,
			    .desc = old.desc,
			    .avail = old.avail,
			    .used = old.used,
			    .indirect = old.indirect};
	if (old.size != size)
		alloc_rings(q);
	clear_rings(q);
	mmio_write16(dev->common + VIRTIO_COMMON_QUEUE_SIZE, q->size);
	route(q);
	write_gpa(q, VIRTIO_COMMON_QUEUE_DESC, q->desc);
	write_gpa(q, VIRTIO_COMMON_QUEUE_DRIVER, q->avail);
	write_gpa(q, VIRTIO_COMMON_QUEUE_DEVICE, q->used);
	offset = mmio_read16(dev->common + VIRTIO_COMMON_QUEUE_NOTIFY_OFF);
	q->notify = dev->notify + offset * dev->notify_multiplier;
	if (dev->doorbells)
		q->doorbell = (uint16_t)(dev->doorbells + offset * dev->doorbells_multiplier);
	if (polled)
		q->avail->flags = VIRTQ_AVAIL_NO_INTERRUPT;
	mmio_write16(dev->common + VIRTIO_COMMON_QUEUE_ENABLE, 1);
}

static uint16_t desc_alloc(struct virtq *q)
{
	uint16_t at = q->free_head;

	GUEST_ASSERT(q->n_free, "queue %u is full", q->index);
	q->n_free--;
	q->free_head = q->desc[at].next;
	return at;
}

static unsigned int add_indirect(struct virtq *q, const struct virtq_seg *segs, unsigned int n_out,
				 unsigned int n)
{
	uint16_t head = desc_alloc(q);
	struct virtq_desc *table = q->indirect[head];

	for (unsigned int i = 0; i < n; i++) {
		table[i].gpa = (gpa_t)segs[i].data;
		table[i].len = segs[i].len;
		table[i].flags =
			(i >= n_out ? VIRTQ_DESC_WRITE : 0) | (i + 1 < n ? VIRTQ_DESC_NEXT : 0);
		table[i].next = (uint16_t)(i + 1);
	}
	q->desc[head].gpa = (gpa_t)table;
	q->desc[head].len = n * sizeof(*table);
	q->desc[head].flags = VIRTQ_DESC_INDIRECT;
	return head;
}

static unsigned int add_direct(struct virtq *q, const struct virtq_seg *segs, unsigned int n_out,
			       unsigned int n)
{
	uint16_t head = q->free_head, at = NO_DESC;

	for (unsigned int i = 0; i < n; i++) {
		at = desc_alloc(q);
		q->desc[at].gpa = (gpa_t)segs[i].data;
		q->desc[at].len = segs[i].len;
		/* The free list's link is the chain's link. */
		q->desc[at].flags = (i >= n_out ? VIRTQ_DESC_WRITE : 0) | VIRTQ_DESC_NEXT;
	}
	q->desc[at].flags &= ~VIRTQ_DESC_NEXT;
	return head;
}

unsigned int virtq_add(struct virtq *q, const struct virtq_seg *segs, unsigned int n_out,
		       unsigned int n_in)
{
	unsigned int n = n_out + n_in, head;

	if (virtio_has(q->dev, VIRTIO_F_INDIRECT_DESC) && n > 1 && n <= ARRAY_SIZE(q->indirect[0]))
		head = add_indirect(q, segs, n_out, n);
	else
		head = add_direct(q, segs, n_out, n);
	q->avail->ring[q->avail->idx % q->size] = (uint16_t)head;
	barrier();
	q->avail->idx++;
	return head;
}

static bool wants_kick(const struct virtq *q, uint16_t from, uint16_t to)
{
	if (!virtio_has(q->dev, VIRTIO_F_EVENT_IDX))
		return !(q->used->flags & VIRTQ_USED_NO_NOTIFY);
	return (uint16_t)(to - *avail_event(q) - 1) < (uint16_t)(to - from);
}

void virtq_kick(struct virtq *q)
{
	uint16_t from = q->kicked_idx;

	q->kicked_idx = q->avail->idx;
	full_barrier();
	if (!wants_kick(q, from, q->kicked_idx))
		return;
	q->n_kicks++;
	if (q->doorbell)
		outw(q->doorbell, q->index);
	else
		mmio_write16(q->notify, q->index);
}

bool virtq_has_used(const struct virtq *q)
{
	return q->used->idx != q->next_used;
}

static void desc_free(struct virtq *q, uint16_t head)
{
	uint16_t at = head, n = 1;

	while (q->desc[at].flags & VIRTQ_DESC_NEXT) {
		at = q->desc[at].next;
		n++;
	}
	q->desc[at].next = q->free_head;
	q->free_head = head;
	q->n_free += n;
}

int virtq_take(struct virtq *q, uint32_t *ret_len)
{
	struct virtq_used_entry entry;

	if (!virtq_has_used(q))
		return -1;
	barrier();
	entry.id = q->used->ring[q->next_used % q->size].id;
	entry.len = q->used->ring[q->next_used % q->size].len;
	q->next_used++;
	GUEST_ASSERT(entry.id < q->size, "queue %u: used id %u", q->index, entry.id);
	desc_free(q, (uint16_t)entry.id);
	if (ret_len)
		*ret_len = entry.len;
	return (int)entry.id;
}

void virtq_want_interrupt(struct virtq *q)
{
	if (q->polled || !virtio_has(q->dev, VIRTIO_F_EVENT_IDX))
		return;
	*used_event(q) = q->next_used;
	full_barrier();
}

int virtq_wait(struct virtq *q, uint32_t *ret_len, unsigned int timeout_ms)
{
	bool met;

	if (virtq_has_used(q))
		return virtq_take(q, ret_len);
	virtq_want_interrupt(q);
	if (q->polled)
		met = POLL_UNTIL(virtq_has_used(q), timeout_ms);
	else
		met = WAIT_UNTIL(virtq_has_used(q), timeout_ms);
	return met ? virtq_take(q, ret_len) : -1;
}
