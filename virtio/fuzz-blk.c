/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes a disk behind its PCI function: register, configuration space and ring accesses of a
 * guest, turns of the loop, pauses, resets, loads of a bent state. Nothing may crash, nothing stay
 * under way for ever, no operation reach outside of guest memory or of the image. Guest memory
 * comes from the heap, so that the sanitizer sees a byte too far; what goes to the kernel is
 * checked here.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cursor.h"
#include "base/log.h"
#include "devices/registers.h"
#include "devices/test-board.h"
#include "virtio/blk.h"

#define LOW_SIZE   0x10000u
#define HIGH_START 0x100000u
#define HIGH_SIZE  0x2000u
#define DISK_SIZE  0x40000u
#define QUEUES     2
#define RING       8
#define SLOT       1
#define WAIT_NS    5000000000u

/* Of the common configuration. */
#define STATUS       20
#define QUEUE_SELECT 22
#define QUEUE_SIZE   24
#define QUEUE_ENABLE 28
#define DESCRIPTORS  32
#define AVAILABLE    40
#define USED         48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum action {
	BAR_WRITE,
	BAR_READ,
	CONFIG_WRITE,
	CONFIG_READ,
	MEMORY_WRITE,
	START,
	OFFER,
	KICK,
	TURN,
	DEVICE_RESET,
	PAUSE,
	BOARD_RESET,
	LOAD,
	TRACK,
	FAULT,
	N_ACTIONS,
};

static struct test_board board;
static struct guest_memory memory;
static struct pci_root root;
static struct block_image *image;
static const struct block_ops *raw_ops;
static struct loop *loop;
static struct blk blk;

static bool inside(const struct iovec *piece)
{
	for (uint32_t i = 0; i < memory.n_regions; i++) {
		const struct memory_region *region = &memory.regions[i];
		uint64_t at = (uintptr_t)piece->iov_base - (uintptr_t)region->host;

		if (at < region->size && piece->iov_len <= region->size - at)
			return true;
	}
	return false;
}

/* What the next submissions meet: a full engine, an error, or a transfer that ends early. */
static enum fault { FULL, ERROR, SHORT, N_FAULTS } fault;
static uint32_t n_faults;

static int submit_short(struct block_channel *channel, const struct io_op *op,
			struct loop_source *source, uint32_t arg)
{
	static struct iovec
		pieces[4 * 256]; /* borrowed until completion: more than are under way */
	static uint32_t next;
	struct iovec *piece = &pieces[next++ % (4 * 256)];
	struct io_op part = *op;

	*piece = (struct iovec){op->iov->iov_base, (op->iov->iov_len + 1) / 2};
	part.iov = piece;
	part.n_iov = 1;
	return raw_ops->submit(channel, &part, source, arg);
}

static int submit_faulty(struct block_channel *channel, const struct io_op *op,
			 struct loop_source *source, uint32_t arg)
{
	n_faults--;
	if (fault == FULL) {
		loop_batch(source);
		return -EBUSY;
	}
	if (fault == SHORT && (op->kind == IO_READ || op->kind == IO_WRITE))
		return submit_short(channel, op, source, arg);
	return fault == ERROR ? -EIO : raw_ops->submit(channel, op, source, arg);
}

/* Stands before the raw image: what the device asks of it is within its rights. */
static int checked_submit(struct block_channel *channel, const struct io_op *op,
			  struct loop_source *source, uint32_t arg)
{
	uint64_t length = op->length;

	if (op->kind == IO_READ || op->kind == IO_WRITE) {
		length = 0;
		assert(op->n_iov > 0);
		for (uint32_t i = 0; i < op->n_iov; i++) {
			assert(op->iov[i].iov_len > 0 && inside(&op->iov[i]));
			length += op->iov[i].iov_len;
		}
	}
	if (op->kind != IO_FLUSH)
		assert(length > 0 && length <= DISK_SIZE && op->offset <= DISK_SIZE - length);
	if (n_faults > 0)
		return submit_faulty(channel, op, source, arg);
	return raw_ops->submit(channel, op, source, arg);
}

/* The fuzzer pauses when it likes: what failed is tried again at the next start. */
static void on_failed(struct blk_listener *listener _unused_, struct blk *of)
{
	assert(blk_trouble(of).code < 0);
	blk_trouble_forget(of);
}

static void on_written(struct blk_listener *listener _unused_, struct blk *of _unused_)
{
}

static int disk_init(struct error *err)
{
	static struct blk_listener listener = {on_failed, on_written};
	const struct blk_options options = {
		.name = "disk0",
		.image = image,
		.serial = "fuzz",
		.n_queues = QUEUES,
		.loops = &loop,
		.n_loops = 1,
		.on_error = BLK_ERROR_PAUSE,
		.listener = &listener,
	};

	return blk_init(&blk, &root, SLOT, &memory, &options, err);
}

