/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzes the reading of what a guest says of its command. However the bytes are cut, the same comes
 * out: pieces that lie in what was fed, an end that is in range, or a refusal.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "mgmt/local/job.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct heard {
	struct job_parser parser;
	uint64_t n[2], sum[2];
	int result;
};

static void hear(struct heard *heard, const struct job_piece *piece)
{
	for (size_t i = 0; i < piece->size; i++)
		heard->sum[piece->is_err] = heard->sum[piece->is_err] * 31 + piece->data[i];
	heard->n[piece->is_err] += piece->size;
}

static void listen_to(struct heard *heard, const uint8_t *data, size_t size, size_t step)
{
	struct job_piece piece;

	*heard = (struct heard){};
	for (size_t at = 0; at < size;) {
		size_t n = MIN(step, size - at);
		ssize_t used = job_parser_take(&heard->parser, data + at, n, &piece);

		assert(used == -EBADMSG || (used > 0 && (size_t)used <= n));
		if (used < 0) {
			heard->result = used;
			return;
		}
		if (piece.size)
			assert(piece.data >= data + at && piece.data + piece.size <= data + at + n);
		hear(heard, &piece);
		at += used;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct heard whole, cut;

	if (!size)
		return 0;
	listen_to(&whole, data, size, size);
	listen_to(&cut, data, size, data[0] % 13 + 1);
	assert(whole.result == cut.result && whole.parser.done == cut.parser.done);
	assert(!memcmp(whole.n, cut.n, sizeof(cut.n)) &&
	       !memcmp(whole.sum, cut.sum, sizeof(cut.sum)));
	if (!whole.parser.done)
		return 0;
	assert(whole.parser.end == cut.parser.end && whole.parser.value == cut.parser.value);
	assert(whole.parser.failed ? strlen(whole.parser.text) <= JOB_TEXT_MAX
				   : whole.parser.end < JOB_ENDS);
	return 0;
}
