/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block path by itself: 4 KiB random reads through virtqueue, block device, image and ring,
 * with a driver in the place of the guest, on one thread. What it prints stands beside what
 * qemu-img bench says of the same file: requests per second, and the loop's kernel entries and
 * eventfd writes per request.
 *
 *   block-path FILE [requests [depth [size]]]
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/fd.h"
#include "virtio/blk.h"

#define MEMORY_SIZE     (64u << 20)
#define RING_SIZE       256u
#define RING_GPA        0x1000u
#define AVAILABLE_GPA   0x3000u
#define USED_GPA        0x4000u
#define HEADERS_GPA     0x10000u /* 16 bytes and a status a request */
#define HEADER_STRIDE   32u
#define BUFFERS_GPA     0x100000u
#define BUFFER_SIZE_MAX (64u << 10)

/* What the device would ask of KVM: here eventfds that nobody turns into interrupts. */
static int no_line(struct irq_host *host, uint32_t gsi, int *ret_fd)
{
	(void)host, (void)gsi;
	*ret_fd = -1;
	return 0;
}
static int eventfd_msi(struct irq_host *host, uint32_t *ret_vector, int *ret_fd)
{
	static uint32_t n;

	(void)host;
	*ret_vector = n++;
	*ret_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return *ret_fd < 0 ? -errno : 0;
}
static void no_msi_free(struct irq_host *host, uint32_t vector)
{
	(void)host, (void)vector;
}
static int no_msi_set(struct irq_host *host, uint32_t vector, uint64_t address, uint32_t data,
		      bool masked)
{
	(void)host, (void)vector, (void)address, (void)data, (void)masked;
	return 0;
}
static int no_kick(struct kick_host *host, enum device_space space, gpa_t at, int fd)
{
	(void)host, (void)space, (void)at, (void)fd;
	return 0;
}
static const struct irq_ops irq_ops = {no_line, eventfd_msi, no_msi_free, no_msi_set};
static const struct kick_ops kick_ops = {no_kick, no_kick};

struct ring_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct driver {
	struct guest_memory memory;
	struct ring_descriptor *descriptors;
	uint16_t *available, *used_words; /* flags, index, ring … */
	uint32_t *used;
	uint16_t next_available, seen_used, kicked;
	uint32_t size, n_blocks;
	uint64_t random, kicks, calls;
	int kick_fd;
};

static void __attribute__((noreturn)) die(const char *what, int r)
{
	fprintf(stderr, "block-path: cannot %s: %s\n", what, strerror(-r));
	exit(1);
}

static uint64_t random_next(struct driver *driver)
{
	driver->random ^= driver->random << 13;
	driver->random ^= driver->random >> 7;
	driver->random ^= driver->random << 17;
	return driver->random;
}

/* Request slot `i` uses descriptors 3i to 3i+2. */
static void driver_submit(struct driver *driver, uint32_t i)
{
	struct {
		uint32_t type, reserved;
		uint64_t sector;
	} header = {0, 0, random_next(driver) % driver->n_blocks * (driver->size / 512)};
	gpa_t at = HEADERS_GPA + i * HEADER_STRIDE;

	if (memory_write(&driver->memory, at, &header, sizeof(header)) < 0)
		abort();
	driver->descriptors[3 * i] = (struct ring_descriptor){at, 16, 1, 3 * i + 1};
	driver->descriptors[3 * i + 1] = (struct ring_descriptor){
		BUFFERS_GPA + (uint64_t)i * BUFFER_SIZE_MAX, driver->size, 3, 3 * i + 2};
	driver->descriptors[3 * i + 2] = (struct ring_descriptor){at + 16, 1, 2, 0};
	driver->available[2 + driver->next_available++ % RING_SIZE] = 3 * i;
}

/* As a guest would: publish, and kick only if the device asked for it (event-idx). */
static void driver_kick(struct driver *driver)
{
	uint16_t event, old = driver->kicked;
	uint64_t one = 1;

	store_release(&driver->available[1], driver->next_available);
	full_fence();
	event = load_relaxed((uint16_t *)(driver->used + 1 + 2 * RING_SIZE));
	driver->kicked = driver->next_available;
	if ((uint16_t)(driver->next_available - event - 1) <
	    (uint16_t)(driver->next_available - old)) {
		driver->kicks++;
		if (write(driver->kick_fd, &one, sizeof(one)) < 0)
			die("kick", -errno);
	}
}