static void set_up(void)
{
	static const struct pci_layout layout = {
		.ecam = 0xe0000000, .window = 0xc0000000, .window_size = 1 << 20};
	const struct loop_options options = {.name = "fuzz"};
	const struct block_open open = {.format = "raw", .name = "disk"};
	static struct block_ops checked_ops;
	struct error err = ERROR_NULL;
	int fd = memfd_create("disk", MFD_CLOEXEC);
	int r = ftruncate(fd, DISK_SIZE);

	assert(r == 0);
	log_init("fuzz", LOG_LEVEL_ERROR);
	test_board_init(&board);
	memory = (struct guest_memory){.kind = MEMORY_PRIVATE, .n_regions = 2};
	memory.regions[0] =
		(struct memory_region){.size = LOW_SIZE, .host = calloc(1, LOW_SIZE), .fd = -1};
	memory.regions[1] = (struct memory_region){
		.start = HIGH_START, .size = HIGH_SIZE, .host = calloc(1, HIGH_SIZE), .fd = -1};
	r = block_open(&image, fd, &open, &err);
	assert(r == 0);
	raw_ops = image->ops;
	checked_ops = *raw_ops;
	checked_ops.submit = checked_submit;
	/* Any worker: this is raw all the same. */
	image->ops = &checked_ops;
	image->worker = (void *)&checked_ops;
	r = loop_new(&loop, &options, &err);
	assert(r == 0);
	r = loop_enable(loop);
	assert(r == 0);
	r = pci_root_init(&root, &layout, &board.io, &board.mmio, &board.irqs, &board.kicks, &err);
	assert(r == 0);
	r = disk_init(&err);
	assert(r == 0);
}

static struct device *device(void)
{
	return &blk.pci.function.device;
}

static void bar_write(uint32_t offset, uint64_t value, uint32_t len)
{
	uint64_t base = atomic_load(&blk.pci.function.bars[0].address);

	bus_write(&board.mmio, base + offset, &value, len);
}

static uint64_t bar_read(uint32_t offset, uint32_t len)
{
	uint64_t base = atomic_load(&blk.pci.function.bars[0].address), value = 0;

	bus_read(&board.mmio, base + offset, &value, len);
	return value;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void turn(uint64_t deadline)
{
	int r = loop_turn(loop, deadline);

	assert(r == 0);
}

/* What is not over in the end, hangs. */
static void turn_until(bool (*over)(void))
{
	uint64_t end = now_ns() + WAIT_NS;

	while (!over()) {
		assert(now_ns() < end);
		turn(now_ns() + 1000000);
	}
}

static bool paused;

static void on_done(struct device_waiter *waiter _unused_, struct device *of _unused_)
{
	paused = true;
}

static bool is_paused(void)
{
	return paused;
}

static void pause_device(void)
{
	static struct device_waiter waiter = {on_done};

	paused = false;
	device()->ops->pause(device(), &waiter);
	turn_until(is_paused);
	for (uint32_t i = 0; i < QUEUES; i++)
		assert(blk.virtio.queues[i].run == VIRTIO_QUEUE_RESTS);
}

static void machine_reset(void)
{
	pause_device();
	device()->ops->reset(device());
	root.device.ops->reset(&root.device);
	device()->ops->resume(device());
	assert(atomic_load(&blk.virtio.status) == 0);
}

/* The state goes out, one byte of it is bent, it comes in again. What is refused ends in a reset.
 */
static void load(struct cursor *in)
{
	static uint8_t stream[16384];
	uint16_t at = cursor_get_u16(in);
	uint8_t bits = cursor_get_u8(in);
	struct cursor state = cursor_writer(stream, sizeof(stream));
	struct error err = ERROR_NULL;
	int r;

	pause_device();
	r = device_save(device(), &state);
	assert(r == 0);
	stream[at % state.at] ^= bits;
	state = cursor_reader(stream, state.at);
	r = device_load(device(), &state, &err);
	assert(r == 0 || (r == err.code && *err.text));
	if (r < 0 && bits == 0)
		fprintf(stderr, "%s\n", err.text);
	assert(r == 0 || bits); /* what it saved itself, it loads */
	if (r < 0)
		device()->ops->reset(device());
	device()->ops->resume(device());
}

/* Where a ring lies when the guest behaves. */
static gpa_t ring_at(uint32_t queue)
{
	return 0x1000 + 0x1000 * queue;
}

/* A good driver's way to DRIVER_OK. */
static void start(struct cursor *in)
{
	uint8_t choice = cursor_get_u8(in);
	uint64_t features = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC;

	features |= choice & 1 ? VIRTIO_F_EVENT_IDX : 0;
	features |= choice & 2 ? 1ull << 9 : 0;
	for (uint32_t i = 0; i < 8; i++)
		bar_write(STATUS, 0, 1), turn(0);
	bar_write(STATUS, 3, 1);
	for (uint32_t i = 0; i < 2; i++) {
		bar_write(8, i, 4);
		bar_write(12, (uint32_t)(features >> 32 * i), 4);
	}
	bar_write(STATUS, 11, 1);
	for (uint32_t i = 0; i < QUEUES; i++) {
		uint16_t zero = 0;

		bar_write(QUEUE_SELECT, i, 2);
		bar_write(QUEUE_SIZE, RING, 2);
		bar_write(DESCRIPTORS, ring_at(i), 8);
		bar_write(AVAILABLE, ring_at(i) + 0x400, 8);
		bar_write(USED, ring_at(i) + 0x800, 8);
		bar_write(QUEUE_ENABLE, 1, 2);
		if (memory_write(&memory, ring_at(i) + 0x402, &zero, 2) < 0)
			return;
	}
	bar_write(STATUS, 15, 1);
	turn(0);
}

static void put_descriptor(gpa_t table, uint32_t i, uint64_t address, uint32_t length,
			   uint16_t flags)
{
	const struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} bytes = {address, length, flags, (uint16_t)(i + 1)};
	int r = memory_write(&memory, table + 16 * i, &bytes, sizeof(bytes));

	assert(r == 0);
}

