/* SPDX-License-Identifier: Apache-2.0 */
/* Randomness: it comes, it fills what it says, it differs each time, for short and long buffers. */
#ifdef GUEST

#include "guest-tests/runtime/apic.h"
#include "guest-tests/runtime/virtio.h"

#define TIMEOUT_MS 20000
#define LONG       16384

static struct virtio_device dev;
static struct virtq q;
static uint8_t first[LONG], second[LONG];

static void start(uint64_t features, bool polled)
{
	virtio_begin(&dev, features);
	virtq_init(&q, &dev, 0, 0, polled);
	virtio_driver_ok(&dev);
}

static uint32_t read_some(uint8_t *data, uint32_t len)
{
	struct virtq_seg seg = {data, len};
	uint32_t n;

	virtq_add(&q, &seg, 0, 1);
	virtq_kick(&q);
	GUEST_ASSERT(virtq_wait(&q, &n, TIMEOUT_MS) >= 0, "%u bytes: no answer", len);
	GUEST_ASSERT(n > 0 && n <= len, "%u of %u bytes", n, len);
	return n;
}

/* Of 256 random bytes all but some 94 values are expected; a broken source gives one or a few. */
static unsigned int distinct(const uint8_t *data, uint32_t len)
{
	bool seen[256] = {false};
	unsigned int n = 0;

	for (uint32_t i = 0; i < len; i++) {
		n += !seen[data[i]];
		seen[data[i]] = true;
	}
	return n;
}

static void differs(struct guest_boot *boot)
{
	uint32_t a, b;

	(void)boot;
	start(0, false);
	a = read_some(first, 256);
	b = read_some(second, 256);
	GUEST_ASSERT(a >= 32 && b >= 32, "%u and %u bytes", a, b);
	GUEST_ASSERT(distinct(first, a) > a / 3, "%u values in %u bytes", distinct(first, a), a);
	GUEST_ASSERT(memcmp(first, second, a < b ? a : b) != 0, "the same twice");
}

/* Nothing beyond the buffer is touched, and all that is said to be there is. */
static void lengths(struct guest_boot *boot)
{
	static const uint32_t all[] = {1, 3, 64, 4096, LONG};

	(void)boot;
	for (unsigned int i = 0; i < ARRAY_SIZE(all); i++) {
		uint32_t n;

		memset(second, 0, all[i] + 1 < LONG ? all[i] + 1 : LONG);
		n = read_some(second, all[i]);
		if (all[i] < LONG)
			GUEST_ASSERT(second[all[i]] == 0, "byte %u was written", all[i]);
		if (n >= 64)
			GUEST_ASSERT(distinct(second + n - 64, 64) > 20, "the end of %u is poor",
				     n);
	}
}

static void scattered(struct guest_boot *boot)
{
	struct virtq_seg segs[] = {{first, 7}, {first + 1000, 100}, {first + 2000, 1}};
	uint32_t n;

	(void)boot;
	for (unsigned int round = 0; round < 4; round++) {
		start(round & 1 ? VIRTIO_RING_FEATURES : 0, round & 2);
		memset(first, 0, 2048);
		virtq_add(&q, segs, 0, ARRAY_SIZE(segs));
		virtq_kick(&q);
		GUEST_ASSERT(virtq_wait(&q, &n, TIMEOUT_MS) >= 0, "round %u: no answer", round);
		GUEST_ASSERT(n >= 1 && n <= 108, "%u bytes", n);
		GUEST_ASSERT(first[7] == 0 && first[1100] == 0, "wrote between the pieces");
		if (n > 40)
			GUEST_ASSERT(distinct(first + 1000, n - 7 < 100 ? n - 7 : 100) > 10,
				     "poor");
	}
}

static void many(struct guest_boot *boot)
{
	(void)boot;
	start(VIRTIO_RING_FEATURES, false);
	for (unsigned int i = 0; i < q.size; i++) {
		struct virtq_seg seg = {first + i * 16, 16};

		virtq_add(&q, &seg, 0, 1);
	}
	virtq_kick(&q);
	for (unsigned int i = 0; i < q.size; i++)
		GUEST_ASSERT(virtq_wait(&q, NULL, TIMEOUT_MS) >= 0, "%u of %u", i, q.size);
}

void guest_main(struct guest_boot *boot)
{
	GUEST_ASSERT(virtio_find(&dev, VIRTIO_ID_RNG, 0), "no rng");
	guest_case("differs", differs, boot);
	guest_case("lengths", lengths, boot);
	guest_case("scattered", scattered, boot);
	guest_case("many", many, boot);
}

#else

#include "guest-tests/host/harness.h"

int main(int argc, char **argv)
{
	struct vm_config config = {0};

	test_init(argc, argv);
	return vm_judge(vm_start(&config));
}

#endif