/* Takes what came back and asks to be woken at the next. Returns how many. */
static uint32_t driver_reap(struct driver *driver, uint64_t *left)
{
	uint16_t index = load_acquire(&driver->used_words[1]);
	uint32_t n = 0;

	while (driver->seen_used != index) {
		uint32_t id = driver->used[1 + 2 * (driver->seen_used % RING_SIZE)];
		uint8_t *status;

		if (memory_translate(&driver->memory, HEADERS_GPA + id / 3 * HEADER_STRIDE + 16, 1,
				     (void **)&status) < 0 ||
		    *status != 0)
			die("read: the device says it failed", -EIO);
		driver->seen_used++;
		n++;
		if (*left > 0) {
			(*left)--;
			driver_submit(driver, id / 3);
		}
	}
	/* used_event: wake at the next completion. */
	store_release(&driver->available[2 + RING_SIZE], driver->seen_used);
	return n;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void common_write(struct virtio_pci *pci, uint64_t offset, uint64_t value, uint32_t len)
{
	pthread_mutex_lock(&pci->function.device.lock);
	pci->function.ops->write(&pci->function, 0, offset, &value, len);
	pthread_mutex_unlock(&pci->function.device.lock);
}

/* Negotiates and sets up queue 0 as a driver would, register by register (virtio 1.2, 4.1.4.3). */
static void driver_start(struct driver *driver, struct blk *blk)
{
	static const struct {
		uint8_t offset, len;
		uint64_t value;
	} steps[] = {
		{20, 1, 1},         {20, 1, 3}, {8, 4, 0},         {12, 4, 1u << 29 | 1u << 9},
		{8, 4, 1},          {12, 4, 1}, {20, 1, 11},       {22, 2, 0},
		{24, 2, RING_SIZE}, {26, 2, 1}, {32, 8, RING_GPA}, {40, 8, AVAILABLE_GPA},
		{48, 8, USED_GPA},  {28, 2, 1}, {20, 1, 15},
	};

	for (uint32_t i = 0; i < ARRAY_SIZE(steps); i++)
		common_write(&blk->pci, steps[i].offset, steps[i].value, steps[i].len);
	driver->kick_fd = blk->virtio.queues[0].kick_fd;
}

static void driver_init(struct driver *driver, uint32_t size, uint64_t file_size)
{
	static const struct memory_options options = {.kind = MEMORY_PRIVATE, .thp = true};
	static const struct memory_range range = {0, MEMORY_SIZE};
	struct error err = ERROR_NULL;

	if (memory_init(&driver->memory, &options, &range, 1, &err) < 0)
		die(err.text, err.code);
	if (memory_translate(&driver->memory, RING_GPA, 16 * RING_SIZE,
			     (void **)&driver->descriptors) < 0 ||
	    memory_translate(&driver->memory, AVAILABLE_GPA, 6 + 2 * RING_SIZE,
			     (void **)&driver->available) < 0 ||
	    memory_translate(&driver->memory, USED_GPA, 6 + 8 * RING_SIZE, (void **)&driver->used) <
		    0)
		abort();
	driver->used_words = (uint16_t *)driver->used;
	driver->size = size;
	driver->n_blocks = file_size / size;
	driver->random = 88172645463325252ull;
}

int main(int argc, char **argv)
{
	static struct driver driver;
	static struct blk blk;
	static struct pci_root root;
	static struct bus io = {.name = "io"}, mmio = {.name = "mmio"};
	struct irq_host irqs = {&irq_ops};
	struct kick_host kicks = {&kick_ops};
	struct pci_layout layout = {0xe8000000, 0xc0000000, 0x20000000};
	uint64_t requests = argc > 2 ? strtoull(argv[2], NULL, 0) : 500000;
	uint32_t depth = argc > 3 ? strtoul(argv[3], NULL, 0) : 32;
	uint32_t size = argc > 4 ? strtoul(argv[4], NULL, 0) : 4096;
	struct loop_options options = {.name = "bench", .depth = 512};
	const struct block_open as_raw = {.format = "raw", .name = argv[1], .readonly = true};
	struct blk_options disk = {.name = "disk0", .n_queues = 1, .n_loops = 1};
	struct block_image *image = NULL;
	struct error err = ERROR_NULL;
	struct loop_counters counters;
	struct loop *loop = NULL;
	uint64_t left, done = 0;
	double start, took;
	int fd;

	if (argc < 2 || depth == 0 || depth > RING_SIZE / 3 || size > BUFFER_SIZE_MAX ||
	    size % 512 != 0) {
		fprintf(stderr, "usage: block-path FILE [requests [depth, at most %u [size]]]\n",
			RING_SIZE / 3);
		return 2;
	}
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("open the file", -errno);
	if (block_open(&image, fd, &as_raw, &err) < 0 || loop_new(&loop, &options, &err) < 0)
		die(err.text, err.code);
	driver_init(&driver, size, image->size);
	disk.image = image;
	disk.loops = &loop;
	if (pci_root_init(&root, &layout, &io, &mmio, &irqs, &kicks, &err) < 0 ||
	    blk_init(&blk, &root, 8, &driver.memory, &disk, &err) < 0)
		die(err.text, err.code);
	if (loop_enable(loop) < 0)
		die("enable the loop", -EIO);
	driver_start(&driver, &blk);

	start = seconds();
	left = requests - depth;
	for (uint32_t i = 0; i < depth; i++)
		driver_submit(&driver, i);
	driver_kick(&driver);
	while (done < requests) {
		int r = loop_turn(loop, UINT64_MAX);

		if (r < 0)
			die("run the loop", r);
		done += driver_reap(&driver, &left);
		driver_kick(&driver);
	}
	took = seconds() - start;
	counters = loop_counters(loop);
	driver.calls = blk.virtio.queues[0].ring.n_calls;
	printf("requests %" PRIu64 " seconds %.3f iops %.0f\n", requests, took, requests / took);
	printf("per request: kernel entries of the loop %.4f, interrupts %.4f, kicks %.4f (%s)\n",
	       (double)counters.enters / requests, (double)driver.calls / requests,
	       (double)driver.kicks / requests, loop_has_uring(loop) ? "io_uring" : "threads");
	return 0;
}