/* A request in an indirect table, mostly well-formed: type, sector and length are the bytes'. */
static void offer(struct cursor *in)
{
	static uint32_t serial;
	uint32_t queue = cursor_get_u8(in) % QUEUES, type = cursor_get_u8(in) & 15;
	uint64_t sector = cursor_get_u16(in);
	uint32_t length = cursor_get_u16(in), head = serial++ % RING;
	gpa_t place = 0x4000 + 0x400 * head;
	const struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header = {type, 0, sector};
	uint16_t index = 0, head16 = (uint16_t)head;
	bool read = type == 0 || type == 8;
	int r = memory_write(&memory, place, &header, sizeof(header));

	assert(r == 0);
	put_descriptor(place + 0x100, 0, place, 16, 1);
	put_descriptor(place + 0x100, 1, 0x8000 + (length & 0x3f), length, read ? 3 : 1);
	put_descriptor(place + 0x100, 2, place + 0x80, 1, 2);
	put_descriptor(ring_at(queue), head, place + 0x100, 48, 4);
	r = memory_read(&memory, ring_at(queue) + 0x402, &index, 2);
	assert(r == 0);
	r = memory_write(&memory, ring_at(queue) + 0x404 + index % RING * 2, &head16, 2);
	assert(r == 0);
	index++;
	r = memory_write(&memory, ring_at(queue) + 0x402, &index, 2);
	assert(r == 0);
	event_signal(blk.virtio.queues[queue].kick_fd);
}

static uint32_t access_length(struct cursor *in)
{
	return 1u << (cursor_get_u8(in) & 3);
}

static void config_access(struct cursor *in, bool write)
{
	uint32_t len = MIN(access_length(in), 4u), offset = cursor_get_u8(in);
	uint32_t value = write ? cursor_get_u32(in) : 0;

	test_board_out(&board, 0xcf8, 0x80000000 | SLOT << 11 | (offset & 0xfc), 4);
	if (write)
		test_board_out(&board, 0xcfc + (offset & 3), value, len);
	else
		test_board_in(&board, 0xcfc + (offset & 3), len);
}

static void write_memory(struct cursor *in)
{
	uint64_t gpa = cursor_get_u16(in);
	size_t n = MIN((size_t)cursor_get_u8(in), cursor_left(in));
	const void *bytes = cursor_get_view(in, n);

	if (gpa >= 0xf000)
		gpa = HIGH_START + (gpa - 0xf000) * 2;
	if (bytes && memory_write(&memory, gpa, bytes, n) < 0)
		return;
}

static void track(void)
{
	uint64_t bits[1] = {0};
	int r = memory_track_start(&memory);

	assert(r == 0);
	memory_track_take(&memory, 0, bits, 1);
}

static void act(struct cursor *in)
{
	uint32_t len, offset;

	switch (cursor_get_u8(in) % N_ACTIONS) {
	case BAR_WRITE:
		len = access_length(in);
		offset = cursor_get_u16(in) & 0x7fff;
		bar_write(offset, cursor_get_u64(in), len);
		break;
	case BAR_READ:
		len = access_length(in);
		bar_read(cursor_get_u16(in) & 0x7fff, len);
		break;
	case CONFIG_WRITE:
		config_access(in, true);
		break;
	case CONFIG_READ:
		config_access(in, false);
		break;
	case MEMORY_WRITE:
		write_memory(in);
		break;
	case START:
		start(in);
		break;
	case OFFER:
		offer(in);
		break;
	case KICK:
		event_signal(blk.virtio.queues[cursor_get_u8(in) % QUEUES].kick_fd);
		break;
	case TURN:
		turn(0);
		break;
	case DEVICE_RESET:
		bar_write(STATUS, 0, 1);
		break;
	case PAUSE:
		pause_device();
		device()->ops->resume(device());
		break;
	case BOARD_RESET:
		machine_reset();
		break;
	case LOAD:
		load(in);
		break;
	case TRACK:
		track();
		break;
	case FAULT:
		fault = cursor_get_u8(in) % N_FAULTS;
		n_faults = cursor_get_u8(in);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_reader(data, size);

	if (!loop)
		set_up();
	while (cursor_left(&in) > 0)
		act(&in);
	turn(0);
	machine_reset();
	n_faults = 0;
	memory_track_stop(&memory);
	memset(memory.regions[0].host, 0, LOW_SIZE);
	memset(memory.regions[1].host, 0, HIGH_SIZE);
	return 0;
}
