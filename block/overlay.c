/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image below is written out and read anew as one that is only read, by the same calls that a
 * move uses, except that its lock is never let go of: it changes from ours alone to one for
 * readers.
 */
#include "block/overlay.h"

#include <errno.h>
#include <string.h>

#include "block/qcow2.h"

static uint32_t chain_length(const struct block_image *image)
{
	uint32_t n = 0;

	for (; image; image = image->backing)
		n++;
	return n;
}

/* What it had would be in the guest's way, as it was somebody's before. */
static int check_empty(struct block_image *overlay, struct error *err)
{
	uint64_t at = 0;

	while (at < overlay->size) {
		struct block_extent extent;
		int r = overlay->ops->extent(overlay, at, overlay->size - at, &extent);

		if (r < 0)
			return error_set(err, r, "cannot read overlay \"%s\": %s", overlay->name,
					 strerror(-r));
		if (extent.kind != BLOCK_ABSENT)
			return error_set(err, -ENOTEMPTY,
					 "cannot use overlay \"%s\": it has data in it already; "
					 "make a new one",
					 overlay->name);
		at += extent.length;
	}
	return 0;
}

int block_overlay_check(struct block_image *overlay, const struct block_image *under,
			struct error *err)
{
	if (overlay->ops != &qcow2_ops || !to_qcow2(overlay)->header.backing_name)
		return error_set(err, -EINVAL,
				 "cannot use \"%s\" as an overlay: it does not say that it stands "
				 "on another image; `corral disk create --backing` makes one that "
				 "does",
				 overlay->name);
	if (overlay->size != under->size)
		return error_set(err, -EINVAL,
				 "cannot use overlay \"%s\": it has %llu bytes, the disk has %llu",
				 overlay->name, (unsigned long long)overlay->size,
				 (unsigned long long)under->size);
	if (chain_length(under) >= BLOCK_CHAIN_MAX)
		return error_set(
			err, -ELOOP,
			"cannot use overlay \"%s\": %u images stand on each other already, "
			"no more may; bring some together with `corral disk commit`",
			overlay->name, BLOCK_CHAIN_MAX);
	return check_empty(overlay, err);
}

/* Written out, then opened again, for reading or for writing. The lock follows. */
static int reopen(struct block_image *image, bool readonly, struct error *err)
{
	int r = block_lock(image->file.fd, !readonly);

	if (r < 0)
		return error_set(err, r, "cannot change the lock of disk \"%s\": %s", image->name,
				 strerror(-r));
	image->readonly = readonly;
	return image->ops->claim(image, err);
}

int block_overlay_put(struct block_image *overlay, struct block_image *under, struct error *err)
{
	int r = under->ops->yield(under);

	if (r < 0)
		return error_set(err, r, "cannot write out disk \"%s\": %s", under->name,
				 strerror(-r));
	r = reopen(under, true, err);
	if (r < 0) {
		struct error again = ERROR_NULL;

		if (reopen(under, false, &again) < 0)
			error_prefix(err, "the disk is read-only now: %s: ", again.text);
		return r;
	}
	overlay->backing = under;
	return 0;
}

int block_overlay_undo(struct block_image *overlay, struct error *err)
{
	struct block_image *under = take_ptr(overlay->backing);

	(void)under->ops->yield(under);
	return reopen(under, false, err);
}
