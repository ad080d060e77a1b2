/* SPDX-License-Identifier: Apache-2.0 */
/* A disk, for the many tests that need one device which does real work. */
#pragma once

#include "guest-tests/runtime/virtio.h"

#define BLK_SECTOR         512
#define BLK_MAX_QUEUES     8
#define BLK_ID_LEN         20
#define BLK_TIMEOUT_MS     20000

#define BLK_F_SEG_MAX      (1ull << 2)
#define BLK_F_RO           (1ull << 5)
#define BLK_F_BLK_SIZE     (1ull << 6)
#define BLK_F_FLUSH        (1ull << 9)
#define BLK_F_MQ           (1ull << 12)
#define BLK_F_DISCARD      (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)
#define BLK_FEATURES                                                                          \
	(BLK_F_SEG_MAX | BLK_F_RO | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_MQ | BLK_F_DISCARD | \
	 BLK_F_WRITE_ZEROES)

#define BLK_CONFIG_CAPACITY         0
#define BLK_CONFIG_N_QUEUES         34
#define BLK_CONFIG_MAX_DISCARD      36
#define BLK_CONFIG_MAX_WRITE_ZEROES 48

enum blk_type {
	BLK_IN = 0,
	BLK_OUT = 1,
	BLK_FLUSH = 4,
	BLK_GET_ID = 8,
	BLK_DISCARD = 11,
	BLK_WRITE_ZEROES = 13,
};

enum blk_status { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2, BLK_NO_ANSWER = 0xee };

struct blk_range {
	uint64_t sector;
	uint32_t n_sectors, flags;
};

/* One request in flight; must stay where it is until it is done. */
struct blk_request {
	uint32_t type, reserved;
	uint64_t sector;
	volatile uint8_t status;
	unsigned int head;
};

struct blk {
	struct virtio_device dev;
	struct virtq queues[BLK_MAX_QUEUES];
	unsigned int n_queues;
	uint64_t n_sectors;
};

/* Sets the nth disk up with what it offers of `features`. Also for a disk that was in use before.
 */
bool blk_find(struct blk *blk, unsigned int nth);
void blk_start(struct blk *blk, uint64_t features, bool polled);

/* Makes a request available without a kick. data_len 0: none. */
void blk_submit(struct virtq *q, struct blk_request *r, enum blk_type type, uint64_t sector,
		void *data, uint32_t data_len);
/* A whole request on an idle queue; the answer. Also checks the used length. */
enum blk_status blk_do(struct virtq *q, enum blk_type type, uint64_t sector, void *data,
		       uint32_t data_len);

/* Order-sensitive sum of whole 64-bit words; fletcher_add in the host's harness is the same. */
struct fletcher {
	uint64_t a, b;
};
void fletcher_add(struct fletcher *sum, const void *data, size_t len);
