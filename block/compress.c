/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters: raw deflate of zlib, or a zstd frame, and nothing of them linked. The
 * libraries are loaded when an image is opened that may need them, because later the process may
 * have no right to open anything. What they take and give back is written down here as far as it is
 * used; both have kept it the same since 1.2 and 1.4.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/macros.h"
#include "block/qcow2.h"

#define ZLIB_FINISH     4
#define ZLIB_STREAM_END 1
#define ZLIB_BUF_ERROR  (-5)
#define ZLIB_DEFLATED   8
#define ZLIB_LEVEL      (-1)
#define ZLIB_MEMORY     9
#define ZLIB_VERSION_1  "1.2.11"
/* Raw deflate. Written with 4 KiB of window, as others do who read it with no more. */
#define ZLIB_READ_BITS       (-15)
#define ZLIB_WRITE_BITS      (-12)

#define ZSTD_LEVEL           3
#define ZSTD_WINDOW_LOG_MAX  100 /* the parameter's number */
#define ZSTD_WINDOW_LOG_MOST 23  /* 8 MiB, so no frame asks for more memory */

struct zlib_stream {
	const void *next_in;
	unsigned int avail_in;
	unsigned long total_in;
	void *next_out;
	unsigned int avail_out;
	unsigned long total_out;
	const char *message;
	void *state, *alloc, *free, *opaque;
	int data_type;
	unsigned long adler, reserved;
};

struct zstd_buffer {
	const void *data;
	size_t size, pos;
};

static struct {
	bool loaded;
	int (*inflate_init)(struct zlib_stream *stream, int bits, const char *version, int size);
	int (*inflate)(struct zlib_stream *stream, int flush);
	int (*inflate_end)(struct zlib_stream *stream);
	int (*deflate_init)(struct zlib_stream *stream, int level, int method, int bits, int memory,
			    int strategy, const char *version, int size);
	int (*deflate)(struct zlib_stream *stream, int flush);
	int (*deflate_end)(struct zlib_stream *stream);
} zlib;

static struct {
	bool loaded;
	void *(*new)(void);
	size_t (*free)(void *context);
	size_t (*set)(void *context, int parameter, int value);
	size_t (*unpack)(void *context, struct zstd_buffer *out, struct zstd_buffer *in);
	size_t (*pack)(void *out, size_t out_size, const void *in, size_t in_size, int level);
	unsigned int (*is_error)(size_t result);
} zstd;

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static bool settled; /* `loading`: nothing is loaded any more */

struct symbol {
	const char *name;
	void *function; /* a pointer to one */
};

static int load(const char *library, const struct symbol *symbols, uint32_t n, struct error *err)
{
	/* Stays for the process's life. */
	void *handle = settled ? NULL : dlopen(library, RTLD_NOW | RTLD_LOCAL);

	if (!handle && settled)
		return error_set(err, -ENOTSUP,
				 "its compressed clusters need %s, which was not there when this "
				 "process started",
				 library);
	if (!handle)
		return error_set(err, -ENOTSUP,
				 "its compressed clusters need %s, which is not installed",
				 library);
	for (uint32_t i = 0; i < n; i++) {
		void *function = dlsym(handle, symbols[i].name);

		if (!function)
			return error_set(err, -ENOTSUP, "%s has no %s", library, symbols[i].name);
		*(void **)symbols[i].function = function;
	}
	return 0;
}

static int load_zlib(struct error *err)
{
	const struct symbol symbols[] = {
		{"inflateInit2_", &zlib.inflate_init},
		{"inflate", &zlib.inflate},
		{"inflateEnd", &zlib.inflate_end},
		{"deflateInit2_", &zlib.deflate_init},
		{"deflate", &zlib.deflate},
		{"deflateEnd", &zlib.deflate_end},
	};
	int r = zlib.loaded ? 0 : load("libz.so.1", symbols, ARRAY_SIZE(symbols), err);

	zlib.loaded = r >= 0;
	return r;
}

