/* SPDX-License-Identifier: Apache-2.0 */
/* The network driver of the guest tests. Receive buffers are single descriptors, offered again as
 * soon as they were copied from. */
#include "guest-tests/runtime/net.h"

#include "guest-tests/runtime/apic.h"

bool net_find(struct net *net, unsigned int nth)
{
	*net = (struct net){0};
	return virtio_find(&net->dev, VIRTIO_ID_NET, nth);
}

static void on_config(void *arg)
{
	struct net *net = arg;

	net->n_config++;
}

static void post(struct virtq *q, uint8_t *buffer)
{
	struct virtq_seg seg = {buffer, NET_RX_BUFFER_LEN};

	virtq_add(q, &seg, 0, 1);
}

static void start_pair(struct net *net, unsigned int i)
{
	virtq_init(&net->rx[i], &net->dev, 2 * i, 0, false);
	virtq_init(&net->tx[i], &net->dev, 2 * i + 1, 0, true);
	if (!net->buffers[i])
		net->buffers[i] = mem_alloc(NET_RX_BUFFERS * NET_RX_BUFFER_LEN, 16);
	for (unsigned int j = 0; j < NET_RX_BUFFERS; j++)
		post(&net->rx[i], net->buffers[i] + j * NET_RX_BUFFER_LEN);
}

void net_start(struct net *net, uint64_t features)
{
	unsigned int n_max = 1;

	virtio_begin(&net->dev, features);
	if (virtio_has(&net->dev, NET_F_MQ))
		n_max = virtio_config_read16(&net->dev, NET_CONFIG_PAIRS);
	net->n_pairs = n_max < NET_MAX_PAIRS ? n_max : NET_MAX_PAIRS;
	for (unsigned int i = 0; i < 6; i++)
		net->mac[i] = virtio_config_read8(&net->dev, NET_CONFIG_MAC + i);
	for (unsigned int i = 0; i < net->n_pairs; i++)
		start_pair(net, i);
	if (virtio_has(&net->dev, NET_F_CTRL_VQ))
		virtq_init(&net->control, &net->dev, 2 * n_max, 0, true);
	virtio_config_irq(&net->dev, on_config, net);
	virtio_driver_ok(&net->dev);
	for (unsigned int i = 0; i < net->n_pairs; i++)
		virtq_kick(&net->rx[i]);
}

uint16_t net_status(const struct net *net)
{
	return virtio_config_read16(&net->dev, NET_CONFIG_STATUS);
}

void net_send(struct net *net, unsigned int pair, const struct net_header *header,
	      const void *frame, uint32_t len)
{
	struct virtq *q = &net->tx[pair];
	struct virtq_seg segs[] = {{(void *)header, sizeof(*header)}, {(void *)frame, len}};
	uint32_t written;

	virtq_add(q, segs, len ? 2 : 1, 0);
	virtq_kick(q);
	GUEST_ASSERT(virtq_wait(q, &written, NET_TIMEOUT_MS) >= 0, "%u bytes are not back", len);
	GUEST_ASSERT(written == 0, "wrote %u bytes into a frame", written);
}

/* The pair that has a frame, -1 when none has. */
static int has_frame(const struct net *net)
{
	for (unsigned int i = 0; i < net->n_pairs; i++) {
		if (virtq_has_used(&net->rx[i]))
			return (int)i;
	}
	return -1;
}

/* Copies what fits of one used buffer, and offers it again. Returns its length. */
static uint32_t take_buffer(struct virtq *q, void *to, uint32_t room, uint32_t skip)
{
	uint32_t len;
	int head = virtq_take(q, &len);
	uint8_t *buffer;

	GUEST_ASSERT(head >= 0, "a buffer of the frame is missing");
	buffer = (uint8_t *)q->desc[head].gpa;
	GUEST_ASSERT(len >= skip && len <= NET_RX_BUFFER_LEN, "%u bytes", len);
	memcpy(to, buffer + skip, len - skip < room ? len - skip : room);
	post(q, buffer);
	return len - skip;
}

static uint32_t take_frame(struct virtq *q, struct net_header *header, uint8_t *frame,
			   uint32_t size)
{
	uint16_t first = q->next_used % q->size;
	unsigned int n = 1;
	uint32_t len;

	/* The descriptor tells where; it is not reused before the buffer is offered again. */
	memcpy(header, (void *)q->desc[q->used->ring[first].id].gpa, sizeof(*header));
	if (virtio_has(q->dev, NET_F_MRG_RXBUF))
		n = header->num_buffers;
	GUEST_ASSERT(n >= 1 && n <= NET_RX_BUFFERS, "%u", n);
	len = take_buffer(q, frame, size, sizeof(*header));
	for (unsigned int i = 1; i < n; i++) {
		uint32_t at = len < size ? len : size;

		len += take_buffer(q, frame + at, size - at, 0);
	}
	virtq_kick(q);
	return len;
}

uint32_t net_receive(struct net *net, struct net_header *ret_header, void *frame, uint32_t size,
		     unsigned int timeout_ms)
{
	for (unsigned int i = 0; i < net->n_pairs; i++)
		virtq_want_interrupt(&net->rx[i]);
	if (!WAIT_UNTIL(has_frame(net) >= 0, timeout_ms))
		return 0;
	return take_frame(&net->rx[has_frame(net)], ret_header, frame, size);
}

uint8_t net_control(struct net *net, uint8_t class, uint8_t command, const void *data, uint32_t len)
{
	static uint8_t head[2], answer;
	struct virtq_seg segs[3] = {{head, sizeof(head)}, {(void *)data, len}};
	unsigned int n_out = len ? 2 : 1;

	head[0] = class;
	head[1] = command;
	answer = 0xee;
	segs[n_out] = (struct virtq_seg){&answer, 1};
	virtq_add(&net->control, segs, n_out, 1);
	virtq_kick(&net->control);
	GUEST_ASSERT(virtq_wait(&net->control, NULL, NET_TIMEOUT_MS) >= 0, "command %u.%u", class,
		     command);
	GUEST_ASSERT(*(volatile uint8_t *)&answer <= 1, "answer %u", answer);
	return *(volatile uint8_t *)&answer;
}