static int load_zstd(struct error *err)
{
	const struct symbol symbols[] = {
		{"ZSTD_createDCtx", &zstd.new},        {"ZSTD_freeDCtx", &zstd.free},
		{"ZSTD_DCtx_setParameter", &zstd.set}, {"ZSTD_decompressStream", &zstd.unpack},
		{"ZSTD_compress", &zstd.pack},         {"ZSTD_isError", &zstd.is_error},
	};
	int r = zstd.loaded ? 0 : load("libzstd.so.1", symbols, ARRAY_SIZE(symbols), err);

	zstd.loaded = r >= 0;
	return r;
}

void compress_settle(void)
{
	pthread_mutex_lock(&loading);
	settled = true;
	pthread_mutex_unlock(&loading);
}

int compress_load(uint32_t type, struct error *err)
{
	int r;

	pthread_mutex_lock(&loading);
	r = type == QCOW2_ZSTD ? load_zstd(err) : load_zlib(err);
	pthread_mutex_unlock(&loading);
	return r;
}

/* What follows the compressed bytes in their last sector is somebody else's. */
static int unpack_zlib(const void *in, size_t in_size, void *out, size_t out_size)
{
	struct zlib_stream stream = {.next_in = in,
				     .avail_in = (unsigned int)in_size,
				     .next_out = out,
				     .avail_out = (unsigned int)out_size};
	int r;

	if (zlib.inflate_init(&stream, ZLIB_READ_BITS, ZLIB_VERSION_1, sizeof(stream)) != 0)
		return -ENOMEM;
	r = zlib.inflate(&stream, ZLIB_FINISH);
	zlib.inflate_end(&stream);
	return (r == ZLIB_STREAM_END || r == ZLIB_BUF_ERROR) && !stream.avail_out ? 0 : -EIO;
}

static int unpack_zstd(const void *in, size_t in_size, void *out, size_t out_size)
{
	struct zstd_buffer from = {in, in_size, 0}, to = {out, out_size, 0};
	void *context = zstd.new();

	if (!context)
		return -ENOMEM;
	(void)zstd.set(context, ZSTD_WINDOW_LOG_MAX, ZSTD_WINDOW_LOG_MOST);
	while (to.pos < to.size) {
		const size_t was = from.pos + to.pos;

		if (zstd.is_error(zstd.unpack(context, &to, &from)) || from.pos + to.pos == was)
			break;
	}
	zstd.free(context);
	return to.pos == to.size ? 0 : -EIO;
}

int compress_unpack(uint32_t type, const void *in, size_t in_size, void *out, size_t out_size)
{
	if (type == QCOW2_ZSTD)
		return zstd.loaded ? unpack_zstd(in, in_size, out, out_size) : -EIO;
	return zlib.loaded ? unpack_zlib(in, in_size, out, out_size) : -EIO;
}

static size_t pack_zlib(const void *in, size_t in_size, void *out, size_t out_size)
{
	struct zlib_stream stream = {.next_in = in,
				     .avail_in = (unsigned int)in_size,
				     .next_out = out,
				     .avail_out = (unsigned int)out_size};
	int r;

	if (zlib.deflate_init(&stream, ZLIB_LEVEL, ZLIB_DEFLATED, ZLIB_WRITE_BITS, ZLIB_MEMORY, 0,
			      ZLIB_VERSION_1, sizeof(stream)) != 0)
		return 0;
	r = zlib.deflate(&stream, ZLIB_FINISH);
	zlib.deflate_end(&stream);
	return r == ZLIB_STREAM_END ? out_size - stream.avail_out : 0;
}

size_t compress_pack(uint32_t type, const void *in, size_t in_size, void *out, size_t out_size)
{
	size_t n = 0;

	if (type == QCOW2_ZSTD && zstd.loaded) {
		n = zstd.pack(out, out_size, in, in_size, ZSTD_LEVEL);
		if (zstd.is_error(n))
			n = 0;
	} else if (type == QCOW2_ZLIB && zlib.loaded) {
		n = pack_zlib(in, in_size, out, out_size);
	}
	return n < out_size ? n : 0;
}
